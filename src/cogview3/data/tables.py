"""Tables of pictures with captions: parquet files, and the Arrow files that Hugging Face's `datasets` saves.

Both are read with pyarrow alone. A row is a sample; its key is its number.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow
from pyarrow import ipc, parquet, types

from cogview3.config import UserError
from cogview3.data.formats import Group, open_address, unread

IMAGES = ("image", "img", "picture", "jpg", "png", "webp")
CAPTIONS = ("text", "caption", "txt", "prompt")
"""Names of columns under which pictures and captions are looked for, in this order, without regard to case."""

_MAGIC = {b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}


@dataclass(frozen=True)
class TableShard:
    """A .parquet file, or an .arrow file of a data set saved with `save_to_disk`.

    The column of pictures holds encoded ones: bytes, or `datasets`' structure of bytes and path.
    """

    address: str

    def sidecar(self, kind: str) -> str:
        """`a.parquet` has `a.captions.parquet` beside it."""
        return f"{self.address.rpartition('.')[0]}.{kind}.parquet"

    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """As `Shard.groups`; a table keeps its own order. Raises UserError for a table without such columns."""
        number = -1
        try:
            for start, batch in self._batches(first):
                columns = _columns(self.address, batch.schema)
                for row in range(batch.num_rows):
                    number = start + row
                    if number >= first and number % pieces == piece:
                        yield _group(number, batch.slice(row, 1).to_pylist()[0], columns)
            return
        except _UnreadError as problem:
            fault, error = problem.args
        except (pyarrow.ArrowException, OSError):
            fault, error = "damaged table", ""
        if piece == 0 and number + 1 >= first:
            yield Group(number + 1, -1, "", fault=fault, error=error)

    def at(self, offset: int) -> Group:
        """As `Shard.at`."""
        try:
            for start, batch in self._batches(offset):
                if start <= offset < start + batch.num_rows:
                    row = batch.slice(offset - start, 1).to_pylist()[0]
                    return _group(offset, row, _columns(self.address, batch.schema))
        except (_UnreadError, pyarrow.ArrowException, OSError):
            pass
        raise UserError(f"{self.address}: no row {offset} any more; the table was changed")

    def _batches(self, first: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Number of the first row, and rows, from those on that hold row `first`."""
        start = 0
        with closing(_TableFile(self.address)) as file:
            if self.address.endswith(".arrow"):
                for batch in ipc.open_stream(file):
                    if start + batch.num_rows > first:
                        yield start, batch
                    start += batch.num_rows
                return
            table = parquet.ParquetFile(file)
            for number in range(table.num_row_groups):
                rows = table.metadata.row_group(number).num_rows
                if start + rows > first:
                    for batch in table.iter_batches(64, [number], use_threads=False):
                        yield start, batch
                        start += batch.num_rows
                else:
                    start += rows


class _UnreadError(Exception):
    """A table that the system could not open or read; of what is damaged, Arrow tells by OSError."""


class _TableFile:
    """A file for Arrow to read, which raises _UnreadError with `Group.fault` and `Group.error`."""

    def __init__(self, address: str) -> None:
        try:
            self._file = open_address(address)
        except OSError as error:
            raise _UnreadError(*unread("table", error)) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, *size: int) -> bytes:
        """As a file's."""
        try:
            return self._file.read(*size)
        except OSError as error:
            raise _UnreadError(*unread("table", error)) from None


def _columns(address: str, schema: pyarrow.Schema) -> tuple[str, str | None, list[str]]:
    """The columns of pictures, of captions, and those that are metadata."""
    names = {name.lower(): name for name in schema.names}
    image = next((names[name] for name in IMAGES if name in names), None)
    if image is None:
        raise UserError(
            f"{address}: no column {', '.join(IMAGES)} among {', '.join(schema.names)}; rename the one meant"
        )
    caption = next((names[name] for name in CAPTIONS if name in names), None)
    simple = [field.name for field in schema if _is_simple(field.type)]
    return image, caption, [name for name in simple if name not in (image, caption)]


def _is_simple(kind: pyarrow.DataType) -> bool:
    """Whether values are text, numbers or truth values, which metadata can hold."""
    if types.is_dictionary(kind):
        return _is_simple(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or (types.is_primitive(kind) and not types.is_temporal(kind))


def _group(number: int, row: dict[str, Any], columns: tuple[str, str | None, list[str]]) -> Group:
    image, caption, rest = columns
    picture = row[image]
    if isinstance(picture, dict):
        picture = picture.get("bytes")
    key = f"{number:09}"
    if not isinstance(picture, bytes):
        return Group(number, number, key, fault="picture not in the table")
    suffix = next((suffix for magic, suffix in _MAGIC.items() if picture.startswith(magic)), "jpg")
    files = {suffix: picture, "json": json.dumps({name: row[name] for name in rest}).encode()}
    if caption is not None and isinstance(row[caption], str):
        files["txt"] = row[caption].encode()
    return Group(number, number, key, files)
