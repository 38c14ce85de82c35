"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): Mask2Former finds the things in a picture, CLIP their colors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation
from typing_extensions import override

from cogview3.config import UserError
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.prompt_files import GENEVAL_TASKS
from cogview3.evaluation.scorers.base import Scorer
from cogview3.evaluation.scorers.clip import Clip
from cogview3.evaluation.scorers.preprocess import crop_center, normalized
from cogview3.evaluation.scorers.weights import CLIP_L14, Asset, Weights, load_pretrained

THRESHOLD, COUNTING_THRESHOLD, MAX_OBJECTS, POSITION_THRESHOLD = 0.3, 0.9, 16, 0.1
SHORTEST, LONGEST, DIVISOR = 800, 1333, 32
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {thing}", "a photo of a {color}-colored {thing}", "a photo of a {color} object")
BACKGROUND = "#999"
_NAMES = {  # COCO's names in Mask2Former's table, as GenEval writes them
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Found:
    """A thing in a picture: its confidence, its box (left, top, right, bottom) in pixels and its mask, (H, W) bool."""

    confidence: float
    box: tuple[float, float, float, float]
    mask: np.ndarray


def instances(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], names: Mapping[int, str]
) -> dict[str, list[Found]]:
    """The things of one picture by name, surest first, confidence times the mean probability inside the mask.

    Args:
        class_logits: (queries, classes + 1), the last of them "nothing".
        mask_logits: (queries, h, w).
        size: height and width of the picture.
        names: of the classes.
    """
    shares = class_logits.softmax(-1)[:, :-1]
    count, classes = shares.shape
    scores, places = shares.flatten().topk(min(count, shares.numel()))
    masks = F.interpolate(mask_logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    found: dict[str, list[Found]] = {}
    for confidence, place in zip(scores.tolist(), places.tolist(), strict=True):
        logits = masks[place // classes]
        mask = (logits > 0).cpu().numpy()
        if not mask.any():
            continue
        sure = float(logits[logits > 0].sigmoid().mean()) * confidence
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        name = names[place % classes]
        found.setdefault(_NAMES.get(name, name), []).append(Found(sure, box, mask))
    return {name: sorted(things, key=lambda thing: -thing.confidence) for name, things in found.items()}


def relations(first: Found, second: Found) -> set[str]:
    """Where the first thing lies, seen from the second: by their centers, less a tenth of their sides."""
    boxes = np.array([first.box, second.box]).reshape(2, 2, 2)
    offset = boxes[0].mean(0) - boxes[1].mean(0)
    sides = np.abs(boxes[:, 1] - boxes[:, 0]).sum(0)
    left = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sides, 0) * np.sign(offset)
    if np.all(np.abs(left) < 1e-3):
        return set()
    across, down = left / np.linalg.norm(offset)
    told = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in told.items() if holds}


def judge(record: Mapping[str, Any], things: Mapping[str, list[Found]], colors: Any) -> bool:
    """Whether a picture holds what a record of the benchmark asks for.

    Args:
        record: "tag", "include" and "exclude", as published.
        things: those in the picture, from `instances`.
        colors: called with things and their class; gives a color for each.
    """
    least = COUNTING_THRESHOLD if record["tag"] == "counting" else THRESHOLD
    sure = {name: [each for each in found if each.confidence > least][:MAX_OBJECTS] for name, found in things.items()}
    matched: list[list[Found] | None] = []
    for asked in record["include"]:
        found = sure.get(asked["class"], [])[: asked["count"]]
        right = len(found) >= asked["count"]
        if right and asked.get("color"):
            right = colors(found, asked["class"]).count(asked["color"]) >= asked["count"]
        if right and asked.get("position"):
            relation, place = asked["position"]
            others = matched[place]
            right = others is not None and all(
                relation in relations(thing, other) for thing in found for other in others
            )
        matched.append(found if right else None)
    too_many = any(len(sure.get(item["class"], [])) >= item["count"] for item in record.get("exclude", []))
    return all(each is not None for each in matched) and not too_many


