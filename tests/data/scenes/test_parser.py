"""Captions back to facts: the writer's own facts come out, and what the writer would not say is refused."""

from dataclasses import replace

import numpy as np
import pytest

from cogview3.data.scenes import sentences, wording
from cogview3.data.scenes.captions import brief, comprehensive, plain
from cogview3.data.scenes.parser import is_consistent, parse, reading_of
from cogview3.data.scenes.scene import Facts, ObjectFacts, Relation, Scene, sample_scene
from cogview3.data.scenes.score import score

RED = "a small plain red circle with no outline"
BLUE = "a large striped blue star with an outline"
RED_FACTS = {"shape": "circle", "color": "red", "fill": "plain", "outline": False, "size": "small"}
BLUE_FACTS = {"shape": "star", "color": "blue", "fill": "striped", "outline": True, "size": "large"}


def drawn(index: int) -> tuple[Scene, np.random.Generator]:
    rng = np.random.default_rng([4_000_037, index])
    return sample_scene(rng), rng


def in_reading_order(facts: Facts) -> Facts:
    """The same facts with objects in the scene's order, and relations sorted."""
    order = sorted(range(len(facts.objects)), key=lambda index: reading_place(facts.objects[index].position))
    relations = []
    for item in facts.relations:
        ends = [order.index(index) for index in (item.second, item.other) if index is not None]
        relations.append(Relation(order.index(item.first), item.kind, *sorted(ends)))
    objects = tuple(facts.objects[index] for index in order)
    return replace(facts, objects=objects, relations=tuple(sorted(relations, key=str)))


def reading_place(position: str) -> tuple[int, int]:
    row, column = position.split()
    return ["top", "middle", "bottom"].index(row), ["left", "center", "right"].index(column)


def test_comprehensive_captions_give_back_their_facts() -> None:
    """1,500 captions; all pieces of the tables occur among them but the rarest."""
    for index in range(1500):
        scene, rng = drawn(index)
        caption = comprehensive(scene, rng)
        facts = parse(caption.text)
        assert facts is not None, caption.text
        assert in_reading_order(facts) == in_reading_order(caption.facts), caption.text


def test_plain_captions_give_back_their_facts_in_their_order() -> None:
    for index in range(300):
        scene, rng = drawn(index)
        scene = replace(scene, objects=tuple(scene.objects[i] for i in rng.permutation(len(scene.objects))))
        assert parse(plain(scene).text) == replace(scene.facts(), relations=())


def test_a_plain_caption_is_one_that_the_comprehensive_writer_can_write() -> None:
    """Its words for things are the writer's heaviest or among the heaviest; its plans are in the writer's tables."""
    scene, _ = drawn(3)
    assert "{things} {on} {ground}: {items}." in sentences.PLANS.texts
    assert "{place} {np}" in sentences.ITEMS.texts
    assert "{most} and {last}" in sentences.JOINS.texts
    assert "a {g} {b} with tiles" in wording.GROUND_PHRASES["tiled"].texts  # the parser's other ways stay open
    assert plain(scene).text == plain(scene).text.lower()
    assert plain(scene).told == tuple(range(len(scene.objects)))


def test_every_wording_of_a_piece_is_known() -> None:
    """The rare alternatives too, each put into one caption."""
    here = "in the center"
    for size, entry in wording.SIZES.items():
        for text in entry.texts:
            facts = parse(f"on a plain white background, a {text} striped red ring with no outline {here}.")
            assert facts, text
            assert facts.objects[0].size == size, text
    for shape, entry in wording.NOUNS.items():
        for text in entry.texts:
            facts = parse(f"a large dotted red {text} with no border {here} on gray tiles, nothing else.")
            assert facts, text
            assert facts.objects[0].shape == shape, text
    for thing, entry in wording.THING_NOUNS.items():
        for text in entry.texts:
            facts = parse(f"a large {text} {here} on gray tiles, nothing else.")
            assert facts, text
            assert facts.objects == (ObjectFacts(size="large", position="middle center", thing=thing),), text
    for position, entry in wording.PLACES.items():
        for text in entry.texts:
            facts = parse(f"{text} an outlined large checkered pink heart, alone on a green grid.")
            assert facts, text
            assert facts.objects[0].position == position, text
    for texture in ("plain", "tiled"):
        for text in wording.GROUND_SENTENCES[texture].texts:
            told = text.format(b="backdrop", g="pale blue")
            facts = parse(f"{told}. there is a lone tiny solid lilac hoop outlined in black {here}.")
            assert facts, text
            assert (facts.ground, facts.texture) == ("blue", texture), text


