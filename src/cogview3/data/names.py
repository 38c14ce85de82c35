"""Which files make up a sample, from their names; the same for folders and tars, in any order of files.

| names | |
|---|---|
| a.jpg, a.txt, a.json | the sample "a" |
| v1.5.jpg, v1.5.txt | the sample "v1.5" |
| x.image.jpg, x.caption.txt | the sample "x": one picture and one text whose names agree up to a dot |
| a.jpg, a.mask.png | the sample "a"; its mask is left out |
| a.jpg, a.webp | the sample "a" of the first; the other is left out |
| a.jpg, a.JPG | the sample "a", and "same key twice" |
| a.jpg, a.caption | the sample "a", where there is no a.txt |
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from cogview3.data.images import SUFFIXES, UNREAD_SUFFIXES
from cogview3.data.texts import encodable

TEXTS = ("txt", "json")
"""Suffixes of the files of a sample beside its picture."""

LATENTS = "safetensors"
"""Suffix of what stands for the picture where it was encoded ahead."""

OTHER_TEXTS = ("caption", "text")
"""Suffixes that other trainers give to captions; they count as "txt" where there is none."""

PICTURE_FILES = frozenset({*SUFFIXES, *TEXTS})
"""Suffixes of the files that are read of a sample."""

SECOND = "second picture of a name"
"""Reason against a picture that goes by the name of another one."""


@dataclass
class Named:
    """The files of a sample."""

    key: str  # their common name, in Unicode's composed form
    files: dict[str, int] = field(default_factory=dict)  # number of each among the names given, by suffix
    fault: str = ""  # why it is no sample; "" where it is one
    left_out: str = ""  # why it is left out on purpose

    @property
    def first(self) -> int:
        """Number of the file that comes first."""
        return min(self.files.values())

    def has_picture(self) -> bool:
        """Whether one of the files is a picture, of a format that is read or not, or latents."""
        return any(suffix in SUFFIXES or suffix in UNREAD_SUFFIXES or suffix == LATENTS for suffix in self.files)


def split_name(path: str) -> tuple[str, str]:
    """Key and suffix of a file, at the last dot of its name: "a/v1.5.PNG" is ("a/v1.5", "png").

    Hidden files and those without a suffix give two empty strings. Bytes of a name that are no UTF-8 become "\ufffd".
    """
    folder, slash, name = path.rpartition("/")
    stem, _, suffix = name.rpartition(".")
    if not stem or not suffix or name.startswith("."):
        return "", ""
    return plain_key(folder + slash + stem), suffix.lower()


def plain_key(key: str) -> str:
    """A key in Unicode's composed form: some systems write é as one character, others as e and an accent."""
    return unicodedata.normalize("NFC", encodable(key)).removeprefix("./")


def group_names(names: Sequence[str], contents: Set[str] = PICTURE_FILES) -> list[Named]:
    """The samples that files make up, in the order of their first files.

    Args:
        names: of all files of a folder or tar, with "/" between folders.
        contents: suffixes of the files that count; others are passed over, but for pictures of formats that are not
            read, which become faults.
    """
    samples: dict[tuple[str, int], Named] = {}
    for number, name in enumerate(names):
        key, suffix = split_name(name)
        if not key or not (suffix in contents or suffix in UNREAD_SUFFIXES or suffix in OTHER_TEXTS):
            continue
        again = 0
        while suffix in (sample := samples.setdefault((key, again), Named(key))).files:
            again += 1
        sample.files[suffix] = number
        if again:
            sample.fault = "same key twice"
    for sample in samples.values():
        for suffix in OTHER_TEXTS:
            if suffix in sample.files:
                sample.files.setdefault("txt", sample.files.pop(suffix))
    named = {key: sample for (key, again), sample in samples.items() if not again}
    _join_dotted(named)
    found = [*named.values(), *(sample for (_, again), sample in samples.items() if again)]
    for sample in found:
        _settle_format(sample)
    return sorted(found, key=lambda sample: sample.first)


def _settle_format(sample: Named) -> None:
    """Pass over pictures that are not read where there is one that is; else they are a fault."""
    unread = [suffix for suffix in sample.files if suffix in UNREAD_SUFFIXES]
    if unread and pictures_of(sample.files):
        for suffix in unread:
            del sample.files[suffix]
    elif unread and not sample.fault:
        sample.fault = f"format not read: {unread[0]}"


def _join_dotted(named: dict[str, Named]) -> None:
    """Bring together what agrees up to a dot and is nothing on its own: x.image.jpg and x.caption.txt."""
    families: dict[str, list[Named]] = {}
    for key, sample in named.items():
        if (match := _ROLE.fullmatch(key)) and not _is_whole(sample):
            families.setdefault(match[1], []).append(sample)
    for stem, parts in families.items():
        owner = named.get(stem)
        family = parts if owner is None or _is_whole(owner) else [owner, *parts]
        pictures = [sample for sample in family if sample.has_picture()]
        captions = [sample for sample in family if "txt" in sample.files and not sample.has_picture()]
        if owner is not None and owner.has_picture():
            pictures = [owner]
        if len(pictures) == 1 and len(captions) <= 1 and not (owner and _is_whole(owner)):
            texts = [sample for sample in family if not sample.has_picture()]
            if texts:
                joined = Named(stem)
                for sample in (*pictures, *texts):
                    joined.files = {**sample.files, **joined.files}
                    del named[sample.key]
                named[stem] = owner = joined
        if owner is not None and owner.has_picture():
            for sample in parts:
                if not sample.has_picture():
                    named.pop(sample.key, None)  # texts about something else
                elif sample.key in named:
                    sample.left_out = SECOND


_ROLE = re.compile(r"((?:.*/)?[^/.][^/.]*)(?:\.[A-Za-z_-]+)+")
"""A name and what part of it something is: "x.image", but neither a date nor a version."""


def _is_whole(sample: Named) -> bool:
    return sample.has_picture() and "txt" in sample.files


def pictures_of(files: Mapping[str, object]) -> list[str]:
    """Suffixes of the pictures, or latents, among the files of a sample."""
    return [suffix for suffix in files if suffix in SUFFIXES or suffix == LATENTS]
