"""English words as far as prompts need them: number words, colors, synonyms, stems, and detection of English."""

import re
from functools import cache


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NUMBERS = {
    word: number
    for number, words in {
        1: "one single lone",
        2: "two pair couple both duo twin twins",
        3: "three trio triplet triplets",
        4: "four quartet",
        5: "five quintet",
        6: "six",
        7: "seven",
        8: "eight",
        9: "nine",
        10: "ten",
        11: "eleven",
        12: "twelve dozen",
        13: "thirteen",
        14: "fourteen",
        15: "fifteen",
        16: "sixteen",
        17: "seventeen",
        18: "eighteen",
        19: "nineteen",
        20: "twenty",
    }.items()
    for word in words.split()
}

COLORS = {
    word: color
    for color, words in {
        "red": "red crimson scarlet",
        "orange": "orange tangerine",
        "yellow": "yellow golden gold",
        "green": "green emerald mint",
        "cyan": "cyan turquoise teal aqua",
        "blue": "blue azure",
        "purple": "purple violet lilac",
        "pink": "pink rose",
        "brown": "brown",
        "black": "black",
        "white": "white",
        "gray": "gray grey",
        "silver": "silver silvery",
        "beige": "beige",
        "maroon": "maroon burgundy",
        "navy": "navy",
        "magenta": "magenta fuchsia",
    }.items()
    for word in words.split()
}

_SYNONYMS = (  # words that say the same in a prompt
    "circle disc disk ball dot",
    "square box block",
    "diamond rhombus lozenge",
    "ring donut doughnut hoop annulus",
    "cross plus",
    "small little tiny",
    "medium mid average",
    "large big huge giant",
    "plain solid unpatterned filled flat patternless",
    "striped stripes stripy stripey banded",
    "dotted spotted spotty dots spots polka",
    "checkered checked checks checkerboard chessboard checker chequered",
    "outline outlined border bordered edge edged frame line",
    "background ground backdrop",
    "tiled tiles grid gridded",
    "sofa couch",
    "bike bicycle",
    "plane airplane aeroplane jet aircraft",
    "dog puppy doggy pup",
    "cat kitten kitty tabby",
    "pig piglet piggy",
    "cow calf",
    "frog toad",
    "rabbit bunny hare",
    "monkey ape chimp",
    "duck mallard",
    "parrot macaw",
    "turtle tortoise",
    "octopus squid",
    "ladybug ladybird",
    "strawberry berry",
    "watermelon melon",
    "hamburger burger cheeseburger",
    "cupcake muffin",
    "mushroom toadstool",
    "cactus saguaro",
    "car automobile auto",
    "bus coach",
    "train locomotive",
    "rocket spaceship",
    "sailboat boat yacht ship",
    "house home cottage",
    "castle palace",
    "umbrella parasol",
    "gift present",
    "crown tiara",
    "robot android",
    "clock alarm",
    "sunflower flower daisy",
    "tree oak",
    "fish goldfish",
    "child kid",
    "photo photograph",
    "tv television",
)

SHADES = _set("light lighter dark darker bright pale deep royal hot sky mint pastel vivid")
"""What may stand before a color, and counts as part of it."""

_PHRASES = (  # of several words, and what they count as
    (r"\bw/o\b", "without"),
    (r"\bplus signs?\b", "cross"),
    (r"\blove (hearts?)\b", r"\1"),
    (r"\bsoccer balls?\b", "football"),
    (r"\b(?:piece|wedge|slice|bunche?)s? of (cheeses?|watermelons?|pizzas?|grapes?)\b", r"\1"),
    (r"\b(?:coconut|palm) (trees?)\b", "palm"),
    (r"\bcakes? with candles\b", "cake"),
    (r"\b(cylinder|top) (hats?)\b", r"\2"),
    (r"\bteddy bears?\b|\bstuffed bears?\b", "teddy"),
    (r"\b(panda) (bears?)\b", r"\1"),
    (r"\bfive[- ]pointed (stars?)\b", r"\1"),
    (r"\bpolka[- ]dot(s|ted)?\b", "dotted"),
    (r"\b(striped|dotted|spotted|checkered|chequered|checkerboard|chessboard) pattern\b", r"\1"),
    (r"\bhorizontal stripes\b", "stripes"),
    (r"\bgrid lines\b", "grid"),
    (r"\bno pattern\b", "plain"),
    (r"\b(unoutlined|borderless|edgeless)\b", "outline-free"),
    (r"\bwith no\b", "without"),
    (r"\bwith ([^,.;:]*?) and no\b", r"with \1 without"),
    (
        r"\b(on|against|in front of) ((?:an? )?(?:[a-z]+ ){0,2}(?:COLORS)(?: grid| tiles)?)"
        r"(?= ?[,.;:)]|$| with| are| is| there)",
        r"\1 \2 background",
    ),
)

