"""Analysis of the votes: win rates, strengths by Davidson's model, agreement, and audits."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import evalica
import numpy as np
import pandas as pd

from cogview3.config import UserError
from cogview3.evaluation.intervals import bounds, picks
from cogview3.evaluation.study.database import CHOICES, QUESTIONS

RESAMPLES = 300
FEW_VOTES, DOMINANT, FAST_SECONDS = 30, 2.0, 1.0
"""Fewer votes on a pair, a larger share than so many equal ones, and quicker votes are reported."""

Vote = Mapping[str, Any]


def analyze(votes: Sequence[Vote], systems: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Everything about a study's votes.

    Whoever fails half of two or more attention checks is left out, and named. "Both bad" counts as a tie in win rates
    and strengths, and is reported beside them.

    `votes` are as `database.votes` gives them; the bootstrap resamples annotators and prompts, both at once.

    Returns:
        "votes", "annotators", "excluded"; for each question "pairs" (win, lose, tie, both bad with intervals),
        "win_rates" of each system, "strengths" with "tie" (Davidson's nu), "agreement"; and "audits", sentences.

    Raises:
        UserError: no votes.
    """
    kept, excluded = _attentive(votes)
    if not kept:
        raise UserError("there are no votes yet; send the links of links.csv to the annotators")
    weights = _resampled(kept, seed)
    questions = {question: _question(kept, systems, question, weights) for question in QUESTIONS}
    annotators = len({vote["annotator"] for vote in kept})
    return {
        "systems": list(systems),
        "votes": len(kept),
        "annotators": annotators,
        "excluded": excluded,
        "questions": questions,
        "audits": _audits(kept, systems, questions),
    }


def _attentive(votes: Sequence[Vote]) -> tuple[list[Vote], list[dict[str, Any]]]:
    """The votes that count, without attention checks and those who fail them."""
    checks: dict[int, list[bool]] = defaultdict(list)
    for vote in votes:
        if vote["expected"]:
            checks[vote["annotator"]].append(vote["alignment"] == vote["expected"])
    failed = {who: found for who, found in checks.items() if len(found) > 1 and sum(found) * 2 <= len(found)}
    excluded = [{"annotator": who, "checks": len(found), "right": sum(found)} for who, found in sorted(failed.items())]
    return [vote for vote in votes if not vote["expected"] and vote["annotator"] not in failed], excluded


def _resampled(votes: Sequence[Vote], seed: int) -> np.ndarray:
    """Weights of each vote in each draw, (RESAMPLES, votes): how often its annotator came, times its prompt."""
    rng = np.random.default_rng(seed)
    draws = np.ones((RESAMPLES, len(votes)))
    for key in ("annotator", "prompt"):
        names = sorted({vote[key] for vote in votes})
        place = {name: number for number, name in enumerate(names)}
        draws *= picks(len(names), rng, RESAMPLES)[:, [place[vote[key]] for vote in votes]]
    return draws


def _question(votes: Sequence[Vote], systems: Sequence[str], question: str, weights: np.ndarray) -> dict[str, Any]:
    pairs = [_pair(votes, pair, question, weights) for pair in itertools.combinations(systems, 2)]
    return {
        "pairs": [pair for pair in pairs if pair["votes"]],
        "win_rates": {name: _win_rate(votes, name, question, weights) for name in systems},
        **_strengths(votes, systems, question, weights),
        "agreement": _agreement(votes, question),
    }


def _outcome(vote: Vote, first: str, question: str) -> str | None:
    """How the first system fared: "win", "lose", "tie" or "both bad"; None where it is not in the pair."""
    sides = {"left": vote["left_system"], "right": vote["right_system"]}
    if first not in sides.values():
        return None
    choice = vote[question]
    return choice if choice not in sides else "win" if sides[choice] == first else "lose"


