"""What a scene is: one to four objects on a ground, and the facts that can be stated about it.

All lengths are fractions of the picture's side; x grows to the right, y downwards.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np

from cogview3.config import UserError

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "heart")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
FILLS = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": 0.30, "medium": 0.38, "large": 0.47}
GROUNDS = ("white", "gray", "black", "yellow", "blue", "green")
TEXTURES = ("plain", "tiled")
RELATIONS = ("left of", "right of", "above", "below")

ROWS = {"top": 0.27, "middle": 0.5, "bottom": 0.73}
COLUMNS = {"left": 0.27, "center": 0.5, "right": 0.73}
POSITIONS = tuple(f"{row} {column}" for row, column in product(ROWS, COLUMNS))

JITTER = 0.03  # largest shift of an object's center from its cell's
MARGIN = 0.02  # smallest gap between two objects, and between an object and the border
RELATION_GAP = 0.15  # centers at least this far apart along an axis stand in a relation
COUNT_WEIGHTS = (0.4, 0.3, 0.18, 0.12)  # share of scenes with 1, 2, 3, 4 objects


@dataclass(frozen=True)
class ObjectFacts:
    """What is known or stated about one object; None where nothing is."""

    shape: str | None = None
    color: str | None = None
    fill: str | None = None
    outline: bool | None = None
    size: str | None = None
    position: str | None = None


@dataclass(frozen=True)
class Relation:
    """Object `first` stands `kind` object `second`; both index `Facts.objects`."""

    first: int
    kind: str
    second: int


@dataclass(frozen=True)
class Facts:
    """Facts about a picture: read from it, or stated by a caption. None and () mean not stated."""

    ground: str | None = None
    texture: str | None = None
    count: int | None = None
    objects: tuple[ObjectFacts, ...] = ()
    relations: tuple[Relation, ...] = ()

    def to_dict(self) -> dict:
        """Plain types, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Facts":
        """The inverse of `to_dict`. Raises UserError for a value that the world does not have."""
        objects = tuple(ObjectFacts(**item) for item in data["objects"])
        relations = tuple(Relation(**item) for item in data["relations"])
        facts = cls(data["ground"], data["texture"], data["count"], objects, relations)
        _check_values(facts, optional=True)
        if facts.count is not None and not (_is_whole(facts.count) and facts.count >= 0):
            raise UserError(f"count is {facts.count!r}; give a whole number from 0 on, or null")
        for item in objects:
            _check_known("position", item.position, POSITIONS, optional=True)
        for relation in relations:
            _check_known("relation", relation.kind, RELATIONS, optional=False)
            for index in (relation.first, relation.second):
                if not _is_whole(index):
                    raise UserError(f"a relation's object is {index!r}; give its place among the objects, from 0 on")
        return facts


@dataclass(frozen=True)
class SceneObject:
    """One object. `x`, `y`: center, fractions of the side."""

    shape: str
    color: str
    fill: str
    outline: bool
    size: str
    x: float
    y: float

    @property
    def triple(self) -> tuple[str, str, str]:
        """Shape, color and fill: what is held out of training in combinations."""
        return self.shape, self.color, self.fill

    @property
    def position(self) -> str:
        """Name of the object's cell."""
        return position_name(self.x, self.y)

    def facts(self) -> ObjectFacts:
        """Every fact about the object."""
        return ObjectFacts(self.shape, self.color, self.fill, self.outline, self.size, self.position)


