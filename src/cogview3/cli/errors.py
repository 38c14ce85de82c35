"""From exceptions to exit codes: 0, 1 failure, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""

import errno
import signal
import sys
from types import FrameType

import typer
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.exceptions import TyperException

from cogview3.config import OutOfMemory

FAILURE, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that whoever cleans up after one cleans up after both."""


def describe(error: BaseException) -> tuple[int, str] | None:
    """Exit code and one-line message of a foreseeable failure; None for anything else: our own bug."""
    if isinstance(error, KeyboardInterrupt):
        code, what = (TERMINATED, "terminated") if isinstance(error, Terminated) else (INTERRUPTED, "interrupted")
        return code, f"{what}: {error}" if str(error) else what  # with what was finished, where there is any
    if isinstance(error, TyperException):
        return BAD_INPUT, _usage_message(error)
    if isinstance(error, OutOfMemory):
        return FAILURE, _one_line(str(error))
    if isinstance(error, MemoryError) or _torch_ran_out(error):
        return FAILURE, "out of memory: use fewer pictures at once, a smaller --size or a smaller --dtype"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return BAD_INPUT, _system_message(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "; make room, or choose another place with --out" if full else ""
        return FAILURE, _system_message(error) + mend
    if isinstance(error, FloatingPointError):
        return FAILURE, _one_line(str(error))
    if isinstance(error, ValueError):
        return BAD_INPUT, _value_message(error)
    return None


def _torch_ran_out(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    words = ("can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _system_message(error: OSError) -> str:
    if error.errno is None or error.strerror is None:
        return _one_line(str(error))
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _usage_message(error: TyperException) -> str:
    """What typer says of wrong usage, with the value, which it leaves out."""
    message = _one_line(error.format_message()).rstrip(".")
    if isinstance(error.__cause__, ValidationError):
        value = repr(error.__cause__.errors()[0]["input"])
        message += f" (given: {value})" * (value not in message)
    return f"{message}; see --help"


def _value_message(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return _one_line(str(error))
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return _one_line(f"{place} {first['input']!r}: {first['msg']}")


def _one_line(message: str) -> str:
    return " ".join(message.split()) or "no message"


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise Terminated


class ReportingGroup(TyperGroup):
    """The root command: whatever its commands raise leaves as one line on stderr and an exit code."""

    def invoke(self, ctx: typer.Context) -> object:
        """Run the chosen command; with --debug the traceback is shown instead of the line."""
        previous = signal.signal(signal.SIGTERM, _on_sigterm)
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            known = None if ctx.params.get("debug") else describe(error)
            if known is None:
                raise
            code, message = known
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(code) from error
        finally:
            signal.signal(signal.SIGTERM, previous)
