"""WebDataset tars.

Tars are walked by tarfile's headers instead of webdataset's reader: a position must be saved and found again, files
that nobody asks for must not be read, and a cut tar or a key that comes twice must be counted. That reader gives no
offsets, takes an archive with a damaged header for one that ends there, and needs seconds to import.
"""

import errno
import io
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, ClassVar

from cogview3.config import UserError
from cogview3.data import addresses
from cogview3.data.addresses import LFS_FAULT, LFS_POINTER, MAX_FILE, filesystem, is_local, unread
from cogview3.data.groups import Group, Shard
from cogview3.data.names import LATENTS, PICTURE_FILES, TEXTS, Named, group_names

NOTES = "__latents__.json"
"""What a tar of latents says of itself: its first file."""

_BLOCK = 512
_LARGEST = 2**43  # bytes; file systems refuse to look for places far beyond, where only a damaged header points
_LONGEST_HEADER = 2**20  # bytes; names and the like
_CHUNK = 2**20
_REMEMBERED = 8  # indices
_PACKED = {
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"BZh": "packed with bzip2: unpack it first",
    b"\xfd7zXZ": "packed with xz: unpack it first",
    b"]\0\0": "packed with lzma: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first",
    b"\x04\x22\x4d\x18": "packed with lz4: unpack it first",
    b"\x1f\x9d": "packed with compress: unpack it first",
    b"PK\x03\x04": "packed with zip: unpack it first",
    b"7z\xbc\xaf": "packed with 7z: unpack it first",
    b"Rar!": "packed with rar: unpack it first",
    LFS_POINTER: LFS_FAULT,
}
"""How files begin that are named .tar and are none."""


@dataclass(frozen=True)
class TarShard(Shard):
    """A tar as img2dataset writes it; the files of a sample need not follow each other."""

    contents: ClassVar[frozenset[str]] = PICTURE_FILES
    """Suffixes of the files that are read."""

    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """Groups from number `first` on, every `pieces`-th from `piece`, in the order of the tar."""
        number, fault, error = -1, "", ""
        try:
            with _opened(self) as (file, index):
                fault, error, number = index.fault, index.error, len(index.samples) - 1
                if not (fault or index.members or isinstance(self, LatentShard)):
                    fault = "empty tar"
                seen: set[str] = set()
                for place, sample in enumerate(index.samples):
                    repeated = sample.key in seen
                    seen.add(sample.key)
                    if place >= first and place % pieces == piece:
                        yield _read(file, place, index, "same key twice" if repeated else "")
        except OSError as problem:
            fault, error = unread("tar", problem)
        if fault and piece == 0 and number + 1 >= first:
            yield Group(number + 1, -1, "", fault=fault, error=error)

    def at(self, offset: int | str) -> Group:
        """The group at an offset in bytes that `groups` gave. Raises UserError where it is gone."""
        try:
            with _opened(self) as (file, index):
                place = index.places.get(int(offset))
                if place is not None:
                    return _read(file, place, index)
        except OSError:
            pass
        raise UserError(f"{self.address}: no sample at byte {offset} any more; the tar was changed")


@dataclass(frozen=True)
class LatentShard(TarShard):
    """The tar of latents that was made of a shard and is read instead: `00000.latents.tar`, `latents.tar`."""

    contents: ClassVar[frozenset[str]] = frozenset({LATENTS, *TEXTS})

    def sidecar(self, kind: str) -> str:
        """Address of the sidecar of the shard that the latents were made of."""
        plain = addresses.bare(self.address)
        return f"{plain.removesuffix('latents.tar')}{kind}.parquet{self.address[len(plain) :]}"


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar that is being written."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def latents_of(shard: Shard) -> LatentShard:
    """Where the latents of a shard lie, whether they are there or not."""
    plain = addresses.bare(sidecar := shard.sidecar("latents"))
    return LatentShard(plain.removesuffix(".parquet") + ".tar" + sidecar[len(plain) :])


def have_latents(shards: Sequence[Shard]) -> list[bool]:
    """Whether each shard has latents beside it; the folders are listed once each."""
    wanted = [latents_of(shard).address for shard in shards]
    there: dict[str, set[str]] = {}
    for folder in set(map(addresses.parent, wanted)):
        fs, path = filesystem(folder)
        there[folder] = set(map(addresses.name_of, fs.ls(path, detail=False))) if fs.isdir(path) else set()
    return [addresses.name_of(address) in there[addresses.parent(address)] for address in wanted]


@dataclass(frozen=True)
class _Member:
    name: str
    header: int
    start: int
    size: int


@dataclass
class _Index:
    """What a tar holds: files, the samples that they make up, and what is wrong with the rest."""

    members: list[_Member] = field(default_factory=list)
    samples: list[Named] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    fault: str = ""
    error: str = ""


@contextmanager
def _opened(shard: TarShard) -> Iterator[tuple[BinaryIO, _Index]]:
    """A tar and its index. A remote one is first copied to a temporary file, in one transfer."""
    fs, path = filesystem(shard.address)
    if is_local(fs):
        with addresses.open_address(shard.address) as file:
            yield file, _index(file, shard, fs.ukey(path))
    else:
        stamp = _stamp(fs, path, shard.address)
        copy = _copied(shard.address, stamp)
        yield copy.file, _index(copy.file, shard, stamp)


