"""The trainings of `reproduce --train`: each once, and again where anything of its recipe changed."""

from pathlib import Path
from typing import Any

import pytest

from cogview3.config import UserError
from cogview3.reproduce import training


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, by a trainer that only leaves weights."""
    names: list[str] = []

    def train(recipe: Any, out: Path, restart: bool, device: str) -> None:
        names.append(out.name)
        component = "unet" if recipe.kind == "base" else "relay_unet"
        (out / "weights" / component).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("cogview3.training.loop.train", train)
    monkeypatch.setattr(training, "weights_folder", lambda run, component: run / "weights" / component)
    return names


def test_the_single_stage_has_as_many_pictures_as_the_relay() -> None:
    single, *starts = training.trainings("scenes", quick=False)
    assert (single.row, single.images) == ("single stage", 80_000)
    assert "data.size=256" in single.changes
    assert [each.row for each in starts] == [f"T_r {start}" for start in (200, 300, 400, 500, 600, 800)]
    assert {each.images for each in starts} == {6_400}


def test_what_ended_is_not_trained_again(trained: list[str], tmp_path: Path) -> None:
    single, first, *_ = training.trainings("scenes", quick=True)
    found = training.train_rows(tmp_path, [single], "cpu")
    assert found["single stage"].folder == tmp_path / "single-stage" / "weights" / "unet"
    assert training.train_rows(tmp_path, [single, first], "cpu").keys() == {"single stage", "T_r 200"}
    assert trained == ["single-stage", "T_r-200"]
    (tmp_path / "single-stage" / "weights" / "unet").rmdir()
    training.train_rows(tmp_path, [single, first], "cpu")
    assert trained == ["single-stage", "T_r-200", "single-stage"]


def test_other_recipes_are_left_to_the_run_to_judge(trained: list[str], tmp_path: Path) -> None:
    training.train_rows(tmp_path, training.trainings("scenes", quick=True)[:1], "cpu")
    training.train_rows(tmp_path, training.trainings("scenes", quick=False)[:1], "cpu")
    assert trained == ["single-stage"] * 2


def test_a_damaged_record_is_refused(trained: list[str], tmp_path: Path) -> None:
    (tmp_path / "trained.json").write_text("{")
    with pytest.raises(UserError, match=r"trained\.json"):
        training.train_rows(tmp_path, training.trainings("scenes", quick=True)[:1], "cpu")
    assert trained == []
