"""Which pictures to leave out, by metadata, caption, size and similarity, and the reasons."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from cogview3.config import Filters as Filters
from cogview3.config import UserError

AESTHETIC = ("aesthetic", "aesthetic_score")
NSFW = ("punsafe", "nsfw", "nsfw_score")
WATERMARK = ("pwatermark", "watermark", "watermark_score")
LINK = ("url", "source", "link")
"""Names under which public data sets keep these, compared without regard to case."""

COLORS, GRAYS = (8, 12), (16, 14)
"""Fields of a thumbnail across and down, and by how much of 255 each may differ where pictures count as the same.

Of drawings compressed again at a fourth to all of their size, 98 % differ by no more in every field.
"""

_NSFW_WORDS = {"unlikely": 0.0, "unsure": 0.5, "nsfw": 1.0}


def judge_text(filters: Filters, metadata: Mapping[str, Any], caption: str) -> str | None:
    """The first reason against a sample in its metadata and its old caption; not having one yet is none."""
    lower = {str(name).lower(): value for name, value in metadata.items()}
    link = str(_first(lower, LINK) or "").lower()
    reasons = {
        "blocked link": any(part.lower() in link for part in filters.block),
        "low aesthetic score": _exceeds(filters.min_aesthetic, _score(lower, AESTHETIC)),
        "high nsfw score": _exceeds(_score(lower, NSFW), filters.max_nsfw),
        "high watermark score": _exceeds(_score(lower, WATERMARK), filters.max_watermark),
        "short caption": 0 < len(caption) < filters.min_caption,
        "long caption": _exceeds(len(caption), filters.max_caption),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def judge_size(filters: Filters, width: int, height: int) -> str | None:
    """The first reason against a picture of this size in pixels."""
    if min(width, height) < filters.min_side:
        return "small image"
    return "long image" if _exceeds(max(width, height) / min(width, height), filters.max_ratio) else None


def _exceeds(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def _first(metadata: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first value under one of the names that is not None."""
    return next((metadata[name] for name in names if metadata.get(name) is not None), None)


def _score(metadata: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    value = _first(metadata, names)
    if isinstance(value, str) and value.lower() in _NSFW_WORDS:
        return _NSFW_WORDS[value.lower()]
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):  # the last for whole numbers of hundreds of digits
        return None
    return None if np.isnan(score) else score


def difference_hash(image: Image.Image) -> int:
    """64 bits: in a gray picture of 9 x 8, whether each pixel is darker than the one to its right; row by row.

    Scaling, compression and changes of brightness leave it as it is but for a few bits; mirroring does not. Pictures
    of one color all have the hash 0.
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = small[:, :-1] < small[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(image: Image.Image) -> bytes:
    """448 bytes: red, green and blue of 8 x 8 fields, then gray of 16 x 16; tells apart what a hash cannot."""
    parts = (("RGB", COLORS[0]), ("L", GRAYS[0]))
    return b"".join(image.convert(mode).resize((n, n), Image.Resampling.BOX).tobytes() for mode, n in parts)


THUMBNAIL = 3 * COLORS[0] ** 2 + GRAYS[0] ** 2
"""Bytes of a thumbnail."""

_TOLERANCES = np.repeat([COLORS[1], GRAYS[1]], [3 * COLORS[0] ** 2, GRAYS[0] ** 2])


def same_thumbnail(one: bytes, others: np.ndarray) -> bool:
    """Whether a thumbnail is like one of others, (N, 448), uint8: within the tolerance in every field."""
    return bool(np.any(np.all(np.abs(others.astype(np.int16) - np.frombuffer(one, np.uint8)) <= _TOLERANCES, axis=1)))


class Seen:
    """Pictures that came before, as hashes and thumbnails, to find those that look like one of them.

    Alike are hashes of at most `distance` bits of difference with thumbnails that agree. Two hashes that differ in d
    bits agree in at least one of any d + 1 parts, so only those that share a part are compared.
    """

    def __init__(self, distance: int = 0) -> None:
        if not 0 <= distance <= 16:
            raise UserError(f"distance {distance}: give 0 to 16 of the 64 bits")
        self._distance = distance
        edges = [64 * part // (distance + 1) for part in range(distance + 2)]
        self._parts = list(pairwise(edges))
        self._thumbnails: dict[int, bytearray] = {}
        self._sharing: dict[tuple[int, int], list[int]] = {}

    def add(self, value: int, small: bytes = b"") -> bool:
        """Whether a picture looks like one before; if not, it is kept for those to come."""
        keys = [(low, value >> low & (1 << high - low) - 1) for low, high in self._parts] if self._distance else []
        near = {other for key in keys for other in self._sharing.get(key, ())} | {value}
        for other in near:
            known = self._thumbnails.get(other)
            if known is None or (value ^ other).bit_count() > self._distance:
                continue
            if not small or same_thumbnail(small, np.frombuffer(known, np.uint8).reshape(-1, len(small))):
                return True
        if value not in self._thumbnails:
            for key in keys:
                self._sharing.setdefault(key, []).append(value)
        self._thumbnails.setdefault(value, bytearray()).extend(small)
        return False
