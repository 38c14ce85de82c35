"""Whether a picture that was drawn in tiles shows where they meet."""

import numpy as np

from cogview3.config import UserError
from cogview3.generation.tiles import tile_starts


def seam_ratio(picture: np.ndarray, tile_size: int, cell: int = 8) -> float:
    """How much a picture jumps where tiles begin and end, against how much it does elsewhere.

    The mean absolute difference of neighboring pixels across tile borders over that of all other neighbors, of rows and
    columns together: 1 where borders are like any other place, much more where they show. A picture's own edges count
    too, so compare with the same picture drawn whole.

    Args:
        picture: (H, W, C), any numbers.
        tile_size: side of the tiles in pixels.
        cell: pixels of a latent; tiles begin at whole latents.

    Raises:
        UserError: one tile covers everything.
    """
    across, inside = [], []
    for axis in (0, 1):
        length = picture.shape[axis]
        starts = np.array(tile_starts(length // cell, tile_size // cell)) * cell
        jumps = np.abs(np.diff(picture.astype(np.float64), axis=axis)).mean(axis=(1 - axis, 2))
        places = np.unique(np.concatenate([starts[1:], starts[:-1] + tile_size])) - 1
        places = places[(places >= 0) & (places < len(jumps))]
        border = np.zeros(len(jumps), bool)
        border[places] = len(starts) > 1
        across.append(jumps[border])
        inside.append(jumps[~border])
    borders = np.concatenate(across)
    if not len(borders):
        raise UserError(f"a tile of {tile_size} pixels covers the whole picture: there are no borders to measure")
    return float(borders.mean() / max(np.concatenate(inside).mean(), 1e-12))
