"""Where a typed prompt puts its objects, as far as it says so, and expansions that put them there.

The expander was not trained on three things in a row: such prompts are expanded as a list of the three, which are put
in their places afterwards. In every other expansion the places and relations that a prompt states are looked for.
"""

import re
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any

from cogview3.data.scenes import wording as w
from cogview3.data.scenes.captions import plain
from cogview3.data.scenes.parser import ADJECTIVES, NOUNS, THINGS, any_of, is_consistent, parse, reading_of, texts_of
from cogview3.data.scenes.scene import (
    BETWEEN,
    CENTERS,
    COLUMNS,
    ROWS,
    Facts,
    ObjectFacts,
    Relation,
    Scene,
    SceneObject,
    relation_holds,
)

_ACROSS = ("middle left", "middle center", "middle right")
_DOWN = ("top center", "middle center", "bottom center")
_CORNERS = tuple(f"{row} {column}" for row, column in product(("top", "bottom"), ("left", "right")))
_ONES = {text: ("shape", shape) for text, shape in NOUNS.items()}
_ONES |= {text: ("thing", thing) for text, thing in THINGS.items()}
_MANY = {w.plural(text): value for text, value in _ONES.items() if text != "dot"}  # a ring "with dots" is one object
_EITHER = _MANY | _ONES
_NUMBERS = {text: number for text, number in texts_of(w.GROUP_NUMBERS).items() if text != "a single"}
_OBJECT = (
    rf"(?<![\w-])(?:(?P<number>{any_of(_NUMBERS)}|an?|the|another) )?"
    rf"(?P<adjectives>(?:{any_of(ADJECTIVES)} )*)(?P<noun>{any_of(_EITHER)})"
)
_MENTION = re.compile(_OBJECT)
_THE = re.sub(r"\?P<\w+>", "?:", _OBJECT)

_PLACES: dict[str, tuple[str, ...]] = {text: (position,) for text, position in texts_of(w.PLACES).items()}
"""Words for a place, and the cells that they may mean."""

_PLACES |= {f"{words} corner": _CORNERS for words in ("in a", "in the", "in one")}
_PLACES = {text: cells for text, cells in _PLACES.items() if text not in ("center", "centered")} | {
    "in the center": ("middle center",),
    "in the middle": ("middle center",),
    "at the center": ("middle center",),
}
_PLACE = rf"{any_of(_PLACES)}(?! side|-hand|(?: side)? of(?! the (?:picture|image|frame|scene)))"
_RELATIONS = texts_of(w.RELATIONS)
_RELATION = any_of(text for text, kind in _RELATIONS.items() if kind != BETWEEN)
_IS = r"(?:,? (?:is|are|sits?|stands?|which is|that is))?"

ROW_WORDS = frozenset(["row", "line", "lined", "column", "stack", "stacked", "tower"])
"""Words that say how three objects stand, and that no caption has."""

_IN_A_ROW = re.compile(
    r",?(?: all)?(?: standing| sitting| lined up| arranged| placed)? (?:in (?:a|one) (?:row|line)|lined up)\b"
)
_A_ROW_OF = re.compile(r"\ba (?:row|line) of ")
_STACKED = re.compile(r",?(?: all)? (?:in (?:a|one) (?:column|stack|tower)|stacked(?: up)?|on top of each other)\b")


@dataclass(frozen=True)
class _Mention:
    """What a prompt names: how many, and what is said of each."""

    number: int
    said: ObjectFacts

    def fits(self, item: ObjectFacts) -> bool:
        """Whether an object may be meant; of a thing nothing is said but its size."""
        said = replace(self.said, color=None, fill=None) if self.said.thing else self.said
        return said.is_true_of(item)


def _mention(found: re.Match[str]) -> _Mention:
    known: dict[str, Any] = dict([_EITHER[found["noun"]]])
    words = re.findall(any_of(ADJECTIVES), found["adjectives"])
    known |= dict(ADJECTIVES[word] for word in words)
    number = _NUMBERS.get(found["number"] or "", 1)
    return _Mention(
        max(number, 2) if found["noun"] in _MANY and found["noun"] not in _ONES else number, ObjectFacts(**known)
    )


