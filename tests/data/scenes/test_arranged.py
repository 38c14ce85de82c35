"""What is filled in for brief prompts: true to what they state, else as plain as can be."""

from itertools import combinations

import numpy as np
import pytest

from cogview3.data.scenes.arranged import arranged
from cogview3.data.scenes.captions import brief, plain
from cogview3.data.scenes.scene import (
    SIZES,
    Facts,
    ObjectFacts,
    Relation,
    Scene,
    SceneObject,
    relation_holds,
    sample_scene,
)
from cogview3.training.objectives.expander import told_scene


def shape(color: str, x: float = 0.27, y: float = 0.27, **changes: object) -> SceneObject:
    given = {"shape": "heart", "color": color, "fill": "striped", "outline": True, "size": "small", "x": x, "y": y}
    return SceneObject(**given | changes)


RED, BLUE = shape("red"), shape("blue", 0.73, 0.73)
FOX = SceneObject(None, None, None, None, "small", 0.27, 0.5, "fox")


@pytest.mark.parametrize("seed", range(200))
def test_all_that_a_prompt_states_holds(seed: int) -> None:
    rng = np.random.default_rng([31, seed])
    scene = sample_scene(rng, ("seen", "held-out")[seed % 2])
    prompt = brief(scene, rng)
    order = [sorted(prompt.told).index(index) for index in prompt.told]
    made = arranged(told_scene(scene, prompt.told), prompt.facts, order)
    assert prompt.facts.ground in (None, made.ground)
    assert prompt.facts.texture in (None, made.texture)
    assert all(prompt.facts.objects[n].is_true_of(item.facts()) for n, item in zip(order, made.objects, strict=True))
    centers = [(made.objects[order.index(n)].x, made.objects[order.index(n)].y) for n in range(len(order))]
    assert all(relation_holds(relation, centers) for relation in prompt.facts.relations)
    assert not any(denied.is_true_of(item.facts()) for denied in prompt.facts.denied for item in made.objects)
    for one, other in combinations(made.objects, 2):
        assert max(abs(one.x - other.x), abs(one.y - other.y)) >= (SIZES[one.size] + SIZES[other.size]) / 2
    for name in prompt.facts.different:
        values = [getattr(item, name) for item in made.objects]
        assert len(set(values)) == len(values)
    assert Scene.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(
    ("objects", "stated", "text"),
    [
        (
            [RED],
            Facts(objects=(ObjectFacts(shape="heart", color="red"),)),
            "one shape on a plain white background: in the center a large plain red heart with no outline.",
        ),
        (
            [RED, BLUE],
            Facts(objects=(ObjectFacts(color="red"), ObjectFacts(color="blue", size="large"))),
            "two shapes on a plain white background: on the left a medium plain red heart with no outline and on the "
            "right a large plain blue heart with no outline.",
        ),
        (
            [BLUE, RED],
            Facts(objects=(ObjectFacts(color="blue"), ObjectFacts(color="red")), relations=(Relation(0, "below", 1),)),
            "two shapes on a plain white background: at the bottom a medium plain blue heart with no outline and at "
            "the top a medium plain red heart with no outline.",
        ),
        (
            [RED],
            Facts("blue", "tiled", objects=(ObjectFacts(fill="striped", outline=True, position="top left"),)),
            "one shape on a tiled blue background: in the top left corner a large striped red heart with a black "
            "outline.",
        ),
        (
            [RED],
            Facts(objects=(ObjectFacts(color="red"),), denied=(ObjectFacts(fill="plain"),)),
            "one shape on a plain white background: in the center a large striped red heart with a black outline.",
        ),
        (
            [FOX],
            Facts(objects=(ObjectFacts(thing="fox"),)),
            "one object on a plain gray background: in the center a large fox.",
        ),
    ],
)
def test_what_is_open_is_as_people_expect_it(objects: list[SceneObject], stated: Facts, text: str) -> None:
    scene = Scene(stated.ground or "green", stated.texture or "tiled", tuple(objects))
    assert plain(arranged(scene, stated, range(len(objects)))).text == text


def test_things_stand_where_training_shows_them() -> None:
    """A fifth of the things are never shown on white; the first other ground that shows all of them is taken."""
    from cogview3.data.scenes.things import THINGS, is_held_out_ground

    for thing in THINGS:
        scene = Scene("green", "tiled", (SceneObject(None, None, None, None, "small", 0.27, 0.5, thing),))
        made = arranged(scene, Facts(objects=(ObjectFacts(thing=thing),)), [0])
        assert not is_held_out_ground(thing, made.ground)
        assert (made.ground == "white") == (not is_held_out_ground(thing, "white"))
