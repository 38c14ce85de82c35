"""The words of captions: weighted synonyms and sentence patterns, and the vocabulary that they make up.

A table entry reads "circle *8 | disc | ball": alternatives with their weights (1 if not given). Names in
braces are filled in by clauses.py and captions.py. Plain words weigh most, so that a model learns them best.
"""

import re
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from cogview3.data.scenes.scene import POSITIONS


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
COLORS = _table(
    red="red *16 | crimson | scarlet | bright red *0.5",
    orange="orange *16 | bright orange *0.5 | tangerine *0.5",
    yellow="yellow *16 | golden *1 | gold *0.5 | bright yellow *0.5",
    green="green *16 | emerald | bright green *0.5",
    cyan="cyan *10 | turquoise *3 | teal *2 | aqua *2",
    blue="blue *16 | royal blue *0.5 | dark blue *0.5 | bright blue *0.5",
    purple="purple *13 | violet *3 | lilac *0.3",
    pink="pink *16 | hot pink *0.5 | rose *0.5 | bright pink *0.3",
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
OUTLINES = _table(  # before the noun
    yes="outlined *8 | bordered *2 | edged *0.7",
    no="unoutlined *2 | borderless *1",
)
OUTLINE_DETAILS = _table(  # after "with"; {tone} is how the outline looks
    yes="an outline *6 | a {tone} outline *4 | a border *3 | a {tone} border *2 | a {tone} edge *0.7"
    " | an edge *0.3 | a frame *0.3 | a thin outline *0.3 | a {tone} line around it *0.3",
    no="no outline *5 | no border *2 | no edge *0.3",
)
OUTLINE_ENDINGS = _table(  # after the noun, without "with"
    yes="outlined in {line} *3 | edged in {line} | bordered in {line} *0.5",
    no="without an outline *4 | without outline *2 | without a border *2 | not outlined",
)
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
NEIGHBORS = phrases("{a} next to {b} *4 | {a} beside {b} *2 | {a} and {b} side by side *2 | {a} by {b} *0.3")

NUMBERS = {
    1: phrases("one *6 | 1 | a single *3"),
    2: phrases("two *8 | 2 *2"),
    3: phrases("three *8 | 3 *2"),
    4: phrases("four *8 | 4 *2"),
}
SINGLE = phrases("a single *5 | one *4 | just one | a lone | only one | exactly one *0.5 | 1 *0.5 | one single *0.3")
THINGS = phrases("shape *6 | object *3 | figure | thing *0.5 | item *0.5")

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
    "": phrases("a {g} {b} *10 | {g} *2"),
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

# Comprehensive captions: {things} is "three shapes", {items} the objects, {single} "a single red circle"
PLANS = phrases(
    "{things} {on} {ground}: {items}. *6 | {on} {ground}, {things}: {items}. *2"
    " | {on} {ground} there {are} {things}: {items}. *3 | {items}, {on} {ground}. {things} in all. *2"
    " | {items}. {things} {on} {ground}. | {surface}. {things}: {items}. *2"
    " | {surface}. there {are} {things}: {items}. *2 | there {are} {things}: {items}. {surface}. *2"
    " | {things}: {items}. {surface}. *2 | a picture of {things} {on} {ground}: {items}."
    " | {ground} with {things}: {items}. *2 | the image shows {things} {on} {ground}: {items}. *0.5"
)
SINGLE_PLANS = phrases(
    "{single} {on} {ground}. *6 | {on} {ground}, {single}. *2 | {on} {ground} there is {single}. *2"
    " | {surface}. there is {single}. *2 | there is {single}. {surface}. *2 | {single}. {surface}. *2"
    " | {items} {on} {ground}, nothing else. *1.5 | {items}, alone {on} {ground}. *1.5"
    " | {ground} with {single}. *2 | a picture of {single} {on} {ground}."
)
ITEMS = phrases(
    "{np} {place} *10 | {place} {np} *2 | {np} ({name}) *2 | {np}, {name} *2 | {name}, {np} | {place}, {np}"
)
ORDERS = phrases(
    "{size} {fill} {color} *6 | {size} {color} {fill} *3 | {fill} {size} {color}"
    " | {size} {outline} {fill} {color} *3 | {outline} {size} {fill} {color}"
    " | {size} {color} {outline} {fill} | {size} {fill} {outline} {color} | {color} {fill} {size} *0.3"
    " | {fill} {color} {size} *0.3 | {color} {size} {fill} *0.5"
)
SHARED = {  # of two, three and four objects
    2: phrases("both {words}"),
    3: phrases("all {words} *4 | all three {words}"),
    4: phrases("all {words} *4 | all four {words}"),
}
NONE_OUTLINED = {
    2: phrases("neither outlined *3 | no outlines *2 | without outlines *2 | without borders *0.5"),
    3: phrases("none outlined *4 | no outlines *2 | without outlines *2 | without borders *0.5"),
    4: phrases("none outlined *4 | no outlines *2 | without outlines *2 | without borders *0.5"),
}
REST_NOT_OUTLINED = {  # the number of those without
    1: phrases("the other not outlined *3 | the other without an outline | the other one has no outline"),
    2: phrases("the rest not outlined *3 | the others without outlines *2 | the others have no outline"),
    3: phrases("the rest not outlined *3 | the others without outlines *2 | the others have no outline"),
}
RELATION_SENTENCES = phrases("{a} is {rel} *8 | {a} stands {rel} | {a} sits {rel} *0.5")

# Brief captions: {body} is the list of objects, {ask} what comes before it, {bare} "yellow background"
ASKS = phrases(
    " *60 | draw *5 | please draw | draw me | paint | make | create | generate | show *0.7 | show me *1.5"
    " | give me *0.7 | i want *0.7 | i would like *0.4 | i'd like *0.2 | put *0.3 | place *0.3 | add *0.3"
    " | just *0.3 | a picture of *4 | picture of *1.5 | a picture with | an image of *3 | image of"
    " | an image with | a drawing of *1.5 | a simple drawing of *0.5 | a painting of *0.5"
    " | a photo of *0.5 | an illustration of *0.7 | a scene with | make a picture of *0.7"
    " | draw a picture of *0.5 | create an image of *0.5 | generate an image with *0.5"
    " | a simple picture of *0.3 | there {are} *1.5 | i see *0.2"
)
REQUESTS = phrases(
    "can you draw {body}? *2 | could you draw {body}? | can you make a picture of {body}?"
    " | please make {body} | {body}, please *2"
)
BRIEF_PLANS = phrases(
    "{ask} {body} {on} {ground} *8 | {on} {ground}, {body} | {on} {ground} there {are} {body} *0.5"
    " | {ask} {ground} with {body} *1.5 | {ask} {body} with a {bare} | {ask} {body}, {bare} *2"
    " | {bare}, {body} | {bare} with {body} *0.7 | {ask} {body}. {surface}"
)
SENTENCE_PLANS = phrases("{body} {on} {ground} *4 | {on} {ground}, {body} *2 | {body}. {surface} *3 | {body}, {bare}")
COUNTED = phrases("{things}: {body} *4 | {things}, {body} | {things} - {body} *0.5")
JOINS = phrases("{most} and {last} *8 | {most}, {last} *3 | {most}, and {last} *2 | {most} & {last} *0.3")
ARTICLES = phrases("a *18 | *6 | one *1.2 | the *0.8")
SINGLE_ARTICLES = phrases("a *16 | *5 | the *0.5")

ALT_PATTERNS = (  # noise around a caption, as pages on the web have it
    "{caption} - stock photo",
    "{caption} stock vector",
    "{caption} | free download",
    "{caption} | Shapes & More",
    "{caption} royalty-free image #{n}",
    "{caption} (IMG_{n}.JPG)",
    "IMG_{n}.jpg {caption}",
    "DSC{n}: {caption}",
    "{caption} https://example.com/p/{n}",
    "www.example.org - {caption}",
    "{caption} #shapes #geometry #art",
    "{caption} #{n} of 5000",
    "{caption} - buy now, {m}% off!",
    "SALE! {caption}, free shipping",
    "{caption} - photo {n} - {y}",
    "{caption}, {y}-0{d}-1{d}",
    "{y}/0{d}/2{d} {caption}",
    "{caption} ... click to enlarge",
    "image may contain: {caption}",
    "{caption} - Wallpaper {n}x{n} HD",
    "Thumbnail for {caption}",
    "{caption}",
    "{caption}!!!",
    "Figure {d}: {caption}",
    "{caption} by user{n}",
    "{caption} clip art, watermarked",
    "Untitled-{d} {caption}",
)
ALT_NUMBERS = {
    "n": (1000, 9999),
    "m": (5, 80),
    "y": (2005, 2024),
    "d": (1, 9),
}  # ranges of the numbers in them
FILE_NAMES = ("{slug}.jpg", "{slug}.png", "{slug}-{n}.jpg", "{slug}_{y}.jpeg", "images/{slug}.webp")

BRITISH = {
    "center": "centre",
    "centered": "centred",
    "gray": "grey",
    "solid-colored": "solid-coloured",
    "checkered": "chequered",
}

GLUE = "a an and are is outlined the there with"  # what clauses.py and captions.py add of their own


def all_patterns() -> list[str]:
    """Every alternative of every table that comprehensive and brief captions draw from."""
    by_value = (
        NOUNS,
        COLORS,
        SIZES,
        FILLS,
        FILL_DETAILS,
        ACCENTS,
        OUTLINES,
        OUTLINE_DETAILS,
        OUTLINE_ENDINGS,
    )
    by_value += (TONES, PLACES, PLACE_NAMES, RELATIONS, RELATIONS_TO_IT, NUMBERS, GROUNDS, GROUND_PHRASES)
    by_value += (GROUND_SENTENCES, BARE_GROUNDS, SHARED, NONE_OUTLINED, REST_NOT_OUTLINED)
    single = (NEIGHBORS, SINGLE, THINGS, GROUND_NOUNS, ON, PLANS, SINGLE_PLANS, ITEMS, RELATION_SENTENCES)
    single += (ASKS, REQUESTS, BRIEF_PLANS, SENTENCE_PLANS, COUNTED, JOINS, ARTICLES, SINGLE_ARTICLES)
    tables = [*single, *(entry for table in by_value for entry in table.values())]
    return [text for table in tables for text in table.texts]


def plural(noun: str) -> str:
    """Plural of a noun of this vocabulary: "box" gives "boxes"."""
    if noun == "annulus":
        return "annuli"
    return noun + ("es" if noun.endswith(("s", "x")) else "s")
