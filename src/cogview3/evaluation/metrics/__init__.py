"""Metrics of drawn pictures, by name. Each sees the pictures batch by batch and keeps what its result needs."""

from cogview3.evaluation.intervals import bootstrap_interval, paired
from cogview3.evaluation.metrics import distances, scored
from cogview3.evaluation.metrics.base import METRICS, Drawn, Metric, Setting, make_metrics, register
from cogview3.evaluation.metrics.scene import SceneMetric, enlarge_to, gradient_energy
from cogview3.evaluation.metrics.shares import summarize_row

FrechetMetric = distances.FrechetMetric
ScorerMetric = scored.ScorerMetric

__all__ = [
    "METRICS",
    "Drawn",
    "FrechetMetric",
    "Metric",
    "SceneMetric",
    "ScorerMetric",
    "Setting",
    "bootstrap_interval",
    "enlarge_to",
    "gradient_energy",
    "make_metrics",
    "paired",
    "register",
    "summarize_row",
]
