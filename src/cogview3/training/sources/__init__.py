"""Sources of latents, captions and size conditions for base, relay and distillation: scenes, or shards of pictures.

Tiny autoencoders get their latents here, too, where they come from shards.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor

from cogview3.config import BaseRecipe, DistillRound, LightRecipe, RelayRecipe, RunRecipe, SceneData


@dataclass(frozen=True)
class Samples:
    """Samples of one size."""

    latents: dict[str, Tensor]  # "z0" and, for a relay stage, "zL": (B, C, H/8, W/8), float32, scaled
    sizes: Tensor  # (B, 3, 2), SDXL's: (height, width) of the original, (top, left) of the crop, the picture's (H, W)
    seeds: list[list[int]]  # of each sample's generator, from which all that is random about it is drawn
    captions: Callable[[list[np.random.Generator]], list[str]]  # one for each sample, given their generators
    texts: Sequence[np.ndarray | None] = ()  # the captions' embeddings (L, D), where they were encoded ahead
    keys: list[str] = field(default_factory=list)  # names of the samples, for messages


def autocast(recipe: RunRecipe, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast as `train.precision` says, for where the loop has none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16")


def standard_normal(rngs: list[np.random.Generator], like: Tensor) -> Tensor:
    """Noise for samples (B, ...), float32, each one's from its own generator."""
    return torch.from_numpy(np.stack([rng.standard_normal(like.shape[1:], np.float32) for rng in rngs]))


class Epochs:
    """Scenes of a fixed number in an order by sample: each epoch has all of them, in an order of its own."""

    def __init__(self, pictures: int, seed: int) -> None:
        self._pictures, self._seed = pictures, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)  # whose order is at hand

    def picture(self, index: int) -> int:
        """The number, 0 to pictures - 1, of the scene that sample `index` is of."""
        epoch, place = divmod(index, self._pictures)
        if self._epoch != epoch:
            rng = np.random.default_rng([self._seed, epoch, 7])
            self._epoch, self._order = epoch, rng.permutation(self._pictures)
        return int(self._order[place])


class Source(ABC):
    """Gives the samples of training, and a fixed set for the validation."""

    @abstractmethod
    def prepare(self) -> None:
        """Work before the first sample that may take long; the autoencoder is on its device by then."""

    @abstractmethod
    def take(self, first: int, indices: list[int]) -> Samples:
        """The samples `indices` of the batch that starts at sample `first`."""

    @property
    @abstractmethod
    def fixed(self) -> Samples:
        """The whole validation set, its pictures square."""

    @abstractmethod
    def shown(self, count: int, size: int) -> tuple[list[str], np.ndarray]:
        """Captions and pictures, uint8 (count, size, size, 3), of the first samples of the validation set."""

    def facts(self, pictures: np.ndarray) -> float | None:
        """Share of the facts of `shown`'s captions that pictures of them show; None where facts are not known."""
        return None

    def fills(self, pictures: np.ndarray) -> dict[str, float]:
        """Of pictures of `shown`'s captions, the share of fills that are right, by kind ("dotted"); {} as above."""
        return {}

    def gather(self) -> None:
        """Tell the other processes what `figures` is of; all of them call this."""
        return

    def figures(self) -> dict[str, float]:
        """What is worth telling of the data read so far, by all processes, beside a validation's figures."""
        return {}

    def state(self) -> dict[str, Any]:
        """This process' position in the data, as JSON, where it does not follow from the number of images seen."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a position; of a run of another number of processes, from the union of those of all."""
        return


def make_source(
    recipe: BaseRecipe | RelayRecipe | DistillRound | LightRecipe, vae: AutoencoderKL, folder: Path
) -> Source:
    """The source that a recipe's [data] describes; `vae` comes from `folder`. Tiny autoencoders' scenes have none."""
    if isinstance(recipe.data, SceneData):
        from cogview3.training.sources.scenes import SceneSource

        return SceneSource(recipe, vae, folder)
    from cogview3.training.sources.shards import ShardSource

    return ShardSource(recipe, vae, folder)
