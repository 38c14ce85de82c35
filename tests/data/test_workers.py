"""Batches from worker processes: the same as from one, and taken up where they were."""

import json
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from cogview3.config import UserError
from cogview3.data.buckets import BucketBatches, Buckets
from cogview3.data.shards import CaptionedImages
from cogview3.data.workers import WorkerBatches
from tests.data.conftest import tar_bytes, write_tars


def read(tars: list[str], part: int, parts: int) -> BucketBatches:
    reader = CaptionedImages(tars, seed=1, buffer=4, part=part, parts=parts, broken_window=4)
    return BucketBatches(reader, Buckets(16, 8), 2)


def keys(batches: WorkerBatches | BucketBatches, count: int) -> list[list[str]]:
    return [batch.keys for batch in islice(batches, count)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on one core
def test_workers_take_turns_and_are_taken_up_in_between(tars: list[str]) -> None:
    make = partial(read, tars)
    batches = WorkerBatches(make, 2, rank=1, world=2)
    got = keys(batches, 5)
    state = json.loads(json.dumps(batches.state_dict()))
    batches.close()
    alone = [keys(make(part, 4), 6) for part in (2, 3)]
    expected = [batch for pair in zip(*alone, strict=True) for batch in pair]
    assert got == expected[:5]
    assert batches.report.samples >= 10
    other = WorkerBatches(make, 2, rank=1, world=2)
    other.load_state_dict(state)
    assert keys(other, 7) == expected[5:]
    other.close()
    with pytest.raises(UserError, match="of 2 workers, here are 1"):
        WorkerBatches(make, 0).load_state_dict(state)


def test_without_workers_it_is_read_here(tars: list[str]) -> None:
    make = partial(read, tars)
    batches = WorkerBatches(make, 0)
    expected = keys(make(0, 1), 9)
    assert keys(batches, 4) == expected[:4]
    other = WorkerBatches(make, 0)
    other.load_state_dict(batches.state_dict())
    assert keys(other, 5) == expected[4:]


def test_what_stops_a_reader_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{number}.txt", b"x") for number in range(9)]))
    batches = WorkerBatches(partial(read, [str(tmp_path / "a.tar")]), 0)
    with pytest.raises(UserError, match="missing image"):
        next(batches)


def test_bad_values_are_refused(tmp_path: Path) -> None:
    make = partial(read, write_tars(tmp_path, (1,)))
    for options in ({"workers": -1}, {"workers": 0, "rank": 2, "world": 2}, {"workers": 0, "prefetch": 0}):
        with pytest.raises(UserError):
            WorkerBatches(make, **options)
