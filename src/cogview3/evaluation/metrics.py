"""Metrics of drawn pictures, by name. Each sees the pictures batch by batch and keeps what its result needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from cogview3.config import UserError
from cogview3.data.latents import reconstruct, to_tensor, to_uint8
from cogview3.data.scenes.reader import Reading, read
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene
from cogview3.data.scenes.score import Score, check_stated, score, summarize
from cogview3.diffusion.relay import enlarge
from cogview3.evaluation import frechet
from cogview3.evaluation.prompt_sets import Prompt

FINE_KINDS = ("fill", "outline")
"""Kinds of fact that hang on detail too fine for the base stage."""

RESAMPLES = 1000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures and where they come from.

    Attributes:
        indices: their prompts' places in the whole set.
        pictures: (B, 3, H, W) in [-1, 1].
        base: the same run's base pictures, (B, 3, h, w) in [-1, 1]; None where nothing was enlarged.
        vae: of the model that drew them.
        seconds: that drawing the pictures took.
    """

    indices: Sequence[int]
    pictures: Tensor
    base: Tensor | None
    vae: AutoencoderKL
    seconds: float = 0.0


class Metric(ABC):
    """One metric of one model's pictures of a set of prompts.

    Constructed before any model is loaded, so that it can refuse prompts that it cannot use.

    Args:
        prompts: the whole set.
        seed: for whatever is drawn at random.

    Raises:
        UserError: the prompts lack something that the metric needs.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts, self.seed = prompts, seed

    @abstractmethod
    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        """Take in a batch; returns what is to be noted of each of its pictures, ready for JSON."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Figures of all pictures so far, ready for JSON; None where there is nothing to average."""

    has_floor = False
    """Whether the first model is to be compared with itself, drawn again from other noise; others share its noise."""

    needs_one_size = False
    """Whether only pictures of the same size can be compared."""

    def compare(self, reference: Self) -> dict[str, Any] | None:
        """Figures of all pictures so far against another run's of the same prompts; None where the metric has none."""
        return None


METRICS: dict[str, type[Metric]] = {}
"""All metrics by name; `register` adds to them."""


def register(name: str) -> Callable[[type[Metric]], type[Metric]]:
    """Class decorator that makes a metric known under a name."""

    def add(metric: type[Metric]) -> type[Metric]:
        METRICS[name] = metric
        return metric

    return add


