"""The order of entries: shards shuffled by epoch, entries within a buffer, split among readers, resumable."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cogview3.checkpoints import differences
from cogview3.config import UserError
from cogview3.data import draws
from cogview3.data.entries import Entry
from cogview3.data.groups import Group, Shard

Item = TypeVar("Item")


class Place(NamedTuple):
    """Where an entry lies: source and shard by number, offset in the shard; and the epoch it is of.

    Epochs of a reader that reads everything, since its own part holds no usable sample, are negative, and no other's.
    """

    source: int
    shard: int
    offset: int | str
    epoch: int


def check_identity(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a saved position of other settings. Raises UserError naming what differs."""
    if shown := differences(theirs, ours, ours):
        raise UserError(f"the saved position in the data is of other {what}: {shown}; use the same settings")


def read_again(places: Sequence[Place], read: Callable[[Place], Item]) -> list[tuple[Place, Item]]:
    """What can still be read of places, in their order."""
    found: dict[Place, Item] = {}
    for place in sorted(places):  # in the order in which they lie
        with suppress(UserError):
            found[place] = read(place)
    return [(place, found[place]) for place in places if place in found]


class Stream:
    """One reader's part of a source, epoch after epoch.

    In an epoch, the units (shards, or pieces of them where readers are more than shards) are permuted by
    (seed, source, epoch) and dealt out to the readers in turn. A reader fills a buffer of entries and gives one at
    random each time; the buffer runs empty at the end of an epoch, so an epoch is a permutation. A buffer of 0 keeps
    the order of the shards and of what they hold. `widen` is for a reader whose part holds nothing usable.

    `admit` gives the entry of a group of the shard of that number, None to leave it out; this reader is `part` of
    `parts`.
    """

    def __init__(
        self,
        source: int,
        shards: Sequence[Shard],
        admit: Callable[[int, Group], Entry | None],
        *,
        seed: int,
        buffer: int,
        part: int,
        parts: int,
    ) -> None:
        self.source = source
        self.epoch = 0
        self._shards = shards
        self._admit = admit
        self._seed = seed
        self._size = buffer
        self._part, self._parts = part, parts
        self._pieces = -(-parts // len(shards))
        self._whole = False
        self._start()

    def _start(self) -> None:
        """Begin the epoch."""
        self._unit = self._next = self._drawn = 0  # the next unit, the next group in it, entries given
        self._groups: Iterator[Group] | None = None
        self._buffer: list[tuple[Place, Entry]] = []
        count = len(self._shards) * self._pieces
        own = [self._part] if self._whole else []
        order = np.random.default_rng([self._seed, self.source, self.epoch, *own]).permutation(count)
        part, parts = (0, 1) if self._whole else (self._part, self._parts)
        self._units = (order if self._size else np.arange(count))[part::parts]

    def widen(self) -> None:
        """Read everything from the next epoch on, not this reader's part alone."""
        if not self._whole and self._parts > 1:
            self._whole = True
            self._start()

    def take(self) -> tuple[Place, Entry] | None:
        """The next entry; None once when an epoch ends."""
        while len(self._buffer) < max(1, self._size) and (entry := self._read()) is not None:
            self._buffer.append(entry)
        if not self._buffer:
            self.epoch += 1
            self._start()
            return None
        draw = draws.number("buffer", self._seed, self.source, self._part, self.epoch, self._drawn)
        chosen = draw % len(self._buffer)
        self._drawn += 1
        self._buffer[chosen], self._buffer[-1] = self._buffer[-1], self._buffer[chosen]
        return self._buffer.pop()

    def _read(self) -> tuple[Place, Entry] | None:
        """The next admitted entry in reading order; None at the end of the epoch."""
        while self._unit < len(self._units):
            shard, piece = divmod(int(self._units[self._unit]), self._pieces)
            if self._groups is None:
                order = draws.number(self._seed, self.source, shard, self.epoch) if self._size else None
                self._groups = self._shards[shard].groups(self._next, piece, self._pieces, order)
            for group in self._groups:
                self._next = group.number + 1
                if (entry := self._admit(shard, group)) is not None:
                    return Place(self.source, shard, group.offset, self._marked_epoch()), entry
            self._groups = None
            self._unit += 1
            self._next = 0
        return None

    def _marked_epoch(self) -> int:
        return -1 - (self.epoch * self._parts + self._part) if self._whole else self.epoch

    def state_dict(self) -> dict[str, Any]:
        """The position, in plain types: epoch, unit, group, entries given, and where those in the buffer lie."""
        return {
            "epoch": self.epoch,
            "whole": self._whole,
            "unit": self._unit,
            "next": self._next,
            "drawn": self._drawn,
            "buffer": [[place.shard, place.offset] for place, _ in self._buffer],
        }

    def load_state_dict(self, state: Mapping[str, Any], read: Callable[[Place], Entry]) -> int:
        """Resume from a position that `state_dict` gave; `read` reads the buffer's entries again.

        Returns how many of these are not there any more; the others follow as they would have.
        """
        self.epoch, self._whole = state["epoch"], state["whole"]
        self._start()
        self._unit, self._next, self._drawn = state["unit"], state["next"], state["drawn"]
        places = [Place(self.source, shard, offset, self._marked_epoch()) for shard, offset in state["buffer"]]
        self._buffer = read_again(places, read)
        return len(places) - len(self._buffer)
