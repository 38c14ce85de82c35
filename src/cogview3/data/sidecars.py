"""Parquet files beside a shard, joined by key: `00000.captions.parquet` and `00000.keep.parquet`."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from cogview3.checkpoints import clear_abandoned as clear_abandoned_in
from cogview3.checkpoints import whole_file
from cogview3.config import UserError
from cogview3.data import addresses
from cogview3.data.addresses import NotAFileError, filesystem, is_local, parent
from cogview3.data.groups import Shard
from cogview3.data.names import plain_key
from cogview3.data.report import NO_CAPTION

_NOTES = b"cogview3"


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


def read_column(address: str, column: str) -> list[Any]:
    """One column of a sidecar that is there. Raises UserError as `read_captions` does."""
    return read_columns(address, (column,))[column]


def read_columns(address: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a sidecar that is there. Raises UserError as `read_captions` does."""
    found = _read(address, columns)
    if found is None:
        raise UserError(f"{address}: not found")
    return found


def _read(address: str, columns: Sequence[str]) -> dict[str, list[Any]] | None:
    try:
        with addresses.open_address(address) as file:
            return parquet.ParquetFile(file).read(list(columns), use_threads=False).select(columns).to_pydict()
    except FileNotFoundError:
        return None
    except (pyarrow.ArrowException, KeyError, NotAFileError) as error:
        raise UserError(
            f"{address}: damaged, or without the columns {', '.join(columns)} ({error}); delete it and make it again"
        ) from None


def read_notes(address: str) -> dict[str, Any] | None:
    """What `write_sidecar` noted of how a sidecar was made; None where there is no sidecar, {} where it does not say.

    Raises UserError for a damaged file.
    """
    try:
        with addresses.open_address(address) as file:
            return json.loads((parquet.read_schema(file).metadata or {}).get(_NOTES, b"{}"))
    except FileNotFoundError:
        return None
    except (pyarrow.ArrowException, ValueError, RecursionError, NotAFileError) as error:
        raise UserError(f"{address}: damaged ({error}); delete it and make it again") from None


def clear_abandoned(files: Sequence[str]) -> None:
    """Delete what killed commands left of files that they were writing, in the folders of these on this machine."""
    for folder in {parent(address) for address in files}:
        fs, path = filesystem(folder)
        if is_local(fs):
            clear_abandoned_in(Path(path))


def write_sidecar(address: str, table: pyarrow.Table, notes: Mapping[str, Any]) -> None:
    """Write a parquet file whole or not at all, with notes (plain types) on how it was made in its metadata.

    At a remote address it is sent in one piece, which object stores show only when it is there.
    """
    table = table.replace_schema_metadata({_NOTES: json.dumps(notes, sort_keys=True).encode()})
    fs, path = filesystem(address)
    if is_local(fs):
        with whole_file(Path(path)) as temporary:
            parquet.write_table(table, temporary)
        return
    content = io.BytesIO()
    parquet.write_table(table, content)
    fs.pipe_file(path, content.getvalue())
