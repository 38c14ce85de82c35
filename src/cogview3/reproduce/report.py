"""The report of `reproduce`: tables, sentences on what is shown and what is not, and plots."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogview3 import checkpoints
from cogview3.evaluation.tables import Table, cell
from cogview3.reproduce.snr_plots import new_figure

PAPER = {
    "Single stage and relay (tables 1 and 2)": "The paper: CogView3 50+10 takes 10.33 s where SDXL takes 19.67 s, and "
    "scores higher; 4+1 takes 1.47 s, with a small loss.",
    "Relay start (table 3), the one model sampled from all": "The paper: starts of 200 to 800, each fine-tuned, differ "
    "little; 500 is best, 800 worst.",
    "Expansion of brief prompts": "The paper: people prefer pictures of expanded prompts.",
    "Blur estimate inside the sampler": "The paper carries the estimate along; the published sampler recomputes it.",
}
"""What the large system showed, by table."""


def markdown(result: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The whole report."""
    lines = [
        "# The paper's tables on the shipped system\n",
        f"Model {result['model']}, {result['count']} held-out prompts, seed {result['seed']}, measured in "
        f"{result['minutes']:.1f} minutes. Shares are of right facts, with 95 % intervals over pictures; differences "
        "are paired by prompt and noise. Seconds are of a picture in a batch, on this machine: compare them as ratios. "
        "Fréchet distances are to renders of the same scenes, in our own 64 features, and grow as pictures get fewer: "
        "compare them at equal counts alone, and not with published FIDs.\n",
    ]
    lines += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in plots]
    for table in dict.fromkeys(row["table"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["table"] == table]
        lines += [f"## {table}\n", _table(rows).markdown()]
        if table in PAPER:
            lines.append(f"{PAPER[table]}\n")
        lines += [f"- {sentence}" for sentence in claims(rows)]
        lines.append("")
    lines.append(
        "Not here: rows that need a training (a single stage at the final size on equal compute; each relay start "
        "fine-tuned by itself) are added by `--train`.\n"
        if not any("fine-tuned" in row["table"] for row in result["rows"])
        else ""
    )
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    heads = ["", "facts right", "95 %", "pictures wholly", "seconds", "Fréchet", "difference", "95 %", "time ratio"]
    table = Table(heads)
    for row in rows:
        against = row.get("against", {})
        name = row["name"] + (f" ({row['note']})" if row["note"] else "")
        told = [cell(row["share"]), cell(row["interval"]), cell(row["whole"]), cell(row["seconds"])]
        told += [cell(row["frechet"]["distance"]), cell(against.get("difference")), cell(against.get("interval"))]
        table.add(name, *told, cell(against.get("time_ratio"), 2))
    return table


def claims(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence on each comparison, which claims an order only where the interval leaves out zero."""
    for row in rows:
        if "against" not in row:
            continue
        other, interval = row["against"]["name"], row["against"]["interval"]
        faster = f", in {row['against']['time_ratio']:.2f} of the time"
        if interval is None or interval[0] <= 0 <= interval[1]:
            yield f"{row['name']} and {other}: the interval holds zero, so no order is claimed{faster}."
        else:
            better = "more" if interval[0] > 0 else "fewer"
            yield f"{row['name']} gets {better} facts right than {other}, by {cell(interval)}{faster}."


def plots(out: Path, result: Mapping[str, Any]) -> list[Path]:
    """Quality against time of the first table, and shares of every other; needs matplotlib."""
    tables = list(dict.fromkeys(row["table"] for row in result["rows"]))
    figure, (axes,) = new_figure()
    for row in (row for row in result["rows"] if row["table"] == tables[0]):
        axes.errorbar(row["seconds"], row["share"], yerr=_errors(row), fmt="o", capsize=3, label=row["name"])
    axes.set_xscale("log")
    axes.set(xlabel="seconds a picture", ylabel="share of facts right", title=tables[0])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    paths = [_save(figure, out / "quality_time.png")]
    others = [row for row in result["rows"] if row["table"] != tables[0]]
    figure, (axes,) = new_figure()
    figure.set_size_inches(9, 1 + 0.32 * len(others))
    names = [f"{row['table'].partition(' (')[0]}: {row['name']}" for row in others]
    for place, row in enumerate(others):
        low, high = _errors(row)
        axes.errorbar(row["share"], place, xerr=[low, high], fmt="o", capsize=3, color=f"C{tables.index(row['table'])}")
    axes.set_yticks(range(len(others)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of facts right")
    axes.grid(alpha=0.3)
    return [*paths, _save(figure, out / "ablations.png")]


def _errors(row: Mapping[str, Any]) -> list[list[float]]:
    low, high = row["interval"]
    return [[max(0.0, row["share"] - low)], [max(0.0, high - row["share"])]]


def _save(figure: Any, path: Path) -> Path:
    with checkpoints.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
