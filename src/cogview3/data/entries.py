"""From a sample's files to its captions, metadata and picture, or to the reason why it is left out."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cogview3.data.encoded import Encoded, read_encoded
from cogview3.data.filters import Filters, judge_size, judge_text
from cogview3.data.groups import Group, Shard
from cogview3.data.images import Picture, decode
from cogview3.data.names import LATENTS, pictures_of
from cogview3.data.report import NO_CAPTION, Broken, Filtered, Report, Skipped
from cogview3.data.sidecars import read_captions, read_keep
from cogview3.data.texts import CAPTIONS, NO_TEXT, caption_choices, decode_text, find_name

MAX_METADATA = 2**24
"""Bytes; a larger .json file is not parsed."""


@dataclass(frozen=True)
class Entry:
    """A sample before its picture is decoded."""

    key: str  # name in its shard
    picture: bytes  # the file that holds it, or its latents
    suffix: str  # of this file
    old: str  # the caption that came with the picture; "" where there is only a new one
    new: str | None  # from the captions sidecar; None where it has none
    metadata: Mapping[str, Any]  # from the .json file, or the other columns of a table; {} without one
    corrected: tuple[str, ...] = ()  # what was missing or corrected, in words
    others: tuple[str, ...] = ()  # further captions that came with the picture, to choose from

    @property
    def choices(self) -> tuple[str, ...]:
        """All captions that came with the picture."""
        return (self.old, *self.others) if self.old else ()

    def decode(self) -> Picture:
        """The picture of an entry that was not encoded. Raises Broken."""
        return decode(self.picture, self.suffix)


def take_apart(group: Group, captions: Mapping[str, str] | None = None, needs_caption: bool = True) -> Entry:
    """The entry of a group; `captions` are new captions by key.

    A table's caption counts before a .txt, that before the metadata's "caption"; a new caption is enough on its own.

    Raises:
        Broken: the group's own fault, "missing image", "missing caption" (or a blank one) where it `needs_caption`,
            "caption is no text", "undecodable text", "unreadable metadata".
        Filtered: the set itself says that this is no sample.
    """
    if group.left_out:
        raise Filtered(group.left_out)
    if group.fault:
        raise Broken(group.fault)
    pictures = pictures_of(group.files)
    if not pictures:
        raise Broken("missing image")
    metadata = {**_metadata(group.files.get("json")), **group.record}
    new = (captions or {}).get(group.key)
    corrected = ["second image left out"] * (len(pictures) > 1)
    choices, fault = _captions(group, metadata, corrected)
    if not choices and not new and (needs_caption or fault):
        raise Broken(fault or NO_CAPTION)
    if not choices:
        corrected.append("no old caption")
    if captions is not None and not new:
        corrected.append("no new caption")
    old, *others = choices or ("",)
    suffix = pictures[0]
    return Entry(group.key, group.files[suffix], suffix, old, new, metadata, tuple(corrected), tuple(others))


def _captions(group: Group, metadata: Mapping[str, Any], corrected: list[str]) -> tuple[tuple[str, ...], str]:
    """The captions that came with a picture, or why what is there is none."""
    try:
        found = caption_choices(group.caption)
        if not found and "txt" in group.files:
            found = caption_choices(decode_text(group.files["txt"]))
        if not found:
            names = (find_name(metadata, [name]) for name in dict.fromkeys(("caption", *CAPTIONS)))
            values = (caption_choices(metadata[name]) for name in names if name is not None)
            found = next(filter(None, values), ())
            corrected += ["caption from metadata"] * bool(found)
    except Broken as reason:
        if str(reason) != NO_TEXT:
            raise
        return (), NO_TEXT
    return found, ""


def _metadata(content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    if len(content) > MAX_METADATA:
        raise Broken("metadata too large")
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

    What the sidecar leaves out is not looked at, whatever is wrong with it. Raises Broken or Filtered.
    """
    if keep is not None and group.key:
        if reason := keep.get(group.key):
            raise Filtered(reason)
        if group.key not in keep and not group.fault:
            raise Broken("not in the keep sidecar")
    entry = take_apart(group, captions, needs_caption)
    if reason := judge_text(filters, entry.metadata, entry.old):
        raise Filtered(reason)
    return entry


def decode_entry(entry: Entry, filters: Filters) -> Picture | Encoded:
    """The picture of an entry, or its latents, judged by the picture's size. Raises Broken or Filtered."""
    found = read_encoded(entry.picture) if entry.suffix == LATENTS else entry.decode()
    width, height = found.image.size if isinstance(found, Picture) else reversed(found.original)
    if reason := judge_size(filters, width, height):
        raise Filtered(reason)
    return found


def read_pictures(shard: Shard, groups: Iterable[Group], report: Report) -> Iterator[tuple[Entry, Picture]]:
    """Entry and picture of each usable sample of a shard; sidecars are obeyed, and all is counted in `report`."""
    captions, keep, filters = read_captions(shard), read_keep(shard), Filters()
    for group in groups:
        try:
            entry = admit(group, captions, keep, filters)
            picture = entry.decode()
        except Skipped as reason:
            report.skip(reason)
            continue
        report.give(entry.corrected + picture.corrected)
        yield entry, picture
