"""This system against its peers at full size, prompt to picture, in one process on one device.

Weights are random, which is fair here because time does not depend on them. All systems alternate, so that whatever
else the machine does touches all; where they do not fit into the device's memory together, those that wait are kept in
main memory. Each is compiled, block by block, if any is. One that fails, for want of memory say, is told of as such,
and the others go on. Every time is told when it is measured, so that a benchmark that is cut off was not in vain.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from benchmarks.full_size.systems import BASELINE, PLAIN, PROMPT, SYSTEMS, Networks, RelaySystem, System

from cogview3.bench.machine import hardware, versions
from cogview3.bench.stopwatch import stopwatch, wait
from cogview3.config import UserError
from cogview3.evaluation.progress import Counter, silent
from cogview3.generation.compiling import check_compiler, compile_network, compile_seconds
from cogview3.precision import computes_bfloat16
from cogview3.training.measure import matmul_ceiling

SIDES, BATCHES = (1024, 2048), (1, 4)
NARROW_SIDES = (512,)
_ACTIVATIONS = 1_700  # bytes a pixel of the final pictures, decoding, at the peak in 16 bits
_SLICED = 2**23  # more pixels than these are decoded picture by picture: convolutions count in 32 bits


def count(
    sides: Sequence[int] = SIDES,
    scale: str = "full",
    counter: Counter = silent,
    systems: Sequence[str] = (),
) -> dict[str, Any]:
    """Operations of a picture by every system, counted without running any: no device is needed.

    Args:
        sides: of the pictures, in pixels.
        scale: "full", "narrow" or "tiny".
        counter: progress bar.
        systems: names of those to count; by default all, and this one without its savings.

    Returns:
        "rows": {system, side, parts (operations), total, ratio to the baseline at the same side, None without it}.

    Raises:
        UserError: an unknown system.
    """
    networks = Networks(scale, "meta", torch.bfloat16)
    chosen = [*SYSTEMS.values(), PLAIN] if not systems else _chosen(systems)
    rows: list[dict[str, Any]] = []
    with counter("counting", len(sides) * len(chosen)) as progress:
        for side in sides:
            for system in chosen:
                parts = system.operations(networks, side)
                rows.append({"system": system.name, "side": side, "parts": parts, "total": sum(parts.values())})
                progress(len(rows))
    base = {row["side"]: row["total"] for row in rows if row["system"] == BASELINE}
    for row in rows:
        row["ratio"] = row["total"] / base[row["side"]] if row["side"] in base else None
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
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every system.

    Args:
        sides: of the pictures in pixels; the peers draw the first one only.
        batches: pictures drawn at once.
        repeats: runs of each, after some to warm up, which also compile; medians are given.
        device: where the networks run.
        compiled: compile the networks, with CUDA graphs where there are few steps.
        systems: names of those to measure; all by default.
        scale: "full", "narrow" (a quarter of the widths), or "tiny" for tests.
        counter: progress bar.
        tell: takes a line for every time that is measured.

    Returns:
        "rows": for each system, side and batch the median "seconds", its "runs", their "ratio" to the baseline at the
        same side and batch, seconds by part, "operations" of the batch, the "floor" (seconds that these take at the
        measured matmul ceiling), the share of it that is reached, by the whole and by the UNets' parts, "peak_bytes"
        on a GPU; or "error", why there is none of all this. Further the "ceiling", the "counted" operations, what
        compiling took, hardware and versions.

    Raises:
        UserError: an unknown system, counts below 1, or nothing to compile with.
    """
    chosen = _chosen(systems)
    if repeats < 1 or not batches or min(batches) < 1 or not sides:
        raise UserError(f"repeats {repeats}, batches {list(batches)}, sides {list(sides)}: give 1 or more of each")
    if compiled:
        check_compiler(device)
    on_gpu = torch.device(device).type == "cuda"
    dtype = torch.bfloat16 if on_gpu and computes_bfloat16(device) else torch.float32
    ceiling, began = matmul_ceiling(device, dtype), compile_seconds()
    cases = [(side, batch) for side in sides for batch in batches]
    rows: list[dict[str, Any]] = []
    bench = _Bench(Networks(scale, device, dtype), compiled, tell)
    with counter("benchmark", len(cases) * (repeats + 2)) as progress:
        for number, (side, batch) in enumerate(cases):

            def told(done: int, number: int = number) -> None:
                progress(number * (repeats + 2) + done)

            drawing = [system for system in chosen if isinstance(system, RelaySystem) or side == sides[0]]
            rows += bench.case(drawing, side, batch, repeats, told)
    counted = count(sides, scale, systems=[system.name for system in chosen])
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
        "versions": versions(),
    }


