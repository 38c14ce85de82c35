"""Metrics of drawn pictures, by name. Each sees the pictures batch by batch and keeps what its result needs."""

from collections.abc import Sequence

from cogview3.config import UserError
from cogview3.evaluation.metrics.base import Drawn, Metric, Setting
from cogview3.evaluation.metrics.distances import FidMetric, FrechetMetric
from cogview3.evaluation.metrics.scene import SceneMetric
from cogview3.evaluation.metrics.scored import SCORER_METRICS, ScorerMetric
from cogview3.evaluation.prompt import Prompt

__all__ = ["METRICS", "Drawn", "FrechetMetric", "Metric", "SceneMetric", "ScorerMetric", "Setting", "make_metrics"]

METRICS: dict[str, type[Metric]] = {
    "frechet": FrechetMetric,
    "fid": FidMetric,
    "scene": SceneMetric,
    **SCORER_METRICS,
}
"""All metrics by name."""


def make_metrics(
    names: Sequence[str], prompts: Sequence[Prompt], seed: int, setting: Setting | None = None
) -> dict[str, Metric]:
    """Fresh metrics by name. Raises UserError for an unknown name, or prompts that a metric cannot use."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"no metric {name!r}: choose from {', '.join(sorted(METRICS))}")
    return {name: METRICS[name](prompts, seed, setting) for name in names}
