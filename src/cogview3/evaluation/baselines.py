"""The systems that the paper compares with, run as their authors recommend."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from cogview3.references import unloadable


def _swap_lcm(pipe: DiffusionPipeline, dtype: torch.dtype) -> None:
    """Latent consistency: SDXL with another UNet, on its own scheduler."""
    pipe.unet = UNet2DConditionModel.from_pretrained("latent-consistency/lcm-sdxl", dtype=dtype)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)


@dataclass(frozen=True)
class Baseline:
    """Another system's pipeline, a folder or hub name, and the `settings` of its call.

    `steps` and `guidance` are what that names them; `change` is done to the pipeline once it is loaded.
    """

    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: str = "num_inference_steps"
    guidance: str = "guidance_scale"
    change: Callable[[DiffusionPipeline, torch.dtype], None] | None = None

    def load(self, dtype: torch.dtype) -> DiffusionPipeline:
        """The pipeline. Raises UserError where it cannot be loaded."""
        try:
            pipe = DiffusionPipeline.from_pretrained(self.source, dtype=dtype)
            if self.change is not None:
                self.change(pipe, dtype)
        except (OSError, ValueError) as error:
            raise unloadable(self.source, error) from error
        return pipe


BASELINES = {
    "sdxl": Baseline("stabilityai/stable-diffusion-xl-base-1.0", {"num_inference_steps": 50, "guidance_scale": 5.0}),
    "stable-cascade": Baseline(
        "stabilityai/stable-cascade",
        {
            "prior_num_inference_steps": 20,
            "num_inference_steps": 10,
            "prior_guidance_scale": 4.0,
            "decoder_guidance_scale": 0.0,
        },
        steps="prior_num_inference_steps",
        guidance="prior_guidance_scale",
    ),
    "lcm-sdxl": Baseline(
        "stabilityai/stable-diffusion-xl-base-1.0",
        {"num_inference_steps": 4, "guidance_scale": 8.0},
        change=_swap_lcm,
    ),
}
"""The paper's baselines by name (its tables 1 and 2)."""
