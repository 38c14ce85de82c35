"""What the report of `reproduce` claims, and its rows on a tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogview3 import CogView3Pipeline
from cogview3.reproduce import paper
from cogview3.reproduce.report import claims, markdown
from cogview3.reproduce.training import STARTS, trainings


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


def test_every_table_is_measured_on_the_same_base_pictures(
    tmp_path: Path, make_components: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    CogView3Pipeline(**make_components(sample_size=8)).save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(paper, "BATCH", 2)
    result = paper.reproduce(str(tmp_path / "tiny"), count=2)
    rows = {(each["table"], each["name"]): each for each in result["rows"]}
    same = [
        each
        for each in rows.values()
        if each["name"] in ("relay 50+10", "linear", "recomputed", "10 steps, k = 1", "whole")
    ]
    assert len(same) == 5
    assert len({each["frechet"]["distance"] for each in same}) == 1
    carried = rows["Blur estimate inside the sampler", "carried (Algorithm 1)"]
    assert carried["frechet"]["distance"] != same[0]["frechet"]["distance"]
    assert carried["against"]["name"] == "recomputed"
    text = markdown(result, [])
    assert all(f"## {table}" in text for table, _ in rows)
    paths = paper.write(tmp_path / "out", result)
    assert all(path.is_file() for path in paths)


def test_trainings_are_recipes_that_exist() -> None:
    from cogview3.config import load_recipe

    runs = trainings("scenes", quick=True)
    assert [run.row for run in runs] == ["single stage", *(f"T_r {start}" for start in STARTS)]
    for run in runs:
        recipe = load_recipe(run.recipe, list(run.changes))
        assert recipe.train.images == 640
