"""Arguments and results of the pipelines, for type checkers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from cogview3.generation.inputs import Picture

Images = TypeVar("Images", bound=list[Image.Image] | np.ndarray | torch.Tensor)
StepCallback = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]
"""Called as (pipeline, step, timestep, tensors) after a step; returns tensors in place of ours."""

Generators = torch.Generator | Sequence[torch.Generator] | None
"""What draws the noise: one for all pictures, or one for each."""


@dataclass
class RelayPipelineOutput(Generic[Images], BaseOutput):
    """What a call of a pipeline returns.

    Attributes:
        images: what `output_type` asks for: "pil" a list of PIL pictures, "np" an array (B, H, W, 3) and "pt" a tensor
            (B, 3, H, W), both in 0..1, "latent" scaled latents (B, C, H/8, W/8).
    """

    images: Images


class RelayArguments(TypedDict, total=False):
    """Keyword arguments that both pipelines' calls take; see there."""

    num_inference_steps: int | None
    guidance_scale: float | None
    relay_start: int | None
    num_images_per_prompt: int
    generator: Generators
    latents: torch.Tensor | None
    prompt_embeds: torch.Tensor | None
    negative_prompt_embeds: torch.Tensor | None
    callback_on_step_end: StepCallback | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    tile_size: int | None
    eta: float
    light: bool | None


class DrawArguments(RelayArguments, total=False):
    """Further keyword arguments of `CogView3Pipeline`'s call."""

    relay_steps: int | None
    num_relays: int | None
    relay_guidance_scale: float | None
    image: Picture | Sequence[Picture] | None
    strength: float | None
    mask_image: Picture | Sequence[Picture] | None
    sampler: str | None


class UpscaleArguments(RelayArguments, total=False):
    """Further keyword arguments of `CogView3UpscalePipeline`'s call."""

    num_relays: int
    keep_colors: bool | None


class PixelArguments(TypedDict, total=False):
    """Keyword arguments of `PixelRelayPipeline`'s call."""

    batch_size: int
    num_inference_steps: int
    base_steps: int
    generator: Generators
    callback_on_step_end: StepCallback | None
