"""Pictures against slow renderings from closed forms, written down here without the renderer's masks."""

import numpy as np
import pytest

from cogview3.config import UserError
from cogview3.data.scenes.render import (
    CHECK_PERIOD,
    DOT_PERIOD,
    DOT_RADIUS,
    GROUND_COLORS,
    OBJECT_COLORS,
    OUTLINE_DARK,
    OUTLINE_LIGHT,
    OUTLINE_WIDTH,
    STRIPE_PERIOD,
    TILE_LINE,
    TILE_PERIOD,
    render,
)
from cogview3.data.scenes.scene import COLORS, FILLS, GROUNDS, SHAPES, SIZES, Scene, SceneObject, sample_scene

FINE = 8  # samples a pixel and axis of the slow renderings
SIZE = 128


def one(shape="circle", color="red", fill="plain", outline=False, size="medium", ground="white", texture="plain"):
    return Scene(ground, texture, (SceneObject(shape, color, fill, outline, size, 0.5, 0.5),))


def offsets(size=SIZE):
    """Distance of each fine sample from the picture's middle, as fractions of the side: x and y."""
    along = (np.arange(size * FINE) + 0.5) / (size * FINE) - 0.5
    return np.meshgrid(along, along)


def half_side(name, size=SIZE):
    return 2 * round(SIZES[name] * size / 2) / size / 2


def inside(shape, name):
    """Closed forms of the shapes that have simple ones; star and heart are checked by area and symmetry."""
    x, y = (axis / half_side(name) for axis in offsets())
    radius = np.hypot(x, y)
    return {
        "circle": radius < 1,
        "ring": (radius < 1) & (radius > 0.5),
        "square": np.maximum(abs(x), abs(y)) < 0.88,
        "diamond": abs(x) / 0.8 + abs(y) < 1,
        "cross": (np.minimum(abs(x), abs(y)) < 0.36) & (np.maximum(abs(x), abs(y)) < 1),
        "triangle": (abs(y) < 0.92) & (abs(x) < (y + 0.92) / 1.84),
    }[shape]


def accent(fill):
    """Closed forms of the fills: signs of waves, and distances to a lattice."""
    x, y = offsets()
    if fill == "striped":
        return np.sin(2 * np.pi * y / STRIPE_PERIOD) > 0
    if fill == "checkered":
        return np.sin(2 * np.pi * x / CHECK_PERIOD) * np.sin(2 * np.pi * y / CHECK_PERIOD) > 0
    to_dot = [axis - (np.round(axis / DOT_PERIOD - 0.5) + 0.5) * DOT_PERIOD for axis in (x, y)]
    return np.hypot(*to_dot) < DOT_RADIUS


def paint(layers, size=SIZE):
    """Average the fine samples of (mask, color) layers, later ones on top: (size, size, 3) float."""
    fine = np.zeros((size * FINE, size * FINE, 3))
    for mask, color in layers:
        fine[np.broadcast_to(mask, fine.shape[:2])] = color
    return fine.reshape(size, FINE, size, FINE, 3).mean((1, 3))


def assert_same_picture(picture, slow):
    """Edges may move by one of the renderer's four samples a pixel; areas of one color must agree exactly."""
    error = np.abs(picture - slow).max(-1)
    assert error.max() <= 255 * 0.5
    assert error.mean() <= 1.5
    assert np.median(error) <= 1


@pytest.mark.parametrize("shape", ["circle", "ring", "square", "diamond", "cross", "triangle"])
def test_shapes_match_their_closed_forms(shape):
    slow = paint([(True, GROUND_COLORS["white"][0]), (inside(shape, "medium"), OBJECT_COLORS["red"][0])])
    assert_same_picture(render(one(shape), SIZE), slow)


@pytest.mark.parametrize("fill", ["striped", "dotted", "checkered"])
def test_fills_match_their_closed_forms(fill):
    shape = inside("square", "large")
    main, second = OBJECT_COLORS["blue"]
    slow = paint([(True, GROUND_COLORS["white"][0]), (shape, main), (shape & accent(fill), second)])
    assert_same_picture(render(one("square", "blue", fill, size="large"), SIZE), slow)


