"""Warnings about a typed prompt before it is drawn: what the world does not know, or cannot draw."""

import re
from collections.abc import Sequence
from itertools import pairwise

from cogview3.data.scenes import wording as w
from cogview3.data.scenes.scene import COUNT_WEIGHTS
from cogview3.data.scenes.vocabulary import (
    WORD,
    corrected,
    is_slip,
    long_names,
    suggestions,
    unknown_words,
    vocabulary,
    without_long_names,
)
from cogview3.prompts.words import NUMBERS, is_english

MAX_OBJECTS = len(COUNT_WEIGHTS)
_ADJECTIVES = {
    text: (kind, value)
    for kind, table in (("color", w.COLORS), ("size", w.SIZES), ("fill", w.FILLS))
    for value, phrases in table.items()
    for text in phrases.texts
    if " " not in text
}
_NOUNS = {
    form: (kind, value)
    for kind, table in (("shape", w.NOUNS), ("thing", w.THING_NOUNS), ("object", w.OBJECTS))
    for value, phrases in table.items()
    for text in phrases.texts
    for form in (text, w.plural(text))
}
_CONTAINMENT = re.compile(r"\b(inside|within)\b", re.IGNORECASE)
_DETERMINERS = {"a", "an", "the", "another", *NUMBERS}
_ARTICLE = re.compile(r"\b([Aa])n?\b(?=\s+(\w))")
_REACH = 3  # words between a number and the noun that it counts


def problems(prompt: str) -> list[str]:
    """What a picture of a prompt will not show as asked, one sentence each; [] where nothing is known to be amiss.

    Named are another language, unknown words with what they probably mean, contradictions ("a red blue circle"), counts
    above what a scene holds, one object inside another, and colors or fills of things, which look as they are drawn.
    """
    if not is_english(prompt):
        return ["the model reads English only"]
    told_below = {"inside", "within", *NUMBERS}
    found = [_unknown(word) for word in unknown_words(prompt) if not (word in told_below or word.isdecimal())]
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[,;.:]", without_long_names(prompt.lower()))
    found += _contradictions(words)
    if (number := _number(words)) > MAX_OBJECTS:
        found.append(f"a picture holds at most {MAX_OBJECTS} objects, not {number}")
    if _CONTAINMENT.search(prompt):
        found.append("the model draws no object inside another, but side by side")
    return found


def why_not_expand(prompt: str) -> str:
    """Why the world's own expander should leave a prompt alone, "" where it should not."""
    if not is_english(prompt):
        return "it is not in English"
    words = WORD.findall(prompt)
    unknown = unknown_words(prompt)
    named = [word for word in re.findall(r"[a-z-]+", prompt.lower()) if word in _NOUNS or word in _ADJECTIVES]
    if unknown and not named and without_long_names(prompt) == prompt:
        return "none of its objects is known to the model"
    if 2 * len(unknown) > len(words):
        return f"most of its words are unknown to the model ({', '.join(unknown[:5])})"
    return ""


def to_expand(prompt: str) -> tuple[str, str]:
    """What the world's own expander is to expand of a prompt, and why it should leave it alone, "" where it should not.

    Words that no picture shows are left out where they say more of a known object: "a happy sun" is a sun, "a dog
    chasing a cat" a dog and a cat, and a red fox a fox, as things look as they are drawn. Slips of spelling are
    corrected. Names of unknown things stay, so that nothing is drawn in their place.
    """
    given = prompt
    for word in unknown_words(prompt):
        if meant := corrected(word):
            prompt = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", meant, prompt, flags=re.IGNORECASE)
    if reason := why_not_expand(prompt):
        return given, reason
    unknown = set(unknown_words(prompt))
    words = list(WORD.finditer(prompt))
    kinds = [_kind(prompt, word, unknown.union(w.PRAISE.texts)) for word in words]
    nouns = [_qualified(prompt, words, kinds, place) for place in range(len(words))]
    for place, noun in enumerate(nouns):
        if noun is not None and kinds[place] == "adjective" and _is_fixed(words[place][0], words[noun][0]):
            kinds[place] = "unseen"
    kept = prompt
    for place in reversed([place for place, kind in enumerate(kinds) if kind == "unseen"]):
        word = words[place][0].lower()
        qualifies = nouns[place] is not None
        if place and kinds[place - 1] == "noun" and _adjoin(prompt, words[place - 1 : place + 1]):
            another = kinds[place + 1 : place + 2] == ["determiner"] and _adjoin(prompt, words[place : place + 2])
            text = " and" if another or qualifies else "" if word.endswith(("ing", "ed")) else None
            likely = vocabulary() - _NOUNS.keys()  # "abov", not "eats"
        else:
            text = "" if qualifies else None
            likely = frozenset(_ADJECTIVES)  # "pnk", not "tall"
        misspelled = word in unknown and any(is_slip(word, other) for other in likely)
        if text is not None and not misspelled:
            start, end = words[place].span()
            kept = kept[:start].rstrip() + text + kept[end:]
    return _ARTICLE.sub(lambda found: found[1] + ("n" if found[2] in "aeiouAEIOU" else ""), kept).strip(), ""


