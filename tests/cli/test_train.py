"""Bad input of `train` and `export`; training itself is tested in tests/training."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cogview3.checkpoints import open_run
from cogview3.cli.train import parse_modes
from cogview3.config import UserError, load_recipe
from cogview3.config.settings import parse_settings
from tests.cli.conftest import error_line

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scenes/none"], ["scenes/none", "scenes/vae"]),
        (["none.toml"], ["none.toml"]),
        (["broken.toml"], ["broken.toml", "TOML"]),
        (["scenes/vae", "--set", "train.imags=3"], ["train.imags"]),
        (["scenes/vae", "--set", "train.images=many"], ["train.images", "many"]),
        (["scenes/vae", "--set", "train.images=-5"], ["train.images", "-5"]),
        (["scenes/vae", "--set", "images=5"], ["images=5"]),
        (["scenes/vae", "--out", "broken.toml"], ["broken.toml", "is a file"]),
    ],
)
def test_recipes_that_are_wrong(run: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "broken.toml").write_text("[recipe\n")
    result = run("train", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.toml"]


def test_a_run_of_another_recipe_is_kept(run: Run, tmp_path: Path) -> None:
    with open_run(tmp_path / "runs" / "vae", load_recipe("scenes/vae", ["train.seed=1"]).to_dict()):
        pass
    before = (tmp_path / "runs" / "vae" / "recipe.toml").read_bytes()
    result = run("train", "scenes/vae", "--set", "train.seed=2", "--out", "runs/vae", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in ("train.seed", "--restart")), result.stderr
    assert (tmp_path / "runs" / "vae" / "recipe.toml").read_bytes() == before


def test_mode_runs() -> None:
    assert parse_modes(["4+1=a,runs/b"]) == {"4+1": ("a", "runs/b")}
    for entry in ("4+1", "=a,b", "4+1=a", "4+1=a,b,a"):
        with pytest.raises(UserError, match="--mode"):
            parse_modes([entry])
    with pytest.raises(UserError, match=re.escape("--mode 4+1 is given twice")):
        parse_modes(["4+1=a,b", "4+1=c,d"])


def test_settings() -> None:
    told = ["guidance=4.5", "blur_estimate=carry", 'stop=["a=b"]']
    assert parse_settings(told, "") == {"guidance": 4.5, "blur_estimate": "carry", "stop": ["a=b"]}
    assert parse_settings([], "") == {}
    with pytest.raises(UserError, match=r"--set 'name=\\udcff' is not valid UTF-8"):
        parse_settings(["name=\udcff"], "")
    for entry in ("guidance", "=3"):
        with pytest.raises(UserError, match=re.escape(f"--set {entry!r}")):
            parse_settings([entry], "guidance=2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["none/"]),
        (["--mode", "4+1="], ["--mode 4+1="]),
        (["--mode", "fast"], ["--mode", "fast"]),
        (["--mode", "8+2", "--mode", "8+2"], ["--mode 8+2", "twice"]),
        (["--mode", "quick=a,b"], ["quick"]),
        (["--set", "steps=0"], ["steps", "0"]),
        (["--set", "sampler=heun"], ["sampler", "heun"]),
        (["--light-decoder", "nothing"], ["none/"]),
        (["--set", "stepz=3"], ["stepz"]),
        (["-o", "a/b"], ["a/b", "does not exist"]),
        (["-o", "full"], ["full", "holds no model"]),
    ],
)
def test_exports_that_cannot_be(run: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    stages = [text for stage in ("vae", "text", "base") for text in (f"--{stage}", f"none/{stage}")]
    result = run("export", *stages, "-o", "model", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
