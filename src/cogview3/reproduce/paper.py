"""Tables of the paper's form on the shipped system: quality and time of each way of drawing.

Everything after the base is measured on the same base pictures, so that rows differ by one thing alone. Scores are
shares of right facts; an order is claimed only where the paired interval of the difference allows it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogview3 import __version__, checkpoints
from cogview3.data.latents import to_tensor
from cogview3.data.scenes.render import render
from cogview3.evaluation import frechet
from cogview3.evaluation.intervals import bootstrap_interval, paired
from cogview3.evaluation.progress import Counter, silent
from cogview3.evaluation.prompt_sets import load_prompts
from cogview3.prompts.expand import Expander
from cogview3.references import find
from cogview3.reproduce.measured import Bench, Measured
from cogview3.reproduce.report import markdown, plots
from cogview3.reproduce.rows import Row, Shape, Trained, rows

COUNT, QUICK_COUNT = 64, 8


def reproduce(
    model: str = "scenes",
    *,
    quick: bool = False,
    count: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    expander: Expander | None = None,
    trained: Mapping[str, Trained] | None = None,
    out: Path | None = None,
    counter: Counter = silent,
) -> dict[str, Any]:
    """Measure every row.

    Args:
        model: with a relay and facts to score, as the bundled `scenes`.
        quick: few prompts, for a look.
        count: prompts; 64, or 8 with `quick`.
        seed: of the noise.
        device: where networks run.
        expander: for the rows with expanded prompts; they are left out without one.
        trained: networks of rows that took a training (`training.train_rows`).
        out: folder that keeps what is measured, so that a stopped run goes on there.
        counter: progress bars.

    Returns:
        "model", "weights" (hash), "version", "torch", "count", "seed", "minutes" (of drawing and scoring), "floor" (the
        Fréchet distance of renders of other scenes), and "rows": for each table, name, scores with intervals, seconds a
        picture, Fréchet distance to renders, and how it compares.

    Raises:
        UserError: the model has no relay, or `out` holds another run.
    """
    found = find(model)
    sampling = found.sampling()
    _, mode = found.settings()
    count = count or (QUICK_COUNT if quick else COUNT)
    scenes = load_prompts("scenes-heldout", 2 * count)
    prompts, others, brief = scenes[:count], scenes[count:], load_prompts("scenes-brief", count)
    bench = Bench(model, prompts, brief, seed=seed, device=device, expander=expander, folder=out)
    modes = sampling.modes if sampling else {}
    heavy = [name for name, each in modes.items() if each.distilled and not each.light]
    shape = Shape(mode.steps, mode.relay_steps, bench.side, bench.relay_config, heavy)
    chosen = rows(shape, trained or {}, expander is not None)
    ways = [row.way for row in chosen]
    total = len({way.key() for way in ways}) * len(bench.batches)
    with counter("batches", total) as progress:
        measured = bench.measure(ways, progress)
    renders, floor = (
        frechet.features(to_tensor([render(prompt.scene, bench.side) for prompt in each if prompt.scene]))
        for each in (prompts, others)
    )
    return {
        "model": model,
        "weights": bench.weights,
        "version": __version__,
        "torch": torch.__version__,
        "count": len(prompts),
        "seed": seed,
        "quick": quick,
        "minutes": bench.spent / 60,
        "floor": frechet.compare(floor, renders, seed),
        "rows": [_figures(row, chosen, measured, renders, seed) for row in chosen],
    }


def _figures(
    row: Row, chosen: Sequence[Row], measured: Mapping[str, Measured], renders: torch.Tensor, seed: int
) -> dict[str, Any]:
    own = measured[row.way.key()]
    right = sum(item.right for item in own.scores)
    figures: dict[str, Any] = {
        "table": row.table,
        "name": row.name,
        "note": row.note,
        "way": json.loads(json.dumps(asdict(row.way), default=str)),
        "share": right / sum(item.total for item in own.scores),
        "interval": bootstrap_interval(own.scores, seed),
        "whole": float(np.mean([item.whole for item in own.scores])),
        "seconds": float(np.median(own.seconds)),
        "frechet": frechet.compare(torch.cat(own.features), renders, seed),
    }
    reference = next((each for each in chosen if each.table == row.table and each.name == row.against), None)
    if reference is not None:
        other = measured[reference.way.key()]
        figures["against"] = {"name": reference.name} | paired(own.scores, other.scores, seed)
        figures["against"]["time_ratio"] = float(np.median(np.divide(own.seconds, other.seconds)))
    return figures


def write(out: Path, result: Mapping[str, Any]) -> list[Path]:
    """results.json, report.md and its plots; gives their paths."""
    checkpoints.write_text(out / "results.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    drawn = plots(out, result)
    checkpoints.write_text(out / "report.md", markdown(result, [path.name for path in drawn]))
    return [out / "report.md", out / "results.json", *drawn]
