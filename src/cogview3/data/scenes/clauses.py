"""Parts of captions: words for one object, for the ground, and for what objects share; spelling, letter case."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cogview3.data.scenes import sentences as s
from cogview3.data.scenes import wording as w
from cogview3.data.scenes.scene import COLORS, SHAPES, ObjectFacts, SceneObject
from cogview3.data.scenes.things import THINGS
from cogview3.data.scenes.vocabulary import vocabulary

BRITISH_SHARE = 0.15  # of captions, in British spelling
COLOR_AFTER_SHARE = 0.04  # of colors in brief captions, "a circle in red"


@dataclass(frozen=True)
class Noun:
    """Words for one object: "large striped", "circle", "with an outline"; `color` as it was said, or ""."""

    before: str
    noun: str
    after: str
    color: str

    def phrase(self, article: str) -> str:
        """All of it with an article ("a", "the", "a single", or "" for none)."""
        text = f"{self.before} {self.noun} {self.after}".strip()
        if article == "a":
            article = "an" if text[0] in "aeiou" else "a"  # no word of ours begins like "uniform" or "hour"
        return f"{article} {text}".strip()

    @property
    def reference(self) -> str:
        """A second mention, "the red circle"."""
        return f"the {self.color} {self.noun}" if self.color else f"the {self.noun}"

    @property
    def plural(self) -> str:
        """Several such objects, without the words after the noun."""
        return f"{self.before} {w.plural(self.noun)}".strip()


def noun_for(
    stated: ObjectFacts,
    item: SceneObject,
    ground: str,
    rng: np.random.Generator,
    bare: bool = False,
    color_after: float = 0.0,
) -> Noun:
    """Words for the stated facts (but the position) of an object.

    `bare` puts them all before the noun; `color_after` is the chance that the color stands after it.
    """
    words = {
        "size": w.SIZES[stated.size].pick(rng) if stated.size else "",
        "color": w.COLORS[stated.color].pick(rng) if stated.color else "",
    }
    words["fill"], fill_detail = _fill_words(stated.fill, item.color, rng, bare)
    words["outline"], outline_detail = _outline_words(stated.outline, ground, rng, bare, bool(fill_detail))
    order = s.ORDERS.pick(rng)
    if words["outline"] and "{outline}" not in order:
        order = "{outline} " + order
    noun = _noun(stated, rng)
    after = " and ".join(filter(None, [fill_detail, outline_detail]))
    color = words["color"]
    needs_ending = stated.outline is not None and not (words["outline"] or outline_detail)
    if color and not bare and not needs_ending and rng.random() < color_after:
        words["color"] = ""
        ending = w.COLOR_ENDINGS.pick(rng).format(color=color)
        after = f"{ending} with {after}" if after else ending
    elif not after and stated.outline is not None and not words["outline"]:
        after = w.OUTLINE_ENDINGS[stated.outline].pick(rng).format(line=line_color(ground))
    elif after:
        after = f"with {after}"
    return Noun(" ".join(order.format(**words).split()), noun, after, color)


def _noun(stated: ObjectFacts, rng: np.random.Generator) -> str:
    if stated.thing:
        return w.THING_NOUNS[stated.thing].pick(rng)
    return (w.NOUNS[stated.shape] if stated.shape else w.OBJECTS["shape"]).pick(rng)


def _fill_words(fill: str | None, color: str | None, rng: np.random.Generator, bare: bool) -> tuple[str, str]:
    """A fill as (adjective, words after "with"), one of them ""."""
    if fill is None:
        return "", ""
    if bare or rng.random() < (0.92 if fill == "plain" else 0.75):
        return w.FILLS[fill].pick(rng), ""
    accent = w.ACCENTS["light" if color in w.LIGHT_ACCENTS else "dark"].pick(rng)
    return "", w.FILL_DETAILS[fill].pick(rng).format(accent=accent)


def _outline_words(
    outline: bool | None, ground: str, rng: np.random.Generator, bare: bool, after_with: bool
) -> tuple[str, str]:
    """An outline or its absence as (adjective, words after "with"); both "" leave it to an ending.

    `after_with` says that there is a "with" already, to which no ending can be added.
    """
    if outline is None:
        return "", ""
    chance = rng.random()
    if bare or chance < (0.4 if outline else 0.15):
        return w.OUTLINES[outline].pick(rng), ""
    if after_with or chance < 0.75:
        tone = w.TONES[line_color(ground)].pick(rng)
        return "", w.OUTLINE_DETAILS[outline].pick(rng).format(tone=tone)
    return "", ""


def line_color(ground: str) -> str:
    """Color of outlines on this ground."""
    return "white" if ground == "black" else "black"


def is_unique(items: Sequence[SceneObject], index: int) -> bool:
    """Whether color and shape, or what thing it is, single this object out."""
    names = [(item.shape, item.color, item.thing) for item in items]
    return names.count(names[index]) == 1


def joined(parts: Sequence[str], rng: np.random.Generator) -> str:
    """One or more parts as a list: "a, b and c", "a, b, c" and the like."""
    if len(parts) == 1:
        return parts[0]
    return s.JOINS.pick(rng).format(most=", ".join(parts[:-1]), last=parts[-1])


def enumerated(parts: Sequence[str]) -> str:
    """One or more parts as "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def counted_objects(items: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """One to four objects by their number: "three shapes", "two animals"."""
    kind = "any" if any(item.thing for item in items) else "shape"
    families = {THINGS[item.thing].family if item.thing else "" for item in items}
    if len(families) == 1 and (family := families.pop()) in w.OBJECTS and rng.random() < 0.5:
        kind = family
    noun, number = w.OBJECTS[kind].pick(rng), len(items)
    return f"{w.NUMBERS[number].pick(rng)} {noun if number == 1 else w.plural(noun)}"


def ground_words(ground: str, texture: str, rng: np.random.Generator) -> dict[str, str]:
    """Values of {on}, {ground}, {bare} and {surface} in sentence patterns; a texture of "" is left unsaid."""
    words = {"g": w.GROUNDS[ground].pick(rng), "b": w.GROUND_NOUNS.pick(rng)}
    return {
        "on": w.ON.pick(rng),
        "ground": w.GROUND_PHRASES[texture].pick(rng).format(**words),
        "bare": w.BARE_GROUNDS[texture].pick(rng).format(**words),
        "surface": w.GROUND_SENTENCES[texture].pick(rng).format(**words),
    }


def say_shared(items: Sequence[SceneObject], chance: float, rng: np.random.Generator) -> tuple[dict[str, None], str]:
    """Say once what two or more objects have alike ("both striped", "none outlined").

    Returns the names of these facts, as keys, and the clause ("" if there is none).
    """
    number, said, adjectives, clauses = len(items), {}, [], []
    for name, words in (("size", w.SIZES), ("fill", w.FILLS)):
        values = {getattr(item, name) for item in items}
        if len(values) == 1 and None not in values and rng.random() < chance:
            said[name] = None
            adjectives.append(words[values.pop()].pick(rng))
    outlines = {item.outline for item in items}
    if len(outlines) == 1 and None not in outlines and rng.random() < chance:
        said["outline"] = None
        if outlines.pop():
            adjectives.append("outlined")
        else:
            clauses.append(s.NONE_OUTLINED[number].pick(rng))
    if adjectives:
        clauses.insert(0, s.SHARED[number].pick(rng).format(words=enumerated(adjectives)))
    return said, ", ".join(clauses)


def leave_out_rest(
    items: Sequence[SceneObject], stated: list[ObjectFacts], rng: np.random.Generator
) -> tuple[list[ObjectFacts], str]:
    """Say once that the objects without an outline have none, after those that have one."""
    without = sum(item.outline is False for item in items)
    if any(item.thing for item in items) or not 0 < without < len(items) or rng.random() < 0.4:
        return stated, ""
    left = [facts if facts.outline else replace(facts, outline=None) for facts in stated]
    return left, s.REST_NOT_OUTLINED[without].pick(rng)


def with_place(style: str, phrase: str, position: str, rng: np.random.Generator) -> str:
    """An object's phrase with its position, in one of the styles of ITEMS."""
    return style.format(np=phrase, place=w.PLACES[position].pick(rng), name=w.PLACE_NAMES[position].pick(rng))


