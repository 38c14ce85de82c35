"""GenEval's rules on things whose places are known, and the networks' outputs made into things."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cogview3.config import UserError
from cogview3.evaluation.metrics import make_metrics
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.clip import Clip
from cogview3.evaluation.scorers.geneval import COLORS, Found, GenEval, instances, judge, relations
from cogview3.evaluation.scorers.weights import Weights
from tests.evaluation.networks import write_clip


def thing(left: float, top: float, side: float = 10, confidence: float = 0.95) -> Found:
    return Found(confidence, (left, top, left + side, top + side), np.ones((4, 4), bool))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0), (50, 0), {"left of"}),
        ((50, 0), (0, 0), {"right of"}),
        ((0, 0), (0, 50), {"above"}),
        ((0, 50), (0, 0), {"below"}),
        ((0, 0), (50, 50), {"left of", "above"}),
        ((0, 0), (1, 1), set()),  # within a tenth of both sides
    ],
)
def test_relations(first: tuple, second: tuple, expected: set[str]) -> None:
    assert relations(thing(*first), thing(*second)) == expected


def asked(tag: str, *include: dict, exclude: tuple[dict, ...] = ()) -> dict:
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}


@pytest.mark.parametrize(
    ("record", "things", "right"),
    [
        (asked("single_object", DOG), {"dog": [thing(0, 0)]}, True),
        (asked("single_object", DOG), {"cat": [thing(0, 0)]}, False),
        (asked("single_object", DOG), {"dog": [thing(0, 0, confidence=0.3)]}, False),
        (asked("two_object", DOG, CAT), {"dog": [thing(0, 0)], "cat": [thing(0, 0, confidence=0.31)]}, True),
        (asked("counting", {"class": "dog", "count": 2}), {"dog": [thing(0, 0), thing(9, 0, confidence=0.8)]}, False),
        (
            asked("counting", {"class": "dog", "count": 2}, exclude=({"class": "dog", "count": 3},)),
            {"dog": [thing(n, 0) for n in range(3)]},
            False,
        ),
        (asked("colors", {**DOG, "color": "red"}), {"dog": [thing(0, 0)]}, True),
        (asked("colors", {**DOG, "color": "blue"}), {"dog": [thing(0, 0)]}, False),
        (
            asked("position", DOG, {**CAT, "position": ["left of", 0]}),
            {"dog": [thing(50, 0)], "cat": [thing(0, 0)]},
            True,
        ),
        (
            asked("position", DOG, {**CAT, "position": ["right of", 0]}),
            {"dog": [thing(50, 0)], "cat": [thing(0, 0)]},
            False,
        ),
    ],
)
def test_rules(record: dict, things: dict, right: bool) -> None:
    assert judge(record, things, lambda found, name: ["red"] * len(found)) is right


def test_things_of_the_networks_output() -> None:
    classes = torch.full((3, 3), -9.0)
    classes[0, 0] = classes[1, 1] = classes[2, 2] = 9.0  # the third query is nothing
    masks = torch.full((3, 4, 4), -9.0)
    masks[0, :2, :2] = 9.0
    masks[1, 2:, :] = 9.0
    found = instances(classes, masks, (8, 16), {0: "tvmonitor", 1: "dog"})
    tv = max(found["tv"], key=lambda each: each.confidence)
    assert tv.box == (0, 0, 8, 4)
    assert tv.confidence == pytest.approx(1, abs=0.02)
    dog = found["dog"][0]
    assert dog.box == (0, 4, 16, 8)
    assert dog.mask[5].all()
    assert all(each.confidence < 0.3 for each in [*found["tv"][1:], *found["dog"][1:]])


def test_colors_are_those_of_clip(tmp_path: Path) -> None:
    """The nearest of the ten colors, by cosines that CLIP's own forward pass gives."""
    write_clip(tmp_path)
    clip = Clip.load(Weights({"clip-l14": str(tmp_path)}), GenEval.assets[1])
    scorer = GenEval(None, clip)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    found = scorer.colors(picture, [Found(1.0, (0, 0, 40, 40), np.ones((40, 40), bool))], "cat")
    lines = [
        [f"a photo of a {color} cat", f"a photo of a {color}-colored cat", f"a photo of a {color} object"]
        for color in COLORS
    ]
    means = [sum(clip.cosines([picture] * 3, row)) / 3 / clip.texts(row).mean(0).norm() for row in lines]
    assert found == [COLORS[int(torch.stack(means).argmax())]]


def test_prompts_of_other_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluation_metadata"):
        make_metrics(["geneval"], [Prompt("a dog")], 0)


def test_overall_is_the_mean_of_tasks() -> None:
    prompts = [Prompt("a", tags={"task": task}) for task in ("colors", "colors", "position")]
    assert GenEval.summarize(prompts, [1.0, 0.0, 1.0]) == {"overall": 0.75, "tasks": 2}
    assert json.dumps(GenEval.protocol)
