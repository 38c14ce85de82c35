"""Tables of pictures with captions: parquet files, and Arrow files such as Hugging Face's `datasets` saves.

All are read with pyarrow alone. A row is a sample; its key is its number. Only the columns that are needed are read, so
that others may hold anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow
from pyarrow import ipc, parquet, types

from cogview3.config import UserError
from cogview3.data import addresses
from cogview3.data.addresses import LFS_FAULT, LFS_POINTER, bare, unread
from cogview3.data.groups import Group, Shard
from cogview3.data.texts import CAPTIONS, find_name

TABLES = (".parquet", ".arrow", ".feather")
"""Ends of the names of tables."""

IMAGES = ("image", "img", "picture", "jpg", "png", "webp")
"""Names of columns under which pictures are looked for, in this order, without regard to case."""

STATUS, DOWNLOADED = "status", "success"
"""img2dataset's column that says what became of a link, and its word for a row that has a picture."""

_MAGIC = {
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}
_TEXTS = (
    (types.is_string, pyarrow.binary()),
    (types.is_large_string, pyarrow.large_binary()),
    (types.is_string_view, pyarrow.binary_view()),
)
"""Types of text, each with that of bytes that lie in the same way."""

_ROWS = 64  # read at once
DAMAGE = (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RuntimeError)
"""What pyarrow raises on damaged files."""


@dataclass(frozen=True)
class TableShard(Shard):
    """A .parquet file, or an .arrow file of a data set saved with `save_to_disk`; Arrow's file format as well.

    The column of pictures holds encoded ones: bytes, or `datasets`' structure of bytes and path.
    """

    def check(self) -> None:
        """As `Shard.check`: raises UserError for a table without a column of pictures."""
        try:
            with closing(TableFile(self.address)) as file:
                schema = _Rows(file, self.address).schema
        except (UnreadError, *DAMAGE):
            return  # counted when its turn comes
        if _columns(schema).image is None:
            raise UserError(
                f"{self.address}: no column {', '.join(IMAGES)} among {', '.join(schema.names)}; rename the one meant"
            )

    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """As `Shard.groups`; a table keeps its own order."""
        number = -1
        try:
            with closing(TableFile(self.address)) as file:
                rows = _Rows(file, self.address)
                if rows.columns.image is None:
                    raise UnreadError("no column of pictures", "")
                for start, batch in rows.batches(first):
                    for row in range(batch.num_rows):
                        number = start + row
                        if number >= first and number % pieces == piece:
                            yield _group(number, batch, row, rows.columns)
            return
        except UnreadError as problem:
            fault, error = problem.args
        except DAMAGE:
            fault, error = "damaged table", ""
        if piece == 0 and number + 1 >= first:
            yield Group(number + 1, -1, "", fault=fault, error=error)

    def at(self, offset: int | str) -> Group:
        """The group at a row number that `groups` gave. Raises UserError where it is gone."""
        try:
            with closing(TableFile(self.address)) as file:
                rows = _Rows(file, self.address)
                for start, batch in rows.batches(int(offset)):
                    if start <= int(offset) < start + batch.num_rows:
                        return _group(int(offset), batch, int(offset) - start, rows.columns)
        except (UnreadError, *DAMAGE):
            pass
        raise UserError(f"{self.address}: no row {offset} any more; the table was changed")


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of pictures, of captions, of img2dataset's status, and of metadata."""

    image: str | None
    caption: str | None
    status: str | None
    rest: tuple[str, ...]

    def needed(self) -> list[str]:
        return [name for name in (self.image, self.caption, self.status) if name is not None]


class _Rows:
    """Batches of rows of an open table, of the columns that are needed."""

    def __init__(self, file: Any, address: str) -> None:
        self._file = file
        self._parquet = None
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UnreadError(LFS_FAULT, "")
        file.seek(0)
        if bare(address).lower().endswith(".parquet"):
            self._parquet = parquet.ParquetFile(file)
            self.schema = self._parquet.schema_arrow
        else:
            self.schema = self._reader().schema
        self.columns = _columns(self.schema)

    def _reader(self, names: Sequence[str] | None = None) -> Any:
        """An Arrow reader of some columns, from the beginning, of either of its two formats."""
        self._file.seek(0)
        random = self._file.read(6) == b"ARROW1"
        self._file.seek(0)
        fields = None if names is None else [self.schema.names.index(name) for name in names]
        options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return (ipc.open_file if random else ipc.open_stream)(self._file, options=options)

    def batches(self, first: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Number of the first row, and rows, from those on that hold row `first`."""
        names = [*self.columns.needed(), *self.columns.rest]
        if self._parquet is not None:
            yield from self._parquet_batches(self._parquet, first, names)
            return
        reader, start = self._reader(names), 0
        several = range(reader.num_record_batches) if hasattr(reader, "num_record_batches") else None
        for batch in reader if several is None else map(reader.get_batch, several):
            if start + batch.num_rows > first:
                yield start, _validated(batch, self.columns.needed())
            start += batch.num_rows

    def _parquet_batches(self, file: Any, first: int, names: list[str]) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Rows by groups; where a group's metadata cannot be read, pictures and captions without it."""
        start = 0
        for number in range(file.num_row_groups):
            end = start + file.metadata.row_group(number).num_rows
            done = start
            for columns in (names, self.columns.needed()) if end > first else ():
                try:
                    at = start
                    for batch in file.iter_batches(_ROWS, [number], columns=columns, use_threads=False):
                        at += batch.num_rows
                        if at > done:
                            done = at
                            yield at - batch.num_rows, batch
                    break
                except DAMAGE:
                    if columns == self.columns.needed():
                        raise
            start = end


class UnreadError(Exception):
    """A table that the system could not open or read; of what is damaged, Arrow tells by OSError."""


class TableFile:
    """A file for Arrow to read, which raises UnreadError with `Group.fault` and `Group.error`."""

    def __init__(self, address: str) -> None:
        try:
            self._file = addresses.open_address(address)
        except OSError as error:
            raise UnreadError(*unread("table", error)) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, *size: int) -> bytes:
        """Up to `size` bytes, as a binary file reads them."""
        try:
            return self._file.read(*size)
        except OSError as error:
            raise UnreadError(*unread("table", error)) from None


