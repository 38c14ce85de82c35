"""Brief captions: what a user would type. All objects (rarely fewer), a few facts of each, in many registers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from cogview3.data.scenes import sentences as s
from cogview3.data.scenes import wording as w
from cogview3.data.scenes.clauses import (
    COLOR_AFTER_SHARE,
    Noun,
    as_typed,
    counted_objects,
    denial,
    enumerated,
    ground_words,
    is_unique,
    joined,
    misspelled,
    noun_for,
    say_shared,
    with_place,
)
from cogview3.data.scenes.scene import BETWEEN, DIFFERENT, Facts, ObjectFacts, Relation, Scene, SceneObject, betweens

FEWER_SHARE = 0.02  # of captions of several objects, those that leave objects out
DENIAL_SHARE = 0.07  # of captions, those that deny something
NOTHING_ELSE_SHARE = 0.04
PRAISE_SHARE = 0.05  # of objects, those that are called "cute" or the like
TYPO_SHARE = 0.06  # of captions, those with a misspelled word


@dataclass(frozen=True)
class _Body:
    """The part of a brief caption about objects. Keys, in the text's order, and relations use the scene's indices."""

    text: str
    stated: dict[int, ObjectFacts]
    relations: tuple[Relation, ...] = ()
    count: int | None = None
    different: tuple[str, ...] = ()
    is_sentence: bool = False  # "a is left of b" rather than a list of things
    be: str = "is"  # after "there"


def brief_text(scene: Scene, rng: np.random.Generator) -> tuple[str, Facts, tuple[int, ...]]:
    """A brief caption: its text, its facts, and the scene's indices of the objects as the text tells them."""
    body = _body(scene, rng)
    is_whole_list = not body.is_sentence and body.count is None and len(body.stated) == len(scene.objects)
    if is_whole_list and rng.random() < NOTHING_ELSE_SHARE:
        text = s.NOTHING_ELSE.pick(rng).format(text=body.text)
        body = replace(body, text=text, count=len(scene.objects))
    pattern, denied = "{text}", ()
    if rng.random() < DENIAL_SHARE and not body.is_sentence:
        words, facts = denial(scene.objects, rng)
        pattern, denied = s.DENIALS.pick(rng).format(text="{text}", **words), (facts,)
    ground = scene.ground if rng.random() < 0.55 else None
    texture = scene.texture if ground and rng.random() < (0.3 if scene.texture == "plain" else 0.5) else None
    if rng.random() < 0.5:
        text = _with_ground(replace(body, text=pattern.format(text=body.text)), ground, texture, rng)
    else:
        text = pattern.format(text=_with_ground(body, ground, texture, rng).strip().rstrip("?"))
    if rng.random() < TYPO_SHARE:
        text = misspelled(text, rng)
    mentioned = sorted(body.stated)
    places = {index: place for place, index in enumerate(mentioned)}
    relations = tuple(relation.among(places) for relation in body.relations)
    objects = tuple(body.stated[index] for index in mentioned)
    facts = Facts(ground, texture, body.count, objects, relations, denied, body.different)
    return as_typed(text, rng), facts, tuple(body.stated)


def _body(scene: Scene, rng: np.random.Generator) -> _Body:
    order = list(map(int, rng.permutation(len(scene.objects))))
    chance = rng.random()
    body = None
    if chance < 0.35:
        body = _between_body(scene, order, rng)
    elif chance > 0.55:
        body = _grouped_body(scene, order, rng)
    if body is None and len(order) > 1 and rng.random() < FEWER_SHARE:
        order = order[: rng.integers(1, len(order))]
    if body is None and len(order) > 1 and chance < 0.4:
        body = _related_body(scene, order, rng)
    return body or _listed_body(scene, order, rng)


def _some_facts(item: SceneObject, rng: np.random.Generator, position: bool = False) -> ObjectFacts:
    """The facts of an object that a user would state: mostly shape and color, or the thing, and what is special."""
    facts = item.facts()
    chances = {
        "shape": 0.985,
        "color": 0.88,
        "fill": 0.15 if item.fill == "plain" else 0.6,
        "outline": 0.4 if item.outline else 0.08,
        "size": 0.4,
        "position": float(position),
    }
    left_out = {name: None for name, chance in chances.items() if rng.random() >= chance}
    if "shape" in left_out and "color" in left_out:
        del left_out["shape"]
    return replace(facts, **left_out)


