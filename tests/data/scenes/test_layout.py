"""Where typed prompts put their objects, and expansions that put them there."""

from dataclasses import replace

import numpy as np
import pytest

from cogview3.data.scenes import brief as brief_captions
from cogview3.data.scenes.captions import brief, plain
from cogview3.data.scenes.layout import Layout, laid_out, lost_places
from cogview3.data.scenes.parser import parse
from cogview3.data.scenes.scene import BETWEEN, Relation, Scene, SceneObject, betweens, sample_scene

DOG_AND_CAT = "two objects on a plain white background: on the left a medium dog and on the right a medium cat."
HEART = "one shape on a plain white background: in the center a large plain cyan heart with no outline."


def finished(prompt: str, names: str) -> list[tuple[str, str | None]]:
    """An expansion of things in the usual three places, finished for a prompt: places and things."""
    first, second, third = names.split()
    text = (
        f"three objects on a plain white background: in the top left corner a medium {first}, "
        f"in the top right corner a medium {second} and at the bottom a medium {third}."
    )
    told, lost = laid_out(prompt).finished(text)
    assert lost == []
    facts = parse(told)
    assert facts is not None
    assert {item.size for item in facts.objects} == {"small"}
    return [(str(item.position), item.thing) for item in facts.objects]


@pytest.mark.parametrize(
    ("prompt", "asked", "row"),
    [
        ("three cats in a row", "three cats", "cat cat cat"),
        ("A dog, a cat and a fox in a row", "a dog, a cat and a fox", "dog cat fox"),
        ("a row of 3 stars on blue", "3 stars on blue", None),
        ("a dog left of a cat left of a fox", "a dog, a cat and a fox", "dog cat fox"),
        ("a dog to the right of a cat to the right of a fox", "a dog, a cat and a fox", "fox cat dog"),
        ("a dog between a cat and a fox", "a dog, a cat and a fox", "cat dog fox"),
        ("a castle between two trees", "a castle and two trees", "tree castle tree"),
    ],
)
def test_three_in_a_row_are_expanded_as_a_list_and_put_there(prompt: str, asked: str, row: str | None) -> None:
    assert laid_out(prompt).prompt == asked
    if row:
        given = sorted(
            row.split(), key=["castle", "dog", "cat", "fox", "tree"].index
        )  # as the expander would list them
        assert finished(prompt, " ".join(given)) == list(
            zip(("middle left", "middle center", "middle right"), row.split(), strict=True)
        )


def test_a_chain_downwards_is_a_column() -> None:
    column = [("top center", "dog"), ("middle center", "cat"), ("bottom center", "fox")]
    assert finished("a dog above a cat above a fox", "dog cat fox") == column
    assert finished("a fox under a cat under a dog", "fox cat dog") == column


@pytest.mark.parametrize(
    "prompt",
    [
        "four cats in a row",
        "two cats in a row",
        "a dog above a cat left of a fox",
        "a dog left of a cat",
        "a red heart",
    ],
)
def test_what_is_no_row_of_three_is_left_to_the_expander(prompt: str) -> None:
    assert laid_out(prompt) == Layout(prompt)


def test_a_row_of_other_objects_is_refused() -> None:
    assert laid_out("three cats in a row").finished(DOG_AND_CAT)[1]
    wrong = DOG_AND_CAT.replace("two", "three").replace("medium cat", "medium cat and at the bottom a medium dog")
    assert parse(wrong) is not None
    assert laid_out("three cats in a row").finished(wrong)[1]


@pytest.mark.parametrize(
    ("prompt", "lost"),
    [
        ("a dog left of a cat", []),
        ("a cat is left of a dog", ["a cat is left of a dog"]),
        ("a dog on the left side of a cat", []),
        ("a dog under a cat", ["a dog under a cat"]),
        ("on the right a cat, on the left a dog", []),
    ],
)
def test_relations_that_an_expansion_does_not_have_are_named(prompt: str, lost: list[str]) -> None:
    assert laid_out(prompt).finished(DOG_AND_CAT) == (DOG_AND_CAT, lost)


def test_an_object_is_put_where_the_prompt_wants_it() -> None:
    corner = HEART.replace("in the center", "in the bottom right corner")
    assert laid_out("a heart in the bottom right corner").finished(HEART) == (corner, [])
    assert laid_out("a heart in the corner").finished(HEART)[0] == HEART.replace(
        "in the center", "in the top left corner"
    )
    assert laid_out("a heart in the middle").finished(HEART) == (HEART, [])
    assert laid_out("a heart at the bottom").finished(HEART)[0] == HEART.replace("in the center", "at the bottom")


@pytest.mark.parametrize(
    "text",
    [
        HEART.replace("white", "cyan").replace("cyan heart", "blue heart").replace("cyan", "blue"),
        DOG_AND_CAT.replace("on the right", "on the left"),
    ],
)
def test_what_no_picture_can_show_is_refused(text: str) -> None:
    """An object in its background's color, two objects in one place."""
    assert parse(text) is not None
    assert Layout("a prompt").finished(text)[1]


def test_texts_of_another_style_are_left_alone() -> None:
    assert Layout("a dog on the left").finished("A dog sits in a park.") == ("A dog sits in a park.", [])


def test_of_brief_captions_the_places_of_their_scenes_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places and relations of 400 captions are right of their own scenes, and mostly wrong of turned ones."""
    monkeypatch.setattr(brief_captions, "TYPO_SHARE", 0.0)
    missed, turned = 0, []
    for index in range(400):
        rng = np.random.default_rng([20261130, index])
        scene = sample_scene(rng)
        caption = brief(scene, rng)
        missed += bool(lost_places(caption.text, scene.facts()))
        stated = {item.position for item in caption.facts.objects} - {None, "middle center"}
        if stated and len(caption.facts.objects) == len(scene.objects) == len(
            {item.position for item in scene.objects}
        ):
            around = tuple(replace(item, x=1 - item.x, y=1 - item.y) for item in scene.objects)
            turned.append(bool(lost_places(caption.text, replace(scene, objects=around).facts())))
    assert missed <= 2
    assert len(turned) > 60
    assert np.mean(turned) > 0.6


def test_rows_stand_as_their_relations_say() -> None:
    """What is between two others, and left of both, by the scene's own geometry."""
    places = [("left", 0.27), ("center", 0.5), ("right", 0.73)]
    objects = tuple(
        SceneObject(None, None, None, None, "small", x, 0.5, thing)
        for (_, x), thing in zip(places, ("dog", "cat", "fox"), strict=True)
    )
    scene = Scene("white", "plain", objects)
    assert betweens([(item.x, item.y) for item in scene.objects]) == (Relation(1, BETWEEN, 0, 2),)
    told, lost = laid_out("a dog, a cat and a fox in a row").finished(plain(scene).text)
    assert (told, lost) == (plain(scene).text, [])
