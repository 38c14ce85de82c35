"""The report of `reproduce`: tables, sentences on what they show and what they do not, and plots."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogview3.evaluation.report import log_seconds
from cogview3.evaluation.tables import Table, cell
from cogview3.reproduce import rows as tables
from cogview3.reproduce.snr_plots import new_figure, save_figure

PAPER = {
    tables.SINGLE: "50+10 takes 10.33 s where SDXL, a single stage, takes 19.67 s, and is preferred; distilled to "
    "4+1 it takes 1.47 s, with a small loss.",
    tables.STARTS: "starts of 200 to 800, each fine-tuned, differ little; 500 is best, 800 worst.",
    tables.TUNED_STARTS: "starts of 200 to 800 differ little; 500 is best, 800 worst.",
    tables.EXPANSION: "pictures of expanded prompts are preferred.",
    tables.ESTIMATE: "Algorithm 1 carries the estimate along; the published sampler recomputes it.",
}
"""What the paper says, by table."""


def markdown(result: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The whole report."""
    lines = ["# The paper's tables on the shipped system\n", _told(result)]
    lines += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in plots]
    names = list(dict.fromkeys(row["table"] for row in result["rows"]))
    for table in names:
        rows = [row for row in result["rows"] if row["table"] == table]
        lines += [f"## {table}\n", _table(rows).markdown()]
        if table in PAPER:
            lines.append(f"The paper: {PAPER[table]}\n")
        if table in VERDICTS:
            lines.append(f"{VERDICTS[table](rows)}\n")
        lines += [f"- {sentence}" for sentence in claims(rows)]
        lines.append("")
    if tables.TUNED_STARTS not in names:
        lines.append(
            "Not here: rows that need a training (a single stage at the final size on equal compute; each relay start "
            "fine-tuned by itself) are added by `--train`.\n"
        )
    return "\n".join(lines)


