"""Drawing with a CogView3 model: the same noise for picture i in every model, whatever the batch."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cogview3.data.latents import decode
from cogview3.evaluation.metrics.base import Drawn
from cogview3.evaluation.prompt import Prompt
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.models.modes import Overrides


def generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator a picture, on the CPU: its noise depends on the seed and the picture's number alone."""
    seeds = [np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] for index in indices]
    return [torch.Generator().manual_seed(int(value >> np.uint64(1))) for value in seeds]


def draw_batch(
    pipe: CogView3Pipeline,
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    seed: int,
    sampling: Overrides,
    with_base: bool = True,
) -> Drawn:
    """The pictures of those prompts that `indices` name, and `with_base` the base pictures of the very same runs."""
    base_steps = pipe.settle(sampling).steps
    captured: dict[str, Tensor] = {}

    def capture(
        pipeline: CogView3Pipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if step == base_steps - 1:
            captured["base"] = tensors["latents"]
        return {}

    start = time.perf_counter()
    pictures = pipe(
        [prompts[index].text for index in indices],
        generator=generators(seed, indices),
        output_type="pt",
        callback_on_step_end=capture,
        **sampling.arguments(),
    ).images
    if pictures.device.type != "cpu":
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    enlarged = with_base and pipe.num_timesteps > base_steps
    base = decode(pipe.vae, captured["base"]).float() if enlarged else None
    return Drawn(indices, pictures * 2 - 1, base, pipe.vae, seconds)
