"""The words that captions of scenes are made of, and what to say about words outside."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache

from cogview3.data.scenes import wording as w

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s!-/:-@\[-`{-~‘’“”–—…]")  # a word, or a sign such as an emoji
_NEVER_ALONE = {"five", "pointed"}  # "five-pointed" is known, but there are no five objects
_MAX_SUGGESTIONS = 3

INTENTS = {  # words that people try, and the nearest that the world has
    "circle": "oval ellipse sphere orb round circular moon sun planet bubble coin hexagon",
    "square": "rectangle cube quadrilateral",
    "triangle": "pyramid cone triangular arrow",
    "diamond": "kite gem rhomboid parallelogram",
    "star": "pentagram asterisk starfish sparkle pentagon",
    "ring": "bagel torus wheel tire loop hollow",
    "cross": "x crucifix",
    "heart": "valentine",
    "red": "maroon ruby burgundy cherry vermilion",
    "orange": "amber brown peach rust",
    "yellow": "lemon beige cream mustard",
    "green": "lime olive jade",
    "blue": "navy azure cobalt sapphire indigo",
    "purple": "lavender mauve plum",
    "pink": "magenta fuchsia salmon",
    "gray": "silver charcoal",
    "white": "ivory snow",
    "striped": "zebra lined patterned",
    "horizontal": "diagonal vertical",
    "dotted": "speckled freckled",
    "checkered": "plaid tartan gingham",
    "tiled": "textured",
    "background": "floor wall canvas",
    "outline": "stroke contour",
    "border": "rim",
    "huge": "enormous massive",
    "tiny": "mini minuscule",
    "next": "between near",
    "above": "behind",
    "two": "couple pair",
    "three": "few several",
    "four": "five six many",
}


@cache
def vocabulary() -> frozenset[str]:
    """Every word of comprehensive and brief captions, in lower case, with the plurals of shapes.

    A word with hyphens stands here whole and in parts: "polka-dot", "polka" and "dot". The numbers 1 to 4 are here.
    """
    plurals = [w.plural(noun) for phrases in (*w.NOUNS.values(), w.THINGS) for noun in phrases.texts]
    texts = [*w.all_patterns(), *plurals, *w.BRITISH.values(), w.GLUE]
    words = {word for text in texts for word in _words(re.sub(r"{\w+}", " ", text))}
    return frozenset(words | {part for word in words for part in word.split("-")} - _NEVER_ALONE)


def unknown_words(prompt: str) -> list[str]:
    """Words of a prompt that no caption contains, in lower case, each once, in the prompt's order.

    Punctuation and letter case do not matter; plurals and possessives of known words are known. Signs that are neither
    letters nor punctuation (an emoji) count as words.
    """
    words = [part for word in _words(prompt) for part in ([word] if _is_known(word) else word.split("-"))]
    return [word for word in dict.fromkeys(words) if not _is_known(word)]


def suggestions(word: str) -> list[str]:
    """At most three known words for an unknown one: what it probably means, else words spelled like it."""
    word = word.lower()
    meant = _intents().get(word) or _intents().get(word.removesuffix("s"))
    if meant:
        return [meant]
    return get_close_matches(word, sorted(vocabulary()), n=_MAX_SUGGESTIONS, cutoff=0.75)


def _words(text: str) -> Iterator[str]:
    return (found.replace("’", "'") for found in _WORD.findall(text.lower()))


def _is_known(word: str) -> bool:
    stems = (word, word.removesuffix("'s"), word.removesuffix("s"), word.removesuffix("es"))
    return any(stem in vocabulary() for stem in stems)


@cache
def _intents() -> dict[str, str]:
    return {word: meant for meant, words in INTENTS.items() for word in words.split()}
