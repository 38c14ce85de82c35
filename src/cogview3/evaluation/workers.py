"""Drawing the pictures that a store lacks, in this process or in several."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from cogview3.config import UserError
from cogview3.data.parallel import begin_writer, interrupts_held
from cogview3.errors import one_line
from cogview3.evaluation.folder import System, UndrawnError
from cogview3.evaluation.store import Store

_POLL_SECONDS = 0.5


def fill(
    system: System,
    store: Store,
    batch: int,
    device: str,
    dtype: torch.dtype,
    processes: int,
    progress: Callable[[int], None],
) -> None:
    """Draw the pictures that a store lacks; what cannot be drawn is noted there with the reason.

    Each of the `processes` has a copy of the model, on "cuda" on the next GPU; `progress` receives how many pictures
    there are.
    """
    missing = store.missing()
    progress(len(store.prompts) - len(missing))
    if not missing:
        return
    store.begin()
    if processes == 1:
        _draw(system, store, missing, batch, device, dtype, progress)
        return
    context = multiprocessing.get_context("spawn")
    workers = []
    failed: Any = context.SimpleQueue()
    try:
        for rank in range(processes):
            own = f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" else device
            share = [index for place, index in enumerate(missing) if place // batch % processes == rank]
            threads = max(1, torch.get_num_threads() // processes)
            arguments = (system, store, share, batch, own, dtype, threads, failed)
            workers.append(context.Process(target=_draw_share, args=arguments, daemon=True))
            with interrupts_held():
                workers[-1].start()
        while any(worker.is_alive() for worker in workers):
            if any(worker.exitcode for worker in workers):
                break
            progress(store.reload())
            time.sleep(_POLL_SECONDS)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    progress(store.reload())
    if not failed.empty():
        raise failed.get()
    if killed := [worker.exitcode for worker in workers if worker.exitcode]:
        how = signal.Signals(-killed[0]).name if killed[0] < 0 else f"exit code {killed[0]}"
        raise ChildProcessError(f"a drawing process of {system.name} was ended by {how}; the same command resumes")


def _draw_share(
    system: System,
    store: Store,
    indices: Sequence[int],
    batch: int,
    device: str,
    dtype: torch.dtype,
    threads: int,
    failed: Any,
) -> None:
    begin_writer()
    torch.set_num_threads(threads)
    diffusers_logging.disable_progress_bar()  # those of loading, one for each component
    transformers_logging.disable_progress_bar()
    try:
        _draw(system, store, indices, batch, device, dtype, lambda done: None)
    except Exception as error:
        failed.put(error)
        sys.exit(1)


def _draw(
    system: System,
    store: Store,
    indices: Sequence[int],
    batch: int,
    device: str,
    dtype: torch.dtype,
    progress: Callable[[int], None],
) -> None:
    done = len(store.there())
    for first in range(0, len(indices), batch):
        part = indices[first : first + batch]
        _keep(system, store, part, device, dtype)
        done += len(part)
        progress(done)


def _keep(system: System, store: Store, part: Sequence[int], device: str, dtype: torch.dtype) -> None:
    """Draw a batch; one that cannot be drawn is drawn picture by picture, to note of each why not."""
    try:
        pictures, seconds = system.draw(store.prompts, part, store.seed, device, dtype)
    except (UndrawnError, FloatingPointError) as error:
        if len(part) == 1:
            store.fail(part[0], one_line(error))
        else:
            for index in part:
                _keep(system, store, [index], device, dtype)
        return
    if len(pictures) != len(part):
        raise UserError(f"{system.name} gave {len(pictures)} pictures of {len(part)} prompts; it cannot be evaluated")
    for index, (picture, base) in zip(part, pictures, strict=True):
        store.save(index, picture, base, seconds / len(part))