def _columns(schema: pyarrow.Schema) -> _Columns:
    image, status = find_name(schema.names, IMAGES), find_name(schema.names, [STATUS])
    if image is None:
        pictures = [column.name for column in schema if _holds_pictures(column.type)]
        image = pictures[0] if len(pictures) == 1 else None
    caption = find_name([name for name in schema.names if name != image], CAPTIONS)
    rest = [column.name for column in schema if _is_simple(column.type) and schema.names.count(column.name) == 1]
    return _Columns(image, caption, status, tuple(name for name in rest if name not in (image, caption, status)))


def _holds_pictures(kind: pyarrow.DataType) -> bool:
    """Whether values are bytes, or `datasets`' structure of bytes and path."""
    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_simple(kind: pyarrow.DataType) -> bool:
    """Whether values are text, numbers or truth values, which metadata can hold."""
    if types.is_dictionary(kind):
        return _is_simple(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or (types.is_primitive(kind) and not types.is_temporal(kind))


def _validated(batch: pyarrow.RecordBatch, needed: Sequence[str]) -> pyarrow.RecordBatch:
    """A batch whose offsets and indices point into its data, or columns of metadata less; else Arrow aborts on use.

    Text is looked at as bytes, as one bad text must not cost the other rows. Raises ArrowInvalid for a needed column.
    """
    sound = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate()
            column.view(_in_bytes(column.type)).validate(full=True)
            sound.append(name)
        except pyarrow.ArrowException:
            if name in needed:
                raise
    return batch.select(sound)


def _in_bytes(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The same type with bytes in the place of text, also within lists, structures and dictionaries."""
    for is_text, plain in _TEXTS:
        if is_text(kind):
            return plain
    if types.is_struct(kind):
        return pyarrow.struct([each.with_type(_in_bytes(each.type)) for each in kind])
    if types.is_dictionary(kind):
        return pyarrow.dictionary(kind.index_type, _in_bytes(kind.value_type), kind.ordered)
    for is_list, listed in ((types.is_list, pyarrow.list_), (types.is_large_list, pyarrow.large_list)):
        if is_list(kind):
            return listed(kind.value_field.with_type(_in_bytes(kind.value_type)))
    return kind


_UNREADABLE = object()


def _value(batch: pyarrow.RecordBatch, name: str, row: int) -> Any:
    """A value in Python's types; `_UNREADABLE` where it has none, as text that is no UTF-8."""
    try:
        return batch.column(batch.schema.names.index(name))[row].as_py()  # of columns of one name the first
    except DAMAGE:
        return _UNREADABLE


def _picture(batch: pyarrow.RecordBatch, name: str, row: int) -> Any:
    """What a cell holds as picture; of `datasets`' structure nothing but the bytes is looked at."""
    try:
        cell = batch.column(batch.schema.names.index(name))[row]
        return (cell["bytes"] if isinstance(cell, pyarrow.StructScalar) else cell).as_py()
    except DAMAGE:
        return None


def plain_row(batch: pyarrow.RecordBatch, row: int, names: Sequence[str]) -> dict[str, Any]:
    """Values of a row by column, but for those that Python's types cannot hold."""
    values = {name: _value(batch, name, row) for name in names if batch.schema.get_field_index(name) >= 0}
    return {name: value for name, value in values.items() if value is not _UNREADABLE}


def _group(number: int, batch: pyarrow.RecordBatch, row: int, columns: _Columns) -> Group:
    key = f"{number:09}"
    picture = _picture(batch, str(columns.image), row)
    if not isinstance(picture, bytes):
        status = None if columns.status is None else _value(batch, columns.status, row)
        if isinstance(status, str) and status != DOWNLOADED:
            return Group(number, number, key, left_out="failed download")
        return Group(number, number, key, fault="picture not in the table")
    caption = None if columns.caption is None else _value(batch, columns.caption, row)
    if caption is _UNREADABLE:
        return Group(number, number, key, fault="undecodable text")
    suffix = next((suffix for magic, suffix in _MAGIC.items() if picture.startswith(magic)), "jpg")
    suffix = "avif" if picture[4:12] in (b"ftypavif", b"ftypavis") else suffix
    return Group(number, number, key, {suffix: picture}, caption, plain_row(batch, row, columns.rest))
