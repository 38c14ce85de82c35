"""The queue and the one thread that draws: jobs in, pictures out, from asyncio."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cogview3.config import UserError
from cogview3.serving.line import Line
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Busy, Canceled, Closing, Drawn, Job, Order, Partial
from cogview3.serving.sizes import Sizes

if TYPE_CHECKING:
    from PIL.Image import Image

    from cogview3 import CogView3Pipeline
    from cogview3.serving.painter import Painter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much is taken on.

    Attributes:
        batch: pictures of the model's own size that are drawn together; larger ones count by their pixels.
        linger: seconds that an idle engine waits for others to draw together with a picture.
        waiting: pictures that may wait.
        waiting_each: pictures of one client that may wait.
        seconds: that a picture may take, waiting included.
        threads: of the drawing thread's mathematics; None leaves torch's choice.
    """

    batch: int = 4
    linger: float = 0.005
    waiting: int = 256
    waiting_each: int = 256
    seconds: float = 600.0
    threads: int | None = None


class Drawing(Protocol):
    """What API and page need of an engine."""

    def submit(self, orders: Sequence[Order], client: str) -> list[Job]:
        """Queue orders, all or none. Raises Busy or Closing."""

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Stop jobs within one step; those that are done are left alone."""

    def position(self, job: Job) -> int | None:
        """How many pictures are likely to be begun before it; None where it was begun."""

    @property
    def ready(self) -> bool:
        """Whether new orders are taken."""

    async def close(self) -> None:
        """Refuse what is new and what waits, finish what was begun."""


class Engine:
    """Draws what is queued, in batches of one kind, base and relay stages of different batches by turns.

    Args:
        pipelines: a pipeline by mode; only the drawing thread asks for one.
        limits: how much is taken on.
        metrics: counts what happens.
    """

    def __init__(self, pipelines: "Mapping[str, CogView3Pipeline]", limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._pipelines, self._area = pipelines, 1
        self._fresh, self._begun = Line(), Line()
        self._running: list[Job] = []
        self._closing = False
        self._pace = 1.0  # seconds a picture, a moving average
        self._thread = ThreadPoolExecutor(1, "painter", initializer=_set_threads, initargs=(limits.threads,))
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task | None = None
        self._painter: Painter | None = None

    def load(self, mode: str, relays: int) -> Sizes:
        """Load a mode's pipeline in the drawing thread; must be done before anything is drawn.

        Returns:
            The sizes that it draws with up to `relays` doublings, none where it has no relay.

        Raises:
            UserError: what loading raises, or the model names no size of its own.
        """
        pipe = self._thread.submit(self._pipelines.__getitem__, mode).result()
        sides = pipe.unet.config.sample_size
        if sides is None:
            raise UserError(f"model {pipe.name_or_path}: its unet's config.json has no sample_size; add it")
        height, width = (side * pipe.vae_scale_factor for side in (sides if isinstance(sides, list) else [sides] * 2))
        sizes = Sizes(width, height, pipe.vae_scale_factor, relays if pipe.relay_unet is not None else 0)
        self._area = sizes.own.width * sizes.own.height
        return sizes

    def start(self) -> None:
        """Begin to draw, in the running event loop."""
        from cogview3.serving.painter import Painter

        self._loop = asyncio.get_running_loop()
        self._painter = Painter(self._pipelines, self._tell)
        self._task = asyncio.create_task(self._run())

    @property
    def ready(self) -> bool:
        """As `Drawing.ready`."""
        return self._task is not None and not self._task.done() and not self._closing

    @property
    def waiting(self) -> int:
        """Pictures that were not begun yet."""
        return len(self._fresh)

    @property
    def running(self) -> int:
        """Pictures that were begun and are not finished."""
        return len(self._running) + len(self._begun)

    def submit(self, orders: Sequence[Order], client: str) -> list[Job]:
        """As `Drawing.submit`."""
        if not self.ready:
            raise Closing("the service is being stopped")
        own = self._fresh.count(client) + len(orders)
        for count, most, whose in (
            (len(self._fresh) + len(orders), self.limits.waiting, "the queue"),
            (own, self.limits.waiting_each, "your part of the queue"),
        ):
            if count > most:
                raise Busy(f"{whose} is full ({most} pictures): try again later", self._wait())
        loop = asyncio.get_running_loop()
        jobs = [Job(order, client, loop.create_future()) for order in orders]
        for job in jobs:
            self._fresh.add(job)
        self._wake.set()
        return jobs

    def cancel(self, jobs: Iterable[Job]) -> None:
        """As `Drawing.cancel`."""
        for job in jobs:
            if not job.result.done():
                job.canceled = True
                self._fresh.remove(job) or self._begun.remove(job)
                self._finish(job, Canceled())

    def position(self, job: Job) -> int | None:
        """As `Drawing.position`."""
        return self._fresh.position(job)

    def stop_taking(self) -> None:
        """Refuse what is new, and what was not begun."""
        self._closing = True
        for job in list(self._fresh):
            self._fresh.remove(job)
            self._finish(job, Closing("the service was stopped before this picture was begun"))
        self._wake.set()

    async def close(self) -> None:
        """As `Drawing.close`."""
        self.stop_taking()
        if self._task is not None:
            await self._task
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
        for job in jobs:
            job.started = True
        assert self._painter is not None
        outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._painter.advance, jobs)
        self._running = []
        self.metrics.batch(len(jobs), time.monotonic() - start)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome is None and not job.canceled:
                job.stage += 1
                self._begun.add(job)
            elif outcome is not None:
                self._finish(job, outcome)
        finished = sum(isinstance(outcome, Drawn) for outcome in outcomes)
        if finished:
            self._pace += 0.2 * ((time.monotonic() - start) / finished - self._pace)

    def _finish(self, job: Job, outcome: Drawn | BaseException) -> None:
        """Give a job its picture or error, once; and end its events."""
        job.work = None
        if job.result.done():
            return
        mode = job.order.settings.mode
        if isinstance(outcome, Drawn):
            self.metrics.finished(mode, "drawn", outcome.seconds)
            job.result.set_result(outcome)
        else:
            kind = "canceled" if isinstance(outcome, Canceled) else "failed"
            self.metrics.finished(mode, kind)
            if kind == "failed" and not isinstance(outcome, ValueError | Closing):
                logger.error("A picture could not be drawn", exc_info=outcome)
            job.result.set_exception(outcome)
            job.result.exception()  # nobody may be there to ask for it
        job.events.put_nowait(None)

    def _tell(self, job: Job, index: int, image: "Image") -> None:
        """Hand an unfinished picture from the drawing thread to the loop."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(job.events.put_nowait, Partial(index, image))

    def _wait(self) -> float:
        """Seconds until the queue is likely to have room."""
        return min(60.0, max(1.0, self._pace * max(1, self.limits.batch)))


def _set_threads(threads: int | None) -> None:
    """Before the first sum of the drawing thread: OpenMP keeps the number of threads for each thread of the program."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
