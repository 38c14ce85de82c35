"""Bytes to RGB pictures: decoded by content, corrected where that is safe, refused with a reason otherwise."""

import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from cogview3.data.addresses import LFS_FAULT, LFS_POINTER, is_hidden
from cogview3.data.report import Broken

SUFFIXES = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG"),
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    **dict.fromkeys(("bmp", "dib"), "BMP"),
    **dict.fromkeys(("tif", "tiff"), "TIFF"),
    "avif": "AVIF",
}
"""Names under which pictures are looked for, and what such a file should hold."""

UNREAD_SUFFIXES = frozenset(
    {"apng", "heic", "heif", "jxl", "jp2", "j2k", "jpx", "psd", "xcf", "svg", "eps", "ai", "pdf", "ico", "icns", "tga"}
    | {"ppm", "pgm", "pbm", "pnm", "pfm", "exr", "hdr", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf"}
)
"""Names of pictures in formats that are not read: they are counted, not passed over."""

MAX_PIXELS = 2**27
"""Larger pictures are taken for decompression bombs."""

MIN_SIDE = 8
"""Smaller ones hold nothing to learn from: less than one latent cell."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of EXIF's orientation."""

_FORMATS = sorted(set(SUFFIXES.values()))
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"sRGB", b"eXIf")
_PROFILE_SPACES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    image: Image.Image  # RGB
    format: str  # what the file really is, such as "JPEG"
    corrected: tuple[str, ...] = ()  # what had to be done to it, in words; empty for an ordinary picture


def pictures_below(folder: Path) -> list[Path]:
    """Files of a folder and its subfolders that are named like pictures, sorted; hidden ones left out.

    Such are what is being written, and what macOS puts beside each file on foreign disks: `._00000.png`.
    """
    found = (path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in SUFFIXES)
    return sorted(path for path in found if not is_hidden(str(path.relative_to(folder))))


def open_image(source: Path | bytes) -> Image.Image:
    """A picture of one of the formats of `SUFFIXES`, not decoded yet.

    Pillow is never left to choose among all that it knows: it would start ghostscript for PostScript.

    Raises what Pillow does: UnidentifiedImageError for anything else, DecompressionBombError, OSError.
    """
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)


def decode(data: bytes, suffix: str) -> Picture:
    """Decode a picture; `suffix` is its file's, without the dot, and only tells whether the name is right.

    Corrected and noted: a wrong suffix, CMYK, 16 bits a channel, transparency (laid on white), a color profile
    (converted to sRGB), a turn kept in EXIF, metadata of a PNG that Pillow refuses, further pages of a TIFF.
    Animations are refused: captions say what happens in them, and their first frame often shows nothing yet.

    Raises:
        Broken: "not an image", "truncated image", "damaged image", "animated image", "too many pixels", "tiny image".
    """
    try:
        return _decode(data, suffix)
    except Broken as reason:
        if not data.startswith(_PNG) or str(reason) not in ("damaged image", "truncated image", "not an image"):
            raise
        bare = b"".join([_PNG, *(chunk for name, chunk in png_chunks(data) if name in _PNG_PIXELS)])
        if len(bare) == len(data):
            raise
        picture = _decode(bare, suffix)
        return Picture(picture.image, picture.format, (*picture.corrected, "metadata left out"))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes (length, name, content, checksum) of each chunk of a PNG."""
    start = len(_PNG)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        yield data[start + 4 : start + 8], data[start : start + 12 + length]
        start += 12 + length


def _decode(data: bytes, suffix: str) -> Picture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on EXIF and palettes; what matters is counted here
        try:
            with open_image(data) as image:
                return _correct(image, suffix)
        except (Broken, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise Broken("too many pixels") from None
        except UnidentifiedImageError:
            raise Broken(LFS_FAULT if data.startswith(LFS_POINTER) else "not an image") from None
        except Exception as error:  # decoders raise nearly anything for damaged data
            raise Broken("truncated image" if "truncated" in str(error).lower() else "damaged image") from None


def _correct(image: Image.Image, suffix: str) -> Picture:
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with a second view after it
    if image.width * image.height > MAX_PIXELS:
        raise Broken("too many pixels")
    if min(image.size) < MIN_SIDE:
        raise Broken("tiny image")
    several = kind != "JPEG" and getattr(image, "is_animated", False)
    if several and kind != "TIFF":
        raise Broken("animated image")
    image.load()
    corrected = [] if SUFFIXES.get(suffix) == kind else ["wrong suffix"]
    if several:
        corrected.append("first of several pages")
    image, turned = upright(image)
    image, done = to_rgb(image)
    return Picture(image, kind, (*corrected, *filter(None, [turned]), *done))


def upright(image: Image.Image) -> tuple[Image.Image, str]:
    """A loaded picture, turned as its EXIF says, and what was found in words; as it is where that cannot be read."""
    try:
        turn = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises its own choice of errors, which speak of metadata alone
        return image, "unreadable EXIF"
    return (image.transpose(_TURNS[turn]), "turned") if turn in _TURNS else (image, "")


def to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """SRGB of a picture of any mode, laid on white, and what was done in words; nothing for gray and palettes.

    Whole numbers are taken for 16 bits, or for 31 or 32 where one is larger. In floats white is 1, or else 255 or
    65535, the first that none is above.
    """
    if image.mode.startswith(("I", "F")):
        return _from_numbers(image), ("16 bits",)
    done = ["CMYK"] * (image.mode in ("CMYK", "YCCK"))
    if image.info.get("icc_profile"):
        image, what = _to_srgb(image)
        done += [what] * bool(what)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        done.append("transparent")
    return (image if image.mode == "RGB" else image.convert("RGB")), tuple(done)


def _from_numbers(image: Image.Image) -> Image.Image:
    values: Any = np.asarray(image)
    if values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no name for 32 bits without a sign
    values = np.nan_to_num(values.astype(np.float64))
    scales = (1, 255, 65535) if image.mode.startswith("F") else (65535, 2**31 - 1, 2**32 - 1)
    white = next((scale for scale in scales if values.max(initial=0) <= scale), scales[-1])
    gray = (values * (255 / white)).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def _to_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """A picture in the colors of its profile as sRGB, transparency kept, and what was done; unchanged where it is."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if "srgb" in (profile.profile.profile_description or "").lower():
            return image, ""
        space = profile.profile.xcolor_space
        if image.mode not in _PROFILE_SPACES.get(space, ()):
            clear = image.has_transparency_data
            image = image.convert({"RGB ": "RGBA" if clear else "RGB", "GRAY": "LA" if clear else "L"}[space])
        alpha = image.getchannel("A") if "A" in image.mode else None
        colors = image.convert(image.mode.removesuffix("A")) if alpha else image
        converted = ImageCms.profileToProfile(colors, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, TypeError):
        return image, "unreadable color profile"
    if converted is None:
        return image, ""
    if alpha:
        converted.putalpha(alpha)
    return converted, "color profile"
