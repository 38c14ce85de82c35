r"""Pictures with captions to try training on: a hundred drawn things that nobody here drew, on plain grounds.

The drawings are Microsoft's Fluent Emoji in 3D (MIT), in the npm package @lobehub/fluent-emoji-3d; their names are in
the npm package emojibase-data (MIT).

    npm pack @lobehub/fluent-emoji-3d emojibase-data
    for file in *.tgz; do mkdir -p "${file%-*}" && tar xzf "$file" -C "${file%-*}"; done
    python benchmarks/own_pictures.py lobehub-fluent-emoji-3d/package/assets emojibase-data/package/en/data.json \
        -o pictures --count 3000
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 256
THINGS = 100
GROUPS = (3, 4, 5, 7)  # emojibase's: animals and nature, food and drink, travel and places, objects
GROUNDS = {
    "white": (245, 245, 245),
    "gray": (150, 150, 150),
    "black": (30, 30, 30),
    "red": (200, 60, 60),
    "orange": (235, 145, 60),
    "yellow": (240, 210, 90),
    "green": (90, 165, 95),
    "blue": (70, 115, 200),
    "purple": (125, 90, 175),
    "pink": (240, 165, 195),
}
ONE = ("{0} on {a_ground} background", "{0}, {ground} background", "a picture of {0} on {ground}")
TWO = (
    "{0} left of {1} on {a_ground} background",
    "{1} right of {0} on {a_ground} background",
    "{0} and {1}, {ground} background",
)


def choose(drawings: Path, names: Path, rng: np.random.Generator) -> dict[str, Path]:
    """A hundred things by name, as many of each group, drawn by lot among those with short names."""
    found: dict[int, dict[str, Path]] = {group: {} for group in GROUPS}
    for entry in json.loads(names.read_text("utf-8")):
        name, code = entry["label"].lower(), entry["hexcode"].lower()
        path = drawings / f"{code}.webp"
        if entry.get("group") in found and re.fullmatch(r"[a-z]+( [a-z]+)?", name) and path.is_file():
            found[entry["group"]][name] = path
    chosen: dict[str, Path] = {}
    for things in found.values():
        for name in rng.choice(sorted(things), THINGS // len(GROUPS), replace=False):
            chosen[str(name)] = things[str(name)]
    return chosen


def drawing(path: Path) -> Image.Image:
    """A drawing, RGBA, cut to what is not transparent."""
    image = Image.open(path, formats=["WEBP"]).convert("RGBA")
    return image.crop(image.getchannel("A").point(lambda value: 255 * (value > 24)).getbbox())


def with_article(name: str) -> str:
    """A name behind "a" or "an"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def compose(things: dict[str, Image.Image], rng: np.random.Generator) -> tuple[Image.Image, str]:
    """One picture, 256 x 256, of one thing or two side by side, and its caption."""
    ground = str(rng.choice(list(GROUNDS)))
    picture = Image.new("RGB", (SIDE, SIDE), GROUNDS[ground])
    count = 1 if rng.random() < 0.7 else 2
    chosen = [str(name) for name in rng.choice(list(things), count, replace=False)]
    for place, name in enumerate(chosen):
        image = things[name]
        side = rng.uniform(0.45, 0.8) * SIDE if count == 1 else rng.uniform(0.36, 0.46) * SIDE
        scale = side / max(image.size)
        image = image.resize([max(1, round(scale * length)) for length in image.size], Image.Resampling.LANCZOS)
        left = 0 if count == 1 else place * SIDE // 2
        room = SIDE // count - image.width, SIDE - image.height
        corner = left + int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
        picture.paste(image, corner, image)
    form = str(rng.choice(ONE if count == 1 else TWO))
    return picture, form.format(*map(with_article, chosen), ground=ground, a_ground=with_article(ground))


def main() -> None:
    """Write the pictures, each with a text file of the same name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path, help="folder of the drawings, package/assets")
    parser.add_argument("names", type=Path, help="emojibase's en/data.json")
    parser.add_argument("-o", "--out", type=Path, default=Path("pictures"))
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        sys.exit(f"error: {given.out} is not empty; give another folder with -o")
    rng = np.random.default_rng(given.seed)
    things = {name: drawing(path) for name, path in choose(given.drawings, given.names, rng).items()}
    given.out.mkdir(parents=True, exist_ok=True)
    for number in range(given.count):
        picture, caption = compose(things, rng)
        picture.save(given.out / f"{number:05}.png")
        (given.out / f"{number:05}.txt").write_text(caption + "\n", encoding="utf-8")
    print(f"{given.count} pictures of {len(things)} things in {given.out}")


if __name__ == "__main__":
    main()
