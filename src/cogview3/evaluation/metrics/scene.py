"""The scene metric: the share of a prompt's facts, in the built-in world, that its picture shows."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor

from cogview3.config import UserError
from cogview3.data.latents import reconstruct, to_tensor, to_uint8
from cogview3.data.scenes.reader import Reading, read
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene
from cogview3.data.scenes.score import Score, check_stated, score
from cogview3.diffusion.relay import enlarge
from cogview3.evaluation.intervals import paired
from cogview3.evaluation.metrics.base import Drawn, Metric, Setting
from cogview3.evaluation.metrics.shares import summarize_row
from cogview3.evaluation.prompt import Prompt


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

    needs_vae = True
    ROWS = ("model", "base_enlarged", "chance", "ceiling", "ceiling_enlarged")

    def __init__(self, prompts: Sequence[Prompt], seed: int, setting: Setting | None = None) -> None:
        super().__init__(prompts, seed, setting)
        for prompt in prompts:
            if prompt.facts is None:
                raise UserError("metric scene needs prompts with facts: use scenes-heldout, or a .jsonl file with them")
            check_stated(prompt.facts, f"the facts of prompt {prompt.text!r}: ")
        self._scored: dict[str, list[tuple[Prompt, Score]]] = {row: [] for row in self.ROWS}
        self._by_index: dict[int, Score] = {}
        self._energies: dict[str, list[Tensor]] = {row: [] for row in self.ROWS}

    def update(self, drawn: Drawn) -> list[dict[str, Any]]:
        """Read the batch's pictures and what they are compared with; notes each picture's score and wrong facts."""
        prompts = [self.prompts[index] for index in drawn.indices]
        compared = self._compared(prompts, drawn)
        readings = {row: [read(picture) for picture in to_uint8(pictures)] for row, pictures in compared.items()}
        scores = {row: self._add(row, prompts, found) for row, found in readings.items()}
        self._by_index |= dict(zip(drawn.indices, scores["model"], strict=True))
        if len(self.prompts) > 1:
            others = [self._next(index) for index in drawn.indices]
            self._add("chance", others, readings["model"])
        for row, pictures in compared.items():
            self._energies[row].append(gradient_energy(pictures).cpu())
        return [_note(item) for item in scores["model"]]

    def _next(self, index: int) -> Prompt:
        """The next other prompt; of several pictures a prompt, those of the same prompt are passed over."""
        count, own = len(self.prompts), self.prompts[index].text
        turns = (self.prompts[(index + step) % count] for step in range(1, count))
        return next((prompt for prompt in turns if prompt.text != own), self.prompts[(index + 1) % count])

    def _compared(self, prompts: Sequence[Prompt], drawn: Drawn) -> dict[str, Tensor]:
        """The batch's pictures of each row, (B, 3, H, H) in [-1, 1]; "chance" has none of its own."""
        size = drawn.pictures.shape[-1]
        compared = {"model": drawn.pictures}
        if drawn.base is not None:
            compared["base_enlarged"] = enlarge_to(drawn.base, size)
        if drawn.vae is None or any(prompt.scene is None for prompt in self.prompts):  # of some it would bound nothing
            return compared
        scenes = [prompt.scene for prompt in prompts if prompt.scene is not None]
        compared["ceiling"] = reconstruct_scenes(drawn.vae, scenes, size)
        if drawn.base is not None:
            small = reconstruct_scenes(drawn.vae, scenes, drawn.base.shape[-1])
            compared["ceiling_enlarged"] = enlarge_to(small, size)
        return compared

    def _add(self, row: str, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> list[Score]:
        pairs = zip(prompts, readings, strict=True)
        scores = [score(prompt.facts, reading) for prompt, reading in pairs if prompt.facts is not None]
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
        both = sorted(self._by_index.keys() & reference._by_index.keys())
        own, other = ([metric._by_index[index] for index in both] for metric in (self, reference))
        return {"compared": paired(own, other, self.seed) | {"pictures": len(both)} if both else None}

    def _energy_ratio(self, row: str) -> float | None:
        energies, reference = self._energies[row], self._energies["ceiling"]
        if not energies or not reference:
            return None
        ratio = float(torch.cat(energies).mean() / torch.cat(reference).mean())
        return ratio if np.isfinite(ratio) else None  # of pictures of one color alone


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
    across, down = (pictures.diff(dim=axis).square().mean((1, 2, 3)) for axis in (-1, -2))
    return across + down
