"""Figures of written captions, on captions whose errors are known."""

from dataclasses import replace

import numpy as np
import pytest

from cogview3.config import UserError
from cogview3.data.scenes.captions import Caption, alt_text, brief, comprehensive, plain
from cogview3.data.scenes.parser import parse
from cogview3.data.scenes.scene import Facts, ObjectFacts, Relation, Scene, SceneObject, sample_scene
from cogview3.evaluation.written import expansion_figures, recaption_figures, wrong_statements_kept

RED = SceneObject("circle", "red", "plain", False, "small", 0.5, 0.27)
BLUE = SceneObject("star", "blue", "striped", True, "large", 0.27, 0.73)
SCENE = Scene("white", "tiled", (RED, BLUE))
SILENT = Caption("", Facts())


def figures(shown: Scene, written: Scene | str, old: Caption = SILENT) -> dict[str, float]:
    text = written if isinstance(written, str) else plain(written).text
    return recaption_figures([shown], [old], [text])


def test_true_captions_are_wholly_right_and_keep_no_error() -> None:
    scenes, olds, texts = [], [], []
    for index in range(300):
        rng = np.random.default_rng([8, index])
        scenes.append(sample_scene(rng, ("seen", "held-out")[index % 2]))
        olds.append(alt_text(scenes[-1], rng))
        texts.append(comprehensive(scenes[-1], rng).text)
    assert sum(len(wrong_statements_kept(*pair, None)) for pair in zip(scenes, olds, strict=True)) > 40
    told = recaption_figures(scenes, olds, texts)
    assert told.pop("wrong_kept") == 0
    assert set(told.values()) == {1.0}
    assert {"seen", "held_out", "ground", "texture", "count", "shape", "position"} <= told.keys()


def test_each_wrong_fact_counts_once() -> None:
    """15 facts: ground, texture, count and six of each object."""
    told = figures(SCENE, replace(SCENE, ground="gray", objects=(RED, replace(BLUE, color="pink"))))
    assert told["facts_right"] == pytest.approx(13 / 15)
    assert (told["ground"], told["color"], told["shape"]) == (0, 0.5, 1)
    assert (told["captions_right"], told["read"]) == (0, 1)


def test_missing_objects_and_objects_too_many_are_wrong() -> None:
    missing = figures(SCENE, replace(SCENE, objects=(RED,)))
    assert missing["facts_right"] == pytest.approx((15 - 1 - 6) / 15)  # the count too
    more = figures(replace(SCENE, objects=(RED,)), SCENE)
    assert more["facts_right"] == pytest.approx(8 / 10)  # of nine facts the count is wrong, and one more is for BLUE
    assert more["extra"] == 0


def test_a_text_that_cannot_be_read_is_wrong_in_all() -> None:
    told = figures(SCENE, "a nice picture", Caption("", Facts(ground="gray"), told=()))
    assert (told["facts_right"], told["read"], told["wrong_kept"]) == (0, 0, 0)


def test_errors_that_are_kept_are_told_from_those_that_are_not() -> None:
    stated = (ObjectFacts(shape="star", color="green", position="top left"), ObjectFacts(color="red", size="large"))
    old = Caption("", Facts("gray", None, None, stated, (Relation(0, "above", 1),)), told=(1, 0))
    # the scene's objects 0 and 1 in its order: a star is said of the red circle, a red thing of the blue star
    new = replace(SCENE, objects=(replace(RED, shape="star"), BLUE))
    kept = wrong_statements_kept(SCENE, old, parse(plain(new).text))
    # ground; shape, color and position of the first; color and size (large: right, so not among them) of the second
    assert kept == [False, True, False, False, False]
    repeated = Scene("gray", "tiled", (replace(RED, shape="star", color="green", x=0.27), replace(BLUE, color="red")))
    assert wrong_statements_kept(SCENE, old, parse(plain(repeated).text)) == [True] * 5


def test_a_wrong_relation_is_kept_where_the_new_places_have_it() -> None:
    stated = (ObjectFacts(color="red"), ObjectFacts(color="blue"))
    old = Caption("", Facts(objects=stated, relations=(Relation(0, "below", 1),)), told=(0, 1))
    assert wrong_statements_kept(SCENE, old, parse(plain(SCENE).text)) == [False]
    swapped = replace(SCENE, objects=(replace(RED, y=0.73), replace(BLUE, y=0.27)))
    assert wrong_statements_kept(SCENE, old, parse(plain(swapped).text)) == [True]
    assert wrong_statements_kept(SCENE, old, None) == [False]


def test_expansions_that_keep_everything() -> None:
    prompts, texts = [], []
    for index in range(200):
        rng = np.random.default_rng([9, index])
        scene = sample_scene(rng)
        prompt = brief(scene, rng)
        prompts.append(prompt.facts)
        objects = tuple(scene.objects[i] for i in prompt.told)
        texts.append(plain(replace(scene, objects=objects)).text)
    told = expansion_figures(prompts, texts)
    assert told == {"prompts_kept": 1, "facts_kept": 1, "read": 1, "consistent": 1}


def test_expansions_that_lose_something() -> None:
    wanted = Facts(objects=(ObjectFacts(shape="circle", color="red"), ObjectFacts(shape="star")), count=2)
    kept = plain(SCENE).text
    lost = plain(replace(SCENE, objects=(replace(RED, color="green"), BLUE))).text
    crowded = plain(replace(SCENE, objects=(RED, replace(BLUE, x=0.5, y=0.27)))).text
    told = expansion_figures([wanted] * 4, [kept, lost, "two red stars", crowded])
    assert told == {"prompts_kept": 0.5, "facts_kept": (4 + 3 + 0 + 4) / 16, "read": 0.75, "consistent": 0.5}
    third = replace(RED, x=0.73, y=0.73)
    more = expansion_figures([wanted], [plain(replace(SCENE, objects=(*SCENE.objects, third))).text])
    assert more["prompts_kept"] == 0


def test_unequal_or_no_captions_are_refused() -> None:
    with pytest.raises(UserError, match="1 scenes, 1 old and 0 new captions"):
        recaption_figures([SCENE], [SILENT], [])
    with pytest.raises(UserError, match="0 prompts and 0 expansions"):
        expansion_figures([], [])
