"""Pictures with captions from shards, in an order that depends on the seed alone and can be resumed anywhere.

`for sample in CaptionedImages(["data/{00000..00099}.tar", "s3://more/pictures/*.tar"], seed=1)` gives `sample.image`
and `sample.caption`; the reader's `report` counts what was skipped, by reason.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

from PIL import Image

from cogview3.config import UserError
from cogview3.data import draws
from cogview3.data.addresses import name_of
from cogview3.data.encoded import Encoded, Preprocessing, check_latents
from cogview3.data.entries import Entry, admit, decode_entry, take_apart
from cogview3.data.filters import Filters
from cogview3.data.formats import find_shards
from cogview3.data.groups import Group
from cogview3.data.images import Picture
from cogview3.data.order import Place, Stream, check_identity
from cogview3.data.report import Broken, Report, Skipped, Tolerance, listed
from cogview3.data.sidecars import read_captions, read_keep
from cogview3.data.tars import latents_of

BARREN_EPOCHS = 3
"""Epochs in a row without one usable sample, after which reading stops."""

GONE = "gone since the position was saved"
"""Reason that samples are counted under which a saved position names and the data do not hold any more."""


@dataclass(frozen=True)
class Sample:
    """A picture with its captions."""

    key: str  # name in its shard
    shard: str  # the shard's address
    image: Image.Image | None  # RGB; None where there are latents
    encoded: Encoded | None  # the latents of a picture that was encoded ahead
    caption: str  # the one chosen of old and new
    old: str  # the caption that came with the picture, or the one chosen of several; "" where there is only a new one
    metadata: Mapping[str, Any]  # from the .json file; {} without one
    index: int  # 0 to 2^63 - 1; of this sample in this epoch. What is random about it is drawn from (seed, index)
    place: Place  # where to read it again


class CaptionedImages:
    """Iterator over the samples of shards; one reader's part of them.

    Broken samples are skipped and counted in `report`; filtered ones likewise. Where a `.keep.parquet` lies beside a
    shard, it is obeyed; where a `.captions.parquet` does, `new_share` of the samples that have a new caption get it.

    Args:
        addresses: shards as `formats.find_shards` takes them, read in their natural proportion; or a mapping from
            address to weight, to draw each sample from a source with that probability, forever.
        seed: of the order and of the choice of captions.
        buffer: samples, still encoded, among which the next is drawn; 0 keeps the order of the shards.
        epochs: times that everything is read; None for ever.
        new_share: probability of the new caption, 0 to 1.
        filters: which samples to leave out.
        part, parts: number of this reader, and of all readers, among which the samples are split.
        broken_share, broken_window: the largest share of broken samples among the last so many, once they were read.
        encoded: read the latents that were made of the shards with this preprocessing, instead of the pictures.
        needs_caption: whether pictures without any caption are broken; if not, theirs is "".

    Raises:
        UserError: a value out of range, an address with nothing behind it, filters that need the whole set. While
            reading: too many broken samples, no usable one in `BARREN_EPOCHS` epochs, latents that are missing or were
            made otherwise.
    """

    def __init__(
        self,
        addresses: Sequence[str] | Mapping[str, float],
        *,
        seed: int = 0,
        buffer: int = 1000,
        epochs: int | None = None,
        new_share: float = 0.95,
        filters: Filters | None = None,
        part: int = 0,
        parts: int = 1,
        broken_share: float = 0.1,
        broken_window: int = 1000,
        encoded: Preprocessing | None = None,
        needs_caption: bool = True,
    ) -> None:
        filters = filters or Filters()
        _check(seed, buffer, epochs, new_share, filters, part, parts)
        weights = _weights(addresses, epochs)
        self.report = Report()
        self._seed, self._epochs, self._new_share, self._filters = seed, epochs, new_share, filters
        self._part, self._needs_caption = part, needs_caption
        self._tolerance = Tolerance(broken_share, broken_window)
        sources = [[address] for address in addresses] if weights else [list(addresses)]
        self._shards = [find_shards(source) for source in sources]
        self._encoded = encoded
        if encoded is not None:
            self._shards = [list(map(latents_of, shards)) for shards in self._shards]
        self._bounds = list(accumulate(weights or [1.0]))
        self._streams = [
            Stream(source, shards, partial(self._admit, source), seed=seed, buffer=buffer, part=part, parts=parts)
            for source, shards in enumerate(self._shards)
        ]
        self._fruitful = [-1] * len(sources)  # the last epoch of each source that gave a sample
        self._taken = 0
        self._sidecars = lru_cache(maxsize=4)(self._read_sidecars)
        self._identity = {
            "seed": seed,
            "buffer": buffer,
            "new_share": new_share,
            "filters": filters.model_dump(mode="json"),
            "part": part,
            "parts": parts,
            "weights": weights,
            "shards": str(draws.number(*(name_of(shard.address) for shards in self._shards for shard in shards))),
        }

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        while True:
            stream = self._streams[self._choose()]
            if self._epochs is not None and stream.epoch >= self._epochs:
                raise StopIteration
            taken = stream.take()
            if taken is None:
                self._check_barren(stream)
                continue
            self._taken += 1
            if (sample := self._finish(*taken)) is not None:
                self._fruitful[stream.source] = stream.epoch
                return sample

    def read(self, place: Place) -> Sample:
        """The sample at a place that an earlier one gave; nothing is counted.

        Raises UserError where it is not there any more, or cannot be used.
        """
        place = Place(*place)
        entry = self._read_entry(place)
        try:
            return self._sample(place, entry, decode_entry(entry, Filters()))
        except Broken as error:
            raise UserError(f"{self._address(place)}: {entry.key}: {error}; the shard was changed") from None

    def state_dict(self) -> dict[str, Any]:
        """The position after the last sample, and the counts, in plain types that JSON can hold."""
        return {
            "identity": self._identity,
            "streams": [stream.state_dict() for stream in self._streams],
            "fruitful": list(self._fruitful),
            "taken": self._taken,
            "report": self.report.to_dict(),
            "window": self._tolerance.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a position: the same samples follow as would have then.

        What has been taken out of the data since is counted as broken, and the others follow.

        Raises UserError for the position of a reader with other settings or shards, naming what differs.
        """
        check_identity("readers", state["identity"], self._identity)
        self.report = Report.from_dict(state["report"])
        for stream, position in zip(self._streams, state["streams"], strict=True):
            if gone := stream.load_state_dict(position, self._read_entry):
                self.report.broken[GONE] += gone
        self._fruitful, self._taken = list(state["fruitful"]), state["taken"]
        self._tolerance.load_state_dict(state["window"])

    def _choose(self) -> int:
        """The source of the next sample."""
        if len(self._bounds) == 1:
            return 0
        chance = draws.chance("source", self._seed, self._part, self._taken) * self._bounds[-1]
        return min(bisect.bisect_right(self._bounds, chance), len(self._bounds) - 1)

    def _admit(self, source: int, shard: int, group: Group) -> Entry | None:
        """The entry of a group, unless it is broken or left out, which is counted."""
        try:
            entry = admit(group, *self._sidecars(source, shard), self._filters, self._needs_caption)
        except Skipped as reason:
            self.report.skip(reason)
            if isinstance(reason, Broken):
                self._tolerance.see(True, self.report)
            return None
        # counted as it is read, like the broken ones: it may lie in the buffer for long
        self._tolerance.see(False, self.report)
        return entry

    def _finish(self, place: Place, entry: Entry) -> Sample | None:
        """The sample of an entry, unless its picture is broken or left out; all three are counted."""
        try:
            picture = decode_entry(entry, self._filters)
        except Skipped as reason:
            self.report.skip(reason)
            self._tolerance.turn(isinstance(reason, Broken), self.report)
            return None
        self.report.give(entry.corrected + picture.corrected)
        return self._sample(place, entry, picture)

    def _sample(self, place: Place, entry: Entry, picture: Picture | Encoded) -> Sample:
        index = draws.number("sample", place.source, place.shard, entry.key, place.epoch)
        old = entry.old
        if entry.others:
            old = entry.choices[draws.number("choice", self._seed, index) % len(entry.choices)]
        caption = old
        if entry.new is not None and (not old or draws.chance("caption", self._seed, index) < self._new_share):
            caption = entry.new
        return Sample(
            key=entry.key,
            shard=self._address(place),
            image=picture.image if isinstance(picture, Picture) else None,
            encoded=picture if isinstance(picture, Encoded) else None,
            caption=caption,
            old=old,
            metadata=entry.metadata,
            index=index,
            place=place,
        )

    def _check_barren(self, stream: Stream) -> None:
        """After an epoch without a usable sample, read everything; stop where that is no use."""
        barren = stream.epoch - 1 - self._fruitful[stream.source]
        if self._epochs is not None or not barren:
            return
        stream.widen()
        if barren >= BARREN_EPOCHS:
            raise UserError(
                f"no usable sample in {BARREN_EPOCHS} epochs of {len(self._shards[stream.source])} shards from "
                f"{self._shards[stream.source][0].address} on; broken: {listed(self.report.broken)}; filtered: "
                f"{listed(self.report.filtered)}; repair the data, or filter less"
            )

    def _address(self, place: Place) -> str:
        return self._shards[place.source][place.shard].address

    def _read_entry(self, place: Place) -> Entry:
        group = self._shards[place.source][place.shard].at(place.offset)
        try:
            return take_apart(group, self._sidecars(place.source, place.shard)[0], self._needs_caption)
        except Broken as error:
            raise UserError(f"{self._address(place)}: {group.key}: {error}; the shard was changed") from None

    def _read_sidecars(self, source: int, shard: int) -> tuple[dict[str, str] | None, dict[str, str] | None]:
        """New captions and reasons against samples, by key."""
        found = self._shards[source][shard]
        if self._encoded is not None:
            check_latents(found, self._encoded)
        return read_captions(found), read_keep(found)


