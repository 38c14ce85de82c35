"""Large pictures piece by piece: overlapping tiles, blended with Gaussian weights, in bounded memory.

Mixture of Diffusers (Jimenez 2023, arXiv 2302.02412): at every step the network predicts each tile by itself, and
where tiles overlap the predictions are averaged with weights that fall off from a tile's middle. The autoencoder's
two halves are cut up in the same way. Lengths are in cells: a latent, or the 8 x 8 pixels that it stands for.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

OVERLAP = 1 / 3
"""Least share of its side that a tile has in common with the next one."""

SPREAD = 1 / 8
"""Standard deviation of a tile's weights, as a share of its side.

Together with `OVERLAP`: where a tile ends its share has fallen to 0.001, and from one tile to the next it takes a
tenth of a side. A narrower Gaussian or less overlap makes the change abrupt, a wider one leaves a border.
"""


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles of `tile` cells begin so that they cover `length` cells, evenly spread, by at least `OVERLAP`."""
    if length <= tile:
        return [0]
    count = 1 + math.ceil((length - tile) / (tile * (1 - OVERLAP)))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def tile_weights(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Weight of each place in a tile, (height, width), float32: a Gaussian around the middle, above 0."""
    along = [((torch.arange(side, device=device) + 0.5) / side - 0.5) / SPREAD for side in (height, width)]
    rows, columns = (torch.exp(-0.5 * offsets.square()) for offsets in along)
    return rows[:, None] * columns


def blend_tiles(
    function: Callable[[Tensor], Tensor], values: Tensor, tile: int | None, cell: int = 1, cell_out: int = 1
) -> Tensor:
    """Apply a function tile by tile, and blend what it returns.

    Args:
        function: maps (B, C, h * cell, w * cell) to (B, C', h * cell_out, w * cell_out).
        values: (B, C, H * cell, W * cell).
        tile: side of a tile in cells; None, or one that covers everything, calls the function once, on `values`.
        cell: side of a cell in `values`: 1 for latents, 8 for pictures.
        cell_out: the same in what the function returns.

    Returns:
        (B, C', H * cell_out, W * cell_out), float32 where there is more than one tile.
    """
    height, width = (side // cell for side in values.shape[2:])
    if tile is None or max(height, width) <= tile:
        return function(values)
    canvas: tuple[Tensor, Tensor] | None = None  # sums of what is weighted, and of weights
    for rows, columns in _tiles(height, width, tile):
        part = function(values[:, :, _scaled(rows, cell), _scaled(columns, cell)]).float()
        weights = tile_weights(part.shape[2], part.shape[3], part.device)
        if canvas is None:  # how many channels there are, the first tile shows
            whole = height * cell_out, width * cell_out
            canvas = part.new_zeros(*part.shape[:2], *whole), part.new_zeros(whole)
        total, sums = canvas
        place = _scaled(rows, cell_out), _scaled(columns, cell_out)
        total[:, :, *place] += weights * part
        sums[place] += weights
    return total.div_(sums)


def _tiles(height: int, width: int, tile: int) -> Iterator[tuple[slice, slice]]:
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            yield slice(top, min(top + tile, height)), slice(left, min(left + tile, width))


def _scaled(cells: slice, cell: int) -> slice:
    return slice(cells.start * cell, cells.stop * cell)
