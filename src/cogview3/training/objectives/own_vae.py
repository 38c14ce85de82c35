"""The autoencoder's objective on your own pictures, out of shards."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cogview3.config import VaeRecipe, VaeShardData
from cogview3.data import buckets
from cogview3.data.latents import to_tensor
from cogview3.training.objectives import Batch
from cogview3.training.objectives.sourced import SourcedTraining
from cogview3.training.objectives.vae import VaeTraining
from cogview3.training.sources import BatchNames
from cogview3.training.sources.shards import PictureSource


class OwnVaeTraining(SourcedTraining, VaeTraining):
    """Train AutoencoderKL on parts of pictures, then on whole ones; the loss is that of scenes."""

    depends_on = "set of pictures"
    source: PictureSource

    def __init__(self, recipe: VaeRecipe) -> None:
        super().__init__(recipe)
        self.source, self.names = PictureSource(recipe), BatchNames()

    @property
    def _shards(self) -> VaeShardData:
        assert isinstance(self.recipe.data, VaeShardData)
        return self.recipe.data

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Pictures (B, 3, H, W) in [-1, 1]: parts cut out at random, from `data.whole_from` on whole pictures.

        Whole ones alternate between their size and half of it, as many as a batch of parts has pixels.
        """
        data, train = self._shards, self.recipe.train
        taken = self.source.pictures(len(indices))
        self.names.keep(first, indices, taken.keys)
        pictures = _images(taken).float() / 127.5 - 1
        rngs = [np.random.default_rng([train.seed, index, 1]) for index in taken.indices.tolist()]
        if first < data.whole_from * train.images:
            parts = [self._part(picture, rng) for picture, rng in zip(pictures, rngs, strict=True)]
            pictures = torch.stack(parts)
        else:
            if first // train.batch % 3:
                pictures = _half(pictures)
            count = round(len(indices) * data.patch**2 / (pictures.shape[2] * pictures.shape[3]))
            pictures = pictures[: max(1, count)]
        return {"pictures": pictures, "noise_seed": torch.tensor(int(rngs[0].integers(2**32)))}

    def _part(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """A square of side `data.patch` of a picture (3, H, W), or of it at half its size."""
        side = self._shards.patch
        if rng.random() < self.recipe.data.half_share:
            picture = _half(picture[None])[0]
        top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[1:])
        return picture[:, top : top + side, left : left + side]

    def validate(self) -> dict[str, float]:
        """As of scenes, and what became of the data."""
        return super().validate() | self.source.figures()

    def _validation_pictures(self, size: int) -> list[np.ndarray]:
        return list(_at(self.source.fixed_images, size).permute(0, 2, 3, 1).numpy())

    @cached_property
    def _statistics(self) -> Tensor:
        """Pictures at half the size, uint8 (N, 3, H, W), by which the latents are normalized."""
        validate = self.recipe.validate_.model_copy(
            update={"images": self.recipe.objective.statistics_images, "seed": self.recipe.validate_.seed + 1}
        )
        others = PictureSource(self.recipe.model_copy(update={"validate_": validate}))
        return _at(others.fixed_images, self.recipe.data.size // 2)

    def _statistics_batches(self) -> list[Tensor]:
        return [to_tensor(list(part.permute(0, 2, 3, 1).numpy())) for part in self._statistics.split(16)]


def _images(batch: buckets.Batch) -> Tensor:
    assert batch.images is not None, "an autoencoder reads pictures, not latents"
    return batch.images


def _half(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) at half their size, means of 2 x 2 pixels."""
    return functional.avg_pool2d(pictures, 2)


def _at(pictures: Tensor, size: int) -> Tensor:
    """uint8 pictures (B, 3, H, H) at a size that divides theirs."""
    return functional.avg_pool2d(pictures.float(), pictures.shape[-1] // size).round().to(torch.uint8)
