"""Where samples lie: WebDataset tars, image folders and tables, on a disk or at any address that fsspec knows.

Tars are walked by tarfile's headers instead of webdataset's reader: a position must be saved and found again, files
that nobody asks for must not be read, and a cut tar or a key that comes twice must be counted. That reader tells no
offsets, takes an archive with a damaged header for one that ends there, and needs seconds to import.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO, ClassVar, Protocol

from braceexpand import UnbalancedBracesError, braceexpand
from fsspec.core import url_to_fs

from cogview3.config import UserError
from cogview3.data import draws, images

TEXTS = ("txt", "json")
"""Suffixes of the files of a sample beside its picture."""

LATENTS = "safetensors"
"""Suffix of what stands for the picture where it was encoded ahead."""

TABLES = (".parquet", ".arrow")
"""Ends of the names of tables."""

SIDECARS = ("captions.parquet", "keep.parquet")
"""Tables that lie beside shards."""

MAX_FILE = 2**28
"""Bytes; a larger file in a tar is left alone, as no picture and no caption is that large."""

_BLOCK = 512
_LARGEST = 2**43  # bytes; file systems refuse to look for places far beyond, where only a damaged header points
_Listed = tuple[str, dict[str, str], dict[str, bytes], str]
"""A folder's sample: key, file names by suffix, texts by suffix, fault."""


@dataclass(frozen=True)
class Group:
    """The files of one sample, or something wrong in its place.

    Attributes:
        number: position in the shard; the first is 0.
        offset: where `Shard.at` finds it again.
        key: name without suffix.
        files: content by suffix, in lower case; only pictures, or in a shard of latents those, and texts.
        fault: why there is no sample here; "" where there is one.
        error: what the system says where something is missing or cannot be read, which may pass; "" where what was
            read is wrong in itself.
    """

    number: int
    offset: int
    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    fault: str = ""
    error: str = ""


