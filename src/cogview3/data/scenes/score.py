"""The score of a picture: the share of the stated facts that are right in it.

Stated objects are matched one to one with those read, so that the most facts come out right. Every stated fact then
is right or wrong: a missing object fails all its facts, and where the count is stated each extra object is one more
wrong fact. What is not stated is not counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from cogview3.config import UserError
from cogview3.data.scenes.reader import Reading, read
from cogview3.data.scenes.scene import BETWEEN, Facts, ObjectFacts, relation_holds

OBJECT_KINDS = tuple(field.name for field in fields(ObjectFacts))
KINDS = ("ground", "texture", "count", *OBJECT_KINDS, "relation", "different", "denied", "extra")

TIE_BREAK = 1e-3  # weight of one relation's direction against one fact: decides only between equally right matches


@dataclass(frozen=True)
class ScoredFact:
    """One stated fact. `kind` is one of KINDS; `index` the stated object's (a relation's first), None if of none."""

    kind: str
    index: int | None
    right: bool


@dataclass(frozen=True)
class Score:
    """The stated facts of one picture, each right or wrong; never empty."""

    facts: tuple[ScoredFact, ...]

    @property
    def right(self) -> int:
        """Number of right facts."""
        return sum(fact.right for fact in self.facts)

    @property
    def total(self) -> int:
        """Number of facts counted."""
        return len(self.facts)

    @property
    def whole(self) -> bool:
        """Whether every fact is right."""
        return self.right == self.total


def score(stated: Facts, picture: np.ndarray | Image.Image | Reading) -> Score:
    """Score a picture, or what was read from it, against stated facts.

    Raises UserError if nothing is stated, a relation names an object that is not, or `picture` cannot be read.
    """
    check_stated(stated)
    reading = picture if isinstance(picture, Reading) else read(picture)
    found = reading.facts
    match = match_objects(stated, reading)
    facts = [
        ScoredFact(kind, None, getattr(stated, kind) == getattr(found, kind))
        for kind in ("ground", "texture", "count")
        if getattr(stated, kind) is not None
    ]
    for index, item in enumerate(stated.objects):
        drawn = found.objects[match[index]] if index in match else None
        facts += [
            ScoredFact(kind, index, drawn is not None and getattr(item, kind) == getattr(drawn, kind))
            for kind in OBJECT_KINDS
            if getattr(item, kind) is not None
        ]
    for relation in stated.relations:
        holds = relation_holds(relation.among(match), reading.centers)
        facts.append(ScoredFact("relation", relation.first, holds))
    for kind in stated.different:
        values = [getattr(found.objects[match[i]], kind) if i in match else None for i in range(len(stated.objects))]
        facts.append(ScoredFact("different", None, None not in values and len(set(values)) == len(values)))
    for item in stated.denied:
        facts.append(ScoredFact("denied", None, not any(map(item.is_true_of, found.objects))))
    if stated.count is not None:
        extra = len(found.objects) - max(stated.count, len(stated.objects))
        facts += [ScoredFact("extra", None, False)] * extra
    return Score(tuple(facts))


def check_stated(stated: Facts, where: str = "") -> None:
    """Refuse, with a UserError that begins with `where`, facts that no picture can be scored against."""
    count = len(stated.objects)
    for relation in stated.relations:
        if not set(relation.objects) <= set(range(count)):
            raise UserError(f"{where}{relation} names an object that is not stated; there are {count}, from 0 on")
    about_objects = [getattr(item, kind) for item in (*stated.objects, *stated.denied) for kind in OBJECT_KINDS]
    alone = [stated.ground, stated.texture, stated.count]
    if not (stated.relations or stated.different) and all(value is None for value in alone + about_objects):
        raise UserError(f"{where}no facts are stated, so nothing can be scored; state at least one")


def match_objects(stated: Facts, reading: Reading) -> dict[int, int]:
    """Index of the object read for each stated one, with the most facts right.

    Among equals the match wins whose objects lie furthest along the stated relations, and in which what is between
    others is nearest to the middle of all.
    """
    drawn = reading.facts.objects
    if not drawn:
        return {}
    gain = np.zeros((len(stated.objects), len(drawn)))
    for row, item in enumerate(stated.objects):
        for column, other in enumerate(drawn):
            gain[row, column] = sum(
                getattr(item, kind) == getattr(other, kind) for kind in OBJECT_KINDS if getattr(item, kind) is not None
            )
    centers = np.array(reading.centers).reshape(-1, 2)
    for relation in stated.relations:
        if relation.kind == BETWEEN:
            gain[relation.first] -= TIE_BREAK * np.linalg.norm(centers - centers.mean(0), axis=1)
            continue
        along = centers[:, 0 if relation.kind in ("left of", "right of") else 1]
        sign = -1 if relation.kind in ("left of", "above") else 1
        gain[relation.first] += sign * TIE_BREAK * along
        gain[relation.second] -= sign * TIE_BREAK * along
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True)}


def summarize(scores: Sequence[Score]) -> dict:
    """Scores of several pictures as one table.

    Keys: "pictures", "facts", "right" (numbers), "share" (of all facts), "whole" (share of pictures wholly right) and
    "kinds", with "facts", "right" and "share" for each kind that occurs. Raises UserError for no scores.
    """
    if not scores:
        raise UserError("there are no scores to summarize; score at least one picture")
    every = [fact for item in scores for fact in item.facts]
    counted = Counter(fact.kind for fact in every)
    right = Counter(fact.kind for fact in every if fact.right)
    kinds = {
        kind: {"facts": counted[kind], "right": right[kind], "share": right[kind] / counted[kind]}
        for kind in KINDS
        if counted[kind]
    }
    return {
        "pictures": len(scores),
        "facts": counted.total(),
        "right": right.total(),
        "share": right.total() / counted.total(),
        "whole": sum(item.whole for item in scores) / len(scores),
        "kinds": kinds,
    }