def _chosen(systems: Sequence[str]) -> list[System]:
    if unknown := set(systems) - SYSTEMS.keys():
        raise UserError(f"no system {', '.join(sorted(unknown))}: choose from {', '.join(SYSTEMS)}")
    return [SYSTEMS[name] for name in systems or SYSTEMS]


class _Bench:
    """Systems that take turns on networks that they share."""

    def __init__(self, networks: Networks, compiled: bool, tell: Callable[[str], None]) -> None:
        self.networks, self.compiled, self.device, self.tell = networks, compiled, str(networks.device), tell
        self.on_gpu = networks.device.type == "cuda"
        self.pipes: dict[str, Any] = {}
        self.errors: dict[str, str] = {}

    def case(
        self, systems: Sequence[System], side: int, batch: int, repeats: int, progress: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Rows of all systems at one side and batch, without what `_finish` adds.

        All alternate, so that a ratio is of neighbors in time.
        """
        self.errors = {}
        runs: dict[str, list[float]] = {system.name: [] for system in systems}
        rows: list[dict[str, Any]] = []

        def draw(system: System) -> float:
            return _draw(self.pipes[system.name], system, side, batch, self.device)

        def warm_up(system: System) -> None:
            self.ready(system, side, batch)
            for _ in range(2 if self.compiled else 1):  # CUDA graphs are recorded in the second
                draw(system)

        def run(system: System) -> None:
            if self.ready(system, side, batch):
                draw(system)  # networks that were moved have new addresses
            runs[system.name].append(seconds := draw(system))
            self.tell(f"{system.name}, {side} x {side}, batch {batch}: {seconds:.3f} s")

        def row(system: System) -> None:
            self.ready(system, side, batch)
            made = {"parts": self.parts(system, side, batch), "peak_bytes": self.peak(system, side, batch)}
            seconds = runs[system.name]
            rows.append({**_key(system, side, batch), "seconds": median(seconds), "runs": seconds, **made})

        for done, act in enumerate((warm_up, *[run] * repeats, row)):
            for system in systems:
                self.attempt(system, act)
            progress(done + 1)
        failed = [_key(system, side, batch) for system in systems if system.name in self.errors]
        return rows + [key | {"error": self.errors[key["system"]]} for key in failed]

    def attempt(self, system: System, act: Callable[[System], None]) -> None:
        """Do it, unless the system failed before; a failure is noted, and what it held is let go."""
        if system.name in self.errors:
            return
        try:
            act(system)
        except RuntimeError as error:  # running out of memory is one
            self.errors[system.name] = (str(error) or type(error).__name__).splitlines()[0]
            self.tell(f"{system.name} failed: {self.errors[system.name]}")
        if system.name in self.errors:
            self.pipes.pop(system.name, None)
            if self.on_gpu:
                torch.cuda.empty_cache()

    def ready(self, system: System, side: int, batch: int) -> bool:
        """Have the system's networks on the device and its pipeline built; tells whether networks were moved."""
        networks = self.networks
        reserve = _ACTIVATIONS * batch * side * side + 2 * 2**30
        moved = networks.bring(system.names(), _free if self.on_gpu else None, reserve)
        if system.name not in self.pipes:
            pipe = self.pipes[system.name] = system.pipe(networks)
            pipe.set_progress_bar_config(disable=True)
            for name in system.names() if self.compiled else ():
                if name not in networks.compiled:
                    graphs = name.startswith("distilled") or name == "lcm_unet"
                    compile_network(networks.get(name), graphs=graphs, dynamic=False)
                    networks.compiled.add(name)
            if hasattr(pipe, "compiled"):
                pipe.compiled = self.compiled
        if "vae" in system.names():
            networks.get("vae").use_slicing = batch * side * side > _SLICED
        return moved

    def parts(self, system: System, side: int, batch: int) -> dict[str, float]:
        """Seconds by part, of a run of its own, since waiting for each network takes time."""
        watched = system.watched(self.networks)
        with stopwatch(watched, self.device) as calls:
            total = _draw(self.pipes[system.name], system, side, batch, self.device)
        spent = dict.fromkeys((part for part, _, _ in watched), 0.0)
        for part, seconds in calls:
            spent[part] += seconds
        return spent | {"other": total - sum(spent.values())}

    def peak(self, system: System, side: int, batch: int) -> int | None:
        """Most bytes allocated at once on a GPU, by this system's networks and its drawing alone.

        Of a run of its own without compiled code, since a CUDA graph that is replayed allocates nothing.
        """
        if not self.on_gpu:
            return None
        others = torch.cuda.memory_allocated() - self.networks.size(system.names())
        torch.cuda.reset_peak_memory_stats()
        with torch.compiler.set_stance("force_eager"):
            _draw(self.pipes[system.name], system, side, batch, self.device)
        return torch.cuda.max_memory_allocated() - others


def _key(system: System, side: int, batch: int) -> dict[str, Any]:
    return {"system": system.name, "side": side, "batch": batch}


def _free() -> int:
    """Bytes free on the GPU, those that torch only keeps for later included."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


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


def _finish(rows: list[dict[str, Any]], counted: Sequence[dict[str, Any]], ceiling: float) -> None:
    """Ratios to the baseline, counts and floors, into the rows that have times."""
    counts = {(row["system"], row["side"]): row for row in counted}
    measured = [row for row in rows if "seconds" in row]
    base = {(row["side"], row["batch"]): row["seconds"] for row in measured if row["system"] == BASELINE}
    for row in measured:
        baseline, made = base.get((row["side"], row["batch"])), counts[row["system"], row["side"]]
        row["ratio"] = None if baseline is None else row["seconds"] / baseline
        row["operations"] = made["total"] * row["batch"]
        row["floor"] = row["operations"] / ceiling
        row["share_of_ceiling"] = row["floor"] / row["seconds"]
        row["unets_share_of_ceiling"] = {
            part: made["parts"][part] * row["batch"] / ceiling / row["parts"][part]
            for part in ("base", "relay")
            if made["parts"].get(part) and row["parts"].get(part)
        }


def describe_count(result: dict[str, Any]) -> str:
    """Counted operations as a Markdown table."""
    head = f"| system | side | TFLOP a picture | of {BASELINE}'s at that side | by part |"
    lines = [head, "|---|---|---|---|---|"]
    for row in result["rows"]:
        parts = ", ".join(f"{part} {_tera(value)}" for part, value in row["parts"].items())
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        lines.append(f"| {row['system']} | {row['side']} | {_tera(row['total'])} | {ratio} | {parts} |")
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
        f"| system | side | batch | seconds | of {BASELINE}'s | share of the ceiling | of it base, relay | peak GB "
        "| by part, seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "error" in row:
            lines.append(f"| {row['system']} | {row['side']} | {row['batch']} | failed: {row['error']} | | | | | |")
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
        parts = ", ".join(f"{part} {value:.2f}" for part, value in row["parts"].items())
        unets = ", ".join(f"{share:.0%}" for share in row["unets_share_of_ceiling"].values())
        lines.append(
            f"| {row['system']} | {row['side']} | {row['batch']} | {row['seconds']:.2f} | {ratio} | "
            f"{row['share_of_ceiling']:.0%} | {unets} | {peak} | {parts} |"
        )
    return "\n".join(lines)