def _weights(addresses: Sequence[str] | Mapping[str, float], epochs: int | None) -> list[float] | None:
    if isinstance(addresses, str):
        raise UserError(f"addresses {addresses!r}: give a list of addresses, or a mapping from address to weight")
    if not isinstance(addresses, Mapping):
        return None
    for address, weight in addresses.items():
        if not 0 < weight < float("inf"):
            raise UserError(f"{address}: weight {weight}; give a number above 0")
    if epochs is not None:
        raise UserError(f"epochs {epochs}: sources mixed by weight have no common epoch; leave it out")
    return [float(weight) for weight in addresses.values()]


def _check(
    seed: int, buffer: int, epochs: int | None, new_share: float, filters: Filters, part: int, parts: int
) -> None:
    for name, value, least in (("seed", seed, 0), ("buffer", buffer, 0), ("epochs", epochs, 1), ("parts", parts, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} {value}: give {least} or more")
    if not 0 <= new_share <= 1:
        raise UserError(f"new_share {new_share}: give 0 to 1")
    if not 0 <= part < parts:
        raise UserError(f"part {part}: give 0 to {parts - 1}, as there are {parts} parts")
    if filters.duplicates:
        raise UserError(
            "filters.duplicates: duplicates are found in the whole set; run `cogview3 data filter --duplicates` first, "
            "whose sidecars are respected"
        )
