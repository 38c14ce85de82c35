"""Time spent in the networks of a pipeline, by part."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Watched = tuple[str, nn.Module, str]
"""A part's name, one of its networks, and the method that does its work."""


@contextmanager
def stopwatch(watched: Sequence[Watched], device: torch.device | str) -> Iterator[list[tuple[str, float]]]:
    """Lists (part, seconds) of every call of these methods, in order, while the context is open.

    The device is waited for before and after each, so that a whole run takes longer than without.
    """
    calls: list[tuple[str, float]] = []

    def watch(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched_call(*arguments: Any, **options: Any) -> Any:
            wait(device)
            start = time.perf_counter()
            result = function(*arguments, **options)
            wait(device)
            calls.append((part, time.perf_counter() - start))
            return result

        return watched_call

    for part, network, method in watched:
        setattr(network, method, watch(part, getattr(network, method)))
    try:
        yield calls
    finally:
        for _, network, method in watched:
            delattr(network, method)


def wait(device: torch.device | str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
