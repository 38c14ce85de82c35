"""A request from its plan to its pictures: progress, cancellation when its client leaves, timeout."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import Request

from cogview3.serving.errors import ApiError, too_many
from cogview3.serving.keys import Keys
from cogview3.serving.orders import Canceled, Drawn, Job, Partial
from cogview3.serving.service import Plan, Service

HEARTBEAT = 10.0
"""Seconds after which a silent stream tells that it lives."""


@dataclass(eq=False)
class Ask:
    """A request that is being drawn, by its x-request-id; `started` by the clock of `time.monotonic`."""

    id: str
    client: str
    plan: Plan
    jobs: list[Job]
    started: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> float:
        """Share of its steps that is done."""
        return sum(min(1.0, job.done / job.steps) for job in self.jobs) / len(self.jobs)


class Requests:
    """All requests that are not answered yet."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: dict[str, Ask] = {}

    def begin(self, id: str, client: str, plan: Plan) -> Ask:
        """Queue a plan's pictures. Raises ApiError where the client is over its limit, and what `submit` does."""
        wait = self._service.keys.wait(client, len(plan.orders))
        if wait:
            raise too_many("over the limit of pictures a minute: try again later", wait)
        ask = Ask(id, client, plan, self._service.engine.submit(plan.orders, client))
        self._open[id] = ask
        return ask

    def end(self, ask: Ask) -> None:
        """Let go of a request, and stop what is left of it."""
        self._service.engine.cancel(ask.jobs)
        self._open.pop(ask.id, None)

    def of(self, client: str) -> list[Ask]:
        """A client's requests, the oldest first."""
        return [ask for ask in self._open.values() if ask.client == client]

    def cancel(self, id: str, client: str) -> bool:
        """Stop a client's request; False where it has none of that id."""
        ask = self._open.get(id)
        if ask is None or ask.client != client:
            return False
        self._service.engine.cancel(ask.jobs)
        return True

    def position(self, ask: Ask) -> int | None:
        """Pictures that are likely to be begun before any of the request's; None once one was begun."""
        positions = [self._service.engine.position(job) for job in ask.jobs]
        waiting = [position for position in positions if position is not None]
        return min(waiting) if len(waiting) == len(positions) else None

    def left(self, ask: Ask) -> float:
        """Seconds until a request is likely to be done, from what it took so far; 0 where nothing is known yet."""
        progress = ask.progress
        return (time.monotonic() - ask.started) * (1 - progress) / progress if progress else 0.0

    async def drawn(self, ask: Ask, request: Request | None = None) -> list[Drawn]:
        """All pictures of a request; one that fails fails the request, and its client's leaving ends it.

        Raises:
            TimeoutError: the time limit passed.
            Canceled: nobody waits any more.
        """
        pictures = asyncio.gather(*(job.result for job in ask.jobs))
        gone = asyncio.create_task(_disconnected(request)) if request is not None else None
        try:
            waited = {pictures} if gone is None else {pictures, gone}
            done, _ = await asyncio.wait(
                waited, timeout=self._service.limits.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                raise TimeoutError
            if pictures not in done:
                raise Canceled
            return pictures.result()
        finally:
            self.end(ask)
            if gone is not None:
                gone.cancel()
            pictures.cancel()
            with suppress(BaseException):
                pictures.exception() if pictures.done() else None

    async def events(self, ask: Ask) -> AsyncIterator[tuple[int, Partial | Drawn] | None]:
        """Unfinished and finished pictures as they come, with their number in the request; None now and then.

        Raises:
            TimeoutError: the time limit passed.
        """
        feed: asyncio.Queue[tuple[int, Partial | Drawn | BaseException]] = asyncio.Queue()
        tasks = [asyncio.create_task(_follow(number, job, feed)) for number, job in enumerate(ask.jobs)]
        limit = ask.started + self._service.limits.seconds
        try:
            left = len(tasks)
            while left:
                try:
                    number, event = await asyncio.wait_for(feed.get(), HEARTBEAT)
                except TimeoutError:
                    if time.monotonic() > limit:
                        raise
                    yield None
                    continue
                if isinstance(event, BaseException):
                    raise event
                left -= isinstance(event, Drawn)
                yield number, event
        finally:
            for task in tasks:
                task.cancel()
            self.end(ask)


async def _follow(number: int, job: Job, feed: "asyncio.Queue[tuple[int, Partial | Drawn | BaseException]]") -> None:
    while (event := await job.events.get()) is not None:
        feed.put_nowait((number, event))
    try:
        feed.put_nowait((number, await job.result))
    except Exception as error:
        feed.put_nowait((number, error))


async def _disconnected(request: Request) -> None:
    """Return when the client has left; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def client_of(request: Request, keys: Keys) -> str:
    """Whose request this is: the name of its key, or its address where there are no keys.

    Raises:
        ApiError: no key, or a wrong one.
    """
    if not len(keys):
        return request.client.host if request.client else "unknown"
    secret = _secret(request.headers.get("authorization", ""))
    name = keys.name(secret) if secret else None
    if name is None:
        message = "the API key is wrong" if secret else "there is no API key: send it as Authorization: Bearer KEY"
        raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    return name


def _secret(header: str) -> str | None:
    """The key of an Authorization header: a bearer's token, or the password of programs that know no other way."""
    kind, _, rest = header.partition(" ")
    if kind.lower() == "bearer":
        return rest.strip() or None
    if kind.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2] or None
    return None
