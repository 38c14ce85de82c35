"""Masks: which part of a given picture is redrawn, and which is kept at every step of every stage.

As in RePaint (Lugmayr et al. 2022, arXiv 2201.09865) without its jumps back: after each step the kept latents are those
of the given picture, with the noise (and, in a relay, the blur) that the stage has there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cogview3.config import UserError
from cogview3.generation.inputs import MAX_SIDE, check_dense, cover, raw_sizes, to_tensor
from cogview3.generation.scheduler import RelayScheduler

Keep = Callable[[torch.Tensor, int], torch.Tensor]
"""Latents (B, C, h, w) after a step, and the step's index, to latents with what is kept put back."""


@dataclass(frozen=True)
class Masked:
    """Pictures of which a part is redrawn.

    Attributes:
        pixels: the pictures at the final size, (B, 3, H, W) in -1..1.
        mask: 1 where they are redrawn and 0 where they are kept, (B, 1, H, W).
    """

    pixels: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> "Masked":
        """Pictures and mask on a device."""
        return Masked(self.pixels.to(device), self.mask.to(device))

    def at(self, height: int, width: int) -> torch.Tensor:
        """The pictures at another size, (B, 3, height, width)."""
        return cover(self.pixels, height, width)

    def for_latents(self, height: int, width: int) -> torch.Tensor:
        """The mask for latents, (B, 1, height, width): 1 for every cell that a pixel to be drawn is in."""
        return F.adaptive_max_pool2d((self.mask > 0).float(), (height, width))

    def paste(self, drawn: torch.Tensor) -> torch.Tensor:
        """Finished pictures, (B, 3, H, W), with what is kept put back, exact where the mask is 0."""
        pixels, mask = self.pixels, self.mask
        if drawn.shape[2:] != pixels.shape[2:]:  # a call that was interrupted before its relays
            pixels, mask = self.at(*drawn.shape[2:]), F.adaptive_max_pool2d(mask, tuple(drawn.shape[2:]))
        return mask * drawn + (1 - mask) * pixels


def keep_in_base(
    scheduler: Any, known: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor, latents: torch.Tensor, index: int
) -> torch.Tensor:
    """Latents (B, C, h, w) after step `index` of the base, with those of the given pictures put back.

    Args:
        scheduler: diffusers', with its steps set.
        known: latents of the pictures, (B, C, h, w), scaled.
        mask: of `Masked.for_latents`.
        noise: unit variance, (B, C, h, w).
        latents, index: as `Keep` is given them.
    """
    at, times = known, scheduler.timesteps
    if index + 1 < len(times):
        at = scheduler.add_noise(known, noise, times[index + 1 : index + 2].expand(len(known)))
    return mask * latents + (1 - mask) * at


def keep_in_relay(
    scheduler: RelayScheduler,
    known: torch.Tensor,
    low_res_latents: torch.Tensor,
    mask: torch.Tensor,
    noise: torch.Tensor,
    latents: torch.Tensor,
    index: int,
) -> torch.Tensor:
    """The same for a relay: the kept latents are the forward process's (equation 5), blurred towards z_L.

    Args:
        scheduler: with its steps set.
        known: latents of the pictures at this relay's size, (B, C, h, w), scaled.
        low_res_latents: z_L, alike.
        mask, noise, latents, index: as for `keep_in_base`.
    """
    at = scheduler.noised(known, low_res_latents, noise, index + 1)
    return mask * latents + (1 - mask) * at


def to_mask(mask: Image.Image | np.ndarray | torch.Tensor | Sequence[Any]) -> torch.Tensor:
    """Masks of any usual kind, (B, 1, H, W), float32 in 0..1, 1 where a picture is redrawn.

    Args:
        mask: one mask or a list of them, all of one size: PIL pictures (white is redrawn; of a transparent one only
            its brightness counts), arrays (H, W), (H, W, 1) or (B, H, W), tensors (H, W), (1, H, W) or (B, 1, H, W),
            bool, uint8 or floats in 0..1.

    Raises:
        UserError: anything else, values out of range, or sizes that differ.
    """
    entries: list[Any] = list(mask) if isinstance(mask, list | tuple) else [mask]
    if not entries:
        raise UserError("mask_image is an empty list: give at least one mask")
    for width, height in raw_sizes(entries):
        if width * height > MAX_SIDE**2:
            raise UserError(f"mask_image is {width}x{height}: give at most {MAX_SIDE}x{MAX_SIDE} pixels")
    masks = [_one_mask(entry) for entry in entries]
    if len({tuple(each.shape[2:]) for each in masks}) > 1:
        raise UserError("mask_image holds masks of several sizes: give them in one")
    return torch.cat(masks)


def _one_mask(mask: Any) -> torch.Tensor:
    if isinstance(mask, Image.Image):
        mask = np.array(mask.convert("L"))
    if isinstance(mask, np.ndarray):
        mask = to_tensor("mask_image", mask[..., 0] if mask.ndim > 2 and mask.shape[-1] == 1 else mask)
    if not isinstance(mask, torch.Tensor):
        raise UserError(f"mask_image is {type(mask).__name__}: give PIL pictures, numpy arrays or tensors")
    if mask.ndim in (2, 3):
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
    if mask.ndim != 4 or mask.shape[1] != 1 or not mask.numel():
        raise UserError(f"mask_image has shape {tuple(mask.shape)}: give one channel, such as (height, width)")
    check_dense("mask_image", mask)
    if mask.is_complex():
        raise UserError(f"mask_image holds {mask.dtype} numbers: give floats in 0..1, bool or uint8")
    values: torch.Tensor = mask.float() / 255 if mask.dtype == torch.uint8 else mask.float()
    if not (values.isfinite().all() and values.min() >= 0 and values.max() <= 1):
        raise UserError("mask_image has values outside 0..1: give floats in 0..1, bool or uint8")
    return values