@pytest.mark.parametrize(("ground", "line"), [("white", OUTLINE_DARK), ("black", OUTLINE_LIGHT)])
def test_outline_lies_inside_the_edge_and_contrasts_with_the_ground(ground, line):
    x, y = offsets()
    ring = inside("circle", "medium") & (np.hypot(x, y) > half_side("medium") - OUTLINE_WIDTH)
    slow = paint([(True, GROUND_COLORS[ground][0]), (inside("circle", "medium"), (222, 42, 42)), (ring, line)])
    assert_same_picture(render(one(outline=True, ground=ground), SIZE), slow)


@pytest.mark.parametrize("ground", GROUNDS)
def test_tiles_are_lines_from_the_corner(ground):
    base, line = GROUND_COLORS[ground]
    x, y = (axis + 0.5 for axis in offsets())
    slow = paint([(True, base), ((x % TILE_PERIOD < TILE_LINE) | (y % TILE_PERIOD < TILE_LINE), line)])
    # rounding alone: the lines are one pixel wide at this size
    assert np.abs(render(Scene(ground, "tiled", ()), SIZE) - slow).max() <= 0.5


@pytest.mark.parametrize(
    ("shape", "area"), [("star", None), ("heart", None), ("circle", np.pi / 4), ("square", 0.88**2)]
)
def test_areas_and_symmetry(shape, area):
    picture = render(one(shape), 256).astype(float)
    base, main = (np.array(color, float) for color in (GROUND_COLORS["white"][0], OBJECT_COLORS["red"][0]))
    covered = (picture - base) @ (main - base) / ((main - base) @ (main - base))
    if shape == "star":  # ten triangles between radii 1.05 and 0.48
        area = 10 * 0.5 * 1.05 * 0.48 * np.sin(np.pi / 5) / 4
    if shape == "heart":  # the curve's closed form: 180 pi before x is divided by 16 and y by 15
        area = 180 * np.pi / (16 * 15) / 4
    side = 2 * half_side("medium", 256) * 256
    # the four samples a pixel put the edge up to 1/8 pixel off: at most 1.5 % of these areas
    assert covered.sum() / side**2 == pytest.approx(area, rel=0.015)
    assert np.abs(covered - covered[:, ::-1]).max() <= 0.3


def test_objects_have_their_colors_and_leave_the_rest_alone():
    for color in COLORS:
        for shape in SHAPES:
            picture = render(one(shape, color, ground="gray"), SIZE)
            middle = picture[SIZE // 2, SIZE // 2]
            expected = GROUND_COLORS["gray"][0] if shape == "ring" else OBJECT_COLORS[color][0]
            assert np.abs(middle - np.array(expected, int)).max() <= 1
            half = round(half_side("medium") * SIZE)
            picture[SIZE // 2 - half : SIZE // 2 + half, SIZE // 2 - half : SIZE // 2 + half] = GROUND_COLORS["gray"][0]
            assert (picture == GROUND_COLORS["gray"][0]).all()


@pytest.mark.parametrize("fill", FILLS)
def test_a_larger_picture_shrinks_to_the_smaller_one(fill):
    scene = one("heart", "green", fill, outline=True, texture="tiled")
    large, small = render(scene, 512).astype(float), render(scene, 128)
    shrunk = large.reshape(128, 4, 128, 4, 3).mean((1, 3))
    # both average the same geometry; an object's side is a whole even number of pixels in each: 0.5 % apart here
    assert np.abs(shrunk - small).mean() <= 2


def test_rendering_repeats_and_shares_nothing():
    scene = sample_scene(np.random.default_rng(0))
    first = render(scene, SIZE)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    kept = first.copy()
    first[...] = 0
    assert (render(scene, SIZE) == kept).all()


@pytest.mark.parametrize("size", [32, 33, 100, 257, 512])
def test_any_size_can_be_drawn(size):
    for index in range(20):
        assert render(sample_scene(np.random.default_rng(index)), size).shape == (size, size, 3)


@pytest.mark.parametrize("size", [31, 4097, 128.0, "128", None, -1])
def test_other_sizes_are_refused(size):
    with pytest.raises(UserError, match="32 to 4096"):
        render(one(), size)


@pytest.mark.parametrize(
    ("shape", "fill", "words"), [("hexagon", "plain", "shape 'hexagon'"), ("star", "wavy", "fill 'w")]
)
def test_unknown_shapes_and_fills_are_refused(shape, fill, words):
    with pytest.raises(UserError, match=f"{words}.* cannot be drawn; give one of"):
        render(one(shape, "red", fill), SIZE)
