"""Addresses of files: paths on this machine, and everything else that fsspec supports."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from cogview3.checkpoints import whole_file
from cogview3.config import UserError

MAX_FILE = 2**28
"""Bytes; a larger file is left alone, as no picture and no caption is that large."""

LFS_POINTER = b"version https://git-lfs"
"""How files begin that Git left in the place of large ones."""

LFS_FAULT = "pointer of Git LFS: fetch the file with git lfs pull"
"""Reason against them."""

ARCHIVES = (".tar", ".parquet", ".arrow", ".feather")
"""Ends of the names of files that hold many samples."""

_NONE_THERE = (401, 403, 404, 410)  # what servers answer for a file that they do not have or do not show
_PERMANENT = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR)


class NotAFileError(OSError):
    """A pipe, a device or a folder where a file should be, or more than `MAX_FILE` bytes: reading again won't help."""


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Raises UserError for none, or an unknown protocol."""
    if not address.strip():  # fsspec would take the root of all files
        raise UserError(f"address {address!r} is empty: give a path, . for the current folder")
    try:
        fs, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address}: {error}; give a path, or an address whose fsspec package is installed") from None
    return fs, path


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def open_address(address: str, name: str = "") -> BinaryIO:
    """A file, or the file `name` below a folder, opened to read bytes. A name is no address: it may hold "://".

    Raises OSError where it cannot be; NotAFileError for what might never end, such as a pipe.
    """
    fs, path = filesystem(address)
    if name:
        path, address = (f"{folder.rstrip('/')}/{name}" for folder in (path, address))
    if is_local(fs):
        _check_regular(address, path)
        return fs.open(path, "rb")
    try:
        return fs.open(path, "rb")
    except OSError:
        raise
    except Exception as error:  # each file system has errors of its own
        if getattr(error, "status", None) in _NONE_THERE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from None
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", address) from None


def _check_regular(address: str, path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except ValueError:  # a name with a NUL, which no file can have
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from None
    except OSError as error:
        if error.errno in _PERMANENT:
            raise NotAFileError(error.errno, error.strerror, address) from None
        raise
    if not stat.S_ISREG(mode):
        raise NotAFileError(errno.EINVAL, "not a file", address)


@contextmanager
def whole_at(address: str) -> Iterator[Path]:
    """As `checkpoints.whole_file`, also for a remote address, to which a temporary file is sent when it is whole."""
    fs, path = filesystem(address)
    if is_local(fs):
        with whole_file(Path(path)) as temporary:
            yield temporary
        return
    with TemporaryDirectory() as folder:
        yield Path(folder) / "whole"
        fs.put_file(f"{folder}/whole", path)


def read_address(address: str, name: str = "") -> bytes:
    """The content of a file, as `open_address` finds it.

    Raises OSError where it cannot be read, NotAFileError for more than `MAX_FILE` bytes.
    """
    with open_address(address, name) as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise NotAFileError(errno.EFBIG, "file too large", address)
    return content


def unread(kind: str, error: OSError) -> tuple[str, str]:
    """`Group.fault` and `Group.error` of something that could not be read."""
    if isinstance(error, NotAFileError):
        return "file too large" if error.errno == errno.EFBIG else "not a file", ""
    state = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
    return f"{state} {kind}", error.strerror or str(error) or type(error).__name__


def name_of(address: str) -> str:
    """The last part of an address."""
    return address.rstrip("/").rpartition("/")[2]


def bare(address: str) -> str:
    """An address without the query behind it: "https://x.org/a.tar?token=1" is "https://x.org/a.tar"."""
    head, mark, _ = address.partition("?")
    return head if mark and head.lower().endswith(ARCHIVES) else address


def beside(address: str, name: str) -> str:
    """Address of the file `name` that belongs to an archive: "a.tar" and "keep.parquet" give "a.keep.parquet"."""
    plain = bare(address)
    return f"{plain.rpartition('.')[0]}.{name}{address[len(plain) :]}"


def has_pattern(address: str) -> bool:
    """Whether `*`, `?` or `[` stand for other characters."""
    return any(mark in bare(address) for mark in "*?[")


def is_hidden(name: str, above: str = "") -> bool:
    """Whether a name below a folder begins with ".", or one of the folders between does."""
    return any(part.startswith(".") for part in name.removeprefix(above).split("/"))


def list_folder(fs: Any, path: str) -> list[str]:
    """Paths directly in a folder, sorted; hidden ones left out."""
    names = sorted(name.rstrip("/") for name in fs.ls(path, detail=False))
    return [name for name in names if not name_of(name).startswith(".")]


def walk(fs: Any, path: str) -> Iterator[tuple[str, str]]:
    """Names of all files below a folder, relative to it, in a fixed order; and "", or why there is none.

    Hidden files and folders are left out. Links to folders are followed, each folder once.
    """
    if not is_local(fs):
        start = len(path.rstrip("/")) + 1
        found = sorted(name[start:] for name in fs.find(path))
        yield from ((name, "") for name in found if name and not is_hidden(name))
        return

    def refuse(error: OSError) -> None:
        if error.filename == path:
            raise error

    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        known = os.stat(folder)
        if (known.st_dev, known.st_ino) in seen:
            folders.clear()
            continue
        seen.add((known.st_dev, known.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, path).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        yield from ((prefix + name, "") for name in sorted(files) if not name.startswith("."))
        for name in list(folders):
            if not os.access(os.path.join(folder, name), os.R_OK | os.X_OK):
                folders.remove(name)
                yield prefix + name, "unreadable folder"


def parent(address: str) -> str:
    """The folder that something lies in."""
    return address.rpartition("/")[0] or ("/" if address.startswith("/") else ".")
