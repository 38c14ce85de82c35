"""Pictures with old and new captions to learn from: triplets that were collected, or shards with captions sidecars."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from cogview3.captions.journal import parts, read_triplets
from cogview3.captions.rows import OK, admitted
from cogview3.config import UserError
from cogview3.data import draws
from cogview3.data.entries import take_apart
from cogview3.data.formats import find_shards
from cogview3.data.groups import Shard
from cogview3.data.parallel import over_shards
from cogview3.data.report import Broken, Report, Skipped, listed
from cogview3.data.sidecars import read_columns, read_keep, read_notes


@dataclass(frozen=True)
class Pair:
    """An old and a new caption, and where their picture is: number of its shard and offset in it."""

    shard: int
    offset: int
    key: str
    old: str
    new: str


@dataclass
class Pairs:
    """Pairs of a data set, in its order."""

    shards: list[Shard]  # that hold the pictures
    pairs: list[Pair] = field(default_factory=list)  # whose pictures can be read
    report: Report = field(default_factory=Report)  # counts of all, those left out by reason

    def image(self, shard: int, offset: int) -> Image.Image:
        """The picture of a pair, RGB. Raises UserError where it is not there any more."""
        group = self.shards[shard].at(offset)
        try:
            return take_apart(group, needs_caption=False).decode().image
        except Broken as error:
            address = self.shards[shard].address
            raise UserError(f"{address}: {group.key}: {error}; the shard was changed") from None

    def split(self, held_out: int) -> tuple[list[Pair], list[Pair]]:
        """Pairs to learn from, and those held out: a tenth of all at most, picked by hashes of their keys.

        Raises UserError where there are fewer than two.
        """
        if len(self.pairs) < 2:
            raise UserError(
                f"{len(self.pairs)} pictures with a new caption; at least 2 are needed, one of them held out"
            )
        count = max(1, min(held_out, len(self.pairs) // 10))
        order = sorted(self.pairs, key=lambda pair: draws.number("held out", pair.key))
        apart = set(order[:count])
        return [pair for pair in self.pairs if pair not in apart], [pair for pair in self.pairs if pair in apart]


@dataclass(frozen=True)
class _Wanted:
    """Captions of a shard by key: the old one, the new one, and the SHA-256 of the image file, where it is known.

    A key has several where the shard was rewritten with other pictures under its keys.
    """

    shard: Shard
    captions: Mapping[str, Sequence[tuple[str, str, str | None]]]


def read_pairs(
    addresses: Sequence[str], workers: int = 1, progress: Callable[[int], None] = lambda done: None
) -> Pairs:
    """Find the pictures of all new captions, and look at every one.

    `addresses` are folders of triplets (`part-N.parquet`), and shards as `formats.find_shards` takes them, of which the
    captions sidecars are read; `progress` is given the number of finished shards.

    Raises UserError where there is no new caption anywhere or a shard is not there, and for a damaged file.
    """
    wanted = [each for address in addresses for each in _wanted(address)]
    if not any(each.captions for each in wanted):
        raise UserError(f"{', '.join(addresses)}: no new captions; collect triplets, or re-caption the shards first")
    found = Pairs([each.shard for each in wanted])
    with over_shards(_look, wanted, workers) as looks:
        for number, (places, report) in enumerate(looks):
            found.pairs += [Pair(number, offset, key, old, new) for key, offset, old, new in places]
            found.report.add(report)
            progress(number + 1)
    if not found.pairs:
        raise UserError(f"{', '.join(addresses)}: no usable picture; broken: {listed(found.report.broken)}")
    return found


def _wanted(address: str) -> list[_Wanted]:
    if parts(Path(address)):
        columns = read_triplets(address).select(["shard", "key", "old", "new", "image"]).to_pydict()
        by_shard: dict[str, dict[str, list[tuple[str, str, str | None]]]] = {}
        for shard, key, old, new, image in zip(*columns.values(), strict=True):
            if shard and key and new and new.strip():
                by_shard.setdefault(shard, {}).setdefault(key, []).append((old or "", new.strip(), image))
        return [_Wanted(find_shards([shard])[0], captions) for shard, captions in by_shard.items()]
    return [_Wanted(shard, _sidecar(shard)) for shard in find_shards([address])]


def _sidecar(shard: Shard) -> dict[str, list[tuple[str, str, None]]]:
    address = shard.sidecar("captions")
    if read_notes(address) is None:
        return {}
    columns = read_columns(address, ("key", "old", "new", "status"))
    rows = zip(*columns.values(), strict=True)
    return {
        key: [(old or "", new.strip(), None)] for key, old, new, status in rows if status == OK and new and new.strip()
    }


def _look(wanted: _Wanted) -> tuple[list[tuple[str, int, str, str]], Report]:
    """Keys, offsets and captions of the pictures that are wanted and can be read. Each is decoded once, to be sure."""
    places, report = [], Report()
    left = set(wanted.captions)
    keep = read_keep(wanted.shard) if left else None
    for group in wanted.shard.groups() if left else ():
        if group.key and group.key not in left:
            continue
        left.discard(group.key)
        try:
            entry = admitted(group, keep)
            image = hashlib.sha256(entry.picture).hexdigest()
            known = [(old, new) for old, new, theirs in wanted.captions.get(group.key, ()) if theirs in (None, image)]
            if not known:
                raise Broken("another picture under its key")
            entry.decode()
        except Skipped as reason:
            report.skip(reason)
            continue
        report.samples += 1
        places.append((group.key, group.offset, *known[-1]))
    report.broken.update({"no such picture": len(left)} if left else {})
    return places, report
