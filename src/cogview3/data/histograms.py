"""Histograms as a picture, drawn with Pillow alone."""

from collections.abc import Mapping
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL = (640, 320)
"""Width and height of one histogram, in pixels."""

BINS = 40
BAR, INK = "#4c72b0", "#222222"
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 40
_ROW = 22


def draw(numbers: Mapping[str, Mapping[float, int]], names: Mapping[str, Mapping[str, int]]) -> Image.Image:
    """One panel each, two in a row: `numbers` (counts by value) as histograms, `names` (counts by name) as bars.

    Histograms go from the smallest value to the 99 % quantile; the last bar holds what is above. Empty ones are left
    out; with none at all the picture is blank.
    """
    panels = [_histogram(title, counts) for title, counts in numbers.items() if counts]
    panels += [_bars(title, counts) for title, counts in names.items() if counts]
    sheet = Image.new("RGB", (2 * PANEL[0], max(1, ceil(len(panels) / 2)) * PANEL[1]), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % 2 * PANEL[0], number // 2 * PANEL[1]))
    return sheet


def binned(counts: Mapping[float, int]) -> tuple[np.ndarray, np.ndarray]:
    """Counts in up to `BINS` bins and their edges: whole numbers get bins of whole width."""
    values = np.array(sorted(counts), float)
    weights = np.array([counts[value] for value in values.tolist()])
    low = values[0]
    high = values[np.searchsorted(weights.cumsum(), 0.99 * weights.sum())]
    width = max((high - low) / BINS, 1e-9)
    if np.all(values == np.round(values)):
        width = max(1.0, np.ceil((high - low + 1) / BINS))
    edges = low + width * np.arange(max(1, round((high - low) / width + 0.5)) + 1)
    return np.histogram(values.clip(max=(edges[-2] + edges[-1]) / 2), edges, weights=weights)


def _panel(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    panel = Image.new("RGB", PANEL, "white")
    pen = ImageDraw.Draw(panel)
    pen.text((_LEFT, 12), title, INK, _font())
    return panel, pen


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(14)


def _histogram(title: str, counts: Mapping[float, int]) -> Image.Image:
    panel, pen = _panel(title)
    heights, edges = binned(counts)
    right, bottom = PANEL[0] - _RIGHT, PANEL[1] - _BOTTOM
    places = np.linspace(_LEFT, right, len(heights) + 1)
    for height, start, end in zip(heights, places[:-1], places[1:], strict=True):
        top = bottom - height / heights.max() * (bottom - _TOP)
        if height:
            pen.rectangle((start + 1, min(top, bottom - 1), max(start + 1, end - 1), bottom), BAR)
    pen.line((_LEFT, bottom, right, bottom), INK)
    pen.text((_LEFT - 8, _TOP), f"{heights.max():g}", INK, _font(), anchor="rm")
    for place, anchor in {len(edges) // 2: "mt", 0: "lt", len(edges) - 1: "rt"}.items():
        pen.text((places[place], bottom + 8), f"{edges[place]:g}", INK, _font(), anchor=anchor)
    return panel


def _bars(title: str, counts: Mapping[str, int]) -> Image.Image:
    panel, pen = _panel(title)
    rows = sorted(counts.items(), key=lambda item: -item[1])[: (PANEL[1] - _TOP) // _ROW]
    start, end = PANEL[0] // 2, PANEL[0] - 100
    for number, (name, count) in enumerate(rows):
        middle = _TOP + _ROW * number + _ROW // 2
        length = max(1, round(count / rows[0][1] * (end - start)))
        pen.text((start - 8, middle), name, INK, _font(), anchor="rm")
        pen.rectangle((start, middle - 8, start + length, middle + 8), BAR)
        pen.text((start + length + 8, middle), str(count), INK, _font(), anchor="lm")
    return panel
