"""From requests to orders for the engine: modes, sizes, seeds, expansion."""

import asyncio
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image

from cogview3.errors import UserError
from cogview3.models.modes import Mode, Overrides
from cogview3.prompts.expand import Expander, Expansion
from cogview3.serving.keys import Keys
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Busy, Order, Settings
from cogview3.serving.queue import Limits, Queue
from cogview3.serving.sizes import Size, Sizes

STRENGTH, MASKED_STRENGTH, FAITHFUL_STRENGTH = 0.6, 1.0, 0.35
"""How much of a given picture is redrawn by default; within a mask; where it is to be kept close to."""

LARGEST = 2048
"""Side in pixels up to which pictures are enlarged."""

MOST_CHECKED, MOST_WARNINGS = 2000, 10
"""Characters of a prompt that are looked at for warnings, and warnings that are given."""

_FOREIGN = re.compile(r"(gpt-image|dall-e|chatgpt-image)-?.*")
"""Names that programs written for OpenAI's models ask for without asking their user; they get the model served."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


@dataclass(frozen=True)
class Wish:
    """Pictures of one request; None leaves a choice to the model.

    Attributes:
        count: pictures; the i-th has the seed `seed` + i.
        size: width and height in pixels.
        enlarge: how often the sides of `image` are doubled, instead of drawing anything.
        expand: whether a description of the prompt is drawn; by default where there is an expander, but not in
            enlarging.
        expanded: that description, where it is known.
        The others are those of `orders.Order` and `orders.Settings`.
    """

    prompt: str | None
    negative_prompt: str | None = None
    count: int = 1
    size: tuple[int, int] | None = None
    mode: str | None = None
    steps: int | None = None
    relay_steps: int | None = None
    guidance: float | None = None
    relay_guidance: float | None = None
    seed: int | None = None
    image: Image | None = None
    mask: Image | None = None
    strength: float | None = None
    enlarge: int | None = None
    expand: bool | None = None
    expanded: str | None = None
    partials: int = 0


@dataclass(frozen=True)
class Plan:
    """What is drawn for a wish.

    Attributes:
        prompt: as it was given.
        revised: the description drawn in its place; None where the prompt itself is.
        warnings: what of the prompt the pictures will not show, and why it was not described, a sentence each.
    """

    orders: list[Order]
    size: Size
    prompt: str | None
    revised: str | None
    warnings: list[str]


@dataclass
class Service:
    """All that API, page and tools share.

    Attributes:
        default_mode: the one drawn where none is asked for.
        expander: writes descriptions; None where there is none.
        problems: what of a prompt the model does not know or cannot draw, a sentence each.
        strict_sizes: whether sizes that the model does not draw are refused.
    """

    engine: Queue
    model: str
    modes: dict[str, Mode]
    default_mode: str
    sizes: Sizes
    limits: Limits
    metrics: Metrics
    keys: Keys
    expander: Expander | None = None
    problems: Callable[[str], list[str]] = lambda prompt: []
    strict_sizes: bool = False

    def __post_init__(self) -> None:
        self._writer = ThreadPoolExecutor(1, "expander", initializer=torch.set_num_threads, initargs=(1,))
        self._expanding = 0

    def pick_model(self, name: str | None) -> str | None:
        """The mode that a model's name asks for, None for none.

        Raises:
            LookupError: there is no such model.
        """
        if name is None or name == self.model or _FOREIGN.fullmatch(name):
            return None
        model, _, mode = name.rpartition("@")
        if model != self.model or mode not in self.modes:
            raise LookupError(f"there is no model {name!r}: /v1/models lists those that there are")
        return mode

    def quality_mode(self, quality: str | None) -> str | None:
        """The mode that a quality asks for; None leaves it to the service."""
        steps = {name: mode.steps + mode.relay_steps for name, mode in self.modes.items()}
        full = [name for name in steps if not self.modes[name].light] or list(steps)
        if quality in (None, "auto", "standard"):
            return None
        if quality == "low":
            return min(steps, key=lambda name: (steps[name], not self.modes[name].light))
        if quality == "medium":
            return min(full, key=steps.__getitem__)
        return max(full, key=steps.__getitem__)

    def quality_of(self, mode: str) -> str:
        """low, medium or high: what a mode is called in answers."""
        for quality in ("high", "medium", "low"):
            if self.quality_mode(quality) == mode:
                return quality
        return "medium" if self.modes[mode].light else "high"

    async def plan(self, wish: Wish) -> Plan:
        """Orders for a wish, its prompt expanded where that is asked for.

        Raises:
            UserError: what cannot be drawn.
        """
        prompt = _clean("prompt", wish.prompt)
        revised, warnings = wish.expanded, []
        if prompt and not wish.enlarge:
            warnings = (await asyncio.to_thread(self.problems, prompt[:MOST_CHECKED]))[:MOST_WARNINGS]
        expands = self.expander is not None and not wish.enlarge if wish.expand is None else wish.expand
        if prompt and not revised and expands:
            expansion = await self.expand(prompt)
            revised = expansion.text
            warnings += [f"not expanded: {expansion.reason}"] if expansion.reason else []
        wish = replace(wish, prompt=revised or prompt, negative_prompt=_clean("negative_prompt", wish.negative_prompt))
        size = self._size(wish)
        settings = self._settings(wish, size)
        seed = secrets.randbelow(2**31) if wish.seed is None else wish.seed
        orders = [
            Order(settings, wish.prompt, seed + i, wish.negative_prompt, wish.image, wish.mask, wish.partials)
            for i in range(wish.count)
        ]
        return Plan(orders, size, prompt, None if revised == prompt else revised, warnings)

    async def expand(self, prompt: str) -> Expansion:
        """The description of a prompt; the prompt itself, and why, where the language model gives none that is good.

        Raises:
            UserError: there is no language model.
            Busy: too many prompts wait for one.
        """
        if self.expander is None:
            raise UserError("expand: the service has no language model; leave it out, or start it with --expander")
        if self._expanding >= self.limits.waiting:
            raise Busy(f"{self._expanding} prompts wait to be expanded: try again later", 10.0)
        self._expanding += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writer, self.expander.expand, prompt)
        finally:
            self._expanding -= 1

    def facts(self, plan: Plan, order: Order) -> dict[str, object]:
        """What is written into a picture's file, under the names that `generate` uses."""
        settings = order.settings
        return {
            "model": self.model,
            "mode": settings.mode,
            "steps": settings.steps or None,
            "guidance": settings.guidance if settings.steps else None,
            "relays": settings.relays,
            "relay_steps": settings.relay_steps if settings.relays else None,
            "relay_guidance": settings.relay_guidance if settings.relays and settings.prompted else None,
            "light": self.modes[settings.mode].light,
            "negative_prompt": order.negative_prompt,
            "strength": settings.strength,
            "prompt": plan.prompt,
            "expanded_prompt": plan.revised,
            "seed": order.seed,
        }

    def _size(self, wish: Wish) -> Size:
        if wish.enlarge:
            assert wish.image is not None
            width, height = (side << wish.enlarge for side in wish.image.size)
            if max(width, height) > LARGEST:
                raise UserError(
                    f"image is {wish.image.width}x{wish.image.height}: enlarged its sides would be longer than "
                    f"{LARGEST}; give a smaller one"
                )
            return Size(width, height, wish.enlarge)
        asked = wish.size or (wish.image.size if wish.image else None)
        if asked is None:
            return self.sizes.own
        size = self.sizes.nearest(*asked)
        if wish.size and self.strict_sizes and (size.width, size.height) != wish.size:
            raise UserError(f"size {asked[0]}x{asked[1]} is not drawn by this model: the nearest is {size}")
        return size

    def _settings(self, wish: Wish, size: Size) -> Settings:
        name = wish.mode or self.default_mode
        mode = self.modes[name]
        names = ("steps", "relay_steps", "guidance", "relay_guidance")
        settled = mode.settle(Overrides(**{each: getattr(wish, each) for each in names}), name)
        if mode.distilled and wish.negative_prompt:
            raise UserError(f"negative_prompt: mode {name!r} is distilled and takes no negative prompt; leave it out")
        if wish.image is None and (wish.strength is not None or wish.mask is not None):
            raise UserError("strength and mask are for an image: give one")
        if wish.prompt is None and not wish.enlarge:
            raise UserError("prompt is missing: say what to draw; only enlarging works without one")
        strength = None
        if wish.image is not None and not wish.enlarge:
            strength = wish.strength or (STRENGTH if wish.mask is None else MASKED_STRENGTH)
        given = wish.image.size if wish.image else None
        width, height = given if wish.enlarge and given else (size.width, size.height)
        return Settings(
            mode=name,
            width=width,
            height=height,
            relays=size.relays,
            steps=0 if wish.enlarge else settled.steps,
            relay_steps=settled.relay_steps,
            guidance=settled.guidance,
            relay_guidance=settled.relay_guidance_scale,
            enlarge=bool(wish.enlarge),
            strength=strength,
            masked=wish.mask is not None,
            given=given,
            prompted=wish.prompt is not None,
            negative=wish.negative_prompt is not None,
            whole=bool(mode.light) or wish.mask is not None,
        )


def _clean(name: str, text: str | None) -> str | None:
    """A text without control characters, None for an empty one."""
    if text is None:
        return None
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{name} is not valid Unicode: it holds half of a surrogate pair")
    return _CONTROL.sub(" ", text).strip() or None
