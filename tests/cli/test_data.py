"""`data scenes`, `data filter`, `data stats`: what is written, and what is refused."""

import io
import json
import os
import signal
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from cogview3.data import keep
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene
from tests.cli.conftest import error_line
from tests.data.conftest import encoded, ordinary, picture, tar_bytes, write_tars
from tests.processes import run_command

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
        (["--count", "1", "-o", "full"], ["full"]),
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


def strike(number: int) -> None:
    """The command line is hit by a signal when it has written two sidecars."""
    write, left = keep.write_sidecar, [2]

    def write_and_strike(*arguments: Any) -> None:
        write(*arguments)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), number)

    keep.write_sidecar = write_and_strike


def sidecars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.mark.parametrize(
    ("number", "workers", "code"),
    [
        (signal.SIGKILL, "1", -signal.SIGKILL),
        pytest.param(signal.SIGTERM, "2", 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "1", 130, marks=pytest.mark.slow),
    ],
)
def test_filter_goes_on_after_being_killed(run: Run, tmp_path: Path, number: int, workers: str, code: int) -> None:
    for folder in ("cut", "whole"):
        write_tars(tmp_path / folder, (3, 2, 3, 2))
        (tmp_path / folder / "00003.tar").write_bytes(tar_bytes([*ordinary("a", 0), *ordinary("b", 77)]))  # 0000000's
    options = ("--duplicates",)
    command = ["data", "filter", "cut", *options, "--workers", workers]
    assert run_command(*command, before=partial(strike, number)).returncode == code
    assert sorted(sidecars(tmp_path / "cut")) == ["00000.keep.parquet", "00001.keep.parquet"]
    assert len(list((tmp_path / "cut").iterdir())) == 4 + 2
    result = run("data", "filter", "cut", *options, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    expected = {"shards": 4, "finished_before": 2, "kept": 9, "broken": {}, "filtered": {"duplicate": 1}}
    expected["corrected"] = {}
    assert told == expected
    assert json.loads(run("data", "filter", "whole", *options, "--json").stdout) == {**expected, "finished_before": 0}
    assert sidecars(tmp_path / "cut") == sidecars(tmp_path / "whole")


def test_filter_takes_its_rules_from_options(run: Run, tmp_path: Path) -> None:
    rules = [
        (["--block", "spam"], {"url": "http://spam.org"}),
        (["--blocklist", "list.txt"], {"url": "http://ads.org"}),
        (["--min-aesthetic", "5"], {"aesthetic": 4}),
        (["--max-nsfw", "0.5"], {"punsafe": 0.6}),
        (["--max-watermark", "0.5"], {"pwatermark": 0.6}),
    ]
    (tmp_path / "list.txt").write_text("never\n\n ads.org \n")
    files = [file for number, (_, metadata) in enumerate(rules) for file in ordinary(f"r{number}", number, **metadata)]
    files += [("wide.jpg", encoded(picture(8, 64, 16))), ("wide.txt", b"caption")]
    files += [("small.jpg", encoded(picture(9, 12, 12))), ("small.txt", b"caption")]
    files += [("long.jpg", encoded(picture(10))), ("long.txt", b"caption " * 20), *ordinary("good", 11)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    options = [option for options, _ in rules for option in options]
    options += ["--max-ratio", "2", "--min-side", "16", "--max-caption", "50", "--min-caption", "2"]
    result = run("data", "filter", "a.tar", *options, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["filtered"] == {
        "blocked link": 2, "low aesthetic score": 1, "high nsfw score": 1, "high watermark score": 1,
        "long image": 1, "small image": 1, "long caption": 1,
    }  # fmt: skip
    assert json.loads(result.stdout)["kept"] == 1
    text = run("data", "filter", "a.tar", *options)
    assert text.exit_code == 0
    assert "1 shards, 1 of them finished before" in text.stdout
    assert "blocked link" in text.stdout


def test_stats_count_and_draw(run: Run, tmp_path: Path) -> None:
    sizes = [(16, 16), (32, 16), (16, 32), (64, 48)]
    files = []
    for number, (width, height) in enumerate(sizes):
        kind = "PNG" if number == 3 else "JPEG"
        suffix = "png" if number == 3 else "jpg"
        files += [
            (f"{number}.{suffix}", encoded(picture(number, width, height), kind)),
            (f"{number}.txt", b"x" * (number + 1)),
        ]
    files += [("bad.jpg", b"x"), ("bad.txt", b"x"), ("mute.jpg", encoded(picture(5)))]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    (tmp_path / "b.tar").write_bytes(tar_bytes(files[:6]))
    result = run("data", "stats", "a.tar", "b.tar", "--json", "-o", "told")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told.pop("out") == "told"
    assert told == {
        "shards": 2,
        "samples": 7,
        "broken": {"not an image": 1, "missing caption": 1},
        "filtered": {},
        "corrected": {},
        "formats": {"JPEG": 6, "PNG": 1},
        "quantiles": {
            "smaller side (pixels)": {"least": 16, "5 %": 16, "median": 16, "95 %": 48, "most": 48},
            "width / height": {"least": 0.5, "5 %": 0.5, "median": 1.0, "95 %": 2.0, "most": 2.0},
            "old caption (characters)": {"least": 1, "5 %": 1, "median": 2, "95 %": 4, "most": 4},
        },
    }
    assert json.loads((tmp_path / "told" / "statistics.json").read_text()) == told
    with Image.open(tmp_path / "told" / "statistics.png") as drawn:
        assert drawn.size == (1200, 3 * 300)  # three histograms, formats, what is left out
        assert len(drawn.getcolors(2**16)) > 2
    text = run("data", "stats", "a.tar", "b.tar", "--workers", 2)
    assert text.exit_code == 0, text.output
    assert "2 shards: 6 JPEG, 1 PNG" in text.stdout
    assert "not an image" in text.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["filter", "none.tar"], ["none.tar", "not found"]),
        (["filter", "a.tar", "--max-ratio", "0.5"], ["--max-ratio", "0.5"]),
        (["filter", "a.tar", "--distance", "3"], ["--duplicates"]),
        (["filter", "a.tar", "--min-caption", "9", "--max-caption", "3"], ["--max-caption 3", "--min-caption"]),
        (["filter", "a.tar", "--blocklist", "gone.txt"], ["gone.txt"]),
        (["filter", "a.tar", "--blocklist", "/dev/zero"], ["/dev/zero", "more than"]),
        (["filter", "a.tar", "--min-aesthetic", "nan"], ["--min-aesthetic", "nan"]),
        (["filter"], ["SHARDS"]),
        (["stats", "a.tar", "--workers", "0"], ["--workers", "0"]),
        (["stats", "a.tar", "-o", "no/where"], ["does not exist"]),
        (["stats", "empty"], ["empty", "no pictures"]),
    ],
)
def test_bad_input_of_filter_and_stats(run: Run, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(ordinary("a")))
    (tmp_path / "empty").mkdir()
    result = run("data", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr
    assert not list(tmp_path.rglob("*.parquet"))
