"""A check of scorers against the figures that their authors publish for their own pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cogview3.config import UserError
from cogview3.data.images import open_image
from cogview3.errors import as_user_error
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers import SCORERS
from cogview3.evaluation.scorers.weights import Weights

TOLERANCE = 1e-3
"""Of published figures: HPS v2's has four decimals, and its authors computed it in float16."""


@dataclass(frozen=True)
class Anchor:
    """A published figure: the scorer, the pictures' files, the prompt, and what each is to score."""

    scorer: str
    files: tuple[str, ...]
    prompt: str
    expected: tuple[float, ...]
    source: str


ANCHORS = (
    Anchor("hpsv2", ("hpsv2_demo_image.jpg",), "A cat with two horns on its head", (0.2876,), "tgxs002/HPSv2#27"),
    Anchor(
        "imagereward",
        tuple(f"imagereward_{number}.webp" for number in range(1, 5)),
        "a painting of an ocean with clouds and birds, day time, low depth field effect",
        (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492),
        "README of THUDM/ImageReward",
    ),
)


def self_check(pictures: Path, weights: Weights, anchors: Sequence[Anchor] = ANCHORS) -> list[dict[str, Any]]:
    """Score the authors' `pictures`, a folder with the files of `anchors`.

    Returns:
        For each anchor "scorer", "source", "expected", "found" and "agrees"; "found" is None and "reason" says why
        where weights or pictures are missing.

    Raises:
        UserError: nothing could be checked.
    """
    rows = [_check(anchor, pictures, weights) for anchor in anchors]
    if all(row["found"] is None for row in rows):
        reasons = "; ".join(dict.fromkeys(row["reason"] for row in rows))
        raise UserError(f"nothing to check: {reasons}")
    return rows


def _check(anchor: Anchor, folder: Path, weights: Weights) -> dict[str, Any]:
    row: dict[str, Any] = {"scorer": anchor.scorer, "source": anchor.source, "expected": list(anchor.expected)}
    try:
        images = [_open(folder / name) for name in anchor.files]
        scorer = SCORERS[anchor.scorer].load(weights)
    except UserError as error:
        return row | {"found": None, "agrees": None, "reason": str(error)}
    found = scorer.score(images, [Prompt(anchor.prompt)] * len(images))
    off = max(abs(own - expected) for own, expected in zip(found, anchor.expected, strict=True))
    return row | {"found": found, "agrees": off <= TOLERANCE}


def _open(path: Path) -> Image.Image:
    fix = "give the authors' pictures with --images"
    with as_user_error(f"{path} is missing or damaged", fix), open_image(path) as image:
        return image.convert("RGB")
