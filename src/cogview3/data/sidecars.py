"""Parquet files beside a shard, joined by key: `00000.captions.parquet` and `00000.keep.parquet`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from cogview3.checkpoints import clear_abandoned as clear_abandoned_in
from cogview3.config import UserError
from cogview3.data.addresses import filesystem, is_local, parent, whole_at
from cogview3.data.groups import Shard
from cogview3.data.names import plain_key
from cogview3.data.report import NO_CAPTION, Report
from cogview3.data.tables import DAMAGE, TableFile, UnreadError
from cogview3.errors import one_line

CAPTIONS = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("key", "old", "new", "model", "version", "status", "error")]
)
"""Columns of a captions sidecar."""

_NOTES = b"cogview3"
_TYPES: dict[str, type] = {"keep": bool, "hash": int, "colors": bytes}  # of columns; the others hold text


def read_captions(shard: Shard) -> dict[str, str] | None:
    """New captions by key, of rows with status "ok" and a caption that is not blank; None without a sidecar.

    Raises UserError for a damaged file or one that lacks a column.
    """
    columns = _read(shard.sidecar("captions"), ("key", "new", "status"))
    if columns is None:
        return None
    rows = zip(columns["key"], columns["new"], columns["status"], strict=True)
    return {plain_key(key): new.strip() for key, new, status in rows if status == "ok" and new and new.strip()}


def read_keep(shard: Shard) -> dict[str, str] | None:
    """Of each key the reason to leave it out, "" to keep it; None without a sidecar.

    A key that came twice is kept if any of its rows says so: the repetition is left out by the reader in any case. That
    a caption was missing is no reason, as one may have been written since. Raises UserError as `read_captions` does.
    """
    columns = _read(shard.sidecar("keep"), ("key", "keep", "reason"))
    if columns is None:
        return None
    reasons: dict[str, str] = {}
    for name, keep, reason in zip(columns["key"], columns["keep"], columns["reason"], strict=True):
        key, keep = plain_key(name), keep or reason == NO_CAPTION
        if keep or key not in reasons:
            reasons[key] = "" if keep else reason or "left out"
    return reasons


def read_columns(address: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a sidecar that is there. Raises UserError as `read_captions` does."""
    found = _read(address, columns)
    if found is None:
        raise UserError(f"{address}: not found")
    return found


def _read(address: str, columns: Sequence[str]) -> dict[str, list[Any]] | None:
    with _opened(address) as file:
        if file is None:
            return None
        table = parquet.ParquetFile(file).read(list(columns), use_threads=False).select(columns)
        read: dict[str, list[Any]] = table.filter(table["key"].is_valid()).to_pydict()  # a row is of its key
        for name, values in read.items():
            kind = _TYPES.get(name, str)
            if not all(isinstance(value, kind) or value is None for value in values):
                raise ValueError(f"column {name} holds other things than {kind.__name__}")
        return read


def read_notes(address: str) -> dict[str, Any] | None:
    """What `write_sidecar` noted of how a sidecar was made; None where there is no sidecar, {} where it does not say.

    Raises UserError for a damaged file.
    """
    with _opened(address) as file:
        return None if file is None else parse_notes((parquet.read_schema(file).metadata or {}).get(_NOTES, b"{}"))


@contextmanager
def _opened(address: str) -> Iterator[TableFile | None]:
    """A sidecar; None where there is none. Whatever is wrong with it leaves as a UserError that names it."""
    try:
        with closing(TableFile(address)) as file:
            yield file
    except UnreadError as problem:
        fault, error = problem.args
        if fault != "missing table":
            raise UserError(f"{address}: {fault} {f'({error})' if error else ''}".strip()) from None
        yield None
    except UserError:
        raise
    except DAMAGE as error:
        message = f"{address}: damaged or of another kind ({one_line(error)})"
        raise UserError(f"{message}; delete it and make it again") from None


def parse_notes(content: bytes) -> dict[str, Any]:
    """Notes from their JSON. Raises ValueError for what no command notes."""
    try:
        notes = json.loads(content)
    except RecursionError:
        raise ValueError("its notes are nested too deeply") from None
    tables = ("settings", "preprocessing", "report", "counts", "faults", "filtered")
    if not isinstance(notes, dict) or not all(isinstance(notes.get(name, {}), dict) for name in tables):
        raise ValueError("its notes are no notes")
    Report.from_dict(notes.get("report", Report().to_dict()))
    return notes


def clear_abandoned(files: Sequence[str]) -> None:
    """Delete what killed commands left of files that they were writing, in the folders of these on this machine."""
    for folder in {parent(address) for address in files}:
        fs, path = filesystem(folder)
        if is_local(fs):
            clear_abandoned_in(Path(path))


def write_sidecar(address: str, table: pyarrow.Table, notes: Mapping[str, Any]) -> None:
    """Write a parquet file whole or not at all, with notes (plain types) on how it was made in its metadata."""
    table = table.replace_schema_metadata({_NOTES: json.dumps(notes, sort_keys=True).encode()})
    with whole_at(address) as temporary:
        parquet.write_table(table, temporary)
