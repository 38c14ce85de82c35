"""Pictures of any ratio to full batches of one size: aspect-ratio buckets, crops, SDXL's size conditions.

`for batch in BucketBatches(FittedImages(CaptionedImages(["data/*.tar"]), Buckets(512)), batch=16)` gives
`batch.pixels()`, captions and conditions.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cogview3.config import UserError
from cogview3.data import draws
from cogview3.data.encoded import Encoded, Size
from cogview3.data.order import Place, check_identity, read_again
from cogview3.data.shards import CaptionedImages, Sample

if TYPE_CHECKING:
    from cogview3.data.workers import WorkerSamples


class Buckets:
    """Sizes of nearly the area of a square, and which picture goes to which.

    For each height that is a multiple of `step` up to `side`, the width is the largest multiple that keeps the area
    within side^2, so that no batch takes more memory than the square's; and the same lying down.

    `max_ratio` is of the larger side to the smaller, 1 or more; 1 leaves the square alone. Raises UserError for a side
    that is no multiple of `step`, or a ratio below 1.
    """

    def __init__(self, side: int, step: int = 64, max_ratio: float = 2.0) -> None:
        if step < 1 or side < step or side % step:
            raise UserError(f"bucket side {side}: give a multiple of the step {step}, 1 or more")
        if not max_ratio >= 1:
            raise UserError(f"bucket ratio {max_ratio}: give 1 (squares alone) or more")
        narrow = [(height, side * side // height // step * step) for height in range(step, side + 1, step)]
        narrow = [(height, width) for height, width in narrow if width <= max_ratio * height]
        self.sizes: list[Size] = sorted({*narrow, *((width, height) for height, width in narrow)})
        """(height, width) of each bucket, the lowest first."""
        self._ratios = np.log([width / height for height, width in self.sizes])

    def assign(self, height: int, width: int) -> int:
        """Number of the bucket whose ratio is nearest, on a logarithmic scale, to that of a picture."""
        return int(np.abs(self._ratios - np.log(width / height)).argmin())


def fit(image: Image.Image, target: Size, across: float = 0.5, down: float = 0.5) -> tuple[Image.Image, Size]:
    """Resize a picture until it covers `target`, antialiased, and crop what is over.

    `across` is where the crop lies, from the left (0) to the right (below 1), `down` likewise from the top. Returns
    the picture, and top and left of the crop in the resized picture.
    """
    height, width = target
    scale = max(height / image.height, width / image.width)
    cover = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = int(across * (cover[0] - width + 1)), int(down * (cover[1] - height + 1))
    x, y = image.width / cover[0], image.height / cover[1]
    box = (left * x, top * y, (left + width) * x, (top + height) * y)  # what is cropped is never enlarged
    return image.resize((width, height), Image.Resampling.BICUBIC, box), (top, left)


@dataclass(frozen=True)
class Fitted:
    """A sample in its bucket's size."""

    image: np.ndarray | None  # uint8, (H, W, 3); None where there are latents
    encoded: Encoded | None  # the latents of a picture that was encoded ahead
    caption: str  # the one chosen
    original: Size  # this and the next two: SDXL's size conditions; of the picture as stored
    crop: Size  # top and left
    target: Size  # of the bucket
    index: int  # as `Sample.index`
    place: Place  # as `Sample.place`
    name: str  # "shard address: key"


