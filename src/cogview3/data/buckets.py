"""Pictures of any ratio to full batches of one size: aspect-ratio buckets, crops, SDXL's size conditions.

`for batch in BucketBatches(CaptionedImages(["data/*.tar"]), Buckets(512), batch=16)` gives `batch.pixels()`, captions
and conditions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cogview3.config import UserError
from cogview3.data import draws
from cogview3.data.shards import CaptionedImages, Sample

Size = tuple[int, int]
"""Height and width in pixels, or top and left."""


class Buckets:
    """Sizes of nearly the area of a square, and which picture goes to which.

    For each height that is a multiple of `step` up to `side`, the width is the largest multiple that keeps the area
    within side^2, so that no batch takes more memory than the square's; and the same lying down.

    Args:
        side: of the square, in pixels; a multiple of `step`.
        step: what every height and width is a multiple of.
        max_ratio: of the larger side to the smaller, 1 or more; 1 leaves the square alone.

    Raises:
        UserError: a value outside these.
    """

    def __init__(self, side: int, step: int = 64, max_ratio: float = 2.0) -> None:
        if step < 1 or side < step or side % step:
            raise UserError(f"bucket side {side}: give a multiple of the step {step}, 1 or more")
        if not max_ratio >= 1:
            raise UserError(f"bucket ratio {max_ratio}: give 1 (squares alone) or more")
        narrow = [(height, side * side // height // step * step) for height in range(step, side + 1, step)]
        narrow = [(height, width) for height, width in narrow if width <= max_ratio * height]
        self.step = step
        self.sizes: list[Size] = sorted({*narrow, *((width, height) for height, width in narrow)})
        """(height, width) of each bucket, the lowest first."""
        self._ratios = np.log([width / height for height, width in self.sizes])

    def assign(self, height: int, width: int) -> int:
        """Number of the bucket whose ratio is nearest, on a logarithmic scale, to that of a picture."""
        return int(np.abs(self._ratios - np.log(width / height)).argmin())


def fit(image: Image.Image, target: Size, across: float = 0.5, down: float = 0.5) -> tuple[Image.Image, Size]:
    """Resize a picture until it covers `target`, antialiased, and crop what is over.

    Args:
        image: any size.
        target: height and width of the result.
        across: where the crop lies from the left (0) to the right (below 1).
        down: likewise from the top.

    Returns:
        The picture, and top and left of the crop in the resized picture.
    """
    height, width = target
    scale = max(height / image.height, width / image.width)
    cover = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = int(across * (cover[0] - width + 1)), int(down * (cover[1] - height + 1))
    x, y = image.width / cover[0], image.height / cover[1]
    box = (left * x, top * y, (left + width) * x, (top + height) * y)  # what is cropped is never enlarged
    return image.resize((width, height), Image.Resampling.BICUBIC, box), (top, left)


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket, with their captions.

    Attributes:
        images: (B, 3, H, W), uint8.
        captions: B captions.
        drop: (B,), bool: whose text is to be replaced by the zero embedding.
        original: (B, 2), int64: height and width of the picture as stored, before it was resized.
        crop: (B, 2), int64: top and left of the crop, in the resized picture.
        target: (B, 2), int64: H and W. The three are what `models.unet.size_conditions` takes.
        indices: (B,), int64: `Sample.index` of each, which what is random about it is drawn from.
        keys: "shard address: key" of each, to name it in a message.
    """

    images: Tensor
    captions: list[str]
    drop: Tensor
    original: Tensor
    crop: Tensor
    target: Tensor
    indices: Tensor
    keys: list[str]

    def pixels(self) -> Tensor:
        """The images in [-1, 1], float32."""
        return self.images.float() / 127.5 - 1


