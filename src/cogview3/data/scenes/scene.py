"""Scenes: one to four objects on a ground, and the facts that can be stated about them.

All lengths are fractions of the picture's side; x grows to the right, y downwards.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product

import numpy as np

from cogview3.config import UserError
from cogview3.data.scenes.things import THINGS, is_held_out_ground

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "heart")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
FILLS = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": 0.30, "medium": 0.38, "large": 0.47}
GROUNDS = ("white", "gray", "black", "yellow", "blue", "green")
TEXTURES = ("plain", "tiled")
RELATIONS = ("left of", "right of", "above", "below")  # of one object to another
BETWEEN = "between"  # the relation of one object to two others
DIFFERENT = ("shape", "color", "fill", "size")  # facts of which a caption may say that they differ from each to each

_SHAPE_VALUES = {"shape": SHAPES, "color": COLORS, "fill": FILLS, "outline": (True, False)}  # what makes a shape

ROWS = {"top": 0.27, "middle": 0.5, "bottom": 0.73}
COLUMNS = {"left": 0.27, "center": 0.5, "right": 0.73}
CENTERS = {f"{row} {column}": (COLUMNS[column], ROWS[row]) for row, column in product(ROWS, COLUMNS)}
"""Center (x, y) of each of the nine cells."""

POSITIONS = tuple(CENTERS)

JITTER = 0.03  # largest shift of an object's center from its cell's
MARGIN = 0.02  # smallest gap between two objects, and between an object and the border
RELATION_GAP = 0.15  # centers at least this far apart along an axis stand in a relation
COUNT_WEIGHTS = (0.36, 0.3, 0.2, 0.14)  # share of scenes with 1, 2, 3, 4 objects
THING_SHARE = 0.5  # of the objects that are drawn things; the others are shapes
ROW_SHARE = 0.2  # of the scenes of three or four objects in which three small ones stand in a row or a column
ROW = (0.17, 0.5, 0.83)  # their centers along it: one is between the two others
GROUP_SHARE = 0.35  # of the scenes of several objects in which some are of one kind, as in "three green triangles"


@dataclass(frozen=True)
class ObjectFacts:
    """What is known or stated about one object; None where nothing is. A thing has no shape, color, fill or outline."""

    shape: str | None = None
    color: str | None = None
    fill: str | None = None
    outline: bool | None = None
    size: str | None = None
    position: str | None = None
    thing: str | None = None

    def is_true_of(self, other: "ObjectFacts") -> bool:
        """Whether all that is stated here is so of another object."""
        return all(value in (None, getattr(other, name)) for name, value in vars(self).items())


@dataclass(frozen=True)
class Relation:
    """Object `first` stands `kind` object `second`, or between `second` and `other`; all index `Facts.objects`."""

    first: int
    kind: str
    second: int
    other: int | None = None

    @property
    def objects(self) -> tuple[int, ...]:
        """The objects that it names."""
        return tuple(index for index in (self.first, self.second, self.other) if index is not None)

    def among(self, places: Mapping[int, int]) -> "Relation":
        """The same relation with its objects renumbered; -1 for those that have no new number."""
        first, second, *rest = (places.get(index, -1) for index in self.objects)
        return Relation(first, self.kind, second, *rest)


@dataclass(frozen=True)
class Facts:
    """Facts about a picture: read from it, or stated by a caption. None and () mean not stated.

    `denied` are objects that the picture must not have, each with what is said of it ("no ring", "nothing red");
    `different` names facts, of DIFFERENT, in which no two of the stated objects are alike ("each a different color").
    """

    ground: str | None = None
    texture: str | None = None
    count: int | None = None
    objects: tuple[ObjectFacts, ...] = ()
    relations: tuple[Relation, ...] = ()
    denied: tuple[ObjectFacts, ...] = ()
    different: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """Plain types, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Facts":
        """The inverse of `to_dict`. Raises UserError for a value that the world does not have."""
        objects = tuple(ObjectFacts(**item) for item in data["objects"])
        relations = tuple(Relation(**item) for item in data["relations"])
        denied = tuple(ObjectFacts(**item) for item in data.get("denied", ()))
        different = tuple(data.get("different", ()))
        facts = cls(data["ground"], data["texture"], data["count"], objects, relations, denied, different)
        _check_values(facts.ground, facts.texture, (*objects, *denied), optional=True)
        for name in different:
            _check_known("different", name, DIFFERENT, optional=False)
        if facts.count is not None and not (_is_whole(facts.count) and facts.count >= 0):
            raise UserError(f"count is {facts.count!r}; give a whole number from 0 on, or null")
        for item in objects:
            _check_known("position", item.position, POSITIONS, optional=True)
        for relation in relations:
            _check_known("relation", relation.kind, (*RELATIONS, BETWEEN), optional=False)
            if (relation.kind == BETWEEN) == (relation.other is None):
                raise UserError(f"{relation} has other {relation.other!r}; give one to 'between', and to no other kind")
            for index in relation.objects:
                if not _is_whole(index):
                    raise UserError(f"a relation's object is {index!r}; give its place among the objects, from 0 on")
        return facts


