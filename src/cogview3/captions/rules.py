"""Rules for new captions, as far as code can check them."""

import re
from collections.abc import Callable

from cogview3.prompts.words import is_english

MIN_WORDS = 12
"""A shorter caption is not comprehensive."""

MAX_WORDS = 170
"""A longer one does not fit into the 225 tokens of the published models' text length."""

_THING = "image|picture|photo|photograph|photography|illustration|drawing|painting|artwork|scene|graphic|screenshot"
_VERB = (
    "show|shows|showing|depict|depicts|depicting|display|displays|feature|features|featuring|present|presents|portray"
    "|portrays|capture|captures|capturing|contain|contains|illustrate|illustrates|represents|is|of|we|you|there"
)
_OPENING = re.compile(
    rf"^\W*(?:in|within) (?:the|this|that) (?:[\w-]+ ){{0,4}}(?:{_THING})s?\b"
    rf"|^\W*(?:the|this|that|an?) (?:[\w-]+ ){{0,4}}(?:{_THING})s? (?:{_VERB})\b"
    rf"|^\W*(?:{_THING}) (?:{_VERB})\b"
    r"|^\W*(?:here's|here’s|(?:here|we|you) (?:is|are|see|can))\b|^\W*(?:caption|description|answer|result)\s*:",
    re.IGNORECASE,
)
_HEDGING = re.compile(
    r"\b(?:perhaps|maybe|possibly|probably|presumably|apparently|seemingly|supposedly|likely|unclear|uncertain"
    r"|seems?|appears?|appearing|might|may (?:be|have|indicate|suggest)|could (?:be|have|indicate|suggest)"
    r"|suggest(?:s|ing)? that|looks like it|some (?:kind|sort) of|as if to)\b",
    re.IGNORECASE,
)
_LINK = re.compile(
    r"https?:|www\.|\b[\w.-]+@[\w-]+\.\w+|\b[\w-]+\.(?:com|net|org|info|shop|co\.uk|de|fr|ru|cn|io)\b", re.IGNORECASE
)
_ADVERTISING = re.compile(
    r"\b(?:free shipping|buy now|shop now|order now|click here|for sale|best price|in stock|limited offer|sign up"
    r"|subscribe|discount code|all rights reserved|stock photos?|royalty[- ]free)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[\r\n]|^\s*[-*#]\s|\*\*|```|<[a-z/][^>]*>|\{\"", re.IGNORECASE)
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|「[^」]*」|『[^』]*』|(?<!\w)['‘][^'’]+['’](?!\w)")


def _unquoted(caption: str) -> str:
    """The caption without the text that it quotes from the picture, which keeps its own language."""
    return _QUOTED.sub(" ", caption)


RULES: dict[str, Callable[[str], bool]] = {
    "opening": lambda caption: bool(_OPENING.search(caption)),
    "hedging": lambda caption: bool(_HEDGING.search(_unquoted(caption))),
    "link": lambda caption: bool(_LINK.search(caption)),
    "advertising": lambda caption: bool(_ADVERTISING.search(_unquoted(caption))),
    "markup": lambda caption: bool(_MARKUP.search(caption)),
    "too short": lambda caption: len(caption.split()) < MIN_WORDS,
    "too long": lambda caption: len(caption.split()) > MAX_WORDS,
    "language": lambda caption: not is_english(_unquoted(caption)),
}
"""Of each rule its name, and whether a caption breaks it."""


def violations(caption: str) -> list[str]:
    """Names of the rules that a caption breaks; [] for a good one.

    Openings that speak of the image instead of its content, words of doubt, links, advertising, markup or line breaks,
    fewer than `MIN_WORDS` or more than `MAX_WORDS`, another language than English (text in quotes aside).
    """
    return [name for name, broken in RULES.items() if broken(caption.strip())]
