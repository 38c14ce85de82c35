"""An evaluation's files: JSON, CSV, Markdown, a plot of quality against time, and a page of pictures side by side."""

import csv
import html
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogview3 import checkpoints
from cogview3.evaluation.store import Store
from cogview3.evaluation.tables import show

GRID_PICTURES, GRID_COLUMNS = 24, 8
PAGE_PROMPTS = 200
"""Pictures on a grid, and in a row of it; prompts on the page, which more would make slow."""

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 1.5rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { padding: .4rem; vertical-align: top; text-align: left; }
thead th { position: sticky; top: 0; background: Canvas; }
td.text { max-width: 22rem; unicode-bidi: plaintext; overflow-wrap: anywhere; }
img { width: min(256px, 28vw); height: auto; image-rendering: auto; border-radius: 4px; }
.failed { color: GrayText; }
"""


def write(out: Path, results: Mapping[str, Any], stores: Mapping[str, Store]) -> None:
    """Write all of them, each whole or not at all."""
    checkpoints.write_text(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    checkpoints.write_text(out / "results.csv", as_csv(results))
    checkpoints.write_text(out / "index.html", page(out, results, stores))
    plotted = plot(out / "quality_time.png", results)
    checkpoints.write_text(out / "report.md", as_markdown(results, plotted))


def as_csv(results: Mapping[str, Any]) -> str:
    """A line for each figure: model, where it stands, its value and interval."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["model", "figure", "value", "low", "high"])
    for name, entry in results["models"].items():
        for path, value, interval in _figures(entry):
            low, high = interval or ("", "")
            writer.writerow([name, path, value, low, high])
    return table.getvalue()


def _figures(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float, list[float] | None]]:
    """Every number of an entry with its interval where there is one."""
    intervals = entry.get("intervals", {})
    for key, value in entry.items():
        if isinstance(value, bool) or key in ("intervals", "weights", "failures", "settings"):
            continue
        if isinstance(value, int | float):
            name = {"ratio": "ratio_interval", "r2": "r2_interval"}.get(key, "interval")
            main = key in ("share", "mean", "distance", "difference", "ratio", "correlation", "r2", "extrapolated")
            found = intervals.get(key) if isinstance(intervals, Mapping) else None
            yield prefix + key, value, found or (entry.get(name) if main else None)
        elif isinstance(value, Mapping):
            inner = intervals.get(key) if isinstance(intervals, Mapping) else None
            yield from _figures(
                {**value, "intervals": inner} if isinstance(inner, Mapping) else value, f"{prefix}{key}/"
            )


def as_markdown(results: Mapping[str, Any], plotted: bool) -> str:
    """The tables, with what they are of."""
    models = results["models"]
    heading = f"{results['count']} prompts of {results['prompts']}, seed {results['seed']}"
    more = f", {results['per_prompt']} pictures each" if results["per_prompt"] > 1 else ""
    lines = [f"# {', '.join(models)}\n", f"{heading}{more}; cogview3 {results['version']}.\n"]
    times = "; ".join(
        f"{name} {entry['seconds_per_picture']:.3g}" for name, entry in models.items() if entry["seconds"]
    )
    if times:
        lines.append(f"Seconds a picture, drawn in batches, this machine: {times}.\n")
    if plotted:
        lines.append("![quality against time](quality_time.png)\n")
    lines += [table.markdown() for table in show(results)]
    for name, entry in next(iter(models.values())).items():
        if isinstance(entry, dict) and "protocol" in entry:
            weights = ", ".join(f"{each['name']} {each['sha256']}" for each in entry["weights"])
            lines.append(f"{name}: {entry.get('version', 'InceptionV3')}; {entry['protocol']}; weights {weights}.\n")
    return "\n".join(lines)


def quality(entry: Mapping[str, Any]) -> Iterator[tuple[str, float, list[float] | None]]:
    """Name, value and interval of each metric that says how good the pictures are."""
    for name, figures in entry.items():
        if not isinstance(figures, Mapping):
            continue
        if "model" in figures:
            yield "share of facts right", figures["model"]["share"], figures["model"]["interval"]
        elif figures.get("mean") is not None:
            yield name, figures["mean"], figures["interval"]


def plot(path: Path, results: Mapping[str, Any]) -> bool:
    """Quality against seconds a picture, a panel for each metric; False where there is nothing, or no matplotlib."""
    timed = {name: entry for name, entry in results["models"].items() if entry["seconds"] > 0}
    panels = list(dict.fromkeys(name for entry in timed.values() for name, _, _ in quality(entry)))
    if not panels:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, entry in timed.items():
            for metric, value, interval in quality(entry):
                if metric == panel:
                    low, high = interval or (value, value)
                    error = [[max(0, value - low)], [max(0, high - value)]]
                    axes.errorbar(entry["seconds_per_picture"], value, yerr=error, fmt="o", capsize=3, label=name)
        log_seconds(axes)
        axes.set_ylabel(panel)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with checkpoints.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return True


def log_seconds(axes: Any) -> None:
    """Seconds a picture across, in a logarithmic scale with plain numbers."""
    axes.set_xscale("log")
    axes.set_xlabel("seconds a picture")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=6)  # several a decade


def page(out: Path, results: Mapping[str, Any], stores: Mapping[str, Store]) -> str:
    """A page with a row of pictures for each prompt; prompts are shown as text, whatever is in them."""
    first = next(iter(stores.values()))
    rows = []
    for index, prompt in enumerate(first.prompts[:PAGE_PROMPTS]):
        cells = "".join(_cell(out, store, index) for store in stores.values())
        rows.append(f'<tr><td>{index}</td><td class="text" dir="auto">{html.escape(prompt.text)}</td>{cells}</tr>')
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in stores)
    more = len(first.prompts) - PAGE_PROMPTS
    note = f"<p>The first {PAGE_PROMPTS} of {len(first.prompts)}.</p>" if more > 0 else ""
    title = html.escape(f"{', '.join(stores)}: {Path(results['prompts']).name}, seed {results['seed']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>{note}"
        f"<table><thead><tr><th>#</th><th>prompt</th>{heads}</tr></thead><tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></body></html>\n"
    )


def _cell(out: Path, store: Store, index: int) -> str:
    if "seconds" not in store.records.get(index, {}):
        reason = html.escape(store.records.get(index, {}).get("error", "not drawn"))
        return f'<td class="failed">no picture: {reason}</td>'
    address = html.escape(os.path.relpath(store.picture(index), out).replace(os.sep, "/"))
    alternative = html.escape(store.prompts[index].text)
    return f'<td><img loading="lazy" src="{address}" alt="{alternative}"></td>'


def side_by_side(picture: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    """A picture, (H, W, 3) uint8, to the right of its base picture where there is one, enlarged bilinearly."""
    if base is None:
        return picture
    size = picture.shape[1], picture.shape[0]
    return np.hstack([np.asarray(Image.fromarray(base).resize(size, Image.Resampling.BILINEAR)), picture])


def grid(tiles: Sequence[np.ndarray]) -> Image.Image:
    """Tiles (H, W, 3), uint8, of one size, row by row: 8 pictures' heights wide at most, and as high as it takes."""
    height, width = tiles[0].shape[:2]
    columns = min(len(tiles), max(1, GRID_COLUMNS * height // width))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (number % columns * width, number // columns * height))
    return sheet
