"""Batches read by worker processes, in an order and from a position that do not depend on their speed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cogview3.config import UserError
from cogview3.data.buckets import Batch, BucketBatches
from cogview3.data.report import Report

Make = Callable[[int, int], BucketBatches]
"""Batches of one reader, given its part and the number of parts."""


class WorkerBatches:
    """Iterator over the batches of several readers in processes of their own, one batch of each in turn.

    Process r of R with W workers takes parts r W to r W + W - 1 of R W. Each batch brings its reader's position along,
    so that the position of what was given out is known although workers read ahead. Meant for readers that go on for
    ever; where one ends, the others go on without it.

    Args:
        make: makes the batches of a part; pickled, so a function of a module, or a partial of one.
        workers: processes; 0 reads in this one.
        rank: this process's number among those that train.
        world: how many of them there are.
        prefetch: batches that each worker reads ahead.

    Raises:
        UserError: a value out of range; what the readers raise.
    """

    def __init__(self, make: Make, workers: int, *, rank: int = 0, world: int = 1, prefetch: int = 2) -> None:
        if workers < 0:
            raise UserError(f"workers {workers}: give 0 or more")
        if not 0 <= rank < world:
            raise UserError(f"rank {rank}: give 0 to {world - 1}, as the world has {world} processes")
        if prefetch < 1:
            raise UserError(f"prefetch {prefetch}: give 1 or more")
        self._make, self._workers, self._prefetch = make, workers, prefetch
        self._readers = max(1, workers)
        self._parts = [(rank * self._readers + number, world * self._readers) for number in range(self._readers)]
        self._states: list[dict[str, Any] | None] = [None] * self._readers
        self._turn = 0
        self._batches: Iterator[Any] | None = None

    @property
    def report(self) -> Report:
        """The counts of all readers, as of their last batch."""
        total = Report()
        for state in self._states:
            if state is not None:
                total.add(Report.from_dict(state["reader"]["report"]))
        return total

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self._start())
        item = next(self._batches)
        if isinstance(item, str):
            raise UserError(item)
        reader, batch, state = item
        self._states[reader] = state
        self._turn = (reader + 1) % self._readers
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch: every reader's, and whose turn it is. Plain types."""
        return {"states": list(self._states), "turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position: the same batches follow as would have then.

        Raises UserError for another number of workers; for other settings, when the next batch is asked for.
        """
        if len(state["states"]) != self._readers:
            raise UserError(
                f"the saved position in the data is of {len(state['states'])} workers, here are {self._readers}; "
                "use the same number"
            )
        self.close()
        self._states, self._turn = list(state["states"]), state["turn"]

    def close(self) -> None:
        """End the workers. The next batch starts new ones where they were."""
        self._batches = None

    def _start(self) -> Any:
        """The readers' items in turn, from the one whose turn it is."""
        order = [(self._turn + number) % self._readers for number in range(self._readers)]
        readers = _Readers(self._make, [(number, *self._parts[number], self._states[number]) for number in order])
        if not self._workers:
            return readers
        return DataLoader(
            readers,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=self._prefetch,
            multiprocessing_context="spawn",
        )


class _Readers(IterableDataset):
    """In worker n, the n-th reader's batches with their positions; a UserError comes as its message."""

    def __init__(self, make: Make, readers: list[tuple[int, int, int, dict[str, Any] | None]]) -> None:
        self._make, self._given = make, readers

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, part, parts, state = self._given[worker.id if worker else 0]
        try:
            batches = self._make(part, parts)
            if state is not None:
                batches.load_state_dict(state)
            for batch in batches:
                yield number, batch, batches.state_dict()
        except UserError as error:
            yield str(error)