def _kind(prompt: str, word: re.Match[str], unseen: set[str]) -> str:
    """What a word of a prompt is: "noun", of a known object, "adjective", "determiner", "unseen" or "other"."""
    text = word[0].lower().replace("’", "'")
    if text in unseen:
        return "unseen"
    if text in _ADJECTIVES:
        return "adjective"
    if text in _DETERMINERS:
        return "determiner"
    in_name = any(name.start() <= word.start() < name.end() for name in long_names().finditer(prompt))
    return "noun" if in_name or text in _NOUNS else "other"


def _qualified(prompt: str, words: Sequence[re.Match[str]], kinds: Sequence[str], place: int) -> int | None:
    """Place of the noun that a word says more of; None where it stands before none."""
    noun = place + 1
    while kinds[noun : noun + 1] in (["unseen"], ["adjective"]):
        noun += 1
    return noun if kinds[noun : noun + 1] == ["noun"] and _adjoin(prompt, words[place : noun + 1]) else None


def _is_fixed(adjective: str, noun: str) -> bool:
    """Whether a color or fill is said of a thing, which is drawn as it is."""
    of_thing = _NOUNS.get(noun.lower(), ("thing", ""))[0] == "thing"  # or the first word of a name of several words
    return of_thing and _ADJECTIVES[adjective.lower()][0] != "size"


def _adjoin(prompt: str, words: Sequence[re.Match[str]]) -> bool:
    """Whether nothing but white space lies between words."""
    return not any(prompt[one.end() : other.start()].strip() for one, other in pairwise(words))


def _unknown(word: str) -> str:
    near = suggestions(word)
    return f"the model does not know {word!r}" + (f"; similar words: {', '.join(near)}" if near else "")


def _contradictions(words: list[str]) -> list[str]:
    """Two values of one fact before one noun, and colors or fills of things."""
    found: list[str] = []
    said: dict[str, tuple[str, str]] = {}  # by kind: the value and its word
    for index, word in enumerate(words):
        if word in _ADJECTIVES:
            kind, value = _ADJECTIVES[word]
            earlier = said.get(kind)
            if earlier and earlier[0] != value:
                found.append(f"{earlier[1]!r} and {word!r} contradict each other")
            said[kind] = value, word
            continue
        noun = _NOUNS.get(word)
        if noun and noun[0] == "thing" and words[index + 1 : index + 2] not in (["background"], ["grid"]):
            given = [text for kind, (_, text) in said.items() if kind != "size"]
            found += [f"a {noun[1]} is drawn as it is, not {text!r}" for text in given]
        said = {}
    return found


def _number(words: list[str]) -> int:
    """The largest number that counts a known noun."""
    numbers = [0]
    for index, word in enumerate(words):
        number = int(word) if word.isdecimal() and len(word) < 4 else NUMBERS.get(word, 0)
        after = words[index + 1 : index + 2 + _REACH]
        if number > 1 and any(other in _NOUNS for other in after):
            numbers.append(number)
    return max(numbers)