class GenEval(Scorer):
    """Whether a picture holds the things asked for: 1 or 0. The overall score is the mean of the six tasks' means."""

    name = "geneval"
    protocol = (
        "Mask2Former, shortest side 800, thresholds 0.3 and 0.9 for counting, 16 things, position 0.1; "
        "colors by CLIP ViT-L/14 on crops before #999; mean of six tasks, 4 pictures a prompt"
    )
    version = "mask2former-swin-small-coco-instance instead of mmdet's Mask2Former"
    assets = (Asset("mask2former", "facebook/mask2former-swin-small-coco-instance"), CLIP_L14)

    def __init__(self, detector: Mask2FormerForUniversalSegmentation, clip: Clip) -> None:
        self.detector, self.clip = detector, clip
        self._texts: dict[str, Tensor] = {}

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        """Needs GenEval's own records."""
        if any(prompt.geneval is None for prompt in prompts):
            raise UserError("metric geneval needs GenEval's prompts: give --prompts evaluation_metadata.jsonl")

    @classmethod
    @override
    def load(cls, weights: Weights) -> Self:
        folder = weights.find(cls.assets[0])
        return cls(
            load_pretrained(Mask2FormerForUniversalSegmentation, folder, weights.device), Clip.load(weights, CLIP_L14)
        )

    @override
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        return [self._one(picture.convert("RGB"), prompt) for picture, prompt in zip(pictures, prompts, strict=True)]

    def _one(self, picture: Image.Image, prompt: Prompt) -> float:
        things = self.detect(picture)
        return float(judge(prompt.geneval or {}, things, lambda found, name: self.colors(picture, found, name)))

    @torch.inference_mode()
    def detect(self, picture: Image.Image) -> dict[str, list[Found]]:
        """The things in a picture."""
        out = self.detector(pixel_values=_pixels(picture).to(self.detector.device))
        names = self.detector.config.id2label
        size = picture.height, picture.width
        return instances(out.class_queries_logits[0], out.masks_queries_logits[0], size, names)

    def colors(self, picture: Image.Image, things: Sequence[Found], name: str) -> list[str]:
        """The color of each thing, by CLIP, of its crop with all else gray."""
        if name not in self._texts:
            lines = [line.format(color=color, thing=name) for color in COLORS for line in TEMPLATES]
            means = self.clip.texts(lines).view(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._texts[name] = means / means.norm(dim=1, keepdim=True)
        crops = [crop_center(_cut(picture, thing), self.clip.size) for thing in things]
        if not crops:
            return []
        best = (self.clip.pictures(normalized(crops)) @ self._texts[name].T).argmax(1)
        return [COLORS[place] for place in best.tolist()]

    @classmethod
    def summarize(cls, prompts: Sequence[Prompt], values: Sequence[float]) -> dict[str, Any]:
        """The mean of the tasks' means, "overall"."""
        tasks = {
            task: [v for p, v in zip(prompts, values, strict=True) if p.tags["task"] == task] for task in GENEVAL_TASKS
        }
        means = [float(np.mean(found)) for found in tasks.values() if found]
        return {"overall": float(np.mean(means)), "tasks": len(means)}


def _pixels(picture: Image.Image) -> Tensor:
    """(1, 3, H, W): the shortest side 800 or the longest 1333, multiples of 32, bilinear, by ImageNet's statistics."""
    scale = min(SHORTEST / min(picture.size), LONGEST / max(picture.size))
    size = [max(DIVISOR, -(-round(side * scale) // DIVISOR) * DIVISOR) for side in picture.size]
    return normalized([picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)], _MEAN, _STD)


def _cut(picture: Image.Image, thing: Found) -> Image.Image:
    gray = Image.new("RGB", picture.size, BACKGROUND)
    alone = Image.composite(picture, gray, Image.fromarray(thing.mask))
    left, top, right, bottom = (round(side) for side in thing.box)
    return alone.crop((left, top, right, bottom))
