"""Fairness between clients, by closed-form counts of who is served."""

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cogview3.serving.line import Line
from cogview3.serving.orders import Job
from tests.serving.conftest import order


def job(client: str, **changes: Any) -> Job:
    return Job(order(**changes), client, asyncio.Future(loop=LOOP))


LOOP = asyncio.new_event_loop()


def fill(line: Line, client: str, count: int, **changes: Any) -> list[Job]:
    jobs = [job(client, **changes) for _ in range(count)]
    for each in jobs:
        line.add(each)
    return jobs


def test_a_client_with_many_does_not_keep_another_waiting() -> None:
    line = Line()
    fill(line, "many", 10)
    (single,) = fill(line, "one", 1)
    assert line.position(single) == 1
    assert single in line.take(1) + line.take(1)


def test_turns_are_by_cost_rather_than_by_count() -> None:
    line = Line()
    fill(line, "large", 20, steps=30)
    fill(line, "small", 60, steps=10)
    taken = Counter(line.take(1)[0].client for _ in range(40))
    assert taken["small"] == 3 * taken["large"]


def test_a_batch_is_of_one_kind_and_takes_from_each_client_in_turn() -> None:
    line = Line()
    fill(line, "a", 3)
    fill(line, "b", 1, steps=9)
    mine = fill(line, "c", 3)
    batch = line.take(4)
    assert {each.kind for each in batch} == {batch[0].kind}
    assert Counter(each.client for each in batch) == {"a": 2, "c": 2}
    assert batch[1] is mine[0]
    assert line.matching(batch[0].kind) == 2
    assert len(line) == 3


def test_pauses_are_not_saved_up() -> None:
    line = Line()
    fill(line, "steady", 20)
    for _ in range(10):
        line.take(1)
    fill(line, "back", 20)
    taken = Counter(line.take(1)[0].client for _ in range(10))
    assert taken["back"] <= 6


def test_removed_jobs_are_gone() -> None:
    line = Line()
    first, second = fill(line, "a", 2)
    assert line.remove(first)
    assert not line.remove(first)
    assert line.position(second) == 0
    assert line.position(first) is None
    assert line.take(9) == [second]
    assert line.next_kind() is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=30), st.integers(1, 5))
def test_every_job_is_taken_once(asked: list[tuple[str, int]], most: int) -> None:
    line = Line()
    jobs = [each for client, steps in asked for each in fill(line, client, 1, steps=steps)]
    taken = []
    while line:
        batch = line.take(most)
        assert 1 <= len(batch) <= most
        taken += batch
    assert len(taken) == len(jobs)
    assert set(map(id, taken)) == set(map(id, jobs))
    for client in "abc":
        for steps in (1, 2, 3):
            same = [each for each in jobs if each.client == client and each.order.settings.steps == steps]
            assert [each for each in taken if each in same] == same
