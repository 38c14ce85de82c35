"""Scores of hand-built statements against hand-built readings, each worked out by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from cogview3.config import UserError
from cogview3.data.scenes.reader import Reading
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Facts, ObjectFacts, Relation, Scene, SceneObject, relations_between, sample_scene
from cogview3.data.scenes.score import ScoredFact, score, summarize

RED = ObjectFacts("circle", "red", "plain", False, "small", "middle left")
BLUE = ObjectFacts("square", "blue", "striped", True, "large", "middle right")
GREEN = ObjectFacts("star", "green", "dotted", False, "medium", "top center")
CENTERS = {"left": 0.27, "center": 0.5, "right": 0.73, "top": 0.27, "middle": 0.5, "bottom": 0.73}


def reading(*objects, ground="white", texture="tiled", count=None):
    centers = [tuple(CENTERS[word] for word in reversed(item.position.split())) for item in objects]
    facts = Facts(ground, texture, len(objects) if count is None else count, objects, relations_between(centers))
    return Reading(facts, tuple(centers))


def stated(*objects):
    return reading(*objects).facts


def wrong(result):
    return [(fact.kind, fact.index) for fact in result.facts if not fact.right]


def test_everything_right():
    result = score(stated(RED, BLUE), reading(RED, BLUE))
    # ground, texture, count; six facts of two objects; one relation along x, from both sides
    assert (result.right, result.total, result.whole) == (17, 17, True)


def test_order_does_not_matter():
    assert score(stated(RED, BLUE, GREEN), reading(GREEN, BLUE, RED)).whole


def test_ground_texture_and_count_are_facts_of_their_own():
    result = score(stated(RED), reading(RED, ground="blue", texture="plain"))
    assert wrong(result) == [("ground", None), ("texture", None)]
    assert not result.whole


def test_each_wrong_property_is_one_wrong_fact():
    drawn = replace(BLUE, color="pink", outline=False)
    result = score(stated(RED, BLUE), reading(RED, drawn))
    assert wrong(result) == [("color", 1), ("outline", 1)]
    assert (result.right, result.total) == (15, 17)


def test_a_missing_object_fails_all_its_facts_and_relations():
    result = score(stated(RED, BLUE), reading(BLUE))
    kinds = ["shape", "color", "fill", "outline", "size", "position"]
    assert wrong(result) == [("count", None), *((kind, 0) for kind in kinds), ("relation", 0), ("relation", 1)]


def test_each_extra_object_is_one_wrong_fact():
    result = score(stated(RED), reading(RED, BLUE, GREEN))
    assert wrong(result) == [("count", None), ("extra", None), ("extra", None)]
    assert result.total == 3 + 6 + 2


def test_extra_objects_are_no_matter_where_no_count_is_stated():
    assert score(replace(stated(RED), count=None), reading(RED, BLUE, GREEN)).whole


def test_objects_counted_but_not_described_are_no_extras():
    facts = Facts(count=3, objects=(ObjectFacts(color="red"),))
    assert score(facts, reading(RED, BLUE, GREEN)).whole
    assert wrong(score(facts, reading(RED, BLUE, GREEN, RED))) == [("count", None), ("extra", None)]


def test_swapped_colors_cost_two_facts():
    drawn = reading(replace(RED, color="blue"), replace(BLUE, color="red"))
    assert wrong(score(stated(RED, BLUE), drawn)) == [("color", 0), ("color", 1)]


def test_swapped_places_break_positions_and_relations():
    drawn = reading(replace(RED, position="middle right"), replace(BLUE, position="middle left"))
    expected = [("position", 0), ("position", 1), ("relation", 0), ("relation", 1)]
    assert wrong(score(stated(RED, BLUE), drawn)) == expected


def test_a_broken_relation_is_the_only_wrong_fact():
    facts = Facts(objects=(ObjectFacts("circle"), ObjectFacts("square")), relations=(Relation(0, "above", 1),))
    above = reading(replace(RED, position="top left"), replace(BLUE, position="bottom left"))
    level = reading(replace(RED, position="middle left"), replace(BLUE, position="middle right"))
    assert score(facts, above).whole
    assert wrong(score(facts, level)) == [("relation", 0)]


@pytest.mark.parametrize("kind", ["left of", "right of", "above", "below"])
def test_relations_choose_between_objects_stated_alike(kind):
    first, second = replace(RED, position="top left"), replace(RED, position="bottom right", color="blue")
    alike = ObjectFacts(shape="circle")
    facts = Facts(objects=(alike, alike), relations=(Relation(0, kind, 1),))
    assert score(facts, reading(first, second)).whole
    assert score(facts, reading(second, first)).whole


def test_relations_do_not_outweigh_facts():
    facts = Facts(
        objects=(ObjectFacts(color="red"), ObjectFacts(color="blue")), relations=(Relation(0, "right of", 1),)
    )
    assert wrong(score(facts, reading(RED, BLUE))) == [("relation", 0)]


def test_position_chooses_between_objects_alike():
    left, right = RED, replace(RED, position="middle right")
    facts = Facts(objects=(ObjectFacts("circle", position="middle right"), ObjectFacts("circle", "red")))
    assert score(facts, reading(left, right)).whole


def test_what_is_not_stated_is_not_counted():
    result = score(Facts(ground="white", objects=(ObjectFacts(outline=False),)), reading(RED))
    assert result.facts == (ScoredFact("ground", None, True), ScoredFact("outline", 0, True))


def test_an_empty_picture_fails_everything_about_objects():
    result = score(stated(RED), reading())
    assert (result.right, result.total) == (2, 9)


def test_relations_between_are_plain_truths_of_pictures_too():
    """Centers of things are read as NumPy's numbers; theirs cannot be written as JSON."""
    row = [SceneObject(None, None, None, None, "small", x, 0.5, "fox") for x in (0.17, 0.5, 0.83)]
    scene, between = Scene("white", "plain", tuple(row)), Relation(1, "between", 0, 2)
    result = score(replace(scene.facts(), relations=(between,)), render(scene, 128))
    assert [fact.right for fact in result.facts if fact.kind == "relation"] == [True]
    assert all(type(fact.right) is bool for fact in result.facts)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_three_alike_the_middle_one_is_between_the_others(order):
    moon = ObjectFacts(thing="moon")
    reading = Reading(Facts(objects=(moon,) * 3), tuple((0.27, (0.17, 0.5, 0.83)[i]) for i in order))
    for first, second, other in itertools.permutations(range(3)):
        stated = Facts(objects=(moon,) * 3, relations=(Relation(first, "between", second, other),))
        assert score(stated, reading).whole
    empty = Reading(Facts(), ())
    assert score(replace(stated, relations=(Relation(0, "between", 1, 2),)), empty).right == 0


