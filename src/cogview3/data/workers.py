"""Samples read by worker processes; order and position do not depend on the number or speed of the workers."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cogview3.config import UserError
from cogview3.data.buckets import Fitted, FittedImages
from cogview3.data.order import Place
from cogview3.data.parallel import end_with_parent, interrupts_held
from cogview3.data.report import Report

Make = Callable[[int, int], FittedImages]
"""The samples of one reader, given its part and the number of parts."""

_AHEAD = 32  # samples that each worker reads ahead


class WorkerSamples:
    """Iterator over the samples of several readers, one of each in turn, read in processes of their own.

    Readers are dealt out to workers, so the order depends on the number of readers alone. Each sample brings its
    reader's position along, as workers read ahead. The first reader that ends, ends all.

    Args:
        make: makes the samples of a part; pickled, so a function of a module, or a partial of one.
        workers: processes; 0 reads in this one.
        readers: how many there are, those of all processes that train together.
        rank, world: number of this process, and of all that train: it has the readers rank, rank + world, ...

    Raises UserError for a value out of range, and what the readers raise.
    """

    def __init__(self, make: Make, workers: int, *, readers: int = 1, rank: int = 0, world: int = 1) -> None:
        if workers < 0:
            raise UserError(f"workers {workers}: give 0 or more")
        if not 0 <= rank < world:
            raise UserError(f"rank {rank}: give 0 to {world - 1}, as the world has {world} processes")
        if readers < 1 or readers % world:
            raise UserError(f"readers {readers}: give a multiple of the {world} processes that train")
        self._make, self._count = make, readers
        self._parts = list(range(rank, readers, world))
        self._workers = min(workers, len(self._parts))
        self._states: dict[int, dict[str, Any] | None] = dict.fromkeys(self._parts)
        self._turn = 0
        self._items: Iterator[Any] | None = None
        self._near: FittedImages | None = None  # for `read`

    @property
    def report(self) -> Report:
        """The counts of all readers, as of their last sample."""
        total = Report()
        for state in self._states.values():
            if state is not None:
                total.add(Report.from_dict(state["reader"]["report"]))
        return total

    def __iter__(self) -> Iterator[Fitted]:
        return self

    def __next__(self) -> Fitted:
        if self._items is None:
            with interrupts_held():
                self._items = iter(self._start())
        item = next(self._items)
        while item is None:  # workers have unequal numbers of readers
            item = next(self._items)
        if isinstance(item, str):
            raise UserError(item)
        part, fitted, state = item
        self._states[part] = state
        self._turn = (self._parts.index(part) + 1) % len(self._parts)
        taken: Fitted = fitted
        return taken

    def read(self, place: Place) -> Fitted:
        """The sample at a place, of any reader; nothing is counted. Raises UserError where it is gone."""
        if self._near is None:
            self._near = self._make(0, self._count)
        return self._near.read(place)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last sample: every reader's, and whose turn it is. Plain types."""
        return {"readers": {str(part): state for part, state in self._states.items()}, "turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a position: the same samples follow as would have then.

        Raises UserError where readers of this process are missing in it; for other settings, when the next sample is
        asked for.
        """
        if missing := [part for part in self._parts if str(part) not in state["readers"]]:
            raise UserError(f"the saved position in the data lacks readers {missing}; use the same number of readers")
        self.close()
        self._states, self._turn = {part: state["readers"][str(part)] for part in self._parts}, state["turn"]

    def close(self) -> None:
        """End the workers. The next sample starts new ones where they were."""
        self._items = None

    def _start(self) -> Any:
        """The readers' items in turn, from the one whose turn it is."""
        order = self._parts[self._turn :] + self._parts[: self._turn]
        readers = _Readers(self._make, self._count, [(part, self._states[part]) for part in order])
        if not self._workers:
            return readers
        return DataLoader(
            readers,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=_AHEAD,
            multiprocessing_context="spawn",
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
        )


def _as_it_is(item: Any) -> Any:
    return item


def _begin_worker(number: int) -> None:
    """Give a worker a process group of its own: a stop signal to the trainer's is for the trainer alone to answer.

    A kill of that group misses the worker too, so it watches the trainer. torch's own watch ends the reading, but the
    process would then wait for ever until somebody takes what it has read.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    end_with_parent()


class _Readers(IterableDataset[Any]):
    """In worker w of W, the samples of readers w, w + W, ... in turn with their positions.

    A loader takes an item of each worker in turn, so workers with a reader less put None in its place. A UserError
    comes as its message.
    """

    def __init__(self, make: Make, count: int, readers: Sequence[tuple[int, dict[str, Any] | None]]) -> None:
        self._make, self._count, self._readers = make, count, readers

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._in_turn()
        except UserError as error:
            yield str(error)

    def _in_turn(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        mine = [self._begin(part, state) for part, state in self._readers[number::workers]]
        short = -(-len(self._readers) // workers) - len(mine)
        while True:
            for part, samples in mine:
                if (fitted := next(samples, None)) is None:
                    return
                yield part, fitted, samples.state_dict()
            for _ in range(short):
                yield None

    def _begin(self, part: int, state: dict[str, Any] | None) -> tuple[int, FittedImages]:
        samples = self._make(part, self._count)
        if state is not None:
            samples.load_state_dict(state)
        return part, samples