def make_metrics(names: Sequence[str], prompts: Sequence[Prompt], seed: int) -> dict[str, Metric]:
    """Fresh metrics by name. Raises UserError for an unknown name, or prompts that a metric cannot use."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"no metric {name!r}: choose from {', '.join(sorted(METRICS))}")
    return {name: METRICS[name](prompts, seed) for name in names}


@register("scene")
class SceneMetric(Metric):
    """Share of the prompts' facts that are right in the pictures, beside what bounds it.

    Rows of the result, each as `summarize_row` makes it; those that cannot be had are None:

    - "model": the pictures.
    - "base_enlarged": the same run's base pictures, enlarged bilinearly: what the relay starts from.
    - "chance": the pictures against the facts of the next prompt, the last against the first's.
    - "ceiling": the prompts' scenes, rendered at the pictures' size and passed through the VAE; where all have one.
    - "ceiling_enlarged": the same at the base's size, enlarged bilinearly.

    "fine_gain" is how much more of the fine facts is right in "model" than in "base_enlarged", and
    "gradient_energy" that of "model" and "base_enlarged" over that of "ceiling".
    """

    ROWS = ("model", "base_enlarged", "chance", "ceiling", "ceiling_enlarged")

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        super().__init__(prompts, seed)
        if any(prompt.facts is None for prompt in prompts):
            raise UserError("metric scene needs prompts with facts: use scenes-heldout, or a .jsonl file with them")
        for prompt in prompts:
            check_stated(prompt.facts, f"the facts of prompt {prompt.text!r}: ")
        self._scored: dict[str, list[tuple[Prompt, Score]]] = {row: [] for row in self.ROWS}
        self._energies: dict[str, list[Tensor]] = {row: [] for row in self.ROWS}

    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        """Read the batch's pictures and what they are compared with; notes each picture's score and wrong facts."""
        prompts = [self.prompts[index] for index in drawn.indices]
        compared = self._compared(prompts, drawn)
        readings = {row: [read(picture) for picture in to_uint8(pictures)] for row, pictures in compared.items()}
        scores = {row: self._add(row, prompts, found) for row, found in readings.items()}
        if len(self.prompts) > 1:
            others = [self.prompts[(index + 1) % len(self.prompts)] for index in drawn.indices]
            self._add("chance", others, readings["model"])
        for row, pictures in compared.items():
            self._energies[row].append(gradient_energy(pictures).cpu())
        return [_note(item) for item in scores["model"]]

    def _compared(self, prompts: Sequence[Prompt], drawn: Drawn) -> dict[str, Tensor]:
        """The batch's pictures of each row, (B, 3, H, H) in [-1, 1]; "chance" has none of its own."""
        size = drawn.pictures.shape[-1]
        compared = {"model": drawn.pictures}
        if drawn.base is not None:
            compared["base_enlarged"] = enlarge_to(drawn.base, size)
        if any(prompt.scene is None for prompt in self.prompts):  # of some alone it would bound nothing
            return compared
        scenes = [prompt.scene for prompt in prompts]
        compared["ceiling"] = reconstruct_scenes(drawn.vae, scenes, size)
        if drawn.base is not None:
            small = reconstruct_scenes(drawn.vae, scenes, drawn.base.shape[-1])
            compared["ceiling_enlarged"] = enlarge_to(small, size)
        return compared

    def _add(self, row: str, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> list[Score]:
        scores = [score(prompt.facts, reading) for prompt, reading in zip(prompts, readings, strict=True)]
        self._scored[row] += zip(prompts, scores, strict=True)
        return scores

    def result(self) -> dict[str, Any]:
        """Rows, gain of fine facts and gradient energies."""
        rows = {name: summarize_row(scored, self.seed) for name, scored in self._scored.items() if scored}
        table: dict[str, Any] = {name: rows.get(name) for name in self.ROWS}
        fine = [rows[name]["fine"] for name in ("model", "base_enlarged") if name in rows]
        table["fine_gain"] = fine[0] - fine[1] if len(fine) == 2 and None not in fine else None
        table["gradient_energy"] = {name: self._energy_ratio(name) for name in ("model", "base_enlarged")}
        return table

    def compare(self, reference: Self) -> dict[str, Any]:
        """{"compared": `paired`} of the pictures' facts to those of the reference."""
        own, other = ([score for _, score in metric._scored["model"]] for metric in (self, reference))
        return {"compared": paired(own, other, self.seed)}

    def _energy_ratio(self, row: str) -> float | None:
        energies, reference = self._energies[row], self._energies["ceiling"]
        if not energies or not reference:
            return None
        ratio = float(torch.cat(energies).mean() / torch.cat(reference).mean())
        return ratio if np.isfinite(ratio) else None  # of pictures of one color alone


@register("frechet")
class FrechetMetric(Metric):
    """Distance of a model's pictures to the first model's of the same prompts, and to renders of their scenes."""

    has_floor = needs_one_size = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if len(self.prompts) < 2:
            raise UserError("metric frechet needs 2 prompts or more, and says little of fewer than some hundred")
        self._features: list[Tensor] = []
        self._renders: list[Tensor] = []
        self._has_renders = all(prompt.scene is not None for prompt in self.prompts)

    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        """Take in a batch; nothing is to be noted of single pictures."""
        self._features.append(frechet.features(drawn.pictures))
        if self._has_renders:
            size = drawn.pictures.shape[-1]
            renders = [render(self.prompts[index].scene, size) for index in drawn.indices]
            self._renders.append(frechet.features(to_tensor(renders)))
        return [{} for _ in drawn.indices]

    def result(self) -> dict[str, Any]:
        """Number of "pictures", and where all prompts have a scene, `frechet.compare` with their "renders"."""
        figures: dict[str, Any] = {"pictures": sum(map(len, self._features))}
        if self._has_renders:
            figures["renders"] = frechet.compare(torch.cat(self._features), torch.cat(self._renders), self.seed)
        return figures

    def compare(self, reference: Self) -> dict[str, Any]:
        """`frechet.compare` with the reference's pictures."""
        return frechet.compare(torch.cat(self._features), torch.cat(reference._features), self.seed)


def _note(item: Score) -> dict[str, Any]:
    wrong = [{"kind": fact.kind, "object": fact.index} for fact in item.facts if not fact.right]
    return {"facts": item.total, "right": item.right, "wrong": wrong}


def enlarge_to(pictures: Tensor, size: int) -> Tensor:
    """Pictures (B, 3, h, h) enlarged bilinearly to a side that is a whole multiple of theirs."""
    return enlarge(pictures.float(), size // pictures.shape[-1])


def reconstruct_scenes(vae: AutoencoderKL, scenes: Sequence[Scene], size: int) -> Tensor:
    """Scenes rendered at a size and passed through the VAE, (B, 3, size, size) in [-1, 1], float32."""
    return reconstruct(vae, to_tensor([render(scene, size) for scene in scenes])).float()


def gradient_energy(pictures: Tensor) -> Tensor:
    """Mean squared differences of neighboring pixels along both axes, summed, of pictures (B, 3, H, W): (B,)."""
    pictures = pictures.float()
    return sum(pictures.diff(dim=axis).square().mean((1, 2, 3)) for axis in (-1, -2))


def summarize_row(scored: Sequence[tuple[Prompt, Score]], seed: int) -> dict[str, Any]:
    """Shares of right facts, overall and by group; None where a group is empty.

    Args:
        scored: one score for each picture, with the prompt that it was scored against.
        seed: of the bootstrap.

    Returns:
        "pictures" and "facts" (numbers); "share" of facts right with its 95 % "interval"; "fine" (fills and
        outlines); "whole" and "one_object_whole" (pictures wholly right, of all and of those of one object); and
        shares by "kinds" of fact, by number of "objects", of "seen" prompts and of "held_out" ones.
    """
    scores = [item for _, item in scored]
    total = summarize(scores)
    objects = {
        str(number): _share([item for prompt, item in scored if len(prompt.objects) == number])
        for number in sorted({len(prompt.objects) for prompt, _ in scored})
    }
    single = [item for prompt, item in scored if len(prompt.objects) == 1]
    fine = [fact.right for item in scores for fact in item.facts if fact.kind in FINE_KINDS]
    return {
        "pictures": total["pictures"],
        "facts": total["facts"],
        "share": total["share"],
        "interval": bootstrap_interval(scores, seed),
        "whole": total["whole"],
        "one_object_whole": _mean([item.whole for item in single]),
        "fine": _mean(fine),
        "kinds": {kind: figures["share"] for kind, figures in total["kinds"].items()},
        "objects": objects,
        "seen": _share([item for prompt, item in scored if not prompt.held_out]),
        "held_out": _share([item for prompt, item in scored if prompt.held_out]),
    }


def bootstrap_interval(scores: Sequence[Score], seed: int) -> list[float]:
    """The 95 % interval [low, high] of the share of right facts, by drawing pictures anew with replacement."""
    right, total = (np.array(values) for values in zip(*((item.right, item.total) for item in scores), strict=True))
    rng = np.random.default_rng(seed)
    picks = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=RESAMPLES)
    low, high = np.quantile((picks @ right) / (picks @ total), [0.025, 0.975])
    return [float(low), float(high)]


def paired(scores: Sequence[Score], reference: Sequence[Score], seed: int) -> dict[str, Any]:
    """Shares of right facts of two models on the same prompts: quotient and difference.

    Returns:
        "ratio" and "difference" to the reference, with their 95 % intervals "ratio_interval" and "interval", by
        drawing prompts anew with replacement, the same ones for both. Where nothing of the reference is right, there
        is no ratio, and where that is so of some draw, no interval: None.
    """
    counts = np.array(
        [[own.right, own.total, other.right, other.total] for own, other in zip(scores, reference, strict=True)]
    )
    rng = np.random.default_rng(seed)
    picks = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
    right, total, right_reference, total_reference = np.vstack([counts.sum(0), picks @ counts]).T
    own, other = right / total, right_reference / total_reference
    ratios = np.divide(own, other, out=np.full_like(own, np.nan), where=other > 0)
    figures: dict[str, Any] = {}
    for key, interval, values in (("ratio", "ratio_interval", ratios), ("difference", "interval", own - other)):
        bounds = [float(value) for value in np.quantile(values[1:], [0.025, 0.975])]
        figures |= {key: None if np.isnan(values[0]) else float(values[0])}
        figures |= {interval: None if np.isnan(values).any() else bounds}
    return figures


def _share(scores: Sequence[Score]) -> float | None:
    return summarize(scores)["share"] if scores else None


def _mean(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None
