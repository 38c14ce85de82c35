"""A tiny model served in this process, and helpers to ask for pictures."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from cogview3 import CogView3Pipeline
from cogview3.models.modes import Mode, Sampling, write_sampling
from cogview3.prompts.expand import Expander
from cogview3.serving.app import create_app
from cogview3.serving.engine import Engine
from cogview3.serving.keys import Keys
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Order, Settings
from cogview3.serving.queue import Limits
from cogview3.serving.server import bind, create_server
from cogview3.serving.service import Service
from tests.serving.process import Process

TINY = Settings("2+2", 64, 64, 1, 2, 2, 3.0, 3.0)
"""What the tiny model draws: a base picture of 32 x 32, one relay."""


@pytest.fixture(scope="session")
def kept() -> Iterator[dict[str, Any]]:
    """What is made once for all tests, by name; what has a `stack` is closed at the end."""
    with ExitStack() as stack:
        yield {"stack": stack}


@pytest.fixture
def pipe(kept: dict[str, Any], make_components: Callable[..., dict[str, Any]]) -> CogView3Pipeline:
    """A tiny pipeline with a mode; the same one in all tests."""
    if "pipe" not in kept:
        kept["pipe"] = pipe = CogView3Pipeline(**make_components())
        pipe.mode_name, pipe.mode = "2+2", Mode(steps=2, relay_steps=2, guidance=3.0)
        pipe.set_progress_bar_config(disable=True)
    return kept["pipe"]


@pytest.fixture
def folder(pipe: CogView3Pipeline, tmp_path: Path) -> Path:
    """The tiny model's folder."""
    pipe.save_pretrained(tmp_path / "tiny")
    write_sampling(Sampling(default="2+2", modes={"2+2": pipe.mode}), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `cogview3 serve` with the arguments given; all of them are ended with the test, in good order."""
    with ExitStack() as stack:

        def begin(*model: str) -> Process:
            process = Process(tmp_path, *model)
            stack.callback(process.end)
            return process

        yield begin


@pytest.fixture
def served(kept: dict[str, Any], pipe: CogView3Pipeline) -> "Served":
    """A service of it; the same one in all tests, which leave it as it was."""
    if "served" not in kept:
        kept["served"] = kept["stack"].enter_context(serving(pipe))
    return kept["served"]


def order(prompt: str | None = "a red star", seed: int = 0, **changes: Any) -> Order:
    """An order for the tiny model; keyword arguments change its settings."""
    own = {name: changes.pop(name) for name in ("negative_prompt", "image", "mask", "partials") if name in changes}
    return Order(replace(TINY, **changes), prompt, seed, **own)


@asynccontextmanager
async def running(pipelines: dict[str, Any], **limits: Any) -> AsyncIterator[Engine]:
    """An engine that draws."""
    engine = Engine(pipelines, Limits(**{"threads": 1, **limits}), Metrics())
    engine.load("2+2", 2)
    engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
def alone(pipe: CogView3Pipeline) -> Callable[..., torch.Tensor]:
    """The picture of an order as the pipeline draws it by itself, (3, H, W) in 0..255."""

    def draw(prompt: str = "a red star", seed: int = 0, **arguments: Any) -> torch.Tensor:
        generator = [torch.Generator().manual_seed(seed)]
        image = pipe(prompt, generator=generator, width=64, height=64, **arguments).images[0]
        return pixels(image)

    return draw


def pixels(image: Any) -> torch.Tensor:
    """A PIL picture as integers, (3, H, W)."""
    import numpy as np

    return torch.from_numpy(np.array(image)).movedim(-1, 0).int()


def run(coroutine: Any) -> Any:
    """Run a coroutine in a loop of its own; a test that hangs fails."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@dataclass
class Served:
    """A service on a port of this machine.

    Attributes:
        url: without a path.
        service: what it serves.
        pipe: its only pipeline.
    """

    url: str
    service: Service
    pipe: CogView3Pipeline

    def __post_init__(self) -> None:
        self.opened = ExitStack()

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client."""
        options = {"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0, **options}
        return self.opened.enter_context(openai.OpenAI(**options))

    def http(self) -> httpx.Client:
        """A plain one."""
        return httpx.Client(base_url=self.url, timeout=30)


@contextmanager
def serving(
    pipe: CogView3Pipeline,
    page: bool = False,
    tools: bool = False,
    keys: Keys | None = None,
    expander: Expander | None = None,
    **limits: Any,
) -> Iterator[Served]:
    """Serve a tiny pipeline, with a twin mode that is distilled in name, until the block ends."""
    modes = {"2+2": pipe.mode, "quick": Mode(steps=2, relay_steps=1, guidance=3.0, distilled=True)}
    limits_of = Limits(**{"threads": 1, "linger": 0.02, **limits})
    metrics = Metrics()
    engine = Engine({"2+2": pipe, "quick": pipe}, limits_of, metrics)
    sizes = engine.load("2+2", 2)
    service = Service(engine, "tiny", modes, "2+2", sizes, limits_of, metrics, keys or Keys(), expander)
    server = create_server(create_app(service, page=page, tools=tools), engine)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service, pipe)
    try:
        yield served
    finally:
        served.opened.close()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Shouting:
    """A language model of few words."""

    name = identity = "shouting"

    def write(self, prompt: str, number: int, earlier: str, lost: Sequence[str]) -> list[str]:
        return [f"This is a picture of {prompt}, which is seen from the front and lit from the left."]
