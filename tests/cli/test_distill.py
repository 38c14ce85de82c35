"""Bad input of `distill`; distillation itself is tested in tests/distillation."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tests.cli.conftest import error_line

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scenes/none"], ["scenes/none", "scenes/distill_base"]),
        (["scenes/vae"], ["scenes-vae", "cogview3 train"]),
        (["broken.toml"], ["broken.toml", "TOML"]),
        (["scenes/distill_base", "--set", "distill.step=3"], ["distill.step", "steps"]),
        (["scenes/distill_base", "--set", "distill.steps=[8, 3]"], ["distill.steps", "[8, 3]"]),
        (["scenes/distill_base", "--set", "distill.teacher=none"], ["no unet in 'none'"]),
        (["scenes/distill_relay", "--set", "distill.teacher=none"], ["no relay_unet in 'none'"]),
        (["scenes/distill_base", "--out", "broken.toml"], ["broken.toml", "is a file"]),
    ],
)
def test_recipes_that_are_wrong(run: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "broken.toml").write_text("[recipe\n")
    result = run("distill", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.toml"]


def test_train_refers_to_distill(run: Run, tmp_path: Path) -> None:
    result = run("train", "scenes/distill_base", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert "cogview3 distill" in error_line(result)
    assert list(tmp_path.iterdir()) == []
