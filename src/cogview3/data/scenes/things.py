"""The drawn things: animals, food, plants, vehicles and everyday objects, one picture of each.

The drawings are Microsoft's Fluent Emoji in 3D (MIT licence); `scripts/make_things.py` makes the atlas. In a scene a
thing has size and position, like a shape, but no color, fill or outline of its own.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image

from cogview3.config import UserError

TILE = 128  # side of a drawing in the atlas, pixels
COLUMNS = 8  # drawings in a row of the atlas
HELD_OUT_SHARE = 5  # one pair of a thing and a ground in so many is never trained on


@dataclass(frozen=True)
class Thing:
    """A drawn thing. `names`: its canonical noun, then synonyms; `plurals` alike; `code`: the emoji's code point."""

    family: str
    code: str
    names: tuple[str, ...]
    plurals: tuple[str, ...]


def _thing(family: str, code: str, *names: str) -> Thing:
    """A thing from "noun" or "noun/plural" each; a plural that is not given adds an s."""
    pairs = [name.split("/") if "/" in name else (name, f"{name}s") for name in names]
    return Thing(family, code, tuple(one for one, _ in pairs), tuple(many for _, many in pairs))


_ALL = (
    _thing("animal", "1f98a", "fox/foxes", "red fox/red foxes"),
    _thing("animal", "1f436", "dog", "puppy/puppies", "doggy/doggies", "pup"),
    _thing("animal", "1f431", "cat", "kitten", "kitty/kitties", "tabby/tabbies"),
    _thing("animal", "1f981", "lion", "lion cub"),
    _thing("animal", "1f43c", "panda", "panda bear"),
    _thing("animal", "1f437", "pig", "piglet", "piggy/piggies"),
    _thing("animal", "1f42e", "cow", "calf/calves"),
    _thing("animal", "1f438", "frog", "toad"),
    _thing("animal", "1f430", "rabbit", "bunny/bunnies", "hare", "bunny rabbit"),
    _thing("animal", "1f43b", "bear", "brown bear", "grizzly/grizzlies"),
    _thing("animal", "1f435", "monkey", "ape", "chimp"),
    _thing("animal", "1f418", "elephant", "baby elephant"),
    _thing("animal", "1f427", "penguin", "baby penguin"),
    _thing("animal", "1f986", "duck", "mallard", "wild duck"),
    _thing("animal", "1f989", "owl", "night owl"),
    _thing("animal", "1f99c", "parrot", "macaw"),
    _thing("animal", "1f422", "turtle", "tortoise", "sea turtle"),
    _thing("animal", "1f433", "whale", "blue whale"),
    _thing("animal", "1f420", "fish/fish", "tropical fish/tropical fish", "goldfish/goldfish"),
    _thing("animal", "1f419", "octopus/octopuses", "squid/squid"),
    _thing("animal", "1f98b", "butterfly/butterflies", "monarch butterfly/monarch butterflies"),
    _thing("animal", "1f41e", "ladybug", "ladybird", "lady beetle"),
    _thing("food", "1f34e", "apple", "red apple"),
    _thing("food", "1f34c", "banana", "peeled banana"),
    _thing("food", "1f353", "strawberry/strawberries", "berry/berries"),
    _thing("food", "1f349", "watermelon", "melon", "watermelon slice", "slice of watermelon/slices of watermelon"),
    _thing("food", "1f347", "bunch of grapes/bunches of grapes", "grape"),
    _thing("food", "1f34d", "pineapple", "ananas/ananas"),
    _thing("food", "1f955", "carrot", "fresh carrot"),
    _thing("food", "1f951", "avocado", "avocado half/avocado halves"),
    _thing("food", "1f9c0", "cheese/cheeses", "piece of cheese/pieces of cheese", "wedge of cheese/wedges of cheese"),
    _thing("food", "1f354", "hamburger", "burger", "cheeseburger"),
    _thing("food", "1f355", "pizza", "slice of pizza/slices of pizza", "pizza slice"),
    _thing("food", "1f382", "birthday cake", "cake", "cake with candles/cakes with candles"),
    _thing("food", "1f9c1", "cupcake", "muffin"),
    _thing("plant", "1f33b", "sunflower", "flower", "daisy/daisies"),
    _thing("plant", "1f339", "rose", "red rose"),
    _thing("plant", "1f333", "tree", "oak", "oak tree"),
    _thing("plant", "1f334", "palm tree", "palm", "coconut tree"),
    _thing("plant", "1f335", "cactus/cacti", "saguaro"),
    _thing("plant", "1f344", "mushroom", "toadstool"),
    _thing("vehicle", "1f697", "car", "automobile", "auto"),
    _thing("vehicle", "1f68c", "bus/buses", "coach/coaches", "school bus/school buses"),
    _thing("vehicle", "1f69c", "tractor", "farm tractor"),
    _thing("vehicle", "1f682", "train", "steam train", "locomotive", "steam engine"),
    _thing("vehicle", "2708", "airplane", "plane", "aeroplane", "jet", "aircraft/aircraft"),
    _thing("vehicle", "1f680", "rocket", "spaceship", "space rocket", "rocket ship"),
    _thing("vehicle", "26f5", "sailboat", "boat", "sailing boat", "yacht", "ship"),
    _thing("object", "1f3e0", "house", "home", "cottage"),
    _thing("object", "1f3f0", "castle", "palace"),
    _thing("object", "2614", "umbrella", "parasol"),
    _thing("object", "1f388", "balloon", "party balloon"),
    _thing("object", "1f381", "gift", "present", "gift box/gift boxes", "wrapped present"),
    _thing("object", "26bd", "soccer ball", "football"),
    _thing("object", "1f9f8", "teddy bear", "teddy/teddies", "stuffed bear"),
    _thing("object", "1f3b8", "guitar", "electric guitar"),
    _thing("object", "1f451", "crown", "golden crown", "tiara"),
    _thing("object", "1f3a9", "hat", "top hat", "cylinder hat"),
    _thing("object", "1f511", "key", "golden key"),
    _thing("object", "1f916", "robot", "robot head", "android"),
    _thing("object", "26c4", "snowman/snowmen", "frosty snowman/frosty snowmen"),
    _thing("object", "1f319", "moon", "crescent moon", "half moon"),
    _thing("object", "1f31e", "sun", "smiling sun", "sunshine/sunshines"),
    _thing("object", "23f0", "clock", "alarm clock", "alarm"),
)

