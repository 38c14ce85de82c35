"""The objective of one round: a student's step against several of its teacher's, on latents."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor
from typing_extensions import override

from cogview3.config import DistillRound, UserError
from cogview3.data.latents import decode, to_uint8
from cogview3.diffusion import relay, schedule
from cogview3.distillation import step
from cogview3.distillation.paths import PathPool
from cogview3.distillation.step import Levels, StepLevels
from cogview3.distillation.teacher import begin_as, load_teacher, sampler_levels, student_of, teacher_scheduler
from cogview3.generation.attention import constant_text
from cogview3.models.unet import guidance_condition, size_conditions, takes_guidance
from cogview3.training.objectives import Batch, grid
from cogview3.training.objectives.latents import LatentTraining
from cogview3.training.sources import autocast, standard_normal

_CHUNK = 32  # pictures sampled at once
_SHOWN = 6  # pictures in a grid


class Distillation(LatentTraining):
    """Train a student to make one step of each `stride` of the teacher's.

    It begins as its teacher, or as the student that `recipe.start_from` names. Each sample has a guidance w of its own.
    A teacher that does not take w as a condition runs both branches, the unconditional one with zeros for text; the
    student takes w as a condition and runs one. z_t are drawn around data or, with `distill.paths`, are states of the
    teacher's own samplings.
    """

    recipe: DistillRound
    works_alone = False  # the teacher does most of it

    def __init__(self, recipe: DistillRound) -> None:
        super().__init__(recipe)
        settings = recipe.distill
        self.teacher_steps, self.student_steps = settings.steps
        self.stride = self.teacher_steps // self.student_steps
        precision = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
        teacher = self._frozen["teacher"] = load_teacher(settings, self.is_relay, precision)
        read, written = teacher.config["cross_attention_dim"], self._frozen["text"].config.d_model
        if read != written:
            raise UserError(
                f"distill.teacher {settings.teacher!r} reads texts {read} wide, but those of data.text "
                f"{recipe.data.text!r} are {written}; give its own text encoder"
            )
        self.scheduler = teacher_scheduler(settings, self.is_relay)
        self.levels = {steps: sampler_levels(self.scheduler, steps) for steps in settings.steps}
        self.trained = student_of(load_teacher(settings, self.is_relay), settings.guidance_width)
        if recipe.recipe.start_from:
            begin_as(self.trained, recipe.recipe.start_from, self.is_relay)
        self._pool = None
        if settings.paths:
            self._pool = PathPool(recipe, self.source, self._take, self._path, lambda: self.stop_asked())
        self._pictures: Batch = {}
        self._states: Batch = {}  # of the validation's paths
        self._teacher_finals: dict[int, Tensor] = {}  # by number of steps

    @property
    def times(self) -> int:
        """Steps of the student: `t` in a batch is the number of one, counted from 0, the noisiest."""
        return self.student_steps

    @property
    @override
    def offset_noise(self) -> float:
        return self.recipe.distill.offset_noise

    @property
    def estimate(self) -> str:
        """What z_0^t is within a relay's steps."""
        return str(self.scheduler.config["blur_estimate"]) if self.is_relay else "recompute"

    @property
    def prediction(self) -> str:
        """What the outputs of teacher and student mean."""
        return str(self.scheduler.config["prediction_type"])

    def _further(self, rngs: list[np.random.Generator]) -> Batch:
        """Guidance w of each sample, (B,), log-uniform in the recipe's range."""
        low, high = np.log(self.recipe.distill.guidance_range)
        guidance = np.exp([rng.uniform(low, high) for rng in rngs])
        return {"guidance": torch.from_numpy(guidance.astype(np.float32))}

    def prepare(self, device: str) -> None:
        """As for base and relay; and what the teacher draws of the validation's captions is begun with."""
        super().prepare(device)
        if torch.device(device).type == "cpu":
            self._frozen["teacher"].set_attn_processor(AttnProcessor())
        self._pictures = self._validation_pictures()

    # Samples

    def batch(self, first: int, indices: list[int]) -> Batch:
        """As for base and relay; of paths "z" and "z_next" instead of "z0" and "noise" (`PathPool.batch`)."""
        return super().batch(first, indices) if self._pool is None else self._pool.batch(first, indices)

    @override
    def keys(self, indices: list[int]) -> list[str]:
        return super().keys(indices) if self._pool is None else self._pool.keys(indices)

    @override
    def state(self) -> dict[str, Any]:
        return super().state() if self._pool is None else self._pool.state()

    def _take(self, first: int, indices: list[int]) -> tuple[Batch, list[str]]:
        samples = self.source.take(first, indices)
        return self._noisy(samples), samples.keys

    @torch.no_grad()
    def _path(self, batch: Batch) -> Tensor:
        """States (B, n + 1, C, H, W) of the teacher's sampling, before each of the student's n steps and at the end."""
        batch = {name: value.to(self.trained.device) for name, value in batch.items()}
        fine, low = self.levels[self.teacher_steps], batch.get("zL")
        states = [self._start(batch, fine)]
        for number in range(self.student_steps):
            first = torch.full((len(states[0]),), number * self.stride)
            states.append(self._run(self._frozen["teacher"], states[-1], low, fine, first, self.stride, batch))
        return torch.stack(states, dim=1)

    # Loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean square of where the student's step ends against where the teacher's end, weighted by w.

        `step.step_weight`, `step.guidance_weight`.
        """
        return {"loss": self._errors(batch).mean()}

    def _errors(self, batch: Batch) -> Tensor:
        """Weighted mean square error of each sample's network output, (B,)."""
        levels, number = self.levels[self.student_steps], batch["t"].cpu()
        levels_now = levels.at(number, 1)
        z_t, z_next, low = self._way(batch, levels_now)
        target = step.student_target(z_t, z_next, low, levels_now, self.prediction, self.estimate)
        output = self._output(self.trained, z_t, levels, number, batch, batch["text"])
        weight = step.step_weight(levels_now, self.prediction, self.estimate)
        errors = (output - target).square().mean((1, 2, 3))
        by_guidance = step.guidance_weight(batch["guidance"].to(errors), self.recipe.distill.guidance_power)
        return weight.to(errors.dtype).to(errors.device) * by_guidance * errors

    def _way(self, batch: Batch, levels_now: StepLevels) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where the teacher's way begins and ends, z_t and z'', and what a relay's steps are given as z_L."""
        low = batch.get("zL")
        if "z" in batch:
            return batch["z"], batch["z_next"], low
        z0, (sigma, _, f, _) = batch["z0"], levels_now
        if low is None:
            z_t = z0 + schedule.expand_to(sigma, z0) * batch["noise"]
        else:
            z_t = relay.forward(z0, low, sigma, f, batch["noise"])
            low = relay.blur(z0, low, f) if self.estimate == "carry" else low
        fine, first = self.levels[self.teacher_steps], batch["t"].cpu() * self.stride
        with torch.no_grad():
            return z_t, self._run(self._frozen["teacher"], z_t, low, fine, first, self.stride, batch), low

    def _start(self, batch: Batch, levels: Levels) -> Tensor:
        """z_t that a sampler begins with: the batch's noise, of a relay on z_L."""
        sigma = levels.sigmas[0]
        if "zL" in batch:
            return relay.start(batch["zL"], sigma, batch["noise"])
        return batch["noise"] * (1 + sigma**2).sqrt().float()

    def _run(
        self,
        network: UNet2DConditionModel,
        z: Tensor,
        low: Tensor | None,
        levels: Levels,
        first: Tensor,
        count: int,
        batch: Batch,
    ) -> Tensor:
        """`count` sampler steps of a network on (B, C, H, W), guided by the batch's text and w; without gradient."""
        text, guidance = batch["text"], batch["guidance"]
        with constant_text(network) as fewer_texts:
            # the unconditional branch comes first; its text, zeros, is left out where attention knows of that
            whole = takes_guidance(network) or fewer_texts
            texts = text.clone() if whole else torch.cat([torch.zeros_like(text), text])

            def denoise(z: Tensor, number: Tensor) -> Tensor:
                output = self._output(network, z, levels, number, batch, texts)
                if not takes_guidance(network):
                    unconditional, conditional = output.chunk(2)
                    w = schedule.expand_to(guidance, conditional)
                    output = unconditional + w * (conditional - unconditional)
                return schedule.to_x0(output, z, levels.sigmas[number], self.prediction)

            return step.run_steps(denoise, z, low, levels, first, count, self.estimate)

    def _output(
        self, network: UNet2DConditionModel, z: Tensor, levels: Levels, number: Tensor, batch: Batch, text: Tensor
    ) -> Tensor:
        """A network's output, float32, at z_t (B, C, H, W) before steps `number` (B,), with the batch's sizes and w.

        (B, C, H, W), or (2 B, C, H, W) where it needs both branches, the unconditional one first.
        """
        config, branches = network.config, 1 if takes_guidance(network) else 2
        width = config["projection_class_embeddings_input_dim"] // 6
        original, crop, size = batch["sizes"].unbind(1)
        labels = size_conditions(original, crop, size, width).to(z).repeat(branches, 1)
        given = schedule.scale_model_input(z, levels.sigmas[number])
        condition = None
        if takes_guidance(network):
            condition = guidance_condition(batch["guidance"], config["time_cond_proj_dim"]).to(z)
        times = levels.times[number].to(z.device).repeat(branches)
        with autocast(self.recipe, self._frozen["text"].device):
            output: Tensor = network(
                torch.cat([given] * branches),
                times,
                encoder_hidden_states=text,
                timestep_cond=condition,
                class_labels=labels,
            ).sample
        return output.float()

    # Validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Teacher and student on a fixed set, at the recipe's guidance.

        "loss" is the training's. The rest is of whole samplings from the same noise: "difference", the mean square
        between the student's final latents and the teacher's, beside "undistilled", that of the teacher in as few
        steps; and of scenes, the shares of the captions' facts that the pictures show.
        """
        batch = self._fixed_batch()
        if self._pool is not None:
            batch |= self._fixed_states(batch)
        count = self.recipe.validate_.images
        errors = torch.cat([self._errors(_part(batch, start, _CHUNK)) for start in range(0, count, _CHUNK)])
        few = self.levels[self.student_steps]
        reference, student = self._teacher(self.teacher_steps), self._finals(self.trained, few, count)
        figures = {
            "loss": errors.mean().item(),
            "difference": (student - reference).square().mean().item(),
            "undistilled": (self._teacher(self.student_steps) - reference).square().mean().item(),
        }
        if self._teacher_facts is not None and (facts := self._facts(student)) is not None:
            figures |= {"facts_teacher": self._teacher_facts, "facts_student": facts}
        return figures | self.source.figures()

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """The teacher's pictures above the student's, of the same captions and noise."""
        shown = min(_SHOWN, self.recipe.validate_.images)
        few, teachers = self.student_steps, self._teacher(self.teacher_steps)
        rows = [teachers[:shown], self._finals(self.trained, self.levels[few], shown)]
        return grid(*map(self._decoded, rows))

    def _validation_pictures(self) -> Batch:
        """What is drawn of the validation's captions is begun with: text, noise, w, sizes and a relay's z_L."""
        fixed, seed = self.source.fixed, self.recipe.validate_.seed
        z0 = fixed.latents["z0"]
        count, size = len(z0), self.recipe.data.size
        rngs = [np.random.default_rng([seed, index, 6]) for index in range(count)]
        pictures = {"noise": standard_normal(rngs, z0), "guidance": torch.full((count,), self.recipe.distill.guidance)}
        pictures["sizes"] = torch.tensor([[size] * 2, [0, 0], [size] * 2]).repeat(count, 1, 1)
        pictures["text"] = self._encoded(self.source.shown(count, size)[0])
        if self.is_relay:
            pictures["zL"] = fixed.latents["zL"]
        return pictures

    def _fixed_states(self, batch: Batch) -> Batch:
        """States "z" and "z_next" of the validation's samples, (pictures, C, H, W); their paths are drawn once."""
        if not self._states:
            starts = range(0, len(batch["t"]), _CHUNK)
            states = torch.cat([self._path(_part(batch, start, _CHUNK)) for start in starts])
            each, number = torch.arange(len(states)), batch["t"].cpu()
            self._states = {"z": states[each, number], "z_next": states[each, number + 1]}
        return self._states

    def _teacher(self, steps: int) -> Tensor:
        """The teacher's final latents, (pictures, C, H, W), drawn once for each number of steps."""
        if steps not in self._teacher_finals:
            finals = self._finals(self._frozen["teacher"], self.levels[steps], self.recipe.validate_.images)
            self._teacher_finals[steps] = finals
        return self._teacher_finals[steps]

    def _finals(self, network: UNet2DConditionModel, levels: Levels, count: int) -> Tensor:
        """Final latents (count, C, H, W) of the first validation pictures, sampled in all of `levels`."""
        finals = []
        for first in range(0, count, _CHUNK):
            part = _part(self._pictures, first, min(_CHUNK, count - first))
            part = {name: value.to(self.trained.device) for name, value in part.items()}
            z, start = self._start(part, levels), torch.zeros(len(part["noise"]), dtype=torch.int64)
            finals.append(self._run(network, z, part.get("zL"), levels, start, len(levels.times), part))
        return torch.cat(finals)

    def _decoded(self, latents: Tensor) -> np.ndarray:
        """Pictures, uint8, (B, H, W, 3)."""
        parts = [to_uint8(decode(self._frozen["vae"], part)) for part in latents.split(_SHOWN)]
        return np.concatenate(parts)

    @cached_property
    def _teacher_facts(self) -> float | None:
        return self._facts(self._teacher(self.teacher_steps))

    def _facts(self, latents: Tensor) -> float | None:
        """Share of the validation captions' facts that the pictures of the latents show; None for other captions."""
        return self.source.facts(self._decoded(latents))

    def save(self, folder: Path) -> None:
        """Write the UNet and the scheduler that fits it, as `unet/` and `scheduler/` or `relay_...`."""
        prefix = "relay_" if self.is_relay else ""
        self.trained.save_pretrained(folder / f"{prefix}unet")
        self.scheduler.save_pretrained(folder / f"{prefix}scheduler")


def _part(batch: Batch, first: int, count: int) -> Batch:
    return {name: value[first : first + count] for name, value in batch.items()}
