"""The errors that users see, and the functions that turn an error into one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError


class OutOfMemory(MemoryError):
    """Not enough memory, found out before or while it was used. The message names what would fit."""


class UserError(ValueError):
    """Bad input. The message is one line that names the value and the fix; exit code 2 at the command line."""


def one_line(error: object, most: int = 300, *, typed: bool = False) -> str:
    """What an error says, on one line of at most `most` characters; the name of its type where it says nothing.

    `typed`: the name of its type first, for errors of which nothing is known.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, KeyError):
        text = f"{text} is missing"
    elif isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" {first['input']!r}"  # all that it is missing from
        text = f"{place}{given}: {said(first)}"
    text, name = " ".join(text.split()), type(error).__name__
    text = f"{name}: {text}" if typed and text else text or name
    return text if len(text) <= most else text[: most - 3] + "..."


def said(error: Mapping[str, Any]) -> str:
    """The message of one of pydantic's errors; of a validator of ours, that validator's own."""
    return str(error["ctx"]["error"] if error["type"] == "value_error" else error["msg"])


@contextmanager
def as_user_error(what: str, fix: str = "copy or export it again", *, ours: bool = False) -> Iterator[None]:
    """Turn whatever libraries raise in the block into a UserError: `what`: `fix` (the reason).

    Full memory and Ctrl-C pass unchanged, and so do errors that are a UserError already, but for `ours`. A panic of
    compiled code, which is no Exception, is turned too.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, MemoryError) or (isinstance(error, UserError) and not ours):
            raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {fix} ({one_line(error, 200)})") from None
