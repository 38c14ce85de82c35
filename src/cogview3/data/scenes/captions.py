"""Captions of scenes: comprehensive (every fact), brief (what a user would type), and noisy alt-text.

They play the paper's new caption, prompt and old caption. Each comes with exactly the facts that it states.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from cogview3.data.scenes import wording as w
from cogview3.data.scenes.clauses import (
    Noun,
    as_typed,
    counted_things,
    enumerated,
    ground_words,
    is_unique,
    joined,
    leave_out_rest,
    line_color,
    noun_for,
    say_shared,
    sentence_case,
    spelled,
    with_place,
)
from cogview3.data.scenes.scene import (
    COLORS,
    COLUMNS,
    FILLS,
    GROUNDS,
    POSITIONS,
    ROWS,
    SHAPES,
    SIZES,
    Facts,
    ObjectFacts,
    Relation,
    Scene,
    SceneObject,
)
from cogview3.data.scenes.vocabulary import suggestions, unknown_words, vocabulary

__all__ = ["Caption", "alt_text", "brief", "comprehensive", "plain", "suggestions", "unknown_words", "vocabulary"]

MAX_WORDS = 75  # of a comprehensive caption; with punctuation it then stays under 96 tokens
FEWER_SHARE = 0.05  # brief captions that leave objects out
WRONG_SHARE = 0.35  # alt-texts written of a scene with one fact changed
FILE_NAME_SHARE = 0.12  # alt-texts that are file names


@dataclass(frozen=True)
class Caption:
    """A text, the facts that it states (objects in the scene's order), and how many of these are wrong.

    `told` holds the scene's indices of the objects, in the order in which the text first names them.
    """

    text: str
    facts: Facts
    wrong: int = 0
    told: tuple[int, ...] = ()


def comprehensive(scene: Scene, rng: np.random.Generator) -> Caption:
    """Describe a scene wholly in one to three sentences, at most 75 words.

    States ground, texture, count, all six facts of each object, and at most two relations.
    """
    while True:
        text, relations = _comprehensive_text(scene, rng)
        if len(text.split()) <= MAX_WORDS:
            facts = replace(scene.facts(), relations=relations)
            told = tuple(range(len(scene.objects)))
            return Caption(spelled(text if rng.random() < 0.1 else sentence_case(text), rng), facts, told=told)


def plain(scene: Scene, order: Sequence[int] | None = None) -> Caption:
    """Describe a scene wholly in one fixed way: of the phrasings of `comprehensive`, a plain one.

    Every fact but relations is stated once, each object's place before the rest of it: "two shapes on a tiled blue
    background: at the top a small plain red star with no outline and in the center a ...". What small models learn to
    write. In lower case, at most 76 words.

    Args:
        scene: the scene.
        order: indices of its objects in the order to tell them; the scene's own by default.
    """
    order = tuple(range(len(scene.objects)) if order is None else order)
    parts = [
        f"{w.PLACES[item.position].texts[0]} a {item.size} {item.fill} {item.color} {item.shape} with "
        + (f"a {line_color(scene.ground)} outline" if item.outline else "no outline")
        for item in (scene.objects[index] for index in order)
    ]
    things = f"{w.NUMBERS[len(parts)].texts[0]} {'shape' if len(parts) == 1 else 'shapes'}"
    ground = f"a {scene.texture} {scene.ground} background"
    return Caption(f"{things} on {ground}: {enumerated(parts)}.", replace(scene.facts(), relations=()), told=order)


def brief(scene: Scene, rng: np.random.Generator) -> Caption:
    """Describe a scene as a user's prompt would: all objects (rarely fewer), a few facts of each."""
    text, facts, told = _brief(scene, rng)
    return Caption(text, facts, told=told)


def alt_text(scene: Scene, rng: np.random.Generator) -> Caption:
    """Describe a scene as an image's alt-text on the web would: briefly, with junk, sometimes wrongly.

    `facts` holds what the text states, also what it states wrongly; `wrong` counts the latter.
    """
    told = _with_one_change(scene, rng) if rng.random() < WRONG_SHARE else scene
    text, facts, order = _brief(told, rng)
    patterns = w.FILE_NAMES if rng.random() < FILE_NAME_SHARE else w.ALT_PATTERNS
    noise = {name: rng.integers(*bounds) for name, bounds in w.ALT_NUMBERS.items()}
    slug = re.sub(r"\W+", "-_"[rng.integers(2)], text.lower()).strip("-_")
    text = patterns[rng.integers(len(patterns))].format(caption=text.rstrip(".?"), slug=slug, **noise)
    return Caption(text, facts, _count_wrong(facts, sorted(order), scene), order)


def _comprehensive_text(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[Relation, ...]]:
    number = len(scene.objects)
    nouns, clauses = _nouns_and_clauses(scene, rng)
    order = rng.permutation(number) if rng.random() < 0.3 else range(number)
    style = w.ITEMS.pick(rng)
    parts = [with_place(style, nouns[i].phrase("a"), scene.objects[i].position, rng) for i in order]
    listed, separator = ("; ".join(parts), "; ") if ", " in style else (joined(parts, rng), ", ")
    words = {
        **ground_words(scene.ground, scene.texture, rng),
        "items": separator.join([listed, *clauses]),
        "things": counted_things(number, rng),
        "are": "is" if number == 1 else "are",
    }
    plans = w.PLANS
    if number == 1 and rng.random() < 0.75:
        plans, phrase = w.SINGLE_PLANS, nouns[0].phrase(w.SINGLE.pick(rng))
        words["single"] = with_place("{np} {place}", phrase, scene.objects[0].position, rng)
    text = plans.pick(rng).format(**words)
    if number == 1 or rng.random() < 0.4:
        return text, ()
    sentence, relations = _relation_sentence(scene, nouns, rng)
    return text + sentence, relations


def _nouns_and_clauses(scene: Scene, rng: np.random.Generator) -> tuple[list[Noun], list[str]]:
    """Words for each object, and for what is said once for several."""
    items, clauses, said = scene.objects, [], {}
    stated = [item.facts() for item in items]
    if len(items) > 1:
        said, shared = say_shared(items, 0.6, rng)
        stated = [replace(facts, **said) for facts in stated]
        clauses.append(shared)
    if len(items) > 2 and "outline" not in said:
        stated, rest = leave_out_rest(items, stated, rng)
        clauses.insert(0, rest)
    nouns = [noun_for(facts, item, scene.ground, rng) for facts, item in zip(stated, items, strict=True)]
    return nouns, [clause for clause in clauses if clause]


def _relation_sentence(
    scene: Scene, nouns: Sequence[Noun], rng: np.random.Generator
) -> tuple[str, tuple[Relation, ...]]:
    """One more sentence, on one or two relations of one object; "" where none can be told from the others."""
    clear = [i for i in range(len(nouns)) if is_unique(scene.objects, i)]
    known = [r for r in scene.facts().relations if r.first in clear and r.second in clear]
    if not known:
        return "", ()
    chosen = [known[rng.integers(len(known))]]
    others = [r for r in known if r.first == chosen[0].first and r.second != chosen[0].second]
    if others and rng.random() < 0.35:
        chosen.append(others[rng.integers(len(others))])
    told = " and ".join(f"{w.RELATIONS[r.kind].pick(rng)} {nouns[r.second].reference}" for r in chosen)
    sentence = w.RELATION_SENTENCES.pick(rng).format(a=nouns[chosen[0].first].reference, rel=told)
    return f" {sentence}.", tuple(chosen)


@dataclass(frozen=True)
class _Body:
    """The part of a brief caption about objects. Keys, in the text's order, and relations use the scene's indices."""

    text: str
    stated: dict[int, ObjectFacts]
    relations: tuple[Relation, ...] = ()
    count: int | None = None
    is_sentence: bool = False  # "a is left of b" rather than a list of things
    be: str = "is"  # after "there"


def _brief(scene: Scene, rng: np.random.Generator) -> tuple[str, Facts, tuple[int, ...]]:
    """A brief caption: its text, its facts, and the scene's indices of the objects as the text tells them."""
    order = list(map(int, rng.permutation(len(scene.objects))))
    if len(order) > 1 and rng.random() < FEWER_SHARE:
        order = order[: rng.integers(1, len(order))]
    chance = rng.random()
    body = None
    if len(order) > 1 and chance < 0.35:
        body = _related_body(scene, order, rng)
    elif chance < 0.7:
        body = _grouped_body(scene, order, rng)
    body = body or _listed_body(scene, order, rng)
    ground = scene.ground if rng.random() < 0.55 else None
    texture = scene.texture if ground and rng.random() < (0.3 if scene.texture == "plain" else 0.5) else None
    text = as_typed(_with_ground(body, ground, texture, rng), rng)
    mentioned = sorted(body.stated)
    relations = tuple(Relation(mentioned.index(r.first), r.kind, mentioned.index(r.second)) for r in body.relations)
    facts = Facts(ground, texture, body.count, tuple(body.stated[i] for i in mentioned), relations)
    return text, facts, tuple(body.stated)


def _some_facts(item: SceneObject, rng: np.random.Generator, position: bool = False) -> ObjectFacts:
    """The facts of an object that a user would state: mostly shape and color, and what is special."""
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


def _listed_body(scene: Scene, order: list[int], rng: np.random.Generator) -> _Body:
    """A list of the objects, with positions or without."""
    items, whole = [scene.objects[i] for i in order], len(order) == len(scene.objects)
    placed = rng.random() < 0.55
    own = [_some_facts(item, rng, placed and rng.random() < 0.85) for item in items]
    stated, clause, count = own, "", None
    article = (w.ARTICLES if len(items) > 1 else w.SINGLE_ARTICLES).pick(rng)
    if len(items) > 1:
        said, clause = say_shared(items, 0.1, rng)
        own = [replace(facts, **said) for facts in own]
        stated = [replace(f, **{name: getattr(i, name) for name in said}) for f, i in zip(own, items, strict=True)]
    elif whole and rng.random() < 0.12:
        article, count = w.SINGLE.pick(rng), 1
    nouns = [noun_for(facts, item, scene.ground, rng) for facts, item in zip(own, items, strict=True)]
    text = _list_text([noun.phrase(article) for noun in nouns], stated, items, rng)
    text += f", {clause}" if clause else ""
    if len(items) > 1 and whole and rng.random() < 0.12:
        count = len(items)
        text = w.COUNTED.pick(rng).format(things=counted_things(count, rng), body=text)
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
    style = w.ITEMS.pick(rng)
    parts = [
        with_place(style, phrase, facts.position, rng) if facts.position else phrase
        for phrase, facts in zip(phrases, stated, strict=True)
    ]
    return "; ".join(parts) if ", " in style else joined(parts, rng)


def _related_body(scene: Scene, order: list[int], rng: np.random.Generator) -> _Body:
    """Two objects in a relation, then each further one, often in a relation to one of those before it."""
    stated = {i: _some_facts(scene.objects[i], rng) for i in order}
    nouns = {i: noun_for(facts, scene.objects[i], scene.ground, rng) for i, facts in stated.items()}
    article = w.ARTICLES.pick(rng)
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
        named = [i for i in order[:place] if stated[i].color and stated[i].shape]
        clear = [i for i in named if is_unique(scene.objects, i)]
        if clear and (is_sentence or rng.random() < 0.65):
            other = clear[rng.integers(len(clear))]
            told, more = _tell_relation(scene, index, other, rng)
            relations += more
            parts.append(f"{phrases[index]} {verb}{told} {nouns[other].reference}")
        else:
            parts.append(f"there is {phrases[index]}" if is_sentence else phrases[index])
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return _Body(text, stated, relations, is_sentence=is_sentence)


def _tell_relation(scene: Scene, first: int, second: int, rng: np.random.Generator) -> tuple[str, tuple[Relation, ...]]:
    """Words for where one object stands from another ("above", rarely "above and to the left of")."""
    known = [r for r in scene.facts().relations if (r.first, r.second) == (first, second)]
    start = rng.integers(len(known))  # there is one: two objects differ by a row or a column
    chosen = tuple(known[start:] + known[:start])[: 2 if rng.random() < 0.2 else 1]
    return " and ".join(w.RELATIONS[r.kind].pick(rng) for r in chosen), chosen


def _grouped_body(scene: Scene, order: list[int], rng: np.random.Generator) -> _Body | None:
    """Objects of one shape counted ("two red stars"), then the others; None if no two have one shape."""
    shapes = [scene.objects[i].shape for i in order]
    repeated = [shape for shape in shapes if shapes.count(shape) > 1]
    if not repeated:
        return None
    group = [i for i in order if scene.objects[i].shape == repeated[0]]
    others = [i for i in order if i not in group]
    items = [scene.objects[i] for i in group]
    alike = {f.name: None for f in fields(ObjectFacts) if len({getattr(item, f.name) for item in items}) > 1}
    facts = replace(_some_facts(items[0], rng), **alike, shape=repeated[0])
    noun = noun_for(facts, items[0], scene.ground, rng, bare=True)
    text = f"{w.NUMBERS[len(group)].pick(rng)} {noun.before} {w.plural(noun.noun)}"
    stated = dict.fromkeys(group, facts)
    if not others and rng.random() < 0.6:
        told, stated = _tell_apart(items, stated, rng)
        text += f", {told}"
    stated |= {i: _some_facts(scene.objects[i], rng) for i in others}
    phrases = [noun_for(stated[i], scene.objects[i], scene.ground, rng).phrase("a") for i in others]
    count = len(group) if len(group) == len(scene.objects) else None
    return _Body(joined([text, *phrases], rng), stated, count=count, be="are")


def _tell_apart(
    items: list[SceneObject], stated: dict[int, ObjectFacts], rng: np.random.Generator
) -> tuple[str, dict[int, ObjectFacts]]:
    """Each of a group by its color ("one red and one blue") or, if that is said or by chance, by position."""
    if next(iter(stated.values())).color or rng.random() < 0.4:
        words = [w.PLACES[item.position].pick(rng) for item in items]
        more = [{"position": item.position} for item in items]
    else:
        words = [w.COLORS[item.color].pick(rng) for item in items]
        more = [{"color": item.color} for item in items]
    told = {i: replace(facts, **new) for (i, facts), new in zip(stated.items(), more, strict=True)}
    return enumerated([f"one {word}" for word in words]), told


def _with_ground(body: _Body, ground: str | None, texture: str | None, rng: np.random.Generator) -> str:
    """The whole text: what it asks for, the objects, and the ground if that is stated."""
    ask = w.ASKS.pick(rng).format(are=body.be)
    if ground:
        plans = w.SENTENCE_PLANS if body.is_sentence else w.BRIEF_PLANS
        words = ground_words(ground, texture or "", rng)
        return plans.pick(rng).format(body=body.text, ask=ask, are=body.be, **words)
    if body.is_sentence:
        return body.text
    return w.REQUESTS.pick(rng).format(body=body.text) if rng.random() < 0.04 else f"{ask} {body.text}"


def _with_one_change(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one fact of the ground or of an object replaced by another value."""
    name = ("ground", "shape", "color", "fill", "size", "outline", "position")[rng.integers(7)]
    if name == "ground":
        return replace(scene, ground=_other(GROUNDS, scene.ground, rng))
    index = int(rng.integers(len(scene.objects)))
    item = scene.objects[index]
    if name == "position":
        taken = {other.position for other in scene.objects}
        free = [cell for cell in POSITIONS if cell not in taken]
        row, column = free[rng.integers(len(free))].split()
        changed = replace(item, x=COLUMNS[column], y=ROWS[row])
    elif name == "outline":
        changed = replace(item, outline=not item.outline)
    else:
        values = {"shape": SHAPES, "color": COLORS, "fill": FILLS, "size": tuple(SIZES)}[name]
        changed = replace(item, **{name: _other(values, getattr(item, name), rng)})
    return replace(scene, objects=(*scene.objects[:index], changed, *scene.objects[index + 1 :]))


def _other(values: Sequence[str], value: str, rng: np.random.Generator) -> str:
    left = [other for other in values if other != value]
    return left[rng.integers(len(left))]


def _count_wrong(facts: Facts, mentioned: list[int], scene: Scene) -> int:
    """How many stated facts the scene contradicts; `mentioned`: the scene's indices of facts.objects."""
    truth = scene.facts()
    pairs = [(getattr(facts, name), getattr(truth, name)) for name in ("ground", "texture", "count")]
    for stated, index in zip(facts.objects, mentioned, strict=True):
        pairs += [(getattr(stated, f.name), getattr(truth.objects[index], f.name)) for f in fields(stated)]
    relations = [Relation(mentioned[r.first], r.kind, mentioned[r.second]) for r in facts.relations]
    return sum(a is not None and a != b for a, b in pairs) + sum(r not in truth.relations for r in relations)
