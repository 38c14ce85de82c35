"""The objectives: one for each kind of recipe.

An objective is a module whose `forward` maps a batch to its loss. The loop knows nothing else of it.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from cogview3.config import Kind, Recipe, UserError
from cogview3.models.int8 import load_unet
from cogview3.prompts.text_models import load_network
from cogview3.references import weights_folder
from cogview3.training.deepen import deepen, further_layers
from cogview3.training.sources import Source

if TYPE_CHECKING:
    from cogview3.training.sources.shards import PictureSource

Batch = dict[str, Tensor]


class Interrupted(Exception):
    """A batch was given up half-way, since the run is to stop."""


class Objective(nn.Module, ABC):
    """Base of all objectives. `trained` holds the parameters that the optimizer moves and the EMA follows.

    Attributes:
        trained: the network. Its parameters without gradient are neither moved, averaged nor in checkpoints.
        depends_on: what `fingerprint` is the state of, in a few words.
        works_alone: whether `trained` does all the work of a step; if not, its share of what the device could do would
            mislead, and none is reported.
        stop_asked: whether the run is to stop, the same on all processes; a `batch` that takes long asks it now and
            then, equally often on all, and raises `Interrupted`.
    """

    trained: nn.Module
    depends_on = "vocabulary of captions"
    works_alone = True
    stop_asked: Callable[[], bool] = staticmethod(lambda: False)

    def prepare(self, device: str) -> None:
        """Work before the first step that may take long, as caching latents. Runs on the main process first."""

    def fingerprint(self) -> str:
        """What the weights depend on beside the recipe; a run is not resumed where it has changed."""
        return ""

    def state(self) -> dict[str, Any]:
        """Where this process stands in its data, as JSON: what `batch` depends on beside its arguments."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state()` was taken, before the first `batch`.

        After a run of another number of processes, `state` is the union of the states of all of them.
        """

    def gather(self) -> None:
        """What processes exchange before a validation; all of them call this, the main one then validates."""
        return

    def keys(self, indices: list[int]) -> list[str]:
        """What the samples `indices` of the last batches are called where they come from; by default, their numbers."""
        return [str(index) for index in indices]

    @abstractmethod
    def batch(self, first: int, indices: list[int]) -> Batch:
        """The samples `indices` of the batch that starts at sample `first`; depends on these and the seed alone."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch, scalars; the one named "loss" is minimized."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on a fixed set, with the weights that `trained` holds now."""

    @abstractmethod
    def samples(self) -> Image.Image | None:
        """A grid to look at, with the weights that `trained` holds now; None where there is nothing to see."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the weights that `trained` holds now, ready for use, as component folders under `folder`."""


_CLASSES: dict[str, str] = {
    Kind.vae: "vae.VaeTraining",
    Kind.text: "text.TextTraining",
    Kind.recaptioner: "recaptioner.RecaptionerTraining",
    Kind.expander: "expander.ExpanderTraining",
    Kind.base: "diffusion.DiffusionTraining",
    Kind.relay: "diffusion.DiffusionTraining",
    Kind.pixel: "pixel.PixelTraining",
    Kind.enlarger: "light.EnlargerTraining",
    Kind.light_decoder: "light.LightDecoderTraining",
}
_CLASSES_OF_SHARDS = _CLASSES | {Kind.vae: "vae.OwnVaeTraining", Kind.text: "pairs.PairTraining"}


def build(recipe: Recipe) -> Objective:
    """The objective of a recipe, with freshly initialized or loaded weights (`recipe.start_from`).

    Raises UserError for a distillation, which has objectives of its own.
    """
    if recipe.kind not in _CLASSES:
        raise UserError(f"recipe {recipe.name} is of kind {recipe.kind}; run it with: cogview3 distill")
    classes = _CLASSES_OF_SHARDS if hasattr(recipe.data, "shards") else _CLASSES
    module, _, name = classes[recipe.kind].partition(".")
    objective: Objective = getattr(import_module(f"{__name__}.{module}"), name)(recipe)
    return objective


class SourcedTraining(Objective):
    """Base of objectives whose samples come from a source that has a position of its own.

    Attributes:
        source: None where samples follow from their numbers.
    """

    source: "Source | PictureSource | None"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._names: dict[int, str] = {}  # of the last batch's samples
        self._first = -1  # its first sample

    def _name(self, first: int, indices: list[int], names: list[str]) -> None:
        """Keep the names of samples of the batch that starts at sample `first`; it may be taken in several parts."""
        self._names = (self._names if first == self._first else {}) | dict(zip(indices, names, strict=True))
        self._first = first

    def keys(self, indices: list[int]) -> list[str]:
        """Names of samples of the last batch: shard and key of pictures, numbers of scenes."""
        return [self._names.get(index, str(index)) for index in indices]

    @override
    def state(self) -> dict[str, Any]:
        return {} if self.source is None else self.source.state()

    @override
    def load_state(self, state: dict[str, Any]) -> None:
        if self.source is not None:
            self.source.load_state(state)

    @override
    def gather(self) -> None:
        if self.source is not None:
            self.source.gather()


def weighted(terms: Mapping[str, Tensor], weights: object) -> Tensor:
    """The sum of terms (scalars), each multiplied by the attribute of `weights` that has its name."""
    products: list[Tensor] = [getattr(weights, name) * term for name, term in terms.items()]
    return reduce(torch.add, products)


def grid(*rows: Sequence[np.ndarray] | np.ndarray) -> Image.Image:
    """Pictures of one size, uint8 (H, W, 3) each, in rows."""
    return Image.fromarray(np.vstack([np.hstack(list(row)) for row in rows]))


def by_bands(errors: Tensor, share: Tensor) -> dict[str, float]:
    """Mean of errors (B,) in all, "loss", and by the quarter of the noise levels that they are of, from the lowest.

    share: (B,), of the noise levels, those below a sample's own; 0 up to 1.
    """
    figures, band = {"loss": errors.mean().item()}, (share * 4).long()
    for number in range(4):
        if (band == number).any():
            figures[f"loss_{number + 1}_of_4"] = errors[band == number].mean().item()
    return figures


def psnr(error: Tensor) -> float:
    """PSNR in dB of a mean square error of pictures in [-1, 1]."""
    return -10 * (error / 4).log10().item()


def start_from(model: ModelMixin | PreTrainedModel, reference: str, *components: str) -> Path:
    """Take over the weights of the first of `components` that a run, a model folder or a bundled model has.

    A UNet may have more layers a block than its start: the further ones begin as the identity (`training.deepen`).

    Returns:
        The component's folder.

    Raises:
        UserError: it has none, or one that is distilled, or of other shapes.
    """
    folder = None
    for component in components:
        with suppress(UserError):
            folder = folder or weights_folder(reference, component)
    folder = folder or weights_folder(reference, components[0])
    start = load_unet(folder) if isinstance(model, UNet2DConditionModel) else load_network(type(model), folder)
    state = start.state_dict()
    if "time_embedding.cond_proj.weight" in state.keys() - model.state_dict().keys():
        raise UserError(f"recipe.start_from {reference!r} is distilled; give what it was distilled from")
    if isinstance(model, UNet2DConditionModel) and (more := further_layers(start, model)):
        deepen(start, model)
        print(
            f"recipe.start_from {reference!r} has {more} layer{'s' * (more > 1)} a block fewer than [model]: the "
            "others start as the identity, so the network starts as that one",
            file=sys.stderr,
        )
        return folder
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"recipe.start_from {reference!r} has other shapes than [model]; make them equal") from None
    return folder
