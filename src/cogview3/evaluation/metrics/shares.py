"""Shares of right facts, overall and by group, each with its interval."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from cogview3.data.scenes.scene import Facts
from cogview3.data.scenes.score import KINDS, Score, ScoredFact, summarize
from cogview3.evaluation.intervals import share_intervals
from cogview3.evaluation.prompt import Prompt

FINE_KINDS = ("fill", "outline")
"""Kinds of fact that hang on detail too fine for the base stage."""

Group = tuple[str, ...]
"""Where a share stands in a row: ("share",), ("kinds", "fill"), ("values", "fill", "striped")."""


def summarize_row(scored: Sequence[tuple[Prompt, Score]], seed: int) -> dict[str, Any]:
    """Shares of right facts, overall and by group; None where a group is empty.

    Args:
        scored: one score for each picture, with the prompt that it was scored against.
        seed: of the bootstrap.

    Returns:
        "pictures" and "facts" (numbers); "share" of facts right with its 95 % "interval"; "fine" (fills and
        outlines); "whole" and "one_object_whole" (pictures wholly right, of all and of those of one object); and
        shares by "kinds" of fact, by stated "values" of each kind ("fill": {"plain": ..., "striped": ...}), by number
        of "objects", of "seen" prompts and of "held_out" ones, and by the prompts' "tags". "intervals" holds the 95 %
        intervals under the same names, by resampling pictures with replacement.
    """
    total = summarize([item for _, item in scored])
    counts: dict[Group, np.ndarray] = defaultdict(lambda: np.zeros((2, len(scored))))
    for name in ("share", "whole", "one_object_whole", "fine", "seen", "held_out"):
        counts[name,] += 0  # there in every row, empty or not
    for place, (prompt, item) in enumerate(scored):
        for group, right, number in _tally(prompt, item):
            counts[group][:, place] += right, number
    totals = [np.array([pair[part] for pair in counts.values()]).T for part in (0, 1)]
    intervals = dict(zip(counts, share_intervals(totals[0], totals[1], seed), strict=True))
    shares = {group: float(pair[0].sum() / pair[1].sum()) if pair[1].any() else None for group, pair in counts.items()}
    order = {kind: place for place, kind in enumerate(KINDS)}
    groups = sorted(counts, key=lambda group: (group[0], order.get(group[1], 99) if len(group) > 1 else 0, *group[1:]))
    row = _nested({group: shares[group] for group in groups})
    row["interval"] = intervals["share",]
    row["intervals"] = _nested({group: intervals[group] for group in groups if group != ("share",)})
    return {"pictures": total["pictures"], "facts": total["facts"]} | row


def _tally(prompt: Prompt, item: Score) -> list[tuple[Group, int, int]]:
    """Right facts (or pictures) and their number that a picture adds to each group."""
    found: list[tuple[Group, int, int]] = [(("share",), item.right, item.total), (("whole",), int(item.whole), 1)]
    if len(prompt.objects) == 1:
        found.append((("one_object_whole",), int(item.whole), 1))
    found.append((("objects", str(len(prompt.objects))), item.right, item.total))
    found.append((("held_out" if prompt.held_out else "seen",), item.right, item.total))
    found += [(("tags", f"{tag}: {value}"), item.right, item.total) for tag, value in prompt.tags.items()]
    for fact in item.facts:
        found.append((("kinds", fact.kind), int(fact.right), 1))
        if fact.kind in FINE_KINDS:
            found.append((("fine",), int(fact.right), 1))
        if (value := _stated(prompt.facts, fact)) is not None:
            found.append((("values", fact.kind, value), int(fact.right), 1))
    return found


def _stated(facts: Facts | None, fact: ScoredFact) -> str | None:
    """What a prompt states where a fact is right or wrong, such as "striped" of a fill; None if no one value."""
    if facts is None:
        return None
    holder = facts if fact.index is None else facts.objects[fact.index] if fact.index < len(facts.objects) else None
    value = getattr(holder, fact.kind, None)
    if value is None or isinstance(value, tuple):  # relations; what is different, or denied
        return None
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _nested(flat: dict[Group, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"kinds": {}, "values": {}, "objects": {}, "tags": {}}
    for group, value in flat.items():
        inner = row
        for name in group[:-1]:
            inner = inner.setdefault(name, {})
        inner[group[-1]] = value
    return row