@dataclass(frozen=True)
class SceneObject:
    """One object: a shape with color, fill and outline, or a thing, for which these are None.

    `x`, `y`: center, fractions of the side.
    """

    shape: str | None
    color: str | None
    fill: str | None
    outline: bool | None
    size: str
    x: float
    y: float
    thing: str | None = None

    def is_held_out(self, ground: str) -> bool:
        """Whether training never shows the object: its shape, color and fill together, or the thing on this ground."""
        if self.thing is not None:
            return is_held_out_ground(self.thing, ground)
        return is_held_out(self.shape, self.color, self.fill)

    @property
    def position(self) -> str:
        """Name of the object's cell."""
        return position_name(self.x, self.y)

    def facts(self) -> ObjectFacts:
        """Every fact about the object."""
        return ObjectFacts(self.shape, self.color, self.fill, self.outline, self.size, self.position, self.thing)


@dataclass(frozen=True)
class Scene:
    """A ground and its objects, in reading order (rows from the top, then from the left)."""

    ground: str
    texture: str
    objects: tuple[SceneObject, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether an object is one that training never shows."""
        return any(item.is_held_out(self.ground) for item in self.objects)

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
        _check_values(scene.ground, scene.texture, scene.objects, optional=False)
        for item in scene.objects:
            _check_whole(item)
            half = SIZES[item.size] / 2
            for axis in ("x", "y"):
                value = getattr(item, axis)
                if isinstance(value, bool) or not isinstance(value, int | float) or not half <= value <= 1 - half:
                    limits = f"{half:g} to {1 - half:g}"
                    raise UserError(f"{axis} {value!r} puts a {item.size} object outside the picture; give {limits}")
        return scene


def _check_values(
    ground: str | None, texture: str | None, objects: Sequence[ObjectFacts | SceneObject], optional: bool
) -> None:
    """Refuse, with a UserError, unknown values of the ground and of objects; `optional` ones may be None."""
    _check_known("ground", ground, GROUNDS, optional)
    _check_known("texture", texture, TEXTURES, optional)
    for item in objects:
        _check_known("size", item.size, tuple(SIZES), optional)
        for name, values in {**_SHAPE_VALUES, "thing": tuple(THINGS)}.items():
            if getattr(item, name) is not None:
                _check_known(name, getattr(item, name), values, optional)


def _check_whole(item: SceneObject) -> None:
    """Refuse, with a UserError, an object that is neither all of a shape nor a thing alone."""
    given = [name for name in _SHAPE_VALUES if getattr(item, name) is not None]
    if item.thing is not None and given:
        raise UserError(
            f"thing {item.thing!r} has a {given[0]}; give a thing or a {', '.join(_SHAPE_VALUES)}, not both"
        )
    if item.thing is None and len(given) < len(_SHAPE_VALUES):
        missing = next(name for name in _SHAPE_VALUES if name not in given)
        raise UserError(f"an object has no {missing}; give a thing or all of {', '.join(_SHAPE_VALUES)}")


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


def relations_between(centers: Sequence[tuple[float, float]]) -> tuple[Relation, ...]:
    """All relations among objects with these centers, both directions of each pair."""
    found = []
    for first, (x1, y1) in enumerate(centers):
        for second, (x2, y2) in enumerate(centers):
            if x2 - x1 >= RELATION_GAP:
                found += [Relation(first, "left of", second), Relation(second, "right of", first)]
            if y2 - y1 >= RELATION_GAP:
                found += [Relation(first, "above", second), Relation(second, "below", first)]
    return tuple(found)


def betweens(centers: Sequence[tuple[float, float]]) -> tuple[Relation, ...]:
    """All relations "between", each pair of ends once."""
    number = range(len(centers))
    found = (Relation(one, BETWEEN, *ends) for one in number for ends in combinations(number, 2) if one not in ends)
    return tuple(relation for relation in found if relation_holds(relation, centers))


def relation_holds(relation: Relation, centers: Sequence[tuple[float, float]]) -> bool:
    """Whether objects with these centers stand so.

    An object is between two others where it lies RELATION_GAP or more from both along one axis, on their inner sides,
    and less than RELATION_GAP outside of them along the other axis. Objects with a number below 0 stand nowhere.
    """
    if min(relation.objects) < 0:
        return False
    if relation.kind != BETWEEN:
        return relation in relations_between(centers)
    own, *ends = (centers[index] for index in relation.objects)
    depths = [min(max(along) - at, at - min(along)) for at, *along in zip(own, *ends, strict=True)]
    return bool(max(depths) >= RELATION_GAP and min(depths) > -RELATION_GAP)  # of NumPy's numbers, where they were read


def is_held_out(shape: str, color: str, fill: str) -> bool:
    """True for the fixed fifth of the shape-color-fill combinations that no training scene contains."""
    digest = hashlib.sha256(f"{shape}/{color}/{fill}".encode()).digest()
    return digest[0] % 5 == 0


HELD_OUT = tuple(triple for triple in product(SHAPES, COLORS, FILLS) if is_held_out(*triple))
SEEN = tuple(triple for triple in product(SHAPES, COLORS, FILLS) if not is_held_out(*triple))
_GROUND_THINGS = {  # the things that training shows on a ground, and those that it does not
    (ground, held_out): tuple(name for name in THINGS if is_held_out_ground(name, ground) == held_out)
    for ground, held_out in product(GROUNDS, (False, True))
}
_SIZE_NAMES = tuple(SIZES)
_CELLS = tuple(CENTERS.values())


def sample_scene(rng: np.random.Generator, combinations: str = "seen", count: int | None = None) -> Scene:
    """Draw a scene at random.

    combinations: "seen" uses what training shows alone; "held-out" gives the scene at least one object that it never
    shows: a combination of shape, color and fill, or a thing on its ground, of the fixed fifth.
    count: number of objects, 1 to 4; drawn with COUNT_WEIGHTS if None.
    Raises UserError for another `combinations` or `count`.
    """
    if combinations not in ("seen", "held-out"):
        raise UserError(f"combinations is {combinations!r}; give 'seen' or 'held-out'")
    if count is not None and not 1 <= count <= len(COUNT_WEIGHTS):
        raise UserError(f"a scene cannot hold {count} objects; give 1 to {len(COUNT_WEIGHTS)}")
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    number = count or 1 + int(rng.choice(len(COUNT_WEIGHTS), p=COUNT_WEIGHTS))
    kinds = [_sample_kind(rng, ground, held_out=False) for _ in range(number)]
    if number > 1 and rng.random() < GROUP_SHARE:
        kinds = _with_group(kinds, ground, rng)
    if combinations == "held-out":
        kinds[rng.integers(number)] = _sample_kind(rng, ground, held_out=True)
    layout = (_sample_row if number > 2 and rng.random() < ROW_SHARE else _sample_layout)(rng, number)
    objects = [SceneObject(*kind[:4], size, x, y, kind[4]) for kind, (size, x, y) in zip(kinds, layout, strict=True)]
    return Scene(ground, texture, tuple(sorted(objects, key=lambda item: POSITIONS.index(item.position))))


_Kind = tuple[str | None, str | None, str | None, bool | None, str | None]  # shape, color, fill, outline; thing


def _sample_kind(rng: np.random.Generator, ground: str, held_out: bool) -> _Kind:
    """What an object is: a shape of another color than its ground, or a thing, of those that training shows or not."""
    if rng.random() < THING_SHARE:
        choice = _GROUND_THINGS[ground, held_out]
        return None, None, None, None, choice[rng.integers(len(choice))]
    return (*_sample_triple(rng, HELD_OUT if held_out else SEEN, ground), bool(rng.integers(2)), None)


def _with_group(kinds: list[_Kind], ground: str, rng: np.random.Generator) -> list[_Kind]:
    """Two or more of the objects as one kind: the same thing, or the same shape, mostly in the same color and fill."""
    members = rng.permutation(len(kinds))[: rng.integers(2, len(kinds) + 1)]
    first = kinds[members[0]]
    same_color, same_fill, same_outline = rng.random(3) < (0.7, 0.6, 0.6)
    for index in members[1:]:
        if first[4] is not None:
            kinds[index] = first
            continue
        while True:
            color, fill = _sample_triple(rng, SEEN, ground)[1:]
            triple = first[0], first[1] if same_color else color, first[2] if same_fill else fill
            if not is_held_out(*triple):
                break
        kinds[index] = (*triple, first[3] if same_outline else bool(rng.integers(2)), None)
    return kinds


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
            item = inside(name, x + shift_x, y + shift_y)
            if not all(are_apart(item, other) for other in placed):
                break
            placed.append(item)
        if len(placed) == number:
            return placed


def _sample_row(rng: np.random.Generator, number: int) -> list[tuple[str, float, float]]:
    """(size, x, y) of three small objects in a row or a column; of four, the last stands beside it."""
    while True:
        across = list(ROWS.values())[rng.integers(len(ROWS))] + rng.uniform(-JITTER, JITTER)
        centers = [(along, across) for along in ROW]
        if rng.integers(2):
            centers = [(across, along) for along in ROW]
        placed = [("small", x, y) for x, y in centers]
        if number == len(placed):
            return placed
        x, y = _CELLS[rng.integers(len(_CELLS))]
        last = inside(_SIZE_NAMES[rng.integers(len(_SIZE_NAMES))], x, y)
        if all(are_apart(last, other) for other in placed):
            return [*placed, last]


def inside(size: str, x: float, y: float) -> tuple[str, float, float]:
    """An object's (size, x, y), moved so that it does not touch the border."""
    half = SIZES[size] / 2 + MARGIN / 2
    return size, min(max(x, half), 1 - half), min(max(y, half), 1 - half)


def are_apart(a: tuple[str, float, float], b: tuple[str, float, float]) -> bool:
    """Whether two objects, each (size, x, y), neither overlap nor touch."""
    needed = (SIZES[a[0]] + SIZES[b[0]]) / 2 + MARGIN
    return max(abs(a[1] - b[1]), abs(a[2] - b[2])) >= needed
