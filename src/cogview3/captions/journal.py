"""An endpoint's requests and answers, kept so that a killed run pays for nothing twice.

    out/journal.jsonl     one event a line, on the disk before anything follows from it
    out/part-N.parquet    finished triplets, written whole; their lines then leave the journal
    out/.lock             held while a run writes

An image is known by its file's content, whatever it is called and wherever it lies. One whose last event is "asked" was
under way when the run was killed: nobody knows whether it was paid for.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from cogview3.checkpoints import held, naming, whole_file
from cogview3.config import UserError
from cogview3.data.tables import DAMAGE
from cogview3.prompts.budget import Usage

JOURNAL = "journal.jsonl"
FORMAT = 2

_COUNTS = ("requests", "prompt_tokens", "completion_tokens")

SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("image", "shard", "key", "old")),
        ("queries", pyarrow.list_(pyarrow.struct([("question", pyarrow.string()), ("answer", pyarrow.string())]))),
        ("new", pyarrow.string()),
        ("model", pyarrow.string()),
        ("usage", pyarrow.struct([*((name, pyarrow.int64()) for name in _COUNTS), ("money", pyarrow.float64())])),
    ]
)
"""Columns of a part."""


@dataclass(frozen=True)
class Name:
    """An image: the SHA-256 of its file, which alone is compared, and the shard and key where it was found."""

    image: str
    shard: str = field(compare=False)
    key: str = field(compare=False)

    @classmethod
    def of(cls, picture: bytes, shard: str, key: str) -> "Name":
        """The name of an image file's content."""
        return cls(hashlib.sha256(picture).hexdigest(), shard, key)


