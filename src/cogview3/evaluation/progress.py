"""The interface by which long work reports its progress, independent of terminals."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Counter = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar of a name and a total; the function that it returns is called with how much is done."""


def silent(name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A counter that shows nothing."""
    return nullcontext(lambda done: None)
