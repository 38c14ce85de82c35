"""Seeded mutants of pictures, tars, tables and metadata: a reason each, never another error or a hang."""

import faulthandler
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc

from cogview3.config import UserError
from cogview3.data.images import SUFFIXES, decode
from cogview3.data.report import Broken
from cogview3.data.shards import CaptionedImages
from tests.data.conftest import encoded, ordinary, parquet_bytes, picture, tar_bytes, write_tars

LONGEST = 60  # seconds for one mutant


def mutant(content: bytes, rng: random.Random) -> bytes:
    """A copy with bytes changed, cut out, repeated or added, or numbers made extreme."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + rng.choice((1, 2, 4, 8))] = rng.choice(
                    (b"\xff" * 4, b"\0" * 4, b"\x7f" * 8, b"\x80" * 8)
                )
            case 2:
                del data[at : at + rng.randrange(1, 64)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 512)]
            case 4:
                del data[at:]
            case 5:
                data[at:at] = rng.randbytes(rng.randrange(1, 32))
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def pictures() -> list[tuple[str, bytes]]:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
    made = [(suffix, encoded(picture(number, 24, 16), kind)) for number, (kind, suffix) in enumerate(kinds.items())]
    made += [("png", encoded(picture(0).convert(mode), "PNG")) for mode in ("P", "LA", "1")]
    return [*made, ("jpg", encoded(picture(1).convert("CMYK"))), ("tif", encoded(picture(2).convert("F"), "TIFF"))]


def sets() -> dict[str, bytes]:
    rows = {"image": [encoded(picture(n), "PNG") for n in range(6)], "text": [["a", "b"]] * 6, "url": ["x"] * 6}
    arrow = {}
    for name, new in (("a.arrow", ipc.new_stream), ("b.arrow", ipc.new_file)):
        content, table = io.BytesIO(), pyarrow.table(rows)
        with new(content, table.schema) as file:
            file.write_table(table)
        arrow[name] = content.getvalue()
    lines = "\n".join(json.dumps({"file_name": f"{n}.png", "text": "x", "n": [1, {"a": None}]}) for n in range(6))
    table = "file_name,text\n" + "".join(f'{n}.png,"a, b"\n' for n in range(6))
    return {
        "a.tar": tar_bytes([file for key in "abc" for file in ordinary(key)]),
        "a.parquet": parquet_bytes(rows),
        **arrow,
        "metadata.jsonl": lines.encode(),
        "metadata.csv": table.encode(),
        "metadata.parquet": parquet_bytes({"file_name": [f"{n}.png" for n in range(6)], "text": ["x"] * 6}),
    }


def test_what_the_fuzzer_starts_from_is_sound(tmp_path: Path) -> None:
    assert all(decode(content, suffix) for suffix, content in pictures())
    assert {SUFFIXES[suffix] for suffix, _ in pictures()} == set(SUFFIXES.values())
    for name, content in sets().items():
        assert len(read_set(tmp_path / name.replace(".", "_"), name, content)) in (3, 6), name


def read_set(folder: Path, name: str, content: bytes) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    if name.startswith("metadata"):
        for number in range(6):
            (folder / f"{number}.png").write_bytes(encoded(picture(number), "PNG"))
    address = folder if name.startswith("metadata") else folder / name
    return [sample.caption for sample in CaptionedImages([str(address)], epochs=1, buffer=2, broken_share=1.0)]


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutants_of_pictures_are_decoded_or_broken(count: int) -> None:
    rng, sound, broken = random.Random(count), pictures(), 0
    faulthandler.dump_traceback_later(LONGEST + count / 20, exit=True)
    try:
        for number in range(count):
            suffix, content = sound[number % len(sound)]
            try:
                assert decode(mutant(content, rng), suffix).image.mode == "RGB"
            except Broken:
                broken += 1
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert count / 10 < broken < count


@pytest.mark.parametrize("count", [84, pytest.param(700, marks=pytest.mark.slow)])
def test_mutants_of_sets_are_read_or_counted(tmp_path: Path, count: int) -> None:
    rng, sound = random.Random(count), list(sets().items())
    faulthandler.dump_traceback_later(LONGEST + count, exit=True)
    try:
        for number in range(count):
            name, content = sound[number % len(sound)]
            folder = tmp_path / name.replace(".", "_")
            try:
                assert all(isinstance(caption, str) for caption in read_set(folder, name, mutant(content, rng)))
            except UserError as error:  # a table without pictures, alone
                assert "no column" in str(error)  # noqa: PT017
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["scenes", "filter"])
def test_twenty_kills_lose_double_and_leave_nothing(tmp_path: Path, command: str) -> None:
    rng = random.Random(1)
    write_tars(tmp_path / "tars", (300,) * 4)
    options = {
        "scenes": ["scenes", "--count", "400", "--shard", "100", "--size", "64", "--seed", "1", "-o", "out"],
        "filter": ["filter", "tars", "--duplicates", "--workers", "2"],
    }[command]
    line = [sys.executable, "-m", "cogview3", "data", *options]
    for _ in range(20):
        process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(0.5, 8))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        if command == "scenes" and process.returncode == 0:
            for path in (tmp_path / "out").iterdir():
                path.unlink()
    assert subprocess.run(line, cwd=tmp_path, capture_output=True).returncode == 0
    made = tmp_path / {"scenes": "out", "filter": "tars"}[command]
    assert not [path.name for folder in (tmp_path, made) for path in folder.iterdir() if path.name.startswith(".")]
    assert len(list(CaptionedImages([str(made)], epochs=1))) == {"scenes": 400, "filter": 1200}[command]
