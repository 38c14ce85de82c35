"""uvicorn as configured for this service: few idle connections, no slow ones, a clean shutdown."""

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from cogview3.errors import UserError
from cogview3.serving.queue import Queue

MOST_CONNECTIONS = 1000
"""Open connections; one more closes the oldest that asks for nothing, and is closed itself where there is none."""

HEADER_SECONDS = 10.0
"""That a connection may take until its first request has come."""

SEND_SECONDS = 60.0
"""That a client may leave unread what is sent to it."""


class State(ServerState):
    """What connections share.

    Attributes:
        by_age: those that are open, the oldest first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_age: dict[Connection, None] = {}


class Connection(H11Protocol):
    """Closes connections that are too many, bring no whole request head in time, or do not read."""

    server_state: State
    _patience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: Any) -> None:
        if len(self.server_state.by_age) >= MOST_CONNECTIONS and not self._make_room():
            transport.abort()
            return
        super().connection_made(transport)
        self.server_state.by_age[self] = None
        self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._patience, self._unread):
            if timer is not None:
                timer.cancel()
        if self in self.server_state.by_age:
            del self.server_state.by_age[self]
            super().connection_lost(exc)

    @override
    def pause_writing(self) -> None:  # what is sent piles up
        super().pause_writing()
        self._unread = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _make_room(self) -> bool:
        """Close the oldest connection without a request in work; False where each has one."""
        for other in self.server_state.by_age:
            if other.cycle is None or other.cycle.response_complete:
                other.transport.abort()
                other.connection_lost(None)
                return True
        return False

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()


class Server(uvicorn.Server):
    """Tells the engine of the end as soon as it is asked for, so that what waits is refused and not waited for."""

    def __init__(self, config: uvicorn.Config, engine: Queue) -> None:
        super().__init__(config)
        self.server_state = State()
        self._engine = engine

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # on SIGTERM and SIGINT
        self._engine.stop_taking()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError where the address is not to be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}; give an address of this machine") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another port or address") from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def raise_file_limit() -> None:
    """As many open files as the system allows: each connection is one."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def create_server(app: Any, engine: Queue, access_log: bool = False) -> Server:
    """A server for an application and its engine."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        access_log=access_log,
        log_level="info" if access_log else "warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=600,
        server_header=False,
        h11_max_incomplete_event_size=2**16,
    )
    return Server(config, engine)
