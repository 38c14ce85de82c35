"""Shares of right facts in written captions of scenes: those of recaptioners, and expanded prompts."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace

from cogview3.config import UserError
from cogview3.data.scenes.captions import Caption
from cogview3.data.scenes.parser import is_consistent, parse, reading_of
from cogview3.data.scenes.scene import Facts, ObjectFacts, Relation, Scene
from cogview3.data.scenes.score import match_objects, score


def recaption_figures(scenes: Sequence[Scene], olds: Sequence[Caption], written: Sequence[str]) -> dict[str, float]:
    """How true new captions are to their scenes, and how much of the old ones' errors they repeat.

    Args:
        scenes: what the pictures show.
        olds: alt-texts of them (`captions.alt_text`).
        written: the new captions, in the same order.

    Returns:
        Shares: "facts_right" of the scenes' facts (relations left out) that the new captions state, where each object
        too many is one more wrong fact and a caption that `parser.parse` cannot read states none; "captions_right" of
        captions with every fact; "read" of captions that can be read; "wrong_kept" of the old captions' wrong
        statements that the new ones state as well; "seen" and "held_out", facts right of scenes without and with a
        held-out combination; and each kind of fact. Kinds and groups that do not occur are left out.

    Raises:
        UserError: no captions, or not as many of each.
    """
    if not len(scenes) == len(olds) == len(written) > 0:
        raise UserError(f"{len(scenes)} scenes, {len(olds)} old and {len(written)} new captions; give as many of each")
    groups: dict[str, list[bool]] = defaultdict(list)
    whole, read, kept = [], 0, []
    for scene, old, text in zip(scenes, olds, written, strict=True):
        told = parse(text)
        read += told is not None
        right = _right(scene, told)
        whole.append(all(good for _, good in right))
        held_out = scene.is_held_out
        for kind, good in right:
            for group in ("facts_right", "held_out" if held_out else "seen", kind):
                groups[group].append(good)
        kept += wrong_statements_kept(scene, old, told)
    return {
        "facts_right": _mean(groups.pop("facts_right")),
        "captions_right": _mean(whole),
        "read": read / len(written),
        "wrong_kept": _mean(kept) if kept else 0.0,
        **{name: _mean(groups[name]) for name in sorted(groups)},
    }


def _right(scene: Scene, told: Facts | None) -> list[tuple[str, bool]]:
    stated = replace(scene.facts(), relations=())
    if told is None:
        return [(fact.kind, False) for fact in score(stated, reading_of(stated)).facts]
    return [(fact.kind, fact.right) for fact in score(stated, reading_of(told)).facts]


def wrong_statements_kept(scene: Scene, old: Caption, told: Facts | None) -> list[bool]:
    """For each wrong statement of an old caption whether a new one's facts hold it too; None holds nothing."""
    truth, stated = scene.facts(), old.facts
    reading = reading_of(told) if told else None
    same = match_objects(replace(truth, relations=()), reading) if reading else {}  # scene's object -> new caption's
    kept = [
        told is not None and getattr(told, name) == getattr(stated, name)
        for name in ("ground", "texture", "count")
        if getattr(stated, name) not in (None, getattr(truth, name))
    ]
    indices = sorted(old.told)
    for item, index in zip(stated.objects, indices, strict=True):
        new = told.objects[same[index]] if told and index in same else ObjectFacts()
        kept += [
            getattr(new, field.name) == getattr(item, field.name)
            for field in fields(ObjectFacts)
            if getattr(item, field.name) not in (None, getattr(truth.objects[index], field.name))
        ]
    for relation in stated.relations:
        first, second = indices[relation.first], indices[relation.second]
        if Relation(first, relation.kind, second) not in truth.relations:
            mapped = Relation(same.get(first, -1), relation.kind, same.get(second, -1))
            kept.append(reading is not None and mapped in reading.facts.relations)
    return kept


def expansion_figures(prompts: Sequence[Facts], written: Sequence[str]) -> dict[str, float]:
    """How faithful expanded prompts are.

    Args:
        prompts: what the prompts state.
        written: their expansions, in the same order.

    Returns:
        Shares: "prompts_kept" of prompts whose every fact the expansion states, with no object beyond a stated number;
        "facts_kept" of the prompts' facts; "read" of expansions that `parser.parse` can read (others keep nothing);
        "consistent" of those that can be a scene.

    Raises:
        UserError: no prompts, or not as many of each.
    """
    if not len(prompts) == len(written) > 0:
        raise UserError(f"{len(prompts)} prompts and {len(written)} expansions; give as many of each")
    told = [parse(text) for text in written]
    empty = reading_of(Facts())
    scores = [score(stated, reading_of(facts) if facts else empty) for stated, facts in zip(prompts, told, strict=True)]
    return {
        "prompts_kept": _mean([item.whole for item in scores]),
        "facts_kept": sum(item.right for item in scores) / sum(item.total for item in scores),
        "read": _mean([facts is not None for facts in told]),
        "consistent": _mean([facts is not None and is_consistent(facts) for facts in told]),
    }


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
