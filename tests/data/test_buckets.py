"""Aspect-ratio buckets, crops, size conditions, batches."""

import json
from itertools import product
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cogview3.config import UserError
from cogview3.data.buckets import Batch, BucketBatches, Buckets, FittedImages, fit
from cogview3.data.shards import CaptionedImages
from tests.data.conftest import encoded, picture, tar_bytes

SIZES = [(16, 16), (40, 20), (20, 40), (24, 18), (90, 10), (33, 32)]
"""Width and height of pictures in turn."""


@pytest.mark.parametrize(
    ("side", "step", "ratio"), [(512, 64, 2.0), (1024, 64, 4.0), (256, 32, 1.5), (64, 16, 2.0), (512, 64, 1.0)]
)
def test_buckets_have_nearly_the_square_area(side: int, step: int, ratio: float) -> None:
    sizes = Buckets(side, step, ratio).sizes
    assert (side, side) in sizes
    assert len(set(sizes)) == len(sizes)
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert max(height, width) <= ratio * min(height, width)
        assert height * width <= side * side < height * width + step * min(height, width)
    # every multiple within the limits has a bucket
    for short in range(step, side + 1, step):
        long = side * side // short // step * step
        assert ((short, long) in sizes) == (long <= ratio * short)


def test_buckets_by_hand() -> None:
    assert Buckets(512, 64, 2.0).sizes == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert Buckets(512, 64, 1.0).sizes == [(512, 512)]
    assert Buckets(512).sizes == Buckets(512, 64, 2.0).sizes


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_picture_goes_to_the_bucket_of_the_nearest_ratio(height: int, width: int) -> None:
    buckets = Buckets(1024, 64, 4.0)
    distances = [abs(log(w / h) - log(width / height)) for h, w in buckets.sizes]
    assert distances[buckets.assign(height, width)] <= min(distances) + 1e-12


@pytest.mark.parametrize(("side", "step", "ratio"), [(500, 64, 2.0), (0, 64, 2.0), (64, 0, 2.0), (64, 64, 0.9)])
def test_bad_buckets_are_refused(side: int, step: int, ratio: float) -> None:
    with pytest.raises(UserError, match="bucket"):
        Buckets(side, step, ratio)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.floats(0, 0.999), st.floats(0, 0.999))
def test_fitting_is_resizing_to_cover_and_cropping(height: int, width: int, across: float, down: float) -> None:
    target = (48, 64)
    image = picture(height * 1000 + width, width, height)
    fitted, (top, left) = fit(image, target, across, down)
    assert fitted.size == (64, 48)
    scale = max(48 / height, 64 / width)
    cover = (max(64, round(width * scale)), max(48, round(height * scale)))
    assert 64 in cover[:1] or 48 in cover[1:]
    assert 0 <= top <= cover[1] - 48
    assert 0 <= left <= cover[0] - 64
    whole = image.resize(cover, Image.Resampling.BICUBIC).crop((left, top, left + 64, top + 48))
    # Pillow keeps 8 bits between its passes, and places a box to a fraction of a pixel
    assert np.abs(np.asarray(fitted, int) - np.asarray(whole, int)).max() <= 2


def test_shrinking_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.uint8([[0], [255]]), (128, 256)))
    fitted, _ = fit(stripes, (64, 64))
    assert np.abs(np.asarray(fitted, int)[4:-4] - 127.5).max() < 16  # without, it would be all black or all white


def test_a_very_long_picture_is_not_enlarged_as_a_whole() -> None:
    fitted, (top, left) = fit(Image.new("RGB", (30000, 8), "red"), (512, 512), across=0.999)
    assert fitted.size == (512, 512)  # the whole would be 1,920,000 pixels wide
    assert (top, left) == (0, int(0.999 * (30000 * 64 - 512 + 1)))


@pytest.fixture
def tars(tmp_path: Path) -> list[str]:
    """Two tars of 30 pictures of six sizes."""
    paths = []
    for tar in range(2):
        files = []
        for number in range(30):
            key = f"{tar}{number:02}"
            files += [(f"{key}.png", encoded(picture(30 * tar + number, *SIZES[number % 6]), "PNG"))]
            files += [(f"{key}.txt", f"caption {key}".encode())]
        paths.append(str(tmp_path / f"{tar}.tar"))
        Path(paths[-1]).write_bytes(tar_bytes(files))
    return paths


def make(tars: list[str], epochs: int | None = None, **options: Any) -> BucketBatches:
    reader = CaptionedImages(tars, seed=1, buffer=8, epochs=epochs)
    center = options.pop("center", False)
    fitted = FittedImages(reader, Buckets(32, 8, 2.0), seed=options.get("seed", 3), center=center)
    return BucketBatches(fitted, options.get("batch", 4))


def key(name: str) -> str:
    return name.rpartition(": ")[2]


def same(one: Batch, other: Batch) -> bool:
    tensors = ("images", "original", "crop", "target", "indices")
    return (one.keys, one.captions) == (other.keys, other.captions) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )


