"""Unfinished pictures: when they are due, and how latents become one."""

from typing import Any

import torch
from PIL.Image import Image

FIRST, LAST = 0.2, 0.8
"""Shares of the work after which the first unfinished picture is due, and by which the last one is."""


class Pace:
    """Spreads `count` unfinished pictures over the work of a picture, one after a step, none after the last."""

    def __init__(self, count: int) -> None:
        self._count, self._shown = count, 0
        self._costs: list[float] = []

    def begin(self, steps: int, relays: int, relay_steps: int) -> None:
        """Tell, once at least before `due`, of how many steps the work is, `relay_steps` of them in each relay.

        A relay's step costs four times as much as one of the stage before.
        """
        if self._costs or not self._count:
            return
        base = steps - relays * relay_steps
        costs = [1.0] * base + [4.0**relay for relay in range(1, relays + 1) for _ in range(relay_steps)]
        total = sum(costs)
        self._costs = [sum(costs[: step + 1]) / total for step in range(len(costs))]

    def due(self, done: int) -> int | None:
        """The number of the unfinished picture, from 0 on, that is due after `done` steps; None where none is."""
        left = self._count - self._shown
        if left <= 0 or done >= len(self._costs):
            return None
        share = FIRST + (LAST - FIRST) * self._shown / self._count
        if self._costs[done - 1] < share and len(self._costs) - done > left:
            return None
        self._shown += 1
        return self._shown - 1


@torch.no_grad()
def to_picture(pipe: Any, latents: torch.Tensor) -> Image:
    """Scaled latents, (1, C, h, w), to a picture: by the tiny decoder where the pipeline has one, else by its VAE."""
    if pipe.light_decoder is not None:
        pixels = pipe.light_decoder(latents.to(pipe.light_decoder.dtype))
    else:
        config = pipe.vae.config
        unscaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
        pixels = pipe.vae.decode(unscaled.to(pipe.vae.dtype), return_dict=False)[0]
    pixels = pixels.float().nan_to_num().clamp(-1, 1)
    return pipe.image_processor.postprocess(pixels, output_type="pil")[0]
