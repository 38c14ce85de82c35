"""The cost of a distillation step: teacher, student, its gradients, AdamW's moments and averages, T5 and the VAE.

All that `cogview3 distill` holds on one device in its first round, where the teacher runs both branches, on random
latents and texts, so that T5 and the VAE are held and not run; weights are random, on which neither memory nor time
depends.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models import UNet2DConditionModel
from torch import nn

from cogview3.bench.machine import hardware, versions
from cogview3.bench.networks import CONFIGS, TEXT_LENGTH, build, random_batch
from cogview3.config import DistillBaseRecipe, DistillRelayRecipe, DistillRound, UserError, load_recipe
from cogview3.distillation.objective import Distillation
from cogview3.distillation.teacher import sampler_levels
from cogview3.evaluation.progress import Counter, silent
from cogview3.generation.scheduler import RelayScheduler, base_scheduler
from cogview3.precision import computes_bfloat16
from cogview3.training import measure
from cogview3.training.objectives import Batch, Objective
from cogview3.training.trainer import Trainer


@dataclass(frozen=True)
class Stage:
    """A stage's pictures, of `size` pixels a side, and how many a step has by default."""

    size: int
    batch: int


STAGES = {"base": Stage(512, 16), "relay": Stage(1024, 4)}


class Synthetic(Distillation):
    """A round's objective on one random batch, around data as in the paper."""

    def __init__(self, recipe: DistillRound, student: UNet2DConditionModel, frozen: dict[str, nn.Module]) -> None:
        Objective.__init__(self)
        self.recipe, self.is_relay = recipe, recipe.kind.endswith("relay")
        settings, count = recipe.distill, recipe.train.batch
        self.teacher_steps, self.student_steps = settings.steps
        self.stride = self.teacher_steps // self.student_steps
        self.scheduler = RelayScheduler(relay_start=settings.relay_start) if self.is_relay else base_scheduler()
        self.levels = {steps: sampler_levels(self.scheduler, steps) for steps in settings.steps}
        self.trained, self._frozen, self._pool = student, frozen, None
        width = student.config["cross_attention_dim"]
        self._batch = random_batch(count, recipe.data.size, TEXT_LENGTH, width, self.student_steps)
        self._batch["guidance"] = torch.full((count,), settings.guidance)
        if self.is_relay:
            self._batch["zL"] = torch.randn_like(self._batch["z0"])

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Always the same."""
        return self._batch


def run(
    stage: str = "base",
    scale: str = "full",
    *,
    batch: int | None = None,
    steps: int = 3,
    checkpoint_activations: bool = True,
    size: int | None = None,
    device: str = "cuda",
    counter: Counter = silent,
) -> dict[str, Any]:
    """Measure steps of the first round of `paper/distill_base` or `paper/distill_relay`.

    Args:
        stage: a key of `STAGES`.
        scale: of the networks, a key of `bench.networks.CONFIGS`.
        batch: samples of a step; the stage's by default.
        steps: how many are timed, after one to warm up.
        checkpoint_activations: compute the student's activations twice instead of keeping them.
        size: side of the pictures in pixels; the stage's by default.
        device: where.
        counter: progress bar.

    Returns:
        "seconds" of each step, "samples_per_second" by their median, and, on a GPU, bytes (10^9 make a GB):
        "frozen_bytes" of teacher, T5 and VAE, "held_bytes" between two steps, "peak_bytes" within one (None on a CPU);
        "parameters" of the student, settings, hardware and versions.

    Raises:
        UserError: an unknown stage or scale, or counts below 1.
    """
    if stage not in STAGES or scale not in CONFIGS:
        raise UserError(f"no {stage!r} at {scale!r}: choose from {', '.join(STAGES)} and {', '.join(CONFIGS)}")
    count, side = STAGES[stage].batch if batch is None else batch, size or STAGES[stage].size
    if min(count, steps) < 1:
        raise UserError(f"batch {count}, steps {steps}: give 1 or more of each")
    found, on_gpu = versions(), device == "cuda"
    recipe = synthetic_recipe(stage, count, side, checkpoint_activations, device)
    narrow = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    frozen = {"teacher": build("unet" if stage == "base" else "relay_unet", scale, device, narrow)}
    frozen |= {"text": build("t5", scale, device, narrow), "vae": build("vae", scale, device, torch.float32)}
    frozen_bytes = torch.cuda.memory_allocated() if on_gpu else None
    student = build("distilled_unet" if stage == "base" else "distilled_relay_unet", scale, device, torch.float32)
    objective = Synthetic(recipe, student.requires_grad_(True).train(), frozen)
    ready = Trainer(recipe, objective, Accelerator(mixed_precision=recipe.train.precision, cpu=device == "cpu"))
    seconds: list[float] = []
    with counter("benchmark", steps + 1) as progress:
        for number in range(steps + 1):
            if number == 1 and on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = measure.clock(device)
            ready.step(0, count)
            seconds.append(measure.clock(device) - start)
            progress(number + 1)
    return {
        "stage": stage,
        "scale": scale,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "seconds": seconds[1:],
        "samples_per_second": count / median(seconds[1:]),
        "frozen_bytes": frozen_bytes,
        "held_bytes": torch.cuda.memory_allocated() if on_gpu else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "settings": {
            "size": side,
            "batch": count,
            "steps": list(recipe.distill.steps),
            "checkpoint_activations": checkpoint_activations,
            "dtype": str(narrow).removeprefix("torch."),
        },
        "hardware": hardware(device),
        "versions": found,
    }


def synthetic_recipe(stage: str, batch: int, size: int, checkpoint_activations: bool, device: str) -> DistillRound:
    """The first round of the paper's recipe, whole on one device, in bfloat16 where that has instructions for it."""
    changes = {
        "data.vae": "none",
        "data.text": "none",
        "data.shards": '["none"]',
        "data.size": size,
        "data.readers": 1,
        "train.shard": "false",
        "train.batch": batch,
        "train.images": 2**40,
        "train.checkpoint_activations": str(checkpoint_activations).lower(),
        "train.precision": "bf16" if computes_bfloat16(device) else "no",
    }
    recipe = load_recipe(f"paper/distill_{stage}", [f"{name}={value}" for name, value in changes.items()])
    assert isinstance(recipe, DistillBaseRecipe | DistillRelayRecipe)
    return recipe.round(1, "none")


def describe(result: dict[str, Any]) -> str:
    """The result in a few lines, for people."""
    how, machine = result["settings"], result["hardware"]
    teacher_steps, student_steps = how["steps"]
    kept = "computed twice" if how["checkpoint_activations"] else "kept"
    lines = [
        f"{result['stage']}, {teacher_steps} to {student_steps} steps, a student of {result['parameters'] / 1e6:,.1f} "
        f"million parameters, {how['size']} x {how['size']}, batch {how['batch']}, activations {kept}, {how['dtype']}, "
        f"on {machine['device']}",
        f"{median(result['seconds']):.3g} s a step, {result['samples_per_second']:.3g} samples a second",
    ]
    if result["peak_bytes"] is not None:
        frozen, held, peak = (result[f"{kind}_bytes"] / 1e9 for kind in ("frozen", "held", "peak"))
        lines.append(
            f"memory: {frozen:.1f} GB of teacher, T5 and VAE, {held:.1f} GB between steps, {peak:.1f} GB at most"
        )
    return "\n".join(lines)
