"""Seeded mutants of pictures, tars, tables, metadata and sidecars: a reason each, never another error or a hang."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import ipc, parquet

from cogview3.config import UserError
from cogview3.data.encoded import Encoded, Preprocessing, encoded_bytes, write_latents
from cogview3.data.filters import Filters
from cogview3.data.formats import find_shards
from cogview3.data.images import SUFFIXES, decode
from cogview3.data.keep import write_keep
from cogview3.data.report import Broken
from cogview3.data.shards import CaptionedImages
from cogview3.data.sidecars import read_notes
from cogview3.data.tars import add_file
from tests.data.conftest import encoded, ordinary, parquet_bytes, picture, tar_bytes, write_tars
from tests.hostile import json_mutant, mutant, within

PNG = encoded(picture(0), "PNG")
LATENTS = Preprocessing("vae", None, 64)


def pictures() -> list[tuple[str, bytes]]:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
    made = [(suffix, encoded(picture(number, 24, 16), kind)) for number, (kind, suffix) in enumerate(kinds.items())]
    made += [("png", encoded(picture(0).convert(mode), "PNG")) for mode in ("P", "LA", "1")]
    return [*made, ("jpg", encoded(picture(1).convert("CMYK"))), ("tif", encoded(picture(2).convert("F"), "TIFF"))]


@dataclass(frozen=True)
class Set:
    """Files of a data set of `count` samples, of which `target` is damaged by `damage`.

    `refused` where the whole of it may be, with a line that names it.
    """

    target: str
    files: dict[str, bytes]
    count: int
    address: str = "."
    damage: Callable[[bytes, random.Random], bytes] = mutant
    refused: bool = False
    latents: bool = False


def sets() -> dict[str, Set]:
    rows = {"image": [encoded(picture(n), "PNG") for n in range(6)], "text": [["a", "b"]] * 6, "url": ["x"] * 6}
    arrow = {}
    for name, new in (("a.arrow", ipc.new_stream), ("b.arrow", ipc.new_file)):
        content, table = io.BytesIO(), pyarrow.table(rows)
        with new(content, table.schema) as file:
            file.write_table(table)
        arrow[name] = content.getvalue()
    lines = "\n".join(json.dumps({"file_name": f"{n}.png", "text": "x", "n": [1, {"a": None}]}) for n in range(6))
    table = "file_name,text\n" + "".join(f'{n}.png,"a, b"\n' for n in range(6))
    tar = tar_bytes([file for key in "abc" for file in ordinary(key)])
    whole = {"a.tar": tar, "a.parquet": parquet_bytes(rows), **arrow}
    found = {name: Set(name, {name: content}, 3 if name == "a.tar" else 6, name) for name, content in whole.items()}
    several = {f"{n}.png": encoded(picture(n), "PNG") for n in range(6)}
    metadata = {
        "metadata.jsonl": lines.encode(),
        "metadata.csv": table.encode(),
        "metadata.parquet": parquet_bytes({"file_name": list(several), "text": ["x"] * 6}),
    }
    found |= {name: Set(name, {name: content, **several}, 6) for name, content in metadata.items()}
    beside = {"a.png": PNG, "a.json": b'{"caption": ["one", "two"], "url": "x", "n": {"b": [1, null]}}'}
    state = {"_data_files": [{"filename": "a.arrow"}], "_fingerprint": "0", "_split": "train"}
    saved = {"a.arrow": arrow["a.arrow"], "state.json": json.dumps(state).encode()}
    splits = {f"train/{name}": content for name, content in saved.items()} | {
        "dataset_dict.json": b'{"splits": ["train"]}'
    }
    captions = {name: list("abc") for name in ("key", "old", "new", "model", "version")}
    captions |= {"status": ["ok"] * 3, "error": [""] * 3}
    keep = {"key": list("abc"), "keep": [True] * 3, "reason": [""] * 3}
    return found | {
        "a.json": Set("a.json", beside, 1, damage=json_mutant),
        "a.txt": Set("a.txt", {"a.png": PNG, "a.txt": "ein Ring, größer".encode("utf-16")}, 1),
        "state.json": Set("state.json", saved, 6, damage=json_mutant, refused=True),
        "dataset_dict.json": Set("dataset_dict.json", splits, 6, damage=json_mutant, refused=True),
        "captions": Set(
            "a.captions.parquet", {"a.tar": tar, "a.captions.parquet": parquet_bytes(captions)}, 3, refused=True
        ),
        "keep": Set("a.keep.parquet", {"a.tar": tar, "a.keep.parquet": parquet_bytes(keep)}, 3, refused=True),
        "latents": Set("a.latents.tar", {"a.tar": tar, "a.latents.tar": b""}, 3, refused=True, latents=True),
    }


def latents_tar(path: Path) -> bytes:
    mean = np.zeros((4, 8, 8), np.float16)
    with write_latents(str(path)) as (tar, notes):
        for key in "abc":
            made = Encoded(mean, mean, None, None, (64, 64), (0, 0), (64, 64), {"x": mean[0]})
            add_file(tar, f"{key}.safetensors", encoded_bytes(made, "x"))
            add_file(tar, f"{key}.txt", b"x")
        notes.update(format=1, preprocessing=LATENTS.to_dict(), seed=0, dtype="float32")
    return path.read_bytes()


def write(folder: Path, each: Set) -> bytes:
    """Write a set; gives what is to be damaged."""
    for name, content in each.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return latents_tar(folder / each.target) if each.latents else each.files[each.target]


def read(folder: Path, each: Set) -> list[str]:
    options = {"encoded": LATENTS} if each.latents else {}
    address = str(folder / each.address)
    return [sample.caption for sample in CaptionedImages([address], epochs=1, buffer=2, broken_share=1.0, **options)]


def test_what_the_fuzzer_starts_from_is_sound(tmp_path: Path) -> None:
    assert all(decode(content, suffix) for suffix, content in pictures())
    assert {SUFFIXES[suffix] for suffix, _ in pictures()} == set(SUFFIXES.values())
    for name, each in sets().items():
        write(tmp_path / name, each)
        assert len(read(tmp_path / name, each)) == each.count, name


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutants_of_pictures_are_decoded_or_broken(count: int) -> None:
    rng, sound, broken = random.Random(count), pictures(), 0
    with within(60 + count / 20):
        for number in range(count):
            suffix, content = sound[number % len(sound)]
            try:
                assert decode(mutant(content, rng), suffix).image.mode == "RGB"
            except Broken:
                broken += 1
    assert count / 10 < broken < count


@pytest.mark.parametrize("count", [280, pytest.param(1400, marks=pytest.mark.slow)])
def test_mutants_of_sets_are_read_or_counted(tmp_path: Path, count: int) -> None:
    rng, sound = random.Random(count), list(sets().items())
    with within(60 + count):
        for number in range(count):
            name, each = sound[number % len(sound)]
            content = write(tmp_path / name, each)
            (tmp_path / name / each.target).write_bytes(each.damage(content, rng))
            try:
                assert all(isinstance(caption, str) for caption in read(tmp_path / name, each))
            except UserError as error:
                told = str(error)
                assert each.refused or "no column" in told
                assert "\n" not in told


@pytest.mark.parametrize("count", [100, pytest.param(600, marks=pytest.mark.slow)])
def test_mutants_of_finished_sidecars_are_kept_made_again_or_refused(tmp_path: Path, count: int) -> None:
    (path,) = write_tars(tmp_path, (3,))
    shards, rng = find_shards([path]), random.Random(count)
    write_keep(shards, Filters(duplicates=True))
    sidecar = tmp_path / "00000.keep.parquet"
    content, notes = sidecar.read_bytes(), read_notes(str(sidecar))
    assert notes is not None
    with within(60 + count):
        for number in range(count):
            damaged = mutant(content, rng)
            if number % 2:
                held = parquet.read_table(io.BytesIO(content)).replace_schema_metadata(
                    {b"cogview3": json_mutant(json.dumps(notes).encode(), rng)}
                )
                out = io.BytesIO()
                parquet.write_table(held, out)
                damaged = out.getvalue()
            sidecar.write_bytes(damaged)
            try:
                report, _ = write_keep(shards, Filters(duplicates=True), overwrite=bool(number % 3))
                assert isinstance(report.samples, int)
            except UserError as error:
                assert str(sidecar) in str(error)  # noqa: PT017


@pytest.mark.slow
@pytest.mark.parametrize("command", ["scenes", "filter", "encode"])
def test_twenty_kills_lose_double_and_leave_nothing(tmp_path: Path, command: str) -> None:
    rng = random.Random(1)
    sizes = (8,) * 6 if command == "encode" else (300,) * 4
    write_tars(tmp_path / "tars", sizes)
    options = {
        "scenes": ["scenes", "--count", "400", "--shard", "100", "--size", "64", "--seed", "1", "-o", "out"],
        "filter": ["filter", "tars", "--duplicates", "--workers", "2"],
        "encode": ["encode", "tars", "--vae", "scenes", "--size", "64", "--workers", "2", "--device", "cpu"],
    }[command]
    line, longest = [sys.executable, "-m", "cogview3", "data", *options], 30 if command == "encode" else 8
    for _ in range(20):
        process = subprocess.Popen(
            line, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert ends(process.pid), "a worker is left"
        if command == "scenes" and process.returncode == 0:
            for path in (tmp_path / "out").iterdir():
                path.unlink()
        if command == "encode" and process.returncode == 0:
            for path in (tmp_path / "tars").glob("*.latents.tar"):
                path.unlink()
    assert subprocess.run(line, cwd=tmp_path, capture_output=True).returncode == 0
    made = tmp_path / ("out" if command == "scenes" else "tars")
    assert not [path.name for folder in (tmp_path, made) for path in folder.iterdir() if path.name.startswith(".")]
    if command == "encode":
        latents = {path.name: path.read_bytes() for path in made.glob("*.latents.tar")}
        assert len(latents) == len(sizes)
        assert subprocess.run([*line, "--overwrite"], cwd=tmp_path, capture_output=True).returncode == 0
        assert latents == {path.name: path.read_bytes() for path in made.glob("*.latents.tar")}
    assert len(list(CaptionedImages([str(made)], epochs=1))) == {"scenes": 400}.get(command, sum(sizes))


def ends(session: int) -> bool:
    """Whether all processes of a session end by themselves within 20 seconds."""
    for _ in range(200):
        told = subprocess.run(["ps", "-eo", "sid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
        left = [line for line in told if line.split()[0] == str(session) and "resource_tracker" not in line]
        if not left:
            return True
        signal.sigtimedwait([], 0.1)
    return False