def _noun(stated: ObjectFacts, scene: Scene, index: int, rng: np.random.Generator) -> Noun:
    """Words for one object, sometimes with praise, sometimes its color after it."""
    noun = noun_for(stated, scene.objects[index], scene.ground, rng, color_after=COLOR_AFTER_SHARE)
    if rng.random() < PRAISE_SHARE:
        noun = replace(noun, before=f"{w.PRAISE.pick(rng)} {noun.before}".strip())
    return noun


def _listed_body(scene: Scene, order: list[int], rng: np.random.Generator) -> _Body:
    """A list of the objects, with positions or without."""
    items, whole = [scene.objects[i] for i in order], len(order) == len(scene.objects)
    placed = rng.random() < 0.55
    own = [_some_facts(item, rng, placed and rng.random() < 0.85) for item in items]
    stated, clause, count = own, "", None
    article = (s.ARTICLES if len(items) > 1 else s.SINGLE_ARTICLES).pick(rng)
    if len(items) > 1:
        said, clause = say_shared(items, 0.1, rng)
        own = [replace(facts, **said) for facts in own]
        stated = [replace(f, **{name: getattr(i, name) for name in said}) for f, i in zip(own, items, strict=True)]
    elif whole and rng.random() < 0.12:
        article, count = w.SINGLE.pick(rng), 1
    nouns = [_noun(facts, scene, index, rng) for facts, index in zip(own, order, strict=True)]
    text = _list_text([noun.phrase(article) for noun in nouns], stated, items, rng)
    text += f", {clause}" if clause else ""
    if len(items) > 1 and whole and rng.random() < 0.12:
        count = len(items)
        text = s.COUNTED.pick(rng).format(things=counted_objects(items, rng), body=text)
    be = "is" if count is None or count == 1 else "are"
    return _Body(text, dict(zip(order, stated, strict=True)), count=count, be=be)


def _list_text(
    phrases: list[str], stated: list[ObjectFacts], items: list[SceneObject], rng: np.random.Generator
) -> str:
    if not any(facts.position for facts in stated):
        rows = [item.position.split()[0] for item in items]
        if len(items) == 2 and rows[0] == rows[1] and rng.random() < 0.4:
            return w.NEIGHBORS.pick(rng).format(a=phrases[0], b=phrases[1])
        return joined(phrases, rng)
    style = s.ITEMS.pick(rng)
    parts = [
        with_place(style, phrase, facts.position, rng) if facts.position else phrase
        for phrase, facts in zip(phrases, stated, strict=True)
    ]
    return "; ".join(parts) if ", " in style else joined(parts, rng)


def _related_body(scene: Scene, order: list[int], rng: np.random.Generator) -> _Body:
    """Two objects in a relation, then each further one, often in a relation to one of those before it."""
    stated = {i: _some_facts(scene.objects[i], rng) for i in order}
    nouns = {i: _noun(facts, scene, i, rng) for i, facts in stated.items()}
    article = s.ARTICLES.pick(rng)
    phrases = {i: noun.phrase(article) for i, noun in nouns.items()}
    first, second = order[:2]
    is_sentence = rng.random() < 0.2
    verb = "is " if is_sentence else ""
    told, relations = _tell_relation(scene, first, second, rng)
    if not is_sentence and len(relations) == 1 and rng.random() < 0.15:
        to_it = w.RELATIONS_TO_IT[relations[0].kind].pick(rng)
        parts = [f"{phrases[second]} with {phrases[first]} {to_it}"]
        stated = {second: stated.pop(second), **stated}
    else:
        parts = [f"{phrases[first]} {verb}{told} {phrases[second]}"]
    for place, index in enumerate(order[2:], 2):
        clear = [i for i in order[:place] if _is_named(stated[i]) and is_unique(scene.objects, i)]
        if clear and (is_sentence or rng.random() < 0.65):
            other = clear[rng.integers(len(clear))]
            told, more = _tell_relation(scene, index, other, rng)
            relations += more
            parts.append(f"{phrases[index]} {verb}{told} {nouns[other].reference}")
        else:
            parts.append(f"there is {phrases[index]}" if is_sentence else phrases[index])
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return _Body(text, stated, relations, is_sentence=is_sentence)