def _mentions(text: str) -> list[_Mention]:
    return [_mention(found) for found in _MENTION.finditer(text)]


@dataclass(frozen=True)
class Layout:
    """What a prompt says of places, and the prompt that the expander is given.

    Attributes:
        prompt: what is to be expanded, in small letters where it was changed.
        row: the cells of the objects, in the prompt's order, () where these are the expander's to choose.
    """

    prompt: str
    row: tuple[str, ...] = ()

    def finished(self, text: str) -> tuple[str, list[str]]:
        """An expansion as it is to be drawn, and what speaks against it; a text of another style is left alone."""
        facts = parse(text)
        if facts is None:
            return text, []
        if self.row:
            return _in_row(facts, self)
        moved = _moved(self.prompt, facts)
        if not is_consistent(moved):
            return text, ["a place for each object, and a background of another color"]
        return text if moved is facts else written(moved), lost_places(self.prompt, moved)


def laid_out(prompt: str) -> Layout:
    """What a prompt says of places: a row or a column of three, an object between two, a chain of relations."""
    text = " ".join(prompt.lower().split())
    for find in (_row, _chain, _between):
        if found := find(text):
            return found
    return Layout(prompt)


def _row(text: str) -> Layout | None:
    """Of "three apples in a row", "a dog, a cat and a fox in a row", "a row of three ducks", "three boxes stacked"."""
    across = _A_ROW_OF.sub("", _IN_A_ROW.sub("", text))
    cells, rest = (_ACROSS, across) if across != text else (_DOWN, _STACKED.sub("", text))
    if rest == text or sum(each.number for each in _mentions(rest)) != len(cells):
        return None
    return Layout(rest, cells)


def _chain(text: str) -> Layout | None:
    """Of "a circle left of a square left of a triangle", "a circle over a square over a triangle"."""
    link = rf"{_IS} (?P<{{}}>{_RELATION}) "
    pattern = rf"(?P<a>{_THE}){link.format('first')}(?P<b>{_THE}){link.format('second')}(?P<c>{_THE})"
    found = re.search(pattern, text)
    if not found or len(_mentions(text)) != 3 or any(each.number > 1 for each in _mentions(text)):
        return None
    kinds = {_RELATIONS[found[name]] for name in ("first", "second")}
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    cells = _ACROSS if kind in ("left of", "right of") else _DOWN
    return Layout(_listed(text, found), cells if kind in ("left of", "above") else cells[::-1])


def _between(text: str) -> Layout | None:
    """Of "an apple between two bananas", "a star between a ring and a heart"."""
    words = any_of(w.RELATIONS[BETWEEN].texts)
    found = re.search(rf"(?P<a>{_THE}){_IS} {words} (?:(?P<b>{_THE}) and (?P<c>{_THE})|(?P<both>{_THE}))", text)
    mentions = _mentions(text)
    if not found or sum(each.number for each in mentions) != 3 or mentions[0].number != 1:
        return None
    left, center, right = _ACROSS
    return Layout(_listed(text, found), (center, left, right))


def _listed(text: str, found: re.Match[str]) -> str:
    """A prompt with what names three objects in relations replaced by a list of them."""
    *first, last = [found[name] for name in ("a", "b", "c", "both") if name in found.re.groupindex and found[name]]
    return f"{text[: found.start()]}{', '.join(first)} and {last}{text[found.end() :]}"


