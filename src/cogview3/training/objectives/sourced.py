"""Objectives whose samples come from a source that has a position of its own."""

from typing import Any

from typing_extensions import override

from cogview3.training.objectives import Objective
from cogview3.training.sources import BatchNames, Source
from cogview3.training.sources.shards import PictureSource


class SourcedTraining(Objective):
    """Base of such objectives. Subclasses set `source`, None where samples follow from their numbers, and `names`."""

    source: Source | PictureSource | None
    names: BatchNames

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

    def keys(self, indices: list[int]) -> list[str]:
        """Names of samples of the last batch: shard and key of pictures, numbers of scenes."""
        return self.names.of(indices)
