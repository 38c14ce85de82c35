"""Preprocessing for the scorers' networks with Pillow alone: transformers resizes differently with torchvision."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def crop_center(picture: Image.Image, size: int) -> Image.Image:
    """The short side brought to `size` by bicubic interpolation, then the middle square: CLIP's way."""
    width, height = picture.size
    short = min(width, height)
    wide, high = (size if side == short else int(size * side / short) for side in (width, height))
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return picture.crop((left, top, left + size, top + size))


def pad_square(picture: Image.Image, size: int) -> Image.Image:
    """The long side brought to `size` by bicubic interpolation, and black around it to a square: HPS v2's way."""
    scale = size / max(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size))
    square.paste(picture, ((size - width) // 2, (size - height) // 2))
    return square


def normalized(
    pictures: Sequence[Image.Image], mean: Sequence[float] = CLIP_MEAN, deviation: Sequence[float] = CLIP_STD
) -> Tensor:
    """Pictures of one size as RGB, (B, 3, H, W), float32, less a mean and over a deviation, by default CLIP's."""
    values = np.stack([np.asarray(picture.convert("RGB"), np.float32) for picture in pictures]) / 255
    values = (values - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()
