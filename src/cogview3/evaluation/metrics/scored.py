"""A metric for each scorer: its mean over the pictures, by the prompts' groups, with intervals."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from typing_extensions import override

from cogview3.data.latents import to_uint8
from cogview3.evaluation.intervals import mean_interval
from cogview3.evaluation.metrics.base import Drawn, Metric, Setting
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers import SCORERS, Scorer


class ScorerMetric(Metric):
    """Mean of a scorer's numbers, clustered by prompt."""

    scorer: ClassVar[type[Scorer]]

    def __init__(self, prompts: Sequence[Prompt], seed: int, setting: Setting | None = None) -> None:
        super().__init__(prompts, seed, setting)
        self.scorer.check(prompts)
        for asset in self.scorer.assets:
            self.setting.weights.find(asset)
        self._values: dict[int, float] = {}

    @override
    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        weights = self.setting.weights
        scorer = weights.once(self.scorer, lambda: self.scorer.load(weights))
        pictures = [Image.fromarray(picture) for picture in to_uint8(drawn.pictures)]
        values = scorer.score(pictures, [self.prompts[index] for index in drawn.indices])
        self._values |= dict(zip(drawn.indices, values, strict=True))
        return [{"score": value} for value in values]

    @override
    def result(self) -> dict[str, Any]:
        """Mean, interval, pictures, tags (each value's mean, interval, pictures), protocol and weights."""
        indices = sorted(self._values)
        prompts, values = [self.prompts[index] for index in indices], [self._values[index] for index in indices]
        groups: dict[str, dict[str, list[int]]] = {}  # pictures by each tag's values
        for index in indices:
            for tag, value in self.prompts[index].tags.items():
                groups.setdefault(tag, {}).setdefault(value, []).append(index)
        tags = {tag: {value: self._mean(own) for value, own in by_value.items()} for tag, by_value in groups.items()}
        more = self.scorer.summarize(prompts, values) if values else {}
        return self._mean(indices) | {"tags": tags} | more | self.scorer.how(self.setting.weights)

    def _mean(self, indices: Sequence[int]) -> dict[str, Any]:
        values = [self._values[index] for index in indices]
        texts = [self.prompts[index].text for index in indices]
        mean = float(np.mean(values)) if values else None
        return {"mean": mean, "interval": mean_interval(values, texts, self.seed), "pictures": len(values)}

    @override
    def compare(self, reference: Self) -> dict[str, Any]:
        """{"compared": difference of the means on the same prompts and seeds, with its interval}."""
        both = sorted(self._values.keys() & reference._values.keys())
        differences = [self._values[index] - reference._values[index] for index in both]
        texts = [self.prompts[index].text for index in both]
        difference = float(np.mean(differences)) if both else None
        interval = mean_interval(differences, texts, self.seed)
        return {"compared": {"difference": difference, "interval": interval, "pictures": len(both)}}


SCORER_METRICS: dict[str, type[Metric]] = {
    name: type(f"{scorer.__name__}Metric", (ScorerMetric,), {"scorer": scorer, "__doc__": scorer.__doc__})
    for name, scorer in SCORERS.items()
}
"""A metric for each scorer, by its name."""
