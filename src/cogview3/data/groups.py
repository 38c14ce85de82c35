"""The interface of every kind of shard: the files of one sample after the other, or a fault in their place."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cogview3.config import UserError
from cogview3.data.addresses import beside, filesystem, unread


@dataclass(frozen=True)
class Group:
    """One sample as it lies in a shard, or something wrong in its place."""

    number: int  # position in the shard; the first is 0
    offset: int | str  # where `Shard.at` finds it again: a number, or the key in folders
    key: str  # name without suffix
    files: Mapping[str, bytes] = field(default_factory=dict)  # content by suffix, in lower case
    caption: Any = None  # what a table or a metadata file gives as caption: a text, or a list of texts to choose from
    record: Mapping[str, Any] = field(default_factory=dict)  # the other columns of such a row
    fault: str = ""  # why there is no sample here; "" where there is one
    error: str = ""  # what the system says of what it cannot read, which may pass; "" of what is wrong in itself
    left_out: str = ""  # why the set itself says that this is no sample, such as "failed download"


@dataclass(frozen=True)
class Shard(ABC):
    """An ordered set of groups: a tar, a table, or a folder."""

    address: str  # where it lies

    @abstractmethod
    def groups(self, first: int = 0, piece: int = 0, pieces: int = 1, order: int | None = None) -> Iterator[Group]:
        """Groups from number `first` on, of those every `pieces`-th from `piece`; nothing is read of the others.

        `order` is a seed that shuffles a folder; a tar and a table keep their own order. Faults of the shard as a
        whole come with piece 0 alone, without a key. Raises nothing: a bad shard is one group with a fault.
        """

    @abstractmethod
    def at(self, offset: int | str) -> Group:
        """The group at an offset that `groups` gave. Raises UserError where it is gone."""

    def sidecar(self, kind: str) -> str:
        """Address of the parquet file that holds "captions" or "keep": `00000.captions.parquet` beside `00000.tar`."""
        return beside(self.address, f"{kind}.parquet")

    def check(self) -> None:  # noqa: B027
        """Raise UserError where it is plain at a glance that the shard holds no sample."""

    def size(self) -> int:
        """Bytes, which change when the shard does. Raises OSError where it is not there."""
        fs, path = filesystem(self.address)
        return int(fs.size(path))


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
        f"{shard.address}: {fault} ({error}); nothing was written for this shard; repair it or leave it out, then "
        "run the command again"
    )
