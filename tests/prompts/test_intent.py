"""What a prompt asks for is found again in a description, or told to be lost."""

import numpy as np
import pytest

from cogview3.data.scenes.captions import brief, comprehensive
from cogview3.data.scenes.scene import sample_scene
from cogview3.prompts.intent import lost_intent
from cogview3.prompts.words import is_english, meanings, stem


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("two red stars", "Two large red stars on a plain white background."),
        ("2 red stars", "A pair of red stars glows in the dark."),
        ("two red stars", "A red star at the top left and another red star at the bottom."),
        ("two stars", "There are 2 shapes: one star is red and the other is blue, both stars small."),
        ("three dogs running", "Three dogs run along a beach."),
        ("a dozen eggs", "12 brown eggs in a carton."),
        ("one cat", "A cat sleeps."),
        ("a red house and a blue car", "The house is painted red; beside it stands a car, glossy and blue."),
        ("a red and white flag", "A red and white striped flag."),
        ("a rainy street", "A street in the rain at night."),
        ("a dark ground, a ring with a light edge", "On black ground lies a ring edged in white."),
        ("a turquoise ring edged in black", "A cyan ring with a black edge and a square of a cyan tone."),
        ("an unoutlined red heart and a star", "A red heart with no outline and a star with a black outline."),
        ("a heart with spots and no outline, a star", "A spotted heart without an outline beside an outlined star."),
        ("a man without a hat", "A man with no hat stands there."),
        ("a street with no cars or people", "An empty street without people, bicycles or cars."),
        ("a treeless hill, no houses", "A treeless hill under clouds. There are no houses."),
        ("a man who isn't smiling", "A stern man, not smiling, in a gray coat."),
        ("a sugar-free cake", "A sugar-free cake on a plate."),
        ('a sign that says "OPEN 24h"', 'A neon sign reads "OPEN 24h" in red.'),
        ("a sign “Café”", 'A sign with the word "Café".'),
        ("children on 3-legged stools", "Children sit on three-legged stools."),
        ("draw me a picture of a fox please", "A fox in the snow."),
        ("gray wolves", "Grey wolves in a forest, a pack of wolves."),
        ("dark blue sofa", "A deep blue couch."),
        ("a purple dot & a small cyan plus", "A purple circle lies left of a tiny cyan cross."),
        ("I'd like a dotted ring; place a star beside it", "A ring with dots and a star."),
        ("a ring outlined in black and a red star", "A ring with a black outline is left of a red star."),
        ("a red outlined shape with stripes", "A red striped heart with a black outline."),
        ("a blue star, a ring not outlined", "A blue star with a white edge and a ring with no outline."),
        ("a cyan ring w/o outline", "A cyan ring without an outline."),
        ("", "Anything."),
        (
            "three green triangles",
            "three shapes: at the top a small green triangle, on the left a large green triangle and at the bottom a "
            "small striped green triangle.",
        ),
        ("four hearts, all pink", "Four pink hearts stand in a row."),
        ("two red squares and one blue ring", "Three shapes: a red square, a blue ring and another red square."),
        ("two stars, each a different colour", "A red star and a blue star."),
        ("two red hearts and a blue one", "Two red hearts beside a blue heart."),
        ("a puppy and a soccer ball", "A small dog beside a football."),
        ("a yellow star but no ring", "One shape on white: a large yellow star."),
        ("zwei rote Sterne und ein 3D-Kreis", "Two red stars and a 3D circle."),
        ("两只猫，门牌号 42", "Two cats beside a door with the number 42."),
        ("un café avec le texte « Ouvert »", 'A coffee house with "Ouvert" on its door.'),
    ],
)
def test_nothing_is_lost(prompt: str, expanded: str) -> None:
    assert lost_intent(prompt, expanded) == []


