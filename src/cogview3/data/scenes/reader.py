"""Pictures back to facts, by classical image analysis: nothing here is learned.

A picture is read in six steps: name the ground; cut out what differs from it; match each piece with every shape at
every size; look along its edge for an outline; take color and fill from what lies inside the edge; and where a drawn
thing explains what lies there better than those shapes do, take the thing (`thing_reader`).

Sums of products are written with einsum: they are too small to be worth the threads that a matrix product starts.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, distance_transform_edt, find_objects, gaussian_filter, label

from cogview3.config import UserError
from cogview3.data.scenes import render, thing_reader
from cogview3.data.scenes.scene import (
    COLORS,
    FILLS,
    GROUNDS,
    POSITIONS,
    SHAPES,
    SIZES,
    Facts,
    ObjectFacts,
    Scene,
    SceneObject,
    position_name,
    relations_between,
)

SIDE = 256  # pictures are resized to this before they are read; lengths and areas below are in its pixels
MIN_SIDE = 64
STEP = 2  # shapes and fills are matched on a grid of every second pixel

GROUND_SPREAD = 40.0  # RGB distance over which a pixel's vote for a ground fades
GROUND_REACH = 34.0  # RGB distance from the ground's colors at which a pixel belongs to an object
FADED = 0.45  # of the way from a plain ground to an outline's color, up to which a pixel belongs to the ground
MIN_AREA = 500  # pixels; a quarter of the smallest object's area
MAX_HOLE = 250  # pixels; a quarter of the hole in the smallest ring
TILE_CONTRAST = 0.25  # of the way from a ground's color to its lines' color
WINDOW, REACH = 80, 3  # sides of template and search around a piece's centroid, in steps
SPLIT_BELOW = 0.75  # a piece that matches no shape better than this may be several objects that touch
OUTLINE_DEPTH = 7  # pixels from the edge within which an outline is looked for
INNER, INNER_OUTLINED = 2.0, 5.5  # depth in pixels from which color and fill are taken
OUTLINE_SHARE = 0.25  # nearness to the outline's color, 0 to 1, in the two rows of pixels where it is greatest
FILL_CONTRAST = 0.35  # of the way from main color to accent
INSIDE = 0.6  # share of a piece within a thing's support from which it is a part of the thing
RIVAL = 0.25  # share, of the smaller of a piece and a thing, that they have in common where only one of them is there


@dataclass(frozen=True)
class Reading:
    """What was read. `centers` (x, y) are fractions of the side, by object."""

    facts: Facts
    centers: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Ground:
    """A ground as it is drawn: its colors reach from `base` to `far`, its tiles' lines or an outline's faint blur."""

    name: str
    texture: str
    base: np.ndarray
    far: np.ndarray
    outline: np.ndarray


@dataclass(frozen=True, eq=False)
class _Piece:
    """An object read: facts, center (x, y) as fractions of the side, and the share of each cell it takes."""

    facts: ObjectFacts
    center: tuple[float, float]
    cells: np.ndarray


@dataclass(frozen=True)
class _Match:
    """The shape and size that fit a piece best: overlap over union in [0, 1], center in pixels."""

    overlap: float
    shape: str
    size: str
    x: float
    y: float


def read(image: np.ndarray | Image.Image) -> Reading:
    """Read every fact of a picture of a scene: (H, H, 3) uint8 RGB or a PIL image, H at least 64.

    Any picture gets a reading, sensible or not. Raises UserError for what is not a square picture.
    """
    pixels = _pixels(image)
    ground, distance = _ground(pixels)
    shapes = []
    for top, left, mask in _pieces(distance, ground):
        match = _match(mask)
        for part in _parts(mask, match):
            region = pixels[top : top + mask.shape[0], left : left + mask.shape[1]]
            item = _describe(region, part, top, left, match if part is mask else _match(part), ground)
            whole = np.zeros((SIDE, SIDE, 1), np.float32)
            whole[top : top + mask.shape[0], left : left + mask.shape[1], 0] = part
            shapes.append(_Piece(*item, thing_reader.to_cells(whole)[..., 0]))
    found = _with_things(shapes, pixels, ground)
    found.sort(key=lambda item: POSITIONS.index(item.facts.position))
    objects, centers = tuple(item.facts for item in found), tuple(item.center for item in found)
    facts = Facts(ground.name, ground.texture, len(objects), objects, relations_between(list(centers)))
    return Reading(facts, centers)


def _with_things(shapes: list[_Piece], pixels: np.ndarray, ground: _Ground) -> list[_Piece]:
    """The pieces read as shapes, those replaced that a drawn thing explains better."""
    backdrop = thing_reader.Backdrop(ground.name, ground.texture)
    cells = thing_reader.to_cells(backdrop.taken_away(pixels))
    left, things = list(shapes), []
    shape_likeness: dict[int, float] = {}
    for candidate in thing_reader.candidates(cells, backdrop):
        drawing, support = thing_reader.drawing_at(candidate, backdrop, len(cells))
        area = (np.abs(drawing).sum(-1) > thing_reader.VISIBLE).sum()
        if any((other.cells * support).sum() > RIVAL * min(support.sum(), other.cells.sum()) for other in things):
            continue
        shared = {id(item): item.cells[support].sum() for item in left}
        parts = [item for item in left if shared[id(item)] > INSIDE * item.cells.sum()]
        rivals = [item for item in left if shared[id(item)] > RIVAL * min(item.cells.sum(), area)]
        for item in rivals:
            if id(item) not in shape_likeness:
                shape_likeness[id(item)] = _shape_likeness(item, cells, backdrop)
        alike = thing_reader.likeness(cells, drawing, support)
        if any(item not in parts or shape_likeness[id(item)] > alike for item in rivals):
            continue
        flat = np.broadcast_to(cells[support].mean(0), cells.shape)
        if thing_reader.likeness(cells, flat, support) > alike:
            continue  # no edges: a patch of another color than the ground's
        left = [item for item in left if item not in parts]
        x, y = ((value * thing_reader.CELL) / SIDE for value in (candidate.x, candidate.y))
        facts = ObjectFacts(size=candidate.size, position=position_name(x, y), thing=candidate.thing)
        things.append(_Piece(facts, (x, y), support))
    return left + things


def _shape_likeness(item: _Piece, cells: np.ndarray, backdrop: thing_reader.Backdrop) -> float:
    """Likeness of a picture less its ground to a piece drawn as the shape that it was read as."""
    facts, (x, y) = item.facts, item.center
    half = SIZES[facts.size] / 2
    x, y = (min(max(value, half), 1 - half) for value in (x, y))
    shape = SceneObject(facts.shape, facts.color, facts.fill, facts.outline, facts.size, x, y)
    drawn = render.render(Scene(backdrop.ground, "plain", (shape,)), SIDE).astype(np.float32)
    drawing = thing_reader.to_cells(backdrop.taken_away(drawn))
    support = binary_dilation(np.abs(drawing).sum(-1) > thing_reader.VISIBLE, iterations=thing_reader.RIM)
    return thing_reader.likeness(cells, drawing, support)


def _pixels(image: np.ndarray | Image.Image) -> np.ndarray:
    """The picture as (SIDE, SIDE, 3) float32, 0 to 255."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else repr(image)
        raise UserError(f"a picture cannot be read from {what}; give (H, H, 3) uint8 RGB or a PIL image")
    height, width = image.shape[:2]
    if height != width or height < MIN_SIDE:
        raise UserError(f"a picture of {width}x{height} cannot be read; give a square of {MIN_SIDE} or more")
    if height != SIDE:
        image = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return image.astype(np.float32)


