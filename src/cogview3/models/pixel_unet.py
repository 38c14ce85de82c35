"""UNets on the patches of pictures, for diffusion in pixels."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from diffusers.models import UNet2DModel
from torch import Tensor

from cogview3.config import PixelModel

TIME_SCALE = 1000
"""EDM's c_noise times this is the time of diffusers' sinusoidal embedding, made for 0 to 1000."""


def build_pixel_unet(model: PixelModel, size: int) -> UNet2DModel:
    """A UNet2DModel for pictures of side `size`, with attention between all positions of the coarsest level."""
    levels, channels = len(model.block_out_channels), 3 * model.patch**2
    unet: UNet2DModel = UNet2DModel(
        sample_size=size // model.patch,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        norm_num_groups=model.norm_num_groups,
        attention_head_dim=math.gcd(32, model.block_out_channels[-1]),
        add_attention=True,
    )
    return unet


def patch_of(unet: UNet2DModel) -> int:
    """Side of the squares of pixels that are one position to it."""
    return math.isqrt(unet.config["in_channels"] // 3)


def side_multiple(unet: UNet2DModel) -> int:
    """What the sides of pictures must be multiples of, in pixels."""
    return patch_of(unet) * int(2 ** (len(unet.config["block_out_channels"]) - 1))


def on_patches(unet: Callable[..., tuple[Tensor]], x: Tensor, time: Tensor, patch: int) -> Tensor:
    """The network's output for pictures (B, 3, H, W) at times (B,), of the same shape."""
    output = unet(F.pixel_unshuffle(x, patch), time, return_dict=False)[0]
    return F.pixel_shuffle(output, patch)