class FittedImages:
    """Iterator over a reader's samples, each resized and cropped to the bucket that it belongs to.

    The crop of a sample is drawn from (seed, `Sample.index`), or is the middle (`center`). Pictures that were encoded
    ahead are left as they are.
    """

    def __init__(self, reader: CaptionedImages, buckets: Buckets, *, seed: int = 0, center: bool = False) -> None:
        self.reader = reader
        self._buckets, self._seed, self._center = buckets, seed, center
        sizes = [list(size) for size in buckets.sizes]
        self._identity = {"seed": seed, "center": center, "sizes": sizes}

    def __iter__(self) -> Iterator[Fitted]:
        return self

    def __next__(self) -> Fitted:
        return self._fit(next(self.reader))

    def read(self, place: Place) -> Fitted:
        """The sample at a place that an earlier one gave. Raises UserError as the reader's `read` does."""
        return self._fit(self.reader.read(place))

    def state_dict(self) -> dict[str, Any]:
        """The position after the last sample, in plain types."""
        return {"identity": self._identity, "reader": self.reader.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a position. Raises UserError for one of other settings or another reader."""
        check_identity("pictures", state["identity"], self._identity)
        self.reader.load_state_dict(state["reader"])

    def _fit(self, sample: Sample) -> Fitted:
        known = (sample.index, sample.place, f"{sample.shard}: {sample.key}")
        if (encoded := sample.encoded) is not None:
            return Fitted(None, encoded, sample.caption, encoded.original, encoded.crop, encoded.target, *known)
        image = sample.image
        assert image is not None  # a sample has the one or the other
        across, down = (draws.chance(axis, self._seed, sample.index) for axis in ("across", "down"))
        if self._center:
            across = down = 0.5
        target = self._buckets.sizes[self._buckets.assign(image.height, image.width)]
        fitted, crop = fit(image, target, across, down)
        original = (image.height, image.width)
        return Fitted(np.asarray(fitted), None, sample.caption, original, crop, target, *known)


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket, with their captions."""

    images: Tensor | None  # (B, 3, H, W), uint8; None where all have latents
    captions: list[str]  # B captions
    original: Tensor  # (B, 2), int64: height and width of the picture as stored, before it was resized
    crop: Tensor  # (B, 2), int64: top and left of the crop, in the resized picture
    target: Tensor  # (B, 2), int64: H and W. The three are what `models.unet.size_conditions` takes
    indices: Tensor  # (B,), int64: `Sample.index` of each, which what is random about it is drawn from
    keys: list[str]  # "shard address: key" of each, to name it in a message
    encoded: list[Encoded] = field(default_factory=list)  # the latents of pictures that were encoded ahead

    def pixels(self) -> Tensor:
        """The images in [-1, 1], float32."""
        assert self.images is not None
        return self.images.float() / 127.5 - 1


class BucketBatches:
    """Iterator over full batches, each of one bucket; what does not fill a batch yet waits for the next pictures.

    A batch comes when its last picture does, so the order depends on the source's alone. Where the source ends,
    incomplete batches are left over.

    Raises UserError for a batch below 1; while reading, what the source raises.
    """

    def __init__(self, source: "FittedImages | WorkerSamples", batch: int) -> None:
        if batch < 1:
            raise UserError(f"batch {batch}: give 1 picture or more")
        self.source = source
        self._batch = batch
        self._identity = {"batch": batch}
        self._waiting: dict[Size, list[Fitted]] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.take(self._batch)

    def take(self, count: int) -> Batch:
        """The next batch, of another number of pictures."""
        while True:
            for size, group in self._waiting.items():
                if len(group) >= count:
                    self._waiting[size] = group[count:]
                    if not self._waiting[size]:  # so that the order of buckets is that of the pictures that wait
                        del self._waiting[size]
                    return self._collate(group[:count])
            self._add(next(self.source))

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch, in plain types: the source's, and where the waiting pictures lie."""
        waiting = [list(fitted.place) for group in self._waiting.values() for fitted in group]
        return {"identity": self._identity, "source": self.source.state_dict(), "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a position: the same batches follow as would have then, but for pictures that are gone since.

        Raises UserError for the position of other settings or another source.
        """
        check_identity("batches", state["identity"], self._identity)
        self.source.load_state_dict(state["source"])
        self._waiting = {}
        places = [Place(*place) for place in state["waiting"]]
        found = read_again(places, self.source.read)
        for _, fitted in found:
            self._add(fitted)
        if gone := len(places) - len(found):
            print(f"data: {gone} pictures that waited for a full batch are gone", file=sys.stderr)

    def _add(self, fitted: Fitted) -> None:
        self._waiting.setdefault(fitted.target, []).append(fitted)

    def _collate(self, group: Sequence[Fitted]) -> Batch:
        pictures = [fitted.image for fitted in group if fitted.image is not None]
        return Batch(
            images=torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2)) if pictures else None,
            captions=[fitted.caption for fitted in group],
            original=torch.tensor([fitted.original for fitted in group]),
            crop=torch.tensor([fitted.crop for fitted in group]),
            target=torch.tensor([fitted.target for fitted in group]),
            indices=torch.tensor([fitted.index for fitted in group]),
            keys=[fitted.name for fitted in group],
            encoded=[fitted.encoded for fitted in group if fitted.encoded is not None],
        )
