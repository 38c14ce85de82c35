"""Checks of a pipeline's arguments, and pictures to tensors. Errors name the value and the fix."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from cogview3.config import UserError
from cogview3.data.images import to_rgb

MAX_SIDE = 8192
"""Longest side that is drawn, in pixels."""

MAX_PICTURES = 10_000
"""Most pictures of one prompt in one call."""

Picture = Image.Image | np.ndarray | torch.Tensor


def check_whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in low..high as an int, whatever kind of number it comes as; anything else is a UserError."""
    value = _plain(value)
    if not _is_number(value) or value != int(value) or not low <= value <= high:
        raise UserError(f"{name} is {value!r}: give a whole number from {low} to {high}")
    return int(value)


def check_real(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """A finite number in low..high as a float, whatever kind it comes as; anything else is a UserError."""
    value = _plain(value)
    if not _is_number(value) or not low <= value <= high:
        bounds = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise UserError(f"{name} is {value!r}: give a finite number, {bounds}")
    return float(value)


def check_guidance(name: str, value: Any) -> float | None:
    """A guidance scale, 0 or more; None, which leaves it to the mode, stays."""
    return None if value is None else check_real(name, value, 0)


def _plain(value: Any) -> Any:
    """The number of a tensor or array without dimensions; anything else as it is."""
    return value.item() if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 0 else value


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def to_tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """An array as a tensor with memory of its own; one that holds no numbers is a UserError."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} is an array of {array.dtype}: give floats in 0..1 or uint8")
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))


def check_dense(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that is sparse, or that holds no numbers at all. Raises UserError."""
    if tensor.is_meta or tensor.layout != torch.strided:
        raise UserError(
            f"{name} is a tensor on {tensor.device} in {tensor.layout}: give a dense one that holds numbers"
        )


def check_floats(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that is not of finite floats. Raises UserError."""
    check_dense(name, tensor)
    if not tensor.is_floating_point():
        raise UserError(f"{name} holds {tensor.dtype} numbers: give floats")
    if not tensor.float().isfinite().all():
        raise UserError(f"{name} holds infinite or undefined numbers: give finite ones")


def check_generators(given: Any, pictures: int) -> torch.Generator | list[torch.Generator] | None:
    """What draws the noise of so many pictures, several as a list; anything else is a UserError."""
    if given is None or isinstance(given, torch.Generator):
        return given
    each: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if wrong := [one for one in each if not isinstance(one, torch.Generator)]:
        kind = type(wrong[0]).__name__
        raise UserError(f"generator is a {kind}: give torch.Generator().manual_seed(SEED), or a list of such")
    if len(each) != pictures:
        raise UserError(f"{len(each)} generators for {pictures} pictures: give one for each, or a single one")
    return each


def check_side(name: str, value: Any, multiple: int) -> int:
    """A picture's side as an int; one that is no whole multiple of `multiple` pixels, or absurd, is a UserError."""
    side = check_whole(name, value, 1, MAX_SIDE)
    if side % multiple:
        nearest = max(multiple, round(side / multiple) * multiple)
        raise UserError(f"{name} {side} is not a multiple of {multiple}: the nearest is {nearest}")
    return side


def check_enlarged(width: int, height: int, relays: int, least: int = 0) -> None:
    """Refuse a picture that is too large to be doubled `relays` times, or a side shorter than `least` pixels."""
    if min(width, height) < least:
        raise UserError(f"image is {width}x{height}: give sides of at least {least} pixels")
    longest = MAX_SIDE // 2**relays
    if max(width, height) > longest:
        raise UserError(f"image is {width}x{height}: give sides of at most {longest} for {relays} relays")


def check_numbers(what: str, numbers: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse infinite or undefined numbers, and say what gave them. Raises FloatingPointError."""
    if not numbers.isfinite().all():
        raise FloatingPointError(f"{what} produced non-finite numbers in {dtype}: use it in bfloat16 or float32")


def raw_sizes(image: Picture | Sequence[Picture]) -> list[tuple[int, int]]:
    """Width and height of each picture as it is given, before anything is computed; what is no picture is left out."""
    sizes = []
    for entry in image if isinstance(image, list | tuple) else [image]:
        if isinstance(entry, Image.Image):
            sizes.append(entry.size)
        elif isinstance(entry, torch.Tensor) and entry.ndim >= 2:
            sizes.append((entry.shape[-1], entry.shape[-2]))
        elif isinstance(entry, np.ndarray) and entry.ndim >= 2:
            height, width = entry.shape[-3:-1] if entry.ndim > 2 else entry.shape
            sizes.append((width, height))
    return sizes


def to_pixels(image: Picture | Sequence[Picture]) -> torch.Tensor:
    """Pictures of any usual kind as one tensor.

    Args:
        image: one picture or a list of them, all of one size. PIL pictures of any mode, transparent ones laid on
            white; arrays (H, W), (H, W, 3) or (B, H, W, 3) and tensors (3, H, W) or (B, 3, H, W), either floats in 0..1
            or uint8.

    Returns:
        (B, 3, H, W), float32, in -1..1, on the pictures' device.

    Raises:
        UserError: anything else, values out of range, sizes that differ, or more than `MAX_SIDE`^2 pixels.
    """
    for width, height in raw_sizes(image):
        if width * height > MAX_SIDE**2:
            raise UserError(f"image is {width}x{height}: give at most {MAX_SIDE}x{MAX_SIDE} pixels")
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise UserError("image is an empty list: give at least one picture")
    batches = [_one_to_pixels(entry) for entry in images]
    sizes = sorted({tuple(batch.shape[2:]) for batch in batches})
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sizes)
        raise UserError(f"pictures of sizes {shown} in one call: call once for each size")
    return torch.cat(batches)


def _one_to_pixels(image: Any) -> torch.Tensor:
    if isinstance(image, Image.Image):
        image = np.asarray(to_rgb(image)[0])
    if isinstance(image, np.ndarray):
        image = to_tensor("image", image)
        if image.ndim == 2:
            image = image[:, :, None].expand(-1, -1, 3)
        image = image.movedim(-1, -3) if image.ndim in (3, 4) else image
    if not isinstance(image, torch.Tensor):
        raise UserError(f"image is {type(image).__name__}: give PIL pictures, numpy arrays or tensors")
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or not image.numel():
        raise UserError(f"image has shape {tuple(image.shape)} (channels first): give 3 color channels")
    check_dense("image", image)
    if image.dtype == torch.uint8:
        image = image / 255
    if not image.is_floating_point():
        raise UserError(f"image holds {image.dtype} numbers: give floats in 0..1 or uint8")
    pixels: torch.Tensor = image.float()
    if not (pixels.isfinite().all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError("image has values outside 0..1: give floats in 0..1 or uint8")
    return (pixels if pixels.ndim == 4 else pixels[None]) * 2 - 1


def pad_reflected(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad (B, C, H, W) at the bottom and right by reflection, up to multiples of `multiple` pixels.

    Raises UserError where a side is shorter than `multiple`.
    """
    height, width = pixels.shape[2:]
    if min(height, width) < multiple:
        raise UserError(f"image is {width}x{height}: give sides of at least {multiple} pixels")
    return F.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="reflect")


def cover(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures (B, 3, H, W) cut around the middle to the proportions of `height` x `width`, and brought to that size.

    Bicubic and antialiased, clamped to -1..1.
    """
    given_height, given_width = pixels.shape[2:]
    scale = min(given_height / height, given_width / width)
    cut = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (given_height - cut[0]) // 2, (given_width - cut[1]) // 2
    pixels = pixels[:, :, top : top + cut[0], left : left + cut[1]]
    if cut == (height, width):
        return pixels
    return F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True).clamp(-1, 1)
