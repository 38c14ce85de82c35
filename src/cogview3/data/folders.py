"""Folders of pictures, their subfolders included: captions beside them, or in metadata files."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow
from pyarrow import parquet

from cogview3.config import UserError
from cogview3.data import draws
from cogview3.data.addresses import filesystem, name_of, read_address, unread, walk
from cogview3.data.groups import Group, Shard
from cogview3.data.images import SUFFIXES, UNREAD_SUFFIXES
from cogview3.data.names import TEXTS, Named, group_names, pictures_of, plain_key, split_name
from cogview3.data.report import Broken
from cogview3.data.tables import plain_row
from cogview3.data.texts import CAPTIONS, decode_text, find_name

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
"""Files, in any case, that tell of the pictures of their folder and those below, by a column of `FILE_NAMES`."""

_NOT_READ = re.compile(
    r"(?:.*/)?(?:metadata|captions?|labels?|prompts?|annotations?)\.(?:jsonl?|ndjson|csv|tsv|xlsx|ya?ml)", re.IGNORECASE
)
"""Files in which people keep captions as well, but which are not read."""

FILE_NAMES = ("file_name", "filename", "file", "image", "image_path", "path")
"""Columns under which they name pictures, in this order, without regard to case."""


@dataclass(frozen=True)
class _Listed:
    """A sample of a folder: names of its files by suffix, and what a metadata file says of it."""

    key: str
    names: Mapping[str, str] = field(default_factory=dict)
    caption: Any = None
    record: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    left_out: str = ""
    named: bool = False
    """Whether a metadata file names it; it may then not be there."""


@dataclass(frozen=True)
class FolderShard(Shard):
    """A folder of pictures: `a.jpg` beside `a.txt` (and `a.json`), or with a metadata file; subfolders too."""

    def sidecar(self, kind: str) -> str:
        """`captions.parquet` and `keep.parquet` lie in the folder."""
        return f"{self.address}/{kind}.parquet"

    def check(self) -> None:
        """As `Shard.check`: raises UserError for a folder without a picture."""
        if not self._listing:
            raise UserError(f"{self.address}: no pictures; {self._found()}")

    def _found(self) -> str:
        fs, path = filesystem(self.address)
        packed = [name for name, _ in walk(fs, path) if name.endswith((".tar.gz", ".tgz", ".zip", ".tar.zst", ".7z"))]
        if packed:
            return f"unpack {packed[0]} first"
        return "give a folder with .jpg, .png or .webp files, or with tars or tables"

    @property
    def length(self) -> int:
        """Number of groups."""
        return len(self._listing)

    def size(self) -> int:
        """Bytes of all files that samples are made of."""
        fs, path = filesystem(self.address)
        names = {name for listed in self._listing for name in listed.names.values()} | set(self._metadata_files)
        total = 0
        for name in names:
            with suppress(OSError):
                total += fs.size(f"{path}/{name}") or 0
        return total

    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """Groups from number `first` on, every `pieces`-th from `piece`; `order` is the seed of a shuffle."""
        try:
            listing = self._listing
        except OSError as problem:
            if first == 0 and piece == 0:
                fault, error = unread("folder", problem)
                yield Group(0, -1, "", fault=fault, error=error)
            return
        if not listing and first == 0 and piece == 0:
            yield Group(0, -1, "", fault="folder without pictures")
        if order is not None:  # by key, so that one picture more or less changes no other's place
            listing = sorted(listing, key=lambda listed: draws.number("folder", order, listed.key))
        for number in range(first, len(listing)):
            if number % pieces == piece:
                yield self._read(number, listing[number])

    def at(self, offset: int | str) -> Group:
        """As `Shard.at`; offsets are keys."""
        try:
            return self._read(0, self._by_key[str(offset)])
        except (KeyError, OSError):
            raise UserError(f"{self.address}: no sample {offset} any more; the folder was changed") from None

    def _read(self, number: int, listed: _Listed) -> Group:
        files, fault, error = {}, listed.fault, ""
        for suffix, name in listed.names.items() if not listed.left_out else ():
            try:
                files[suffix] = read_address(self.address, name)
            except OSError as problem:
                what, why = unread("file", problem)
                fault = fault or (what if why == "" else "unreadable file")
                if not (listed.named and isinstance(problem, FileNotFoundError)):  # it may never have been there
                    error = error or why
        return Group(
            number, listed.key, listed.key, {} if fault else files, listed.caption, listed.record, fault, error,
            listed.left_out,
        )  # fmt: skip

    @cached_property
    def _by_key(self) -> dict[str, _Listed]:
        return {listed.key: listed for listed in reversed(self._listing)}

    @cached_property
    def _names(self) -> dict[str, str]:
        """Files of the folder, each with what keeps it from being read or ""."""
        fs, path = filesystem(self.address)
        if not fs.isdir(path):
            raise FileNotFoundError(2, "No such folder", path)
        return dict(walk(fs, path))

    @cached_property
    def _metadata_files(self) -> list[str]:
        return sorted(name for name in self._names if name_of(name).lower() in METADATA)

    @cached_property
    def _listing(self) -> list[_Listed]:
        """The samples. Raises OSError where the folder cannot be read."""
        faults = [_Listed(name, fault=fault) for name, fault in self._names.items() if fault]
        names = [name for name, fault in self._names.items() if not fault]
        plain = [sample for sample in group_names(names) if sample.has_picture() or "txt" in sample.files]
        taken = {*self._metadata_files, *(names[number] for sample in plain for number in sample.files.values())}
        faults += [
            _Listed(name, left_out=f"{name_of(name)} is not read: make it metadata.jsonl or metadata.csv")
            for name in names
            if plain and name not in taken and _NOT_READ.fullmatch(name)
        ]
        rows: list[_Listed] = []
        spelled = {plain_key(name): name for name in reversed(names)}
        for name in self._metadata_files:
            try:
                rows += list(_from_metadata(name, read_address(self.address, name), spelled))
            except OSError as problem:
                what, why = unread("file", problem)
                faults.append(_Listed(name, fault=f"unreadable {name_of(name)}: {why or what}"))
        if not rows:
            return [*faults, *(_listed(sample, names) for sample in plain)]
        return [*faults, *_joined(rows, plain, names)]


def _listed(sample: Named, names: Sequence[str]) -> _Listed:
    files = {} if sample.fault else {suffix: names[number] for suffix, number in sample.files.items()}
    return _Listed(sample.key, files, fault=sample.fault, left_out=sample.left_out)


def _joined(rows: Sequence[_Listed], plain: Sequence[Named], names: Sequence[str]) -> Iterator[_Listed]:
    """The rows of metadata files, with the texts that lie beside their pictures; then the pictures of no row."""
    by_picture = {names[sample.files[suffix]]: sample for sample in plain for suffix in pictures_of(sample.files)}
    keys: set[str] = set()
    seen: set[str] = set()
    for row in rows:
        name = next(iter(row.names.values()), "")
        if name and name in seen:
            yield _Listed(row.key, fault="same key twice")
            continue
        key = plain_key(name) if name and row.key in keys else row.key  # a.png beside a.jpg
        keys.add(key)
        seen.add(name)
        files = dict(row.names)
        if sample := by_picture.get(name):
            files |= {suffix: names[number] for suffix, number in sample.files.items() if suffix in TEXTS}
        yield _Listed(key, files, row.caption, row.record, row.fault, named=True)
    for sample in plain:
        pictures = {names[sample.files[suffix]] for suffix in pictures_of(sample.files)}
        listed = _listed(sample, names)
        if not pictures & seen and ("txt" in sample.files or sample.fault or sample.left_out):
            yield listed
        elif left := sorted(pictures - seen):
            yield _Listed(plain_key(left[0]), left_out="in no metadata file")


def _from_metadata(file: str, content: bytes, spelled: Mapping[str, str]) -> Iterator[_Listed]:
    """The rows of a metadata file; bad ones are faults of their own."""
    kind, prefix = name_of(file), file.removesuffix(name_of(file))
    readers = {"jsonl": _json_rows, "csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows}
    reader = readers[kind.lower().rpartition(".")[2]]
    try:
        for number, record in enumerate(reader(content)):
            yield _from_record(f"{prefix}{kind} row {number + 1}", kind, prefix, record, spelled)
    except Broken as reason:
        yield _Listed(file, fault=f"{kind}: {reason}")


def _from_record(row: str, kind: str, prefix: str, record: Any, spelled: Mapping[str, str]) -> _Listed:
    column = find_name(record, FILE_NAMES) if isinstance(record, Mapping) else None
    name = None if column is None else record[column]
    if not isinstance(name, str) or not name:
        return _Listed(row, fault=f"unreadable line of {kind}")
    name = _on_disk(prefix, name, spelled)
    key, suffix = split_name(name)
    if ".." in name.split("/") or name.startswith("/"):
        return _Listed(key or row, fault="file outside of the folder", named=True)
    where = find_name(record, CAPTIONS)
    rest = {name: value for name, value in record.items() if name not in (column, where)}
    fault = f"format not read: {suffix}" if suffix in UNREAD_SUFFIXES else ""
    names = {suffix: name} if suffix in SUFFIXES else {}
    return _Listed(key or row, names, record[where] if where else None, rest, fault, named=True)


def _on_disk(prefix: str, name: str, spelled: Mapping[str, str]) -> str:
    """A file's name as the disk spells it, whichever slashes and form of accents the row has."""
    for each in (name, name.replace("\\", "/")):
        if (found := spelled.get(plain_key(prefix + each.removeprefix("./")))) is not None:
            return found
    return name if name.startswith("/") else prefix + name


