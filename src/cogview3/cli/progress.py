"""Progress on stderr: count, rate and time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.1f}/s")


class Tell(Protocol):
    """Takes the number that are done, and optionally a note."""

    def __call__(self, done: float, note: str = "") -> None:
        """Show both."""


@contextmanager
def counter(what: str, total: int | None, resumes: bool = False) -> Iterator[Tell]:
    """A bar that receives how many of `total` (None: unknown) are done; silent where stderr is not a terminal.

    Ctrl-C and SIGTERM report what was finished, and whether the same command resumes (`resumes`).
    """
    console = Console(stderr=True)
    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), note)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=total, note="")
        finished = 0

        def tell(done: float, note: str = "") -> None:
            nonlocal finished
            finished = int(done)
            bars.update(task, completed=done, note=note)

        try:
            yield tell
        except KeyboardInterrupt as stop:
            if str(stop):
                raise
            message = f"{finished}{'' if total is None else f' of {total}'} {what}"
            raise type(stop)(f"{message} finished; the same command resumes" if resumes else f"at {message}") from None
