"""Samples from worker processes: the same as from one, and taken up where they were by any number of workers."""

import json
import multiprocessing
import os
import signal
import time
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

from cogview3.config import UserError
from cogview3.data.buckets import BucketBatches, Buckets, FittedImages
from cogview3.data.shards import CaptionedImages
from cogview3.data.workers import WorkerSamples
from tests.data.conftest import tar_bytes, write_tars
from tests.processes import Context


def read(tars: list[str], part: int, parts: int) -> FittedImages:
    reader = CaptionedImages(tars, seed=1, buffer=4, part=part, parts=parts, broken_window=4)
    return FittedImages(reader, Buckets(16, 8))


def keys(samples: WorkerSamples | FittedImages, count: int) -> list[str]:
    return [fitted.name for fitted in islice(samples, count)]


def in_turn(tars: list[str], parts: list[int], count: int, rounds: int) -> list[str]:
    alone = [keys(read(tars, part, count), rounds) for part in parts]
    return [name for names in zip(*alone, strict=True) for name in names]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on one core
def test_another_number_of_workers_goes_on_with_the_same_samples(tars: list[str]) -> None:
    """Three readers of two workers: one of these has a reader less."""
    make = partial(read, tars)
    samples = WorkerSamples(make, 2, readers=6, rank=1, world=2)
    got = keys(samples, 7)
    state = json.loads(json.dumps(samples.state_dict()))
    samples.close()
    expected = in_turn(tars, [1, 3, 5], 6, 5)
    assert got == expected[:7]
    assert samples.report.samples >= 7
    other = WorkerSamples(make, 0, readers=6, rank=1, world=2)
    other.load_state_dict(state)
    assert keys(other, 8) == expected[7:]
    with pytest.raises(UserError, match=r"lacks readers \[0, 2, 4\]"):
        WorkerSamples(make, 0, readers=6, rank=0, world=2).load_state_dict(state)


def test_batches_of_workers_are_taken_up_with_what_waits(tars: list[str]) -> None:
    make = partial(read, tars)
    batches = BucketBatches(WorkerSamples(make, 0, readers=2), 4)
    assert sorted(name for batch in islice(batches, 3) for name in batch.keys) == sorted(in_turn(tars, [0, 1], 2, 6))
    batches.take(3)
    state = json.loads(json.dumps(batches.state_dict()))
    other = BucketBatches(WorkerSamples(make, 0, readers=2), 4)
    other.load_state_dict(state)
    assert [batch.keys for batch in islice(other, 5)] == [batch.keys for batch in islice(batches, 5)]


def test_what_stops_a_reader_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{number}.txt", b"x") for number in range(9)]))
    samples = WorkerSamples(partial(read, [str(tmp_path / "a.tar")]), 0)
    with pytest.raises(UserError, match="missing image"):
        next(samples)


def signal_the_group(tars: list[str], out: Connection) -> None:
    """Read as a trainer does, in a group of processes of its own that gets a signal, until killed."""
    os.setsid()
    os.dup2(out.fileno(), 1)  # which workers inherit
    out.close()
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *arguments: heard.append(1))
    samples = WorkerSamples(partial(read_large, tars), 1)
    names = keys(samples, 1)
    os.killpg(0, signal.SIGUSR1)
    names += keys(samples, 49)
    os.write(1, json.dumps([len(heard), names, multiprocessing.active_children()[0].pid]).encode() + b"\n")
    time.sleep(600)


def read_large(tars: list[str], part: int, parts: int) -> FittedImages:
    """Pictures of which a pipe holds none."""
    return FittedImages(CaptionedImages(tars, seed=1, buffer=4, part=part, parts=parts), Buckets(256, 128))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="for process groups")
def test_signals_to_the_group_are_for_the_trainer_and_workers_end_with_it(tars: list[str]) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    trainer = Context().Process(target=signal_the_group, args=(tars, theirs))
    trainer.start()
    theirs.close()
    worker = None
    try:
        with os.fdopen(os.dup(ours.fileno())) as output:
            heard, names, worker = json.loads(output.readline())
            assert heard == 1
            assert names == keys(read_large(tars, 0, 1), 50)
            trainer.kill()
            assert wait([ours], 60)  # the end of the output: the worker, too, has closed it
            assert output.read() == ""
        worker = None
    finally:
        trainer.kill()
        if worker is not None:
            os.kill(worker, signal.SIGKILL)


def test_it_ends_with_the_first_reader(tars: list[str]) -> None:
    def once(part: int, parts: int) -> FittedImages:
        return FittedImages(CaptionedImages(tars, epochs=1, part=part, parts=parts), Buckets(16, 8))

    assert 8 <= len(list(WorkerSamples(once, 0, readers=2))) <= 15


def test_bad_values_are_refused(tmp_path: Path) -> None:
    make = partial(read, write_tars(tmp_path, (1,)))
    for options, words in (
        ({"workers": -1}, "workers -1"),
        ({"workers": 0, "rank": 2, "world": 2}, "rank 2"),
        ({"workers": 0, "readers": 3, "world": 2}, "readers 3: give a multiple of the 2 processes"),
    ):
        with pytest.raises(UserError, match=words):
            WorkerSamples(make, **options)
