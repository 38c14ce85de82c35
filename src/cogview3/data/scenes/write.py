"""Scenes as training data on disk: WebDataset tars as img2dataset writes them, or a folder of images."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image

from cogview3 import __version__
from cogview3.checkpoints import whole_folder
from cogview3.config import UserError
from cogview3.data.scenes import captions
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.data.sidecars import CAPTIONS as COLUMNS
from cogview3.data.sidecars import write_sidecar
from cogview3.data.tars import add_file

CAPTIONS: dict[str, Callable[[Scene, np.random.Generator], captions.Caption]] = {
    "comprehensive": captions.comprehensive,
    "brief": captions.brief,
    "alt-text": captions.alt_text,
    "plain": lambda scene, rng: captions.plain(scene),
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
    new: str | None = None,
    seed: int = 0,
    shard: int | None = 1000,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write `count` scenes, each as `key.png`, `key.txt` (its caption) and `key.json`.

    The JSON holds caption, width, height, the scene, and the facts that the caption states. Picture i depends
    on `seed` and i alone, as do its captions. The folder appears whole or not at all.

    `size` is the pictures' side in pixels; `caption` and `new` are kinds of captions, keys of `CAPTIONS`, the new ones
    in a sidecar beside each tar, as a recaptioner writes them. Tars (`00000.tar`, ...) hold `shard` scenes each, up to
    `MAX_SHARD`; None writes plain files. `progress` is given the number of scenes drawn so far.

    Raises UserError for a value outside these ranges, or where `out` holds something already.
    """
    _check(out, count, caption, new, seed, shard)
    per_shard = shard or count
    with whole_folder(out) as folder:
        for number, start in enumerate(range(0, count, per_shard)):
            keys = {
                index: f"{number * MAX_SHARD + index - start:09}"
                for index in range(start, min(start + per_shard, count))
            }
            samples = ((key, _files(seed, index, size, caption, progress)) for index, key in keys.items())
            if shard is None:
                for key, files in samples:
                    for suffix, content in files:
                        (folder / f"{key}.{suffix}").write_bytes(content)
            else:
                write_samples(folder / f"{number:05}.tar", samples)
            if new is not None:
                _write_new(folder / f"{number:05}.captions.parquet", keys, seed, caption, new)
        _check_free(out)  # another command may have written there since


def _draw(seed: int, index: int, *kinds: str) -> tuple[Scene, list[captions.Caption]]:
    """Scene `index`, and captions of these kinds one after the other."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng)
    return scene, [CAPTIONS[kind](scene, rng) for kind in kinds]


def _write_new(path: Path, keys: dict[int, str], seed: int, caption: str, new: str) -> None:
    """The sidecar of one tar; `keys` by the scenes' indices."""
    rows = []
    for index, key in keys.items():
        _, (old, told) = _draw(seed, index, caption, new)
        rows.append({"key": key, "old": old.text, "new": told.text, "status": "ok", "error": ""})
    made = {"model": f"scenes/{new}", "version": __version__}
    write_sidecar(str(path), pyarrow.Table.from_pylist([row | made for row in rows], COLUMNS), {**made, "seed": seed})


def _check(out: Path, count: int, caption: str, new: str | None, seed: int, shard: int | None) -> None:
    if count < 1:
        raise UserError(f"count {count}: give 1 or more")
    for name, kind in (("caption", caption), ("new", new)):
        if kind is not None and kind not in CAPTIONS:
            raise UserError(f"{name} {kind!r}: choose from {', '.join(CAPTIONS)}")
    if new is not None and shard is None:
        raise UserError(f"new {new!r}: new captions lie beside tars; write tars, or leave it out")
    if seed < 0:
        raise UserError(f"seed {seed}: give 0 or more")
    if shard is not None and not 1 <= shard <= MAX_SHARD:
        raise UserError(f"shard {shard}: give 1 to {MAX_SHARD} scenes a tar")
    _check_free(out)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already exists; choose another folder")


def _files(
    seed: int, index: int, size: int, caption: str, progress: Callable[[int], None]
) -> Iterator[tuple[str, bytes]]:
    """Suffix and contents of each of a sample's files."""
    scene, [told] = _draw(seed, index, caption)
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


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write a tar of samples as img2dataset does: the files of each, named key.suffix, one after the other."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, content in files:
                add_file(tar, f"{key}.{suffix}", content)
