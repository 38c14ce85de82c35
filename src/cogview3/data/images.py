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
        image, what = to_rgb(image)
        mended += [what] * bool(what)
    return Picture(image, kind, tuple(mended))


def to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """RGB of a picture of any mode, and what to count it under; nothing for gray and palettes.

    Whole numbers are taken for 16 bits, or for 31 or 32 where one is larger. In floats white is 1, or else 255 or
    65535, the first that none is above.
    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if values.dtype == np.int32:
            values = values.view(np.uint32)  # Pillow has no name for 32 bits without a sign
        values = np.nan_to_num(values.astype(np.float64))
        scales = (1, 255, 65535) if image.mode.startswith("F") else (65535, 2**31 - 1, 2**32 - 1)
        white = next((scale for scale in scales if values.max(initial=0) <= scale), scales[-1])
        gray = (values * (255 / white)).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(gray).convert("RGB"), "16 bits"
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), "transparent"
    return image.convert("RGB"), "CMYK" if image.mode in ("CMYK", "YCCK") else ""
