"""Fills in what a brief prompt leaves open, as people expect it: for the expander's training.

"a red heart" is a large plain heart in the middle of a white picture, and not, as a random scene would have it, a small
striped one in a corner. Colors, and what cannot be so, stay as they are in the scene that the prompt was made from.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations, product

from cogview3.data.scenes.scene import (
    CENTERS,
    GROUNDS,
    ROW,
    TEXTURES,
    Facts,
    ObjectFacts,
    Scene,
    SceneObject,
    are_apart,
    inside,
    relation_holds,
)
from cogview3.data.scenes.things import is_held_out_ground

# where objects are looked for first, by their number: in the middle, side by side, one above the other, in a triangle
_PLACES = {
    1: (("middle center",),),
    2: (
        ("middle left", "middle right"),
        ("top center", "bottom center"),
        ("top left", "bottom right"),
        ("top right", "bottom left"),
    ),
    3: (("top left", "top right", "bottom center"), ("top center", "bottom left", "bottom right")),
    4: (("top left", "top right", "bottom left", "bottom right"),),
}
_LINES = (tuple((along, 0.5) for along in ROW), tuple((0.5, along) for along in ROW))
_LAYOUTS = {
    number: tuple(tuple(CENTERS[name] for name in order) for places in sets for order in permutations(places))
    for number, sets in _PLACES.items()
}
_LAYOUTS[3] += tuple(order for line in _LINES for order in permutations(line))


def arranged(scene: Scene, stated: Facts, order: Sequence[int]) -> Scene:
    """A scene that a prompt tells, with what the prompt leaves open as people expect it.

    Fills become plain and outlines go; sizes become large for one object, medium for several; places the middle, side
    by side, or those that suit the stated relations; the ground plain and white, or the first on which training shows
    every thing.

    `scene` holds the objects in the prompt's order, `stated` the prompt's facts, `order` the number of each of these
    objects in the facts.
    """
    facts = [stated.objects[number] for number in order]
    objects = [_plainer(item, said, stated) for item, said in zip(scene.objects, facts, strict=True)]
    layout = _placed(objects, facts, stated, order) or [(item.size, item.x, item.y) for item in objects]
    if stated.ground is None:
        things = [item.thing for item in objects if item.thing]
        fitting = (
            ground
            for ground in GROUNDS
            if all(item.color != ground for item in objects)
            and not any(is_held_out_ground(thing, ground) for thing in things)
        )
        scene = replace(scene, ground=next(fitting, scene.ground))
    if stated.texture is None:
        scene = replace(scene, texture=TEXTURES[0])
    return replace(
        scene,
        objects=tuple(replace(item, size=size, x=x, y=y) for item, (size, x, y) in zip(objects, layout, strict=True)),
    )


def _plainer(item: SceneObject, said: ObjectFacts, stated: Facts) -> SceneObject:
    """An object as plain as what is said of it, of all objects, and of what must not be there, allows."""
    if item.thing is not None:
        return item
    opens_fill = said.fill is None and "fill" not in stated.different
    plainer = replace(
        item, fill="plain" if opens_fill else item.fill, outline=False if said.outline is None else item.outline
    )
    return item if any(denied.is_true_of(plainer.facts()) for denied in stated.denied) else plainer


def _placed(
    objects: Sequence[SceneObject], facts: Sequence[ObjectFacts], stated: Facts, order: Sequence[int]
) -> list[tuple[str, float, float]] | None:
    """(size, x, y) of each object: the first that suit what is stated; None where none do."""
    if "size" in stated.different:
        return None
    own = tuple((item.x, item.y) for item in objects)
    layouts = (own,) if any(said.position for said in facts) else (*_LAYOUTS[len(facts)], own)
    places = {number: place for place, number in enumerate(order)}
    relations = [relation.among(places) for relation in stated.relations]
    for centers, size in product(layouts, ("large" if len(facts) == 1 else "medium", "small")):
        placed = [inside(said.size or size, x, y) for said, (x, y) in zip(facts, centers, strict=True)]
        if all(are_apart(one, other) for one, other in combinations(placed, 2)) and all(
            relation_holds(relation, [(x, y) for _, x, y in placed]) for relation in relations
        ):
            return placed
    return None
