"""Addresses of shards, and their kinds: tars, tables, or folders, on a disk or at any fsspec address."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from braceexpand import UnbalancedBracesError, braceexpand

from cogview3.config import UserError
from cogview3.data.addresses import (
    bare,
    filesystem,
    has_pattern,
    is_hidden,
    is_local,
    list_folder,
    name_of,
    parent,
    read_address,
    walk,
)
from cogview3.data.folders import FolderShard
from cogview3.data.groups import Shard
from cogview3.data.images import SUFFIXES
from cogview3.data.names import split_name
from cogview3.data.tables import TABLES, TableShard
from cogview3.data.tars import TarShard

SIDECARS = ("captions.parquet", "keep.parquet")
"""Tables that lie beside shards."""

_STATE, _SPLITS = "state.json", "dataset_dict.json"
"""Where Hugging Face's `datasets` says which files are a data set, and which splits a folder of several has."""


def find_shards(addresses: Sequence[str]) -> list[Shard]:
    """Shards behind addresses: tars, tables, folders of pictures, and folders of tars or of tables.

    `*`, `?`, `[...]` and `{00000..00010}` work, but not in a name that something bears as it is; of the tars of a
    brace expression only the first and the last must be there. What tars hold is not looked at. Names found are sorted;
    those that begin with "." are left out, as a killed command leaves such behind.

    Raises UserError for an address with nothing behind it, a file that is none of these, latents, an unknown protocol,
    or a single shard that plainly holds no sample.
    """
    found: dict[str, Shard] = {}
    for address in addresses:
        for shard in _expand(str(address)):
            found.setdefault(shard.address, shard)
    if not found:
        raise UserError("no shards; give at least one tar or image folder")
    shards = list(found.values())
    if len(shards) == 1:
        shards[0].check()
    return shards


def _expand(address: str) -> list[Shard]:
    if (has_pattern(address) or "{" in address) and _is_there(address):
        return _look_up(address)
    try:
        names = list(braceexpand(address))
    except UnbalancedBracesError as error:
        raise UserError(f"{address}: {error}; write {{00000..00010}}") from None
    shards: list[Shard] = []
    for number, name in enumerate(names):
        between = 0 < number < len(names) - 1 and bare(name).lower().endswith(".tar")
        if between and not (has_pattern(name) or _is_latents(name)):
            shards.append(TarShard(name))
        else:
            shards += _match(name) if has_pattern(name) else _look_up(name)
    return shards


def _is_there(address: str) -> bool:
    """Whether something bears this very name."""
    fs, path = filesystem(address)
    return bool(fs.exists(path))


def _match(address: str) -> list[Shard]:
    """Shards whose addresses fit a pattern."""
    fs, path = filesystem(address)
    above = re.split(r"[*?[]", path, maxsplit=1)[0].rpartition("/")[0]
    names = [_whole(fs, address, name) for name in sorted(fs.glob(path)) if not is_hidden(name, above)]
    if not names:
        raise UserError(f"{address}: nothing matches; check the path")
    names = [name for name in names if not _is_sidecar(name) and not _is_latents(name)] or names
    return _tars(names) or [shard for name in names for shard in _look_up(name)]


def _whole(fs: Any, address: str, path: str) -> str:
    """A path of a file system as an address."""
    return str(fs.unstrip_protocol(path)) if "://" in address else path


def _look_up(address: str) -> list[Shard]:
    """Shards behind an address without a pattern."""
    fs, path = filesystem(address)
    if fs.isdir(path):
        return _in_folder(address, fs, path)
    if not fs.exists(path):
        if is_local(fs) and bare(address) != address:
            return _look_up(bare(address))
        raise UserError(f"{address}: not found; check the path")
    if _is_latents(address):
        raise UserError(
            f"{address}: latents, not a shard; give the shards themselves, which find the latents beside them"
        )
    found = _tars([address]) or _tables([address])
    if not found:
        raise UserError(f"{address}: neither a .tar (uncompressed), a table ({', '.join(TABLES)}) nor a folder")
    return found


def _in_folder(address: str, fs: Any, path: str) -> list[Shard]:
    """The tars of a folder, or the data set that it is, or its pictures, or its tables; subfolders included."""
    names = list_folder(fs, path)
    known = {name_of(name) for name in names}
    if _SPLITS in known:
        return _splits(address, fs, path)
    if _STATE in known:
        listed = _data_files(address.rstrip("/"))
        return _tables(_whole(fs, address, name) for name in names if name_of(name) in listed)
    if any(fs.isdir(name) for name in names):
        names = [f"{path.rstrip('/')}/{name}" for name, fault in walk(fs, path) if not fault]
    whole = [_whole(fs, address, name) for name in names]
    pictures = any(split_name(name)[1] in SUFFIXES for name in names)
    folder: list[Shard] = [FolderShard(address.rstrip("/") or "/")]
    if tars := _tars(whole):
        return [*tars, *(folder if pictures else ())]
    # what lies beside pictures may be what a downloader noted of them
    return folder if pictures else _tables(_without_cached(whole)) or folder


def _splits(address: str, fs: Any, path: str) -> list[Shard]:
    """The only split of a saved `DatasetDict`. Raises UserError where there are several."""
    whole = address.rstrip("/")
    splits = _entry(f"{whole}/{_SPLITS}", "splits", "give the folder of a split")
    if len(splits) == 1 and str(splits[0]) in map(name_of, list_folder(fs, path)):
        return _look_up(f"{whole}/{splits[0]}")
    choices = ", ".join(f"{whole}/{name}" for name in splits)
    raise UserError(f"{address}: a data set of several splits, or none; give the folder of the one meant: {choices}")


def _data_files(folder: str) -> set[str]:
    """The files that a saved data set names as its own, so that what `map` and `filter` cached beside is left out."""
    files, fix = f"{folder}/{_STATE}", "give the .arrow files that are meant"
    try:
        return {str(each["filename"]) for each in _entry(files, "_data_files", fix)}
    except (KeyError, TypeError, IndexError):
        raise UserError(f"{files}: damaged; {fix}") from None


def _entry(address: str, name: str, fix: str) -> list[Any]:
    """A list in a JSON file. Raises UserError, which ends with `fix`, where there is none."""
    try:
        entry = json.loads(read_address(address))[name]
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        entry = None
    if not isinstance(entry, list):
        raise UserError(f"{address}: damaged; {fix}")
    return entry


def _without_cached(names: Sequence[str]) -> list[str]:
    """Files without what `datasets` caches: in its cache folder nothing else says which are data."""
    saved = {parent(name): name for name in names if name_of(name) == _STATE}
    left = [name for name in names if not re.fullmatch(r"(cache-\w+|tmp\w+)\.arrow", name_of(name))]
    if not saved:
        return left
    listed = {folder: _data_files(folder) for folder in saved}
    return [name for name in left if parent(name) not in listed or name_of(name) in listed[parent(name)]]


def _tables(names: Iterable[str]) -> list[Shard]:
    return [TableShard(name) for name in names if bare(name).lower().endswith(TABLES) and not _is_sidecar(name)]


def _is_sidecar(name: str) -> bool:
    file = name_of(bare(name))
    return file in SIDECARS or file.endswith(tuple(f".{sidecar}" for sidecar in SIDECARS))


def _tars(names: Iterable[str]) -> list[Shard]:
    return [TarShard(name) for name in names if bare(name).lower().endswith(".tar") and not _is_latents(name)]


def _is_latents(name: str) -> bool:
    return bare(name).endswith((".latents.tar", "/latents.tar"))
