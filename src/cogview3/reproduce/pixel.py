"""The original relay, in pixels, beside plain diffusion (EDM) of equal training and equal time.

The relay's two stages and the plain network are alike on their patches and cost the same a picture, so that the plain
one has as many pictures as both stages together, and twice as many steps. Fréchet distances are to renders of scenes
that none was trained on; an order is claimed only where the interval of the difference allows it.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cogview3 import __version__, checkpoints
from cogview3.config import UserError, load_recipe
from cogview3.data.latents import to_tensor, to_uint8
from cogview3.diffusion.pixel_relay import shrink
from cogview3.evaluation import frechet
from cogview3.evaluation.drawing import generators
from cogview3.evaluation.progress import Counter, silent
from cogview3.evaluation.tables import Table, cell
from cogview3.generation.pixel_relay import PixelRelayPipeline
from cogview3.models.pixel_unet import on_patches, patch_of
from cogview3.reproduce.measured import weights_hash
from cogview3.reproduce.report import claims
from cogview3.reproduce.snr import scenes
from cogview3.training.objectives import grid

PARTS = ("relay", "base", "edm")
"""The trainings: recipes scenes/pixel_PART."""

COUNT, BATCH, STEPS = 500, 20, 20
SHOWN = 8
"""Pictures of each row in the grid."""
_REFERENCE, _OTHER = 20_000_051, 20_000_053  # seeds of renders; training's are others


@dataclass
class _Row:
    """One way of drawing: its pictures' features, seconds a picture of each batch, and the first pictures."""

    name: str
    draw: Callable[[range, Tensor], Tensor]
    features: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    shown: list[np.ndarray] = field(default_factory=list)

    def add(self, part: range, small: Tensor) -> None:
        start = time.perf_counter()
        pictures = self.draw(part, small)
        self.seconds.append((time.perf_counter() - start) / len(part))
        self.features.append(frechet.features(pictures))
        self.shown += list(to_uint8(pictures))[: SHOWN - len(self.shown)]


def train_parts(runs: Mapping[str, Path], device: str) -> None:
    """Train, or resume, those of the three."""
    from cogview3.training.loop import train

    for part in PARTS:
        train(load_recipe(f"scenes/pixel_{part}"), out=runs[part], restart=False, device=device)


def minutes() -> int:
    """What the three trainings take on one core, roughly."""
    return round(sum(load_recipe(f"scenes/pixel_{part}").train.images for part in PARTS) / 550)


def open_parts(runs: Mapping[str, Path]) -> dict[str, PixelRelayPipeline]:
    """The pipelines of finished runs. Raises UserError where one is missing, unfinished, or of another shape."""
    found = {}
    for part in PARTS:
        run = runs[part]
        weights = run / "weights" if (run / "weights").is_dir() else run
        if not (weights / "model_index.json").is_file():
            raise UserError(
                f"--{part} {run}: no trained network; train it: cogview3 train scenes/pixel_{part}, or --train"
            )
        if (run / "recipe.toml").is_file() and (length := checkpoints.length_of(run)):
            done = max((images for images, _ in checkpoints.checkpoints(run)), default=0)
            if done < length:
                raise UserError(f"--{part} {run}: {done} of {length} pictures are trained; the same training resumes")
        found[part] = PixelRelayPipeline.from_pretrained(weights)
        found[part].set_progress_bar_config(disable=True)
    factors = {part: pipe.scheduler.config["factor"] for part, pipe in found.items()}
    if factors["relay"] < 2 or factors["base"] != 1 or factors["edm"] != 1:
        raise UserError(f"factors {factors}: give a relay's run, and two of factor 1, as the recipes make them")
    return found