def denial(items: Sequence[SceneObject], rng: np.random.Generator) -> tuple[dict[str, str], ObjectFacts]:
    """Something that is not there: values of {one}, {a} and {many} in DENIALS, and the facts that are denied."""
    shapes = {item.shape for item in items}
    colors = {item.color for item in items}
    chance = rng.random()
    if chance < 0.45:
        denied = ObjectFacts(thing=absent(tuple(THINGS), {item.thing for item in items}, rng))
    elif chance < 0.85 or shapes == {None}:
        denied = ObjectFacts(shape=absent(SHAPES, shapes, rng))
    else:
        shape = next(item.shape for item in items if item.shape)
        denied = ObjectFacts(shape=shape, color=absent(COLORS, colors, rng))
    color = f"{w.COLORS[denied.color].pick(rng)} " if denied.color else ""
    noun = Noun(color.strip(), _noun(denied, rng), "", color.strip())
    return {"one": noun.phrase(""), "a": noun.phrase("a"), "many": noun.plural}, denied


def absent(values: Sequence[str], present: set, rng: np.random.Generator) -> str:
    """One of the values that are not present."""
    left = [value for value in values if value not in present]
    return left[rng.integers(len(left))]


_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBORS = {key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _KEYS for i, key in enumerate(row)}


def misspelled(text: str, rng: np.random.Generator) -> str:
    """The text with a slip in one of its longer words: a letter left out, doubled, swapped or taken from beside it."""
    words = [found for found in re.finditer(r"[a-z]{4,}", text) if found[0] in vocabulary()]
    if not words:
        return text
    found = words[rng.integers(len(words))]
    word, at = found[0], int(rng.integers(1, len(found[0])))
    slips = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :],
        word[:at] + _NEIGHBORS[word[at]][int(rng.integers(len(_NEIGHBORS[word[at]])))] + word[at + 1 :],
    )
    slip = slips[rng.integers(len(slips))]
    return text if slip in vocabulary() else text[: found.start()] + slip + text[found.end() :]


_AMERICAN = re.compile("|".join(rf"\b{word}\b" for word in w.BRITISH), re.IGNORECASE)


def spelled(text: str, rng: np.random.Generator) -> str:
    """In some captions British spelling."""
    if rng.random() >= BRITISH_SHARE:
        return text
    return _AMERICAN.sub(lambda found: _like(found[0], w.BRITISH[found[0].lower()]), text)


def _like(model: str, word: str) -> str:
    return word.capitalize() if model[0].isupper() else word


def sentence_case(text: str) -> str:
    """A capital letter at the start of each sentence."""
    return re.sub(r"(?:^|(?<=[.?] ))[a-z]", lambda found: found[0].upper(), text)


def as_typed(text: str, rng: np.random.Generator) -> str:
    """Spacing, spelling, letter case and final stop as people type them."""
    text = spelled(" ".join(text.split()), rng)
    chance = rng.random()
    if chance < 0.55:
        return text
    if chance < 0.93:
        text = sentence_case(text)
        return text if text.endswith("?") or rng.random() < 0.4 else text + "."
    return text.upper() if chance < 0.96 else text.title().replace("'S", "'s").replace("'D", "'d")
