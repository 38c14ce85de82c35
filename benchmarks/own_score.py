r"""How many of the things of `own_pictures.py` a model trained on them draws so that they can be told.

Each thing is drawn alone on each of several grounds. What differs from the ground is cut out and compared, as a square
of 32 x 32 pixels, with all hundred drawings on that ground: the nearest by mean square difference is what was drawn.
As a check, the same is done with pictures like those of the set.

    python benchmarks/own_score.py lobehub-fluent-emoji-3d/package/assets emojibase-data/package/en/data.json \
        --model ./model
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from own_pictures import GROUNDS, SIDE, choose, drawing, with_article
from PIL import Image

from cogview3 import CogView3Pipeline

DIFFERS = 28
"""Difference from the ground, in any 8-bit channel, beyond which a pixel is the thing's."""


def cut(picture: Image.Image) -> np.ndarray | None:
    """What differs from a picture's ground, which its border shows: (32, 32, 3) in [0, 255]; None if nothing does."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    rows, columns = np.nonzero(np.abs(pixels - np.median(border, 0)).max(2) > DIFFERS)
    if len(rows) < 64:
        return None
    # the outermost hundredth is left out: a speck far away would widen the square
    top, bottom = np.percentile(rows, (0.5, 99.5)).astype(int)
    left, right = np.percentile(columns, (0.5, 99.5)).astype(int)
    middle, side = ((left + right) / 2, (top + bottom) / 2), max(bottom - top, right - left, 8) / 2
    box = (middle[0] - side, middle[1] - side, middle[0] + side, middle[1] + side)
    padded = Image.new("RGB", (3 * picture.width, 3 * picture.height), tuple(np.median(border, 0).astype(int)))
    padded.paste(picture, (picture.width, picture.height))
    whole = [round(value + shift) for value, shift in zip(box, (picture.width, picture.height) * 2, strict=True)]
    return np.asarray(padded.crop(whole).resize((32, 32), Image.Resampling.BOX), np.float32)


def rank(picture: Image.Image, known: np.ndarray, thing: int) -> int:
    """How many of the `known` things (N, 32, 32, 3) are nearer to a picture than `thing`; N where it is empty."""
    found = cut(picture)
    if found is None:
        return len(known)
    distances = np.square(known - found).mean((1, 2, 3))
    return int((distances < distances[thing]).sum())


def alone(image: Image.Image, ground: str, side: float, rng: np.random.Generator) -> Image.Image:
    """A drawing by itself on a ground, somewhere."""
    scale = side * SIDE / max(image.size)
    small = image.resize([max(1, round(scale * length)) for length in image.size], Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (SIDE, SIDE), GROUNDS[ground])
    picture.paste(small, [int(rng.integers(SIDE - length + 1)) for length in small.size], small)
    return picture


def main() -> None:
    """Print the shares, and save the pictures as a grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path, help="folder of the drawings, package/assets")
    parser.add_argument("names", type=Path, help="emojibase's en/data.json")
    parser.add_argument("--model", required=True)
    parser.add_argument("--grounds", default="white,blue", help="grounds on which each thing is drawn")
    parser.add_argument("--grid", type=Path, default=Path("own_score.png"))
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    things = {name: drawing(path) for name, path in choose(given.drawings, given.names, rng).items()}
    pipe = CogView3Pipeline.from_pretrained(given.model)
    pipe.set_progress_bar_config(disable=True)
    drawn, ranks, check = [], [], []
    for ground in given.grounds.split(","):
        known = np.stack([cut(alone(image, ground, 0.6, rng)) for image in things.values()])
        for number, (name, image) in enumerate(things.items()):
            check.append(rank(alone(image, ground, rng.uniform(0.45, 0.8), rng), known, number))
            prompt = f"{with_article(name)} on {with_article(ground)} background"
            picture = pipe(prompt, generator=torch.Generator().manual_seed(number)).images[0]
            ranks.append(rank(picture, known, number))
            drawn.append(picture.resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX))
    for label, values in (("drawings", check), (given.model, ranks)):
        shares = ((np.array(values) < most).mean() for most in (1, 5))
        print(
            label,
            *(f"{share:.3f} among the nearest {most}" for share, most in zip(shares, (1, 5), strict=True)),
            sep="  ",
        )
    rows = [drawn[start : start + 20] for start in range(0, len(drawn), 20)]
    Image.fromarray(np.vstack([np.hstack([np.asarray(each) for each in row]) for row in rows])).save(given.grid)


if __name__ == "__main__":
    main()
