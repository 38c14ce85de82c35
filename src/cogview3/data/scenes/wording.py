"""The words of captions: weighted synonyms for the values of facts, and phrases for places, relations and grounds.

A table entry reads "circle *8 | disc | ball": alternatives with their weights (1 if not given). Names in
braces are filled in by clauses.py. Plain words weigh most, so that a model learns them best.
"""

import re
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from cogview3.data.scenes.scene import BETWEEN, POSITIONS
from cogview3.data.scenes.things import THINGS

SYNONYM_SHARE = 0.3  # of the mentions of a thing, by another noun than its first


@dataclass(frozen=True)
class Phrases:
    """Alternatives, drawn with weights."""

    texts: tuple[str, ...]
    weights: tuple[float, ...]

    def pick(self, rng: np.random.Generator) -> str:
        """Draw one alternative."""
        return self.texts[bisect(self._cumulative, rng.random())]

    @cached_property
    def _cumulative(self) -> list[float]:
        sums = list(accumulate(self.weights))
        return [value / sums[-1] for value in sums]

    def filled(self, **values: str) -> "Phrases":
        """The same alternatives with the names in braces replaced."""
        return Phrases(tuple(text.format(**values) for text in self.texts), self.weights)

    def mixed(self, other: "Phrases", share: float) -> "Phrases":
        """These alternatives, and those of `other` with `share` times their weights."""
        return Phrases(self.texts + other.texts, self.weights + tuple(weight * share for weight in other.weights))


_ENTRY = re.compile(r"\s*(.*?)\s*(?:\*([\d.]+))?\s*")


def phrases(table: str) -> Phrases:
    """Read a table entry such as "circle *8 | disc | ball"."""
    texts, weights = zip(*(_ENTRY.fullmatch(entry).groups() for entry in table.split("|")), strict=True)
    return Phrases(texts, tuple(float(weight or 1) for weight in weights))


def _table(**entries: str) -> dict[str, Phrases]:
    return {name: phrases(entry) for name, entry in entries.items()}


NOUNS = _table(
    circle="circle *14 | disc *2 | disk *2 | ball | dot *0.5",
    square="square *12 | box *2 | block *0.5",
    triangle="triangle *12 | triangle shape *0.5",
    diamond="diamond *12 | rhombus *2 | lozenge | diamond shape *0.5",
    star="star *14 | five-pointed star *0.5 | star shape *0.5",
    ring="ring *12 | donut *2 | doughnut *0.5 | hoop | annulus *0.5",
    cross="cross *10 | plus sign *2 | plus *2 | cross shape *0.5",
    heart="heart *14 | love heart *0.5 | heart shape *0.5",
)
THING_NOUNS = {
    name: Phrases(thing.names, (1 - SYNONYM_SHARE, *[SYNONYM_SHARE / (len(thing.names) - 1)] * (len(thing.names) - 1)))
    for name, thing in THINGS.items()
}
COLORS = _table(
    red="red *16 | crimson | scarlet | bright red *0.5",
    orange="orange *16 | bright orange *0.5 | tangerine *0.5",
    yellow="yellow *16 | golden *1 | gold *0.5 | bright yellow *0.5",
    green="green *16 | emerald | bright green *0.5",
    cyan="cyan *10 | turquoise *3 | teal *2 | aqua *2",
    blue="blue *16 | royal blue *0.5 | dark blue *0.5 | bright blue *0.5",
    purple="purple *13 | violet *3 | lilac *0.3",
    pink="pink *16 | hot pink *0.5 | bright pink *0.3",
)
SIZES = _table(
    small="small *10 | little *2 | tiny *2",
    medium="medium *6 | medium-sized *3 | medium sized | mid-sized | mid-size *0.5 | average-sized *0.3",
    large="large *8 | big *5 | huge *1.5 | giant *0.3",
)
FILLS = _table(  # before the noun
    plain="plain *8 | solid *4 | solid-colored | unpatterned *0.7 | filled *0.7",
    striped="striped *12 | stripy | stripey *0.3 | banded *0.7",
    dotted="dotted *9 | spotted *3 | polka-dot *2 | polka dot *1 | polka-dotted *0.5 | spotty *0.3",
    checkered="checkered *10 | checked *2 | checkerboard *1.5 | checker *0.3",
)
FILL_DETAILS = _table(  # after "with"
    plain="no pattern *3 | a solid fill *1",
    striped="stripes *8 | horizontal stripes *2 | a striped pattern *1 | {accent} stripes *1.5",
    dotted="dots *6 | spots *2 | polka dots *3 | a dotted pattern | {accent} dots *1.5",
    checkered="checks *4 | a checkered pattern *3 | a checkerboard pattern *3 | a chessboard pattern *0.5",
)
ACCENTS = _table(  # how the pattern stands out from the main color
    light="light *2 | lighter | white | pale *0.5",
    dark="dark *2 | darker | black *0.7",
)
LIGHT_ACCENTS = {"red", "green", "blue", "purple"}  # main colors whose pattern is lighter than they are
OUTLINES = {  # before the noun
    True: phrases("outlined *8 | bordered *2 | edged *0.7"),
    False: phrases("unoutlined *2 | borderless *1"),
}
OUTLINE_DETAILS = {  # after "with"; {tone} is how the outline looks
    True: phrases(
        "an outline *6 | a {tone} outline *4 | a border *3 | a {tone} border *2 | a {tone} edge *0.7"
        " | an edge *0.3 | a frame *0.3 | a thin outline *0.3 | a {tone} line around it *0.3"
    ),
    False: phrases("no outline *5 | no border *2 | no edge *0.3"),
}
OUTLINE_ENDINGS = {  # after the noun, without "with"
    True: phrases("outlined in {line} *3 | edged in {line} | bordered in {line} *0.5"),
    False: phrases("without an outline *4 | without outline *2 | without a border *2 | not outlined"),
}
TONES = _table(black="black *5 | dark *2 | thin black *0.5", white="white *5 | light *2 | thin white *0.5")

