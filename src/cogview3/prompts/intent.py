"""Whether an expansion still says what its prompt asks for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cogview3.prompts.words import COLORS, FILLER, NEGATIONS, NUMBERS, SHADES, is_english, is_plural, meanings, unified

_QUOTED = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»|„([^“”]+)[“”]|「([^」]+)」|『([^』]+)』|(?<!\w)['‘]([^'’]+)['’](?!\w)"
)
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?|[-,.;:!?]")
_DIGITS = re.compile(r"\d+(?:[.,:]\d+)*")
_ARTICLES = {"a", "an", "another", "one", "single", "lone", "1"}
_STOPS = {"a", "an", "the", "another", "on", "at", "by", "with", "from", "above", "below", "under", "over", "beside"}
_STOPS |= {"left", "right", "beneath", "underneath", "behind", "between", "near", "next", "to"}
_THINGS = {"shape", "shapes", "object", "objects", "figure", "figures", "thing", "things", "item", "items"}
_ENDS = frozenset(".;:!?")
_VERBAL = re.compile(r"[aeiouy].*(ing|ed)$")  # "running", "edged"; not "ring"
_BARE_SHADES = {"dark": "black", "light": "white"}  # colors that a shade without one may become
_REACH = 6  # words between a number or a color and its noun
_ABSENT = {"outline": {"unoutlined", "borderless", "edgeless"}, "pattern": {"plain", "solid", "unpatterned", "filled"}}
_ABSENT |= {name: {"plain", "solid", "unpatterned"} for name in ("striped", "dotted", "checkered")}
_ABSENT |= {"tiled": {"plain", "solid", "flat"}}
_ENUMERATED = {"another", "other", "second", "third", "fourth", "fifth", "one", "also"}


@dataclass(frozen=True)
class _Word:
    text: str
    meanings: frozenset[str]
    number: int | None
    color: str | None
    content: bool
    joined: bool  # by a hyphen to the next word


def lost_intent(prompt: str, expanded: str) -> list[str]:
    """What a prompt asks for and `expanded` does not say, in the prompt's words; [] where nothing is lost.

    Checked are quoted text (letter for letter), digits, and, in English prompts, every word that carries content (in
    any form, or a synonym), numbers and colors with their nouns, and negations with what they deny. A number may also
    be told by naming so many of its things. Prompts in other languages are checked for quoted text and digits alone.

    Raises nothing: any two texts will do.
    """
    quoted = [next(filter(None, found.groups())).strip() for found in _QUOTED.finditer(prompt)]
    lost = [f'"{text}"' for text in quoted if _plain(text) not in _plain(expanded)]
    rest = _QUOTED.sub(" ", prompt)
    told = _words(expanded)
    if not is_english(rest):
        given = {number for word in told if (number := word.number) is not None} | set(_DIGITS.findall(expanded))
        missing = [text for text in _DIGITS.findall(rest) if text not in given and _as_number(text) not in given]
        return list(dict.fromkeys(lost + missing))
    asked = _words(rest)
    denied = _denied(asked)
    lost += [f"no {asked[index].text}" for index in denied if not _is_denied(asked[index], told, asked, denied)]
    lost += _lost_numbers(asked, told)
    lost += _lost_colors(asked, told, denied)
    lost += _lost_variety(asked, told)
    for index, word in enumerate(asked):  # what is denied must stand under a denial, all else outside of one
        wanted = word.content and word.color is None and index not in denied
        if wanted and not any(_same(word, other) and not _under_denial(told, at, 4) for at, other in enumerate(told)):
            lost.append(word.text)
    return list(dict.fromkeys(lost))


def _plain(text: str) -> str:
    return " ".join(text.split())


def _as_number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _words(text: str) -> list[_Word]:
    """Words, and signs that end clauses, in lower case; hyphens are left out."""
    tokens = _TOKEN.findall(unified(text))
    words = []
    for place, token in enumerate(tokens):
        if token == "-":
            continue
        joined = place + 1 < len(tokens) and tokens[place + 1] == "-"
        token = token.removesuffix("'s")
        if token.endswith("n't"):
            token = "not"
        number = _as_number(token) if token[0].isdigit() else NUMBERS.get(token)
        content = token[0].isalnum() and token not in FILLER and number is None and token not in NEGATIONS
        content = content and not (token in SHADES and any(each in COLORS for each in tokens[place + 1 : place + 2]))
        words.append(_Word(token, meanings(token), number, COLORS.get(token), content, joined))
    return words


def _same(word: _Word, other: _Word) -> bool:
    if word.text == other.text or word.meanings & other.meanings:
        return True
    return other.color is not None and any(other.color == _BARE_SHADES.get(each) for each in word.meanings)


def _run(words: Sequence[_Word], start: int) -> list[int]:
    """Places of the words of content that follow each other from `start` on."""
    end = start
    while end < len(words) and words[end].content:
        end += 1
    return list(range(start, end))


def _is_listed(words: Sequence[_Word], start: int) -> bool:
    """Whether a further color follows at once, after a comma or an "and"."""
    return start + 1 < len(words) and words[start].text in ("and", ",") and words[start + 1].color is not None


def _head(words: Sequence[_Word], start: int) -> int | None:
    """Place of the noun that a number or a color before `start` belongs to: the first plural, else the last word."""
    if _is_listed(words, start):
        start += 1  # "red and white flag"
    run = [place for place in _run(words, start) if words[place].color is None]
    nouns = [place for place in run if not _VERBAL.search(words[place].text)]
    if run and not nouns and run[-1] + 1 < len(words) and words[run[-1] + 1].text in _THINGS:
        return None  # "a red outlined shape"
    nouns = nouns or run
    plural = [place for place in nouns if is_plural(words[place].text)]
    return plural[0] if plural else nouns[-1] if nouns else None


def _last_noun(words: Sequence[_Word], before: int) -> int | None:
    """Place of what "one" stands for: "two red hearts and a blue one"."""
    nouns = [place for place in range(before) if words[place].content and words[place].color is None]
    return nouns[-1] if nouns else None


def _lost_numbers(asked: Sequence[_Word], told: Sequence[_Word]) -> list[str]:
    lost = []
    for place, word in enumerate(asked):
        if word.number is None:
            if word.text[0].isdigit() and not any(word.text == other.text for other in told):
                lost.append(word.text)
            continue
        head = None if word.joined else _head(asked, place + 1)
        named = " ".join(each.text for each in asked[place : place + 1 if head is None else head + 1])
        if head is None:
            kept = word.number == 1 or any(other.number == word.number for other in told)
            # mere "shapes" or "objects" are counted, which an expansion names instead
            filler = any(each.text in FILLER for each in asked[place + 1 : place + 2])
            kept = kept or (filler and not word.text[0].isdigit())
        else:
            colors = {each.color for each in asked[place:head] if each.color}
            once = sum(_same(each, asked[head]) for each in asked) == 1
            kept = _is_counted(word.number, asked[head], told, colors.pop() if len(colors) == 1 else None, once)
        if not kept:
            lost.append(named)
    return lost


def _is_counted(number: int, noun: _Word, told: Sequence[_Word], color: str | None, exact: bool) -> bool:
    """Whether a text gives a noun that number, or names so many of it one by one; no more, if `exact`.

    Of a color only those count that have it: beside three green triangles a blue one is no fourth.
    """
    singles = others = 0
    for place, word in enumerate(told):
        if not _same(word, noun):
            continue
        before = _before(told, place)
        if any(told[each].number == number for each in before):
            return True
        single = any(told[each].text in _ARTICLES for each in _before(told, place, _ARTICLES))
        has_color = color is None or _has_color(told, place, color)
        singles += single and has_color
        others += single and not has_color
    if singles:  # "a red star and another", "one is red, the other blue"
        singles += sum(
            word.text in _ENUMERATED and not any(_same(told[each], noun) for each in _run(told, place + 1))
            for place, word in enumerate(told)
        )
    wrong = others or singles > number
    return singles >= number and not (exact and number > 1 and wrong)


def _before(told: Sequence[_Word], place: int, until: set[str] | frozenset[str] = frozenset()) -> list[int]:
    """Places before a noun that may hold what belongs to it, back to the article of its phrase."""
    places = []
    for each in range(place - 1, max(-1, place - 2 - _REACH), -1):
        word = told[each]
        if word.text in _ENDS or word.text in (_STOPS - until):
            break
        places.append(each)
        if word.number is not None or word.text in until:
            break
    return places


def _lost_colors(asked: Sequence[_Word], told: Sequence[_Word], denied: Sequence[int]) -> list[str]:
    lost = []
    for place, word in enumerate(asked):
        if word.color is None or place in denied:
            continue
        after_in = place > 0 and asked[place - 1].text == "in"  # "edged in black, a red star": not a black star
        head = None if after_in and _is_listed(asked, place + 1) else _head(asked, place + 1)
        if head is None and any(each.text == "one" for each in asked[place + 1 : place + 2]):
            head = _last_noun(asked, place)
        if head is None or head in denied:
            kept = any(other.color == word.color for other in told)
            named = word.text
        else:
            kept = any(_same(other, asked[head]) and _has_color(told, at, word.color) for at, other in enumerate(told))
            named = f"{word.text} {asked[head].text}"
        if not kept:
            lost.append(named)
    return lost


def _lost_variety(asked: Sequence[_Word], told: Sequence[_Word]) -> list[str]:
    """Different colors, where a text neither says so nor names as many colors as there are things."""
    texts = [word.text for word in asked]
    kinds = {"color", "colors", "colour", "colours"}
    wanted = any(text == "different" and kinds & set(texts[at + 1 : at + 2]) for at, text in enumerate(texts))
    number = max((word.number for word in asked if word.number), default=2)
    ground = meanings("background")
    heads = [(word.color, _head(told, at + 1)) for at, word in enumerate(told) if word.color]
    named = {color for color, head in heads if head is None or not told[head].meanings & ground}
    if not wanted or len(named) >= number or any(word.text == "different" for word in told):
        return []
    return ["different colors"]


def _has_color(told: Sequence[_Word], place: int, color: str) -> bool:
    """Whether the noun at a place is said to have a color: before it, after it, or with all others."""
    if any(told[each].color == color for each in _before(told, place)):
        return True
    for each in range(place + 1, min(len(told), place + 3 + _REACH)):
        if told[each].text in _ENDS or told[each].text in _STOPS:
            break
        if told[each].color == color:
            return True
    shared = {"all", "both", "every", "each", "everything"}
    return any(
        word.text in shared and any(other.color == color for other in told[at + 1 : at + 2 + _REACH])
        for at, word in enumerate(told)
    )


def _denied(asked: Sequence[_Word]) -> list[int]:
    """Places of the nouns that a prompt's negations deny."""
    places = []
    for place, word in enumerate(asked):
        if word.text in NEGATIONS - {"lack"}:
            at = place + 1
            while at < len(asked):
                while at < len(asked) and asked[at].text in {"a", "an", "any", "the", "single", "of", "to", "be"}:
                    at += 1
                run = _run(asked, at)
                head = _head(asked, at) if run else None  # "a ring without, red star" denies nothing
                if head is None:
                    break
                places.append(head)
                at = run[-1] + 1
                if at >= len(asked) or asked[at].text not in {"or", "nor"}:
                    break
                at += 1
        elif _is_free(asked, place):
            places.append(place)
    return places


