"""Metrics for Prometheus."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)


class Metrics:
    """Counts requests, pictures and batches, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self._registry, "namespace": "cogview3"}
        self._requests = Counter("requests", "Answers by path and status.", ["path", "status"], **options)
        self._pictures = Counter("pictures", "Pictures by mode and outcome.", ["mode", "outcome"], **options)
        self._seconds = Histogram(
            "picture_seconds",
            "Seconds that a picture was drawn, without waiting.",
            ["mode"],
            buckets=SECONDS,
            **options,
        )
        self._batches = Histogram(
            "batch_pictures", "Pictures drawn together in a stage.", buckets=(1, 2, 4, 8, 16, 32), **options
        )
        self._busy = Counter("busy_seconds", "Seconds in which something was drawn.", **options)

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Show a number that is asked for whenever the figures are."""
        Gauge(name, help_text, registry=self._registry, namespace="cogview3").set_function(value)

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(path, status).inc()

    def finished(self, mode: str, outcome: str, seconds: float | None = None) -> None:
        """Count a picture that was "drawn", "failed" or "canceled"."""
        self._pictures.labels(mode, outcome).inc()
        if seconds is not None:
            self._seconds.labels(mode).observe(seconds)

    def batch(self, pictures: int, seconds: float) -> None:
        """Count a stage of so many pictures."""
        self._batches.observe(pictures)
        self._busy.inc(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)