@pytest.mark.parametrize(
    "text",
    [
        f"Two shapes on a plain white background: at the top {RED} and in the centre {BLUE}.",
        f"two  shapes on a plain white background : at the top {RED} and in the center {BLUE} .",
        f"{RED.capitalize()} (top center) & {BLUE} (middle), against a solid white ground. 2 objects in all.",
    ],
)
def test_case_spelling_and_spacing_do_not_matter(text: str) -> None:
    objects = (
        ObjectFacts(**RED_FACTS, position="top center"),
        ObjectFacts(**BLUE_FACTS, position="middle center"),
    )
    assert parse(text) == Facts("white", "plain", 2, objects, ())


def test_things_stand_beside_shapes_and_between_them() -> None:
    text = (
        f"three objects on a plain white background: on the left {RED}, in the center a small red fox and on the right "
        f"{BLUE}. The fox is between the blue star and the red circle."
    )
    facts = parse(text)
    assert facts is not None
    assert facts.objects[1] == ObjectFacts(size="small", position="middle center", thing="fox")
    assert facts.relations == (Relation(1, "between", 2, 0),)
    assert is_consistent(facts)
    assert not is_consistent(replace(facts, relations=(Relation(0, "between", 1, 2),)))


def test_what_is_said_once_holds_for_all() -> None:
    text = (
        "three shapes on a tiled gray background: at the top a red circle with an outline, on the left a blue star, "
        "at the bottom a green star, the others have no outline, all three small and striped. "
        "The red circle is above the blue star and over the green star."
    )
    facts = parse(text)
    assert [item.outline for item in facts.objects] == [True, False, False]
    assert {(item.size, item.fill) for item in facts.objects} == {("small", "striped")}
    assert facts.relations == (Relation(0, "above", 1), Relation(0, "above", 2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of my cat",
        f"one shape on a plain white background: at the top {RED} and a cat.",
        f"one shape: at the top {RED}.",  # no ground
        f"one shape on a plain white background: {RED}.",  # no place
        f"one shape on a plain white background: at the top at the top {RED}.",
        f"two shapes on a plain white background: at the top {RED} and {BLUE} on the left.",  # before and after
        f"one shape on a plain white background: at the top {RED}. Plain white ground.",  # the ground twice
        f"one shape, two objects on a plain white background: at the top {RED}.",
        "one shape on a plain white background: at the top a small red circle with no outline.",  # no fill
        "one shape on a plain white background: at the top a small big plain red circle with no outline.",
        "one shape on a plain white background: at the top a plain small red circle with no pattern and no outline.",
        f"two shapes on plain white: at the top {RED}, on the left {RED}, both small.",  # said before
        f"two shapes on plain white: at the top {RED}, on the left {RED}, neither outlined.",
        "two shapes on plain white: at the top a plain red star, on the left a plain blue star, both small and "
        "outlined, no outlines.",
        "two shapes on plain white: at the top a red star with no outline, on the left a blue star with no outline, "
        "both small and tiny, both plain.",
        f"two shapes on plain white: at the top {RED}, on the left {BLUE}. The red circle is above the green star.",
        f"two shapes on plain white: at the top {RED}, on the left {RED}. The red circle is above the red circle.",
        "one object on plain white: at the top a red cow.",  # a thing has neither color nor fill nor outline
        "one object on plain white: at the top a small plain cow.",
        "one object on plain white: at the top a small cow with an outline.",
        "one object on plain white: at the top a cow.",  # no size
        f"two objects on plain white: at the top {RED}, on the left a small cow. The red circle is above the fox.",
        "two objects on plain white: at the top a small cow, on the left a small plain red star, none outlined.",
        f"two objects on plain white: at the top {RED}, on the left a small cow. The cow is between the red circle.",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    assert parse(text) is None


def test_brief_captions_are_refused_as_they_leave_facts_out() -> None:
    for index in range(50):
        scene, rng = drawn(index)
        caption = brief(scene, rng)
        if caption.facts.objects != scene.facts().objects or not caption.facts.texture:
            assert parse(caption.text) is None, caption.text


def test_a_reading_of_facts_scores_as_the_scenes_picture_would() -> None:
    """Relations and matches come from the cells; the true scene's relations are the same ones."""
    for index in range(200):
        scene, rng = drawn(index)
        told = parse(comprehensive(scene, rng).text)
        reading = reading_of(told)
        assert score(scene.facts(), reading).whole
        assert in_reading_order(reading.facts) == in_reading_order(scene.facts())
        assert is_consistent(told)


def test_inconsistent_scenes_are_told() -> None:
    red = ObjectFacts(**RED_FACTS, position="top center")
    blue = ObjectFacts(**BLUE_FACTS, position="middle left")
    good = Facts("white", "plain", 2, (red, blue), (Relation(0, "above", 1), Relation(0, "right of", 1)))
    assert is_consistent(good)
    assert not is_consistent(replace(good, count=3))
    assert not is_consistent(replace(good, ground="blue"))
    assert not is_consistent(replace(good, relations=(Relation(0, "below", 1),)))
    assert not is_consistent(replace(good, objects=(red, replace(blue, position="top center")), relations=()))