def _is_free(words: Sequence[_Word], place: int) -> bool:
    """Whether a word begins one such as "sugar-free"."""
    return words[place].joined and place + 1 < len(words) and words[place + 1].text == "free"


def _under_denial(told: Sequence[_Word], place: int, reach: int, ends: frozenset[str] = _ENDS | {",", "but"}) -> bool:
    """Whether a negation stands before a word, in its clause."""
    if _is_free(told, place):
        return True
    for each in range(place - 1, max(-1, place - 1 - reach), -1):
        if told[each].text in ends or (told[each].text == "and" and told[each + 1].text in _ARTICLES):
            return False
        if told[each].text in NEGATIONS or (
            told[each].text in ("free", "empty") and told[each + 1].text in ("of", "from")
        ):
            return True
    return False


def _is_denied(noun: _Word, told: Sequence[_Word], asked: Sequence[_Word], denied: Sequence[int]) -> bool:
    """Whether a text denies a noun, and does not speak of it otherwise."""
    wide = _ENDS | {"but"}
    places = [place for place, word in enumerate(told) if _same(word, noun)]
    without = [word.text for word in told if word.text.endswith("less") or word.text.startswith("un")]
    absent = any(
        any(word.text in _ABSENT.get(each, ()) for each in noun.meanings)
        or (word.text in without and _lacks(word.text, noun))
        for word in told
    )
    affirmed = [place for place in places if not _under_denial(told, place, 8, wide)]
    if not places and _lists_all(told):
        return True
    if not absent and len(affirmed) == len(places):
        return False
    # "a ring without an outline" leaves outlines to other things, "no cars" leaves no cars
    also_wanted = any(_same(word, noun) and at not in denied for at, word in enumerate(asked))
    return (
        not affirmed
        or also_wanted
        or _VERBAL.search(noun.text) is not None  # "a ring, not outlined"
        or any(word.text == "without" or _is_free(asked, at) for at, word in enumerate(asked))
    )


def _lists_all(told: Sequence[_Word]) -> bool:
    """Whether a text says how many objects there are, so that there are no others: "two shapes on white: ..."."""
    return any(
        word.number is not None and any(each.text in _THINGS for each in told[at + 1 : at + 2])
        for at, word in enumerate(told)
    )


def _lacks(word: str, noun: _Word) -> bool:
    """Whether a word such as "treeless" or "unsmiling" denies a noun."""
    return bool((meanings(word.removesuffix("less")) | meanings(word.removeprefix("un"))) & noun.meanings)