def _text(content: bytes) -> str:
    """The text of a metadata file; bytes that are no UTF-8 become halves of surrogate pairs, which `_is_text` finds."""
    try:
        return decode_text(content)
    except Broken:  # one bad line, perhaps
        return content.decode("utf-8-sig", "surrogateescape")


def _is_text(value: str) -> bool:
    return "\0" not in value and (value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value))


def _json_rows(content: bytes) -> Iterator[Any]:
    for line in re.split(r"\r\n|\n|\r", _text(content)):
        if line.strip():
            try:
                yield json.loads(line) if _is_text(line) else None
            except (ValueError, RecursionError):
                yield None


def _csv_rows(content: bytes) -> Iterator[Any]:
    text = _text(content)
    head = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        names = [name.strip() for name in next(rows, [])]
    except csv.Error:
        names = []
    if find_name(names, FILE_NAMES) is None:
        raise Broken("no column file_name")
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield None
            continue
        if row:
            filled = {name: value for name, value in zip(names, row, strict=False) if value != ""}
            yield filled if all(map(_is_text, row)) else None


def _parquet_rows(content: bytes) -> Iterator[Any]:
    try:
        table = parquet.ParquetFile(io.BytesIO(content))
        names = table.schema_arrow.names
        if find_name(names, FILE_NAMES) is None:
            raise Broken("no column file_name")
        for batch in table.iter_batches(use_threads=False):
            for row in range(batch.num_rows):
                yield plain_row(batch, row, names)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, Broken):
            raise
        raise Broken("damaged table") from None
