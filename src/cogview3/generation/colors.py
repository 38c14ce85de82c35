"""Keeping a picture's colors while it is redrawn: the lowest frequencies are those of the input picture."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SPREAD = 2.0
"""Standard deviation, in latents, of the Gaussian that tells colors from detail: 16 pixels."""


def low_frequencies(latents: Tensor, spread: float = SPREAD) -> Tensor:
    """Latents (B, C, h, w) under a Gaussian of standard deviation `spread`, borders repeated: the same shape."""
    reach = math.ceil(3 * spread)
    offsets = torch.arange(-reach, reach + 1, device=latents.device, dtype=latents.dtype)
    kernel = torch.exp(-0.5 * (offsets / spread).square())
    kernel = kernel / kernel.sum()
    channels = latents.shape[1]
    padded = F.pad(latents, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def with_colors_of(latents: Tensor, reference: Tensor) -> Tensor:
    """Latents (B, C, h, w) whose low frequencies are replaced by those of `reference`, of the same shape."""
    return latents + low_frequencies(reference - latents)
