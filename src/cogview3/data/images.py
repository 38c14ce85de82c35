"""Bytes to RGB pictures: decoded by content, mended where that is safe, refused with a reason otherwise."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cogview3.data.report import Broken

SUFFIXES = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
"""Names under which pictures are looked for, and what such a file should hold."""

MAX_PIXELS = 2**27
"""Larger pictures are taken for decompression bombs."""

MIN_SIDE = 8
"""Smaller ones hold nothing to learn from: less than one latent cell."""

_FORMATS = sorted(set(SUFFIXES.values()))


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        image: RGB.
        format: what the file really is, such as "JPEG".
        mended: what had to be done to it, in words; empty for an ordinary picture.
    """

    image: Image.Image
    format: str
    mended: tuple[str, ...] = ()


def decode(data: bytes, suffix: str) -> Picture:
    """Decode a picture; `suffix` is its file's, without the dot, and only tells whether the name is right.

    Mended: a wrong suffix, CMYK, 16 bits a channel, transparency (laid on white), a turn kept in EXIF. Animations are
    refused: captions tell what happens in them, and their first frame often shows nothing yet.

    Raises:
        Broken: "not an image", "truncated image", "damaged image", "animated image", "too many pixels", "tiny image".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on EXIF and palettes; what matters is counted here
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return _mend(image, suffix)
        except (Broken, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise Broken("too many pixels") from None
        except UnidentifiedImageError:
            raise Broken("not an image") from None
        except Exception as error:  # decoders raise nearly anything for damaged data
            raise Broken("truncated image" if "truncated" in str(error).lower() else "damaged image") from None


def _mend(image: Image.Image, suffix: str) -> Picture:
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with a second view after it
    if image.width * image.height > MAX_PIXELS:
        raise Broken("too many pixels")
    if min(image.size) < MIN_SIDE:
        raise Broken("tiny image")
    if kind != "JPEG" and getattr(image, "is_animated", False):
        raise Broken("animated image")
    image.load()
    mended = [] if SUFFIXES.get(suffix) == kind else ["wrong suffix"]
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
        mended.append("turned")
    if image.mode != "RGB":
        image, what = _to_rgb(image)
        mended += [what] * bool(what)
    return Picture(image, kind, tuple(mended))


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """RGB of a picture of another mode, and what to count it under; nothing for gray and palettes."""
    if image.mode.startswith(("I", "F")):
        gray = (np.asarray(image, np.float64) / 257).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(gray).convert("RGB"), "16 bits"
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), "transparent"
    return image.convert("RGB"), "CMYK" if image.mode in ("CMYK", "YCCK") else ""
