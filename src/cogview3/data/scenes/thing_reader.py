"""Finds drawn things in a picture: compares every thing of the atlas, at every size, with what lies on the ground.

Nothing is learned. A picture, its ground taken away, is compared with each drawing on the same ground by

    likeness = 2 <picture, drawing> / (|picture|^2 + |drawing|^2)

over the drawing's support and a rim around it: 1 where they are equal, 0 where they have nothing in common. All places
are compared at once, by Fourier transforms at an eighth of the reader's resolution.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft
from scipy.ndimage import binary_dilation, gaussian_filter

from cogview3.data.scenes import render
from cogview3.data.scenes.scene import SIZES
from cogview3.data.scenes.things import THINGS

REACH = 34.0  # RGB distance from a ground's colors up to which a pixel is ground
CELL = 8  # pixels of the reader's picture in a cell
SOFT = 0.75  # cells: standard deviation of the blur under which a thing and a shape are compared
RIM = 1  # cells around a drawing that have to be ground
COVER = 0.1  # share of a cell that a drawing covers where the cell is of its support
VISIBLE = 20  # difference from the ground, summed over RGB, from which a cell is drawn on
LIKELY = 0.6  # likeness from which a thing is looked at
CANDIDATES = 16  # things that are looked at, at most

NAMES = tuple((thing, size) for thing in THINGS for size in SIZES)


@dataclass(frozen=True)
class Backdrop:
    """A ground as it is drawn: one color, or, tiled, the colors from it to its lines'."""

    ground: str
    texture: str

    @property
    def base(self) -> np.ndarray:
        """The ground's color, (3,) float32, 0 to 255."""
        return np.array(render.GROUND_COLORS[self.ground][0], np.float32)

    def taken_away(self, pixels: np.ndarray) -> np.ndarray:
        """A picture (..., 3), 0 to 255, less the ground's color, and 0 where it shows the ground."""
        difference = pixels - self.base
        away = difference
        if self.texture == "tiled":
            axis = np.array(render.GROUND_COLORS[self.ground][1], np.float32) - self.base
            along = np.clip(np.einsum("...c,c", difference, axis) / (axis @ axis), 0, 1)
            away = difference - along[..., None] * axis
        near = np.einsum("...c,...c", away, away) <= REACH**2
        return np.where(near[..., None], np.float32(0), difference)


@dataclass(frozen=True)
class Candidate:
    """A thing at a place: likeness, 0 to 1, and center (x, y) in cells."""

    likeness: float
    thing: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class _Drawings:
    """All of NAMES on one ground: colors less the ground's (k, n, n, 3), supports with rims (k, n, n), transforms."""

    colors: np.ndarray
    supports: np.ndarray
    energy: np.ndarray
    color_transforms: np.ndarray
    support_transforms: np.ndarray


def to_cells(difference: np.ndarray) -> np.ndarray:
    """Mean over cells of CELL x CELL pixels: (S, S, C) to (S / CELL, S / CELL, C) float32."""
    side = difference.shape[0] // CELL
    return difference.reshape(side, CELL, side, CELL, -1).mean((1, 3), dtype=np.float32)


def likeness(picture: np.ndarray, drawing: np.ndarray, support: np.ndarray) -> float:
    """Likeness, 0 to 1, of two pictures less their ground (n, n, 3) over a support (n, n), both blurred by SOFT."""
    first, second = (gaussian_filter(one, (SOFT, SOFT, 0)) for one in (picture, drawing))
    first, second = first[support], second[support]
    return float(2 * (first * second).sum() / max((first**2).sum() + (second**2).sum(), 1e-6))