def _is_named(facts: ObjectFacts) -> bool:
    """Whether what is said of an object is enough to speak of it again."""
    return bool(facts.thing or (facts.color and facts.shape))


def _tell_relation(scene: Scene, first: int, second: int, rng: np.random.Generator) -> tuple[str, tuple[Relation, ...]]:
    """Words for where one object stands from another ("above", rarely "above and to the left of")."""
    known = [r for r in scene.facts().relations if (r.first, r.second) == (first, second)]
    start = rng.integers(len(known))  # there is one: two objects differ by a row or a column
    chosen = tuple(known[start:] + known[:start])[: 2 if rng.random() < 0.2 else 1]
    return " and ".join(w.RELATIONS[r.kind].pick(rng) for r in chosen), chosen


def _between_body(scene: Scene, order: list[int], rng: np.random.Generator) -> _Body | None:
    """An object between two others, then the rest; None where none stands so."""
    known = betweens([(item.x, item.y) for item in scene.objects])
    if not known:
        return None
    relation = known[rng.integers(len(known))]
    stated = {i: _some_facts(scene.objects[i], rng) for i in relation.objects}
    article = s.ARTICLES.pick(rng)
    ends = list(relation.objects[1:])
    if len({_kind(scene.objects[i], with_color=True) for i in ends}) == 1 and rng.random() < 0.8:
        told, facts = _counted(scene, ends, True, rng)
        stated |= dict.fromkeys(ends, facts)
    else:
        told = " and ".join(_noun(stated[i], scene, i, rng).phrase(article) for i in ends)
    first = _noun(stated[relation.first], scene, relation.first, rng).phrase(article)
    parts = [f"{first} {w.RELATIONS[BETWEEN].pick(rng)} {told}"]
    for index in order:
        if index not in stated:
            stated[index] = _some_facts(scene.objects[index], rng)
            parts.append(_noun(stated[index], scene, index, rng).phrase(article))
    return _Body(", and ".join(parts), stated, (relation,))


def _kind(item: SceneObject, with_color: bool) -> tuple[str | None, ...]:
    return item.thing, item.shape, item.color if with_color else None


def _grouped_body(scene: Scene, order: list[int], rng: np.random.Generator) -> _Body | None:
    """Objects of a kind counted ("two red stars and one blue ring"); None if no two are of one kind."""
    items, by_color = scene.objects, rng.random() < 0.5
    if rng.random() < 0.1 and (body := _different_shapes(items, order, rng)):
        return body
    groups: dict[tuple, list[int]] = {}
    for index in order:
        groups.setdefault(_kind(items[index], by_color), []).append(index)
    if len(groups) == len(items):
        return None
    if len(groups) == 1:
        return _one_group(scene, order, rng)
    single = ("a", "one", "1", "")[rng.choice(4, p=(0.45, 0.4, 0.05, 0.1))]
    stated, phrases = {}, []
    for group in sorted(groups.values(), key=len, reverse=True) if rng.random() < 0.6 else groups.values():
        if len(group) > 1:
            text, facts = _counted(scene, group, by_color, rng)
        else:
            facts = _some_facts(items[group[0]], rng)
            text = _noun(facts, scene, group[0], rng).phrase(single)
        stated |= dict.fromkeys(group, facts)
        phrases.append(text)
    return _Body(joined(phrases, rng), stated, count=len(items), be="are")


def _counted(
    scene: Scene, group: list[int], color: bool, rng: np.random.Generator, left_out: Iterable[str] = ()
) -> tuple[str, ObjectFacts]:
    """Words for objects of a kind, "two small red stars", and what is said of each; never of `left_out`."""
    items = [scene.objects[i] for i in group]
    differ = {f.name for f in fields(ObjectFacts) if len({getattr(item, f.name) for item in items}) > 1}
    facts = replace(_some_facts(items[0], rng), shape=items[0].shape)
    facts = replace(facts, color=items[0].color) if color else facts
    facts = replace(facts, **dict.fromkeys(differ | set(left_out)))
    noun = noun_for(facts, items[0], scene.ground, rng, bare=True)
    return f"{w.GROUP_NUMBERS[len(group)].pick(rng)} {noun.plural}", facts


