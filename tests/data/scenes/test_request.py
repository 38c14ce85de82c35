"""What the world's own expander is asked for a typed prompt."""

import numpy as np
import pytest

from cogview3.data.scenes.captions import brief, comprehensive
from cogview3.data.scenes.request import request, to_expand, turned
from cogview3.data.scenes.scene import sample_scene
from cogview3.data.scenes.typed import problems


@pytest.mark.parametrize("prompt", ["ein Kreis und zwei Ringe", "红色的圆", "🦄", "my holiday in Rome", "zebra xylo"])
def test_prompts_of_another_world_are_not_expanded(prompt: str) -> None:
    assert to_expand(prompt)[1]


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("an adorable kitten", "a kitten"),
        ("a grumpy old red apple", "an apple"),
        ("a big striped blue fox and a red ring", "a big fox and a red ring"),
        ("a purple birthday cake, a purple heart", "a birthday cake, a purple heart"),
        ("a scrumptious birthday cake on blue", "a birthday cake on blue"),
        ("two sleepy bears", "two bears"),
        ("three foxes running", "three foxes"),
        ("a dog chasing a cat", "a dog and a cat"),
        ("a robot eats banana", "a robot and banana"),
        ("a penguin dancing under the moon", "a penguin under the moon"),
    ],
)
def test_words_that_no_picture_shows_are_left_out_of_expansions(prompt: str, expanded: str) -> None:
    assert to_expand(prompt) == (expanded, "")


@pytest.mark.parametrize(
    "prompt",
    [
        "a red giraffe",
        "a cat with spectacles",
        "giraffe, red circle",
        "a gren circle",
        "a circle abov a star",
        "a horse and a ring",
    ],
)
def test_names_of_unknown_things_and_words_of_several_meanings_stay(prompt: str) -> None:
    """What is lost of them is for the check of the expansion to find."""
    assert to_expand(prompt) == (prompt, "")


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("an elephnat", "an elephant"),
        ("a yellw traingle", "a yellow triangle"),
        ("two Octopusses and a sqare", "two octopuses and a square"),
        ("a butterfli on a purpel square", "a butterfly on a purple square"),
    ],
)
def test_slips_of_spelling_are_corrected(prompt: str, expanded: str) -> None:
    assert to_expand(prompt)[0].lower() == expanded


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("4 dogs", "four dogs"),
        ("a cyan ring w/o outline", "a cyan ring without outline"),
        ("a red ball on a white floor", "a red ball on a white background"),
        ("yellow star, black sky", "yellow star, black background"),
        ("christmas: a gift and a tree", "a gift and a tree"),
        ("three animals: a cow, a pig and a duck", "a cow, a pig and a duck"),
        ("something simple: a blue cross", "a blue cross"),
        ("a red square: big", "a red square: big"),
        ("four corners: a star in each", "four corners: a star in each"),
        ("on the left: a star", "on the left: a star"),
        ("something red next to something blue", "a red shape next to a blue shape"),
        ("a robot with a balloon", "a robot and a balloon"),
        ("a snowman with an umbrella on blue", "a snowman and an umbrella on blue"),
        ("a cake with a cherry on top", "a cake with a cherry on top"),
        ("a ring with an outline", "a ring with an outline"),
        ("two dogs, one big and one small", "a big dog and a small dog"),
        ("three boxes, one red, one blue and one green", "a red box, a blue box and a green box"),
        ("three dogs, one big and one small", "three dogs, one big and one small"),
        ("two red hearts and a blue one", "two red hearts and a blue heart"),
        ("two butterflies, one big and one small", "a big butterfly and a small butterfly"),
        ("a big fox and a small fox", "a big fox and a small fox"),
    ],
)
def test_prompts_are_put_in_words_that_captions_have(prompt: str, expanded: str) -> None:
    assert to_expand(prompt) == (expanded, "")


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("three boxes stacked", "three boxes"),
        ("three sleepy cats lined up", "three cats"),
        ("a row of two foxes and a dog", "two foxes and a dog"),
        ("christmas: a tree between two gifts", "a tree and two gifts"),
    ],
)
def test_rows_of_three_are_asked_for_as_lists(prompt: str, asked: str) -> None:
    found = request(prompt)
    assert (found.text, found.reason) == (asked, "")
    assert not any(word in told for told in problems(prompt) for word in ("'row'", "'stacked'")), "it is understood"


def test_lists_of_two_are_turned_round_for_a_second_try() -> None:
    assert turned("a robot and three keys on a blue background") == ("three keys and a robot on a blue background",)
    assert turned("two stars and one ring") == ("one ring and two stars",)
    assert turned("a star, a ring and a fox") == turned("a red and blue star") == turned("a star") == ()


def test_captions_are_expanded() -> None:
    for index in range(150):
        rng = np.random.default_rng([9, index])
        scene = sample_scene(rng)
        for caption in (brief(scene, rng), comprehensive(scene, rng)):
            assert request(caption.text).reason == "", caption.text
