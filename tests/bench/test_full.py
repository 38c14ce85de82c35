"""The benchmark at full size, on networks of the same classes and tiny width."""

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from cogview3.bench import full
from cogview3.bench.networks import CONFIGS, build
from cogview3.bench.plot import COLORS, bars, of_counts, of_times
from cogview3.bench.systems import BASELINE, PLAIN, PROMPT, SYSTEMS, Networks, operations
from cogview3.cli.app import app
from cogview3.config import UserError
from cogview3.generation.modes import Mode

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


@pytest.mark.parametrize("name", ["unet", "distilled_relay_unet", "sdxl_unet", "vae", "prior", "decoder"])
def test_narrow_networks_have_as_many_layers_of_a_quarter_of_the_width(name: str) -> None:
    full_size, narrow = (dict(build(name, scale).named_parameters()) for scale in ("full", "narrow"))
    assert narrow.keys() == full_size.keys()
    ratio = sum(p.numel() for p in full_size.values()) / sum(p.numel() for p in narrow.values())
    assert 13 < ratio < 17


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same systems in few steps."""
    monkeypatch.setattr(full, "SYSTEMS", BRIEF)
    monkeypatch.setattr(full, "PLAIN", replace(PLAIN, mode=Mode(steps=2, relay_steps=2)))


@pytest.mark.parametrize("name", SYSTEMS)
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


def test_saving_the_text_saves_what_it_costs() -> None:
    """Of a linear layer by hand: 2 x rows x tokens x in x out."""
    layer = torch.nn.Linear(6, 10, device="meta")
    assert operations(layer, (3, 5, 6)) == 2 * 3 * 5 * 6 * 10


def test_a_report_holds_together() -> None:
    chosen = [BASELINE, "CogView3 4+1", "CogView3 4+1 light"]
    told: list[int] = []

    def counter(name: str, total: int) -> Any:
        return nullcontext(told.append)

    result = full.run((64, SIDE), (1, 2), 1, "cpu", False, chosen, "tiny", counter)
    rows = {(row["system"], row["side"], row["batch"]): row for row in result["rows"]}
    assert len(rows) == 2 * 2 * 2 + 2  # the peers draw the first size alone
    base = rows[BASELINE, 64, 2]
    assert base["ratio"] == 1
    for row in rows.values():
        baseline = rows.get((BASELINE, row["side"], row["batch"]))
        assert row["ratio"] == (None if baseline is None else row["seconds"] / baseline["seconds"])
        assert row["floor"] == row["operations"] / result["ceiling"]
        assert row["share_of_ceiling"] == row["floor"] / row["seconds"] > 0
        assert all(spent > 0 for part, spent in row["parts"].items() if part != "other")
    assert rows["CogView3 4+1", SIDE, 2]["operations"] == 2 * rows["CogView3 4+1", SIDE, 1]["operations"]
    assert told[-1] == max(told) == 4 * 3
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = full.describe(result)
    assert "not compiled" in text
    assert text.count("\n| CogView3 4+1 |") == text.count("\n| CogView3 4+1 light |") == 4
    assert of_times(result).size[0] == 1000


def test_counting_runs_nothing() -> None:
    result = full.count((SIDE,), "tiny")
    rows = {row["system"]: row for row in result["rows"]}
    assert rows[BASELINE]["ratio"] == 1
    assert rows["CogView3 50+10"]["total"] < rows["CogView3 50+10, plain"]["total"]
    assert "| LCM-SDXL 4 | 128 |" in full.describe_count(result)
    assert of_counts(result).size[0] == 1000


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
    networks.bring(["vae"], free=lambda: 10**12)
    assert moved == []
    networks.bring(["clip"], free=lambda: 0 if not moved else 10**12)
    assert moved == ["cpu"]
    assert networks.built.keys() == {"unet", "vae", "clip"}


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
    sheet = bars("t", "s", [("one", {"base": 3.0, "vae": 1.0}, ""), ("two", {"base": 1.0}, "")])
    pixels = [sheet.getpixel((x, y)) for y in (70 + 17, 70 + 34 + 17) for x in range(sheet.width)]
    first, second = pixels[: sheet.width], pixels[sheet.width :]
    color = tuple(bytes.fromhex(COLORS["base"][1:]))
    assert first.count(color) == pytest.approx(3 * second.count(color), abs=3)  # rounded to pixels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--side", "512"], "--side is for --scale full or narrow"),
        (["--eager"], "--eager is for --scale full or narrow"),
        (["--scale", "narrow", "--side", "300"], "--side 300: give a multiple of 128 from 256"),
        (["--scale", "full", "--side", "256"], "--side 256: give a multiple of 128 from 512"),
        (["--scale", "full", "--device", "cpu"], "needs a CUDA GPU, not cpu: give --count-only, or --scale narrow"),
    ],
)
def test_options_are_checked(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", "inference", *options])
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_command_measures_narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "narrow", CONFIGS["tiny"])
    options = ["--scale", "narrow", "--side", "256", "--repeats", "1", "--system", BASELINE]
    options += ["--system", "CogView3 4+1 light", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, ["bench", "inference", *options])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["scale"], told["compiled"]) == ("narrow", False)
    assert [row["system"] for row in told["rows"]] == [BASELINE, "CogView3 4+1 light"]
    assert told["rows"][1]["ratio"] > 0