class Journal:
    """The state of a collection in a folder. Threads may share it; use it as a context.

    Attributes:
        spent: by all runs into this folder, as far as answers told.
        done: images with a triplet, each with the place that its triplet names.
        aside: images that were given up, with the reason.
        doubtful: images that were asked about without an outcome.

    The folder is made if need be, parts have `part_rows` triplets. Raises UserError where another run writes there, for
    other `settings` than the folder's, a damaged file, or a folder with other things.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], part_rows: int = 1000) -> None:
        if part_rows < 1:
            raise UserError(f"part_rows {part_rows}: give 1 or more")
        self._folder, self._settings, self._part_rows = folder, dict(settings), part_rows
        self._lock = threading.RLock()
        self.spent = Usage()
        self.done: dict[Name, Name] = {}
        self.aside: dict[Name, str] = {}
        self.doubtful: set[Name] = set()
        self._rows: dict[Name, dict[str, Any]] = {}
        self._moved: set[Name] = set()

    def __enter__(self) -> "Journal":
        path = self._folder / JOURNAL
        if self._folder.is_dir() and not path.exists():
            others = [each.name for each in self._folder.iterdir() if each.name != ".lock"]
            if others:
                raise UserError(f"{self._folder} holds {others[0]} and no {JOURNAL}; give a new folder")
        with ExitStack() as stack:
            stack.enter_context(held(self._folder))
            for part in parts(self._folder):
                self.done.update((name, name) for name in _names(part))
            if path.exists():
                self._replay(path)
            self._compact()
            stack.callback(lambda: self._file.close())  # the last one that `_compact` opened
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def note(self, event: str, name: Name, usage: Usage | None = None, **more: str) -> None:
        """Note what became of an image, and what was spent on it.

        "asked": it is about to be asked about; "paid": an answer was of no use, before it is asked about again; "left":
        nothing is under way, a later run asks; "aside": it is given up, for a `reason`; "moved": one with a triplet
        lies elsewhere now, as `name` says.
        """
        self._write({"event": event, **asdict(name), "usage": (usage or Usage()).to_dict(), **more})

    def finish(self, name: Name, row: Mapping[str, Any], usage: Usage) -> None:
        """Note a triplet, whose last answer cost `usage`; writes a part where it is full."""
        with self._lock:
            self._write({"event": "done", **row, "last": usage.to_dict()})
            if len(self._rows) >= self._part_rows:
                self.write_part()

    def write_part(self) -> None:
        """Write the triplets that are in no part yet as one, if there are any, and shorten the journal."""
        with self._lock:
            if not self._rows and not self._moved:
                return
            written = parts(self._folder)
            for part in written if self._moved else ():
                rows = parquet.read_table(part).to_pylist()
                places = [self.done[Name(row["image"], "", "")] for row in rows]
                if any((row["shard"], row["key"]) != (x.shard, x.key) for row, x in zip(rows, places, strict=True)):
                    _write_rows(part, [row | asdict(place) for row, place in zip(rows, places, strict=True)])
            if self._rows:
                number = int(written[-1].stem.removeprefix("part-")) + 1 if written else 0
                _write_rows(self._folder / f"part-{number:05}.parquet", list(self._rows.values()))
            _sync_folder(self._folder)
            self._rows.clear()
            self._moved.clear()
            self._compact()

    def _write(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False) + "\n"
        with self._lock, naming(self._folder / JOURNAL):
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._apply(dict(event))

    def _apply(self, event: dict[str, Any]) -> None:
        """Take an event into the state."""
        kind = event.pop("event")
        if kind == "spent":
            self.spent += Usage.from_dict(event["usage"])
            return
        name = Name(event["image"], event["shard"], event["key"])
        usage = Usage.from_dict(event.pop("last", None) or event.get("usage") or {})
        self.spent += usage
        self.doubtful.discard(name)
        if kind == "asked":
            self.aside.pop(name, None)
            self.doubtful.add(name)
        elif kind == "aside":
            self.aside[name] = event["reason"]
        elif kind == "moved" and name in self.done:  # unless its part was deleted
            self.done[name] = name
            if name in self._rows:
                self._rows[name] |= asdict(name)
            else:
                self._moved.add(name)
        elif kind == "done" and name not in self.done:
            self.done[name] = name
            self.aside.pop(name, None)
            self._rows[name] = event | {"usage": Usage.from_dict(event["usage"]).to_dict()}

    def _replay(self, path: Path) -> None:
        """Read the events of earlier runs; a last line that was cut by a crash is left out.

        Raises UserError for any other damage, or other settings.
        """
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                event = json.loads(line)
                if number == 1:
                    self._check(path, event)
                    continue
                _check_event(event)
                self._apply(event)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{path}: line {number} is damaged; restore it, or give a new folder") from None

    def _check(self, path: Path, header: Mapping[str, Any]) -> None:
        if header.get("format") != FORMAT:
            raise UserError(f"{path}: format {header.get('format')} is not {FORMAT}; give a new folder")
        for name, value in self._settings.items():
            if header["settings"].get(name) != value:
                before = header["settings"].get(name)
                raise UserError(
                    f"{self._folder} was started with {name} {before}, here it is {value}; use that, or a new folder"
                )

    def _events(self) -> Iterator[dict[str, Any]]:
        """The state as a header and events."""
        yield {"format": FORMAT, "settings": self._settings}
        yield {"event": "spent", "usage": self.spent.to_dict()}
        for name, reason in self.aside.items():
            yield {"event": "aside", **asdict(name), "reason": reason}
        for name in in_order(self.doubtful):
            yield {"event": "asked", **asdict(name)}
        for name in in_order(self._moved):
            yield {"event": "moved", **asdict(self.done[name])}
        for row in self._rows.values():
            yield {"event": "done", **row, "last": Usage().to_dict()}

    def _compact(self) -> None:
        """Rewrite the journal, without what parts hold, and go on at its end."""
        if hasattr(self, "_file"):
            self._file.close()
        path = self._folder / JOURNAL
        with whole_file(path) as temporary, temporary.open("wb") as file:
            for event in self._events():
                file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._folder)
        self._file: BufferedWriter = path.open("ab")


def in_order(names: Iterable[Name]) -> list[Name]:
    """Names by shard and key."""
    return sorted(names, key=lambda name: (name.shard, name.key))


def parts(folder: Path) -> list[Path]:
    """Finished parts, in their order."""
    numbered = {path: path.stem.removeprefix("part-") for path in folder.glob("part-*.parquet")}
    return sorted((path for path in numbered if numbered[path].isdecimal()), key=lambda path: int(numbered[path]))


def read_triplets(folder: str | Path) -> pyarrow.Table:
    """All triplets of a folder. Raises UserError where there are none, or a part is damaged."""
    written = parts(Path(folder))
    if not written:
        raise UserError(f"{folder}: no triplets (part-N.parquet); collect some first")
    try:
        table = pyarrow.concat_tables([parquet.read_table(part, schema=SCHEMA) for part in written])
        table.validate(full=True)  # text that is no UTF-8 too
        return table
    except DAMAGE as error:
        raise UserError(f"{folder}: a part is damaged ({error}); delete it and collect again") from None


def _check_event(event: Mapping[str, Any]) -> None:
    """Refuse an event of an earlier run whose entries are of other types than were written. Raises ValueError."""
    for name in ("image", "shard", "key", "reason"):
        if not isinstance(event.get(name, ""), str):
            raise ValueError(f"{name} is no text")
    if event["event"] == "done":
        pyarrow.Table.from_pylist([{**event, "usage": Usage.from_dict(event["usage"]).to_dict()}], SCHEMA)


def _write_rows(part: Path, rows: list[dict[str, Any]]) -> None:
    """Write a part whole, and bring it to the disk."""
    with whole_file(part) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def _names(part: Path) -> list[Name]:
    try:
        columns = parquet.ParquetFile(part).read(["image", "shard", "key"]).to_pydict()
        return [Name(*each) for each in zip(columns["image"], columns["shard"], columns["key"], strict=True)]
    except DAMAGE as error:
        raise UserError(f"{part}: damaged ({error}); restore it, or delete it to request its images again") from None


def _sync_folder(folder: Path) -> None:
    """Bring a folder's new names to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
