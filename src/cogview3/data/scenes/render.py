"""Scenes to pictures: antialiased sprites, cached, pasted with integer arithmetic.

Fine detail (stripes, dots, checks, outlines, tiles) has periods that are fixed fractions of the side, anchored to
the object's center or to the picture's corner: at 256 pixels an 8x VAE can hold them, at 128 it hardly can.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from cogview3.config import UserError
from cogview3.data.scenes.scene import FILLS, SHAPES, SIZES, Scene
from cogview3.data.scenes.things import premultiplied

OBJECT_COLORS = {  # main color and accent (of stripes, dots and checks), RGB
    "red": ((222, 42, 42), (255, 176, 166)),
    "orange": ((250, 128, 16), (124, 44, 4)),
    "yellow": ((246, 204, 20), (138, 92, 0)),
    "green": ((30, 150, 62), (138, 226, 142)),
    "cyan": ((0, 196, 206), (0, 92, 112)),
    "blue": ((36, 78, 214), (142, 176, 255)),
    "purple": ((124, 44, 170), (208, 152, 242)),
    "pink": ((248, 108, 178), (150, 24, 96)),
}
GROUND_COLORS = {  # ground and the lines of its tiles, RGB
    "white": ((248, 248, 244), (136, 136, 138)),
    "gray": ((158, 158, 164), (58, 58, 64)),
    "black": ((28, 28, 34), (132, 132, 140)),
    "yellow": ((255, 240, 150), (156, 132, 40)),
    "blue": ((180, 214, 250), (74, 108, 156)),
    "green": ((188, 234, 182), (78, 130, 76)),
}
OUTLINE_DARK, OUTLINE_LIGHT = (16, 16, 20), (252, 252, 252)

STRIPE_PERIOD = 3 / 64
DOT_PERIOD, DOT_RADIUS = 1 / 16, 5 / 256
CHECK_PERIOD = 9 / 128
OUTLINE_WIDTH = 1 / 64
TILE_PERIOD, TILE_LINE = 1 / 16, 1 / 128

SUPERSAMPLING = 4
MAX_SIZE = 4096


def render(scene: Scene, size: int) -> np.ndarray:
    """Draw a scene as a picture, (size, size, 3) uint8 RGB.

    Raises UserError for a size outside 32 to 4096, or an unknown shape or fill.
    """
    if not isinstance(size, int | np.integer) or not 32 <= size <= MAX_SIZE:
        raise UserError(f"a scene cannot be drawn at size {size!r}; give a whole number of pixels, 32 to {MAX_SIZE}")
    picture = _ground(scene.ground, scene.texture, size).copy()
    for item in scene.objects:
        if item.thing is not None:
            color, keep = thing_sprite(item.thing, item.size, size)
        else:
            line = (OUTLINE_LIGHT if scene.ground == "black" else OUTLINE_DARK) if item.outline else None
            color, keep = _sprite(item.shape, item.color, item.fill, line, item.size, size)
        side = color.shape[0]
        left, top = round(item.x * size - side / 2), round(item.y * size - side / 2)
        region = picture[top : top + side, left : left + side]
        region[...] = (region * keep + color) >> 8
    return picture


@lru_cache(maxsize=64)
def _ground(name: str, texture: str, size: int) -> np.ndarray:
    base, line = (np.array(color, float) for color in GROUND_COLORS[name])
    if texture == "plain":
        return np.tile(base.round().astype(np.uint8), (size, size, 1))
    along = (np.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING)
    inside = (_periodic(along, TILE_PERIOD) < TILE_LINE).reshape(size, SUPERSAMPLING).mean(1)
    share = np.maximum(inside[:, None], inside[None, :])[..., None]
    return (base + share * (line - base)).round().astype(np.uint8)


@lru_cache(maxsize=4096)
def _sprite(
    shape: str, color: str, fill: str, line: tuple | None, name: str, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied color (n, n, 3) and the share of the ground kept (n, n, 1), both uint16 of 256ths."""
    shares = _layer_shares(shape, fill, line is not None, name, size)
    colors = np.array([*OBJECT_COLORS[color], line or (0, 0, 0)], float)
    keep = 256 - (shares.sum(-1, keepdims=True) * 256)
    return (shares @ colors * 256).round().astype(np.uint16), keep.round().astype(np.uint16)


