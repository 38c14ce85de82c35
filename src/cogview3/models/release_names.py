"""Names and configurations of the published release's networks, from diffusers' names and from tensors' shapes.

The release numbers a UNet's blocks in one row each way: `input_blocks.0` is the first convolution, then each level
has its `layers` blocks (0 the ResNet, 1 the transformer) and, but for the last level, one that halves the side.
`output_blocks` has `layers` + 1 blocks a level, the last of them doubling the side behind its ResNet and transformer.
Names are without the `model.diffusion_model.` that all of them begin with in the file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import mode
from typing import Any

from cogview3.config import UserError
from cogview3.models.release_files import listing
from cogview3.models.unet import unet_config

SCALING_FACTOR = 0.13025
GROUPS = 32
"""Groups of every normalization in the release; no tensor's shape tells them."""

Shapes = Mapping[str, Sequence[int]]

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "w_proj",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, layers: int, attended: Sequence[bool]) -> str:
    """The release's name of a parameter of diffusers' UNet.

    Args:
        name: diffusers' name.
        layers: `layers_per_block`.
        attended: whether the levels of the way up, deepest first, have transformers.

    Raises:
        UserError: the release's UNet has no such parameter.
    """
    module, _, kind = name.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{kind}"
    match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", module)
    if not match or (match[3] == "resnets" and match[5] not in _RESNET):
        raise UserError(f"the release's UNet has no {name}")
    way, level, part, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if part == "resnets":
        rest = _RESNET[rest]
    inner = int(part == "attentions")
    if way == "mid":
        return f"middle_block.{2 * index + inner}.{rest}.{kind}"
    first = level * (layers + 1)
    if part == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{kind}"
    if part == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + attended[level]}.conv.{kind}"
    if way == "down":
        return f"input_blocks.{first + 1 + index}.{inner}.{rest}.{kind}"
    return f"output_blocks.{first + index}.{inner}.{rest}.{kind}"


def vae_name(name: str, levels: int) -> str:
    """The original (LDM) name of a parameter of diffusers' AutoencoderKL of so many levels."""
    module, _, kind = name.rpartition(".")
    module = module.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    module = re.sub(r"down_blocks\.(\d+)", r"down.\1", module)
    module = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", module)
    module = re.sub(r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", module)
    module = re.sub(r"mid_block\.attentions\.0\.(.+)", lambda match: f"mid.attn_1.{_VAE_ATTENTION[match[1]]}", module)
    module = re.sub(r"(down|up)samplers\.0", r"\1sample", module).replace("resnets", "block")
    return f"{module}.{kind}"


def unet_config_of(shapes: Shapes, head_dim: int = 64) -> dict[str, Any]:
    """Keyword arguments of the `UNet2DConditionModel` that has tensors of these shapes.

    Widths, depths and conditions are read off the shapes; what they do not tell is the release's: groups of 32,
    `head_dim` channels a head.

    Args:
        shapes: by the release's names.
        head_dim: channels of an attention head.

    Raises:
        UserError: no UNet of the release's structure.
    """
    downs = {int(number) for number in _found(r"input_blocks\.(\d+)\.0\.op\.\w+", shapes)}
    blocks = {int(number) for number in _found(r"input_blocks\.(\d+)\..+", shapes)}
    levels = len(downs) + 1
    layers = len(blocks) // levels - 1
    places = range(levels * (layers + 1))
    if layers < 1 or blocks != set(places) or downs != set(places[layers + 1 :: layers + 1]):
        raise UserError("its input_blocks are not numbered as levels of equally many blocks")
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    widths = [_size(shapes, 0, _resnet(f"input_blocks.{first}.0")) for first in firsts]
    depths = [_depth(shapes, f"input_blocks.{first}.1") for first in firsts]
    deepest = depths[-1] or _depth(shapes, "middle_block.1")
    for width, depth in zip(widths, [*depths[:-1], deepest], strict=True):
        if width < GROUPS or width % GROUPS:
            raise UserError(f"its width {width} is no multiple of the {GROUPS} groups of its normalizations")
        if depth and width % head_dim:
            raise UserError(f"its width {width} is no multiple of {head_dim}, the channels of an attention head")
    conditions = {}
    if "w_proj.weight" in shapes:
        conditions["time_cond_proj_dim"] = _size(shapes, 1, ["w_proj.weight"])
    keys = [name for name in shapes if re.search(r"\.attn2\.to_[kv]\.weight$", name)]
    return unet_config(
        "full",
        in_channels=_size(shapes, 1, ["input_blocks.0.0.weight"]),
        out_channels=_size(shapes, 0, ["out.2.weight", "out.2.bias"]),
        block_out_channels=tuple(widths),
        down_block_types=tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        up_block_types=tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        layers_per_block=layers,
        transformer_layers_per_block=tuple(depth or 1 for depth in [*depths[:-1], deepest]),
        attention_head_dim=tuple(max(1, width // head_dim) for width in widths),
        cross_attention_dim=_size(shapes, 1, keys or ["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]),
        projection_class_embeddings_input_dim=_size(shapes, 1, ["label_emb.0.0.weight"]),
        **conditions,
    )


def vae_config_of(shapes: Shapes) -> dict[str, Any]:
    """Keyword arguments of the `AutoencoderKL` that has tensors of these shapes, by their original names.

    Raises UserError where it is no VAE of SDXL's structure.
    """
    levels = len(set(_found(r"encoder\.down\.(\d+)\..+", shapes)))
    layers = len(set(_found(r"encoder\.down\.0\.block\.(\d+)\..+", shapes)))
    if not layers:
        raise UserError("it has no encoder.down.0.block")
    parts = ("conv1.bias", "norm2.weight", "norm2.bias", "conv2.bias")
    firsts = [f"encoder.down.{level}.block.0" for level in range(levels)]
    widths = [_size(shapes, 0, [f"{first}.{part}" for part in parts]) for first in firsts]
    if any(width < GROUPS or width % GROUPS for width in widths):
        raise UserError(f"its widths {widths} are no multiples of the {GROUPS} groups of its normalizations")
    return {
        "in_channels": _size(shapes, 1, ["encoder.conv_in.weight"]),
        "out_channels": _size(shapes, 0, ["decoder.conv_out.weight", "decoder.conv_out.bias"]),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "latent_channels": _size(shapes, 0, ["post_quant_conv.weight", "post_quant_conv.bias"]),
        "norm_num_groups": GROUPS,
        "sample_size": 1024,
        "scaling_factor": SCALING_FACTOR,
        "force_upcast": True,
    }


def _resnet(prefix: str) -> list[str]:
    """Tensors of a ResNet block whose first side is its width."""
    parts = ("in_layers.2.bias", "emb_layers.1.bias", "out_layers.0.weight", "out_layers.0.bias", "out_layers.3.bias")
    return [f"{prefix}.{part}" for part in parts]


def _depth(shapes: Shapes, prefix: str) -> int:
    return len(set(_found(rf"{re.escape(prefix)}\.transformer_blocks\.(\d+)\..+", shapes)))


def _found(pattern: str, shapes: Shapes) -> Iterator[str]:
    """What the pattern's group holds in the names that the pattern matches."""
    return (match[1] for name in shapes if (match := re.fullmatch(pattern, name)))


def _size(shapes: Shapes, axis: int, names: Sequence[str]) -> int:
    """The side that most of these tensors have, so that a single missing or misshapen one does not mislead."""
    sides = [shapes[name][axis] for name in names if name in shapes and len(shapes[name]) > axis]
    if not sides:
        raise UserError(f"it lacks {listing(names)}, or has it in another shape")
    return mode(sides)
