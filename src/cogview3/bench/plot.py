"""Bars for the benchmark at full size, drawn with Pillow alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

COLORS = {"text": "#8c8c8c", "base": "#4c72b0", "relay": "#dd8452", "vae": "#55a868", "other": "#c4c4c4"}
INK = "#222222"
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 1000, 230, 150, 34, 70


def bars(title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float], str]]) -> Image.Image:
    """Stacked horizontal bars.

    Args:
        title: above all.
        unit: of the lengths, beside the title.
        rows: name, length of each part, and what stands after the bar.
    """
    height = _TOP + _ROW * len(rows) + 20
    sheet = Image.new("RGB", (_WIDTH, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    pen.text((20, 12), f"{title} ({unit})", INK, font)
    place = _LEFT
    for part in [name for name in COLORS if any(parts.get(name) for _, parts, _ in rows)]:
        pen.rectangle((place, 42, place + 12, 54), COLORS[part])
        pen.text((place + 18, 48), part, INK, font, anchor="lm")
        place += 90
    longest = max((sum(parts.values()) for _, parts, _ in rows), default=1.0)
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    for number, (name, parts, note) in enumerate(rows):
        middle, start = _TOP + _ROW * number + _ROW // 2, float(_LEFT)
        pen.text((_LEFT - 10, middle), name, INK, font, anchor="rm")
        for part, color in COLORS.items():
            length = parts.get(part, 0.0) * scale
            if length > 0:
                pen.rectangle((start, middle - 11, start + length, middle + 11), color)
            start += max(length, 0.0)
        pen.text((start + 8, middle), note, INK, font, anchor="lm")
    return sheet


def of_counts(result: Mapping[str, Any]) -> Image.Image:
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


def of_times(result: Mapping[str, Any]) -> Image.Image:
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
