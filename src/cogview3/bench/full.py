"""This system against its peers at full size, prompt to picture, in one process on one device.

Weights are random, which is fair here because time does not depend on them. All systems alternate, so that whatever
else the machine does touches all; where they do not fit into the device's memory together, those that wait are kept in
main memory. Each is compiled, block by block, if any is.
"""

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from cogview3.bench.inference import LIBRARIES, hardware
from cogview3.bench.stopwatch import stopwatch, wait
from cogview3.bench.systems import BASELINE, PLAIN, PROMPT, SYSTEMS, Networks, System
from cogview3.config import UserError
from cogview3.evaluation.progress import Counter, silent
from cogview3.generation.compiling import check_compiler, compile_network, compile_seconds
from cogview3.training.measure import matmul_ceiling

SIDES, BATCHES = (1024, 2048), (1, 4)
NARROW_SIDES = (512,)
_RESERVE = 16 * 2**30  # beside the weights: four pictures' activations at 2048


def count(
    sides: Sequence[int] = SIDES,
    scale: str = "full",
    counter: Counter = silent,
    systems: Sequence[System] | None = None,
) -> dict[str, Any]:
    """Operations of a picture by every system, counted without running any: no device is needed.

    Args:
        sides: of the pictures, in pixels.
        scale: "full", "narrow" or "tiny".
        counter: progress bar.
        systems: those to count; by default all, and this one without its savings.

    Returns:
        "rows": {system, side, parts (operations), total, ratio to the baseline at 1024 pixels, or the first side}.
    """
    networks = Networks(scale, "meta", torch.bfloat16)
    systems = [*SYSTEMS.values(), PLAIN] if systems is None else systems
    rows: list[dict[str, Any]] = []
    with counter("counting", len(sides) * len(systems)) as progress:
        for side in sides:
            for system in systems:
                parts = system.operations(networks, side)
                rows.append({"system": system.name, "side": side, "parts": parts, "total": sum(parts.values())})
                progress(len(rows))
    for row in rows:
        row["ratio"] = row["total"] / rows[0]["total"]
    return {"scale": scale, "baseline": BASELINE, "rows": rows}


def run(
    sides: Sequence[int] = SIDES,
    batches: Sequence[int] = BATCHES,
    repeats: int = 3,
    device: str = "cuda",
    compiled: bool = True,
    systems: Sequence[str] = (),
    scale: str = "full",
    counter: Counter = silent,
) -> dict[str, Any]:
    """Measure every system.

    Args:
        sides: of the pictures in pixels; the peers draw the first one only.
        batches: pictures drawn at once.
        repeats: runs of each, after one to warm up, which also compiles; medians are given.
        device: where the networks run.
        compiled: compile the networks, with CUDA graphs where there are few steps.
        systems: names of those to measure; all by default.
        scale: "full", "narrow" (a quarter of the widths), or "tiny" for tests.
        counter: progress bar.

    Returns:
        "rows": for each system, side and batch the median "seconds", its "runs", their "ratio" to the baseline at the
        same side and batch, seconds by part, "operations" of the batch, the "floor" (seconds that these take at the
        measured matmul ceiling) and the share of it that is reached, "peak_bytes" on a GPU; further the "ceiling",
        the "counted" operations, what compiling took, hardware and versions.

    Raises:
        UserError: an unknown system, counts below 1, or nothing to compile with.
    """
    if unknown := set(systems) - SYSTEMS.keys():
        raise UserError(f"no system {', '.join(sorted(unknown))}: choose from {', '.join(SYSTEMS)}")
    if repeats < 1 or not batches or min(batches) < 1 or not sides:
        raise UserError(f"repeats {repeats}, batches {list(batches)}, sides {list(sides)}: give 1 or more of each")
    if compiled:
        check_compiler(device)
    chosen = [SYSTEMS[name] for name in systems or SYSTEMS]
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    networks = Networks(scale, device, dtype)
    ceiling = matmul_ceiling(device, dtype)
    cases = [
        (side, batch) for side in sides for batch in batches
    ]  # one at a time, all systems in turn, so that a ratio is of neighbors in time
    rows: list[dict[str, Any]] = []
    pipes: dict[str, Any] = {}
    began = compile_seconds()
    with counter("benchmark", len(cases) * (repeats + 2)) as progress:
        for number, (side, batch) in enumerate(cases):
            drawing = [system for system in chosen if _draws(system, side, sides)]
            runs: dict[str, list[float]] = {system.name: [] for system in drawing}
            peaks: dict[str, int | None] = {}
            for system in drawing:
                _ready(system, networks, pipes, compiled)
                _draw(pipes[system.name], system, side, batch, device)  # warms up, and compiles
            progress(number * (repeats + 2) + 1)
            for done in range(repeats):
                for system in drawing:
                    _ready(system, networks, pipes, compiled)
                    seconds, peaks[system.name] = _measured(pipes[system.name], system, side, batch, device)
                    runs[system.name].append(seconds)
                progress(number * (repeats + 2) + 2 + done)
            for system in drawing:
                _ready(system, networks, pipes, compiled)
                parts = _parts(pipes[system.name], system, networks, side, batch, device)
                row = {"system": system.name, "side": side, "batch": batch, "seconds": median(runs[system.name])}
                rows.append(row | {"runs": runs[system.name], "parts": parts, "peak_bytes": peaks[system.name]})
            progress((number + 1) * (repeats + 2))
    counted = count(sides, scale, systems=chosen)
    _finish(rows, counted["rows"], ceiling)
    return {
        "scale": scale,
        "weights": "random: time does not depend on them",
        "tokenizers": "own, of the same lengths",
        "baseline": BASELINE,
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": compiled,
        "compile_seconds": compile_seconds() - began,
        "ceiling": ceiling,
        "rows": rows,
        "counted": counted,
        "hardware": hardware(device),
        "versions": {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES},
    }


