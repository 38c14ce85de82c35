"""A tiny model served in this process, and helpers to ask for pictures."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from cogview3 import CogView3Pipeline
from cogview3.generation.modes import Mode
from cogview3.serving.engine import Engine, Limits
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Order, Settings

TINY = Settings("2+2", 64, 64, 1, 2, 2, 3.0, 3.0)
"""What the tiny model draws: a base picture of 32 x 32, one relay."""


@pytest.fixture
def pipe(components: dict[str, Any]) -> CogView3Pipeline:
    """A tiny pipeline with a mode."""
    pipe = CogView3Pipeline(**components)
    pipe.mode_name, pipe.mode = "2+2", Mode(steps=2, relay_steps=2, guidance=3.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def order(prompt: str | None = "a red star", seed: int = 0, **changes: Any) -> Order:
    """An order for the tiny model; keyword arguments change its settings."""
    own = {name: changes.pop(name) for name in ("negative_prompt", "image", "mask", "partials") if name in changes}
    return Order(replace(TINY, **changes), prompt, seed, **own)


@asynccontextmanager
async def running(pipelines: dict[str, Any], **limits: Any) -> AsyncIterator[Engine]:
    """An engine that draws."""
    engine = Engine(pipelines, Limits(**{"threads": 1, **limits}), 64 * 64, Metrics())
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
