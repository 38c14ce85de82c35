"""Warnings about a typed prompt before it is drawn: what the world does not know, or cannot draw."""

import re

from cogview3.data.scenes import parser
from cogview3.data.scenes import wording as w
from cogview3.data.scenes.layout import laid_out
from cogview3.data.scenes.scene import COUNT_WEIGHTS
from cogview3.data.scenes.vocabulary import suggestions, unknown_words, without_long_names
from cogview3.prompts.words import NUMBERS, is_english

MAX_OBJECTS = len(COUNT_WEIGHTS)
ADJECTIVES = {text: said for text, said in parser.ADJECTIVES.items() if " " not in text and said[0] != "outline"}
NOUNS = {
    form: (kind, value)
    for kind, table in (("shape", w.NOUNS), ("thing", w.THING_NOUNS), ("object", w.OBJECTS))
    for value, phrases in table.items()
    for text in phrases.texts
    for form in (text, w.plural(text))
}
_CONTAINMENT = re.compile(r"\b(inside|within)\b", re.IGNORECASE)
_REACH = 3  # words between a number and the noun that it counts


def problems(prompt: str) -> list[str]:
    """What a picture of a prompt will not show as asked, one sentence each; [] where nothing is known to be amiss.

    Named are another language, unknown words with what they probably mean, contradictions ("a red blue circle"), counts
    above what a scene holds, one object inside another, and colors or fills of things, which look as they are drawn.
    """
    if not is_english(prompt):
        return ["the model reads English only"]
    told_below = {"inside", "within", *NUMBERS}
    found = [
        _unknown(word)
        for word in unknown_words(laid_out(prompt).prompt)
        if not (word in told_below or word.isdecimal())
    ]
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[,;.:]", without_long_names(prompt.lower()))
    found += _contradictions(words)
    if (number := _number(words)) > MAX_OBJECTS:
        found.append(f"a picture holds at most {MAX_OBJECTS} objects, not {number}")
    if _CONTAINMENT.search(prompt):
        found.append("the model draws no object inside another, but side by side")
    return found


def _unknown(word: str) -> str:
    near = suggestions(word)
    return f"the model does not know {word!r}" + (f"; similar words: {', '.join(near)}" if near else "")


def _contradictions(words: list[str]) -> list[str]:
    """Two values of one fact before one noun, and colors or fills of things."""
    found: list[str] = []
    said: dict[str, tuple[str | bool, str]] = {}  # by kind: the value and its word
    for index, word in enumerate(words):
        if word in ADJECTIVES:
            kind, value = ADJECTIVES[word]
            earlier = said.get(kind)
            if earlier and earlier[0] != value:
                found.append(f"{earlier[1]!r} and {word!r} contradict each other")
            said[kind] = value, word
            continue
        noun = NOUNS.get(word)
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
        if number > 1 and any(other in NOUNS for other in after):
            numbers.append(number)
    return max(numbers)