def test_pictures_are_read_first():
    rng = np.random.default_rng(31)
    for _ in range(5):
        scene, other = sample_scene(rng, count=2), sample_scene(rng, count=3)
        assert score(scene.facts(), render(scene, 256)).whole
        assert not score(other.facts(), render(scene, 256)).whole


@pytest.mark.parametrize("facts", [Facts(), Facts(objects=(ObjectFacts(), ObjectFacts()))])
def test_stating_nothing_is_refused(facts):
    with pytest.raises(UserError, match="no facts are stated"):
        score(facts, reading(RED))


@pytest.mark.parametrize("relation", [Relation(0, "above", 1), Relation(-1, "above", 0)])
def test_relations_of_objects_not_stated_are_refused(relation):
    with pytest.raises(UserError, match=f"first={relation.first}"):
        score(Facts(objects=(RED,), relations=(relation,)), reading(RED))


def test_summary_counts_facts_and_pictures():
    whole = score(stated(RED), reading(RED))
    extra = score(stated(RED), reading(RED, BLUE))
    summary = summarize([whole, extra])
    assert (summary["pictures"], summary["facts"], summary["right"], summary["whole"]) == (2, 19, 17, 0.5)
    assert summary["share"] == pytest.approx(17 / 19)
    assert summary["kinds"]["count"] == {"facts": 2, "right": 1, "share": 0.5}
    assert summary["kinds"]["extra"] == {"facts": 1, "right": 0, "share": 0.0}
    assert "relation" not in summary["kinds"]
    assert sum(kind["facts"] for kind in summary["kinds"].values()) == 19


def test_no_scores_make_no_summary():
    with pytest.raises(UserError, match="no scores"):
        summarize([])
