"""The networks that are compared, this system's and its peers', from their published configurations.

Their weights are random. Tokenizers have a small vocabulary of their own, since the published ones are files; prompts
are padded to the same lengths, so that all networks do the same work.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from diffusers.models import StableCascadeUNet
from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Tokenizer

from cogview3.bench import networks
from cogview3.bench.networks import TEXT_LENGTH

CLIP_LENGTH = 77

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
_CLIP = {"vocab_size": 49408, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP |= {"intermediate_size": 3072, "projection_dim": 768, "hidden_act": "quick_gelu"}
_BIG_CLIP = {"vocab_size": 49408, "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20}
_BIG_CLIP |= {"intermediate_size": 5120, "projection_dim": 1280, "hidden_act": "gelu"}
_FULL: dict[str, dict[str, Any]] = {
    "clip": _CLIP,
    "big_clip": _BIG_CLIP,
    "sdxl_unet": _SDXL_UNET,
    "lcm_unet": _SDXL_UNET | {"time_cond_proj_dim": 256},
    "prior": _PRIOR,
    "decoder": _DECODER,
    "vqgan": {},
}
_NARROW_SDXL = _SDXL_UNET | {
    "block_out_channels": (80, 160, 320),
    "norm_num_groups": 16,
    "cross_attention_dim": 512,
    "addition_time_embed_dim": 64,
    "projection_class_embeddings_input_dim": 6 * 64 + 320,
}
_NARROW: dict[str, dict[str, Any]] = {
    "clip": _CLIP | {"hidden_size": 192, "intermediate_size": 768, "projection_dim": 192},
    "big_clip": _BIG_CLIP | {"hidden_size": 320, "intermediate_size": 1280, "projection_dim": 320},
    "sdxl_unet": _NARROW_SDXL,
    "lcm_unet": _NARROW_SDXL | {"time_cond_proj_dim": 64},
    "prior": _PRIOR
    | {"conditioning_dim": 512, "block_out_channels": (512, 512)}
    | {"clip_text_in_channels": 320, "clip_text_pooled_in_channels": 320, "clip_image_in_channels": 192},
    "decoder": _DECODER
    | {"conditioning_dim": 320, "block_out_channels": (80, 160, 320, 320), "clip_text_pooled_in_channels": 320},
    "vqgan": {"embed_dim": 96},
}
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
    "clip": _TINY_CLIP,
    "big_clip": _TINY_CLIP,
    "sdxl_unet": _TINY_SDXL,
    "lcm_unet": _TINY_SDXL | {"time_cond_proj_dim": 8},
    "prior": _PRIOR
    | _TINY_CASCADE
    | {"clip_text_in_channels": 16, "clip_image_in_channels": 8, "timestep_conditioning_type": ("sca", "crp")},
    "decoder": _DECODER | _TINY_CASCADE,
    "vqgan": {"bottleneck_blocks": 1, "embed_dim": 8, "num_vq_embeddings": 16},
}
_PEERS = {"full": _FULL, "narrow": _NARROW, "tiny": _TINY}
CONFIGS = {scale: {**own, **_PEERS[scale]} for scale, own in networks.CONFIGS.items()}


def _clip(config: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(**config, max_position_embeddings=CLIP_LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1)


_KINDS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    **networks.KINDS,
    "clip": lambda config: CLIPTextModel(_clip(config)),
    "big_clip": lambda config: CLIPTextModelWithProjection(_clip(config)),
    "prior": lambda config: StableCascadeUNet(**config),
    "decoder": lambda config: StableCascadeUNet(**config),
    "vqgan": lambda config: PaellaVQModel(**config),
}
build = partial(networks.build, configs=CONFIGS, kinds=_KINDS)
"""`cogview3.bench.networks.build` of any of these networks."""


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
