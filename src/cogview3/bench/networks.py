"""The networks that are compared at full size, this system's and its peers', from their published configurations.

Their weights are random: how long a network takes does not depend on them. Tokenizers have a small vocabulary of their
own, since the published ones are files; prompts are padded to the same lengths, so that all networks do the same work.
"narrow" ones have a quarter of the widths, for a CPU; "tiny" ones are of the same classes, for tests.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models import AutoencoderKL, StableCascadeUNet, UNet2DConditionModel
from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.unet import unet_config

TEXT_LENGTH, CLIP_LENGTH = 225, 77

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
_CASCADE_BLOCKS = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
_PRIOR = {
    "in_channels": 16,
    "out_channels": 16,
    "conditioning_dim": 2048,
    "block_out_channels": (2048, 2048),
    "num_attention_heads": (32, 32),
    "down_num_layers_per_block": (8, 24),
    "up_num_layers_per_block": (24, 8),
    "down_blocks_repeat_mappers": (1, 1),
    "up_blocks_repeat_mappers": (1, 1),
    "block_types_per_layer": (_CASCADE_BLOCKS, _CASCADE_BLOCKS),
    "clip_text_in_channels": 1280,
    "clip_text_pooled_in_channels": 1280,
    "clip_image_in_channels": 768,
    "timestep_conditioning_type": ("sca", "crp"),
    "switch_level": (False,),
}
_DECODER = {
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "dropout": (0.0, 0.0, 0.1, 0.1),
    "conditioning_dim": 1280,
    "block_out_channels": (320, 640, 1280, 1280),
    "num_attention_heads": (0, 0, 20, 20),
    "down_num_layers_per_block": (2, 6, 28, 6),
    "up_num_layers_per_block": (6, 28, 6, 2),
    "down_blocks_repeat_mappers": (1, 1, 1, 1),
    "up_blocks_repeat_mappers": (3, 3, 2, 2),
    "block_types_per_layer": (_CASCADE_BLOCKS[:2], _CASCADE_BLOCKS[:2], _CASCADE_BLOCKS, _CASCADE_BLOCKS),
    "clip_text_pooled_in_channels": 1280,
    "effnet_in_channels": 16,
    "pixel_mapper_in_channels": 3,
    "timestep_conditioning_type": ("sca",),
}
_FULL: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "clip": {"vocab_size": 49408, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"intermediate_size": 3072, "projection_dim": 768, "hidden_act": "quick_gelu"},
    "big_clip": {"vocab_size": 49408, "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20}
    | {"intermediate_size": 5120, "projection_dim": 1280, "hidden_act": "gelu"},
    "vae": _VAE,
    "unet": unet_config("full"),
    "relay_unet": unet_config("full", sample_size=128),
    "distilled_unet": unet_config("full", time_cond_proj_dim=512),
    "distilled_relay_unet": unet_config("full", time_cond_proj_dim=256, sample_size=128),
    "latent_enlarger": {"width": 256, "num_blocks": 6},
    "light_decoder": {"width": 256, "num_blocks": 6},
    "sdxl_unet": _SDXL_UNET,
    "lcm_unet": _SDXL_UNET | {"time_cond_proj_dim": 256},
    "prior": _PRIOR,
    "decoder": _DECODER,
    "vqgan": {},
}
_NARROW_UNET = {
    "block_out_channels": (80, 160, 320),
    "cross_attention_dim": 1024,
    "norm_num_groups": 16,
    "projection_class_embeddings_input_dim": 384,
}
_NARROW_SDXL = _SDXL_UNET | {
    "block_out_channels": (80, 160, 320),
    "norm_num_groups": 16,
    "cross_attention_dim": 512,
    "addition_time_embed_dim": 64,
    "projection_class_embeddings_input_dim": 6 * 64 + 320,
}
_NARROW: dict[str, dict[str, Any]] = {
    "t5": _FULL["t5"] | {"d_model": 1024, "d_kv": 16, "d_ff": 2560},
    "clip": _FULL["clip"] | {"hidden_size": 192, "intermediate_size": 768, "projection_dim": 192},
    "big_clip": _FULL["big_clip"] | {"hidden_size": 320, "intermediate_size": 1280, "projection_dim": 320},
    "vae": _VAE | {"block_out_channels": (32, 64, 128, 128)},
    "unet": unet_config("full", **_NARROW_UNET),
    "relay_unet": unet_config("full", **_NARROW_UNET, sample_size=128),
    "distilled_unet": unet_config("full", **_NARROW_UNET, time_cond_proj_dim=128),
    "distilled_relay_unet": unet_config("full", **_NARROW_UNET, time_cond_proj_dim=64, sample_size=128),
    "latent_enlarger": {"width": 64, "num_blocks": 6},
    "light_decoder": {"width": 64, "num_blocks": 6},
    "sdxl_unet": _NARROW_SDXL,
    "lcm_unet": _NARROW_SDXL | {"time_cond_proj_dim": 64},
    "prior": _PRIOR
    | {"conditioning_dim": 512, "block_out_channels": (512, 512)}
    | {"clip_text_in_channels": 320, "clip_text_pooled_in_channels": 320, "clip_image_in_channels": 192},
    "decoder": _DECODER
    | {"conditioning_dim": 320, "block_out_channels": (80, 160, 320, 320), "clip_text_pooled_in_channels": 320},
    "vqgan": {"embed_dim": 96},
}
"""A quarter of the full widths, with as many layers and heads."""

_TINY_SDXL = _SDXL_UNET | {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "attention_head_dim": (1, 2, 2),
    "norm_num_groups": 4,
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
_TINY_CASCADE = {
    "block_out_channels": (8, 16),
    "conditioning_dim": 16,
    "num_attention_heads": (0, 2),
    "dropout": (0.0, 0.0),
    "down_num_layers_per_block": (1, 1),
    "up_num_layers_per_block": (1, 1),
    "down_blocks_repeat_mappers": (1, 1),
    "up_blocks_repeat_mappers": (1, 1),
    "block_types_per_layer": (_CASCADE_BLOCKS[:2], _CASCADE_BLOCKS),
    "clip_text_pooled_in_channels": 16,
}
_TINY_CLIP = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_CLIP |= {"intermediate_size": 32, "projection_dim": 16}
_TINY: dict[str, dict[str, Any]] = {
    "t5": {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "clip": _TINY_CLIP,
    "big_clip": _TINY_CLIP,
    "vae": _VAE | {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    "unet": unet_config("tiny"),
    "relay_unet": unet_config("tiny", sample_size=8),
    "distilled_unet": unet_config("tiny", time_cond_proj_dim=8),
    "distilled_relay_unet": unet_config("tiny", time_cond_proj_dim=8, sample_size=8),
    "latent_enlarger": {"width": 8, "num_blocks": 1},
    "light_decoder": {"width": 8, "num_blocks": 1},
    "sdxl_unet": _TINY_SDXL,
    "lcm_unet": _TINY_SDXL | {"time_cond_proj_dim": 8},
    "prior": _PRIOR
    | _TINY_CASCADE
    | {"clip_text_in_channels": 16, "clip_image_in_channels": 8, "timestep_conditioning_type": ("sca", "crp")},
    "decoder": _DECODER | _TINY_CASCADE,
    "vqgan": {"bottleneck_blocks": 1, "embed_dim": 8, "num_vq_embeddings": 16},
}
CONFIGS: Mapping[str, Mapping[str, dict[str, Any]]] = {"full": _FULL, "narrow": _NARROW, "tiny": _TINY}

_T5_KIND = {"feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "tie_word_embeddings": False}


def _clip(config: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(**config, max_position_embeddings=CLIP_LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1)


_KINDS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "t5": lambda config: T5EncoderModel(T5Config(**config, **_T5_KIND)),
    "clip": lambda config: CLIPTextModel(_clip(config)),
    "big_clip": lambda config: CLIPTextModelWithProjection(_clip(config)),
    "vae": lambda config: AutoencoderKL(**config),
    "latent_enlarger": lambda config: LatentEnlarger(**config),
    "light_decoder": lambda config: LightDecoder(**config),
    "prior": lambda config: StableCascadeUNet(**config),
    "decoder": lambda config: StableCascadeUNet(**config),
    "vqgan": lambda config: PaellaVQModel(**config),
}


def build(name: str, scale: str, device: str | torch.device = "meta", dtype: torch.dtype = torch.float32) -> nn.Module:
    """One of the networks, made where it is to run, with random weights.

    Args:
        name: a key of `CONFIGS[scale]`.
        scale: "full", "narrow" or "tiny".
        device: "meta" makes no numbers.
        dtype: number format.
    """
    kind = _KINDS.get(name, lambda config: UNet2DConditionModel(**config))
    with torch.device(device), _default_dtype(dtype):
        return kind(dict(CONFIGS[scale][name])).eval().requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def t5_tokenizer() -> T5Tokenizer:
    """A tokenizer of T5's kind that spells every word by its letters, 225 tokens long."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -3.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_LENGTH)


def clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer of CLIP's kind that spells every word by its letters, 77 tokens long."""
    names = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    vocabulary = {name: number for number, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_LENGTH)