def _stamp(fs: Any, path: str, address: str) -> str:
    """What changes when a remote file does."""
    try:
        return str(fs.ukey(path))
    except OSError:
        raise
    except Exception:  # each file system has errors of its own; opening it tells which are known
        addresses.open_address(address).close()
        return ""


class _Copy:
    """A remote file in an unnamed one on this machine, which is closed with the last use of this object."""

    def __init__(self, address: str) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        try:
            with addresses.open_address(address) as file:
                shutil.copyfileobj(file, self.file, _CHUNK)
        except OSError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", address) from None


@lru_cache(maxsize=2)
def _copied(address: str, stamp: str) -> _Copy:
    """A copy of a remote file; the last two are held."""
    return _Copy(address)


def _read(file: BinaryIO, place: int, index: _Index, fault: str = "") -> Group:
    """The sample at a place of the index."""
    sample = index.samples[place]
    offset, files = index.members[sample.first].header, {}
    fault = fault or sample.fault
    for suffix, number in sample.files.items() if not fault and not sample.left_out else ():
        member = index.members[number]
        if member.size > MAX_FILE:
            fault = "file too large"
            break
        if member.size < 0:
            fault = "link instead of a file"
            break
        file.seek(member.start)
        files[suffix] = file.read(member.size)
        if len(files[suffix]) < member.size:
            fault = "cut tar"
    return Group(place, offset, sample.key, {} if fault else files, fault=fault, left_out=sample.left_out)


_indices: dict[tuple[str, Any, frozenset[str]], _Index] = {}


def _index(file: BinaryIO, shard: TarShard, stamp: Any) -> _Index:
    """The index of an open tar; the last few are remembered."""
    name = (shard.address, stamp, shard.contents)
    if name in _indices:
        return _indices[name]
    index = _make_index(file, shard.contents)
    if not index.error:
        while len(_indices) >= _REMEMBERED:
            del _indices[next(iter(_indices))]
        _indices[name] = index
    return index


def _make_index(file: BinaryIO, contents: Set[str]) -> _Index:
    """Walk all headers. Where a tar ends early, the sample of the last file, which may lack some, is not given."""
    index, cut = _Index(), False
    try:
        for member in _members(file):
            index.members.append(member)
    except _DamagedError as damage:
        index.fault, cut = damage.fault, damage.cut
    except OSError as problem:
        index.fault, index.error = unread("tar", problem)
        cut = True
    index.samples = group_names([member.name for member in index.members], contents)
    if cut and index.samples:
        last = max(index.samples, key=lambda sample: max(sample.files.values()))
        index.samples.remove(last)
    index.places = {index.members[sample.first].header: place for place, sample in enumerate(index.samples)}
    return index


class _DamagedError(Exception):
    """A tar whose rest cannot be read; `cut` where the last file may be incomplete."""

    def __init__(self, fault: str, cut: bool = True) -> None:
        super().__init__(fault)
        self.fault, self.cut = fault, cut


def _members(file: BinaryIO) -> Iterator[_Member]:
    """Files of a tar, and of those that follow it in the same file, as `cat a.tar b.tar` makes them."""
    file.seek(0)
    head = file.read(len(LFS_POINTER))
    for magic, fault in _PACKED.items():
        if head.startswith(magic):
            raise _DamagedError(fault, cut=False)
    start: int | None = 0
    while start is not None:
        yield from _archive(file, start)
        start = _next_archive(file)


def _next_archive(file: BinaryIO) -> int | None:
    """Where something other than zeros follows the end of a tar; None where nothing does."""
    end = file.tell()
    while chunk := file.read(_CHUNK):
        if rest := chunk.lstrip(b"\0"):
            return (end + len(chunk) - len(rest)) // _BLOCK * _BLOCK
        end += len(chunk)
    return None


class _Headers:
    """A file for tarfile to walk headers in: what claims to be longer than any header is damage, not read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, as a binary file reads them."""
        if not 0 <= size <= _LONGEST_HEADER:
            raise _DamagedError("damaged tar")
        return self._file.read(size)


def _archive(file: BinaryIO, start: int) -> Iterator[_Member]:
    """Files of one tar from byte `start` on; leaves the file behind its end.

    Raises _DamagedError unless a block of zeros ends it.
    """
    end, empty = start, True
    file.seek(start)
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # all headers of a tar are never needed at once
                if not 0 <= member.size <= _LARGEST:
                    raise _DamagedError("damaged tar")
                empty = False
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                plain = member.isreg() and not member.issparse()
                if (plain or member.islnk() or member.issym()) and member.name != NOTES:
                    yield _Member(member.name, member.offset, member.offset_data, member.size if plain else -1)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError):
        pass  # what a damaged header raises; what follows the last good file tells more
    file.seek(end)
    last = file.read(_BLOCK)
    if empty and start and any(last):
        raise _DamagedError("bytes after the tar's end", cut=False)
    if len(last) < _BLOCK:
        raise _DamagedError("cut tar")
    if any(last):
        raise _DamagedError("damaged tar")