class Shard(Protocol):
    """A tar or a folder: an ordered set of groups."""

    address: str

    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """Groups from number `first` on, of those every `pieces`-th from `piece`; nothing is read of the others.

        `order` is a seed that shuffles a folder; a tar keeps its own order. Faults of the shard as a whole come with
        piece 0 alone.
        """

    def at(self, offset: int) -> Group:
        """The group at an offset that `groups` gave. Raises UserError where it is gone."""

    def sidecar(self, kind: str) -> str:
        """Address of the parquet file beside the shard that holds "captions" or "keep"."""


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Raises UserError for a protocol that is not there."""
    try:
        return url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address}: {error}; give a path, or an address whose fsspec package is installed") from None


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def open_address(address: str) -> BinaryIO:
    """A local file or an address, opened to read bytes. Raises OSError where it cannot be."""
    fs, path = filesystem(address)
    return fs.open(path, "rb")


def find_shards(addresses: Sequence[str]) -> list[Shard]:
    """Shards behind addresses: tars, tables, image folders, and folders of tars or of tables.

    `*`, `?`, `[...]` and `{00000..00010}` work, but not in a name that something bears as it is. What the tars hold is
    not looked at, so ten thousand take no longer than ten; of a brace expression's, only the first and the last must be
    there, the others are counted when their turn comes. Names found are sorted; those that begin with "." are left out,
    as a killed command leaves such behind.

    Raises UserError for an address with nothing behind it, a file that is none of these, latents, or an unknown
    protocol.
    """
    found: dict[str, Shard] = {}
    for address in addresses:
        for shard in _expand(str(address)):
            found.setdefault(shard.address, shard)
    if not found:
        raise UserError("no shards; give at least one tar or image folder")
    return list(found.values())


def _expand(address: str) -> list[Shard]:
    if (_has_magic(address) or "{" in address) and _is_there(address):
        return _look_up(address, plain=True)
    try:
        names = list(braceexpand(address))
    except UnbalancedBracesError as error:
        raise UserError(f"{address}: {error}; write {{00000..00010}}") from None
    shards: list[Shard] = []
    for number, name in enumerate(names):
        unseen = 0 < number < len(names) - 1 and name.endswith(".tar") and not (_has_magic(name) or _is_latents(name))
        shards += [TarShard(name)] if unseen else _look_up(name)
    return shards


def _has_magic(address: str) -> bool:
    return any(mark in address for mark in "*?[")


def _is_there(address: str) -> bool:
    """Whether something bears this very name."""
    fs, path = filesystem(address)
    return bool(fs.exists(path))


def _look_up(address: str, plain: bool = False) -> list[Shard]:
    """Shards behind an address, `plain` or with marks that stand for others."""
    fs, path = filesystem(address)
    whole = fs.unstrip_protocol if "://" in address else str
    if _has_magic(address) and not plain:
        above = re.split(r"[*?[]", path, maxsplit=1)[0].rpartition("/")[0]
        names = [whole(name) for name in sorted(fs.glob(path)) if not _is_hidden(name, above)]
        if not names:
            raise UserError(f"{address}: nothing matches; check the path")
        names = [name for name in names if not _is_sidecar(name) and not _is_latents(name)] or names
        return _tars(names) or [shard for name in names for shard in _look_up(name, plain=True)]
    if fs.isdir(path):
        found = sorted(name.rstrip("/") for name in fs.ls(path, detail=False))
        names = [whole(name) for name in found if not _is_hidden(name, name.rpartition("/")[0])]
        return _tars(names) or _tables(names) or [FolderShard(address.rstrip("/"))]
    if not fs.exists(path):
        raise UserError(f"{address}: not found; check the path")
    if _is_latents(address):
        raise UserError(
            f"{address}: latents, which are no shard; give the shards themselves, beside which they are found"
        )
    if not address.endswith((".tar", *TABLES)):
        raise UserError(f"{address}: neither a .tar (uncompressed), a table ({', '.join(TABLES)}) nor a folder")
    return [TarShard(address)] if address.endswith(".tar") else _tables([address])


def _is_hidden(name: str, above: str) -> bool:
    """Whether a name below a folder begins with ".", or one of the folders between."""
    return any(part.startswith(".") for part in name.removeprefix(above).split("/"))


def _tables(names: Sequence[str]) -> list[Shard]:
    """The tables among files, unless there are pictures, which tables may then tell of."""
    from cogview3.data.tables import TableShard  # which builds on this module

    if any(name.rpartition(".")[2].lower() in images.SUFFIXES for name in names):
        return []
    return [TableShard(name) for name in names if name.endswith(TABLES) and not _is_sidecar(name)]


def _is_sidecar(name: str) -> bool:
    file = name.rpartition("/")[2]
    return file in SIDECARS or file.endswith(tuple(f".{sidecar}" for sidecar in SIDECARS))


def _tars(names: Sequence[str]) -> list[Shard]:
    return [TarShard(name) for name in names if name.endswith(".tar") and not _is_latents(name)]


def _is_latents(name: str) -> bool:
    return name.endswith((".latents.tar", "/latents.tar"))


def split_name(path: str) -> tuple[str, str]:
    """Key and suffix of a file in a shard, at the first dot of its name: "a/b.seg.png" is ("a/b", "seg.png").

    Hidden files and those without a suffix give two empty strings. Bytes of a name that are no UTF-8 become "\ufffd".
    """
    folder, slash, name = path.rpartition("/")
    stem, _, suffix = name.partition(".")
    return (encodable(folder + slash + stem), suffix.lower()) if stem and suffix else ("", "")


def encodable(text: str) -> str:
    """A text without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


@dataclass(frozen=True)
class TarShard:
    """A tar as img2dataset writes it: the files of a sample follow each other and share a key."""

    address: str
    contents: ClassVar[frozenset[str]] = frozenset({*images.SUFFIXES, *TEXTS})
    """Suffixes of the files that are read."""

    def sidecar(self, kind: str) -> str:
        """`00000.tar` has `00000.captions.parquet` beside it."""
        return f"{self.address.removesuffix('.tar')}.{kind}.parquet"

    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """As `Shard.groups`. Headers before `first` are walked again, to know the keys that came already."""
        seen: set[str] = set()
        number = -1
        try:
            with open_address(self.address) as file:
                wanted = _walk(file, 0, self.contents, lambda n: n >= first and n % pieces == piece)
                for number, group in enumerate(wanted):
                    repeated = group.key in seen
                    seen.add(group.key)
                    if number >= first and number % pieces == piece:
                        yield Group(number, group.offset, group.key, fault="same key twice") if repeated else group
            return
        except _Damaged as damage:
            fault, error = str(damage), ""
        except OSError as problem:
            fault, error = unread("tar", problem)
        if piece == 0 and number + 1 >= first:
            yield Group(number + 1, -1, "", fault=fault, error=error)

    def at(self, offset: int) -> Group:
        """As `Shard.at`."""
        try:
            with open_address(self.address) as file:
                return next(_walk(file, offset, self.contents, lambda number: True))
        except (_Damaged, OSError, StopIteration):
            raise UserError(f"{self.address}: no sample at byte {offset} any more; the tar was changed") from None


