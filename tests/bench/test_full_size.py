"""The benchmark at full size, on networks of the same classes and tiny width."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.full_size import full, systems
from benchmarks.full_size.__main__ import app
from benchmarks.full_size.networks import CONFIGS, TEXT_LENGTH, build
from benchmarks.full_size.plot import COLORS, bars, of_counts, of_times
from benchmarks.full_size.systems import BASELINE, PLAIN, PROMPT, SYSTEMS, Networks, RelaySystem, operations
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from cogview3.config import UserError
from cogview3.generation import compiling
from cogview3.models.modes import Mode

SIDE = 128
BRIEF = {
    BASELINE: replace(SYSTEMS[BASELINE], steps=2),
    "CogView3 50+10": replace(SYSTEMS["CogView3 50+10"], mode=Mode(steps=2, relay_steps=2)),
    "CogView3 8+2": replace(SYSTEMS["CogView3 8+2"], mode=Mode(steps=3, relay_steps=2, distilled=True)),
    "CogView3 4+1": replace(SYSTEMS["CogView3 4+1"], mode=Mode(steps=2, relay_steps=1, distilled=True)),
    "CogView3 4+1 light": replace(
        SYSTEMS["CogView3 4+1 light"], mode=Mode(steps=2, relay_steps=1, distilled=True, light=True)
    ),
    "Stable Cascade 20+10": replace(SYSTEMS["Stable Cascade 20+10"], steps=2, decoder_steps=2),
    "LCM-SDXL 4": replace(SYSTEMS["LCM-SDXL 4"], steps=2),
}


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks("tiny", "cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("unet", 2_906_612_484),  # the release's
        ("t5", 4_762_310_656),  # T5-v1.1-XXL's encoder
        ("vae", 83_653_863),  # SDXL's
        ("sdxl_unet", 2_567_463_684),  # as published
    ],
)
def test_networks_have_their_published_sizes(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in build(name, "full").parameters()) == count


def test_all_networks_come_in_all_sizes() -> None:
    assert CONFIGS["tiny"].keys() == CONFIGS["narrow"].keys() == CONFIGS["full"].keys()


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "vae",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("distilled_relay_unet", "sdxl_unet", "prior", "decoder")
        ),
    ],
)
def test_narrow_networks_have_as_many_layers_of_a_quarter_of_the_width(name: str) -> None:
    full_size, narrow = (dict(build(name, scale).named_parameters()) for scale in ("full", "narrow"))
    assert narrow.keys() == full_size.keys()
    ratio = sum(p.numel() for p in full_size.values()) / sum(p.numel() for p in narrow.values())
    assert 13 < ratio < 17


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same systems in few steps, and the processor measured on small matrices."""
    monkeypatch.setattr(full, "SYSTEMS", BRIEF)
    monkeypatch.setattr(full, "matmul_ceiling", partial(full.matmul_ceiling, side=64))
    monkeypatch.setattr(full, "PLAIN", replace(PLAIN, mode=Mode(steps=2, relay_steps=2)))


ONE_OF_EACH = (BASELINE, "CogView3 4+1", "Stable Cascade 20+10")  # one of each kind of pipeline


@pytest.mark.parametrize(
    "name", [name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS]
)
def test_counts_are_those_of_the_whole_run(name: str, networks: Networks) -> None:
    """Operations from one forward pass of each network, against those of the pipeline as it runs."""
    system = BRIEF[name]
    pipe = system.pipe(networks)
    pipe.set_progress_bar_config(disable=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        images = pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(0), **system.call(SIDE)).images
    assert images.shape == (1, 3, SIDE, SIDE)
    parts = system.operations(Networks("tiny", "meta", torch.float32), SIDE)
    # the schedulers' and the blur's few products are not in it
    assert sum(parts.values()) == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_larger_pictures_take_further_relays() -> None:
    system = SYSTEMS["CogView3 4+1"]
    assert [system.call(side)["num_relays"] for side in (512, 1024, 2048, 4096)] == [1, 1, 2, 3]


def test_operations_of_a_layer_are_those_by_hand() -> None:
    """2 x rows x tokens x in x out."""
    layer = torch.nn.Linear(6, 10, device="meta")
    assert operations(layer, (3, 5, 6)) == 2 * 3 * 5 * 6 * 10