def _in_row(facts: Facts, layout: Layout) -> tuple[str, list[str]]:
    """The expansion of a list of three with these in a row, each of them small, as they have no room otherwise."""
    asked = [each for each in _mentions(layout.prompt.lower()) for _ in range(each.number)]
    wide = [replace(each, said=replace(each.said, size=None)) for each in asked]
    if len(facts.objects) != len(layout.row) or any(item.color == facts.ground for item in facts.objects):
        return "", ["three objects"]
    for order in permutations(facts.objects):
        if all(each.fits(item) for each, item in zip(wide, order, strict=True)):
            items = [replace(item, size="small", position=cell) for item, cell in zip(order, layout.row, strict=True)]
            return written(replace(facts, objects=tuple(items))), []
    return "", ["what stands where"]


def _moved(prompt: str, facts: Facts) -> Facts:
    """A scene in which each object that the prompt puts somewhere stands there."""
    items = list(facts.objects)
    for words, place in _placed(" ".join(prompt.lower().split())):
        mention = _mentions(words)[0]
        meant = [at for at, item in enumerate(items) if mention.fits(item)]
        if len(meant) == 1 == mention.number and not _stands(items[meant[0]], place, mention):
            free = [cell for cell in _PLACES[place] if cell not in {item.position for item in items}]
            if free:
                items[meant[0]] = replace(items[meant[0]], position=free[0])
    return facts if items == list(facts.objects) else replace(facts, objects=tuple(items))


def written(facts: Facts) -> str:
    """All facts of a scene as `captions.plain` has them, objects from the left and from the top."""
    objects = []
    for item in facts.objects:
        if item.position:
            look = item.shape, item.color, item.fill, item.outline, item.size or "small"
            objects.append(SceneObject(*look, *CENTERS[item.position], item.thing))
    objects.sort(key=lambda item: (item.y, item.x))
    return plain(Scene(str(facts.ground), str(facts.texture), tuple(objects))).text


def lost_places(prompt: str, facts: Facts) -> list[str]:
    """Places and relations that a prompt states and an expansion's facts do not have, in the prompt's words."""
    text = " ".join(prompt.lower().split())
    lost = []
    for object_, place in _placed(text):
        mention = _mentions(object_)[0]
        there = [item for item in facts.objects if mention.fits(item) and _stands(item, place, mention)]
        if len(there) < mention.number:
            lost.append(f"{object_} {place}")
    for found in re.finditer(rf"(?P<a>{_THE}){_IS} (?P<relation>{_RELATION}) (?P<b>{_THE})", text):
        one, other = (_mentions(found[name])[0] for name in "ab")
        if not _related(one, _RELATIONS[found["relation"]], other, facts):
            lost.append(found[0])
    return lost


def _placed(text: str) -> list[tuple[str, str]]:
    """Objects and their places, as they are named: each place is of the object before it, or of that after it."""
    found = list(re.finditer(rf"(?<![\w-])(?:(?P<place>{_PLACE})|(?P<object>{_THE}))", text))
    step = 1 if found and found[0]["place"] else -1
    pairs = []
    for at, each in enumerate(found):
        if each["place"] and 0 <= at + step < len(found) and (other := found[at + step])["object"]:
            one, two = (other, each) if step < 0 else (each, other)
            if re.fullmatch(rf"{_IS},? ?(?:there is )?", text[one.end() : two.start()]):
                pairs.append((other[0], each[0]))
    return pairs


def _stands(item: ObjectFacts, place: str, mention: _Mention) -> bool:
    cells = _PLACES[place]
    if mention.number > 1 and cells[0] not in _CORNERS:  # two stars "at the top" are beside each other
        row, column = cells[0].split()
        cells = (
            tuple(f"{row} {each}" for each in COLUMNS)
            if row != "middle"
            else tuple(f"{each} {column}" for each in ROWS)
        )
    return item.position in cells


def _related(one: _Mention, kind: str, other: _Mention, facts: Facts) -> bool:
    """Whether all objects that are meant, of each as many as are said, stand so."""
    centers = reading_of(facts).centers
    first, second = ([place for place, item in enumerate(facts.objects) if each.fits(item)] for each in (one, other))
    holds = [at for at in first if any(at != to and relation_holds(Relation(at, kind, to), centers) for to in second)]
    return len(holds) >= one.number