def _share(hits: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """A share of votes with its interval; None where there are none."""
    if not len(hits):
        return {"share": None, "interval": None}
    totals = weights.sum(1)
    draws = (weights @ hits)[totals > 0] / totals[totals > 0]
    return {"share": float(hits.mean()), "interval": bounds(draws)}


def _pair(votes: Sequence[Vote], pair: tuple[str, str], question: str, weights: np.ndarray) -> dict[str, Any]:
    own = [place for place, vote in enumerate(votes) if {vote["left_system"], vote["right_system"]} == set(pair)]
    outcomes = [_outcome(votes[place], pair[0], question) for place in own]
    shares = {
        kind: _share(np.array([each == kind for each in outcomes], float), weights[:, own])
        for kind in ("win", "lose", "tie", "both bad")
    }
    return {"first": pair[0], "second": pair[1], "votes": len(own)} | shares


def _win_rate(votes: Sequence[Vote], name: str, question: str, weights: np.ndarray) -> dict[str, Any]:
    """Share of votes for a system, ties as half, in all its pairs."""
    found = [(place, _outcome(vote, name, question)) for place, vote in enumerate(votes)]
    own = [(place, outcome) for place, outcome in found if outcome is not None]
    hits = np.array([{"win": 1.0, "lose": 0.0}.get(outcome, 0.5) for _, outcome in own])
    return _share(hits, weights[:, [place for place, _ in own]]) | {"votes": len(own)}


def _strengths(votes: Sequence[Vote], systems: Sequence[str], question: str, weights: np.ndarray) -> dict[str, Any]:
    """Davidson's strengths, of geometric mean 1, and nu; each pair has half a win more each way.

    Without that, one system that never loses makes evalica give 1e-6 for all.
    """
    pairs = list(itertools.combinations(systems, 2))
    virtual = [(first, second, winner) for first, second in pairs for winner in (evalica.Winner.X, evalica.Winner.Y)]
    kinds = {"left": evalica.Winner.X, "right": evalica.Winner.Y}
    rows = [
        (vote["left_system"], vote["right_system"], kinds.get(vote[question], evalica.Winner.Draw)) for vote in votes
    ]
    cells = Counter(rows)  # equal rows add up, so that a draw of the bootstrap is one product
    keys = [*cells, *(row for row in virtual if row not in cells)]
    place = {key: number for number, key in enumerate(keys)}
    extra = np.bincount([place[row] for row in virtual], minlength=len(keys)) * 0.5
    member = np.zeros((len(votes), len(keys)))
    member[np.arange(len(votes)), [place[row] for row in rows]] = 1
    whole, tie = _fit(keys, member.sum(0) + extra, systems)
    draws = [_fit(keys, row @ member + extra, systems) for row in weights if row.any()]
    logs = np.log([strengths for strengths, _ in draws])
    by_system = {
        name: {"strength": float(whole[n]), "interval": [math.exp(bound) for bound in bounds(logs[:, n])]}
        for n, name in enumerate(systems)
    }
    return {"strengths": by_system, "tie": {"nu": tie, "interval": bounds([tie for _, tie in draws])}}


def _fit(keys: Sequence[tuple[Any, ...]], counts: np.ndarray, systems: Sequence[str]) -> tuple[np.ndarray, float]:
    lefts, rights, winners = zip(*keys, strict=True)
    # its bootstrap would halve nu: newman's own weight of ties is 1
    found = evalica.newman(lefts, rights, winners, weights=counts, tie_weight=1.0, tolerance=1e-8, limit=10_000)
    scores = np.array([float(found.scores[name]) for name in systems])
    return scores / math.exp(np.log(scores).mean()), float(found.v)


def _agreement(votes: Sequence[Vote], question: str) -> dict[str, Any]:
    """Krippendorff's alpha over pairs of pictures that several judged; None where there is nothing to compare."""
    units: dict[tuple[Any, ...], dict[int, str]] = defaultdict(dict)
    for vote in votes:
        first = min(vote["left_system"], vote["right_system"])
        other = max(vote["left_system"], vote["right_system"])
        units[vote["prompt"], first, other][vote["annotator"]] = str(_outcome(vote, first, question))
    shared = {unit: found for unit, found in units.items() if len(found) > 1}
    answers = {answer for found in shared.values() for answer in found.values()}
    if not shared or len(answers) < 2:
        reason = "no pair was judged twice" if not shared else "all answers are alike"
        return {"alpha": None, "pairs": len(shared), "reason": reason}
    codes = {answer: float(number) for number, answer in enumerate(sorted(answers))}
    table = pd.DataFrame({unit: {who: codes[a] for who, a in found.items()} for unit, found in shared.items()})
    table.columns = range(len(shared))
    return {"alpha": float(evalica.alpha(table).alpha), "pairs": len(shared)}


def _audits(votes: Sequence[Vote], systems: Sequence[str], questions: Mapping[str, Any]) -> list[str]:
    """Sentences on what makes the figures less sure."""
    found: list[str] = []
    for question in QUESTIONS:
        sides = Counter(vote[question] for vote in votes)
        decided = sides["left"] + sides["right"]
        if decided:
            share, margin = sides["left"] / decided, 1.96 * math.sqrt(0.25 / decided)
            if abs(share - 0.5) > margin:
                found.append(
                    f"side bias, {question}: left in {share:.3f} of {decided} decided votes, beyond {margin:.3f}"
                )
        majority = {
            (p["first"], p["second"]): p["win"]["share"] - p["lose"]["share"] for p in questions[question]["pairs"]
        }
        beats = {(a, b) if lead > 0 else (b, a) for (a, b), lead in majority.items() if lead}
        for a, b, c in itertools.combinations(systems, 3):
            for x, y, z in ((a, b, c), (a, c, b)):
                if {(x, y), (y, z), (z, x)} <= beats:
                    found.append(f"intransitive, {question}: {x} beats {y}, {y} beats {z}, {z} beats {x}")
    for pair in questions[QUESTIONS[0]]["pairs"]:
        if pair["votes"] < FEW_VOTES:
            found.append(f"few votes: {pair['votes']} on {pair['first']} against {pair['second']}")
    counts = Counter(vote["annotator"] for vote in votes)
    for who, count in counts.items():
        if len(counts) > 1 and count > DOMINANT * len(votes) / len(counts):
            found.append(f"annotator {who} gave {count} of {len(votes)} votes")
    fast = Counter(vote["annotator"] for vote in votes if vote["seconds"] < FAST_SECONDS)
    found += [f"annotator {who} gave {n} of {counts[who]} votes in under a second" for who, n in fast.items() if n > 2]
    for who, count in counts.items():
        alike = Counter(vote[QUESTIONS[0]] for vote in votes if vote["annotator"] == who)
        if count >= len(CHOICES) * 4 and max(alike.values()) == count:
            found.append(f"annotator {who} always answered {next(iter(alike))!r}")
    return found