def _one_group(scene: Scene, group: list[int], rng: np.random.Generator) -> _Body:
    """All objects as one group: "four hearts, all pink", "three stars, each a different color"."""
    items = [scene.objects[i] for i in group]
    values = {name: [getattr(item, name) for item in items] for name in DIFFERENT}
    chance = rng.random()
    alike = [name for name in ("color", "fill", "size") if len(set(values[name])) == 1 and values[name][0]]
    if chance < 0.3 and alike:
        names = [alike[rng.integers(len(alike))]]
        text, facts = _counted(scene, group, False, rng, names)
        words = {"color": w.COLORS, "fill": w.FILLS, "size": w.SIZES}[names[0]][values[names[0]][0]].pick(rng)
        facts = replace(facts, **{names[0]: values[names[0]][0]})
        text += f", {s.GROUP_SHARED[len(group)].pick(rng).format(words=words)}"
        return _Body(text, dict.fromkeys(group, facts), count=len(group), be="are")
    unlike = [name for name in w.DIFFERENT if len(set(values[name])) == len(group)]
    if chance < 0.65 and unlike:
        name = "color" if "color" in unlike and rng.random() < 0.7 else unlike[rng.integers(len(unlike))]
        text, facts = _counted(scene, group, False, rng)
        different = w.DIFFERENT[name].pick(rng)
        text += different if different.startswith(",") else f" {different}"
        return _Body(text, dict.fromkeys(group, facts), count=len(group), different=(name,), be="are")
    text, facts = _counted(scene, group, False, rng)
    stated = dict.fromkeys(group, facts)
    if chance < 0.85:
        told, stated = _tell_apart(items, stated, rng)
        text += f", {told}"
    return _Body(text, stated, count=len(group), be="are")


def _different_shapes(items: Sequence[SceneObject], order: list[int], rng: np.random.Generator) -> _Body | None:
    """Words as "three different shapes"; None where two objects have the same, or some none."""
    shapes = {item.shape for item in items}
    if len(shapes) < len(items) or None in shapes or len(items) < 2:
        return None
    stated = dict.fromkeys(order, ObjectFacts())
    text = f"{w.NUMBERS[len(items)].pick(rng)} different {w.plural('shape')}"
    return _Body(text, stated, count=len(items), different=("shape",), be="are")


def _tell_apart(
    items: list[SceneObject], stated: dict[int, ObjectFacts], rng: np.random.Generator
) -> tuple[str, dict[int, ObjectFacts]]:
    """Each of a group by its color ("one red and one blue") or, if that is said or by chance, by position."""
    colors = {item.color for item in items}
    if None in colors or next(iter(stated.values())).color or rng.random() < 0.4:
        words = [w.PLACES[item.position].pick(rng) for item in items]
        more = [{"position": item.position} for item in items]
    else:
        words = [w.COLORS[item.color].pick(rng) for item in items]
        more = [{"color": item.color} for item in items]
    told = {i: replace(facts, **new) for (i, facts), new in zip(stated.items(), more, strict=True)}
    return enumerated([f"one {word}" for word in words]), told


def _with_ground(body: _Body, ground: str | None, texture: str | None, rng: np.random.Generator) -> str:
    """The whole text: what it asks for, the objects, and the ground if that is stated."""
    ask = s.ASKS.pick(rng).format(are=body.be)
    if ground:
        plans = s.SENTENCE_PLANS if body.is_sentence else s.BRIEF_PLANS
        words = ground_words(ground, texture or "", rng)
        return plans.pick(rng).format(body=body.text, ask=ask, are=body.be, **words)
    if body.is_sentence:
        return body.text
    return s.REQUESTS.pick(rng).format(body=body.text) if rng.random() < 0.04 else f"{ask} {body.text}"
