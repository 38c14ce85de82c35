"""Statistics of a data set: sizes, ratios, caption lengths, formats, and broken samples."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from cogview3.checkpoints import whole_file
from cogview3.data.entries import read_pictures
from cogview3.data.groups import Shard
from cogview3.data.parallel import over_shards
from cogview3.data.report import Report
from cogview3.references import weights_folder

QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}

BINS, BARS = 40, 12
"""Most bars of a histogram, and most names in a panel."""

Values = Counter[float]
"""How often each value occurs."""


@dataclass
class Statistics:
    """Counts over the samples that a reader would give out, and the report of the others."""

    shards: int = 0  # tars and folders
    sides: Values = field(default_factory=Counter)  # smaller side, pixels
    ratios: Values = field(default_factory=Counter)  # width / height, rounded to 0.01
    old: Values = field(default_factory=Counter)  # length of old captions, characters
    new: Values = field(default_factory=Counter)  # of new ones
    formats: Counter[str] = field(default_factory=Counter)  # what the files really hold, such as "JPEG"
    tokens: Values = field(default_factory=Counter)  # length of all captions in a text encoder's tokens
    cut: int = 0  # captions of more tokens than that encoder reads
    report: Report = field(default_factory=Report)  # samples given out, broken, filtered, corrected

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
    shares, counts = list(QUANTILES.values()), list(values.values())
    found = np.quantile(list(values), shares, weights=counts, method="inverted_cdf")
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def collect(
    shards: Sequence[Shard],
    *,
    text: str | None = None,
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Read every sample, pictures included, and count. Keep sidecars are obeyed.

    `text` is a run, model folder or bundled model whose tokenizer counts captions; `progress` is given the number of
    finished shards. Raises UserError for a damaged sidecar or workers below 1.
    """
    statistics = Statistics()
    with over_shards(partial(_count, text=text), shards, workers) as parts:
        for number, part in enumerate(parts, 1):
            statistics.add(part)
            progress(number)
    return statistics


def _count(shard: Shard, text: str | None) -> Statistics:
    counts = Statistics(shards=1)
    for entry, picture in read_pictures(shard, shard.groups(), counts.report):
        width, height = picture.image.size
        counts.sides[min(width, height)] += 1
        counts.ratios[round(width / height, 2)] += 1
        counts.formats[picture.format] += 1
        counts.old.update([len(entry.old)] if entry.old else [])
        counts.new.update([len(entry.new)] if entry.new else [])
        for caption in dict.fromkeys((*entry.choices, *filter(None, [entry.new]))) if text else ():
            tokenizer, most = _tokenizer(text)
            length = len(tokenizer(caption, verbose=False).input_ids)  # the end mark included
            counts.tokens[length] += 1
            counts.cut += length > most
    return counts


@lru_cache(maxsize=1)
def _tokenizer(text: str) -> tuple[Any, int]:
    """A tokenizer, and the tokens that its text encoder reads."""
    from cogview3.prompts.encode import text_length
    from cogview3.prompts.text_models import load_tokenizer

    tokenizer = load_tokenizer(weights_folder(text, "tokenizer"))
    return tokenizer, text_length(tokenizer)


def plot(statistics: Statistics, path: Path) -> bool:
    """Histograms of what was counted, the last bar from the 99 % quantile on, and bars of formats and reasons, as PNG.

    False, and no file, where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    report = statistics.report
    named = {"formats": statistics.formats, "left out": report.broken + report.filtered, "corrected": report.corrected}
    named = {title: counts for title, counts in named.items() if counts}
    rows = max(1, ceil((len(statistics.values()) + len(named)) / 2))
    figure = Figure(figsize=(12, 3 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, 2, squeeze=False).flat)
    for (title, counts), axes in zip(statistics.values().items(), panels, strict=False):
        numbers, weights = np.array(sorted(counts.items()), float).T
        most = numbers[np.searchsorted(weights.cumsum(), 0.99 * weights.sum())]
        axes.hist(numbers.clip(max=most), min(BINS, len(numbers)), weights=weights)
        axes.set_title(title)
    for title, reasons_found in named.items():
        axes = next(panels)
        reasons, heights = zip(*reversed(reasons_found.most_common(BARS)), strict=True)
        axes.bar_label(axes.barh(range(len(reasons)), heights))
        axes.set_yticks(range(len(reasons)), reasons, parse_math=False)
        axes.set_title(title)
    for axes in panels:
        axes.set_axis_off()
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        figure.savefig(temporary, dpi=100, format="png")
    return True
