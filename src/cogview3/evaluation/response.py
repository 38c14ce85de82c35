"""How a model's pictures answer guidance, against how another's do.

A student that takes guidance w as a condition is to change its pictures with w as its teacher does by running two
branches. Both draw a prompt from the same noise at two scales; what changed is compared, picture by picture.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def correlations(changes: Tensor, reference: Tensor) -> Tensor:
    """Pearson's correlation of each picture's change with the reference's, of one batch at a time.

    Args:
        changes: differences of pictures, (B, values).
        reference: the same of the other model, from the same noise.

    Returns:
        (B,), float64; nan where one of the two did not change at all.
    """
    own, other = (values.double() - values.double().mean(1, keepdim=True) for values in (changes, reference))
    norms = own.norm(dim=1) * other.norm(dim=1)
    return torch.where(norms > 0, (own * other).sum(1) / norms, torch.nan)


def summarize(values: Tensor) -> dict[str, Any]:
    """The mean of pictures' correlations, (N,).

    Returns:
        "correlation", the mean; its 95 % "interval" by the normal distribution, None of fewer than two pictures;
        "pictures" in the mean: those without a correlation (nan) are left out. None and None where all are.
    """
    found = values[~values.isnan()].numpy()
    count = len(found)
    figures: dict[str, Any] = {"correlation": float(found.mean()) if count else None, "interval": None}
    if count > 1:
        mean, margin = figures["correlation"], float(1.96 * found.std(ddof=1) / np.sqrt(count))
        figures["interval"] = [mean - margin, mean + margin]
    return figures | {"pictures": count}