def compare(
    parts: Mapping[str, PixelRelayPipeline],
    images: Mapping[str, int | None],
    *,
    count: int = COUNT,
    steps: int = STEPS,
    seed: int = 0,
    device: str = "cpu",
    counter: Counter = silent,
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Draw with each, side by side, and measure.

    Args:
        parts: `open_parts`.
        images: pictures that each was trained on; None where that is not known.
        count: pictures of each row; intervals take 100 or more.
        steps: of each stage of the relay; plain EDM has as many, and twice as many.
        seed: of the noise.
        device: where networks run.
        counter: progress bars.

    Returns:
        The figures, and the first pictures of each row.
    """
    for pipe in parts.values():
        pipe.to(device)
    relay, base, edm = (parts[part] for part in PARTS)
    whole = PixelRelayPipeline(relay.unet, relay.scheduler, base.unet, base.scheduler)
    whole.set_progress_bar_config(disable=True)
    side = relay.unet.config["sample_size"] * patch_of(relay.unet)
    real, others = (scenes(count, side, entropy) for entropy in (_REFERENCE, _OTHER))

    def from_noise(pipe: PixelRelayPipeline, taken: int) -> Callable[[range, Tensor], Tensor]:
        return lambda part, small: _pictures(pipe, part, seed, taken, base_steps=taken, batch_size=len(part))

    rows = [
        _Row(f"relay, {steps} + {steps} steps", from_noise(whole, steps)),
        _Row(f"plain EDM, {2 * steps} steps", from_noise(edm, 2 * steps)),
        _Row(f"plain EDM, {steps} steps", from_noise(edm, steps)),
        _Row("relay on small renders", lambda part, small: _pictures(relay, part, seed, steps, image=small)),
    ]
    batches = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    with counter("batches", len(rows) * len(batches)) as progress:
        for number, part in enumerate(batches):
            small = (shrink(to_tensor([others[index] for index in part]), relay.scheduler.config["factor"]) + 1) / 2
            for place, row in enumerate(rows, 1):
                row.add(part, small.clamp(0, 1).to(device))
                progress(number * len(rows) + place)
    reference, other = (torch.cat([frechet.features(to_tensor([each])) for each in found]) for found in (real, others))
    figures = {
        "version": __version__,
        "weights": {part: weights_hash(parts[part].unet) for part in PARTS},
        "count": count,
        "seed": seed,
        "side": side,
        "training": {part: _training(parts[part], images[part]) for part in PARTS},
        "floor": frechet.compare(other, reference, seed),
        "rows": [_figures(row, rows[0], reference, seed) for row in rows],
    }
    shown = {row.name: row.shown for row in rows} | {"renders": real[:SHOWN]}
    return figures, shown


def _pictures(pipe: PixelRelayPipeline, part: range, seed: int, steps: int, **how: Any) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] on the CPU."""
    drawn: Any = pipe(generator=generators(seed, part), num_inference_steps=steps, output_type="pt", **how)
    pictures: Tensor = drawn.images
    return pictures.float().cpu() * 2 - 1


def _training(pipe: PixelRelayPipeline, images: int | None) -> dict[str, Any]:
    """Pictures, and operations of a forward pass on one: multiplications and additions."""
    unet, patch = pipe.unet, patch_of(pipe.unet)
    side = unet.config["sample_size"] * patch
    x = torch.zeros(1, 3, side, side, device=unet.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        on_patches(unet, x, torch.zeros(1, device=unet.device), patch)
    return {"images": images, "flops": counted.get_total_flops()}


def _figures(row: _Row, first: _Row, reference: Tensor, seed: int) -> dict[str, Any]:
    own = torch.cat(row.features)
    figures = {"name": row.name, "seconds": float(np.median(row.seconds))} | frechet.compare(own, reference, seed)
    if row is not first:
        figures["against"] = {
            "name": first.name,
            "time_ratio": float(np.median(np.divide(row.seconds, first.seconds))),
            **frechet.difference(own, torch.cat(first.features), reference, seed),
        }
    return figures


def write(out: Path, figures: Mapping[str, Any], shown: Mapping[str, Sequence[np.ndarray]]) -> list[Path]:
    """pixel.json, pixel.md and the grid; gives their paths."""
    checkpoints.write_text(out / "pixel.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    checkpoints.write_text(out / "pixel.md", markdown(figures, list(shown)))
    with checkpoints.whole_file(out / "pixel.png") as temporary:
        grid(*shown.values()).save(temporary, format="PNG")
    return [out / name for name in ("pixel.md", "pixel.json", "pixel.png")]


def markdown(figures: Mapping[str, Any], shown: Sequence[str]) -> str:
    """The table, and sentences on what it shows."""
    training = figures["training"]
    compute = {part: each["images"] and each["images"] * each["flops"] for part, each in training.items()}
    lines = [
        "# Relay in pixels, and plain EDM\n",
        f"{figures['count']} pictures of {figures['side']} x {figures['side']} a row, seed {figures['seed']}; cogview3 "
        f"{figures['version']}. Trained on: "
        + "; ".join(f"{part} {each['images'] or 'unknown'} pictures" for part, each in training.items())
        + ".",
    ]
    if all(compute.values()):
        lines.append(f"Plain EDM's training took {compute['edm'] / (compute['relay'] + compute['base']):.2f} of the "
                     "operations of the relay's two stages.")  # fmt: skip
    lines += [f"\n![{', '.join(shown)}, from above](pixel.png)\n", _table(figures).markdown()]
    words = ("is further from renders than", "is nearer to renders than")
    lines += [f"- {sentence}" for sentence in claims(figures["rows"], *words, digits=4)]
    return "\n".join(lines) + "\n"


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table(["", "Fréchet to renders", "extrapolated", "95 %", "difference", "95 %", "seconds", "time ratio"])
    floor = figures["floor"]
    for row in [*figures["rows"], {"name": "renders of other scenes", **floor}]:
        against = row.get("against", {})
        cells = [cell(row.get(key), 4) for key in ("distance", "extrapolated", "interval")]
        cells += [cell(against.get(key), 4) for key in ("difference", "interval")]
        table.add(row["name"], *cells, cell(row.get("seconds")), cell(against.get("time_ratio"), 2))
    return table