_CORNER = phrases(
    "in the {v} {h} corner *5 | in the {v} {h} *4 | at the {v} {h} *4 | on the {v} {h} | at {v} {h} *0.5"
    " | {v} {h} *2 | {v} {h} corner *0.7 | in the {v}-{h} corner *0.7 | {v}-{h} *0.3"
    " | in the {v} {h}-hand corner *0.3 | to the {v} {h} *0.3"
)
_END = phrases(
    "at the {v} *6 | at the {v} center *4 | {v} center *2 | at the {v} middle *2 | in the {o} middle"
    " | {v} middle | in the {o} center | {o} center *0.5 | at the center {v} *0.3 | on {v} *0.2"
)
_SIDE = phrases(
    "on the {h} *6 | at the {h} *2 | on the {h} side *2 | at the middle {h} *3 | middle {h} *2"
    " | in the middle {h} | at the center {h} *2 | center {h} | in the center {h}"
    " | on the middle {h} *0.5 | on the {h}-hand side *0.3"
)
_CENTER = phrases(
    "in the center *7 | in the middle *7 | at the center *2 | in the very center *0.4 | centered"
    " | center *0.7 | right in the middle *0.4 | in the center of the picture *0.4"
    " | in the middle of the image *0.4"
)
_CORNER_NAME = phrases("{v} {h} *4 | {v}-{h} *0.5")
_END_NAME = phrases("{v} center *3 | {v} middle *2 | {o} middle *0.5 | {v}")
_SIDE_NAME = phrases("middle {h} *3 | center {h} *2 | {h}")
_CENTER_NAME = phrases("center *2 | middle | centered *0.5")


def _by_position(corner: Phrases, end: Phrases, side: Phrases, center: Phrases) -> dict[str, Phrases]:
    """Patterns for each of the nine positions; corners are also "upper" and "lower", a third as often."""
    places = {}
    for position in POSITIONS:
        row, column = position.split()
        other = {"top": "upper", "bottom": "lower"}.get(row, row)
        if column == "center":
            places[position] = center if row == "middle" else end.filled(v=row, o=other)
        elif row == "middle":
            places[position] = side.filled(h=column)
        else:
            places[position] = corner.filled(v=row, h=column).mixed(corner.filled(v=other, h=column), 1 / 3)
    return places


PLACES = _by_position(_CORNER, _END, _SIDE, _CENTER)  # inside a sentence
PLACE_NAMES = _by_position(_CORNER_NAME, _END_NAME, _SIDE_NAME, _CENTER_NAME)  # as a label

RELATIONS = {
    "left of": phrases("to the left of *6 | left of *6 | on the left of *2 | on the left side of *0.5"),
    "right of": phrases("to the right of *6 | right of *6 | on the right of *2 | on the right side of *0.5"),
    "above": phrases("above *10 | over *2 | on top of *1.5 | higher than *0.2"),
    "below": phrases("below *7 | under *5 | beneath *2 | underneath *1.5 | lower than *0.2"),
}
RELATIONS_TO_IT = {
    "left of": phrases("to its left *3 | on its left | to the left of it"),
    "right of": phrases("to its right *3 | on its right | to the right of it"),
    "above": phrases("above it *4 | over it | on top of it *0.5"),
    "below": phrases("below it *3 | under it *2 | beneath it | underneath it *0.5"),
}
RELATIONS[BETWEEN] = phrases("between *10 | in between *0.7")
NEIGHBORS = phrases(
    "{a} next to {b} *4 | {a} beside {b} *2 | {a} and {b} side by side *2 | {a} by {b} *0.3 | {a} near {b} *0.5"
    " | {a} and {b} next to each other | {a} close to {b} *0.3 | {a} alongside {b} *0.2"
)

