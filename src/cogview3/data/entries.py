"""From a sample's files to its captions, metadata and picture, or to the reason against it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogview3.data.encoded import Encoded, read_encoded
from cogview3.data.filters import Filters, judge_size, judge_text
from cogview3.data.formats import LATENTS, Group, encodable
from cogview3.data.images import SUFFIXES, Picture, decode
from cogview3.data.report import Broken, Filtered


@dataclass(frozen=True)
class Entry:
    """A sample before its picture is decoded.

    Attributes:
        key: name in its shard.
        picture: the file that holds it, or its latents.
        suffix: of this file.
        old: the caption that came with the picture; "" where there is only a new one.
        new: from the captions sidecar; None where it has none.
        metadata: from the .json file; {} without one.
        mended: what was missing, in words.
    """

    key: str
    picture: bytes
    suffix: str
    old: str
    new: str | None
    metadata: dict[str, Any]
    mended: tuple[str, ...] = ()


def take_apart(group: Group, captions: Mapping[str, str] | None = None, needs_caption: bool = True) -> Entry:
    """The entry of a group; `captions` are new captions by key.

    Where there is no .txt, the metadata's "caption" stands in, and a new caption is enough on its own.

    Raises:
        Broken: the group's own fault, "missing image", "missing caption" (or a blank one) where it `needs_caption`,
            "undecodable text", "unreadable metadata".
    """
    if group.fault:
        raise Broken(group.fault)
    pictures = [suffix for suffix in group.files if suffix in SUFFIXES or suffix == LATENTS]
    if not pictures:
        raise Broken("missing image")
    metadata = _metadata(group.files.get("json"))
    new = (captions or {}).get(group.key)
    mended = ["second image left out"] * (len(pictures) > 1)
    old = _text(group.files.get("txt", b""))
    if not old:
        old = encodable(str(metadata.get("caption") or "").strip())
        mended.append("caption from metadata" if old else "no old caption")
    if needs_caption and not old and not new:
        raise Broken("missing caption")
    if captions is not None and not new:
        mended.append("no new caption")
    return Entry(group.key, group.files[pictures[0]], pictures[0], old, new, metadata, tuple(mended))


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Broken("undecodable text") from None


def _metadata(content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        metadata = json.loads(content)
    except (ValueError, RecursionError):
        raise Broken("unreadable metadata") from None
    if not isinstance(metadata, dict):
        raise Broken("unreadable metadata")
    return metadata


def admit(
    group: Group,
    captions: Mapping[str, str] | None,
    keep: Mapping[str, str] | None,
    filters: Filters,
    needs_caption: bool = True,
) -> Entry:
    """The entry of a group, judged by the keep sidecar (reasons by key; None without one), metadata and caption.

    Raises Broken or Filtered.
    """
    if keep is not None and not group.fault:
        if group.key not in keep:
            raise Broken("not in the keep sidecar")
        if keep[group.key]:
            raise Filtered(keep[group.key])
    entry = take_apart(group, captions, needs_caption)
    if reason := judge_text(filters, entry.metadata, entry.old):
        raise Filtered(reason)
    return entry


def develop(entry: Entry, filters: Filters) -> Picture | Encoded:
    """The picture of an entry, or its latents, judged by the picture's size. Raises Broken or Filtered."""
    if entry.suffix == LATENTS:
        encoded = read_encoded(entry.picture)
        height, width = encoded.original
        if reason := judge_size(filters, width, height):
            raise Filtered(reason)
        return encoded
    picture = decode(entry.picture, entry.suffix)
    if reason := judge_size(filters, *picture.image.size):
        raise Filtered(reason)
    return picture
