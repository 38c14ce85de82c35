"""Orders, one picture each, and their results."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from cogview3.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What pictures that are drawn together have in common.

    Attributes:
        width, height: of the finished picture in pixels; of the one given where that is enlarged.
        relays: how often the side is doubled.
        steps: of the base; 0 where a picture is enlarged.
        strength: how much of a given picture is redrawn; None without one.
        given: width and height of the picture given; None without one.
        prompted: whether there is a prompt; only enlarging goes without.
        whole: whether all stages are done at one go, rather than queued one by one.
    """

    mode: str
    width: int
    height: int
    relays: int
    steps: int
    relay_steps: int
    guidance: float
    relay_guidance: float
    enlarge: bool = False
    strength: float | None = None
    masked: bool = False
    given: tuple[int, int] | None = None
    prompted: bool = True
    negative: bool = False
    whole: bool = False

    @property
    def stages(self) -> int:
        """How often a picture is queued until it is finished."""
        return 1 if self.whole or self.enlarge else 1 + self.relays

    @property
    def drawn(self) -> tuple[int, int]:
        """Width and height of the finished picture."""
        return (self.width << self.relays, self.height << self.relays) if self.enlarge else (self.width, self.height)


Kind = tuple[Settings, int]
"""Settings, and the stage that comes next: jobs of one kind are drawn together."""


@dataclass(frozen=True)
class Order:
    """One picture.

    Attributes:
        prompt: None where a picture is enlarged without words.
        seed: of its noise, 0 to 2^53 - 1.
        image: RGB picture to begin with, or to enlarge.
        mask: "L" picture of the same size; white is redrawn.
        partials: unfinished pictures wanted on the way, 0 to 3.
    """

    settings: Settings
    prompt: str | None
    seed: int
    negative_prompt: str | None = None
    image: Image | None = None
    mask: Image | None = None
    partials: int = 0


@dataclass(frozen=True)
class Drawn:
    """A finished RGB picture, the seconds that it was drawn, and the prompt's tokens."""

    image: Image
    seconds: float
    tokens: int


@dataclass(frozen=True)
class Partial:
    """An unfinished picture: what the model takes for the finished one at this step.

    Attributes:
        index: from 0 on.
        image: RGB; half the finished picture's size and less while the base is at work.
    """

    index: int
    image: Image


class Canceled(Exception):
    """The picture is not wanted any more."""


class Busy(UserError):
    """The queue is full; after `seconds` it is worth to ask again."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Closing(RuntimeError):
    """The service is being stopped; nothing new is begun."""


@dataclass(eq=False)
class Job:
    """An order on its way through queue and stages; touched by the event loop alone, but where it says otherwise.

    Attributes:
        client: whose it is; the queue is fair between clients.
        events: `Partial` pictures as they come; then None.
        stage: the next one: 0 is the base or everything at once, then the relays.
        done, steps: steps done and in all; written by the painter's thread.
        canceled: set by the loop, read by the painter's thread after every step.
        work: the painter's own between stages.
    """

    order: Order
    client: str
    result: "asyncio.Future[Drawn]"
    events: "asyncio.Queue[Partial | None]" = field(default_factory=asyncio.Queue)
    stage: int = 0
    done: int = 0
    steps: int = 1
    canceled: bool = False
    work: Any = None

    @property
    def kind(self) -> Kind:
        """Jobs of one kind are drawn together."""
        return self.order.settings, self.stage

    @property
    def cost(self) -> float:
        """Of the stage ahead: steps times megapixels."""
        settings = self.order.settings
        width, height = settings.drawn
        stages = range(settings.relays + 1) if settings.stages == 1 else [self.stage]
        steps = [settings.relay_steps if stage else settings.steps for stage in stages]
        pixels = [width * height * 4.0 ** (stage - settings.relays) for stage in stages]
        return sum(count * area for count, area in zip(steps, pixels, strict=True)) / 2**20
