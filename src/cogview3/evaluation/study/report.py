"""A study's report as files: JSON, CSV of votes and figures, Markdown, and a plot of wins, ties and losses."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogview3 import checkpoints
from cogview3.evaluation.tables import Table, cell

_COLORS = {"win": "#2563eb", "tie": "#9ca3af", "both bad": "#d1d5db", "lose": "#ea580c"}


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """The figures as tables, two for each question."""
    for question, figures in found["questions"].items():
        pairs = Table(["pair", "votes", "win", "95 %", "lose", "95 %", "tie", "both bad"], f"{question}: pairs")
        for pair in figures["pairs"]:
            sides = [cell(pair[kind][key]) for kind in ("win", "lose") for key in ("share", "interval")]
            ties = [cell(pair[kind]["share"]) for kind in ("tie", "both bad")]
            pairs.add(f"{pair['first']} against {pair['second']}", str(pair["votes"]), *sides, *ties)
        yield pairs
        systems = Table(["system", "win rate, ties half", "95 %", "strength", "95 %"], f"{question}: systems")
        for name in found["systems"]:
            rate, strength = figures["win_rates"][name], figures["strengths"][name]
            cells = (rate["share"], rate["interval"], strength["strength"], strength["interval"])
            systems.add(name, *map(cell, cells))
        yield systems


def markdown(found: Mapping[str, Any], plotted: bool) -> str:
    """The whole report in words."""
    lines = [
        "# Human study\n",
        f"{found['votes']} votes of {found['annotators']} annotators on {len(found['systems'])} systems. Intervals are "
        "95 %, by resampling annotators and prompts. Strengths are Davidson's, of geometric mean 1; "
        '"both bad" counts as a tie.\n',
    ]
    lines += ["![wins, ties and losses](study.png)\n"] if plotted else []
    lines += [table.markdown() for table in tables(found)]
    for question, figures in found["questions"].items():
        tie, agreement = figures["tie"], figures["agreement"]
        alpha = cell(agreement["alpha"]) if agreement["alpha"] is not None else agreement["reason"]
        lines.append(f"{question}: ties nu {tie['nu']:.3f} ({cell(tie['interval'])}); Krippendorff's alpha {alpha}.\n")
    for who in found["excluded"]:
        score = f"{who['right']} of {who['checks']} attention checks right"
        lines.append(f"Left out: annotator {who['annotator']}, {score}.\n")
    lines.append("## Audits\n")
    lines += [f"- {sentence}" for sentence in found["audits"]] or ["Nothing found."]
    return "\n".join(lines) + "\n"


def votes_csv(votes: Sequence[Mapping[str, Any]]) -> str:
    """A line a vote."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(votes[0]))
    writer.writeheader()
    writer.writerows(votes)
    return table.getvalue()


def figures_csv(found: Mapping[str, Any]) -> str:
    """A line a figure."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["question", "what", "figure", "value", "low", "high"])
    for question, figures in found["questions"].items():
        for pair in figures["pairs"]:
            name = f"{pair['first']} against {pair['second']}"
            for kind in _COLORS:
                writer.writerow([question, name, kind, pair[kind]["share"], *pair[kind]["interval"]])
        for name in found["systems"]:
            rate, strength = figures["win_rates"][name], figures["strengths"][name]
            writer.writerow([question, name, "win rate", rate["share"], *(rate["interval"] or ["", ""])])
            writer.writerow([question, name, "strength", strength["strength"], *strength["interval"]])
        writer.writerow([question, "ties", "nu", figures["tie"]["nu"], *figures["tie"]["interval"]])
    return table.getvalue()


def write(out: Path, found: Mapping[str, Any], votes: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write all files, each whole or not at all; their paths."""
    plotted = plot(out / "study.png", found)
    texts = {
        "report.json": json.dumps(found, indent=2, allow_nan=False) + "\n",
        "report.csv": figures_csv(found),
        "votes.csv": votes_csv(votes),
        "report.md": markdown(found, plotted),
    }
    for name, text in texts.items():
        checkpoints.write_text(out / name, text)
    return [out / name for name in texts] + [out / "study.png"] * plotted


def plot(path: Path, found: Mapping[str, Any]) -> bool:
    """Stacked bars of each pair's wins, ties and losses, as in the paper's figures 4, 5 and 7; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    questions = found["questions"]
    rows = max(len(figures["pairs"]) for figures in questions.values())
    figure = Figure(figsize=(6 * len(questions), 1.4 + 0.5 * rows), layout="constrained")
    for axes, (question, figures) in zip(
        figure.subplots(1, len(questions), squeeze=False)[0], questions.items(), strict=True
    ):
        names = [f"{pair['first']}\nvs {pair['second']}" for pair in figures["pairs"]]
        starts = [0.0] * len(names)
        for kind, color in _COLORS.items():
            lengths = [pair[kind]["share"] for pair in figures["pairs"]]
            bars = axes.barh(names, lengths, left=starts, color=color, label=kind)
            axes.bar_label(bars, [f"{length:.0%}" if length > 0.06 else "" for length in lengths], label_type="center")
            starts = [start + length for start, length in zip(starts, lengths, strict=True)]
        axes.set_xlim(0, 1)
        axes.set_title(question)
        axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), ncols=4, loc="outside lower center")
    with checkpoints.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return True
