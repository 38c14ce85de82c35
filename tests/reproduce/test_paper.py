"""What the report of `reproduce` claims, and its rows on a tiny model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogview3 import CogView3Pipeline
from cogview3.config import UserError, load_recipe
from cogview3.data.scenes.reader import read
from cogview3.references import weights_folder
from cogview3.reproduce import paper
from cogview3.reproduce.measured import Bench, Way, _read_record
from cogview3.reproduce.report import VERDICTS, claims, markdown
from cogview3.reproduce.rows import ESTIMATE, SINGLE, Shape, rows
from cogview3.reproduce.training import STARTS, trainings
from tests.hostile import VALUES


def row(name: str, interval: list[float] | None, against: str = "first") -> dict[str, Any]:
    return {"name": name, "against": {"name": against, "interval": interval, "difference": 0.0, "time_ratio": 0.5}}


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([0.01, 0.05], "second gets more facts right than first, by 0.010 to 0.050"),
        ([-0.05, -0.01], "second gets fewer facts right"),
        ([-0.01, 0.05], "no order is claimed"),
        ([0.0, 0.05], "no order is claimed"),
        (None, "no order is claimed"),
    ],
)
def test_an_order_is_claimed_only_where_the_interval_allows(interval: list[float] | None, words: str) -> None:
    (sentence,) = claims([{"name": "first"}, row("second", interval)])
    assert words in sentence
    assert "in 0.50 of the time" in sentence


@pytest.mark.parametrize(
    ("unet", "interval", "ratio", "words"),
    [
        (None, [-0.6, -0.5], 2.0, "Shown here in time alone, as that base was not trained"),
        ("single", [-0.6, -0.5], 2.0, "Shown here: relay takes 0.50 of the time of single (equal compute), with more"),
        ("single", [-0.1, 0.1], 2.0, "Shown here: .* as many, as far as the interval tells"),
        ("single", [0.1, 0.2], 2.0, "Not shown here: .* fewer facts right"),
        ("single", [-0.6, -0.5], 0.5, "Not shown here: relay takes 2.00 of the time"),
    ],
)
def test_the_relays_row_must_beat_a_trained_single_stage(
    unet: str | None, interval: list[float], ratio: float, words: str
) -> None:
    against = {"name": "relay", "interval": interval, "difference": 0.0, "time_ratio": ratio}
    single = {"name": "single", "note": "equal compute", "way": {"settings": {"num_relays": 0}, "unet": unet}}
    said = VERDICTS[SINGLE]([{"name": "relay"}, single | {"against": against}])
    assert re.match(words.replace("(", r"\(").replace(")", r"\)"), said)


def test_every_table_is_measured_on_the_same_base_pictures(
    tmp_path: Path, make_components: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    CogView3Pipeline(**make_components(sample_size=8)).save_pretrained(tmp_path / "tiny")
    modes = {"format": 1, "default": "2+3", "modes": {"2+3": {"steps": 2, "relay_steps": 3, "guidance": 1.0}}}
    (tmp_path / "tiny" / "sampling.json").write_text(json.dumps(modes))
    monkeypatch.setattr(Bench, "batch", 2)
    nothing = read(np.full((256, 256, 3), 250, np.uint8))
    monkeypatch.setattr(
        "cogview3.data.scenes.score.read", lambda picture: nothing
    )  # what it draws is noise: slow to read
    result = paper.reproduce(str(tmp_path / "tiny"), count=3, out=tmp_path / "out")
    named = {(each["table"], each["name"]): each for each in result["rows"]}
    same = [
        each
        for each in named.values()
        if each["name"] in ("relay 2+3", "linear", "recomputed", "3 steps, k = 1", "whole")
    ]
    assert len(same) == 5
    assert len({each["frechet"]["distance"] for each in same}) == 1
    carried = named["Blur estimate inside the sampler", "carried (Algorithm 1)"]
    assert carried["frechet"]["distance"] != same[0]["frechet"]["distance"]
    assert carried["against"]["name"] == "recomputed"
    text = markdown(result, [])
    assert all(f"## {table}" in text for table, _ in named)
    paths = paper.write(tmp_path / "out", result)
    assert all(path.is_file() for path in paths)
    monkeypatch.setattr(Bench, "_draw", None)  # everything is there
    monkeypatch.setattr(Bench, "_relay", None)
    assert paper.reproduce(str(tmp_path / "tiny"), count=3, out=tmp_path / "out") == result
    with pytest.raises(UserError, match=r"seed \(0 there, 1 here\)"):
        paper.reproduce(str(tmp_path / "tiny"), count=3, seed=1, out=tmp_path / "out")


RECORD = {"facts": [[]], "features": [[0.0] * 64], "seconds": 1.0, "spent": 1.0, "base_seconds": 0.0}


@pytest.mark.parametrize("key", RECORD)
def test_a_damaged_measurement_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORD))
    assert _read_record(path, 1) == RECORD
    for damage in (*VALUES, {}):
        path.write_text(json.dumps({name: value for name, value in RECORD.items() if damage != {} or name != key}))
        if damage != {}:
            path.write_text(json.dumps(RECORD | {key: damage}))
        try:
            record = _read_record(path, 1)
        except UserError as error:
            assert str(error).startswith(f"{path} is damaged: delete it")  # noqa: PT017
        else:
            assert isinstance(record[key], int | float) or damage == RECORD[key]


def test_ways_that_are_one_are_drawn_once() -> None:
    """The relay as it stands, whatever tables call it; carrying needs first order, and what it is compared with too."""
    own = {"relay_start": 300, "blur": "linear", "blur_estimate": "recompute", "power": 1.0, "solver_order": 1}
    shape = Shape(50, 10, 256, own, ["4+1"])
    chosen = rows(shape, {}, expands=True)
    assert sum(row.way == Way() for row in chosen) == 6
    assert all(row.against in {each.name for each in chosen if each.table == row.table} | {None} for row in chosen)
    assert {row.name for row in chosen} >= {"relay 50+10", "distilled 4+1", "undistilled 8+2", "T_r 300", "expanded"}
    second = rows(Shape(50, 10, 256, own | {"solver_order": 2}), {}, expands=False)
    estimates = [row.way.scheduler for row in second if row.table == ESTIMATE]
    assert estimates == [{"solver_order": 1}, {"blur_estimate": "carry", "solver_order": 1}]


def test_trainings_are_recipes_that_exist() -> None:
    for run in trainings("scenes", quick=True):
        assert load_recipe(run.recipe, list(run.changes)).train.images == run.images == 640
    starts = trainings("scenes", quick=False)[1:]
    assert [run.row for run in starts] == [f"T_r {start}" for start in STARTS]
    assert len({run.images for run in starts}) == 1


def test_the_single_stage_has_the_relays_compute() -> None:
    """As many pictures of the final size, by a network that costs the same a picture."""
    run = trainings("scenes", quick=False)[0]
    single, relay = load_recipe(run.recipe, list(run.changes)), load_recipe("scenes/relay")
    assert single.model == relay.model
    assert (single.train.images, single.data.size) == (relay.train.images, relay.data.size)
    folders = [weights_folder("scenes", name) for name in ("unet", "relay_unet")]
    base, other = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert base | {"sample_size": 0} == other | {"sample_size": 0}