def test_saving_the_text_saves_its_projections_and_a_branchs_cross_attention(networks: Networks) -> None:
    """By hand, of every cross attention, what `generation/attention.py` leaves out.

    Keys and values of both branches at all steps but those of one branch at the first; the unconditional branch's
    queries, products and output at every step, the output but for one row.
    """
    steps, side = 3, 8
    system = RelaySystem("of few steps", mode=Mode(steps=steps))
    unet = Networks("tiny", "meta", torch.float32).get("unet")
    plain = replace(system, plain=True)._stage(unet, side, steps)
    saved = 0
    for name, layer in unet.named_modules():
        if not name.endswith("attn2"):
            continue
        texts, width, inner = TEXT_LENGTH, layer.to_k.in_features, layer.to_q.out_features
        level = int(name.split(".")[1]) if name.startswith("down_blocks") else 2
        level = 2 - int(name.split(".")[1]) if name.startswith("up_blocks") else level
        places = (side >> level) ** 2
        keys_and_values = 2 * (2 * texts * width * inner)
        attention = 2 * (2 * places * texts * inner)
        queries = 2 * places * layer.to_q.in_features * inner
        output = 2 * (places - 1) * inner * layer.to_out[0].out_features
        saved += (2 * steps - 1) * keys_and_values + steps * (attention + queries + output)
    assert plain - system._stage(unet, side, steps) == saved > 0