def drawing_at(candidate: Candidate, backdrop: Backdrop, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A candidate as a picture less its ground (side, side, 3), and its support with the rim (side, side)."""
    drawings = _drawings(backdrop, side)
    index = NAMES.index((candidate.thing, candidate.size))
    shift = round(candidate.y - side / 2), round(candidate.x - side / 2)
    return tuple(np.roll(part[index], shift, (0, 1)) for part in (drawings.colors, drawings.supports > 0))


def candidates(cells: np.ndarray, backdrop: Backdrop) -> list[Candidate]:
    """Things that may be in a picture less its ground, (n, n, 3), the likeliest first, no two at the same place."""
    side = cells.shape[0]
    drawings = _drawings(backdrop, side)
    spectrum = fft.rfft2(cells.transpose(2, 0, 1))
    product = sum(drawings.color_transforms[:, channel] * spectrum[channel] for channel in range(3))
    shared = fft.irfft2(product, (side, side), axes=(1, 2))
    power = fft.rfft2(np.einsum("yxc,yxc->yx", cells, cells))
    energy = fft.irfft2(drawings.support_transforms * power, (side, side), axes=(1, 2))
    scores = 2 * shared / np.maximum(energy + drawings.energy[:, None, None], 1e-6)
    allowed = np.where(_inside(side), scores, 0)
    best, which = allowed.max(0), allowed.argmax(0)
    found = []
    for _ in range(CANDIDATES):
        y, x = np.unravel_index(best.argmax(), best.shape)
        if best[y, x] < LIKELY:
            break
        index = which[y, x]
        center = x + _beyond(scores[index, y, x - 1 : x + 2]), y + _beyond(scores[index, y - 1 : y + 2, x])
        found.append(Candidate(float(best[y, x]), *NAMES[index], *center))
        best[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] = 0
    return found


def _beyond(values: np.ndarray) -> float:
    """How far the parabola through three neighbors has its peak from the middle one, -0.5 to 0.5."""
    bend = values[0] - 2 * values[1] + values[2]
    return float(np.clip((values[0] - values[2]) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0


@lru_cache(maxsize=1)
def _inside(side: int) -> np.ndarray:
    """Where the center of each of NAMES keeps all of it within the picture, give or take a cell, (k, n, n) bool."""
    edge = np.minimum(np.arange(side), side - np.arange(side))
    room = np.minimum(edge[:, None], edge[None, :])
    return np.stack([room >= SIZES[size] * side / 2 - 1 for _, size in NAMES])


@lru_cache(maxsize=16)
def _drawings(backdrop: Backdrop, side: int) -> _Drawings:
    """The drawings of all things in the middle of a picture of `side` cells, on a ground."""
    colors = np.zeros((len(NAMES), side, side, 3), np.float32)
    shares = np.zeros((len(NAMES), side, side), np.float32)
    for index, (thing, size) in enumerate(NAMES):
        color, keep = render.thing_sprite(thing, size, side * CELL)
        canvas = -(-color.shape[0] // (2 * CELL)) * 2 * CELL
        corner = (canvas - color.shape[0]) // 2
        where = slice(corner, corner + color.shape[0])
        cover, drawn = (np.zeros((canvas, canvas, depth), np.float32) for depth in (1, 3))
        cover[where, where] = 1 - keep.astype(np.float32) / 256
        drawn[where, where] = color / 256
        corner = (side - canvas // CELL) // 2
        where = slice(corner, corner + canvas // CELL)
        colors[index, where, where] = to_cells(backdrop.taken_away(drawn + (1 - cover) * backdrop.base))
        shares[index, where, where] = to_cells(cover)[..., 0]
    supports = binary_dilation(shares > COVER, iterations=RIM, axes=(1, 2)).astype(np.float32)
    centered = (-(side // 2), -(side // 2))
    shifted = np.roll(colors.transpose(0, 3, 1, 2), centered, (2, 3))
    shifted_supports = np.roll(supports, centered, (1, 2))
    return _Drawings(
        colors,
        supports,
        (colors**2).sum((1, 2, 3)),
        np.conj(fft.rfft2(shifted)).astype(np.complex64),
        np.conj(fft.rfft2(shifted_supports)).astype(np.complex64),
    )