def _ground(pixels: np.ndarray) -> tuple[_Ground, np.ndarray]:
    """The ground, and the RGB distance of each pixel from what the ground may look like, (SIDE, SIDE)."""
    name = _ground_color(pixels)
    base, line = (np.array(color, np.float32) for color in render.GROUND_COLORS[name])
    outline = np.array(render.OUTLINE_LIGHT if name == "black" else render.OUTLINE_DARK, np.float32)
    smooth = gaussian_filter(pixels, (0.7, 0.7, 0), truncate=3)
    along, distance = _to_segment(smooth, base, line)
    if _tile_contrast(along, distance > GROUND_REACH) > TILE_CONTRAST:
        return _Ground(name, "tiled", base, line, outline), distance
    far = base + FADED * (outline - base)
    return _Ground(name, "plain", base, far, outline), _to_segment(smooth, base, far)[1]


def _ground_color(pixels: np.ndarray) -> str:
    """The ground whose color most pixels are near."""
    few = pixels[::3, ::3].reshape(-1, 3).astype(np.float64)  # every phase of the tiles: their period is no multiple
    bases = np.array([render.GROUND_COLORS[name][0] for name in GROUNDS], np.float64)
    votes = [np.exp(-((_length(few - base) / GROUND_SPREAD) ** 2)).sum() for base in bases]
    return GROUNDS[int(np.argmax(votes))]