def test_batches_are_full_and_of_one_bucket(tars: list[str]) -> None:
    batches = make(tars, epochs=5)
    buckets = Buckets(32, 8, 2.0)
    got = list(batches)
    keys = [key(name) for batch in got for name in batch.keys]
    waiting = len(batches.state_dict()["waiting"])
    assert len(keys) + waiting == 300
    assert waiting < 4 * len(buckets.sizes)
    for batch in got:
        height, width = batch.target[0].tolist()
        assert (height, width) in buckets.sizes
        assert batch.images.shape == (4, 3, height, width)
        assert batch.images.dtype == torch.uint8
        assert (batch.target == batch.target[0]).all()
        assert batch.captions == [f"caption {key(name)}" for name in batch.keys]
        for name, original in zip(batch.keys, batch.original.tolist(), strict=True):
            width, height = SIZES[int(key(name)[1:]) % 6]
            assert original == [height, width]
            assert buckets.sizes[buckets.assign(height, width)] == tuple(batch.target[0].tolist())
    pixels = got[0].pixels()
    assert torch.equal(((pixels + 1) * 127.5).round().byte(), got[0].images)


def test_crops_and_conditions_by_hand(tmp_path: Path) -> None:
    """A picture of 200 x 50 in a bucket of 64 x 32: enlarged 0.64 times to 128 x 32, of which 64 remain."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (50, 200, 3))
    (tmp_path / "a.tar").write_bytes(
        tar_bytes([("a.png", encoded(Image.fromarray(ramp), "PNG")), ("a.txt", b"a ramp")])
    )
    reader = CaptionedImages([str(tmp_path / "a.tar")], buffer=0)
    batch = next(BucketBatches(FittedImages(reader, Buckets(48, 16, 2.0)), 200))
    assert batch.images.shape[2:] == (32, 64)
    assert batch.original.tolist() == [[50, 200]] * 200
    assert batch.target.tolist() == [[32, 64]] * 200
    tops, lefts = batch.crop.unbind(1)
    assert (tops == 0).all()
    assert lefts.min() < 6  # of 0 to 64: the chance that none of 200 is below is 1e-8
    assert lefts.max() > 58
    assert abs(lefts.double().mean() - 32) < 4 * (65**2 / 12 / 200) ** 0.5
    # what the crop says is what is seen: column c shows the ramp at (left + c + 1/2) / 0.64 - 1/2
    columns = torch.arange(64) + lefts[:, None]
    shown = batch.images[:, 0, 16].double()
    inner = (columns > 2) & (columns < 125)
    assert ((shown - ((columns + 0.5) / 0.64 - 0.5)).abs()[inner] < 1.0).all()


def test_center_crops(tars: list[str]) -> None:
    for batch in make(tars, epochs=1, center=True):
        rows = (batch.original.tolist(), batch.crop.tolist(), batch.target.tolist())
        for (height, width), crop, target in zip(*rows, strict=True):
            scale = max(target[0] / height, target[1] / width)
            over = (round(height * scale) - target[0], round(width * scale) - target[1])
            assert abs(crop[0] - over[0] / 2) <= 0.5
            assert abs(crop[1] - over[1] / 2) <= 0.5


def test_draws_belong_to_the_sample(tars: list[str]) -> None:
    def drawn(batches: BucketBatches) -> dict[int, tuple[Any, ...]]:
        return {
            index: (key(name), crop)
            for batch in batches
            for index, name, crop in zip(
                batch.indices.tolist(), batch.keys, map(tuple, batch.crop.tolist()), strict=True
            )
        }

    whole = drawn(make(tars, epochs=4, batch=1))
    ordered = CaptionedImages(tars, epochs=4, buffer=0)
    other = drawn(BucketBatches(FittedImages(ordered, Buckets(32, 8, 2.0), seed=3), 1))
    assert len(whole) == 240
    assert other == whole  # in another order
    parts = [CaptionedImages(tars, epochs=4, part=part, parts=3, seed=1) for part in range(3)]
    fitted = [FittedImages(part, Buckets(32, 8, 2.0), seed=3) for part in parts]
    shares = [drawn(BucketBatches(part, 1)) for part in fitted]
    assert {index: value for share in shares for index, value in share.items()} == whole
    assert drawn(make(tars, epochs=4, batch=1, seed=4)) != whole


@pytest.mark.parametrize("before", [0, 1, 7, 20])
def test_a_saved_position_is_taken_up_exactly(tars: list[str], before: int, capsys: pytest.CaptureFixture[str]) -> None:
    batches = make(tars)
    for _ in range(before):
        next(batches)
    state = json.loads(json.dumps(batches.state_dict()))
    other = make(tars)
    other.load_state_dict(state)
    assert other.state_dict()["waiting"] == batches.state_dict()["waiting"]
    assert capsys.readouterr().err == ""  # no picture that waits is gone
    for _ in range(25):
        assert same(next(other), next(batches))


def test_a_smaller_last_batch_is_taken_up_exactly_too(tars: list[str]) -> None:
    """Several buckets can fill it; which one does must not depend on buckets that stood empty before."""
    for before, after in product(range(1, 9), range(6)):
        run = make(tars)
        for _ in range(before):
            next(run)
        resumed = make(tars)
        resumed.load_state_dict(json.loads(json.dumps(run.state_dict())))
        for _ in range(after):
            assert same(next(resumed), next(run))
        assert same(resumed.take(1), run.take(1)), (before, after)


def test_positions_of_other_batches_are_refused(tars: list[str]) -> None:
    state = make(tars).state_dict()
    with pytest.raises(UserError, match=r"batch \(4 there, 5 here\)"):
        make(tars, batch=5).load_state_dict(state)


def test_a_batch_of_nothing_is_refused(tars: list[str]) -> None:
    with pytest.raises(UserError, match="batch 0"):
        make(tars, batch=0)
