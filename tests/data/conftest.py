"""Pictures and tars made by hand."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from cogview3.data.shards import CaptionedImages


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """Noise, smooth enough for JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def ordinary(key: str, seed: int = 0, **metadata: Any) -> list[tuple[str, bytes]]:
    """The files of a sample with nothing wrong about it."""
    return [
        (f"{key}.jpg", encoded(picture(seed))),
        (f"{key}.txt", f"old {key}".encode()),
        (f"{key}.json", json.dumps({"key": key, **metadata}).encode()),
    ]


def tar_bytes(files: Iterable[tuple[str, bytes]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def write_tars(folder: Path, sizes: Iterable[int]) -> list[str]:
    """Tars 00000.tar, ... of so many ordinary samples each; keys are 0000000, 0000001, ..., 0001000, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, size in enumerate(sizes):
        keys = [f"{number:04}{index:03}" for index in range(size)]
        files = [file for index, key in enumerate(keys) for file in ordinary(key, 1000 * number + index)]
        paths.append(folder / f"{number:05}.tar")
        paths[-1].write_bytes(tar_bytes(files))
    return [str(path) for path in paths]


def parquet_bytes(columns: Mapping[str, list[Any]]) -> bytes:
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(columns)), content)
    return content.getvalue()


def keys(reader: CaptionedImages, count: int | None = None) -> list[str]:
    return [sample.key for sample in islice(reader, count)]


def all_keys(sizes: tuple[int, ...] = (5, 4, 6)) -> list[str]:
    return [f"{number:04}{index:03}" for number, size in enumerate(sizes) for index in range(size)]


def resumed(make: Callable[[], CaptionedImages], before: int, after: int) -> tuple[list[Any], list[Any]]:
    """What follows after `before` samples: in the same reader, and in another that takes up the position."""
    reader = make()
    keys(reader, before)
    state = json.loads(json.dumps(reader.state_dict()))
    other = make()
    other.load_state_dict(state)
    lists = [[(s.key, s.caption, s.index, s.place) for s in islice(each, after)] for each in (reader, other)]
    assert reader.report == other.report
    assert reader.state_dict() == other.state_dict()
    return lists[0], lists[1]


@pytest.fixture
def tars(tmp_path: Path) -> list[str]:
    """Three tars of 5, 4 and 6 samples."""
    return write_tars(tmp_path / "tars", (5, 4, 6))
