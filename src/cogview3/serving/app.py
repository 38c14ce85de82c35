"""The application: API, health, metrics, page; request bodies limited in size and time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogview3 import __version__
from cogview3.serving import api, sdapi
from cogview3.serving.errors import ApiError, add_handlers
from cogview3.serving.requests import Requests, client_of
from cogview3.serving.service import Service

MOST_BODY = 2**20
"""Bytes of a body without files."""

BODY_SECONDS, BODY_RATE = 30.0, 2**17
"""A body must be there within so many seconds, and one more for each so many bytes that it may have."""


def create_app(
    service: Service, most_upload: int = 20 * 2**20, page: bool = True, tools: bool = True, host: str = "127.0.0.1"
) -> FastAPI:
    """The application around a service.

    Args:
        service: what it serves; its engine is started and closed with the application.
        most_upload: bytes of a body with files.
        page: whether there is a page at /.
        tools: whether there is an MCP endpoint at /mcp.
        host: address that is listened at; on this machine's own the endpoint refuses names of others (DNS rebinding).
    """
    requests = Requests(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            service.engine.start()
            stack.push_async_callback(service.engine.close)
            if tools:
                await stack.enter_async_context(sessions.run())
            yield

    app = FastAPI(
        title="CogView3",
        version=__version__,
        summary="Pictures of prompts, by OpenAI's images API.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    add_handlers(app)
    app.include_router(api.create_router(service, requests))
    app.include_router(sdapi.create_router(service, requests))
    _add_probes(app, service)
    app.openapi = _document(app)  # type: ignore[method-assign]
    app.add_middleware(Bodies, most=MOST_BODY, most_upload=most_upload)
    app.add_middleware(Counted, service=service, paths=frozenset(app.openapi()["paths"]))
    if tools:
        from cogview3.serving.tools import mount_tools

        sessions = mount_tools(app, service, requests, host)
    if page:
        from cogview3.serving.page import mount_page

        mount_page(app, service, requests)
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    """/health, /ready and /metrics."""
    engine, metrics = service.engine, service.metrics
    metrics.gauge("waiting_pictures", "Pictures that wait to be begun.", lambda: engine.waiting)
    metrics.gauge("running_pictures", "Pictures that were begun.", lambda: engine.running)

    @app.get("/health", tags=["probes"])
    async def health() -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "ok"}

    @app.get("/ready", tags=["probes"], responses={503: {"description": "Nothing is taken on, or not yet."}})
    async def ready() -> JSONResponse:
        """Whether pictures are taken on."""
        return JSONResponse({"status": "ready" if engine.ready else "closing"}, 200 if engine.ready else 503)

    @app.get("/metrics", tags=["probes"], response_class=PlainTextResponse, responses={401: api.ERRORS[401]})
    async def figures(request: Request) -> Response:
        """Figures for Prometheus."""
        client_of(request, service.keys)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The OpenAPI document without the 422 that FastAPI expects of every body: here that is a 400."""
    make = app.openapi

    def document() -> dict[str, Any]:
        made = make()
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            made["components"]["schemas"].pop(name, None)
        return made

    return document


class Bodies:
    """Refuses bodies that are too large or come too slowly."""

    def __init__(self, app: ASGIApp, most: int, most_upload: int) -> None:
        self._app, self._most, self._most_upload = app, most, most_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        files = headers.get(b"content-type", b"").startswith(b"multipart/")
        most, seen, over = self._most_upload if files else self._most, 0, False
        refusal, deadline = f"the body is larger than {most} bytes", time.monotonic() + BODY_SECONDS + most / BODY_RATE
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            await ApiError(413, refusal, "too_large").response()(scope, receive, send)
            return

        async def limited() -> Message:
            nonlocal seen, over
            if over:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time") from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                over = not message.get("more_body", False)
                if seen > most:
                    raise HTTPException(413, refusal)
            return message

        await self._app(scope, limited, send)


class Counted:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, service.metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(path, message["status"])
            await send(message)

        await self._app(scope, receive, counted)
