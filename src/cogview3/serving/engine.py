"""The one thread that draws, and the loop that gives it batch after batch."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from typing_extensions import override

from cogview3 import CogView3Pipeline
from cogview3.errors import UserError
from cogview3.serving.line import Line
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Job
from cogview3.serving.painter import Painter
from cogview3.serving.queue import Limits, Queue
from cogview3.serving.sizes import Sizes


class Engine(Queue):
    """Draws what is queued, in batches of one kind, base and relay stages of different batches by turns.

    Only the drawing thread asks for one of the `pipelines`, which are by mode.
    """

    def __init__(self, pipelines: Mapping[str, CogView3Pipeline], limits: Limits, metrics: Metrics) -> None:
        super().__init__(limits, metrics)
        self._pipelines, self._area = pipelines, 1
        self._begun = Line()
        self._running: list[Job] = []
        self._painter = Painter(pipelines)
        # before the first sum of the thread: OpenMP keeps a number of threads for each thread of the program
        threads = limits.threads or torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, "painter", initializer=torch.set_num_threads, initargs=(threads,))

    @override
    def load(self, mode: str, relays: int) -> Sizes:  # the mode's pipeline is loaded in the drawing thread
        pipe = self._thread.submit(self._pipelines.__getitem__, mode).result()
        sides = pipe.unet.config["sample_size"]
        if sides is None:
            raise UserError(f"model {pipe.name_or_path}: its unet's config.json has no sample_size; add it")
        height, width = (side * pipe.vae_scale_factor for side in (sides if isinstance(sides, list) else [sides] * 2))
        sizes = Sizes(width, height, pipe.vae_scale_factor, relays if pipe.relay_unet is not None else 0)
        self._area = sizes.own.width * sizes.own.height
        return sizes

    @property
    @override
    def running(self) -> int:
        return len(self._running) + len(self._begun)

    def _stop(self, job: Job) -> None:
        self._begun.remove(job)

    @override
    async def close(self) -> None:
        await super().close()
        self._thread.shutdown()

    async def _run(self) -> None:
        """Take batch after batch until closed and nothing begun is left."""
        relay_was_last = False
        while True:
            if not self._fresh and not self._begun:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            line = self._begun if self._begun and not (relay_was_last and self._fresh) else self._fresh
            relay_was_last = line is self._begun
            if line is self._fresh:
                await self._gather()
            if line:
                await self._draw(line.take(self._most(line)))

    async def _gather(self) -> None:
        """Wait some milliseconds for others that can be drawn along with the next picture."""
        kind = self._fresh.next_kind()
        if kind is not None and self._fresh.matching(kind) < self._most(self._fresh):
            await asyncio.sleep(self.limits.linger)

    def _most(self, line: Line) -> int:
        """Pictures of the next kind that are drawn together."""
        kind = line.next_kind()
        if kind is None:
            return 1
        width, height = kind[0].drawn
        return max(1, int(self.limits.batch * min(1.0, self._area / (width * height))))

    async def _draw(self, jobs: list[Job]) -> None:
        """Advance jobs by a stage in the drawing thread, and hand out what came of it."""
        start, self._running = time.monotonic(), jobs
        outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._painter.advance, jobs)
        self._running = []
        self.metrics.batch(len(jobs), time.monotonic() - start)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome is None and not job.canceled:
                job.stage += 1
                self._begun.add(job)
            elif outcome is not None:
                self._finish(job, outcome)
