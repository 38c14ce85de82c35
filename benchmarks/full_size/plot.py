"""Bars for the benchmark at full size, by matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

COLORS = {"text": "#8c8c8c", "base": "#4c72b0", "relay": "#dd8452", "vae": "#55a868", "other": "#c4c4c4"}


def bars(title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float], str]]) -> Figure:
    """Stacked horizontal bars, the first row on top.

    Args:
        title: above all.
        unit: of the lengths.
        rows: name, length of each part, and what stands after the bar.
    """
    figure = Figure(figsize=(10, 1.4 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=unit)
    places, ends = range(len(rows)), [0.0] * len(rows)
    for part, color in COLORS.items():
        lengths = [max(0.0, parts.get(part, 0.0)) for _, parts, _ in rows]
        if any(lengths):
            axes.barh(places, lengths, left=ends, color=color, label=part)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for place, end, (_, _, note) in zip(places, ends, rows, strict=True):
        axes.annotate(note, (end, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [name for name, _, _ in rows])
    axes.set_xlim(0, 1.2 * max(ends, default=1.0))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.legend(loc="lower right", frameon=False)
    return figure


def of_counts(result: Mapping[str, Any]) -> Figure:
    """Operations of a picture at the first side, by part."""
    first = result["rows"][0]["side"]
    rows = [
        (row["system"], {part: value / 1e12 for part, value in row["parts"].items()}, _note(row["total"], row["ratio"]))
        for row in result["rows"]
        if row["side"] == first
    ]
    return bars(f"Counted operations of a picture of {first} x {first}", "TFLOP", rows)


def _note(total: float, ratio: float | None) -> str:
    return f"{total / 1e12:.4g}" + (f"  ({ratio:.3f})" if ratio else "")


def of_times(result: Mapping[str, Any]) -> Figure:
    """Seconds of the largest batch at the first side, by part: bars of a run by itself, numbers of the medians."""
    first = result["rows"][0]["side"]
    measured = [row for row in result["rows"] if "seconds" in row]
    batch = max((row["batch"] for row in measured), default=1)
    rows = [
        (row["system"], row["parts"], f"{row['seconds']:.3g}" + (f"  ({row['ratio']:.3f})" if row["ratio"] else ""))
        for row in measured
        if (row["side"], row["batch"]) == (first, batch)
    ]
    where = result["hardware"]["device"]
    count = f"{batch} pictures" if batch > 1 else "a picture"
    return bars(f"Prompt to {count} of {first} x {first} on {where}", "seconds", rows)
