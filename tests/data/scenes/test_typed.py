"""What is said of a typed prompt: unknown words by their meaning, contradictions, counts, other languages."""

import numpy as np
import pytest

from cogview3.data.scenes.captions import brief, comprehensive
from cogview3.data.scenes.scene import sample_scene
from cogview3.data.scenes.typed import problems
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


def test_captions_have_no_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogview3.data.scenes.brief.TYPO_SHARE", 0.0)
    for index in range(300):
        rng = np.random.default_rng([9, index])
        scene = sample_scene(rng)
        for caption in (brief(scene, rng), comprehensive(scene, rng)):
            assert problems(caption.text) == [], caption.text


def test_short_words_are_not_guessed_by_their_letters() -> None:
    assert suggestions("bat") == suggestions("at") == []
    assert suggestions("horses") == ["cow"]
    assert suggestions("🦊") == ["fox"]
