"""Keep sidecars: which samples of each shard to train on, judged once and written beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow

from cogview3.checkpoints import differences
from cogview3.config import UserError
from cogview3.data.entries import admit
from cogview3.data.filters import THUMBNAIL, Filters, Seen, difference_hash, judge_size, thumbnail
from cogview3.data.groups import Shard, all_groups
from cogview3.data.parallel import over_shards
from cogview3.data.report import Filtered, Report, Skipped
from cogview3.data.sidecars import clear_abandoned, read_captions, read_columns, read_notes, write_sidecar

_DUPLICATE = "duplicate"
_SCHEMA = pyarrow.schema([("key", "str"), ("keep", "bool"), ("reason", "str"), ("hash", "u8"), ("colors", "binary")])


@dataclass
class Judged:
    """The samples of a shard: key, reason to leave it out ("" to keep), hash and colors (None: unknown) of each."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def write_keep(
    shards: Sequence[Shard],
    filters: Filters,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Report, int]:
    """Judge every sample and write a keep sidecar (key, keep, reason, hash, colors) beside each shard.

    Sidecars appear whole; those made with the same filters are kept, so that an interrupted call resumes where it
    stopped, but for their marks of duplicates: of pictures that are alike, the first in the order of the shards is
    kept. That a picture has no caption yet is no verdict on it.

    `progress` is given the number of finished shards; `overwrite` replaces sidecars that were made with other filters.
    Returns the counts over all shards, and the number of those that were finished before.

    Raises UserError for a sidecar made with other filters, naming what differs; for a damaged one; and for a shard, or
    a file of it, that is missing or cannot be read, for which nothing is written.
    """
    settings = filters.model_dump(mode="json")
    clear_abandoned([shard.sidecar("keep") for shard in shards])
    finished = {}
    for shard in shards:
        if (notes := _notes(shard.sidecar("keep"), settings, overwrite)) is not None:
            finished[shard.address] = notes
    report, seen = Report(), Seen(filters.distance)
    todo = [shard for shard in shards if shard.address not in finished]
    with over_shards(partial(judge, filters=filters), todo, workers) as results:
        for number, shard in enumerate(shards):
            address = shard.sidecar("keep")
            if shard.address in finished:
                report.add(_take_up(address, finished[shard.address], seen if filters.duplicates else None))
            else:
                judged = next(results)
                _notes(address, settings, overwrite)  # another process may have judged it otherwise meanwhile
                if filters.duplicates:
                    _mark_duplicates(judged, seen)
                _write(address, judged, settings)
                report.add(judged.report)
            progress(number + 1)
    return report, len(finished)


def _notes(address: str, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """What a finished sidecar notes of itself; None where it is still to be made."""
    notes = read_notes(address)
    if notes is None:
        return None
    if shown := differences(notes.get("settings", {}), settings):
        if overwrite:
            return None
        raise UserError(f"{address} was made with other filters: {shown}; give the same ones, or --overwrite")
    return notes if "report" in notes else None


def _take_up(address: str, notes: dict[str, Any], seen: Seen | None) -> Report:
    """A finished sidecar's report; given what was seen before it, its duplicates are judged again."""
    if seen is None:
        return Report.from_dict(notes["report"])
    judged = _read(address, notes)
    before = [row["reason"] for row in judged.rows]
    _mark_duplicates(judged, seen)
    if [row["reason"] for row in judged.rows] != before:
        _write(address, judged, notes["settings"])
    return judged.report


def judge(shard: Shard, filters: Filters) -> Judged:
    """Every sample of a shard, duplicates aside. An earlier keep sidecar is not looked at.

    Raises UserError as `groups.all_groups` does.
    """
    judged = Judged()
    captions = read_captions(shard)
    for group in all_groups(shard):
        value = colors = None
        try:
            picture = (entry := admit(group, captions, None, filters, needs_caption=False)).decode()
            if reason := judge_size(filters, *picture.image.size):
                raise Filtered(reason)
            if filters.duplicates:
                value, colors = difference_hash(picture.image), thumbnail(picture.image)
            reason = ""
            judged.report.give(entry.corrected + picture.corrected)
        except Skipped as skipped:
            judged.report.skip(skipped)
            reason = str(skipped)
        if group.key:  # a cut tar has no key
            judged.rows.append({"key": group.key, "reason": reason, "hash": value, "colors": colors})
    return judged


def _mark_duplicates(judged: Judged, seen: Seen) -> None:
    """Leave out what looks like something seen, and take back in what was left out for looking like something else.

    Samples with a hash have nothing else against them.
    """
    filtered = judged.report.filtered
    for row in judged.rows:
        if row["hash"] is None:
            continue
        before, now = bool(row["reason"]), seen.add(row["hash"], row["colors"] or b"")
        row["reason"] = _DUPLICATE if now else ""
        judged.report.samples += before - now
        filtered[_DUPLICATE] += now - before
    if not filtered[_DUPLICATE]:
        del filtered[_DUPLICATE]


def _read(address: str, notes: dict[str, Any]) -> Judged:
    """A finished sidecar's samples."""
    columns = read_columns(address, ("key", "reason", "hash", "colors"))
    if any(len(colors) != THUMBNAIL for colors in columns["colors"] if colors is not None):
        raise UserError(f"{address}: damaged (thumbnails of other sizes); delete it and make it again")
    columns["reason"] = [reason or "" for reason in columns["reason"]]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Judged(rows, Report.from_dict(notes["report"]))


def _write(address: str, judged: Judged, settings: dict[str, Any]) -> None:
    table = pyarrow.Table.from_pylist([{**row, "keep": not row["reason"]} for row in judged.rows], _SCHEMA)
    write_sidecar(address, table, {"settings": settings, "report": judged.report.to_dict()})
