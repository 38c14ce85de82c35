"""The queue before the engine: jobs in, pictures out, from asyncio."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cogview3.serving.line import Line
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Busy, Canceled, Closing, Drawn, Job, Order
from cogview3.serving.sizes import Sizes

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


class Queue(ABC):
    """What API and page need of an engine: who waits, who is refused, who is told what.

    A subclass draws in `_run`, which takes jobs out of `_fresh` and hands them to `_finish`.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._fresh = Line()
        self._closing = False
        self._pace = 1.0  # seconds a picture, a moving average
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def load(self, mode: str, relays: int) -> Sizes:
        """Make ready to draw in a mode, before all else.

        Returns:
            The sizes drawn with up to `relays` doublings, none where the model has no relay.

        Raises:
            UserError: what loading raises, or the model names no size of its own.
        """

    @property
    @abstractmethod
    def running(self) -> int:
        """Pictures that were begun and are not finished."""

    @abstractmethod
    async def _run(self) -> None:
        """Draw until closed and nothing begun is left."""

    @abstractmethod
    def _stop(self, job: Job) -> None:
        """Stop a job that was begun."""

    def start(self) -> None:
        """Begin to draw, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    @property
    def ready(self) -> bool:
        """Whether new orders are taken."""
        return self._task is not None and not self._task.done() and not self._closing

    @property
    def waiting(self) -> int:
        """Pictures that were not begun yet."""
        return len(self._fresh)

    def submit(self, orders: Sequence[Order], client: str) -> list[Job]:
        """Queue orders, all or none. Raises Busy or Closing."""
        if not self.ready:
            raise Closing("the service is being stopped")
        own = self._fresh.count(client) + len(orders)
        for count, most, whose in (
            (len(self._fresh) + len(orders), self.limits.waiting, "the queue"),
            (own, self.limits.waiting_each, "your part of the queue"),
        ):
            if count > most:
                seconds = min(60.0, max(1.0, self._pace * self.limits.batch))
                raise Busy(f"{whose} is full ({most} pictures): try again later", seconds)
        loop = asyncio.get_running_loop()
        jobs = [Job(order, client, loop.create_future()) for order in orders]
        for job in jobs:
            self._fresh.add(job)
        self._wake.set()
        return jobs

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Stop jobs within one step; those that are done are left alone."""
        for job in jobs:
            if not job.result.done():
                job.canceled = True
                if not self._fresh.remove(job):
                    self._stop(job)
                self._finish(job, Canceled())

    def position(self, job: Job) -> int | None:
        """How many pictures are likely to be begun before it; None where it was begun."""
        return self._fresh.position(job)

    def stop_taking(self) -> None:
        """Refuse what is new, and what was not begun."""
        self._closing = True
        for job in list(self._fresh):
            self._fresh.remove(job)
            self._finish(job, Closing("the service was stopped before this picture was begun"))
        self._wake.set()

    async def close(self) -> None:
        """Refuse what is new and what waits, finish what was begun."""
        self.stop_taking()
        if self._task is not None:
            await self._task

    def _finish(self, job: Job, outcome: Drawn | BaseException) -> None:
        """Give a job its picture or error, once; and end its events."""
        if job.result.done():
            return
        mode = job.order.settings.mode
        if isinstance(outcome, Drawn):
            self._pace += 0.2 * (outcome.seconds / self.limits.batch - self._pace)
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
