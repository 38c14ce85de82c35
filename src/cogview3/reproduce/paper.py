"""The shape of the paper's tables on the shipped system: what each way of drawing gives, and in what time.

Everything after the base is measured on the same base pictures, so that rows differ by one thing alone. Scores are
shares of right facts; an order is claimed only where the paired interval of the difference allows it.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import UNet2DConditionModel

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.data.latents import to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.data.scenes.score import Score, score
from cogview3.diffusion.relay import BLUR_KINDS
from cogview3.evaluation import frechet
from cogview3.evaluation.drawing import generators
from cogview3.evaluation.intervals import bootstrap_interval, paired
from cogview3.evaluation.progress import Counter, silent
from cogview3.evaluation.prompt_sets import Prompt, load_prompts
from cogview3.generation.loading import load_sampling, resolve_model
from cogview3.generation.modes import pick_mode
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler
from cogview3.generation.upscale import CogView3UpscalePipeline
from cogview3.prompts.expand import Expander

COUNT, QUICK_COUNT = 64, 8
BATCH = 8
POWERS = (1.0, 1.5, 2.0)
"""Spacings of the relay's steps, t = T_r ((p - i)/p)^k."""


@dataclass
class Row:
    """One way of drawing.

    Attributes:
        table: the heading under which it stands.
        name: in the table.
        against: the name of the row that it is compared with; None for the first of a table.
        note: what a reader must know.
    """

    table: str
    name: str
    against: str | None = None
    note: str = ""
    scores: list[Score] = field(default_factory=list, repr=False)
    features: list[torch.Tensor] = field(default_factory=list, repr=False)
    seconds: list[float] = field(default_factory=list, repr=False)

    def add(self, prompts: Sequence[Prompt], pictures: torch.Tensor, seconds: float) -> None:
        """Take in a batch of pictures, (B, 3, H, W) in [-1, 1]."""
        found = to_uint8(pictures)
        self.scores += [score(prompt.facts, picture) for prompt, picture in zip(prompts, found, strict=True)]
        self.features.append(frechet.features(pictures))
        self.seconds.append(seconds / len(prompts))


class _World:
    """The model, its prompts and the base pictures that rows share."""

    def __init__(self, model: str, count: int, seed: int, device: str) -> None:
        self.model, self.count, self.seed, self.device = model, count, seed, device
        self.prompts = load_prompts("scenes-heldout", count)
        self.brief = load_prompts("scenes-brief", count)
        self.pipe = self._load(None)
        self.upscale = CogView3UpscalePipeline.from_pipe(self.pipe)
        self.upscale.set_progress_bar_config(disable=True)
        self.base: list[torch.Tensor] = []
        self.base_seconds: list[float] = []
        self.relay_config = dict(self.pipe.relay_scheduler.config)

    def _load(self, mode: str | None) -> CogView3Pipeline:
        pipe = CogView3Pipeline.from_pretrained(self.model, mode=mode).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def batches(self) -> Iterator[range]:
        for first in range(0, self.count, BATCH):
            yield range(first, min(first + BATCH, self.count))

    def draw_base(self) -> None:
        """The base pictures, (B, 3, h, w) in [0, 1], and their times."""
        for part in self.batches():
            pictures, seconds = self._timed(self.pipe, part, self.prompts, num_relays=0)
            self.base.append(pictures)
            self.base_seconds.append(seconds)

    def relay(self, row: Row, **settings: Any) -> None:
        """Enlarge the shared base pictures; times count the base too."""
        scheduler = {key: settings.pop(key) for key in ("blur", "blur_estimate", "power") if key in settings}
        self.upscale.register_modules(relay_scheduler=RelayScheduler.from_config(self.relay_config | scheduler))
        for number, part in enumerate(self.batches()):
            start = time.perf_counter()
            pictures = self.upscale(
                self.base[number],
                [self.prompts[index].text for index in part],
                generator=generators(self.seed + 1, part),
                output_type="pt",
                **settings,
            ).images
            seconds = time.perf_counter() - start + self.base_seconds[number]
            row.add([self.prompts[index] for index in part], pictures * 2 - 1, seconds)

    def draw(
        self, row: Row, mode: str | None = None, prompts: Sequence[Prompt] = (), texts: Sequence[str] = (), **how: Any
    ) -> None:
        """Draw from the start, in a mode or with other arguments."""
        pipe, asked = self.pipe if mode is None else self._load(mode), prompts or self.prompts
        for part in self.batches():
            pictures, seconds = self._timed(pipe, part, asked, texts, **how)
            row.add([asked[index] for index in part], pictures * 2 - 1, seconds)

    def _timed(
        self, pipe: Any, part: range, prompts: Sequence[Prompt], texts: Sequence[str] = (), **how: Any
    ) -> tuple[torch.Tensor, float]:
        told = [texts[index] if texts else prompts[index].text for index in part]
        start = time.perf_counter()
        pictures = pipe(told, generator=generators(self.seed, part), output_type="pt", **how).images
        return pictures, time.perf_counter() - start


