"""Scenes as training data on disk: WebDataset tars as img2dataset writes them, or a folder of images."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cogview3.checkpoints import whole_folder
from cogview3.config import UserError
from cogview3.data.scenes import captions
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene, sample_scene

CAPTIONS: dict[str, Callable[[Scene, np.random.Generator], captions.Caption]] = {
    "comprehensive": captions.comprehensive,
    "brief": captions.brief,
    "alt-text": captions.alt_text,
}
"""The kinds of caption that can go beside a picture."""

MAX_SHARD = 10_000
"""Scenes that a tar can hold: keys are a shard's five digits and a sample's four, as in img2dataset."""

Sample = tuple[str, Iterable[tuple[str, bytes]]]
"""A key, and the suffix and contents of each of its files."""


def write_scenes(
    out: Path,
    count: int,
    *,
    size: int = 256,
    caption: str = "comprehensive",
    seed: int = 0,
    shard: int | None = 1000,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write `count` scenes, each as `key.png`, `key.txt` (its caption) and `key.json`.

    The JSON holds caption, width, height, the scene, and the facts that the caption states. Picture i depends
    on `seed` and i alone. The folder appears whole or not at all.

    Args:
        out: folder to make; it must not exist yet, or be empty.
        count: number of scenes, 1 or more.
        size: side of the pictures in pixels.
        caption: kind of caption, a key of `CAPTIONS`.
        seed: 0 or more.
        shard: scenes in one tar (`00000.tar`, `00001.tar`, ...), up to `MAX_SHARD`; None writes plain files.
        progress: called with the number of scenes drawn so far.

    Raises:
        UserError: a value outside these ranges, or `out` holds something already.
    """
    _check(out, count, caption, seed, shard)
    per_shard = shard or count
    with whole_folder(out) as folder:
        for number, start in enumerate(range(0, count, per_shard)):
            samples = (
                (f"{number * MAX_SHARD + index - start:09}", _files(seed, index, size, caption, progress))
                for index in range(start, min(start + per_shard, count))
            )
            if shard is None:
                _write_folder(folder, samples)
            else:
                write_samples(folder / f"{number:05}.tar", samples)


def _check(out: Path, count: int, caption: str, seed: int, shard: int | None) -> None:
    if count < 1:
        raise UserError(f"count {count}: give 1 or more")
    if caption not in CAPTIONS:
        raise UserError(f"caption {caption!r}: choose from {', '.join(CAPTIONS)}")
    if seed < 0:
        raise UserError(f"seed {seed}: give 0 or more")
    if shard is not None and not 1 <= shard <= MAX_SHARD:
        raise UserError(f"shard {shard}: give 1 to {MAX_SHARD} scenes a tar")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another folder")


def _files(
    seed: int, index: int, size: int, caption: str, progress: Callable[[int], None]
) -> Iterator[tuple[str, bytes]]:
    """Suffix and contents of each of a sample's files."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng)
    told = CAPTIONS[caption](scene, rng)
    picture = io.BytesIO()
    Image.fromarray(render(scene, size)).save(picture, format="PNG", compress_level=1)
    record = {
        "caption": told.text,
        "width": size,
        "height": size,
        "scene": scene.to_dict(),
        "facts": told.facts.to_dict(),
    }
    yield "png", picture.getvalue()
    yield "txt", told.text.encode()
    yield "json", json.dumps(record).encode()
    progress(index + 1)


def _write_folder(folder: Path, samples: Iterable[Sample]) -> None:
    for key, files in samples:
        for suffix, content in files:
            (folder / f"{key}.{suffix}").write_bytes(content)


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write a tar of samples as img2dataset does: the files of each, named key.suffix, one after the other."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files:
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
