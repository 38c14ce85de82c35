"""HTTP requests that respect their timeout, whatever the server does."""

import asyncio
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from cogview3.config import UserError
from cogview3.prompts.addresses import is_here

MAX_ANSWER = 2**25
"""Bytes; a longer answer is not read to its end."""


@dataclass(frozen=True)
class Response:
    """Status, headers and content of an answer; `content` is cut somewhere above `MAX_ANSWER`."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def library() -> ModuleType:
    """The HTTP library. Raises UserError where it is not installed."""
    try:
        import httpx2
    except ImportError:
        raise UserError('endpoints need httpx2; install it with pip install "cogview3[captions]"') from None
    return httpx2


class Poster:
    """Posts to one address. Threads may share it.

    Libraries limit the wait for each piece of an answer; here one limit holds for all of it, from the look-up of the
    name to the last byte, also where headers drip. So requests run on an event loop, in a thread of its own. `timeout`
    is in seconds, for a request.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        http = library()
        self._url, self._timeout = url, timeout
        self._client = http.AsyncClient(
            headers=dict(headers),
            timeout=None,
            limits=http.Limits(max_connections=None),
            trust_env=not is_here(url),  # whose proxy would be given the key
            verify=url.startswith("https:"),  # else the system's certificates are loaded for nothing
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def post(self, content: bytes, headers: Mapping[str, str]) -> Response:
        """The answer to a request. Raises TimeoutError, UnicodeError for no host's name, and what the library does."""
        (urlsplit(self._url).hostname or "").encode("idna")
        waiting = asyncio.run_coroutine_threadsafe(self._post(content, headers), self._running())
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise

    async def _post(self, content: bytes, headers: Mapping[str, str]) -> Response:
        async with (
            asyncio.timeout(self._timeout),
            self._client.stream("POST", self._url, content=content, headers=dict(headers)) as response,
        ):
            received = bytearray()
            async for piece in response.aiter_bytes():
                received += piece
                if len(received) > MAX_ANSWER:
                    break
            return Response(response.status_code, response.headers, bytes(received))

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(self._loop,), daemon=True)
                thread.start()
                weakref.finalize(self, _close, self._loop, self._client, thread)
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _close(loop: asyncio.AbstractEventLoop, client: Any, thread: threading.Thread) -> None:
    async def close() -> None:
        await client.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)
    if thread is not threading.current_thread():
        thread.join(5)
