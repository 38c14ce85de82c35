"""What all scorers have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from PIL import Image

from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.weights import Asset, Weights, describe


class Scorer(ABC):
    """A number for each picture and its prompt; `protocol` says what exactly is computed."""

    name: ClassVar[str]
    protocol: ClassVar[str]
    version: ClassVar[str]
    assets: ClassVar[tuple[Asset, ...]]

    @classmethod
    @abstractmethod
    def load(cls, weights: Weights) -> Self:
        """The scorer from its weights. Raises UserError where they are missing or do not fit."""

    @abstractmethod
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """One number for each RGB picture; larger is better."""

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        """Refuse, with a UserError, prompts that it cannot score; most take any."""
        return

    @classmethod
    def summarize(cls, prompts: Sequence[Prompt], values: Sequence[float]) -> dict[str, Any]:
        """Figures beyond mean, interval and the groups of the prompts."""
        return {}

    @classmethod
    def how(cls, weights: Weights) -> dict[str, Any]:
        """Protocol, version and weights, for the result."""
        found = [describe(asset, weights.find(asset)) for asset in cls.assets]
        return {"protocol": cls.protocol, "version": cls.version, "weights": found}
