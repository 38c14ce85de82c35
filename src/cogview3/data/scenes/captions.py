"""Captions of scenes: comprehensive (every fact), brief (what a user would type), and noisy alt-text.

They play the paper's new caption, prompt and old caption. Each comes with exactly the facts that it states.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cogview3.data.scenes import sentences as s
from cogview3.data.scenes import wording as w
from cogview3.data.scenes.brief import brief_text
from cogview3.data.scenes.clauses import (
    Noun,
    absent,
    counted_objects,
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
    CENTERS,
    COLORS,
    FILLS,
    GROUNDS,
    POSITIONS,
    SHAPES,
    SIZES,
    Facts,
    Relation,
    Scene,
    SceneObject,
    betweens,
)
from cogview3.data.scenes.things import THINGS
from cogview3.data.scenes.vocabulary import suggestions, unknown_words, vocabulary

__all__ = ["Caption", "alt_text", "brief", "comprehensive", "plain", "suggestions", "unknown_words", "vocabulary"]

MAX_WORDS = 75  # of a comprehensive caption; with punctuation it then stays under 96 tokens
WRONG_SHARE = 0.35  # alt-texts written of a scene with one fact changed
FILE_NAME_SHARE = 0.12  # alt-texts that are file names


@dataclass(frozen=True)
class Caption:
    """A text and the facts that it states (objects in the scene's order).

    `told` holds the scene's indices of the objects, in the order in which the text first names them; `spans` where in
    the text each of them is described (start and end), of `plain` captions alone.
    """

    text: str
    facts: Facts
    told: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()


def comprehensive(scene: Scene, rng: np.random.Generator) -> Caption:
    """Describe a scene wholly in one to three sentences, at most 75 words.

    States ground, texture, count, all facts of each object, and at most two relations.
    """
    while True:
        text, relations = _comprehensive_text(scene, rng)
        if len(text.split()) <= MAX_WORDS:
            facts = replace(scene.facts(), relations=relations)
            told = tuple(range(len(scene.objects)))
            return Caption(spelled(text if rng.random() < 0.1 else sentence_case(text), rng), facts, told)


def plain(scene: Scene) -> Caption:
    """Describe a scene wholly in one fixed way: of the phrasings of `comprehensive`, a plain one.

    Every fact but relations is stated once, each object's place before the rest of it: "two shapes on a tiled blue
    background: at the top a small plain red star with no outline and in the center a ...", "two objects on a plain
    gray background: at the top a large fox and ...". What small models learn to write. In lower case, at most 76 words.
    """
    parts = [_plainly(item, scene.ground) for item in scene.objects]
    noun = "object" if any(item.thing for item in scene.objects) else "shape"
    number = f"{w.NUMBERS[len(parts)].texts[0]} {noun if len(parts) == 1 else w.plural(noun)}"
    text = f"{number} on a {scene.texture} {scene.ground} background: {enumerated(parts)}."
    spans: list[tuple[int, int]] = []
    for part in parts:
        start = text.index(part, spans[-1][1] if spans else text.index(":"))
        spans.append((start, start + len(part)))
    return Caption(text, replace(scene.facts(), relations=()), tuple(range(len(parts))), tuple(spans))


def _plainly(item: SceneObject, ground: str) -> str:
    """An object's part of a plain caption."""
    place = w.PLACES[item.position].texts[0]
    if item.thing:
        return f"{place} a {item.size} {item.thing}"
    outline = f"a {line_color(ground)} outline" if item.outline else "no outline"
    return f"{place} a {item.size} {item.fill} {item.color} {item.shape} with {outline}"


def brief(scene: Scene, rng: np.random.Generator) -> Caption:
    """Describe a scene as a user's prompt would: all objects (rarely fewer), a few facts of each."""
    return Caption(*brief_text(scene, rng))


def alt_text(scene: Scene, rng: np.random.Generator) -> Caption:
    """Describe a scene as an image's alt-text on the web would: briefly, with junk, sometimes wrongly.

    `facts` holds what the text states, also what it states wrongly.
    """
    told = _with_one_change(scene, rng) if rng.random() < WRONG_SHARE else scene
    text, facts, order = brief_text(told, rng)
    patterns = s.FILE_NAMES if rng.random() < FILE_NAME_SHARE else s.ALT_PATTERNS
    noise = {name: rng.integers(*bounds) for name, bounds in s.ALT_NUMBERS.items()}
    slug = re.sub(r"\W+", "-_"[rng.integers(2)], text.lower()).strip("-_")
    text = patterns[rng.integers(len(patterns))].format(caption=text.rstrip(".?"), slug=slug, **noise)
    return Caption(text, facts, order)


def _comprehensive_text(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[Relation, ...]]:
    number = len(scene.objects)
    nouns, clauses = _nouns_and_clauses(scene, rng)
    order = rng.permutation(number) if rng.random() < 0.3 else range(number)
    style = s.ITEMS.pick(rng)
    parts = [with_place(style, nouns[i].phrase("a"), scene.objects[i].position, rng) for i in order]
    listed, separator = ("; ".join(parts), "; ") if ", " in style else (joined(parts, rng), ", ")
    words = {
        **ground_words(scene.ground, scene.texture, rng),
        "items": separator.join([listed, *clauses]),
        "things": counted_objects(scene.objects, rng),
        "are": "is" if number == 1 else "are",
    }
    plans = s.PLANS
    if number == 1 and rng.random() < 0.75:
        plans, phrase = s.SINGLE_PLANS, nouns[0].phrase(w.SINGLE.pick(rng))
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
    middle = [r for r in betweens([(item.x, item.y) for item in scene.objects]) if set(r.objects) <= set(clear)]
    if middle and rng.random() < 0.3:
        chosen = [middle[rng.integers(len(middle))]]
    ends = [" and ".join(nouns[index].reference for index in r.objects[1:]) for r in chosen]
    told = " and ".join(f"{w.RELATIONS[r.kind].pick(rng)} {end}" for r, end in zip(chosen, ends, strict=True))
    sentence = s.RELATION_SENTENCES.pick(rng).format(a=nouns[chosen[0].first].reference, rel=told)
    return f" {sentence}.", tuple(chosen)


def _with_one_change(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one fact of the ground or of an object replaced by another value."""
    index = int(rng.integers(len(scene.objects)))
    item = scene.objects[index]
    names = ("thing", "thing") if item.thing else ("shape", "color", "fill", "outline")
    names = ("ground", "size", "position", *names)
    name = names[rng.integers(len(names))]
    if name == "ground":
        return replace(scene, ground=absent(GROUNDS, {scene.ground}, rng))
    if name == "position":
        taken = {other.position for other in scene.objects}
        free = [cell for cell in POSITIONS if cell not in taken]
        x, y = CENTERS[free[rng.integers(len(free))]]
        changed = replace(item, x=x, y=y)
    elif name == "outline":
        changed = replace(item, outline=not item.outline)
    else:
        values = {"shape": SHAPES, "color": COLORS, "fill": FILLS, "size": tuple(SIZES), "thing": tuple(THINGS)}[name]
        changed = replace(item, **{name: absent(values, {getattr(item, name)}, rng)})
    return replace(scene, objects=(*scene.objects[:index], changed, *scene.objects[index + 1 :]))
