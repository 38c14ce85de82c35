"""UNet configurations, and the conditions beside the text: picture sizes and guidance strength.

The networks are diffusers' `UNet2DConditionModel`; this module holds their hyper-parameters only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding

_SHARED: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "class_embed_type": "projection",
}

_CONFIGS: dict[str, dict[str, Any]] = {
    # The paper's backbone: 2,906,612,484 parameters, 64 channels a head, T5-XXL text. diffusers' parameter
    # `attention_head_dim` counts heads here.
    "full": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 4096,
        "projection_class_embeddings_input_dim": 6 * 256,
    },
    # The model that the package ships: base latents 16 x 16, small enough to train on a laptop.
    "scenes": {
        "sample_size": 16,
        "block_out_channels": (64, 96, 128),
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
        "attention_head_dim": (2, 3, 4),
        "norm_num_groups": 16,
        "cross_attention_dim": 128,
        "projection_class_embeddings_input_dim": 6 * 32,
    },
    # For tests: every kind of block, milliseconds a step.
    "tiny": {
        "sample_size": 4,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
        "attention_head_dim": (1, 2, 2),
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "projection_class_embeddings_input_dim": 6 * 8,
    },
}


def unet_config(name: str, **overrides: Any) -> dict[str, Any]:
    """Keyword arguments for diffusers' `UNet2DConditionModel`.

    Args:
        name: "full" (the paper's, table of the backbone), "scenes" (the shipped model) or "tiny" (tests).
        overrides: entries to replace or add, such as `time_cond_proj_dim` (512 for the published distilled
            base, 256 for its relay), `cross_attention_dim` (width of the text embeddings) or `sample_size`
            (side of the latents that the stage draws by default).

    Raises:
        ValueError: an unknown name.
    """
    if name not in _CONFIGS:
        raise ValueError(f"unknown UNet configuration {name!r}: choose from {', '.join(_CONFIGS)}")
    return {**_SHARED, **_CONFIGS[name], **overrides}


def size_conditions(
    original: torch.Tensor | Sequence[int],
    crop: torch.Tensor | Sequence[int],
    target: torch.Tensor | Sequence[int],
    width: int = 256,
) -> torch.Tensor:
    """SDXL's size conditions, given to the UNet as `class_labels`.

    Each number becomes a sinusoidal embedding: cosine half first, maximal period 10000.

    Args:
        original: height and width of the picture before cropping, (B, 2) or one pair, in pixels.
        crop: top and left of the crop, alike.
        target: height and width that the stage draws, alike.
        width: width of one number's embedding, even; 256 in the full model,
            `projection_class_embeddings_input_dim / 6` in any.

    Returns:
        (B, 6 * width), float32.
    """
    pairs = [torch.as_tensor(pair, dtype=torch.float32).reshape(-1, 2) for pair in (original, crop, target)]
    numbers = torch.cat(torch.broadcast_tensors(*pairs), dim=1)
    embeddings = get_timestep_embedding(
        numbers.flatten(), width, flip_sin_to_cos=True, downscale_freq_shift=0, max_period=10000
    )
    return embeddings.reshape(len(numbers), 6 * width)


def takes_guidance(unet: UNet2DConditionModel) -> bool:
    """Whether a (distilled) UNet takes guidance as a condition, with no second branch."""
    return unet.config["time_cond_proj_dim"] is not None


def same_entry(one: Any, other: Any) -> bool:
    """Whether two entries of UNets' configurations say the same; a number stands for a list of it, one a block."""
    one, other = (list(each) if isinstance(each, tuple) else each for each in (one, other))
    if isinstance(one, list) and not isinstance(other, list):
        other = [other] * len(one)
    if isinstance(other, list) and not isinstance(one, list):
        one = [one] * len(other)
    return bool(one == other)


def guidance_condition(guidance: torch.Tensor | Sequence[float] | float, width: int) -> torch.Tensor:
    """The guidance strength as a condition of distilled UNets, given as `timestep_cond`.

    The embedding of 1000 w as in "On Distillation of Guided Diffusion Models": sine half first, frequencies
    10000^(-i / (width / 2 - 1)). w is the guidance scale itself, 1 meaning none.

    Args:
        guidance: w, (B,) or one number.
        width: the UNet's `time_cond_proj_dim`, even, 4 or more.

    Returns:
        (B, width), float32.
    """
    strength = 1000 * torch.as_tensor(guidance, dtype=torch.float32).reshape(-1)
    return get_timestep_embedding(strength, width, flip_sin_to_cos=False, downscale_freq_shift=1, max_period=10000)
