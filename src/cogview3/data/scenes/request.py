"""What the world's own expander is asked for a typed prompt: the prompt in words that it was trained on."""

import re
from collections.abc import Sequence
from itertools import pairwise

from cogview3.data.scenes import wording as w
from cogview3.data.scenes.layout import ROW_WORDS, laid_out
from cogview3.data.scenes.typed import ADJECTIVES, NOUNS
from cogview3.data.scenes.vocabulary import (
    WORD,
    corrected,
    is_slip,
    long_names,
    unknown_words,
    vocabulary,
    without_long_names,
)
from cogview3.prompts.expand import Request
from cogview3.prompts.words import NUMBERS, is_english

_SPECIFIC = frozenset(word for word, (kind, _) in NOUNS.items() if kind != "object")
_SINGULARS = {
    w.plural(text): text for table in (w.NOUNS, w.THING_NOUNS) for each in table.values() for text in each.texts
}
_COLORS = {text for table in (w.COLORS, w.GROUNDS) for phrases in table.values() for text in phrases.texts}
_COLOR = "|".join(sorted(_COLORS, key=len, reverse=True))
_DIGITS = {str(number): phrases.texts[0] for number, phrases in w.NUMBERS.items()}
_DETERMINERS = {"a", "an", "the", "another", *NUMBERS}
_NAMES = "|".join(sorted((word for word in _SPECIFIC if " " not in word), key=len, reverse=True))
_WITH = re.compile(rf"\b({_NAMES}) (?:together )?with (an? (?:{_NAMES})\b(?!s))", re.IGNORECASE)
_ONE = re.compile(rf"\b((?:.*\b)?)({_NAMES})((?: and|,) (?:an?|one) (?:{_COLOR})) one\b", re.IGNORECASE)
_EACH = re.compile(
    rf"\b(?P<number>two|three|four) (?P<noun>{_NAMES}),? (?P<each>one [a-z]+(?:(?:,| and|, and) one [a-z]+)+)",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\b([Aa])n?\b(?=\s+(\w))")


def request(prompt: str) -> Request:
    """What the world's own expander is asked for a typed prompt, and how its expansions are looked at."""
    text, reason = to_expand(prompt)
    layout = laid_out(text)
    return Request(layout.prompt, turned(layout.prompt), reason, layout.finished)


def turned(prompt: str) -> tuple[str, ...]:
    """The same list the other way round, which a small model may read better; () of what is no list."""
    found = re.fullmatch(r"([^,;:.]+) and ((?:an?|one|two|three|four) [^,;:.]+?)( on (?:an? )?[^,;:.]+)?", prompt)
    return (f"{found[2]} and {found[1]}{found[3] or ''}",) if found else ()


def plainer(prompt: str) -> str:
    """A prompt in words that captions have.

    Numbers are words, "w/o" is "without"; a color's wall, floor or sky is a background; a heading that names nothing
    ("christmas: ...") goes; a robot with a balloon is both of them; of "two dogs, one big and one small" each is named,
    and so is what "a blue one" means.
    """
    prompt = re.sub(r"\bw/o\b", "without", prompt, flags=re.IGNORECASE)
    prompt = re.sub(r"(?<![\w-])([1-4])(?= [a-zA-Z])", lambda found: _DIGITS[found[1]], prompt)
    prompt = re.sub(rf"\b({_COLOR}) (?:floor|wall|canvas|sky)\b", r"\1 background", prompt, flags=re.IGNORECASE)
    prompt = re.sub(rf"\bsomething ({_COLOR})\b", r"a \1 shape", prompt, flags=re.IGNORECASE)
    prompt = _ONE.sub(lambda found: f"{found[1]}{found[2]}{found[3]} {_singular(found[2])}", prompt)
    head, mark, rest = prompt.partition(":")
    if mark and rest.strip() and _says_nothing(head):
        prompt = rest.strip()
    prompt = _WITH.sub(r"\1 and \2", prompt)
    return _EACH.sub(_each_named, prompt)


def _says_nothing(heading: str) -> bool:
    """Whether a heading holds no word of the world, or only counts what follows: "christmas", "three animals"."""
    number, *others = words = re.findall(r"[a-z0-9'-]+", heading.lower()) or [""]
    if len(others) == 1 and (number in NUMBERS or number.isdecimal()):
        return NOUNS.get(others[0], ("", ""))[0] == "object"
    return set(words) <= {*unknown_words(heading), *w.PRAISE.texts, "a", "an", "the", "my"}


def _singular(noun: str) -> str:
    """Of a known noun in either number: "butterflies" and "butterfly" are "butterfly"."""
    return _SINGULARS.get(noun.lower(), noun.lower())


def _each_named(found: re.Match[str]) -> str:
    """For "two dogs, one big and one small": "a big dog and a small dog"."""
    number = found["number"].lower()
    words = re.findall(r"\bone ([a-z]+)", found["each"].lower())
    if NUMBERS.get(number) != len(words) or not all(word in ADJECTIVES for word in words):
        return found[0]
    *first, last = [f"a {word} {_singular(found['noun'])}" for word in words]
    return f"{', '.join(first)} and {last}"


def why_not_expand(prompt: str) -> str:
    """Why the world's own expander should leave a prompt alone, "" where it should not."""
    if not is_english(prompt):
        return "it is not in English"
    words = WORD.findall(prompt)
    unknown = [word for word in unknown_words(prompt) if word not in ROW_WORDS]
    named = [word for word in re.findall(r"[a-z-]+", prompt.lower()) if word in NOUNS or word in ADJECTIVES]
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
    prompt = plainer(prompt)
    unknown = set(unknown_words(prompt)) - ROW_WORDS
    words = list(WORD.finditer(prompt))
    kinds = [_kind(prompt, word, unknown | set(w.PRAISE.texts)) for word in words]
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
            likely = vocabulary() - NOUNS.keys()  # "abov", not "eats"
        else:
            text = "" if qualifies else None
            likely = frozenset(ADJECTIVES)  # "pnk", not "tall"
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
    if text in ADJECTIVES:
        return "adjective"
    if text in _DETERMINERS:
        return "determiner"
    in_name = any(name.start() <= word.start() < name.end() for name in long_names().finditer(prompt))
    return "noun" if in_name or text in NOUNS else "other"


def _qualified(prompt: str, words: Sequence[re.Match[str]], kinds: Sequence[str], place: int) -> int | None:
    """Place of the noun that a word says more of; None where it stands before none."""
    noun = place + 1
    while kinds[noun : noun + 1] in (["unseen"], ["adjective"]):
        noun += 1
    return noun if kinds[noun : noun + 1] == ["noun"] and _adjoin(prompt, words[place : noun + 1]) else None


def _is_fixed(adjective: str, noun: str) -> bool:
    """Whether a color or fill is said of a thing, which is drawn as it is."""
    of_thing = NOUNS.get(noun.lower(), ("thing", ""))[0] == "thing"  # or the first word of a name of several words
    return of_thing and ADJECTIVES[adjective.lower()][0] != "size"


def _adjoin(prompt: str, words: Sequence[re.Match[str]]) -> bool:
    """Whether nothing but white space lies between words."""
    return not any(prompt[one.end() : other.start()].strip() for one, other in pairwise(words))