THINGS: dict[str, Thing] = {thing.names[0]: thing for thing in _ALL}


def is_held_out_ground(thing: str, ground: str) -> bool:
    """True for the fixed fifth of the pairs of a thing and a ground that no training scene contains."""
    digest = hashlib.sha256(f"{thing}/{ground}".encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


@cache
def drawing(name: str) -> Image.Image:
    """The drawing of a thing: RGBA, TILE x TILE, the longer side of what is drawn filling the tile.

    Raises UserError for an unknown thing, and where the atlas is missing or damaged.
    """
    if name not in THINGS:
        raise UserError(f"thing {name!r} is unknown; give one of {', '.join(THINGS)}")
    row, column = divmod(list(THINGS).index(name), COLUMNS)
    return _atlas().crop((column * TILE, row * TILE, (column + 1) * TILE, (row + 1) * TILE))


@cache
def _atlas() -> Image.Image:
    """The drawings side by side, COLUMNS in a row, in the order of THINGS."""
    path = files("cogview3.data.scenes") / "atlas" / "things.webp"
    size = COLUMNS * TILE, -(-len(THINGS) // COLUMNS) * TILE
    try:
        with path.open("rb") as file, Image.open(file, formats=["WEBP"]) as image:
            image.load()
            atlas = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"the drawings of things, {path}, cannot be read ({error}); install cogview3 again") from error
    if atlas.size != size:
        raise UserError(f"the drawings of things, {path}, are {atlas.size} pixels, not {size}; install cogview3 again")
    return atlas


def premultiplied(name: str, side: int) -> np.ndarray:
    """A thing at `side` x `side` pixels: (side, side, 4) float32, color times coverage and coverage, 0 to 1."""
    small = drawing(name).convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    return np.clip(np.asarray(small, np.float32) / 255, 0, 1)
