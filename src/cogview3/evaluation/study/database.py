"""The study's votes in SQLite: written before the answer goes out, and never twice."""

import errno
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogview3.config import UserError

DATABASE = "study.db"
CHOICES = ("left", "right", "tie", "both bad")
QUESTIONS = ("alignment", "aesthetics")

_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    **dict.fromkeys((sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY), errno.EIO),
}
"""What SQLite calls faults that are not the file's."""

_SCHEMA = """
CREATE TABLE annotator (id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE);
CREATE TABLE prompt (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE task (
    id INTEGER PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotator, position INTEGER NOT NULL,
    prompt INTEGER NOT NULL REFERENCES prompt, left_system TEXT NOT NULL, right_system TEXT NOT NULL,
    left_file TEXT NOT NULL, right_file TEXT NOT NULL, expected TEXT NOT NULL, UNIQUE (annotator, position)
);
CREATE TABLE vote (
    task INTEGER PRIMARY KEY REFERENCES task, alignment TEXT NOT NULL, aesthetics TEXT NOT NULL,
    seconds REAL NOT NULL, at REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Task:
    """A pair that an annotator judges; `expected` is the better side of an attention check, else empty."""

    annotator: int
    position: int
    prompt: int
    left_system: str
    right_system: str
    left_file: str
    right_file: str
    expected: str


class Conflict(Exception):
    """A second, different vote on a pair."""


@contextmanager
def connect(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that commits at the end of the block, on disk when it does; waits for other writers.

    Raises OSError where the disk does not let it, UserError where the file is damaged.
    """
    try:
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            yield connection
    except sqlite3.DatabaseError as error:
        if (code := getattr(error, "sqlite_errorcode", None)) is None:  # wrong use of the module
            raise
        if (code := code & 0xFF) not in _DISK:  # without its details
            raise UserError(f"{path} is damaged ({error}): copy the study's folder again") from None
        number = _DISK[code]
        raise OSError(number, str(error) if number == errno.EIO else os.strerror(number), str(path)) from None


def create(path: Path, hashes: Sequence[str], tasks: Sequence[Task], prompts: Sequence[str]) -> None:
    """Make the database of a new study."""
    with connect(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)
        db.execute("BEGIN")
        db.executemany("INSERT INTO annotator VALUES (?, ?)", enumerate(hashes))
        db.executemany("INSERT INTO prompt VALUES (?, ?)", enumerate(prompts))
        columns = [tuple(vars(task).values()) for task in tasks]
        db.executemany(
            "INSERT INTO task (annotator, position, prompt, left_system, right_system, left_file, right_file, expected)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            columns,
        )
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def annotator_of(db: sqlite3.Connection, token_hash: str) -> int | None:
    """The annotator of a link, None of a guessed one."""
    row = db.execute("SELECT id FROM annotator WHERE hash = ?", (token_hash,)).fetchone()
    return None if row is None else int(row["id"])


def next_task(db: sqlite3.Connection, annotator: int) -> sqlite3.Row | None:
    """The first pair without a vote, None where all have one."""
    row: sqlite3.Row | None = db.execute(
        "SELECT task.id, prompt.text FROM task JOIN prompt ON prompt.id = task.prompt"
        " LEFT JOIN vote ON vote.task = task.id"
        " WHERE task.annotator = ? AND vote.task IS NULL ORDER BY task.position LIMIT 1",
        (annotator,),
    ).fetchone()
    return row


def progress(db: sqlite3.Connection, annotator: int) -> tuple[int, int]:
    """How many of an annotator's pairs have a vote, and how many there are."""
    row = db.execute(
        "SELECT COUNT(vote.task) AS done, COUNT(*) AS total FROM task LEFT JOIN vote ON vote.task = task.id"
        " WHERE task.annotator = ?",
        (annotator,),
    ).fetchone()
    return int(row["done"]), int(row["total"])


def file_of(db: sqlite3.Connection, annotator: int, task: int, side: str) -> str | None:
    """The picture of a side of an annotator's own pair; None of another's."""
    row = db.execute("SELECT * FROM task WHERE id = ? AND annotator = ?", (task, annotator)).fetchone()
    return None if row is None else str(row[f"{side}_file"])


def vote(
    db: sqlite3.Connection, annotator: int, task: int, alignment: str, aesthetics: str, seconds: float
) -> bool | None:
    """Keep a vote: True; False where the very same is there already; None of another's pair.

    Raises:
        Conflict: another vote on the pair is there.
    """
    if db.execute("SELECT 1 FROM task WHERE id = ? AND annotator = ?", (task, annotator)).fetchone() is None:
        return None
    row = (task, alignment, aesthetics, seconds, time.time())
    if db.execute("INSERT OR IGNORE INTO vote VALUES (?, ?, ?, ?, ?)", row).rowcount:
        return True
    stored = db.execute("SELECT alignment, aesthetics FROM vote WHERE task = ?", (task,)).fetchone()
    if (stored["alignment"], stored["aesthetics"]) != (alignment, aesthetics):
        raise Conflict
    return False


def votes(path: Path) -> list[dict[str, Any]]:
    """Every vote with its task: annotator, prompt, systems by side, expected, answers, seconds."""
    with connect(path) as db:
        rows = db.execute(
            "SELECT annotator, prompt, left_system, right_system, expected, alignment, aesthetics, seconds, at, task"
            " FROM vote JOIN task ON task.id = vote.task ORDER BY task"
        ).fetchall()
    return [dict(row) for row in rows]
