"""The rows of a shard whose sidecar is not finished, kept so that a lost worker costs little.

    00000.captions.part.jsonl          on a disk: settings, then a row a line, on the disk before the next batch begins
    00000.captions.part.jsonl/000000   at other addresses, which take whole files alone: the same, a file a batch

Gone once the sidecar is there. On a disk a lock beside it keeps a second job, or a worker whose job is no more, out.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cogview3.captions.rows import Row
from cogview3.checkpoints import differences, naming
from cogview3.config import UserError
from cogview3.data.addresses import filesystem, is_local
from cogview3.data.groups import Shard

PATIENCE = 60.0
"""Seconds to wait for a shard that another process writes; one that was killed lets go at once."""


class Part:
    """The rows of a shard so far: `rows`, of each key the last one that was written.

    `settings` are what the texts depend on. A part of others is dropped with `overwrite`; else it raises UserError.
    """

    def __init__(self, shard: Shard, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self._address = part_address(shard)
        self._fs, self._path = filesystem(self._address)
        self._local = is_local(self._fs)
        self._settings = dict(settings)
        self.rows: dict[str, Row] = {}
        self._number, self._size = 0, 0
        for content in self._contents():
            theirs = self._take(content)
            if theirs is not None and theirs != self._settings:
                if not overwrite:
                    raise UserError(
                        f"{self._address} was started with other settings: {differences(theirs, self._settings)}; "
                        "give the same ones, or --overwrite"
                    )
                self.remove()
                return

    def _contents(self) -> Iterator[bytes]:
        if self._local:
            path = Path(self._path)
            content = path.read_bytes() if path.exists() else b""
            self._size = content.rfind(b"\n") + 1  # a line cut by a crash is written over
            yield content[: self._size]
        elif self._fs.exists(self._path):
            for name in sorted(self._fs.ls(self._path, detail=False)):
                self._number = max(self._number, int(name.rpartition("/")[2]) + 1)
                yield self._fs.cat_file(name)

    def _take(self, content: bytes) -> dict[str, Any] | None:
        """Take the rows of a file in, and give the settings at its head; None where it is empty."""
        settings = None
        try:
            for number, line in enumerate(content.splitlines()):
                record = json.loads(line)
                if number == 0:
                    settings = record["settings"]
                    if not isinstance(settings, dict):
                        raise ValueError("no settings")
                    continue
                row = Row(**record)
                texts = [row.key, row.old, row.status, row.error] + [row.new] * (row.new is not None)
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError("a row of other types")
                self.rows[row.key] = row
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{self._address} is damaged; delete it to write its captions again") from None
        return settings

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, on the disk when this returns."""
        self.rows.update({row.key: row for row in rows})
        lines = [json.dumps(row.to_dict(), ensure_ascii=False) for row in rows]
        head = json.dumps({"settings": self._settings}, ensure_ascii=False)
        if not self._local:
            self._fs.pipe_file(f"{self._path}/{self._number:06}", "".join(f"{x}\n" for x in [head, *lines]).encode())
            self._number += 1
            return
        with naming(Path(self._path)), open(self._path, "r+b" if os.path.exists(self._path) else "xb") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write("".join(f"{line}\n" for line in ([] if self._size else [head]) + lines).encode())
            self._size = file.tell()
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget all."""
        self.rows, self._number, self._size = {}, 0, 0
        if self._fs.exists(self._path):
            self._fs.rm(self._path, recursive=not self._local)


def part_address(shard: Shard) -> str:
    """Where the part of a shard lies: beside its captions sidecar."""
    return shard.sidecar("captions").removesuffix(".parquet") + ".part.jsonl"


@contextmanager
def claimed(shard: Shard) -> Iterator[None]:
    """Keep other processes off a shard on a disk. Raises UserError where another one does not let go of it."""
    fs, path = filesystem(part_address(shard))
    if not is_local(fs):
        yield
        return
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=PATIENCE, poll_interval=0.2)
    except Timeout:
        raise UserError(f"{shard.address}: another run writes its captions; wait for it, or end it") from None
    try:
        yield
    finally:
        Path(f"{path}.lock").unlink(missing_ok=True)
        lock.release()
