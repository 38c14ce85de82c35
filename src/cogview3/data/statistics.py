"""What is in a data set: sizes, ratios, caption lengths, formats, and what is wrong with the rest."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from cogview3.data.entries import admit, decode_entry
from cogview3.data.filters import Filters
from cogview3.data.groups import Shard
from cogview3.data.parallel import over_shards
from cogview3.data.report import Report, Skipped
from cogview3.data.sidecars import read_captions, read_keep
from cogview3.references import weights_folder

QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}

Values = Counter[float]
"""How often each value occurs."""


@dataclass
class Statistics:
    """Counts over the samples that a reader would give out, and the report of the others.

    Attributes:
        shards: tars and folders.
        sides: smaller side, pixels.
        ratios: width / height, rounded to 0.01.
        old, new: length of old and new captions, characters.
        formats: what the files really hold, such as "JPEG".
        tokens: length of captions, old and new, in tokens of a text encoder; empty without one.
        cut: captions of more tokens than that encoder reads.
        report: samples given out, broken, filtered, mended.
    """

    shards: int = 0
    sides: Values = field(default_factory=Counter)
    ratios: Values = field(default_factory=Counter)
    old: Values = field(default_factory=Counter)
    new: Values = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    tokens: Values = field(default_factory=Counter)
    cut: int = 0
    report: Report = field(default_factory=Report)

    def add(self, other: "Statistics") -> None:
        """Add another's counts to these."""
        self.shards += other.shards
        self.report.add(other.report)
        self.cut += other.cut
        for name in ("sides", "ratios", "old", "new", "formats", "tokens"):
            getattr(self, name).update(getattr(other, name))

    def values(self) -> dict[str, Values]:
        """The counted numbers by what they are; those that no sample has are left out."""
        named = {
            "smaller side (pixels)": self.sides,
            "width / height": self.ratios,
            "old caption (characters)": self.old,
            "new caption (characters)": self.new,
            "caption (tokens)": self.tokens,
        }
        return {name: values for name, values in named.items() if values}

    def to_dict(self) -> dict[str, Any]:
        """Plain types: counts, and the quantiles of what was counted."""
        numbers = {name: quantiles(values) for name, values in self.values().items()}
        return {
            "shards": self.shards,
            **self.report.to_dict(),
            "formats": dict(self.formats.most_common()),
            **({"captions": self.tokens.total(), "captions_cut": self.cut} if self.tokens else {}),
            "quantiles": numbers,
        }


def quantiles(values: Mapping[float, int]) -> dict[str, float]:
    """Of values with their counts (at least one): the smallest value that the share q of all does not exceed."""
    total, ordered = sum(values.values()), sorted(values)
    result, below, place = {}, values[ordered[0]], 0
    for name, share in QUANTILES.items():
        while below < share * total:
            place += 1
            below += values[ordered[place]]
        result[name] = ordered[place]
    return result


def collect(
    shards: Sequence[Shard],
    *,
    text: str | None = None,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Read every sample, pictures included, and count. Keep sidecars are obeyed.

    Args:
        shards: from `formats.find_shards`.
        text: a run, model folder or bundled model by whose tokenizer captions are counted; None for none.
        workers: processes.
        progress: called with the number of finished shards.

    Raises:
        UserError: a damaged sidecar, workers below 1.
    """
    statistics = Statistics()
    with over_shards(partial(_count, text=text), shards, workers) as parts:
        for number, part in enumerate(parts, 1):
            statistics.add(part)
            progress(number)
    return statistics


def _count(shard: Shard, text: str | None) -> Statistics:
    counts = Statistics(shards=1)
    captions, keep, filters = read_captions(shard), read_keep(shard), Filters()
    for group in shard.groups():
        try:
            picture = decode_entry(entry := admit(group, captions, keep, filters), filters)
        except Skipped as reason:
            counts.report.skip(reason)
            continue
        width, height = picture.image.size
        counts.report.samples += 1
        counts.report.mended.update(entry.mended + picture.mended)
        counts.sides[min(width, height)] += 1
        counts.ratios[round(width / height, 2)] += 1
        counts.formats[picture.format] += 1
        counts.old.update([len(entry.old)] if entry.old else [])
        counts.new.update([len(entry.new)] if entry.new else [])
        for caption in dict.fromkeys((*entry.choices, *filter(None, [entry.new]))) if text else ():
            length, most = _token_count(caption, str(text))
            counts.tokens[length] += 1
            counts.cut += length > most
    return counts


def _token_count(caption: str, text: str) -> tuple[int, int]:
    """Tokens of a caption, the end mark included, and how many the text encoder reads."""
    tokenizer, most = _tokenizer(text)
    return len(tokenizer(caption, verbose=False).input_ids), most


@lru_cache(maxsize=1)
def _tokenizer(text: str) -> tuple[Any, int]:
    from cogview3.prompts.encode import text_length
    from cogview3.prompts.text_models import load_tokenizer

    tokenizer = load_tokenizer(weights_folder(text, "tokenizer"))
    return tokenizer, text_length(tokenizer)