@dataclass(frozen=True)
class Scene:
    """A ground and its objects, in reading order (rows from the top, then from the left)."""

    ground: str
    texture: str
    objects: tuple[SceneObject, ...]

    def facts(self) -> Facts:
        """Every fact of the scene, with the relation of each pair of objects along each axis."""
        centers = [(item.x, item.y) for item in self.objects]
        objects = tuple(item.facts() for item in self.objects)
        return Facts(self.ground, self.texture, len(objects), objects, relations_between(centers))

    def to_dict(self) -> dict:
        """Plain types, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Scene":
        """The inverse of `to_dict`. Raises UserError for a value that cannot be drawn."""
        scene = cls(data["ground"], data["texture"], tuple(SceneObject(**item) for item in data["objects"]))
        _check_values(scene, optional=False)
        for item in scene.objects:
            half = SIZES[item.size] / 2
            for axis in ("x", "y"):
                value = getattr(item, axis)
                if isinstance(value, bool) or not isinstance(value, int | float) or not half <= value <= 1 - half:
                    limits = f"{half:g} to {1 - half:g}"
                    raise UserError(f"{axis} {value!r} puts a {item.size} object outside the picture; give {limits}")
        return scene


def _check_values(stated: Facts | Scene, optional: bool) -> None:
    """Refuse, with a UserError, unknown values of the ground and of objects; `optional` ones may be None."""
    _check_known("ground", stated.ground, GROUNDS, optional)
    _check_known("texture", stated.texture, TEXTURES, optional)
    known = {"shape": SHAPES, "color": COLORS, "fill": FILLS, "outline": (True, False), "size": tuple(SIZES)}
    for item in stated.objects:
        for name, values in known.items():
            _check_known(name, getattr(item, name), values, optional)


def _check_known(name: str, value: object, known: tuple, optional: bool) -> None:
    if (value is None and optional) or any(type(value) is type(one) and value == one for one in known):
        return
    given = [json.dumps(one) if isinstance(one, bool) else str(one) for one in known]
    raise UserError(f"{name} {value!r} is unknown; give one of {', '.join(given)}{', or null' if optional else ''}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def position_name(x: float, y: float) -> str:
    """Name of the nearest of the nine cells to a center (x, y), as in "top left" or "middle center"."""
    row = min(ROWS, key=lambda name: abs(ROWS[name] - y))
    column = min(COLUMNS, key=lambda name: abs(COLUMNS[name] - x))
    return f"{row} {column}"


def relations_between(centers: list[tuple[float, float]]) -> tuple[Relation, ...]:
    """All relations among objects with these centers, both directions of each pair."""
    found = []
    for first, (x1, y1) in enumerate(centers):
        for second, (x2, y2) in enumerate(centers):
            if x2 - x1 >= RELATION_GAP:
                found += [Relation(first, "left of", second), Relation(second, "right of", first)]
            if y2 - y1 >= RELATION_GAP:
                found += [Relation(first, "above", second), Relation(second, "below", first)]
    return tuple(found)


def is_held_out(shape: str, color: str, fill: str) -> bool:
    """True for the fixed fifth of the shape-color-fill triples that no training scene contains."""
    digest = hashlib.sha256(f"{shape}/{color}/{fill}".encode()).digest()
    return digest[0] % 5 == 0


HELD_OUT = tuple(triple for triple in product(SHAPES, COLORS, FILLS) if is_held_out(*triple))
SEEN = tuple(triple for triple in product(SHAPES, COLORS, FILLS) if not is_held_out(*triple))
_SIZE_NAMES = tuple(SIZES)
_CELLS = tuple((COLUMNS[column], ROWS[row]) for row, column in product(ROWS, COLUMNS))  # in the order of POSITIONS


def sample_scene(rng: np.random.Generator, triples: str = "seen", count: int | None = None) -> Scene:
    """Draw a scene at random.

    triples: "seen" uses training triples alone; "held-out" gives the scene at least one held-out triple.
    count: number of objects, 1 to 4; drawn with COUNT_WEIGHTS if None.
    Raises UserError for another `triples` or `count`.
    """
    if triples not in ("seen", "held-out"):
        raise UserError(f"triples is {triples!r}; give 'seen' or 'held-out'")
    if count is not None and not 1 <= count <= len(COUNT_WEIGHTS):
        raise UserError(f"a scene cannot hold {count} objects; give 1 to {len(COUNT_WEIGHTS)}")
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    number = count or 1 + int(rng.choice(len(COUNT_WEIGHTS), p=COUNT_WEIGHTS))
    chosen = [_sample_triple(rng, SEEN, ground) for _ in range(number)]
    if triples == "held-out":
        chosen[rng.integers(number)] = _sample_triple(rng, HELD_OUT, ground)
    objects = [
        SceneObject(shape, color, fill, bool(rng.integers(2)), size, x, y)
        for (shape, color, fill), (size, x, y) in zip(chosen, _sample_layout(rng, number), strict=True)
    ]
    return Scene(ground, texture, tuple(sorted(objects, key=_reading_order)))


def _reading_order(item: SceneObject) -> tuple[int, int]:
    return POSITIONS.index(item.position) // len(COLUMNS), POSITIONS.index(item.position) % len(COLUMNS)


def _sample_triple(rng: np.random.Generator, triples: tuple, ground: str) -> tuple[str, str, str]:
    while True:  # an object never has its ground's color
        triple = triples[rng.integers(len(triples))]
        if triple[1] != ground:
            return triple


def _sample_layout(rng: np.random.Generator, number: int) -> list[tuple[str, float, float]]:
    """(size, x, y) of `number` objects that neither overlap nor leave the picture."""
    while True:  # most layouts of four are refused: drawn in arrays, then looked at as plain numbers
        sizes = rng.integers(len(_SIZE_NAMES), size=number).tolist()
        cells = rng.permutation(len(_CELLS)).tolist()
        shifts = rng.uniform(-JITTER, JITTER, 2 * number).tolist()
        placed: list[tuple[str, float, float]] = []
        for size, cell, shift_x, shift_y in zip(sizes, cells, shifts[::2], shifts[1::2], strict=False):
            name, (x, y) = _SIZE_NAMES[size], _CELLS[cell]
            half = SIZES[name] / 2 + MARGIN / 2
            item = name, min(max(x + shift_x, half), 1 - half), min(max(y + shift_y, half), 1 - half)
            if not all(_apart(item, other) for other in placed):
                break
            placed.append(item)
        if len(placed) == number:
            return placed


def _apart(a: tuple[str, float, float], b: tuple[str, float, float]) -> bool:
    needed = (SIZES[a[0]] + SIZES[b[0]]) / 2 + MARGIN
    return max(abs(a[1] - b[1]), abs(a[2] - b[2])) >= needed
