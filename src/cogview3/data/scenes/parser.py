"""Comprehensive captions back to facts: the inverse of `captions.comprehensive` and `captions.plain`.

A caption is taken apart into pieces that the writer's tables know: an object, a place, the ground, a number of things,
what several objects share, a relation, and words between them. Every word has to belong to a piece, so that a text
which says anything else is refused rather than half understood.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import TypeVar

from cogview3.data.scenes import sentences as s
from cogview3.data.scenes import wording as w
from cogview3.data.scenes.reader import Reading
from cogview3.data.scenes.scene import (
    BETWEEN,
    CENTERS,
    Facts,
    ObjectFacts,
    Relation,
    relation_holds,
    relations_between,
)


def parse(text: str) -> Facts | None:
    """What a comprehensive caption states; None for any other text.

    Objects stand in the order in which the text names them; each has all its facts. Letter case, British spelling and
    spaces before punctuation do not matter. The count is the one stated, even if other objects follow than that many.
    """
    pieces = _Pieces()
    rest = _normal(text)
    while rest:
        found = [(match, take) for pattern, take in _KINDS if (match := pattern.match(rest))]
        if not found:
            return None
        match, take = max(found, key=lambda pair: pair[0].end())
        if not take(pieces, match[0].strip()):
            return None
        rest = rest[match.end() :].lstrip()
    return pieces.facts()


def reading_of(facts: Facts) -> Reading:
    """Facts of objects with places as if they were read from a picture: centers those of the cells, all relations.

    So `score.score` compares what one caption states with another, or with a scene.
    """
    centers = [CENTERS[item.position] for item in facts.objects]
    facts = replace(facts, count=len(facts.objects), relations=relations_between(centers))
    return Reading(facts, tuple(centers))


def is_consistent(facts: Facts) -> bool:
    """Whether there can be such a scene.

    There are as many objects as stated, no two in a cell, none of its ground's color; relations are as places have it.
    """
    objects = facts.objects
    return (
        facts.count == len(objects) == len({item.position for item in objects})
        and all(item.color != facts.ground for item in objects)
        and all(relation_holds(relation, reading_of(facts).centers) for relation in facts.relations)
    )


_THING_FACTS = {"thing", "size", "position"}
_SHAPE_FACTS = {each.name for each in fields(ObjectFacts)} - {"thing"}
Value = TypeVar("Value")
_Name = tuple[str | None, str]  # color and shape, or None and the thing


@dataclass
class _Pieces:
    """What was found so far; `order` holds "object" and "place" as they came."""

    objects: list[dict] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    grounds: list[tuple[str, str]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    shared: dict = field(default_factory=dict)
    rest_not_outlined: bool = False
    relations: list[tuple[str, list[_Name]]] = field(default_factory=list)

    def facts(self) -> Facts | None:
        """All of it together; None where something is missing, said twice or does not fit."""
        pairs = [tuple(self.order[i : i + 2]) for i in range(0, len(self.order), 2)]
        if not pairs or set(pairs) not in ({("object", "place")}, {("place", "object")}):
            return None
        if len(self.grounds) != 1 or len(self.counts) > 1:
            return None
        objects = []
        for own, place in zip(self.objects, self.places, strict=True):
            if own.keys() & self.shared.keys():
                return None
            known = {**own, **self.shared, "position": place}
            if self.rest_not_outlined:
                known.setdefault("outline", False)
            if known.keys() != (_THING_FACTS if "thing" in known else _SHAPE_FACTS):
                return None
            objects.append(ObjectFacts(**known))
        return self._with_relations(objects)

    def _with_relations(self, objects: list[ObjectFacts]) -> Facts | None:
        named = [(item.color, item.shape or item.thing) for item in objects]
        relations = []
        for kind, references in self.relations:
            if any(named.count(reference) != 1 for reference in references):
                return None
            first, second, *other = map(named.index, references)
            relations.append(Relation(first, kind, second, *other))
        (ground, texture), count = self.grounds[0], (self.counts or [len(objects)])[0]
        return Facts(ground, texture, count, tuple(objects), tuple(relations))


def texts_of(tables: Mapping[Value, w.Phrases], **slots: Iterable[str]) -> dict[str, Value]:
    """Every text of a table by value, names in braces filled in all ways, to its value. No text has two values."""
    found: dict[str, Value] = {}
    for value, phrases in tables.items():
        for text in phrases.texts:
            used = {name: words for name, words in slots.items() if f"{{{name}}}" in text}
            for words in product(*used.values()):
                filled = text.format(**dict(zip(used, words, strict=True)))
                assert found.setdefault(filled, value) == value, filled
    return found


def any_of(texts: Iterable[str]) -> str:
    """A pattern for one of these, the longest that fits, whole words."""
    return rf"(?:{'|'.join(re.escape(text) for text in sorted(texts, key=len, reverse=True))})(?![\w-])"


def _every(tables: Mapping) -> list[str]:
    return [text for phrases in tables.values() for text in phrases.texts]


_COLORS, _SIZES, NOUNS, THINGS = (texts_of(table) for table in (w.COLORS, w.SIZES, w.NOUNS, w.THING_NOUNS))
_FILLS = texts_of(w.FILLS)
ADJECTIVES = {
    text: (name, value)
    for name, table in (("color", _COLORS), ("size", _SIZES), ("fill", _FILLS), ("outline", texts_of(w.OUTLINES)))
    for text, value in table.items()
}
_DETAILS = {text: ("fill", value) for text, value in texts_of(w.FILL_DETAILS, accent=_every(w.ACCENTS)).items()} | {
    text: ("outline", value) for text, value in texts_of(w.OUTLINE_DETAILS, tone=_every(w.TONES)).items()
}
_ENDINGS = {text: ("outline", value) for text, value in texts_of(w.OUTLINE_ENDINGS, line=("black", "white")).items()}
_PLACES = texts_of(w.PLACES) | texts_of(w.PLACE_NAMES)
_GROUNDS = {
    text: (ground, texture)
    for ground, colors in w.GROUNDS.items()
    for table in (w.GROUND_PHRASES, w.GROUND_SENTENCES)
    for text, texture in texts_of(
        {texture: table[texture] for texture in ("plain", "tiled")}, g=colors.texts, b=w.GROUND_NOUNS.texts
    ).items()
}
_COUNTS = {
    f"{text} {noun if number == 1 else w.plural(noun)}": number
    for number, phrases in w.NUMBERS.items()
    for text, noun in product(phrases.texts, _every(w.OBJECTS))
}
_RELATIONS = texts_of(w.RELATIONS)
_NONE = {text for phrases in s.NONE_OUTLINED.values() for text in phrases.texts}
_REST = {text for phrases in s.REST_NOT_OUTLINED.values() for text in phrases.texts}
_GLUE = {"there is", "there are", "with", "and", "&", "a picture of", "the image shows", "in all"}
_GLUE |= {"nothing else", "alone"}

_AMERICAN = {british: american for american, british in w.BRITISH.items()}
_BRITISH = re.compile(rf"\b{any_of(_AMERICAN)}")

_ADJECTIVE, _DETAIL = any_of(ADJECTIVES), any_of(_DETAILS)
_SHAPE = rf"(?P<adjectives>(?:{_ADJECTIVE} )*)(?P<noun>{any_of(NOUNS)})"
_THING = rf"(?P<size>{any_of(_SIZES)} )?(?P<thing>{any_of(THINGS)})"
_OBJECT = re.compile(
    rf"(?:{any_of(('a', 'an', *w.SINGLE.texts))}) (?:{_SHAPE}"
    rf"(?: with (?P<first>{_DETAIL})(?: and (?P<second>{_DETAIL}))?| (?P<ending>{any_of(_ENDINGS)}))?|{_THING})"
)
_SHARED_WORD = any_of([*_SIZES, *_FILLS, "outlined"])
_SHARED = re.compile(rf"(?:both|all three|all four|all) {_SHARED_WORD}(?:, {_SHARED_WORD})*(?: and {_SHARED_WORD})?")
_REFERENCE = rf"the (?:(?P<color>{any_of(_COLORS)}) (?P<shape>{any_of(NOUNS)})|(?P<thing>{any_of(THINGS)}))"
_THE = re.sub(r"\?P<\w+>", "?:", _REFERENCE)
_TOLD = rf"{any_of(_RELATIONS)} {_THE}(?: and {_THE})?"
_RELATED = re.compile(rf"{_THE} (?:is|stands|sits) {_TOLD}(?: and {_TOLD})?")


def _normal(text: str) -> str:
    """Lower case, American spelling, single spaces, none before closing and after opening marks."""
    text = " ".join(text.lower().split())
    text = re.sub(r" ([.,:;)])", r"\1", re.sub(r"\( ", "(", text))
    return _BRITISH.sub(lambda found: _AMERICAN[found[0]], text)


def _take_object(pieces: _Pieces, text: str) -> bool:
    found = _OBJECT.fullmatch(text)
    pieces.order.append("object")
    if found["thing"]:
        size = {"size": _SIZES[found["size"].strip()]} if found["size"] else {}
        pieces.objects.append({"thing": THINGS[found["thing"]], **size})
        return True
    known: list[tuple[str, str | bool]] = [("shape", NOUNS[found["noun"]])]
    known += [ADJECTIVES[word] for word in re.findall(_ADJECTIVE, found["adjectives"])]
    known += [_DETAILS[found[name]] for name in ("first", "second") if found[name]]
    known += [_ENDINGS[found["ending"]]] if found["ending"] else []
    pieces.objects.append(dict(known))
    return len(pieces.objects[-1]) == len(known)  # nothing said twice


def _take_place(pieces: _Pieces, text: str) -> bool:
    pieces.places.append(_PLACES[text])
    pieces.order.append("place")
    return True


def _take_ground(pieces: _Pieces, text: str) -> bool:
    for word in w.ON.texts:
        text = text.removeprefix(f"{word} ")
    pieces.grounds.append(_GROUNDS[text])
    return True


def _take_count(pieces: _Pieces, text: str) -> bool:
    pieces.counts.append(_COUNTS[text])
    return True


def _take_shared(pieces: _Pieces, text: str) -> bool:
    words = re.findall(_SHARED_WORD, text)
    known = [("outline", True) if word == "outlined" else ADJECTIVES[word] for word in words]
    new = dict(known)
    if len(new) < len(known) or new.keys() & pieces.shared.keys():
        return False
    pieces.shared |= new
    return True


def _take_none_outlined(pieces: _Pieces, text: str) -> bool:
    if "outline" in pieces.shared:
        return False
    pieces.shared["outline"] = False
    return True


def _take_rest(pieces: _Pieces, text: str) -> bool:
    pieces.rest_not_outlined = True
    return True


def _take_relation(pieces: _Pieces, text: str) -> bool:
    first, *others = (_named(found) for found in re.finditer(_REFERENCE, text))
    kinds = [_RELATIONS[found[0].strip()] for found in re.finditer(rf"(?<= ){any_of(_RELATIONS)}(?= the )", text)]
    if BETWEEN in kinds:
        pieces.relations.append((BETWEEN, [first, *others]))
        return len(kinds) == 1 and len(others) == 2
    pieces.relations += [(kind, [first, second]) for kind, second in zip(kinds, others, strict=False)]
    return len(kinds) == len(others)


def _named(reference: re.Match) -> _Name:
    """Color and shape of "the red circle", thing of "the fox"."""
    if reference["thing"]:
        return None, THINGS[reference["thing"]]
    return _COLORS[reference["color"]], NOUNS[reference["shape"]]


def _take_nothing(pieces: _Pieces, text: str) -> bool:
    return True


_KINDS = (
    (_OBJECT, _take_object),
    (re.compile(any_of(_PLACES)), _take_place),
    (re.compile(rf"(?:{any_of(w.ON.texts)} )?{any_of(_GROUNDS)}"), _take_ground),
    (re.compile(any_of(_COUNTS)), _take_count),
    (_SHARED, _take_shared),
    (re.compile(any_of(_NONE)), _take_none_outlined),
    (re.compile(any_of(_REST)), _take_rest),
    (_RELATED, _take_relation),
    (re.compile(any_of(_GLUE)), _take_nothing),
    (re.compile(r"[.,:;()]"), _take_nothing),
)