@dataclass(frozen=True)
class LatentShard(TarShard):
    """The tar of latents that was made of a shard and is read in its place: `00000.latents.tar`, `latents.tar`."""

    contents: ClassVar[frozenset[str]] = frozenset({LATENTS, *TEXTS})

    def sidecar(self, kind: str) -> str:
        """As the shard's own."""
        return f"{self.address.removesuffix('latents.tar')}{kind}.parquet"


def latents_of(shard: Shard) -> LatentShard:
    """Where the latents of a shard lie, whether they are there or not."""
    return LatentShard(shard.sidecar("latents").removesuffix(".parquet") + ".tar")


def have_latents(shards: Sequence[Shard]) -> list[bool]:
    """Whether each shard has latents beside it; the folders are listed once each."""
    addresses = [latents_of(shard).address for shard in shards]
    there: dict[str, set[str]] = {}
    for folder in {_parent(address) for address in addresses}:
        fs, path = filesystem(folder)
        names = fs.ls(path, detail=False) if fs.isdir(path) else []
        there[folder] = {name.rstrip("/").rpartition("/")[2] for name in names}
    return [address.rpartition("/")[2] in there[_parent(address)] for address in addresses]


def _parent(address: str) -> str:
    return address.rpartition("/")[0] or ("/" if address.startswith("/") else ".")


class _Damaged(Exception):
    """A tar whose rest cannot be read."""


def _walk(file: BinaryIO, start: int, contents: Set[str], wanted: Callable[[int], bool]) -> Iterator[Group]:
    """Groups of a tar from byte `start` on, numbered from 0; of those whose number is wanted, `contents` are read.

    A group ends where the key changes or a suffix comes again. Raises _Damaged where the tar ends early; the group
    before that, which may lack files, is not given.
    """
    group: Group | None = None
    suffixes: set[str] = set()
    for member in _members(file, start):
        key, suffix = split_name(member.name)
        if not key or not member.isreg() or member.name.startswith("__"):
            continue
        if group is None or key != group.key or suffix in suffixes:
            if group is not None:
                yield group
            group = Group(group.number + 1 if group else 0, member.offset, key)
            suffixes.clear()
        suffixes.add(suffix)
        if suffix in contents and member.size <= MAX_FILE and wanted(group.number):
            file.seek(member.offset_data)
            group.files[suffix] = file.read(member.size)
            if len(group.files[suffix]) < member.size:
                raise _Damaged("cut tar")
    if group is not None:
        yield group


def _members(file: BinaryIO, start: int) -> Iterator[tarfile.TarInfo]:
    """Headers from byte `start` on. Raises _Damaged unless a block of zeros ends them."""
    end = start
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # all headers of a tar are never needed at once
                if not 0 <= member.size <= _LARGEST:
                    raise _Damaged("damaged tar")
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                yield member
    except (tarfile.TarError, EOFError, ValueError):  # ValueError: numbers that a damaged header cannot mean
        pass
    file.seek(end)
    last = file.read(_BLOCK)
    if len(last) < _BLOCK:
        raise _Damaged("cut tar")
    if any(last):
        raise _Damaged("damaged tar")


