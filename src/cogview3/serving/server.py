"""uvicorn as this service needs it: few idle connections, no slow ones, and an orderly end."""

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cogview3.config import UserError
from cogview3.serving.engine import Engine

MOST_CONNECTIONS = 1000
"""Open connections; more are closed at once, before they cost anything."""

HEADER_SECONDS = 10.0
"""That a connection may take until its first request has come."""


class Connection(H11Protocol):
    """Closes connections that are too many, or bring no whole request head in time."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        if len(self.connections) >= MOST_CONNECTIONS:
            transport.abort()
            return
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if self._patience is not None:
            self._patience.cancel()
        if self in self.connections:
            super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()


class Server(uvicorn.Server):
    """Tells the engine of the end as soon as it is asked for, so that what waits is refused and not waited for."""

    def __init__(self, config: uvicorn.Config, engine: Any) -> None:
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn on SIGTERM and SIGINT."""
        if isinstance(self._engine, Engine):
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


def create_server(app: Any, engine: Any, access_log: bool = False) -> Server:
    """A server for an application and its engine."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        access_log=access_log,
        log_level="info" if access_log else "warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=600,
        server_header=False,
        h11_max_incomplete_event_size=2**16,
    )
    return Server(config, engine)