def _told(result: Mapping[str, Any]) -> str:
    """What was measured, and how to read it."""
    return (
        f"Model {result['model']} (weights {result['weights']}), cogview3 {result['version']}, torch "
        f"{result['torch']}: {result['count']} prompts of scenes-heldout; seed {result['seed']}; "
        f"{result['minutes']:.0f} minutes of drawing and scoring.\n\n"
        "Shares are of right facts, with 95 % intervals over pictures; differences are paired by prompt and noise. "
        "All rows draw a batch of pictures before any draws the next, and time ratios are medians over batches: on "
        "another machine seconds differ, ratios less. Fréchet distances are to renders of the same scenes, in our own "
        f"64 features; renders of other scenes are at {result['floor']['distance']:.3f}. They grow as pictures get "
        "fewer: compare them at equal counts alone, and not with published FIDs.\n"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    heads = ["", "facts right", "95 %", "pictures wholly", "seconds", "Fréchet", "difference", "95 %", "time ratio"]
    table = Table(heads)
    for row in rows:
        against = row.get("against", {})
        name = row["name"] + (f" ({row['note']})" if row["note"] else "")
        cells = [cell(row["share"]), cell(row["interval"]), cell(row["whole"]), cell(row["seconds"], 2)]
        cells += [cell(row["frechet"]["distance"]), cell(against.get("difference")), cell(against.get("interval"))]
        table.add(name, *cells, cell(against.get("time_ratio"), 2))
    return table


def claims(
    rows: Sequence[Mapping[str, Any]],
    more: str = "gets more facts right than",
    fewer: str = "gets fewer facts right than",
    digits: int = 3,
) -> Iterator[str]:
    """A sentence on each comparison, which claims an order only where the interval leaves out zero."""
    for row in rows:
        if "against" not in row:
            continue
        other, order = row["against"]["name"], order_of(row)
        time = f", in {row['against']['time_ratio']:.2f} of the time"
        if not order:
            yield f"{row['name']} and {other}: the interval holds zero, so no order is claimed{time}."
        else:
            by = cell(row["against"]["interval"], digits)
            yield f"{row['name']} {more if order > 0 else fewer} {other}, by {by}{time}."


def order_of(row: Mapping[str, Any]) -> int:
    """1 where a row's figure is above that of what it is compared with, -1 where below, 0 where nobody knows."""
    interval = row["against"]["interval"]
    return 0 if interval is None or interval[0] <= 0 <= interval[1] else 1 if interval[0] > 0 else -1


def _single_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    relay, compared = rows[0]["name"], rows[1:]
    single = next(row for row in compared if row["way"]["settings"].get("num_relays") == 0)
    ratio, order = single["against"]["time_ratio"], order_of(single)
    time = f"{relay} takes {1 / ratio:.2f} of the time of {single['name']}"
    if single["way"]["unet"] is None:
        shown = "Shown" if ratio > 1 else "Not shown"
        said = f"{shown} here in time alone, as that base was not trained at that size (`--train` adds one): {time}."
    else:
        shown = "Shown" if ratio > 1 and order <= 0 else "Not shown"
        quality = {1: "fewer facts right", -1: "more facts right", 0: "as many, as far as the interval tells"}[order]
        said = f"{shown} here: {time} ({single['note']}), with {quality}."
    for row in compared:
        if row["name"].startswith("distilled"):
            loss = {1: "a gain", -1: "a loss", 0: "no loss that the interval tells"}[order_of(row)]
            change = cell(row["against"]["difference"])
            ratio = row["against"]["time_ratio"]
            said += f" D{row['name'][1:]} takes {ratio:.2f} of the relay's time, with {loss} ({change})."
    return said


def _start_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    own = next(row["name"] for row in rows if "against" not in row)
    by_order = {
        sign: [row["name"] for row in rows if "against" in row and order_of(row) == sign] for sign in (-1, 0, 1)
    }
    orders = [
        f"{', '.join(names)} {words}"
        for names, words in (
            (by_order[1], f"better than {own}"),
            (by_order[0], f"not told from {own}"),
            (by_order[-1], "worse"),
        )
        if names
    ]
    known = {row["name"]: row["share"] for row in rows}
    best, worst = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
    same = "Shown" if best == "T_r 500" and worst == "T_r 800" else "Not shown"
    return f"{same} here, where the best share is {best}'s and the worst {worst}'s: {'; '.join(orders)}."


def _expansion_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = {1: "Shown", 0: "Not told", -1: "Not shown"}[order_of(rows[1])]
    return f"{shown} here, for facts in place of preference: {cell(rows[1]['against']['difference'])} more are right."


VERDICTS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    tables.SINGLE: _single_verdict,
    tables.STARTS: _start_verdict,
    tables.TUNED_STARTS: _start_verdict,
    tables.EXPANSION: _expansion_verdict,
}
"""Whether the small system shows what the large one did, by table."""


def plots(out: Path, result: Mapping[str, Any]) -> list[Path]:
    """Quality against time of the first table, and shares of every other; needs matplotlib."""
    names = list(dict.fromkeys(row["table"] for row in result["rows"]))
    figure, (axes,) = new_figure()
    figure.set_size_inches(8, 4.2)
    for row in (row for row in result["rows"] if row["table"] == names[0]):
        axes.errorbar(row["seconds"], row["share"], yerr=_errors(row), fmt="o", capsize=3, label=row["name"])
    log_seconds(axes)
    axes.set(ylabel="share of facts right", title=names[0])
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    paths = [save_figure(figure, out / "quality_time.png")]
    others = [row for row in result["rows"] if row["table"] != names[0]]
    figure, (axes,) = new_figure()
    figure.set_size_inches(9, 1 + 0.26 * len(others))
    for place, row in enumerate(others):
        color = f"C{names.index(row['table'])}"
        axes.errorbar(row["share"], place, xerr=_errors(row), fmt="o", capsize=3, color=color)
    labels = [f"{re.sub(r' [(][^)]*[)]', '', row['table'])}: {row['name']}" for row in others]
    axes.set_yticks(range(len(others)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of facts right")
    axes.grid(alpha=0.3)
    return [*paths, save_figure(figure, out / "ablations.png")]


def _errors(row: Mapping[str, Any]) -> list[list[float]]:
    low, high = row["interval"]
    return [[max(0.0, row["share"] - low)], [max(0.0, high - row["share"])]]
