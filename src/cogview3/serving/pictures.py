"""Uploads to pictures, and pictures to bytes."""

import base64
import io
import warnings
from collections.abc import Mapping

from PIL import Image, ImageOps

from cogview3.data.images import decode
from cogview3.data.report import Broken
from cogview3.errors import UserError
from cogview3.generation.written import text_chunks

FORMATS = ("PNG", "JPEG", "WEBP")

MOST_PIXELS = 2**24
"""Of an upload; a decompression bomb is told by its header, before anything is unpacked."""


class OtherKind(UserError):
    """An upload that is no picture of the kinds that are read."""


def read_upload(name: str, data: bytes) -> Image.Image:
    """An uploaded picture, upright and RGB, laid on white where it is transparent.

    Raises:
        OtherKind: no PNG, JPEG or WebP.
        UserError: a damaged or an animated one, one that is too large or tiny. Both name the field.
    """
    _check_header(name, data)
    try:
        return decode(data, "").image
    except Broken as error:
        raise UserError(f"{name}: {error}; give a PNG, JPEG or WebP picture of 8 pixels a side or more") from None


def read_mask(data: bytes, size: tuple[int, int]) -> Image.Image:
    """An uploaded mask as an "L" picture whose white is redrawn.

    In one with transparency it is the transparent part that is redrawn, as OpenAI has it; in others the white one.

    Raises:
        OtherKind: no PNG, JPEG or WebP.
        UserError: a damaged one, or of another size than the picture it is for.
    """
    _check_header("mask", data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            clear = "A" in image.getbands() or "transparency" in image.info
            mask = ImageOps.invert(image.convert("RGBA").getchannel("A")) if clear else image.convert("L")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything for damaged data
        raise UserError(f"mask: not a picture that can be read ({error})") from None
    if mask.size != size:
        sizes = [f"{width}x{height}" for width, height in (mask.size, size)]
        raise UserError(f"mask is {sizes[0]} and image {sizes[1]}: give a mask of the image's size")
    return mask


def _check_header(name: str, data: bytes) -> None:
    """Refuse what is no picture of `FORMATS` or has too many pixels; reads the header alone."""
    if not data:
        raise UserError(f"{name} is empty: give a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except Exception:  # decoders raise nearly anything for what is no picture
        raise OtherKind(f"{name} is not a picture that is read here: give PNG, JPEG or WebP") from None
    if width * height > MOST_PIXELS:
        raise UserError(f"{name} is {width}x{height}: give at most {MOST_PIXELS // 10**6} million pixels")


def write_picture(image: Image.Image, kind: str, quality: int | None, facts: Mapping[str, object]) -> bytes:
    """A picture's file.

    Args:
        image: RGB.
        kind: "png", "jpeg" or "webp".
        quality: of the latter two, 0 to 100; 95 by default.
        facts: settings, which a PNG holds as text.
    """
    file = io.BytesIO()
    if kind == "png":
        image.save(file, "PNG", pnginfo=text_chunks(facts))
    else:
        image.save(file, kind.upper(), quality=95 if quality is None else quality)
    return file.getvalue()


def base64_text(data: bytes) -> str:
    """Bytes as JSON carries them."""
    return base64.b64encode(data).decode("ascii")


def from_base64(name: str, text: str) -> bytes:
    """Bytes of base64 text, a data: address too. Raises UserError."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise UserError(f"{name} is not base64") from None
