"""What is said of a typed prompt: unknown words by their meaning, contradictions, counts, other languages."""

import numpy as np
import pytest

from cogview3.data.scenes.captions import brief, comprehensive
from cogview3.data.scenes.scene import sample_scene
from cogview3.data.scenes.typed import problems, to_expand
from cogview3.data.scenes.vocabulary import suggestions


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a red blue circle", ["red", "blue"]),
        ("a small big star", ["small", "big"]),
        ("a striped dotted ring", ["striped", "dotted"]),
        ("seven foxes", ["7", "4"]),
        ("5 red stars", ["5"]),
        ("a dog and twelve cats", ["12"]),
        ("zwei rote Ringe", ["English"]),
        ("两只猫", ["English"]),
        ("🦊 and a star", ["🦊", "fox"]),
        ("a tiger", ["tiger", "lion"]),
        ("a star inside a ring", ["inside"]),
        ("a blue fox", ["fox", "blue"]),
    ],
)
def test_what_is_amiss_is_named(prompt: str, named: list[str]) -> None:
    told = " ".join(problems(prompt))
    assert [word for word in named if word not in told] == []


@pytest.mark.parametrize(
    "prompt",
    [
        "a red and blue circle",
        "a dark blue star",
        "a red apple and a blue whale",
        "a fox on a yellow background",
        "four hearts, all pink",
        "two red squares and one blue ring",
        "a cat w/o a hat",
        "a red circle, blue square",
        "two blue circles left of a fox",
    ],
)
def test_of_what_can_be_drawn_nothing_is_said(prompt: str) -> None:
    assert problems(prompt) == []
    assert to_expand(prompt)[1] == ""


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


def test_captions_have_no_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogview3.data.scenes.brief.TYPO_SHARE", 0.0)
    for index in range(300):
        rng = np.random.default_rng([9, index])
        scene = sample_scene(rng)
        for caption in (brief(scene, rng), comprehensive(scene, rng)):
            assert problems(caption.text) == [], caption.text
            assert to_expand(caption.text)[1] == "", caption.text


def test_short_words_are_not_guessed_by_their_letters() -> None:
    assert suggestions("bat") == suggestions("at") == []
    assert suggestions("horses") == ["cow"]
    assert suggestions("🦊") == ["fox"]
