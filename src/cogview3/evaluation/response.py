"""How a model's pictures answer guidance, against how another's do.

A student that takes guidance w as a condition is to change its pictures with w as its teacher does by running two
branches. Both draw a prompt from the same noise at two scales; what changed is compared, picture by picture.
"""

from typing import Any

import numpy as np
from torch import Tensor


def correlation(changes: Tensor, reference: Tensor) -> dict[str, Any]:
    """Pearson's correlation of each picture's change with the reference's.

    Args:
        changes: differences of pictures, (N, values).
        reference: the same of the other model, from the same noise.

    Returns:
        "correlation", the mean over pictures; its 95 % "interval" by the normal distribution; "pictures" in the mean:
        one that did not change at all has no correlation and is left out. None and None where all are.
    """
    own, other = (values.double() - values.double().mean(1, keepdim=True) for values in (changes, reference))
    norms = own.norm(dim=1) * other.norm(dim=1)
    moved = norms > 0
    values = ((own * other).sum(1)[moved] / norms[moved]).numpy()
    if not len(values):
        return {"correlation": None, "interval": None, "pictures": 0}
    mean, margin = float(values.mean()), float(1.96 * values.std() / np.sqrt(len(values)))
    return {"correlation": mean, "interval": [mean - margin, mean + margin], "pictures": len(values)}