def _draws(system: System, side: int, sides: Sequence[int]) -> bool:
    """Peers draw the size that they were made for alone."""
    return side == sides[0] or system.name.startswith("CogView3")


def _ready(system: System, networks: Networks, pipes: dict[str, Any], compiled: bool) -> None:
    """The system's networks on the device, its pipeline built and told to compile at its first use."""
    on_gpu = networks.device.type == "cuda"
    networks.bring(system.names(), (lambda: torch.cuda.mem_get_info()[0]) if on_gpu else None, _RESERVE)
    if system.name in pipes:
        return
    pipe = system.pipe(networks)
    pipe.set_progress_bar_config(disable=True)
    for name in system.names() if compiled else ():
        if name not in networks.compiled:
            graphs = name.startswith("distilled") or name == "lcm_unet"
            compile_network(networks.get(name), graphs=graphs, dynamic=False)
            networks.compiled.add(name)
    if hasattr(pipe, "compiled"):
        pipe.compiled = compiled
    pipes[system.name] = pipe


def _draw(pipe: Any, system: System, side: int, batch: int, device: str) -> float:
    """Seconds from prompts to picture tensors on the device."""
    seeds = [torch.Generator(device).manual_seed(number) for number in range(batch)]
    wait(device)
    start = time.perf_counter()
    images = pipe(prompt=[PROMPT] * batch, generator=seeds, **system.call(side)).images
    wait(device)
    if tuple(images.shape) != (batch, 3, side, side):
        raise RuntimeError(f"{system.name} drew {tuple(images.shape)}")
    return time.perf_counter() - start


def _measured(pipe: Any, system: System, side: int, batch: int, device: str) -> tuple[float, int | None]:
    if torch.device(device).type != "cuda":
        return _draw(pipe, system, side, batch, device), None
    torch.cuda.reset_peak_memory_stats()
    seconds = _draw(pipe, system, side, batch, device)
    return seconds, torch.cuda.max_memory_allocated()


def _parts(pipe: Any, system: System, networks: Networks, side: int, batch: int, device: str) -> dict[str, float]:
    """Seconds of one run by part, of a run of its own, since waiting for each network takes time."""
    watched = system.watched(networks)
    with stopwatch(watched, device) as calls:
        total = _draw(pipe, system, side, batch, device)
    spent = dict.fromkeys((part for part, _, _ in watched), 0.0)
    for part, seconds in calls:
        spent[part] += seconds
    return spent | {"other": total - sum(spent.values())}


def _finish(rows: list[dict[str, Any]], counted: Sequence[dict[str, Any]], ceiling: float) -> None:
    """Ratios to the baseline, counts and floors, into the rows."""
    totals = {(row["system"], row["side"]): row["total"] for row in counted}
    base = {(row["side"], row["batch"]): row["seconds"] for row in rows if row["system"] == BASELINE}
    for row in rows:
        baseline = base.get((row["side"], row["batch"]))
        row["ratio"] = None if baseline is None else row["seconds"] / baseline
        row["operations"] = totals[row["system"], row["side"]] * row["batch"]
        row["floor"] = row["operations"] / ceiling
        row["share_of_ceiling"] = row["floor"] / row["seconds"]


def describe_count(result: dict[str, Any]) -> str:
    """Counted operations as a Markdown table."""
    lines = [f"| system | side | TFLOP a picture | of {BASELINE}'s | by part |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        parts = ", ".join(f"{part} {_tera(value)}" for part, value in row["parts"].items())
        lines.append(f"| {row['system']} | {row['side']} | {_tera(row['total'])} | {row['ratio']:.3f} | {parts} |")
    return "\n".join(lines)


def _tera(operations: float) -> str:
    return f"{operations / 1e12:.1f}" if operations > 1e11 else f"{operations / 1e12:.2g}"


def describe(result: dict[str, Any]) -> str:
    """What was measured as a Markdown table, with the device above it."""
    machine = result["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"{machine['device']} ({machine['processor']}), {result['dtype']}, {versions}; weights "
        f"{result['weights']}; matmul ceiling {result['ceiling'] / 1e12:.3g} TFLOP/s"
        + (f"; compiling took {result['compile_seconds']:.0f} s" if result["compiled"] else "; not compiled"),
        "",
        f"| system | side | batch | seconds | of {BASELINE}'s | share of the ceiling | peak GB | by part, seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
        parts = ", ".join(f"{part} {value:.2f}" for part, value in row["parts"].items())
        lines.append(
            f"| {row['system']} | {row['side']} | {row['batch']} | {row['seconds']:.2f} | {ratio} | "
            f"{row['share_of_ceiling']:.0%} | {peak} | {parts} |"
        )
    return "\n".join(lines)
