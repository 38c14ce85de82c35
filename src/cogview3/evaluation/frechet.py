"""Fréchet distance between two models' pictures, in a small fixed feature space.

Heusel et al. 2017 (arXiv 1706.08500) with features that need no network: pictures of the built-in world differ in
where which colors are and how much fine detail there is, and that is what the features hold. 64 of them are few enough
for some hundred pictures. Distances in this space compare models with each other, not with published figures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 4
"""Cells of a picture along each side."""


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
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) of two sets of features, (N, D) and (M, D), float64."""
    difference = first.mean(0) - second.mean(0)
    covariances = first.T.cov(), second.T.cov()
    # C_1 C_2 has the eigenvalues of C_1^(1/2) C_2 C_1^(1/2): real, and not negative but for rounding
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt()
    traces = sum(covariance.trace() for covariance in covariances)
    return float(difference.square().sum() + traces - 2 * roots.sum())
