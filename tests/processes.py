"""Processes that begin as copies of one that has imported everything: milliseconds each instead of seconds."""

import faulthandler
import functools
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120
"""Seconds after which a process is given up."""

IMPORTED = [
    "cogview3.cli.app",
    "cogview3.training.loop",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "torch.distributed.fsdp",
    "transformers.models.t5.modeling_t5",
]


class _Process(ForkServerProcess):
    """With the environment of where it is started, as the server keeps that of its own start."""

    def start(self) -> None:
        """Start it."""
        _run_server()
        self.environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        """Do the work."""
        os.environ.clear()
        os.environ |= self.environment
        super().run()


class Context(ForkServerContext):
    """What `multiprocessing.get_context` would return, with a server that has imported everything."""

    Process = _Process


@functools.cache
def _run_server() -> None:
    """It imports from where this process does."""
    forkserver.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


@dataclass(frozen=True)
class Ended:
    """What a process left.

    Attributes:
        returncode: as of subprocess, negative where a signal ended it.
        stderr: all that it printed, standard output too.
    """

    returncode: int
    stderr: str


def run_in_process(work: Callable[..., Any], *arguments: Any, seconds: float = PATIENCE) -> Ended:
    """Do work in a process of its own, in this one's folder and environment; exits and signals are its own."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = _Process(target=_begin, args=(log, work, *arguments))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(log.read_text())
        return Ended(process.exitcode, log.read_text())


def run_command(*arguments: str, before: Callable[[], Any] | None = None) -> Ended:
    """Run `cogview3 ARGUMENTS...` in a process of its own, after `before`, which may put something in its way."""
    return run_in_process(_command, before, arguments)


def start_command(log: Path, *arguments: str) -> _Process:
    """Start `cogview3 ARGUMENTS...` in a process of its own; all that it prints is written to `log`."""
    process = _Process(target=_begin, args=(log, _command, None, arguments))
    process.start()
    return process


def _begin(log: Path, work: Callable[..., Any], *arguments: Any) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    faulthandler.dump_traceback_later(PATIENCE - 5, file=file)
    for stream in (1, 2):
        os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # as the server that forks may have been started held
    work(*arguments)


def _command(before: Callable[[], Any] | None, arguments: tuple[str, ...]) -> None:
    from cogview3.cli import main

    if before:
        before()
    sys.argv = ["cogview3", *arguments]
    main()