NUMBERS = {
    1: phrases("one *6 | 1 | a single *3"),
    2: phrases("two *8 | 2 *2"),
    3: phrases("three *8 | 3 *2"),
    4: phrases("four *8 | 4 *2"),
}
SINGLE = phrases("a single *5 | one *4 | just one | a lone | only one | exactly one *0.5 | 1 *0.5 | one single *0.3")
GROUP_NUMBERS = NUMBERS | {2: NUMBERS[2].mixed(phrases("a pair of | a couple of *0.7"), 0.8)}
OBJECTS = {  # nouns for objects of any kind: where all are shapes, where some are things, where all are of one family
    "shape": phrases("shape *6 | object *3 | figure | thing *0.5 | item *0.5"),
    "any": phrases("object *6 | thing *3 | item"),
    "animal": phrases("animal"),
    "plant": phrases("plant"),
    "vehicle": phrases("vehicle"),
}
DIFFERENT = {  # after a counted group
    "color": phrases(
        ", each a different color *4 | in different colors *4 | of different colors *2 | , all different colors *2"
        " | , each in a different color *2 | , each one a different color | , each in its own color *0.5"
        " | , all of them different colors *0.5 | with different colors *0.5 | , no two of the same color *0.3"
    ),
    "size": phrases(
        "of different sizes *3 | in different sizes *2 | , each a different size *2 | , all different sizes"
    ),
    "fill": phrases("with different patterns *3 | , each with a different pattern *3 | in different patterns"),
}
PRAISE = phrases("cute *4 | nice *2 | lovely | beautiful *1.5 | pretty | funny | happy *0.7 | sweet *0.5 | simple *0.5")
COLOR_ENDINGS = phrases("in {color} *4 | that is {color} *1.5 | colored {color} *0.7 | that's {color} *0.5")

GROUNDS = _table(
    white="white *16 | bright white *0.3",
    gray="gray *16 | light gray *0.5",
    black="black *16 | dark *1",
    yellow="yellow *16 | light yellow *2 | pale yellow *2",
    blue="blue *16 | light blue *3 | pale blue | sky blue",
    green="green *16 | light green *3 | pale green *2 | mint green *0.5",
)
GROUND_NOUNS = phrases("background *10 | ground *2 | backdrop *1.5")
GROUND_PHRASES = {  # after "on", by texture, "" where that is not stated
    "plain": phrases(
        "a plain {g} {b} *7 | a solid {g} {b} *2 | plain {g} *2 | a flat {g} {b} *0.5 | a {g} {b} without tiles *0.5"
    ),
    "tiled": phrases(
        "a tiled {g} {b} *7 | {g} tiles *2 | a {g} tiled {b} *2 | a {g} {b} with a grid *2 | a {g} grid"
        " | a {g} {b} with grid lines | a {g} {b} with tiles | a gridded {g} {b} *0.5"
    ),
    "": phrases("a {g} {b} *10 | {g} *2 | {g} {b} *1.5 | the {g} {b} *0.3"),
}
GROUND_SENTENCES = {
    "plain": phrases(
        "the {b} is plain {g} *4 | the {b} is {g} and plain *2 | the {b} is solid {g} | {b}: plain {g}"
        " | plain {g} {b} *2"
    ),
    "tiled": phrases(
        "the {b} is tiled {g} *2 | the {b} is {g} and tiled *3 | the {b} is {g} with a grid *2"
        " | {b}: tiled {g} | the {b} is made of {g} tiles | tiled {g} {b} *2"
    ),
    "": phrases("the {b} is {g} *6 | {b}: {g} | {g} {b} *3 | make the {b} {g} *0.7"),
}
BARE_GROUNDS = {
    "plain": phrases("plain {g} {b} *4 | solid {g} {b}"),
    "tiled": phrases("tiled {g} {b} *4 | {g} tiled {b} | {g} {b} with a grid"),
    "": phrases("{g} {b}"),
}
ON = phrases("on *10 | against *2 | in front of *0.7")

BRITISH = {
    "center": "centre",
    "centered": "centred",
    "gray": "grey",
    "solid-colored": "solid-coloured",
    "checkered": "chequered",
    "color": "colour",
    "colors": "colours",
    "colored": "coloured",
}

_PLURALS = {one: many for thing in THINGS.values() for one, many in zip(thing.names, thing.plurals, strict=True)}
_PLURALS |= {"annulus": "annuli"}


def plural(noun: str) -> str:
    """Plural of a noun of this vocabulary: "box" gives "boxes"."""
    return _PLURALS.get(noun) or noun + ("es" if noun.endswith(("s", "x")) else "s")
