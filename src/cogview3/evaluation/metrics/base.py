"""What a metric is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers.models import AutoencoderKL
from torch import Tensor

from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.weights import Weights


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures and where they come from.

    Attributes:
        indices: their prompts' places in the whole set.
        pictures: (B, 3, H, W) in [-1, 1].
        base: the same run's base pictures, (B, 3, h, w) in [-1, 1]; None where nothing was enlarged.
        vae: of the model that drew them; None where there is none, or no metric needs it.
        seconds: that drawing the pictures took.
    """

    indices: Sequence[int]
    pictures: Tensor
    base: Tensor | None
    vae: AutoencoderKL | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What metrics need beyond the prompts; `reference`: real pictures for FID, a folder or an .npz of statistics."""

    weights: Weights = field(default_factory=Weights)
    reference: Path | None = None


class Metric(ABC):
    """One metric of one model's pictures of a set of prompts.

    Constructed before any model is loaded, so that it can refuse prompts that it cannot use.

    Raises:
        UserError: the prompts lack something that the metric needs, or weights are missing.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, setting: Setting | None = None) -> None:
        self.prompts, self.seed, self.setting = prompts, seed, setting or Setting()

    @abstractmethod
    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        """Take in a batch; returns what is to be noted of each of its pictures, ready for JSON."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Figures of all pictures so far, ready for JSON; None where there is nothing to average."""

    has_floor: ClassVar[bool] = False
    """Whether the first model is to be compared with itself, drawn again from other noise; others share its noise."""

    needs_one_size: ClassVar[bool] = False
    """Whether only pictures of the same size can be compared."""

    needs_vae: ClassVar[bool] = False
    """Whether it reconstructs scenes by the model's VAE."""

    def compare(self, reference: Self) -> dict[str, Any] | None:
        """Figures of the pictures that both runs have; None where the metric has none."""
        return None