@lru_cache(maxsize=1024)
def thing_sprite(thing: str, name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A thing's premultiplied color (n, n, 3) and the share of the ground kept (n, n, 1), both uint16 of 256ths."""
    layers = premultiplied(thing, 2 * round(SIZES[name] * size / 2))
    cover = (layers[..., 3:] * 256).round()
    color = np.minimum((layers[..., :3] * 255 * 256).round(), 255 * cover)  # a sum over 255 would wrap round
    return color.astype(np.uint16), (256 - cover).astype(np.uint16)


@lru_cache(maxsize=1024)
def _layer_shares(shape: str, fill: str, outlined: bool, name: str, size: int) -> np.ndarray:
    """Share of each pixel that main color, accent and outline cover, (n, n, 3) in [0, 1]."""
    mask = shape_mask(shape, name, size, SUPERSAMPLING)
    accent = fill_pattern(fill, mask.shape[0], size * SUPERSAMPLING)
    border = _border(shape, name, size) if outlined else np.zeros_like(mask)
    layers = np.stack([mask & ~accent & ~border, mask & accent & ~border, border], -1)
    n = mask.shape[0] // SUPERSAMPLING
    return layers.reshape(n, SUPERSAMPLING, n, SUPERSAMPLING, 3).mean((1, 3))


@lru_cache(maxsize=128)
def _border(shape: str, name: str, size: int) -> np.ndarray:
    mask = shape_mask(shape, name, size, SUPERSAMPLING)
    return mask & (depth(mask) <= OUTLINE_WIDTH * size * SUPERSAMPLING)


def depth(mask: np.ndarray) -> np.ndarray:
    """Distance in pixels from each pixel of a mask to the nearest one outside."""
    return distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def shape_mask(shape: str, size_name: str, size: int, scale: int = 1) -> np.ndarray:
    """Inside of a shape, (n, n) bool, n = scale times the even number of pixels that the object's side takes."""
    n = 2 * round(SIZES[size_name] * size / 2) * scale
    image = Image.new("L", (n, n))
    draw = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, n - 1, n - 1), fill=1)
        if shape == "ring":
            hole = n * 0.25
            draw.ellipse((hole, hole, n - 1 - hole, n - 1 - hole), fill=0)
    else:
        draw.polygon([((x + 1) * n / 2, (y + 1) * n / 2) for x, y in _polygon(shape)], fill=1)
    return np.array(image, bool)


def _polygon(shape: str) -> list[tuple[float, float]]:
    """Corners in [-1, 1], y downwards."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0.0, -0.92), (1.0, 0.92), (-1.0, 0.92)]
    if shape == "diamond":
        return [(0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0)]
    if shape == "cross":
        arm = 0.36
        corner = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        return corner + [(-x, -y) for x, y in corner]
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.05, 0.48)
        return [(r * np.sin(a), 0.06 - r * np.cos(a)) for r, a in zip(radii, angles, strict=True)]
    if shape != "heart":
        raise UserError(f"shape {shape!r} cannot be drawn; give one of {', '.join(SHAPES)}")
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    x, y = np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15
    return [(a, b - 0.17) for a, b in zip(x, y, strict=True)]


def fill_pattern(fill: str, side: int, picture_side: int) -> np.ndarray:
    """Where a fill shows its accent color, (side, side) bool, anchored to the center of the object."""
    y, x = np.meshgrid(*[(np.arange(side) + 0.5 - side / 2) / picture_side] * 2, indexing="ij")
    if fill == "plain":
        return np.zeros((side, side), bool)
    if fill == "striped":
        return _periodic(y, STRIPE_PERIOD) < STRIPE_PERIOD / 2
    if fill == "checkered":
        half = CHECK_PERIOD / 2
        return (np.floor(x / half) + np.floor(y / half)) % 2 == 0
    if fill != "dotted":
        raise UserError(f"fill {fill!r} cannot be drawn; give one of {', '.join(FILLS)}")
    center = DOT_PERIOD / 2
    return np.hypot(_periodic(x, DOT_PERIOD) - center, _periodic(y, DOT_PERIOD) - center) < DOT_RADIUS


def _periodic(values: np.ndarray, period: float) -> np.ndarray:
    return values - np.floor(values / period) * period
