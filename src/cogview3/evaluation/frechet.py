"""Fréchet distance between two models' pictures, in a small fixed feature space.

Heusel et al. 2017 (arXiv 1706.08500) with features that need no network: pictures of the built-in world differ in
where which colors are and how much fine detail there is, and that is what the features hold. 64 of them are few enough
for some hundred pictures. Distances in this space compare models with each other, not with published figures.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cogview3.evaluation.intervals import bounds

CELLS = 4
"""Cells of a picture along each side."""

RESAMPLES = 200
"""Draws of the bootstrap."""

FEWEST = 100
"""The least number of pictures whose distance is extrapolated."""

_PARTS = (0.4, 0.6, 0.8, 1.0)  # of the pictures: the counts through which the line is laid
_SUBSETS = 4  # of each count below all


def features(pictures: Tensor) -> Tensor:
    """64 numbers a picture: of each of 4 x 4 cells the mean color and the root of the gradient energy.

    Args:
        pictures: (B, 3, H, W) in [-1, 1], sides of at least 8.

    Returns:
        (B, 64), float64, on the CPU.
    """
    pictures = pictures.cpu().double()  # some devices have no float64
    colors = F.adaptive_avg_pool2d(pictures, CELLS)
    across, down = (pictures.diff(dim=axis).square().sum(1, keepdim=True) for axis in (-1, -2))
    energy = F.adaptive_avg_pool2d(across, CELLS) + F.adaptive_avg_pool2d(down, CELLS)
    return torch.cat([colors, energy.sqrt()], 1).flatten(1)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) of two sets of features, (N, D) and (M, D), float64.

    With centered X and Y, C_1 = X^T X / (N - 1) and alike: the root's trace is the sum of the singular values of
    X Y^T / ((N - 1) (M - 1))^(1/2), which is the smaller matrix where there are fewer pictures than features.
    """
    difference = first.mean(0) - second.mean(0)
    if len(first) * len(second) < first.shape[1] ** 2:
        centered = [(each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (first, second)]
        traces = sum(each.square().sum() for each in centered)
        root = torch.linalg.svdvals(centered[0] @ centered[1].T).sum()
        return float(difference.square().sum() + traces - 2 * root)
    return _distance(difference, first.T.cov(), second.T.cov())


def distance_of_statistics(features: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """The same of features (N, D) and another set's mean (D,) and covariance (D, D), float64."""
    return _distance(features.mean(0) - mean, features.T.cov(), covariance)


def _distance(difference: Tensor, first: Tensor, second: Tensor) -> float:
    # C_1 C_2 has the eigenvalues of C_1^(1/2) C_2 C_1^(1/2): real, and not negative but for rounding
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt()
    return float(difference.square().sum() + first.trace() + second.trace() - 2 * roots.sum())


def compare(first: Tensor, second: Tensor, seed: int = 0) -> dict[str, Any]:
    """The distance of two sets of features, (N, D) each and row by row of the same prompts, and what N hides of it.

    A distance of N pictures is too large, by a term that falls as 1/N. Extrapolating it along 1/N to infinitely many
    takes that off (Chong & Forsyth 2020, arXiv 1911.07023).

    Returns:
        "distance" of all pictures; "extrapolated" to infinitely many, which may fall a little below 0; and its 95 %
        "interval", by resampling pictures with replacement. None of fewer than 100 pictures.
    """
    distance = frechet_distance(first, second)
    figures: dict[str, Any] = {"distance": distance, "extrapolated": None, "interval": None}
    count = len(first)
    if count < FEWEST:
        return figures
    figures["extrapolated"], figures["interval"] = _with_interval(
        count, distance, seed, lambda *how: _extrapolated(first, second, *how)
    )
    return figures


def difference(first: Tensor, second: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Any]:
    """By how much the first set's distance to a reference exceeds the second's, sets of features of equal counts.

    Returns:
        "difference", of the extrapolated distances, and its 95 % "interval", as in `compare`; of fewer than 100
        pictures the plain distances', and None.
    """
    plain = frechet_distance(first, reference) - frechet_distance(second, reference)
    if len(first) < FEWEST:
        return {"difference": plain, "interval": None}

    def both(rows: np.ndarray, rng: np.random.Generator, *subsets: int) -> float:
        same = int(rng.integers(2**63))  # subsets for the two
        own, other = (
            _extrapolated(each, reference, rows, np.random.default_rng(same), *subsets) for each in (first, second)
        )
        return own - other

    found, interval = _with_interval(len(first), plain, seed, both)
    return {"difference": found, "interval": interval}


def _with_interval(
    count: int, plain: float, seed: int, extrapolated: Callable[..., float]
) -> tuple[float, list[float]]:
    """A figure of all pictures, called with their rows, and its 95 % interval, by the bootstrap."""
    rng = np.random.default_rng(seed)
    found = extrapolated(np.arange(count), rng)
    draws = [extrapolated(rng.integers(count, size=count), rng, 1) for _ in range(RESAMPLES)]
    # what is drawn from is the pictures at hand, whose figure is known: by so much a draw misses it, this one misses
    missed = bounds(np.array(draws) - plain)
    return found, [found - missed[1], found - missed[0]]


def _extrapolated(
    first: Tensor, second: Tensor, rows: Sequence[int] | np.ndarray, rng: np.random.Generator, subsets: int = _SUBSETS
) -> float:
    """Where the line through the distances of some of the `rows`, over 1 / their number, meets 0."""
    inverse, distances = [], []
    for part in _PARTS:
        size = round(part * len(rows))
        for _ in range(subsets if size < len(rows) else 1):
            chosen = torch.from_numpy(rng.permutation(rows)[:size])
            inverse.append(1 / size)
            distances.append(frechet_distance(first[chosen], second[chosen]))
    return float(np.polyfit(inverse, distances, 1)[1])