_IRREGULAR = {
    form: base
    for base, forms in {
        "man": "men",
        "woman": "women",
        "child": "children",
        "person": "people persons",
        "foot": "feet",
        "tooth": "teeth",
        "goose": "geese",
        "mouse": "mice",
        "ox": "oxen",
        "leaf": "leaves",
        "wolf": "wolves",
        "knife": "knives",
        "shelf": "shelves",
        "loaf": "loaves",
        "calf": "calves",
        "scarf": "scarves",
        "half": "halves",
        "dice": "die",
        "cactus": "cacti",
    }.items()
    for form in forms.split()
}

FILLER = _set(
    """
    a an the this that these those some any each every all another other others its his her their our my your it he
    she they them i we you who which what there here of in on at to from by with into onto over under above below
    beneath underneath behind before after beside besides between among near next around along across through
    against inside outside within upon for as like left right top bottom upper lower center centre middle side
    corner hand front back and or but nor yet so than then while when where is are was were be been being am has
    have had do does did can could will would shall should may might must just only very really quite too also
    exactly please draw paint make create generate show give render picture image photo photograph drawing painting
    illustration want see put shape shapes object objects figure figures thing things item items one ones up down
    off out about if not no without never none lonely wearing wears wear holding holds hold sitting sits sit
    standing stands stand looking looks look having featuring showing shows containing contains made together set
    lies lying lie placed located colored coloured color colour colors colours more less much many lot lots few several
    free nice good beautiful lovely great sides higher same both everything nothing everyone nobody else
    i'd i'm i've let's us place
    me says say said reads reading read size simple thin add scene sized kind
    type different sizes cute pretty sweet pic gimme get close alongside
    """
)
"""Words that an expansion need not repeat."""

NEGATIONS = _set(
    """
    no not without never none neither nor lacking lacks lack minus nobody nothing nowhere cannot absent absence devoid
    """
)

_ENGLISH = _set("the of and with is are at by from has its this that these there under over between while")
_FOREIGN = _set(
    """der das und ein eine einen einem einer mit auf ist von vom zum zur aus unter neben keine kein
    le la les un une et avec dans sur du des aux est qui sans pas el los las y del por que sin uma um com na
    lo gli di che nel sul della senza het een op och ett med på z w na bir di yang og på af til
    es il
    zwei drei vier fünf ohne im vor hinter zwischen rote roter roten rotes blaue blauer grüne schwarze weiße gelbe
    deux trois quatre cinq sous entre noir noirs noire rouges bleu bleus bleue vert verts blanc blancs jaune
    dos tres cuatro sobre rojo roja rojos rojas negro negra negros negras azul verde blanco blanca amarillo
    tre quattro rosso rossa rossi nero nera neri bianco gialla giallo verdi
    dois duas três sem vermelho vermelha preto preta
    twee drie vier zonder rood blauw zwart zwarte två röd svart utan dwa dwie trzy bez iki"""
)


def unified(text: str) -> str:
    """A text in lower case, with phrases replaced by words that say the same."""
    text = text.lower().replace("’", "'").replace("&", " and ")
    for pattern, replacement in _PHRASES:
        text = re.sub(pattern.replace("COLORS", "|".join(COLORS)), replacement, text)
    return text


def stem(word: str) -> str:
    """What the forms of an English word have in common: "stars" and "star", "rainy" and "rain", "stripes", "striped".

    Rules, not a dictionary: some different words share a stem, few forms of one word do not.
    """
    word = _IRREGULAR.get(word, word)
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and re.search(r"(s|x|z|ch|sh|o)es$", word):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and word[-2] not in "sui":
        word = word[:-1]
    word = _IRREGULAR.get(word, word)
    for ending in ("ing", "ed", "ly"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) > 2 and re.search("[aeiouy]", rest):
            word = rest
            break
    if len(word) > 4 and re.search("[^aeiou]y$", word):
        word = word[:-1]
    word = word.removesuffix("e") if len(word) > 3 else word
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls" else word


@cache
def _groups() -> dict[str, frozenset[str]]:
    pairs = [(stem(word), group.split()[0]) for group in _SYNONYMS for word in group.split()]
    return {base: frozenset(name for other, name in pairs if other == base) for base, _ in pairs}


@cache
def meanings(word: str) -> frozenset[str]:
    """What a word may stand for: its color, each group of synonyms that it is in ("dot" is in two), or its stem."""
    if word in COLORS:
        return frozenset([COLORS[word]])
    base = stem(word)
    return _groups().get(base, frozenset([base]))


def is_plural(word: str) -> bool:
    """Whether an English noun looks like a plural."""
    return word in _IRREGULAR or (len(word) > 3 and word.endswith("s") and word[-2] not in "siu")


def is_english(text: str) -> bool:
    """Whether a text looks like English rather than another language; one without any hint counts as English.

    Letters outside ASCII and frequent short words are the hints, so a name or two does no harm in a longer text, nor
    does a word such as "café" in a short one.
    """
    words = re.findall(r"[^\W\d_]+", text.lower().replace("w/o", "without"))
    if not words:
        return True
    outside = sum(not word.isascii() for word in words)
    hints = sum(word in _ENGLISH for word in words)
    foreign = sum(word in _FOREIGN for word in words)
    if hints:
        return foreign + outside <= hints / 2
    return not foreign and outside < len(words) / 2
