"""Re-captioning of whole sets: one task a shard, whose result is its captions sidecar, written whole.

Tasks are the same on any engine (`engines`). A shard that was begun is taken up after its last batch, a finished one
is left alone, so the same call resumes after any interruption and changes nothing once all is done.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow

from cogview3 import __version__
from cogview3.captions.parts import Part, claimed
from cogview3.captions.rows import FAILED, OK, UNANSWERED, CannotGoOn, Job, Row, Sample, Writer, admitted
from cogview3.captions.triplets import whole_address
from cogview3.checkpoints import differences
from cogview3.config import UserError
from cogview3.data.folders import FolderShard
from cogview3.data.groups import Shard
from cogview3.data.report import Broken, Filtered
from cogview3.data.sidecars import CAPTIONS, read_columns, read_keep, read_notes, write_sidecar
from cogview3.data.tars import TarShard


@dataclass(frozen=True)
class Task:
    """What is done to each shard; pickled."""

    job: Job  # who writes
    settings: Mapping[str, Any]  # the job's, found once
    again: bool = False  # whether images that failed are tried again
    overwrite: bool = False  # whether sidecars of other settings are replaced

    @property
    def version(self) -> str:
        """Of the package, and 8 digits of the settings, for the sidecar."""
        digest = hashlib.sha256(repr(sorted(self.settings.items())).encode()).hexdigest()
        return f"{__version__}+{digest[:8]}"


@dataclass(frozen=True)
class Told:
    """Some images of a shard are done: how many, of which so many failed, of so many tokens; and the share of it.

    `silent` is the last reason of those that the endpoint gave no answer for, `answered` how many it did.
    """

    images: int
    failed: int
    tokens: int
    share: float
    silent: str = ""
    answered: int = 0


@dataclass(frozen=True)
class Finished:
    """A shard's sidecar is there."""

    notes: Mapping[str, Any]


@dataclass(frozen=True)
class GivenUp:
    """A shard could not be done."""

    reason: str


Message = Told | Finished | GivenUp


def caption_shard(shard: Shard, task: Task, writer: Writer) -> Iterator[Message]:
    """Write the captions sidecar of a shard, telling how it goes.

    Raises UserError or CannotGoOn where no shard could be done.
    """
    with claimed(shard):
        done = finished(shard, task)
        yield from [Finished(done)] if done is not None else _caption(shard, task, writer)


@dataclass
class _Reading:
    """A shard on its way to the writer."""

    shard: Shard
    task: Task
    known: Mapping[str, Row]  # rows of earlier runs by key
    total: int | None  # what the offsets of its groups go up to, in folders their numbers; None where nobody knows
    order: list[str] = field(default_factory=list)  # keys in the shard's order
    rows: dict[str, Row] = field(default_factory=dict)  # of this run and the earlier ones
    faults: Counter[str] = field(default_factory=Counter)  # of what has no row, by reason
    filtered: Counter[str] = field(default_factory=Counter)  # likewise
    broken: int = 0  # how many rows are of images that no writer saw
    gone: str = ""  # why the shard itself, or its rest, could not be read now; "" where it could
    share: float = 0.0  # of the shard that was read
    unchanged: bool = True  # as large as when it was captioned; if not, a picture may be another one of the same key

    def samples(self) -> Iterator[Sample]:
        """Those that can be captioned, also the ones that are; of the others, the rows."""
        keep, keys = read_keep(self.shard), set()
        for group in self.shard.groups():
            place = group.offset if isinstance(group.offset, int) else group.number  # folders have keys for offsets
            if self.total and place >= 0:
                self.share = min(1.0, place / self.total)
            if not group.key or group.key in keys:
                self.gone = self.gone or (group.fault if group.error else "")
                self.faults[group.fault or "same key twice"] += 1
                continue
            keys.add(group.key)
            try:
                entry = admitted(group, keep)
            except Filtered as reason:
                self.filtered[str(reason)] += 1
                continue
            except Broken as reason:
                status = UNANSWERED if group.error else FAILED  # what could not be read is tried again
                self.rows[group.key] = Row(group.key, "", None, status, str(reason))
                self.order.append(group.key)
                self.broken += 1
                continue
            self.order.append(entry.key)
            known = self.known.get(entry.key)
            same = known is not None and known.old == entry.old and (self.unchanged or bool(entry.old))
            done = False
            if known is not None and same and self._holds(known):
                self.rows[entry.key], done = known, True
            yield Sample(entry, done)

    def _holds(self, row: Row) -> bool:
        return row.status != UNANSWERED and (row.status == OK or not self.task.again)


def _caption(shard: Shard, task: Task, writer: Writer) -> Iterator[Message]:
    part = Part(shard, task.settings, task.overwrite)
    earlier, unchanged = _earlier(shard, task)
    reading = _Reading(shard, task, earlier | part.rows, _length(shard), unchanged=unchanged)
    yield Told(0, 0, 0, 0.0)
    broken = 0
    for rows in writer.run(reading.samples()):
        new = [row for row in rows if row.key not in reading.rows]
        reading.rows.update({row.key: row for row in new})
        if new:
            part.add(new)
        unseen, broken = reading.broken - broken, reading.broken
        failed = sum(row.status != OK for row in new)
        silent = [row.error for row in new if row.status == UNANSWERED]
        yield Told(
            len(new) + unseen,
            failed + unseen,
            sum(row.tokens for row in new),
            reading.share,
            silent[-1] if silent else "",
            len(new) - len(silent),
        )
    yield Told(reading.broken - broken, reading.broken - broken, 0, 1.0)
    if reading.gone:
        yield GivenUp(reading.gone)
        return
    rows = [reading.rows[key] for key in reading.order]
    notes = {
        "settings": dict(task.settings),
        "state": state(shard),
        "counts": dict(Counter(row.status for row in rows)),
        "faults": dict(reading.faults),
        "filtered": dict(reading.filtered),
    }
    made = {"model": task.job.name, "version": task.version}
    table = pyarrow.Table.from_pylist([row.to_dict() | made for row in rows], CAPTIONS)
    write_sidecar(shard.sidecar("captions"), table, notes)
    part.remove()
    yield Finished(notes)