def reproduce(
    model: str = "scenes",
    *,
    quick: bool = False,
    count: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    expander: Expander | None = None,
    trained: Mapping[str, Path] | None = None,
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
        trained: model folders of rows that took a training, by the row's name (`training.train_rows`).
        counter: progress bars.

    Returns:
        "model", "count", "seed", "minutes", and "rows": for each table, name, scores with intervals, seconds a picture,
        Fréchet distance to renders, and how it compares.
    """
    began = time.perf_counter()
    _, mode = pick_mode(load_sampling(resolve_model(model)), None, model)
    world = _World(model, count or (QUICK_COUNT if quick else COUNT), seed, device)
    if world.pipe.relay_unet is None:
        raise UserError(f"model {model} has no relay: give one that has, such as scenes")
    jobs = _jobs(world, model, mode, expander, trained or {})
    rows: list[Row] = []
    with counter("reproduce", len(jobs) + 1) as progress:
        world.draw_base()
        progress(1)
        for number, (row, work) in enumerate(jobs, 2):
            work(row)
            rows.append(row)
            progress(number)
    renders = _renders(world)
    return {
        "model": model,
        "count": world.count,
        "seed": seed,
        "quick": quick,
        "minutes": (time.perf_counter() - began) / 60,
        "rows": [_figures(row, rows, renders, seed) for row in rows],
    }


def _jobs(world: _World, model: str, mode: Any, expander: Expander | None, trained: Mapping[str, Path]) -> list[Any]:
    """Rows and how each is drawn."""
    steps = f"{mode.steps}+{mode.relay_steps}"
    own = int(world.relay_config["relay_start"])
    whole = f"relay {steps}"
    side = world.pipe.unet.config.sample_size * world.pipe.vae_scale_factor * 2
    single = "Single stage and relay (tables 1 and 2)"
    jobs: list[Any] = [
        (Row(single, whole), lambda row: world.relay(row)),
        (
            Row(single, f"base network at {side} x {side}, {mode.steps} steps", whole, "not trained at that size"),
            lambda row: world.draw(row, num_relays=0, height=side, width=side),
        ),
    ]
    if "single stage" in trained:
        named = Row(single, f"single stage trained at {side} x {side}", whole, "the fine-tunes' compute")
        jobs.append((named, lambda row: _single_stage(world, trained["single stage"], side, row)))
    sampling = load_sampling(resolve_model(model))
    for name in sampling.modes if sampling else ():
        if sampling and sampling.modes[name].distilled and not sampling.modes[name].light:
            jobs.append((Row(single, f"distilled {name}", whole), lambda row, name=name: world.draw(row, mode=name)))
    starts = "Relay start (table 3), the one model sampled from all"
    for start in sorted({200, 300, 400, 500, 600, 800} | {own}):
        against = None if start == own else f"T_r {own}"
        note = "what the model was trained with" if start == own else ""
        jobs.append((Row(starts, f"T_r {start}", against, note), lambda row, s=start: world.relay(row, relay_start=s)))
    for name, folder in trained.items():
        if name.startswith("T_r "):
            note = "fine-tuned for this start, on equally many samples"
            named = Row("Relay start (table 3), each fine-tuned", name, None, note)
            jobs.append((named, lambda row, f=folder, s=int(name[4:]): _relay_other(world, f, s, row)))
    for kind in BLUR_KINDS:
        against = None if kind == "linear" else "linear"
        jobs.append((Row("Blur schedule", kind, against), lambda row, k=kind: world.relay(row, blur=k)))
    estimates = "Blur estimate inside the sampler"
    jobs.append((Row(estimates, "recomputed"), lambda row: world.relay(row, blur_estimate="recompute")))
    jobs.append(
        (Row(estimates, "carried (Algorithm 1)", "recomputed"), lambda row: world.relay(row, blur_estimate="carry"))
    )
    for power in POWERS:
        for relay_steps in (mode.relay_steps, max(1, mode.relay_steps // 2)):
            name, first = f"{relay_steps} steps, k = {power:g}", f"{mode.relay_steps} steps, k = 1"
            row = Row("Spacing of the relay's steps", name, None if name == first else first)
            how = {"power": power, "num_inference_steps": relay_steps}
            jobs.append((row, lambda row, how=how: world.relay(row, **how)))
    tiles = "Whole and tiled"
    jobs.append((Row(tiles, "whole"), lambda row: world.relay(row)))
    jobs.append(
        (Row(tiles, f"tiles of {side // 2}", "whole"), lambda row: world.relay(row, tile_size=max(64, side // 2)))
    )
    if expander is not None:
        brief = [prompt.text for prompt in world.brief]
        expanded = "Expansion of brief prompts"
        jobs.append((Row(expanded, "as typed"), lambda row: world.draw(row, prompts=world.brief)))

        def draw_expanded(row: Row) -> None:
            texts = [each.text for each in expander.expand_all(brief)]
            world.draw(row, prompts=world.brief, texts=texts)

        jobs.append((Row(expanded, "expanded", "as typed"), draw_expanded))
    return jobs


def _single_stage(world: _World, folder: Path, side: int, row: Row) -> None:
    """The base network of another run, at the final size."""
    own = world.pipe.unet
    world.pipe.register_modules(unet=UNet2DConditionModel.from_pretrained(folder).to(world.device).eval())
    try:
        world.draw(row, num_relays=0, height=side, width=side)
    finally:
        world.pipe.register_modules(unet=own)


def _relay_other(world: _World, folder: Path, start: int, row: Row) -> None:
    """A relay of another run on the shared base pictures."""
    own = world.upscale.relay_unet
    other = UNet2DConditionModel.from_pretrained(folder).to(world.device).eval()
    world.upscale.register_modules(relay_unet=other)
    try:
        world.relay(row, relay_start=start)
    finally:
        world.upscale.register_modules(relay_unet=own)


def _renders(world: _World) -> torch.Tensor:
    side = world.pipe.unet.config.sample_size * world.pipe.vae_scale_factor * 2
    return frechet.features(to_tensor([render(prompt.scene, side) for prompt in world.prompts]))


def _figures(row: Row, rows: Sequence[Row], renders: torch.Tensor, seed: int) -> dict[str, Any]:
    right = sum(item.right for item in row.scores)
    figures: dict[str, Any] = {
        "table": row.table,
        "name": row.name,
        "note": row.note,
        "share": right / sum(item.total for item in row.scores),
        "interval": bootstrap_interval(row.scores, seed),
        "whole": float(np.mean([item.whole for item in row.scores])),
        "seconds": float(np.median(row.seconds)),
        "frechet": frechet.compare(torch.cat(row.features), renders, seed),
    }
    other = next((each for each in rows if each.table == row.table and each.name == row.against), None)
    if other is not None:
        figures["against"] = {"name": other.name} | paired(row.scores, other.scores, seed)
        figures["against"]["time_ratio"] = figures["seconds"] / float(np.median(other.seconds))
    return figures


def write(out: Path, result: Mapping[str, Any]) -> list[Path]:
    """results.json, report.md and its plots; gives their paths."""
    from cogview3.reproduce.report import markdown, plots

    checkpoints.write_text(out / "results.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    drawn = plots(out, result)
    checkpoints.write_text(out / "report.md", markdown(result, [path.name for path in drawn]))
    return [out / "report.md", out / "results.json", *drawn]
