"""The overhead of re-captioning beside the model: whole shards to sidecars, against bare generation.

Bare generation has its batches decoded, processed and on the device before the clock starts, and looks at no text.
Both run in turn, in one process, so that neither other work on the machine nor a slow disk favors one of them.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cogview3.bench.machine import hardware
from cogview3.bench.stopwatch import wait
from cogview3.captions.model import ModelJob, ModelWriter
from cogview3.captions.recaption import GivenUp, Task, caption_shard
from cogview3.captions.rows import admitted
from cogview3.config import UserError
from cogview3.data.groups import Shard
from cogview3.data.report import Skipped
from cogview3.data.tars import TarShard
from cogview3.evaluation.progress import Counter, silent


def run(
    shards: Sequence[Shard],
    job: ModelJob,
    *,
    repeats: int = 3,
    counter: Counter = silent,
) -> dict[str, Any]:
    """Measure, on copies of local tars, all of whose pictures are captioned in each run; one worker, medians.

    Returns:
        Images a second, "bare" and "shards", by the clock and by the processor; "overhead" by both: 0.1 is 10 % more
        time than bare generation; settings and hardware.

    Raises:
        UserError: no local tar, no picture, repeats below 1, or a model that cannot be used.
    """
    if repeats < 1:
        raise UserError(f"repeats {repeats}: give 1 or more")
    for shard in shards:
        if not isinstance(shard, TarShard) or not Path(shard.address).is_file():
            raise UserError(f"{shard.address}: give tars on a disk; they are copied to a temporary folder")
    writer, task = job.load(0), Task(job, dict(job.settings))
    batches = list(_prepared(shards, writer))
    images = sum(len(batch["input_ids"]) for batch in batches)
    if not images:
        raise UserError(f"{shards[0].address}: no picture in {len(shards)} shards")
    _bare(writer, batches[:1])
    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "shards": []}
    with TemporaryDirectory() as name, counter("benchmark", 2 * repeats) as progress:
        for number in range(repeats):
            seconds["bare"].append(_timed(lambda: _bare(writer, batches)))
            progress(2 * number + 1)
            copies = _copied(shards, Path(name) / str(number))
            seconds["shards"].append(_timed(lambda copies=copies: _captioned(copies, task, writer)))
            progress(2 * number + 2)
    by = {
        clock: {kind: median(run[place] for run in runs) for kind, runs in seconds.items()}
        for place, clock in enumerate(("clock", "processor"))
    }
    return {
        "model": job.name,
        "images": images,
        "shards": len(shards),
        "batch": job.batch,
        "images_a_second": {
            clock: {kind: images / value for kind, value in each.items()} for clock, each in by.items()
        },
        "overhead": {clock: each["shards"] / each["bare"] - 1 for clock, each in by.items()},
        "runs": seconds,
        "hardware": hardware(writer.model.device.type),
    }


def describe(result: dict[str, Any]) -> str:
    """The report in a few lines."""
    rates, overhead = result["images_a_second"], result["overhead"]
    lines = [f"{result['images']} images of {result['shards']} shards, {result['batch']} at once, images a second:"]
    lines += [
        f"  by the {clock:10} bare generation {rates[clock]['bare']:8.2f}   shards to sidecars "
        f"{rates[clock]['shards']:8.2f}   overhead {overhead[clock]:+.1%}"
        for clock in rates
    ]
    return "\n".join(lines)


def _prepared(shards: Sequence[Shard], writer: ModelWriter) -> Any:
    """Inputs in the batches that captioning makes, shard by shard."""
    for shard in shards:
        images, olds = [], []
        for group in shard.groups():
            try:
                entry = admitted(group, None)
                images.append(entry.decode().image)
            except Skipped:
                continue
            olds.append(entry.old)
        for start in range(0, len(olds), writer.job.batch):
            part = slice(start, start + writer.job.batch)
            inputs = writer.asker.inputs(images[part], olds[part])
            yield inputs.to(writer.model.device, dtype=writer.model.dtype)


@torch.inference_mode()
def _bare(writer: ModelWriter, batches: Sequence[Any]) -> None:
    for inputs in batches:
        writer.model.generate(**inputs, generation_config=writer.config)
    wait(writer.model.device)


def _captioned(shards: Sequence[Shard], task: Task, writer: ModelWriter) -> None:
    for shard in shards:
        for message in caption_shard(shard, task, writer):
            if isinstance(message, GivenUp):
                raise UserError(f"{shard.address}: {message.reason}")


def _copied(shards: Sequence[Shard], folder: Path) -> list[Shard]:
    folder.mkdir()
    copies = [shutil.copy(shard.address, folder / f"{number:05}.tar") for number, shard in enumerate(shards)]
    return [TarShard(str(copy)) for copy in copies]


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor
