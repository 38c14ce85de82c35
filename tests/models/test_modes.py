"""`sampling.json`: what is accepted, what is refused, and how a mode is picked."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cogview3.config import UserError
from cogview3.models.modes import Mode, Overrides, Sampling, pick_mode, read_sampling, write_sampling

TABLE = {
    "format": 1,
    "default": "50+10",
    "modes": {
        "50+10": {"steps": 50, "relay_steps": 10, "guidance": 3.0, "relay_guidance": 2.0, "relay_power": 1.5},
        "4+1": {
            "unet": "modes/4+1/unet",
            "relay_unet": "modes/4+1/relay_unet",
            "steps": 4,
            "relay_steps": 1,
            "relay_start": 200,
            "blur_estimate": "recompute",
            "guidance": 7.5,
            "guidance_range": [1, 12],
            "distilled": True,
        },
    },
}


def change(path: str, value: Any) -> dict[str, Any]:
    """The table with one entry replaced; `path` is joined by slashes."""
    table = json.loads(json.dumps(TABLE))
    entry = table
    *parents, last = path.split("/")
    for key in parents:
        entry = entry[key]
    entry[last] = value
    return table


def write(folder: Path, table: Any) -> Path:
    path = folder / "sampling.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    sampling = read_sampling(write(tmp_path, TABLE))
    name, mode = pick_mode(sampling, None, "m")
    assert name == "50+10"
    assert (mode.steps, mode.guidance, mode.relay_guidance_scale, mode.unet) == (50, 3.0, 2.0, None)
    name, mode = pick_mode(sampling, "4+1", "m")
    assert name == "4+1"
    assert (mode.relay_start, mode.guidance_range, mode.relay_guidance_scale) == (200, (1.0, 12.0), 7.5)


def test_written_and_read_again(tmp_path: Path) -> None:
    sampling = Sampling.model_validate(TABLE)
    write_sampling(sampling, tmp_path)
    assert read_sampling(tmp_path / "sampling.json") == sampling
    assert "null" not in (tmp_path / "sampling.json").read_text()
    assert os.listdir(tmp_path) == ["sampling.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write(tmp_path, TABLE).read_text()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_sampling(Sampling(default="a", modes={"a": Mode()}), tmp_path)
    assert (tmp_path / "sampling.json").read_text() == old
    assert os.listdir(tmp_path) == ["sampling.json"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        (change("format", 2), "format: "),
        (change("default", "8+2"), "default '8\\+2' is none of the modes 50\\+10, 4\\+1"),
        (change("speed", 1), "speed: "),
        (change("modes/4+1/stepps", 4), "modes.4\\+1.stepps: "),
        (change("modes/4+1/steps", 0), "modes.4\\+1.steps: .*greater than or equal to 1"),
        (change("modes/4+1/steps", "4"), "modes.4\\+1.steps: "),
        (change("modes/4+1/steps", True), "modes.4\\+1.steps: "),
        (change("modes/4+1/distilled", "yes"), "modes.4\\+1.distilled: "),
        (change("modes/4+1/steps", 1001), "modes.4\\+1.steps: .*less than or equal to 1000"),
        (change("modes/4+1/guidance", -1), "modes.4\\+1.guidance: "),
        (change("modes/4+1/guidance", float("inf")), "modes.4\\+1.guidance: .*finite"),
        (change("modes/4+1/relay_power", 0), "modes.4\\+1.relay_power: "),
        (change("modes/4+1/blur_estimate", "guess"), "modes.4\\+1.blur_estimate: "),
        (change("modes/4+1/guidance_range", [12, 1]), "guidance_range \\(12.0, 1.0\\) is not"),
        (change("modes/4+1/unet", "../other"), "'../other' is not a folder inside the model folder"),
        (change("modes/4+1/unet", "/etc"), "'/etc' is not a folder inside"),
        (change("modes/4+1/unet", ""), "'' is not a folder inside"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, table: Any, message: str) -> None:
    path = write(tmp_path, table)
    with pytest.raises(UserError, match=message) as caught:
        read_sampling(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sampling.json").mkdir()
    with pytest.raises(UserError, match=r"sampling\.json: Is a directory"):
        read_sampling(tmp_path / "sampling.json")


def test_unknown_modes_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="model scenes has no mode '8\\+2': choose from 50\\+10, 4\\+1"):
        pick_mode(Sampling.model_validate(TABLE), "8+2", "scenes")
    with pytest.raises(UserError, match=r"model m has no modes .*leave out mode '4\+1'"):
        pick_mode(None, "4+1", "m")
    assert pick_mode(None, None, "m") == (None, Mode())


def test_a_call_settles_what_it_asks_for_and_leaves_the_rest_to_the_mode() -> None:
    mode = Mode(steps=50, relay_steps=10, guidance=3.0, sampler="dpm++", relay_start=400)
    assert mode.settle(Overrides()) == mode.model_copy(update={"relay_guidance": 3.0})
    settled = mode.settle(Overrides(steps=7, guidance=1.0, sampler="euler", light=False, relays=2))
    assert (settled.steps, settled.guidance, settled.sampler, settled.light) == (7, 1.0, "euler", False)
    assert (settled.relay_steps, settled.relay_guidance, settled.relay_start) == (10, 3.0, 400)
    assert Mode(guidance=2.0, relay_guidance=4.0).settle(Overrides(guidance=5.0)).relay_guidance == 4.0


def test_distilled_guidance_without_a_range_is_free() -> None:
    mode = Mode(steps=4, distilled=True)
    assert mode.settle(Overrides(guidance=100.0, steps=4, relay_start=300), "4+1").guidance == 100.0
    with pytest.raises(UserError, match=r"steps is 5, but mode '4\+1'"):
        mode.settle(Overrides(steps=5), "4+1")
    with pytest.raises(UserError, match=r"sampler is dpm.*'4"):
        mode.settle(Overrides(sampler="dpm++"), "4+1")
    assert Mode(steps=4).settle(Overrides(steps=5)).steps == 5
