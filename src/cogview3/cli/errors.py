"""Exceptions to exit codes: 1 failure, 2 bad input, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM."""

import errno
import re
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.exceptions import TyperException

from cogview3.errors import OutOfMemory, UserError, one_line

FAILURE, BAD_INPUT, HUNG_UP, INTERRUPTED, TERMINATED = 1, 2, 129, 130, 143

STDOUT = "standard output"
"""The name of the output in errors of writing to it."""

MOST = 2000
"""Characters of a message; our own are shorter."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that whoever cleans up after one cleans up after both."""


class HungUp(Terminated):
    """SIGHUP, likewise: the terminal was closed."""


def describe(error: BaseException) -> tuple[int, str] | None:
    """Exit code and one-line message of a foreseeable failure; None for anything else: our own bug."""
    if isinstance(error, KeyboardInterrupt):
        code, what = (TERMINATED, "terminated") if isinstance(error, Terminated) else (INTERRUPTED, "interrupted")
        if isinstance(error, HungUp):
            code, what = HUNG_UP, "hung up"
        return code, f"{what}: {error}" if str(error) else what  # with what was finished, where there is any
    if isinstance(error, TyperException):
        return BAD_INPUT, _usage_message(error)
    if isinstance(error, OutOfMemory | FloatingPointError):
        return FAILURE, one_line(error, MOST)
    if isinstance(error, MemoryError) or _torch_ran_out(error):
        return FAILURE, "out of memory: use fewer pictures at once, a smaller --size or a smaller --dtype"
    wrong_path = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError)
    looped = isinstance(error, RuntimeError) and str(error).startswith("Symlink loop")  # pathlib before Python 3.13
    if wrong_path or looped or (isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP)):
        return BAD_INPUT, one_line(error, MOST)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and error.filename != STDOUT
        fix = "; free some space, or choose another path" if full else ""
        fix = "; choose another path" if error.errno == errno.EROFS else fix
        return FAILURE, one_line(error, MOST) + fix
    if isinstance(error, ValueError):
        return BAD_INPUT, one_line(error, MOST)
    return None


def _torch_ran_out(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    words = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _usage_message(error: TyperException) -> str:
    """What typer says of wrong usage, with the value, which it leaves out."""
    message = one_line(error.format_message(), MOST).rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        value = repr(error.__cause__.errors()[0]["input"])
        message += f" (given: {value})" * (value not in message)
    return f"{message}; see --help"


def _on_signal(signum: int, frame: FrameType | None) -> None:
    raise Terminated if signum == signal.SIGTERM else HungUp


def _handle_signals() -> dict[int, Any]:
    """Have SIGTERM and SIGHUP raise; gives the handlers that were there. A SIGHUP that nohup ignores stays ignored."""
    found = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]  # Windows lacks one
    wanted = [number for number in found if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _on_signal) for number in wanted}


class ReportingGroup(TyperGroup):
    """The root command: whatever its commands raise leaves as one line on stderr and an exit code."""

    def invoke(self, ctx: typer.Context) -> object:
        """Run the chosen command; with --debug the traceback is shown instead of the line."""
        previous = _handle_signals()
        words = [*ctx._protected_args, *ctx.args]
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            known = None if ctx.params.get("debug") else describe(error)
            if known is None:
                raise
            code, message = known
            if isinstance(error, UserError):
                message = self._with_option(message, words)
            with suppress(OSError):  # a terminal that was closed, or a full disk: the exit code still tells
                typer.echo(f"error: {message}", err=True)
            raise typer.Exit(code) from error
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _with_option(self, message: str, words: list[str]) -> str:
        """A message that begins with a parameter and its value, "timeout 0.0: ...", with the option in its place."""
        command: object = self
        for word in words:
            command = getattr(command, "commands", {}).get(word, command)
        options = {each.name: max(each.opts, key=len) for each in getattr(command, "params", ())}
        found = _PARAMETER.match(message)
        given = {part for word in words for part in (word, *word.partition("=")[::2])}
        if found is None or found[1] not in options or not any(_is_same(found[2], each) for each in given):
            return message
        return f"{options[found[1]]}{message[found.end(1) :]}"


_PARAMETER = re.compile(r"(\w+) ([^\s:]+): ")


def _is_same(named: str, given: str) -> bool:
    """Whether a value in a message is one of the command line's, as text or as a number."""
    try:
        return named == given or float(named) == float(given)
    except ValueError:
        return False
