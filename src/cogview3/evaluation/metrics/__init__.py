"""Metrics of drawn pictures, by name. Each sees the pictures batch by batch and keeps what its result needs."""

from cogview3.evaluation.metrics.base import METRICS, Drawn, Metric, Setting, make_metrics
from cogview3.evaluation.metrics.distances import FrechetMetric
from cogview3.evaluation.metrics.scene import SceneMetric
from cogview3.evaluation.metrics.scored import ScorerMetric

__all__ = ["METRICS", "Drawn", "FrechetMetric", "Metric", "SceneMetric", "ScorerMetric", "Setting", "make_metrics"]
