"""How a model's pictures respond to guidance, compared with another model's.

A student that takes guidance w as a condition is to change its pictures with w as its teacher does by running two
branches. Both draw a prompt from the same noise at two scales; what changed is compared, picture by picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cogview3.evaluation.intervals import bounds, picks

CELL = 8
"""Side in pixels of the cells whose means are compared beside the pixels: what a viewer sees from further away."""


class Response:
    """Compares the changes of a model's pictures with the reference's, batch by batch, once a pixel and once a cell."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._correlations: dict[str, list[Tensor]] = {"pixels": [], "cells": []}
        self._squares: dict[str, list[Tensor]] = {"pixels": [], "cells": []}

    def update(self, changes: Tensor, reference: Tensor) -> None:
        """Take in the differences of a batch's pictures, (B, C, H, W), sides of at least 8; `reference` alike."""
        for name, size in (("pixels", 1), ("cells", CELL)):
            pair = [functional.avg_pool2d(values.float(), size).flatten(1) for values in (changes, reference)]
            self._correlations[name].append(correlations(*pair))
            self._squares[name].append(squares(*pair))

    def result(self) -> dict[str, Any]:
        """Figures of all pictures so far.

        Returns:
            `summarize` of the pixels' correlations; "r2" and "r2_interval" (`pooled_r2`) of the pixels; and under
            "cells" the same of the means of 8 x 8 pixels.
        """
        figures = {
            name: summarize(torch.cat(self._correlations[name])) | pooled_r2(torch.cat(self._squares[name]), self._seed)
            for name in ("pixels", "cells")
        }
        return figures["pixels"] | {"cells": figures["cells"]}


def correlations(changes: Tensor, reference: Tensor) -> Tensor:
    """Pearson's correlation of each picture's change with the reference's, of one batch at a time.

    Both are differences of pictures from the same noise, (B, values). Returns (B,), float64; nan where one of the two
    did not change at all.
    """
    own, other = (values.double() - values.double().mean(1, keepdim=True) for values in (changes, reference))
    norms = own.norm(dim=1) * other.norm(dim=1)
    return torch.where(norms > 0, (own * other).sum(1) / norms, torch.nan)


def squares(changes: Tensor, reference: Tensor) -> Tensor:
    """What `pooled_r2` adds up of each picture, (B, 4), float64; arguments as in `correlations`.

    Squared error of the change, and of the reference's its squares, its sum and its number of values.
    """
    own, other = changes.double(), reference.double()
    counts = torch.full((len(own),), own.shape[1], dtype=torch.float64)
    parts = ((own - other).square().sum(1), other.square().sum(1), other.sum(1), counts.to(own.device))
    return torch.stack(parts, 1).cpu()


def pooled_r2(parts: Tensor, seed: int = 0) -> dict[str, Any]:
    """R^2 of the changes as a prediction of the reference's, over all values of all pictures together.

    1 - sum (change - reference)^2 / sum (reference - mean)^2. A change of the right pattern and half the strength has a
    correlation of 1 and an R^2 of 0.75; pictures that change a lot count for more than ones that hardly do.

    `parts` are `squares` of the pictures, (N, 4).

    Returns:
        "r2", None where the reference did not change; "r2_interval", its 95 % interval by resampling pictures with
        replacement, None of fewer than two pictures.
    """
    table = parts.numpy()
    errors, raw, sums, counts = np.vstack([table.sum(0), picks(len(table), seed) @ table]).T
    spread = raw - sums**2 / counts
    values = 1 - np.divide(errors, spread, out=np.full_like(errors, np.nan), where=spread > 0)
    whole, draws = values[0], values[1:]
    interval = None if len(table) < 2 or np.isnan(draws).any() else bounds(draws)
    return {"r2": None if np.isnan(whole) else float(whole), "r2_interval": interval}


def summarize(values: Tensor) -> dict[str, Any]:
    """The mean of pictures' correlations, (N,).

    Returns:
        "correlation", the mean; its 95 % "interval" by the normal distribution, None of fewer than two pictures;
        "pictures" in the mean: those without a correlation (nan) are left out. None and None where all are.
    """
    found = values[~values.isnan()].cpu().numpy()
    count = len(found)
    figures: dict[str, Any] = {"correlation": float(found.mean()) if count else None, "interval": None}
    if count > 1:
        mean, margin = figures["correlation"], float(1.96 * found.std(ddof=1) / np.sqrt(count))
        figures["interval"] = [mean - margin, mean + margin]
    return figures | {"pictures": count}


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of each pair of scales, under the heads of a table's columns."""
    table: dict[str, Any] = {}
    for row in rows:
        pair = "{:g} to {:g}".format(*row["guidance"])
        table |= {pair: row["correlation"], f"{pair}, cells": row["cells"]["correlation"]}
        table |= {f"{pair}, R²": row["r2"], f"{pair}, cells' R²": row["cells"]["r2"]}
    return table
