"""95 % intervals by the bootstrap: whole pictures, or all pictures of a prompt, are resampled."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from cogview3.data.scenes.score import Score

RESAMPLES = 1000
"""Draws of the bootstrap."""

_BOUNDS = [0.025, 0.975]


def picks(count: int, seed: int | np.random.Generator, draws: int = RESAMPLES) -> np.ndarray:
    """How often each of `count` units is in each draw of as many, with replacement, (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def bounds(draws: np.ndarray | Sequence[float]) -> list[float]:
    """The 95 % interval [low, high] of a figure's values over the draws."""
    return [float(bound) for bound in np.quantile(draws, _BOUNDS)]


def bootstrap_interval(scores: Sequence[Score], seed: int) -> list[float]:
    """The 95 % interval [low, high] of the share of right facts, by resampling pictures with replacement."""
    right, total = (np.array(values) for values in zip(*((item.right, item.total) for item in scores), strict=True))
    (found,) = share_intervals(right[:, None], total[:, None], seed)
    assert found is not None
    return found


def share_intervals(right: np.ndarray, total: np.ndarray, seed: int) -> list[list[float] | None]:
    """The 95 % intervals of several shares of right facts at once, by resampling pictures with replacement.

    `right` and `total` facts are (pictures, groups); the draws are the same for every group.

    Returns:
        [low, high] of each group; None of one without facts. Draws without any of its facts are left out.
    """
    drawn = picks(len(right), seed)
    rights, totals = drawn @ right, drawn @ total
    shares = np.divide(rights, totals, out=np.full(rights.shape, np.nan), where=totals > 0)
    intervals: list[list[float] | None] = []
    for column, any_facts in zip(shares.T, total.sum(0) > 0, strict=True):
        found = column[~np.isnan(column)]
        intervals.append(bounds(found) if any_facts else None)
    return intervals


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable], seed: int) -> list[float] | None:
    """The 95 % interval of a mean, all values of a cluster drawn together; None of fewer than two clusters."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < 2:
        return None
    sums, counts = np.zeros(len(numbers)), np.zeros(len(numbers))
    places = [numbers[name] for name in clusters]
    np.add.at(sums, places, values)
    np.add.at(counts, places, 1)
    drawn = picks(len(numbers), seed)
    return bounds((drawn @ sums) / (drawn @ counts))


def paired(scores: Sequence[Score], reference: Sequence[Score], seed: int) -> dict[str, Any]:
    """Shares of right facts of two models on the same prompts: quotient and difference.

    Returns:
        "ratio" and "difference" to the reference, with their 95 % intervals "ratio_interval" and "interval", by
        resampling prompts with replacement, the same ones for both. Where nothing of the reference is right, there
        is no ratio, and where that is so of some draw, no interval: None.
    """
    counts = np.array(
        [[own.right, own.total, other.right, other.total] for own, other in zip(scores, reference, strict=True)]
    )
    drawn = picks(len(counts), seed)
    right, total, right_reference, total_reference = np.vstack([counts.sum(0), drawn @ counts]).T
    own, other = right / total, right_reference / total_reference
    ratios = np.divide(own, other, out=np.full_like(own, np.nan), where=other > 0)
    figures: dict[str, Any] = {}
    for key, interval, values in (("ratio", "ratio_interval", ratios), ("difference", "interval", own - other)):
        figures |= {key: None if np.isnan(values[0]) else float(values[0])}
        figures |= {interval: None if np.isnan(values).any() else bounds(values[1:])}
    return figures