def finished(shard: Shard, task: Task) -> dict[str, Any] | None:
    """What the finished sidecar of a shard notes; None where there is something left to do.

    Raises UserError for a sidecar of other settings, unless it may be overwritten; for a damaged one.
    """
    address = shard.sidecar("captions")
    notes = read_notes(address)
    if notes is None:
        return None
    if notes.get("settings") != dict(task.settings):
        if task.overwrite:
            return None
        what = differences(notes.get("settings", {}), task.settings)
        raise UserError(f"{address} was made with other settings: {what}; give the same ones, or --overwrite")
    failed = sum(count for status, count in notes["counts"].items() if status != OK)
    left = notes["counts"].get(UNANSWERED) or (task.again and failed)
    return None if left or notes["state"] != state(shard) else notes


def _earlier(shard: Shard, task: Task) -> tuple[dict[str, Row], bool]:
    """Rows of a sidecar with the same settings, of a shard that was cut or changed, or whose failures are retried.

    And whether the shard is as it was then.
    """
    address = shard.sidecar("captions")
    notes = read_notes(address)
    if notes is None or notes.get("settings") != dict(task.settings):
        return {}, True
    names = ("key", "old", "new", "status", "error")
    rows = {values[0]: Row(*values) for values in zip(*read_columns(address, names).values(), strict=True)}
    return rows, notes["state"] == state(shard)


def state(shard: Shard) -> int | None:
    """What changes when a shard does; None where it is not there."""
    try:
        return shard.size()
    except FileNotFoundError:
        return None


def _length(shard: Shard) -> int | None:
    """What offsets of a shard's groups, in folders their numbers, go up to; None where that is not known."""
    if isinstance(shard, FolderShard):
        return shard.length
    return state(shard) if isinstance(shard, TarShard) else None


@dataclass
class Standing:
    """How a whole job goes."""

    of: int  # shards in all
    shards: int = 0  # finished ones
    share: float = 0.0  # of all shards that is done, begun ones included; 0 to `of`
    images: int = 0  # of this run
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0  # since the first worker began, its model loaded; or 0


Engine = Callable[[Task, Sequence[Shard]], Iterator[tuple[int, Message]]]
"""Does tasks, and tells the number of the shard with each message; the last of a shard is no `Told`."""


def recaption(
    shards: Sequence[Shard],
    job: Job,
    engine: Engine,
    *,
    again: bool = False,
    overwrite: bool = False,
    progress: Callable[[Standing], None] = lambda standing: None,
) -> dict[str, Any]:
    """Write the captions sidecar of every shard that has none.

    `engine` says where (`engines`), `again` tries images again that failed, `overwrite` replaces sidecars of other
    settings, `progress` is told of each step.

    Returns counts: shards, those finished before, images and tokens of this run and how many a second, and the shards
    that were given up, with reasons.

    Raises:
        UserError: a sidecar of other settings, named with what differs; a model that cannot be used.
        CannotGoOn: the endpoint is gone, answered nothing at all, or its budget is spent.
    """
    task = Task(job, dict(job.settings), again, overwrite)
    shards = [replace(shard, address=whole_address(shard.address)) for shard in shards]
    left = [number for number, shard in enumerate(shards) if finished(shard, task) is None]
    standing = Standing(len(shards), shards=len(shards) - len(left), share=len(shards) - len(left))
    progress(standing)
    shares: dict[int, float] = {}
    given_up: dict[str, str] = {}
    began, answered, silent = None, 0, ""
    for number, message in engine(task, [shards[number] for number in left]) if left else ():
        began = began or time.monotonic()
        if isinstance(message, Told):
            shares[number] = message.share
            answered, silent = answered + message.answered, message.silent or silent
            standing.images += message.images
            standing.failed += message.failed
            standing.tokens += message.tokens
        else:
            shares[number] = 1.0
            standing.shards += 1
            if isinstance(message, GivenUp):
                given_up[shards[left[number]].address] = message.reason
        standing.share = len(shards) - len(left) + sum(shares.values())
        standing.seconds = time.monotonic() - began
        progress(standing)
    if silent and not answered:
        raise CannotGoOn(f"{silent}; and so for every picture of this run, which a later one asks about again")
    return {
        "shards": len(shards),
        "finished_before": len(shards) - len(left),
        "images": standing.images,
        "failed": standing.failed,
        "tokens": standing.tokens,
        "seconds": round(standing.seconds, 1),
        "images_a_second": round(standing.images / standing.seconds, 2) if standing.seconds else None,
        "tokens_a_second": round(standing.tokens / standing.seconds, 1) if standing.seconds else None,
        "given_up": given_up,
    }
