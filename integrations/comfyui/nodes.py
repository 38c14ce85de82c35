"""Nodes: load a model, draw, and relay-upscale a picture or what was drawn.

ComfyUI's pictures are float tensors (B, H, W, 3) in 0..1. Latents that travel between these nodes are scaled ones of
CogView3's autoencoder, {"samples": (B, 4, H/8, W/8)}, with the key "cogview3": those of other models are refused.
"""

from collections.abc import Callable
from typing import Any

import torch

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.data.latents import decode, encode

try:  # inside of ComfyUI
    import comfy.model_management as management
    from comfy.utils import ProgressBar
except ImportError:  # elsewhere nothing is shown, and nobody can interrupt
    management = ProgressBar = None

MODEL = "COGVIEW3"
CATEGORY = "CogView3"
MARK = "cogview3"


class LoadModel:
    """A CogView3 model, in one of its modes."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "model": ("STRING", {"default": "scenes", "tooltip": "Bundled model, model folder or hub name"}),
                "mode": ("STRING", {"default": "", "tooltip": "Such as 4+1; empty for the model's own choice"}),
                "dtype": (["auto", "float32", "bfloat16", "float16"],),
            }
        }

    def load(self, model: str, mode: str, dtype: str) -> tuple[CogView3Pipeline]:
        """The pipeline, on ComfyUI's device. Raises UserError where there is no such model or mode."""
        device = _device()
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else "bfloat16"
        pipe = CogView3Pipeline.from_pretrained(model, mode=mode.strip() or None, dtype=getattr(torch, dtype))
        pipe.set_progress_bar_config(disable=True)
        return (pipe.to(device),)


class Generate:
    """Pictures of a prompt, and their latents for a further relay."""

    CATEGORY = CATEGORY
    FUNCTION = "generate"
    RETURN_TYPES = ("IMAGE", "LATENT")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for it."""
        side = {"default": 0, "min": 0, "max": 8192, "step": 16, "tooltip": "0 for the model's own"}
        steps = {"default": 0, "min": 0, "max": 1000, "tooltip": "0 for the mode's own"}
        guidance = {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "-1 for the mode's own"}
        return {
            "required": {
                "model": (MODEL,),
                "prompt": ("STRING", {"multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
                "width": ("INT", side),
                "height": ("INT", side),
                "count": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "steps": ("INT", steps),
                "relay_steps": ("INT", steps),
                "guidance": ("FLOAT", guidance),
            },
        }

    def generate(
        self,
        model: CogView3Pipeline,
        prompt: str,
        seed: int,
        width: int,
        height: int,
        count: int,
        negative_prompt: str = "",
        steps: int = 0,
        relay_steps: int = 0,
        guidance: float = -1.0,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Picture i has the seed `seed` + i. Raises UserError for what the model cannot draw."""
        latents = model(
            [prompt] * count,
            negative_prompt.strip() or None,
            width=width or None,
            height=height or None,
            num_inference_steps=steps or None,
            relay_steps=relay_steps or None,
            guidance_scale=None if guidance < 0 else guidance,
            generator=_generators(seed, count),
            output_type="latent",
            callback_on_step_end=_watcher(),
        ).images
        return _decode(model, latents), {"samples": latents.cpu(), MARK: True}


class RelayUpscale:
    """Doubles a picture's sides by the relay, or those of what `Generate` drew."""

    CATEGORY = CATEGORY
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE", "LATENT")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "model": (MODEL,),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
                "tile_size": ("INT", {"default": 0, "min": 0, "max": 8192, "step": 64, "tooltip": "0 for no tiles"}),
            },
            "optional": {
                "image": ("IMAGE",),
                "latent": ("LATENT",),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
            },
        }

    def upscale(
        self,
        model: CogView3Pipeline,
        seed: int,
        tile_size: int,
        image: torch.Tensor | None = None,
        latent: dict[str, Any] | None = None,
        prompt: str = "",
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Exactly twice the size. Raises ValueError unless there is either a picture or a latent of ours."""
        if (image is None) == (latent is None):
            raise ValueError("connect either an image or a latent")
        if latent is not None and not latent.get(MARK):
            raise ValueError("this latent is another model's: decode it, and connect the image")
        given = {"latents": latent["samples"]} if latent else {"image": image.movedim(-1, 1).clamp(0, 1)}
        pipe = CogView3UpscalePipeline.from_pipe(model)
        pipe.set_progress_bar_config(disable=True)
        images = pipe(
            **given,
            prompt=prompt.strip() or None,
            tile_size=tile_size or None,
            callback_on_step_end=_watcher(),
            generator=_generators(seed, len(next(iter(given.values())))),
            output_type="latent" if latent else "np",
        ).images
        if latent:
            return _decode(model, images, tile_size), {"samples": images.cpu(), MARK: True}
        pixels = torch.from_numpy(images)
        return pixels, {"samples": _encode(model, pixels), MARK: True}


def _device() -> torch.device:
    if management is not None:
        return management.get_torch_device()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _generators(seed: int, count: int) -> list[torch.Generator]:
    """One for each picture, on the CPU: the same noise on every device."""
    return [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(count)]


def _watcher() -> Callable[..., dict[str, Any]]:
    """Shows ComfyUI's bar, and stops within a step where its user interrupts."""
    bars: list[Any] = []

    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if management is not None:
            management.throw_exception_if_processing_interrupted()
            bars[:] = bars or [ProgressBar(pipe.num_timesteps)]
            bars[0].update_absolute(step + 1)
        return {}

    return watch


def _decode(pipe: CogView3Pipeline, latents: torch.Tensor, tile_size: int = 0) -> torch.Tensor:
    """Scaled latents to pictures (B, H, W, 3) in 0..1, on the CPU."""
    if tile_size:
        pipe.vae.enable_tiling()
    return (decode(pipe.vae, latents.to(pipe.vae.device)).float().cpu() / 2 + 0.5).movedim(1, -1)


def _encode(pipe: CogView3Pipeline, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures (B, H, W, 3) in 0..1 to scaled latents, on the CPU; sides are cut to multiples of 8."""
    factor = pipe.vae_scale_factor
    height, width = (side // factor * factor for side in pixels.shape[1:3])
    return encode(pipe.vae, pixels[:, :height, :width].movedim(-1, 1) * 2 - 1).float().cpu()


NODE_CLASS_MAPPINGS = {
    "CogView3LoadModel": LoadModel,
    "CogView3Generate": Generate,
    "CogView3RelayUpscale": RelayUpscale,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "CogView3LoadModel": "CogView3: load model",
    "CogView3Generate": "CogView3: generate",
    "CogView3RelayUpscale": "CogView3: relay upscale",
}
