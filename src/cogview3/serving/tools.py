"""A Model Context Protocol endpoint: drawing as a tool for language models."""

import asyncio
import secrets

from fastapi import FastAPI, Request
from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import ASGIApp, Receive, Scope, Send

from cogview3 import __version__
from cogview3.serving.errors import ApiError
from cogview3.serving.pictures import from_base64, read_upload, write_picture
from cogview3.serving.requests import Requests, client_of
from cogview3.serving.service import Service, Wish
from cogview3.serving.sizes import parse_size

CLIENT = "mcp"


def mount_tools(app: FastAPI, service: Service, requests: Requests, host: str) -> StreamableHTTPSessionManager:
    """Put the endpoint (streamable HTTP) at /mcp, behind the API keys where there are some; it answers while run."""
    server = create_tools(service, requests)
    inner = server.streamable_http_app(streamable_http_path="/", stateless_http=True, json_response=True, host=host)
    app.mount("/mcp", Guarded(inner, service))
    return server.session_manager


def create_tools(service: Service, requests: Requests) -> MCPServer:
    """The server with its tools."""
    server = MCPServer(
        "cogview3",
        version=__version__,
        log_level="WARNING",
        instructions=f"Draws pictures of prompts with the text-to-image model {service.model}.",
    )

    async def draw(wish: Wish) -> list[Image | str]:
        plan = await service.plan(wish)
        ask = requests.begin(f"mcp_{secrets.token_hex(12)}", CLIENT, plan)
        (drawn,) = await requests.drawn(ask)
        facts = service.facts(plan, plan.orders[0])
        image = Image(data=await asyncio.to_thread(write_picture, drawn.image, "png", None, facts), format="png")
        return [image, *plan.warnings]

    @server.tool(structured_output=False)
    async def generate_image(
        prompt: str,
        size: str = "auto",
        seed: int | None = None,
        negative_prompt: str | None = None,
        expand: bool | None = None,
    ) -> list[Image | str]:
        """Draw a picture of a prompt; sentences behind it say what of the prompt it will not show.

        `size` is WIDTHxHEIGHT or auto; the nearest one that the model draws is taken. Where the service can describe
        prompts in full, it draws a description of the prompt unless `expand` is false.
        """
        sides = None if size == "auto" else parse_size(size)
        return await draw(Wish(prompt, negative_prompt, size=sides, seed=seed, expand=expand))

    @server.tool(structured_output=False)
    async def enlarge_image(image: str, prompt: str | None = None, seed: int | None = None) -> list[Image | str]:
        """Double the sides of a picture, given as base64 text; the prompt says what it shows, if that is known."""
        picture = await asyncio.to_thread(read_upload, "image", from_base64("image", image))
        return await draw(Wish(prompt, image=picture, enlarge=1, seed=seed))

    return server


class Guarded:
    """Asks for an API key where there are some."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._keys = app, service.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server."""
        try:
            client_of(Request(scope, receive), self._keys)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)
