"""The cost of reading data: tars to batches against bare decoding and resizing of the same JPEGs in memory.

Both are timed in processor seconds of one process, in turn, so that neither other work on the machine nor a slow disk
favors one of them.
"""

import io
import os
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from cogview3.bench.machine import hardware
from cogview3.config import UserError
from cogview3.data.buckets import BucketBatches, Buckets, FittedImages, fit
from cogview3.data.images import open_image
from cogview3.data.scenes.write import write_samples
from cogview3.data.shards import CaptionedImages
from cogview3.evaluation.progress import Counter, silent

SHAPES = ((640, 480), (480, 640), (512, 512), (720, 480))
"""Width and height of the pictures in turn, for buckets of 512; scaled with the size."""

PER_SHARD = 64
BATCH = 16


def run(
    *,
    pictures: int = 512,
    size: int = 512,
    shards: int = 10_000,
    repeats: int = 3,
    counter: Counter = silent,
) -> dict[str, Any]:
    """Measure the reader on JPEGs made for it, one core.

    Args:
        pictures: read in each run.
        size: side of the square bucket, in pixels, a multiple of 64.
        shards: how many there are in the larger of two sets; the smaller has 10. Links to a few tars stand for them.
        repeats: runs of each kind; medians are given.
        counter: progress bar.

    Returns:
        Images a second and core: "bare" decoding and resizing, "loader" with 10 shards, "many" with `shards`, start
        included; the ratios "loader / bare" and "many / loader"; settings and hardware.

    Raises:
        UserError: fewer than `BATCH` pictures or 10 shards, repeats below 1, a size that is no multiple of 64.
    """
    if pictures < BATCH or shards < 10 or repeats < 1:
        raise UserError(
            f"pictures {pictures}, shards {shards}, repeats {repeats}: give at least {BATCH}, 10 and 1 of them"
        )
    buckets = Buckets(size)
    pictures = pictures // BATCH * BATCH
    with TemporaryDirectory() as name, counter("benchmark", 3 * repeats) as progress:
        few, many, jpegs = _write(Path(name), size, shards)
        kinds: dict[str, Callable[[], Any]] = {
            "bare": lambda: _bare(jpegs, buckets, pictures),
            "loader": lambda: _load(few, buckets, pictures),
            "many": lambda: _load(many, buckets, pictures),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(repeats):
            for place, (kind, work) in enumerate(kinds.items()):
                start = time.process_time()
                work()
                seconds[kind].append(time.process_time() - start)
                progress(3 * number + place + 1)
    rates = {kind: pictures / median(values) for kind, values in seconds.items()}
    return {
        "pictures": pictures,
        "size": size,
        "shards": shards,
        "bytes_a_picture": sum(map(len, jpegs)) // len(jpegs),
        "images_a_second_and_core": rates,
        "ratios": {"loader / bare": rates["loader"] / rates["bare"], "many / loader": rates["many"] / rates["loader"]},
        "runs": seconds,
        "hardware": hardware("cpu"),
    }


def describe(result: dict[str, Any]) -> str:
    """The report in a few lines."""
    rates, ratios = result["images_a_second_and_core"], result["ratios"]
    return (
        f"JPEGs of {result['bytes_a_picture'] / 1024:.0f} KiB to batches of buckets of {result['size']}, images a "
        "second and core:\n"
        f"  bare decoding and resizing  {rates['bare']:8.1f}\n"
        f"  loader, 10 shards           {rates['loader']:8.1f}  ({ratios['loader / bare']:.2f} of bare)\n"
        f"  loader, {result['shards']} shards{'':{max(1, 13 - len(str(result['shards'])))}}{rates['many']:8.1f}  "
        f"({ratios['many / loader']:.2f} of 10 shards, start included)"
    )


def _write(folder: Path, size: int, shards: int) -> tuple[list[str], list[str], list[bytes]]:
    """Addresses of 10 and of `shards` tars, and the pictures that are in the first of them."""
    jpegs = list(_jpegs(size))
    tars = []
    for number in range(10):
        samples = (
            (f"{number:05}{index:04}", [("jpg", jpeg), ("txt", b"a picture made for timing"), ("json", b"{}")])
            for index, jpeg in enumerate(jpegs)
        )
        tars.append(folder / f"{number:05}.tar")
        write_samples(tars[-1], samples)
    (folder / "many").mkdir()
    for number in range(shards):
        os.link(tars[number % 10], folder / "many" / f"{number:06}.tar")
    return [f"{folder}/*.tar"], [f"{folder}/many/{{000000..{shards - 1:06}}}.tar"], jpegs


def _jpegs(size: int) -> Iterator[bytes]:
    """Smooth noise with some grain, which JPEG takes about as many bytes for as for photographs."""
    rng = np.random.default_rng(0)
    for width, height in islice(cycle(SHAPES), PER_SHARD):
        width, height = width * size // 512, height * size // 512
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 6, (height, width, 1))
        content = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
        yield content.getvalue()


def _bare(jpegs: list[bytes], buckets: Buckets, pictures: int) -> None:
    """Decode, resize, crop and stack: nothing that a loader could leave out."""
    groups: dict[int, list[np.ndarray]] = {}
    for jpeg in islice(cycle(jpegs), pictures):
        image = open_image(jpeg).convert("RGB")
        bucket = buckets.assign(image.height, image.width)
        group = groups.setdefault(bucket, [])
        group.append(np.asarray(fit(image, buckets.sizes[bucket])[0]))
        if len(group) == BATCH:
            torch.from_numpy(np.stack(group))
            group.clear()


def _load(addresses: list[str], buckets: Buckets, pictures: int) -> None:
    reader = CaptionedImages(addresses, buffer=BATCH)  # what a larger one reads ahead would count for nothing here
    batches = BucketBatches(FittedImages(reader, buckets), BATCH)
    while reader.report.samples < pictures:
        next(batches)
