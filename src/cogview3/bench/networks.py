"""This system's networks at full size, a quarter of the widths ("narrow") and tiny, with random weights.

How long a network takes does not depend on its weights. Prompts are as long as the published ones.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.unet import unet_config

TEXT_LENGTH = 225

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
_T5 = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_FULL: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "vae": _VAE,
    "unet": unet_config("full"),
    "relay_unet": unet_config("full", sample_size=128),
    "distilled_unet": unet_config("full", time_cond_proj_dim=512),
    "distilled_relay_unet": unet_config("full", time_cond_proj_dim=256, sample_size=128),
    "latent_enlarger": {"width": 256, "num_blocks": 6},
    "light_decoder": {"width": 256, "num_blocks": 6},
}
_NARROW_UNET = {
    "block_out_channels": (80, 160, 320),
    "cross_attention_dim": 1024,
    "norm_num_groups": 16,
    "projection_class_embeddings_input_dim": 384,
}
_NARROW: dict[str, dict[str, Any]] = {
    "t5": _T5 | {"d_model": 1024, "d_kv": 16, "d_ff": 2560},
    "vae": _VAE | {"block_out_channels": (32, 64, 128, 128)},
    "unet": unet_config("full", **_NARROW_UNET),
    "relay_unet": unet_config("full", **_NARROW_UNET, sample_size=128),
    "distilled_unet": unet_config("full", **_NARROW_UNET, time_cond_proj_dim=128),
    "distilled_relay_unet": unet_config("full", **_NARROW_UNET, time_cond_proj_dim=64, sample_size=128),
    "latent_enlarger": {"width": 64, "num_blocks": 6},
    "light_decoder": {"width": 64, "num_blocks": 6},
}
"""A quarter of the full widths, with as many layers and heads."""

_TINY: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "vae": _VAE | {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    "unet": unet_config("tiny"),
    "relay_unet": unet_config("tiny", sample_size=8),
    "distilled_unet": unet_config("tiny", time_cond_proj_dim=8),
    "distilled_relay_unet": unet_config("tiny", time_cond_proj_dim=8, sample_size=8),
    "latent_enlarger": {"width": 8, "num_blocks": 1},
    "light_decoder": {"width": 8, "num_blocks": 1},
}
CONFIGS: Mapping[str, Mapping[str, dict[str, Any]]] = {"full": _FULL, "narrow": _NARROW, "tiny": _TINY}

_T5_KIND: dict[str, Any] = {
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
}
KINDS: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = {
    "t5": lambda config: T5EncoderModel(T5Config(**config, **_T5_KIND)),
    "vae": lambda config: AutoencoderKL(**config),
    "latent_enlarger": lambda config: LatentEnlarger(**config),
    "light_decoder": lambda config: LightDecoder(**config),
}
"""What makes a network of its configuration; a UNet where its name is none of these."""


def build(
    name: str,
    scale: str,
    device: str | torch.device = "meta",
    dtype: torch.dtype = torch.float32,
    configs: Mapping[str, Mapping[str, dict[str, Any]]] = CONFIGS,
    kinds: Mapping[str, Callable[[dict[str, Any]], nn.Module]] = KINDS,
) -> nn.Module:
    """One of the networks, made where it is to run, with random weights.

    Args:
        name: a key of `configs[scale]`.
        scale: "full", "narrow" or "tiny".
        device: "meta" makes no numbers.
        dtype: number format.
        configs: by scale and name.
        kinds: as `KINDS`.
    """
    kind = kinds.get(name, lambda config: UNet2DConditionModel(**config))
    with torch.device(device), _default_dtype(dtype):
        network: nn.Module = kind(dict(configs[scale][name]))
        return network.eval().requires_grad_(False)


def random_batch(count: int, size: int, tokens: int, width: int, times: int) -> dict[str, torch.Tensor]:
    """What a step on latents trains on: `count` pictures of `size` pixels a side, texts of `tokens` x `width`."""
    latents = count, 4, size // 8, size // 8
    return {
        "z0": torch.randn(latents),
        "noise": torch.randn(latents),
        "t": torch.randint(times, (count,)),
        "text": torch.randn(count, tokens, width),
        "sizes": torch.tensor([[size] * 2, [0, 0], [size] * 2]).expand(count, 3, 2),
    }


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