class BucketBatches:
    """Iterator over full batches, each of one bucket; what does not fill a batch yet waits for the next pictures.

    Crop and text dropout of a sample are drawn from (seed, `Sample.index`). A batch comes when its last picture does,
    so the order depends on the reader's alone. Where the reader ends, incomplete batches are left over (`waiting`).

    Args:
        reader: gives the samples.
        buckets: sizes of the batches.
        batch: pictures in each.
        seed: of crops and dropout.
        text_dropout: probability that a picture's text is dropped, 0 to 1.
        center: crop the middle instead of a random part.

    Raises:
        UserError: a value outside these; while reading, what the reader raises.
    """

    def __init__(
        self,
        reader: CaptionedImages,
        buckets: Buckets,
        batch: int,
        *,
        seed: int = 0,
        text_dropout: float = 0.1,
        center: bool = False,
    ) -> None:
        if batch < 1:
            raise UserError(f"batch {batch}: give 1 picture or more")
        if not 0 <= text_dropout <= 1:
            raise UserError(f"text_dropout {text_dropout}: give 0 to 1")
        self.reader = reader
        self.buckets = buckets
        self._batch, self._seed, self._dropout, self._center = batch, seed, text_dropout, center
        self._identity = {
            "batch": batch,
            "seed": seed,
            "text_dropout": text_dropout,
            "center": center,
            "sizes": [list(size) for size in buckets.sizes],
        }
        self._waiting: list[list[_Fitted]] = [[] for _ in buckets.sizes]

    @property
    def waiting(self) -> int:
        """Pictures that no batch has had yet."""
        return sum(map(len, self._waiting))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while True:
            number, fitted = self._fit(next(self.reader))
            group = self._waiting[number]
            group.append(fitted)
            if len(group) == self._batch:
                self._waiting[number] = []
                return self._collate(group, self.buckets.sizes[number])

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch, in plain types: the reader's, and where the waiting pictures lie."""
        waiting = [list(fitted.sample.place) for group in self._waiting for fitted in group]
        return {"identity": self._identity, "reader": self.reader.state_dict(), "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position: the same batches follow as would have then.

        Raises UserError for the position of other settings or another reader.
        """
        theirs = state["identity"]
        if different := [name for name, value in self._identity.items() if theirs.get(name) != value]:
            shown = ", ".join(f"{name} ({theirs.get(name)} there, {self._identity[name]} here)" for name in different)
            raise UserError(f"the saved position is of other batches: {shown}; use the same settings")
        self.reader.load_state_dict(state["reader"])
        self._waiting = [[] for _ in self.buckets.sizes]
        for place in state["waiting"]:
            number, fitted = self._fit(self.reader.read(place))
            self._waiting[number].append(fitted)

    def _fit(self, sample: Sample) -> tuple[int, "_Fitted"]:
        """Bucket of a sample, and its picture in that size."""
        image = sample.image
        number = self.buckets.assign(image.height, image.width)
        across, down = (draws.chance(axis, self._seed, sample.index) for axis in ("across", "down"))
        if self._center:
            across = down = 0.5
        fitted, crop = fit(image, self.buckets.sizes[number], across, down)
        return number, _Fitted(replace(sample, image=fitted), (image.height, image.width), crop)

    def _collate(self, group: Sequence["_Fitted"], target: Size) -> Batch:
        samples = [fitted.sample for fitted in group]
        drop = [draws.chance("drop text", self._seed, sample.index) < self._dropout for sample in samples]
        return Batch(
            images=torch.from_numpy(np.stack([np.asarray(sample.image) for sample in samples]).transpose(0, 3, 1, 2)),
            captions=[sample.caption for sample in samples],
            drop=torch.tensor(drop),
            original=torch.tensor([fitted.original for fitted in group]),
            crop=torch.tensor([fitted.crop for fitted in group]),
            target=torch.tensor([target] * len(group)),
            indices=torch.tensor([sample.index for sample in samples]),
            keys=[f"{sample.shard}: {sample.key}" for sample in samples],
        )


@dataclass(frozen=True)
class _Fitted:
    """A sample whose image has its bucket's size."""

    sample: Sample
    original: Size
    crop: Size
