"""Sheets of pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

GRID_PICTURES, GRID_COLUMNS = 24, 8


def side_by_side(picture: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    """A picture, (H, W, 3) uint8, to the right of its base picture where there is one, enlarged bilinearly."""
    if base is None:
        return picture
    size = picture.shape[1], picture.shape[0]
    return np.hstack([np.asarray(Image.fromarray(base).resize(size, Image.Resampling.BILINEAR)), picture])


def grid(tiles: Sequence[np.ndarray]) -> Image.Image:
    """Tiles (H, W, 3), uint8, of one size, row by row: 8 pictures' heights wide at most, and as high as it takes."""
    height, width = tiles[0].shape[:2]
    columns = min(len(tiles), max(1, GRID_COLUMNS * height // width))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (number % columns * width, number // columns * height))
    return sheet
