"""One job for each of many shards, or pieces of work, in separate processes, with results in order."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TypeVar

from cogview3.config import UserError

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@contextmanager
def over_shards(
    job: Callable[[Piece], Result], shards: Sequence[Piece], workers: int = 1
) -> Iterator[Iterator[Result]]:
    """`job(shard)` of every shard, in their order; with more than one worker, in fresh processes.

    The job is then pickled, and must not leave anything half done behind: whoever leaves the block early, by an error
    or a signal, ends the workers. Raises UserError for workers below 1, and what a job raises.
    """
    if workers < 1:
        raise UserError(f"workers {workers}: give 1 or more")
    if workers == 1 or len(shards) <= 1:
        yield map(job, shards)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(shards)), multiprocessing.get_context("spawn"), begin_writer)
    try:
        with interrupts_held():  # all are started here
            results = pool.map(partial(_to_the_end, job), shards)
        yield results
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back, here and in processes that are started in the block, for good.

    A terminal sends it to all of them, and one that still imports would answer with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """Let the first process alone answer Ctrl-C, and end this one with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def begin_writer() -> None:
    """As `begin_worker`, and let SIGTERM end this process as an error does, so that no half-written file is left."""
    begin_worker()
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # whoever cleans up now is not to be disturbed
    sys.exit(128 + number)


def _to_the_end(job: Callable[[Piece], Result], piece: Piece) -> Result:
    """Do a job; one that SIGTERM ends is the process's last, which a pool would give the next one."""
    try:
        return job(piece)
    except SystemExit as stop:
        os._exit(int(str(stop)))


def end_with_parent() -> None:
    """End this process when its parent has ended, however that came: after a SIGKILL nobody else ends it."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