def _to_segment(pixels: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position in [0, 1] of the nearest point between two colors, and the RGB distance to it, (...) each."""
    axis = end - start
    offset = pixels - start
    toward = np.einsum("...c,c", offset, axis)
    along = np.clip(toward / (axis @ axis), 0, 1)
    squared = np.einsum("...c,...c", offset, offset) - along * (2 * toward - along * (axis @ axis))
    return along, np.sqrt(np.maximum(squared, 0))


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...c,...c", vectors, vectors))


def _tile_contrast(along: np.ndarray, foreground: np.ndarray) -> float:
    """How far one phase of the tiles' period stands out from the others in the open ground: about 0 or 7/8."""
    period = round(render.TILE_PERIOD * SIDE)
    weight = (~binary_dilation(foreground, iterations=3)).astype(np.float32)
    contrasts = []
    for share, count in ((along * weight, weight), ((along * weight).T, weight.T)):
        sums, counts = (part.reshape(-1, period, SIDE).sum((0, 2)) for part in (share, count))
        profile = sums / np.maximum(counts, 1)
        contrasts.append(profile.max() - np.median(profile))
    return float(np.mean(contrasts))


def _pieces(distance: np.ndarray, ground: _Ground) -> list[tuple[int, int, np.ndarray]]:
    """Connected pieces of what is far from the ground, large enough to be objects: (top, left, mask) of each."""
    labels, number = label(_without_holes(distance > GROUND_REACH))
    areas = np.bincount(labels.ravel(), minlength=number + 1)
    half_outline = float(_to_segment(ground.outline, ground.base, ground.far)[1]) / 2
    pieces = []
    for index, where in enumerate(find_objects(labels), start=1):
        if areas[index] >= MIN_AREA:
            mask = _trimmed(labels[where] == index, distance[where], half_outline)
            pieces.append((where[0].start, where[1].start, mask))
    return pieces


def _trimmed(mask: np.ndarray, distance: np.ndarray, half_outline: float) -> np.ndarray:
    """A piece without the blur around it: cut where it is half as far from the ground as its inside or outline."""
    inside = distance[_deepest(render.depth(mask), INNER_OUTLINED)]
    level = min(float(np.percentile(inside, 10)) / 2, half_outline)
    return mask & _without_holes(distance > level)


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes filled, all but those as large as a ring's."""
    holes, number = label(~mask)
    small = np.bincount(holes.ravel(), minlength=number + 1) < MAX_HOLE
    return mask | small[holes]


def _parts(mask: np.ndarray, match: _Match) -> list[np.ndarray]:
    """A piece as one mask, or cut at its narrow places if its parts look more like shapes than the whole does."""
    if match.overlap >= SPLIT_BELOW:
        return [mask]
    depth = render.depth(mask)
    for cut in range(2, 12, 2):
        labels, _ = label(depth > cut)
        areas = np.bincount(labels.ravel())
        large = [index for index in range(1, len(areas)) if areas[index] >= MIN_AREA // 2]
        if len(large) > 1:
            seeds = np.where(np.isin(labels, large), labels, 0)
            nearest = distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
            owner = np.where(mask, seeds[tuple(nearest)], 0)
            parts = [owner == index for index in large]
            return parts if np.mean([_match(part).overlap for part in parts]) > match.overlap else [mask]
    return [mask]


@lru_cache(maxsize=1)
def _templates() -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
    """Every (shape, size); its mask, centroid in the window's middle, (24, WINDOW^2); its center from there (24, 2)."""
    names = [(shape, size) for shape in SHAPES for size in SIZES]
    masks, offsets = [], []
    for shape, size in names:
        mask = render.shape_mask(shape, size, SIDE // STEP, scale=4)
        n = mask.shape[0] // 4
        share = mask.reshape(n, 4, n, 4).mean((1, 3))
        ys, xs = np.nonzero(mask)
        left, top = (WINDOW // 2 - round(float(axis.mean() + 0.5) / 4) for axis in (xs, ys))
        window = np.zeros((WINDOW, WINDOW), np.float32)
        window[top : top + n, left : left + n] = share
        masks.append(window.ravel())
        offsets.append((left + n / 2 - WINDOW / 2, top + n / 2 - WINDOW / 2))
    return names, np.array(masks), np.array(offsets)


def _match(mask: np.ndarray) -> _Match:
    """The best of all shapes, sizes and small shifts for a piece, by overlap over union."""
    names, templates, offsets = _templates()
    margin = WINDOW // 2 + REACH
    coarse = _coarse(mask.astype(np.float32))
    area = coarse.sum()
    rows, columns = coarse.sum(1), coarse.sum(0)
    y, x = (round(float(axis @ (np.arange(len(axis)) + 0.5) / area)) for axis in (rows, columns))
    padded = np.pad(coarse, margin)[y : y + 2 * margin, x : x + 2 * margin]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW))
    shared = np.einsum("tk,sk->ts", templates, windows.reshape(-1, WINDOW * WINDOW))
    overlap = shared / (templates.sum(1, keepdims=True) + area - shared)
    best, shift = np.unravel_index(overlap.argmax(), overlap.shape)
    dy, dx = divmod(int(shift), 2 * REACH + 1)
    center = STEP * (np.array([x + dx - REACH, y + dy - REACH]) + offsets[best])
    return _Match(float(overlap[best, shift]), *names[best], float(center[0]), float(center[1]))


def _coarse(values: np.ndarray) -> np.ndarray:
    """Sums over blocks of STEP x STEP, as a share of the block, the far edges padded with zeros."""
    padded = np.pad(values, [(0, -side % STEP) for side in values.shape])
    height, width = padded.shape
    return padded.reshape(height // STEP, STEP, width // STEP, STEP).mean((1, 3))


def _describe(
    region: np.ndarray, mask: np.ndarray, top: int, left: int, match: _Match, ground: _Ground
) -> tuple[ObjectFacts, tuple[float, float]]:
    """Facts and center of the piece `mask`, whose region of the picture begins at (left, top)."""
    depth = render.depth(mask)
    color = _color(region[_deepest(depth, INNER_OUTLINED)][::3])
    main, accent = (np.array(value, np.float32) for value in render.OBJECT_COLORS[color])
    near = mask & (depth <= OUTLINE_DEPTH)
    outlined = _outlined(region[near], depth[near], (main, accent), ground)
    along, _ = _to_segment(region, main, accent)
    fill = _fill(along, _deepest(depth, INNER_OUTLINED if outlined else INNER))
    x, y = (left + match.x) / SIDE, (top + match.y) / SIDE
    return ObjectFacts(match.shape, color, fill, outlined, match.size, position_name(x, y)), (x, y)


def _deepest(depth: np.ndarray, wanted: float) -> np.ndarray:
    """Pixels deeper than wanted, or the deeper half of a piece that is nowhere as deep."""
    return depth > min(wanted, depth.max() / 2)


def _color(inside: np.ndarray) -> str:
    """The color between whose main and accent the pixels (k, 3) lie, on average nearest."""
    pairs = (render.OBJECT_COLORS[name] for name in COLORS)
    ends = [(np.array(main, np.float32), np.array(accent, np.float32)) for main, accent in pairs]
    costs = [np.minimum(_to_segment(inside, *pair)[1], 100).mean() for pair in ends]
    return COLORS[int(np.argmin(costs))]


def _outlined(edge: np.ndarray, depth: np.ndarray, colors: tuple[np.ndarray, np.ndarray], ground: _Ground) -> bool:
    """Whether the pixels (k, 3) at these depths (k,) come near the outline's color.

    Nearness compares with the mixtures of the object's colors and the ground's, which blurred edges show.
    """
    main, accent = colors
    mixtures = [(main, accent), (main, ground.base), (accent, ground.base)]
    if ground.texture == "tiled":
        mixtures.append((ground.base, ground.far))
    other = np.min([_to_segment(edge, *ends)[1] for ends in mixtures], axis=0)
    nearness = other / (other + _length(edge - ground.outline))
    rows = np.ceil(depth).astype(int)
    sums, counts = (np.bincount(rows, weight, OUTLINE_DEPTH + 1)[1:] for weight in (nearness, None))
    pairs = (sums[1:] + sums[:-1]) / np.maximum(counts[1:] + counts[:-1], 1)
    return bool(pairs.max() > OUTLINE_SHARE)


@lru_cache(maxsize=1)
def _patterns() -> tuple[np.ndarray, np.ndarray]:
    """Each fill but plain at each phase, (patterns, h * h) for h = SIDE / STEP, and its index in FILLS."""
    periods = {
        "striped": (render.STRIPE_PERIOD, None),
        "dotted": (render.DOT_PERIOD, render.DOT_PERIOD),
        "checkered": (render.CHECK_PERIOD, render.CHECK_PERIOD / 2),
    }
    side = SIDE // STEP
    patterns, kinds = [], []
    for fill, (down, across) in periods.items():
        whole = render.fill_pattern(fill, 2 * SIDE, SIDE).astype(np.float32)
        for dy in range(0, round(down * SIDE), STEP):
            for dx in range(0, round((across or 0) * SIDE) or 1, STEP):
                patterns.append(_coarse(whole[dy : dy + SIDE, dx : dx + SIDE]).reshape(side, side))
                kinds.append(FILLS.index(fill))
    return np.array(patterns), np.array(kinds)


def _fill(along: np.ndarray, inside: np.ndarray) -> str:
    """The fill that follows `along` (main color 0, accent 1) best where `inside`, at any phase."""
    patterns, kinds = _patterns()
    weight = _coarse(inside.astype(np.float32))
    value = _coarse(along * inside)
    height, width = weight.shape
    window = patterns[:, :height, :width].reshape(len(kinds), -1)
    weight, value = weight.ravel() / weight.sum(), value.ravel() / weight.sum()
    mean = np.einsum("pk,k", window, weight)
    spread = np.maximum(np.einsum("pk,pk,k->p", window, window, weight) - mean**2, 1e-6)
    shared = np.einsum("pk,k", window, value) - mean * value.sum()
    likeness = np.where(spread > 0.02, shared / np.sqrt(spread), 0)
    best = int(likeness.argmax())
    return FILLS[kinds[best]] if shared[best] / spread[best] > FILL_CONTRAST else "plain"
