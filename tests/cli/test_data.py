"""`data scenes`: what is written, and what is refused."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene
from tests.cli.conftest import error_line

Run = Callable[..., Result]


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}


def test_tars_hold_pictures_captions_and_scenes(run: Run, tmp_path: Path) -> None:
    result = run("data", "scenes", "--count", 5, "--shard", 2, "--size", 64, "--seed", 1, "-o", "made", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "out": "made", "count": 5, "size": 64, "captions": "comprehensive", "seed": 1,
    }  # fmt: skip
    names = ["00000.tar", "00001.tar", "00002.tar"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == names
    files = {name: content for tar in names for name, content in read_tar(tmp_path / "made" / tar).items()}
    keys = ["000000000", "000000001", "000010000", "000010001", "000020000"]
    assert list(files) == [f"{key}.{suffix}" for key in keys for suffix in ("png", "txt", "json")]
    for key in keys:
        record = json.loads(files[f"{key}.json"])
        picture = np.asarray(Image.open(io.BytesIO(files[f"{key}.png"])))
        assert np.array_equal(picture, render(Scene.from_dict(record["scene"]), 64))
        assert record["caption"] == files[f"{key}.txt"].decode()
        assert (record["width"], record["height"]) == (64, 64)
        assert record["facts"]["count"] == len(record["scene"]["objects"])


def test_folders_hold_the_same_samples(run: Run, tmp_path: Path) -> None:
    common = ("data", "scenes", "--size", 32, "--seed", 7, "--captions", "brief")
    assert run(*common, "--count", 3, "-o", "tars").exit_code == 0
    assert run(*common, "--count", 2, "-o", "files", "--layout", "folder").exit_code == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}
    inside = read_tar(tmp_path / "tars" / "00000.tar")
    assert written == {name: content for name, content in inside.items() if not name.startswith("000000002")}
    assert run(*common[:-2], "--count", 2, "-o", "other", "--layout", "folder").exit_code == 0
    assert (tmp_path / "other" / "000000000.txt").read_bytes() != written["000000000.txt"]


def test_seeds_differ(run: Run, tmp_path: Path) -> None:
    for seed in (1, 2):
        assert run("data", "scenes", "--count", 1, "--size", 32, "--seed", seed, "-o", f"seed{seed}").exit_code == 0
    first, second = (read_tar(tmp_path / f"seed{seed}" / "00000.tar") for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0", "-o", "new"], ["--count", "0"]),
        (["--count", "1", "--size", "31", "-o", "new"], ["--size", "31"]),
        (["--count", "1", "--shard", "10001", "-o", "new"], ["--shard", "10001"]),
        (["--count", "1", "--captions", "none", "-o", "new"], ["--captions", "none"]),
        (["--count", "1", "-o", "a/b"], ["does not exist"]),
        (["--count", "1", "-o", "full"], ["full", "exists already"]),
        (["--count", "1"], ["--out"]),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    result = run("data", "scenes", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]
