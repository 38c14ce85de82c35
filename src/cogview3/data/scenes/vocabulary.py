"""The words that captions of scenes are made of, and suggestions for unknown words."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from types import ModuleType

from cogview3.data.scenes import sentences as s
from cogview3.data.scenes import wording as w
from cogview3.data.scenes.things import THINGS

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s!-/:-@\[-`{-~‘’“”–—…]")  # a word, or a sign such as an emoji
_NEVER_ALONE = {"five", "pointed"}  # "five-pointed" is known, but there are no five objects
_MAX_SUGGESTIONS = 3
_MIN_GUESSED = 4  # letters of a word that is guessed by its letters
_MIN_CORRECTED = 5  # letters of a word that is corrected
_ALIKE = 0.79  # least likeness of words spelled alike, 0 to 1
_GLUE = "a an and are is outlined the there with different"  # what clauses.py and captions.py add of their own

INTENTS = {  # words that people try, and the nearest that the world has
    "lion": "tiger leopard cheetah panther",
    "dog": "wolf hound poodle",
    "cow": "horse bull goat sheep donkey deer",
    "parrot": "bird eagle sparrow pigeon crow chicken hen rooster",
    "duck": "swan goose geese",
    "fish": "shark salmon tuna",
    "whale": "dolphin seal",
    "octopus": "jellyfish crab",
    "ladybug": "bug insect bee spider ant",
    "rabbit": "hamster squirrel mouse",
    "turtle": "lizard snake crocodile dinosaur dragon",
    "apple": "pear fruit",
    "strawberry": "raspberry",
    "hamburger": "sandwich hotdog",
    "cupcake": "cookie pie",
    "rose": "tulip lily",
    "tree": "forest bush wood",
    "car": "truck van taxi motorcycle bike bicycle",
    "airplane": "helicopter",
    "house": "building hut tent church",
    "castle": "tower",
    "sun": "sunset",
    "moon": "night",
    "hat": "cap helmet",
    "football": "basketball baseball",
    "gift": "parcel",
    "robot": "alien",
    "snowman": "person man woman boy girl people child",
    "guitar": "violin piano",
    "clock": "watch",
    "circle": "oval ellipse sphere orb round circular planet bubble coin hexagon",
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
    "next": "inside within touching",
    "above": "behind",
    "three": "few several",
    "four": "five six many",
}


@cache
def vocabulary() -> frozenset[str]:
    """Every word of comprehensive and brief captions, in lower case, with the plurals of shapes and things.

    A word with hyphens stands here whole and in parts: "polka-dot", "polka" and "dot". The numbers 1 to 4 are here.
    Words that belong to a thing's name of several words alone are not here: there are "brown bears", but nothing brown.
    """
    tables = (w.NOUNS, w.OBJECTS)
    plurals = [w.plural(noun) for table in tables for phrases in table.values() for noun in phrases.texts]
    names = [name for name in _thing_names() if " " not in name]
    texts = [*_patterns(w), *_patterns(s), *plurals, *names, *w.BRITISH.values(), _GLUE]
    words = {word for text in texts for word in _words(re.sub(r"{\w+}", " ", text))}
    return frozenset(words | {part for word in words for part in word.split("-")} - _NEVER_ALONE)


def _patterns(module: ModuleType) -> Iterator[str]:
    """Every alternative of a module's tables, but for alt-texts and the names of things."""
    for name, table in vars(module).items():
        if name.isupper() and name != "THING_NOUNS" and isinstance(table, dict | w.Phrases):
            for entry in table.values() if isinstance(table, dict) else [table]:
                yield from entry.texts if isinstance(entry, w.Phrases) else ()


def _thing_names() -> list[str]:
    return [name for thing in THINGS.values() for name in (*thing.names, *thing.plurals)]


@cache
def long_names() -> re.Pattern[str]:
    """Names of things that have several words."""
    names = sorted((name for name in _thing_names() if " " in name), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(names)})\b", re.IGNORECASE)


def without_long_names(prompt: str) -> str:
    """A prompt without the names of things that have several words, in single spaces."""
    return " ".join(long_names().sub(" ", " ".join(prompt.split())).split())


def unknown_words(prompt: str) -> list[str]:
    """Words of a prompt that no caption contains, in lower case, each once, in the prompt's order.

    Punctuation and letter case do not matter; plurals and possessives of known words are known. Signs that are neither
    letters nor punctuation (an emoji) count as words.
    """
    prompt = without_long_names(prompt)
    words = [part for word in _words(prompt) for part in ([word] if _is_known(word) else word.split("-"))]
    return [word for word in dict.fromkeys(words) if not _is_known(word)]


def suggestions(word: str) -> list[str]:
    """At most three known words for an unknown one: what it probably means, else a longer word spelled like it.

    Short words are not guessed by their letters, nor are any by few of them: "bat" is neither "hat" nor "at".
    """
    word = word.lower().removesuffix("'s")
    meant = _intents().get(word) or _intents().get(word.removesuffix("s")) or _intents().get(word.removesuffix("es"))
    if meant:
        return [meant]
    if len(word) < _MIN_GUESSED:
        return []
    return get_close_matches(word, sorted(vocabulary()), n=_MAX_SUGGESTIONS, cutoff=_ALIKE)


def corrected(word: str) -> str | None:
    """The known word that an unknown one of five letters or more is, but for one slip; None for none or several.

    Words with a meaning of their own in `INTENTS` are not corrected: a horse is no misspelled house.
    """
    word = word.lower()
    if len(word) < _MIN_CORRECTED or any(each in _intents() for each in (word, word.removesuffix("s"))):
        return None
    found = [known for known in vocabulary() if is_slip(word, known)]
    return found[0] if len(found) == 1 else None


def is_slip(word: str, other: str) -> bool:
    """Whether two words differ by a letter left out, added or replaced, but the first, or by two that are swapped."""
    if word[0] != other[0]:
        return False
    word, other = _without_prefix(word, other)
    word, other = _without_prefix(word[::-1], other[::-1])
    return {len(word), len(other)} in ({0, 1}, {1}) or (len(word) == 2 and word == other[::-1])


def _without_prefix(word: str, other: str) -> tuple[str, str]:
    start = next((at for at, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    return word[start:], other[start:]


def _words(text: str) -> Iterator[str]:
    return (found.replace("’", "'") for found in WORD.findall(text.lower().replace("w/o", "without")))


def _is_known(word: str) -> bool:
    stems = (word, word.removesuffix("'s"), word.removesuffix("s"), word.removesuffix("es"))
    return any(stem in vocabulary() for stem in stems)


@cache
def _intents() -> dict[str, str]:
    emoji = {chr(int(thing.code, 16)): name for name, thing in THINGS.items()}
    return emoji | {word: meant for meant, words in INTENTS.items() for word in words.split()}