@pytest.mark.parametrize(
    ("prompt", "expanded", "lost"),
    [
        ("two red stars", "Three large red stars on white.", ["two red stars"]),
        ("two red stars", "Several red stars.", ["two red stars"]),
        ("three green triangles", "A green triangle, a green triangle and a blue triangle.", ["three green triangles"]),
        ("three cats", "A cat, a cat, a cat and a cat.", ["three cats"]),
        ("four hearts, all pink", "A pink heart, a pink heart, a pink heart.", ["four hearts"]),
        ("two stars, each a different color", "A red star and another red star.", ["different colors"]),
        ("two stars in different colors", "Two red stars on a white background.", ["different colors"]),
        ("two red hearts and a blue one", "Two red hearts and a blue ring.", ["blue hearts"]),
        ("two red stars", "Two large blue stars.", ["red stars"]),
        ("two red stars", "Two large red circles.", ["two red stars", "red stars", "stars"]),
        ("two cats and three dogs", "Three cats and two dogs.", ["two cats", "three dogs"]),
        ("a red house and a blue car", "A blue house beside a red car.", ["red house", "blue car"]),
        ("a dog and a cat", "A dog on a lawn.", ["cat"]),
        ("a man without a hat", "A man with a hat.", ["no hat"]),
        ("an unoutlined red heart", "A red heart with a black outline.", ["no outline"]),
        ("a dark ground", "A light ground.", ["dark"]),
        ("a street with no cars", "A street where cars line the kerb. There are no clouds.", ["no cars"]),
        ("a red star", "There is no red star.", ["star"]),
        ("a woman in red and white shoes", "A woman with white shoes.", ["red"]),
        ("a ring not outlined", "A ring with a black outline.", ["no outlined"]),
        ("a ring w/o outline", "A ring with a black outline.", ["no outline"]),
        ("a purple dot", "A purple star with blue dots.", ["purple dot"]),
        ("a red building", "A blue building.", ["red building"]),
        ('a sign that says "OPEN"', 'A sign that says "CLOSED".', ['"OPEN"']),
        ('a sign that says "OPEN"', 'A sign that says "Open".', ['"OPEN"']),
        ("a bus, line 7", "A yellow bus.", ["7", "line"]),
        ("ein Haus mit 12 Fenstern und dem Schild 'Bäcker'", "A house with ten windows.", ['"Bäcker"', "12"]),
    ],
)
def test_what_is_lost_is_named(prompt: str, expanded: str, lost: list[str]) -> None:
    assert sorted(lost_intent(prompt, expanded)) == sorted(lost)


def test_any_two_texts_will_do() -> None:
    rng = np.random.default_rng(0)
    words = ["no", "without", ",", "and", "red", "star", "stars", "a", "two", "-", "free", "in", ".", "outlined", "not"]
    words += ["or", "none", "blue", "shape", "7", "light", "is"]
    for _ in range(3000):
        prompt, expanded = (" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(2))
        assert isinstance(lost_intent(prompt, expanded), list), prompt
    assert lost_intent("outline: none, red circle, blue background", "A red circle on blue ground.") == ["outline"]


def test_descriptions_of_scenes_keep_their_brief_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brief captions against the long ones of the same scenes, and of others.

    A share of the former tells more than the long caption: an outline's color, above all.
    """
    monkeypatch.setattr("cogview3.data.scenes.brief.TYPO_SHARE", 0.0)
    same, other = [], []
    texts = []
    for index in range(150):
        rng = np.random.default_rng([7, index])
        scene = sample_scene(rng)
        texts.append((brief(scene, rng).text, comprehensive(scene, rng).text))
    for index, (prompt, expanded) in enumerate(texts):
        same.append(bool(lost_intent(prompt, expanded)))
        other.append(bool(lost_intent(prompt, texts[index - 1][1])))
    assert np.mean(same) < 0.25
    assert np.mean(other) > 0.97


@pytest.mark.parametrize("forms", ["star stars", "stripe striped stripes", "rain rainy raining", "run running runs",
                                   "city cities", "box boxes", "leaf leaves", "child children", "house houses",
                                   "glass glasses", "sun sunny", "ring rings", "bus buses"])  # fmt: skip
def test_forms_of_a_word_share_a_stem(forms: str) -> None:
    assert len({stem(word) for word in forms.split()}) == 1


def test_other_words_do_not() -> None:
    words = ["star", "ring", "red", "bed", "string", "king", "cat", "car", "card", "dog", "house", "horse", "blue"]
    words += ["glass", "grass", "wing", "swing"]
    assert len({stem(word) for word in words}) == len(words)
    assert meanings("donut") == meanings("rings") == {"ring"}
    assert meanings("crimson") == {"red"}
    assert meanings("dots") == {"circle", "dotted"}


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("A red star", True),
        ("The cat of Juan García sits in the sun", True),
        ("Ein roter Stern auf dem Tisch", False),
        ("une étoile rouge", False),
        ("zwei Katzen ohne Halsband", False),
        ("deux chats noirs", False),
        ("dos gatos negros", False),
        ("tre gatti neri", False),
        ("rote Sterne im Himmel", False),
        ("two cats in hats", True),
        ("два кота", False),
        ("红色的星星", False),
        ("12 34", True),
        ("a red van", True),
        ("a man rode a horse", True),
        ("I've met a con man", True),
        ("a cozy café", True),
        ("grünes Haus", False),
        ("Katze auf Sofa", False),
        ("The sign reads: der Hund und die Katze sind mit einem Ball auf der Wiese", False),
    ],
)
def test_languages(text: str, english: bool) -> None:
    assert is_english(text) is english