@pytest.mark.slow
def test_a_report_holds_together() -> None:
    chosen = [BASELINE, "CogView3 4+1"]
    told: list[int] = []

    def counter(name: str, total: int) -> Any:
        return nullcontext(told.append)

    lines: list[str] = []
    result = full.run((64, SIDE), (1, 2), 1, "cpu", False, chosen, "tiny", counter, lines.append)
    rows = {(row["system"], row["side"], row["batch"]): row for row in result["rows"]}
    assert len(rows) == 2 * 2 + 2  # the peers draw the first size alone
    assert rows[BASELINE, 64, 2]["ratio"] == 1
    for row in rows.values():
        assert len(row["runs"]) == 1
        assert all(spent > 0 for part, spent in row["parts"].items() if part != "other")
        assert {"base", "vae"} <= row["parts"].keys()
    assert rows["CogView3 4+1", SIDE, 2]["operations"] == 2 * rows["CogView3 4+1", SIDE, 1]["operations"]
    assert told[-1] == max(told) == 4 * 3
    assert sorted(lines) == sorted(
        f"{name}, {side} x {side}, batch {batch}: {row['runs'][0]:.3f} s" for (name, side, batch), row in rows.items()
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = full.describe(result)
    assert "not compiled" in text
    assert text.count("\n| CogView3 4+1 |") == 4
    assert of_times(result).get_size_inches()[0] == 10


def test_ratios_and_shares_are_as_by_hand() -> None:
    rows: list[dict[str, Any]] = [
        {"system": BASELINE, "side": 64, "batch": 2, "seconds": 8.0, "parts": {"base": 4.0, "vae": 2.0}},
        {"system": "a", "side": 64, "batch": 2, "seconds": 2.0, "parts": {"base": 1.0, "relay": 0.5, "vae": 0.5}},
        {"system": "a", "side": 128, "batch": 1, "seconds": 5.0, "parts": {"base": 1.0, "relay": 2.0}},
        {"system": "b", "side": 64, "batch": 2, "error": "out of memory"},
    ]
    counted = [
        {"system": BASELINE, "side": 64, "parts": {"base": 100, "vae": 20}, "total": 120},
        {"system": "a", "side": 64, "parts": {"base": 20, "relay": 10, "vae": 10}, "total": 40},
        {"system": "a", "side": 128, "parts": {"base": 20, "relay": 40, "vae": 40}, "total": 100},
        {"system": "b", "side": 64, "parts": {"base": 1}, "total": 1},
    ]
    full._finish(rows, counted, ceiling=100.0)
    assert [row.get("ratio") for row in rows] == [1.0, 0.25, None, None]
    assert [row.get("operations") for row in rows] == [240, 80, 100, None]
    assert [row.get("floor") for row in rows] == [2.4, 0.8, 1.0, None]
    assert [row.get("share_of_ceiling") for row in rows] == [0.3, 0.4, 0.2, None]
    assert [row.get("unets_share_of_ceiling") for row in rows] == [
        {"base": 0.5},
        {"base": 0.4, "relay": 0.4},
        {"base": 0.2, "relay": 0.2},
        None,
    ]


@pytest.mark.slow
def test_a_system_that_fails_is_told_of_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = full._draw, []

    def few_pictures(pipe: Any, system: Any, side: int, batch: int, device: str) -> float:
        calls.append((system.name, batch))
        if system.name == BASELINE and batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")
        return draw(pipe, system, side, batch, device)

    monkeypatch.setattr(full, "_draw", few_pictures)
    lines: list[str] = []
    chosen = [BASELINE, "CogView3 4+1"]
    result = full.run((64,), (1, 2), 1, "cpu", False, chosen, "tiny", tell=lines.append)
    kept = {(row["system"], row["batch"]): row for row in result["rows"]}
    assert kept[BASELINE, 2]["error"] == "CUDA out of memory. Tried to allocate 2 GiB."
    assert lines.count(f"{BASELINE} failed: CUDA out of memory. Tried to allocate 2 GiB.") == 1
    assert calls.count((BASELINE, 2)) == 1
    assert (kept[BASELINE, 1]["ratio"], kept["CogView3 4+1", 2]["ratio"]) == (1, None)
    assert len(kept["CogView3 4+1", 2]["runs"]) == 1
    assert f"| {BASELINE} | 64 | 2 | failed: CUDA out of memory." in full.describe(result)
    assert of_times(result).get_size_inches()[0] == 10
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    "name",
    [
        "CogView3 4+1 light",
        "CogView3 50+10",
        "LCM-SDXL 4",
    ],
)
@pytest.mark.slow
def test_compiled_networks_are_not_compiled_again_while_the_clock_runs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With a compiler that only records: after two drawings to warm up there are no new graphs."""
    graphs: list[str] = []
    now = ["warming up"]

    def record(module: Any, inputs: Any) -> Any:
        graphs.append(now[0])
        return module.forward

    def compile_with(network: Any, graphs: bool = False, dynamic: bool | None = None) -> bool:
        return compiling.compile_network(network, graphs, dynamic, record)  # type: ignore[arg-type]

    draw, drawn = full._draw, Counter()

    def watched(pipe: Any, system: Any, *given: Any) -> float:
        now[0] = "warming up" if drawn[system.name] < 2 else "timed"
        drawn[system.name] += 1
        return draw(pipe, system, *given)

    monkeypatch.setattr(full, "check_compiler", lambda device: None)
    monkeypatch.setattr(full, "compile_network", compile_with)
    monkeypatch.setattr(full, "_draw", watched)
    result = full.run((SIDE,), (1,), 1, "cpu", True, [name], "tiny")
    torch._dynamo.reset()
    assert not any("error" in row for row in result["rows"]), result["rows"]
    assert drawn == {name: 4}  # two to warm up, one timed, one by parts
    assert graphs
    assert set(graphs) == {"warming up"}
    assert "compiling took" in full.describe(result)


@pytest.mark.slow
def test_counting_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: set[str] = set()
    monkeypatch.setattr(systems, "build", lambda *given: devices.add(str(given[2])) or build(*given))
    chosen = {name: BRIEF[name] for name in (BASELINE, "CogView3 50+10")}
    monkeypatch.setattr(full, "SYSTEMS", chosen)  # both and the plain one, where none are named
    result = full.count((SIDE, 2 * SIDE), "tiny")
    assert devices == {"meta"}
    rows = {(row["system"], row["side"]): row for row in result["rows"]}
    assert rows[BASELINE, SIDE]["ratio"] == rows[BASELINE, 2 * SIDE]["ratio"] == 1
    assert rows["CogView3 50+10", SIDE]["total"] < rows["CogView3 50+10, plain", SIDE]["total"]
    assert f"| {BASELINE} | 128 |" in full.describe_count(result)
    assert of_counts(result).get_size_inches()[0] == 10
    counted = {name: rows[name, SIDE]["parts"] for name in chosen}
    for kind in (RelaySystem, type(BRIEF[BASELINE])):
        monkeypatch.setattr(kind, "operations", lambda system, networks, side: counted[system.name])
    alone = full.count((SIDE,), "tiny", systems=["CogView3 50+10", BASELINE])["rows"]
    assert [row["system"] for row in alone] == ["CogView3 50+10", BASELINE]
    assert (alone[0]["ratio"], alone[1]["ratio"]) == (rows["CogView3 50+10", SIDE]["ratio"], 1)
    assert full.count((SIDE,), "tiny", systems=["CogView3 50+10"])["rows"][0]["ratio"] is None


@pytest.mark.slow
def test_counts_at_full_size() -> None:
    """The figures of the documentation; the first three are also in the paper's cost table's terms."""
    networks = Networks("full", "meta", torch.bfloat16)
    totals = {name: sum(SYSTEMS[name].operations(networks, 1024).values()) for name in SYSTEMS}
    ratios = {name: total / totals[BASELINE] for name, total in totals.items()}
    assert totals[BASELINE] == pytest.approx(687e12, rel=0.01)
    assert ratios["CogView3 50+10"] == pytest.approx(0.434, abs=2e-3)
    assert ratios["CogView3 8+2"] == pytest.approx(0.068, abs=1e-3)
    assert ratios["CogView3 4+1"] == pytest.approx(0.049, abs=1e-3)
    assert ratios["CogView3 4+1 light"] == pytest.approx(0.0236, abs=3e-4)
    assert ratios["LCM-SDXL 4"] == pytest.approx(0.055, abs=1e-3)


def test_networks_make_room_for_each_other() -> None:
    networks = Networks("tiny", "cpu", torch.float32)
    first = networks.get("unet")
    moved: list[Any] = []
    first.to = lambda device: moved.append(str(device))  # where it is told to go
    assert not networks.bring(["vae"], free=lambda: 10**12)
    assert moved == []
    assert not networks.bring(["clip"], free=lambda: 0 if not moved else 10**12)
    assert moved == ["cpu"]
    assert networks.built.keys() == {"unet", "vae", "clip"}
    networks._is_away = lambda name: name == "vae"  # type: ignore[method-assign]
    assert networks.bring(["vae"], free=lambda: 10**12), "one that had been there came back"
    assert networks.size(["vae", "clip"]) == sum(
        4 * parameter.numel() for name in ("vae", "clip") for parameter in networks.get(name).parameters()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ["SD3"]}, "no system SD3: choose from SDXL 50"),
        ({"repeats": 0}, "give 1 or more"),
        ({"batches": ()}, "give 1 or more"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        full.run(**changes)


def test_bars_are_as_long_as_their_parts() -> None:
    figure = bars("t", "s", [("one", {"base": 3.0, "vae": 1.0}, "4"), ("two", {"base": 1.0}, "1")])
    figure.canvas = FigureCanvasAgg(figure)
    figure.canvas.draw()
    sheet = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    box = figure.axes[0].get_window_extent()
    middles = [int(len(sheet) - figure.axes[0].transData.transform((0, row))[1]) for row in (0, 1)]
    color = np.array(list(bytes.fromhex(COLORS["base"][1:])))
    # the legend lies beside the bars' row, so what is left of the middle of the axes is counted
    first, second = ((sheet[middle, : int(box.x1)] == color).all(1).sum() for middle in middles)
    assert first == pytest.approx(3 * second, abs=6)  # rounded to pixels, edges smoothed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--count-only", "--batch", "2", "--eager"], "--batch, --compile/--eager is for measuring"),
        (["--scale", "full", "--count-only", "--system", "SD3"], "no system SD3: choose from"),
        (["--scale", "narrow", "--side", "300"], "--side 300: give a multiple of 128 from 256"),
        (["--scale", "full", "--side", "256"], "--side 256: give a multiple of 128 from 512"),
        (["--scale", "full", "--device", "cpu"], "needs a CUDA GPU, not cpu: give --count-only, or --scale narrow"),
    ],
)
def test_options_are_checked(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.slow
def test_the_command_measures_narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "narrow", CONFIGS["tiny"])
    options = ["--scale", "narrow", "--side", "256", "--repeats", "1", "--system", BASELINE]
    options += ["--system", "CogView3 4+1 light", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["scale"], told["compiled"]) == ("narrow", False)
    assert [row["system"] for row in told["rows"]] == [BASELINE, "CogView3 4+1 light"]
    assert told["rows"][1]["ratio"] > 0
    assert f"{BASELINE}, 256 x 256, batch 1: {told['rows'][0]['runs'][0]:.3f} s" in result.stderr.splitlines()
