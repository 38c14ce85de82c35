"""The MCP endpoint, asked by the protocol's own client."""

import asyncio
import base64
import io
from typing import Any

from mcp import Client
from PIL import Image

from cogview3 import CogView3Pipeline
from tests.serving.conftest import serving


def test_tools_draw_and_enlarge(pipe: CogView3Pipeline) -> None:
    async def talk(url: str) -> tuple[list[str], Any, Any, Any]:
        async with Client(f"{url}/mcp/") as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            drawn = await client.call_tool("generate_image", {"prompt": "star", "size": "64x64", "seed": 3})
            larger = await client.call_tool("enlarge_image", {"image": drawn.content[0].data, "prompt": "star"})
            wrong = await client.call_tool("generate_image", {"prompt": "star", "size": "large"})
            warned = await client.call_tool("generate_image", {"prompt": "xyz star", "size": "64x64"})
            assert [each.type for each in warned.content] == ["image", "text"]
            assert warned.content[1].text == "xyz is unknown"
            return tools, drawn, larger, wrong

    with serving(pipe, tools=True) as served:
        served.service.problems = lambda prompt: ["xyz is unknown"] if "xyz" in prompt else []
        tools, drawn, larger, wrong = asyncio.run(talk(served.url))
    assert tools == ["generate_image", "enlarge_image"]
    assert [len(each.content) for each in (drawn, larger)] == [1, 1]
    images = [Image.open(io.BytesIO(base64.b64decode(each.content[0].data))) for each in (drawn, larger)]
    assert [image.size for image in images] == [(64, 64), (128, 128)]
    images[0].load()
    assert images[0].text["seed"] == "3"
    assert wrong.is_error