@dataclass(frozen=True)
class FolderShard:
    """A folder of pictures: `a.jpg` beside `a.txt` (and `a.json`), or a `metadata.jsonl` with file_name and text."""

    address: str

    def sidecar(self, kind: str) -> str:
        """`captions.parquet` and `keep.parquet` lie in the folder."""
        return f"{self.address}/{kind}.parquet"

    @property
    def length(self) -> int:
        """Number of groups. Raises UserError for a folder without any."""
        return len(self._listing)

    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """As `Shard.groups`."""
        places = list(range(len(self._listing)))
        if order is not None:
            places.sort(key=lambda place: draws.number("folder", order, place))
        for number in range(first, len(places)):
            if number % pieces == piece:
                yield self._read(number, places[number])

    def at(self, offset: int) -> Group:
        """As `Shard.at`."""
        if not 0 <= offset < len(self._listing):
            raise UserError(f"{self.address}: no sample {offset} any more; the folder was changed")
        return self._read(0, offset)

    def _read(self, number: int, place: int) -> Group:
        key, names, texts, fault = self._listing[place]
        files, error = dict(texts), ""
        for suffix, name in names.items():
            try:
                with open_address(f"{self.address}/{name}") as file:
                    files[suffix] = file.read()
            except OSError as problem:
                fault = fault or "unreadable file"
                if not (texts and isinstance(problem, FileNotFoundError)):  # metadata.jsonl names what never was there
                    error = error or unread("file", problem)[1]
        return Group(number, place, key, {} if fault else files, fault, error)

    @cached_property
    def _listing(self) -> list[_Listed]:
        """The samples. Raises UserError for a folder without any."""
        fs, path = filesystem(self.address)
        names = sorted(name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
        listing = self._from_metadata() if "metadata.jsonl" in names else _by_key(names)
        if not listing:
            raise UserError(f"{self.address}: no pictures; give a folder with .jpg, .png or .webp files or with tars")
        return listing

    def _from_metadata(self) -> list[_Listed]:
        with open_address(f"{self.address}/metadata.jsonl") as file:
            lines = [line for line in file.read().splitlines() if line.strip()]
        return _repeats_marked([_from_line(number, line) for number, line in enumerate(lines)])


def _from_line(number: int, line: bytes) -> _Listed:
    try:
        record = json.loads(line)
        name, text = record.pop("file_name"), record.pop("text", None)
        key, suffix = split_name(name)
        texts = {"json": json.dumps(record).encode()} | ({} if text is None else {"txt": text.encode()})
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"line {number + 1}", {}, {}, "unreadable line of metadata.jsonl"
    if ".." in name.split("/") or name.startswith("/"):
        return key, {}, {}, "file outside of the folder"
    return key, {suffix: name} if suffix in images.SUFFIXES else {}, texts, ""


def _by_key(names: Sequence[str]) -> list[_Listed]:
    groups: dict[str, dict[str, str]] = {}
    dotted: list[str] = []
    for name in names:
        key, suffix = split_name(name)
        if key and (suffix in images.SUFFIXES or suffix in TEXTS):
            groups.setdefault(key, {})[suffix] = name
        elif key and suffix.rpartition(".")[2] in images.SUFFIXES:
            dotted.append(name)
    listing: list[_Listed] = [(key, files, {}, "") for key, files in groups.items()]
    # the others, such as a.mask.png beside a.png, belong to a picture
    lost = [name for name in dotted if not images.SUFFIXES & groups.get(split_name(name)[0], {}).keys()]
    return listing + [(name, {}, {}, "more than one dot in the name") for name in lost]


def _repeats_marked(
    listing: list[_Listed],
) -> list[_Listed]:
    seen: set[str] = set()
    marked = []
    for key, names, texts, fault in listing:
        marked.append((key, {}, {}, "same key twice") if key in seen else (key, names, texts, fault))
        seen.add(key)
    return marked


def unread(kind: str, error: OSError) -> tuple[str, str]:
    """`Group.fault` and `Group.error` of something that the system could not read."""
    state = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
    return f"{state} {kind}", error.strerror or str(error) or type(error).__name__


def all_groups(shard: Shard) -> Iterator[Group]:
    """All groups of a shard for a result that is kept, which a passing fault must not shape.

    Raises UserError where the shard or a file of it is missing or cannot be read.
    """
    try:
        for group in shard.groups():
            if group.error:
                raise _unread_error(shard, f"{group.key} {group.fault}".strip(), group.error)
            yield group
    except OSError as problem:
        raise _unread_error(shard, *unread("folder", problem)) from None


def _unread_error(shard: Shard, fault: str, error: str) -> UserError:
    return UserError(
        f"{shard.address}: {fault} ({error}); nothing was written for this shard; mend that, or leave it out, and run "
        "the command again"
    )


def exists(address: str) -> bool:
    """Whether a file is there."""
    fs, path = filesystem(address)
    return fs.exists(path)
