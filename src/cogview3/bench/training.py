"""The cost of a training step: the training loop's own, against a plain one, on the same UNet with the same data.

The plain step is what diffusers' training examples do for SDXL: AdamW as torch has it, autocast, the UNet as it is
built. Both clip gradients and keep averages, and take turns in one process; weights, the optimizer's moments and the
averages are shared, so that a network fits that fills the device. On a CPU, seconds are the processor's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from torch.nn import functional

from cogview3.bench.machine import hardware, versions
from cogview3.bench.networks import random_batch
from cogview3.config import BaseRecipe, UserError, load_recipe, parse_recipe
from cogview3.evaluation.progress import Counter, silent
from cogview3.models.unet import size_conditions
from cogview3.precision import computes_bfloat16
from cogview3.training import measure
from cogview3.training.objectives import Batch, Objective
from cogview3.training.objectives.diffusion import STEPS, DiffusionTraining, build_unet
from cogview3.training.trainer import Trainer

FULL = {
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "head_dim": 64,
    "norm_num_groups": 32,
    "size_embedding": 256,
}
"""The paper's backbone, 2,906,612,484 parameters with T5-XXL's text."""


@dataclass(frozen=True)
class Scale:
    """What is trained: pictures of `size`, texts of `tokens` x `width`, batches of `batch`."""

    size: int
    tokens: int
    width: int
    batch: int
    checkpoint_activations: bool


SCALES = {"small": Scale(128, 96, 128, 32, False), "full": Scale(512, 225, 4096, 16, True)}


class Synthetic(DiffusionTraining):
    """The base stage's objective on one random batch, without VAE and text encoder."""

    def __init__(self, recipe: BaseRecipe, scale: Scale, device: str) -> None:
        Objective.__init__(self)
        self.recipe, self.is_relay = recipe, False
        torch.manual_seed(0)
        with torch.device(device):
            self.trained = build_unet(recipe.model, scale.width, scale.size // 8)
            self._batch = random_batch(recipe.train.batch, scale.size, scale.tokens, scale.width, STEPS)
        self.sigmas, self.f = self._levels()

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Always the same: what data cost is measured by `bench data`."""
        return self._batch


class _Ours:
    """Steps of the training loop."""

    def __init__(self, recipe: BaseRecipe, objective: Synthetic, device: str) -> None:
        accelerator = Accelerator(mixed_precision=recipe.train.precision, cpu=device == "cpu")
        self.trainer = Trainer(recipe, objective, accelerator)
        self.count = recipe.train.batch

    def enter(self) -> None:
        """Lay the network out as the loop does."""
        torch.backends.cudnn.benchmark = True
        _use(self.trainer, torch.channels_last, AttnProcessor)

    def step(self) -> None:
        """One step."""
        self.trainer.step(0, self.count)


class _Plain:
    """A plain step on the same network; its optimizer's moments are those of `ours`, once these are there."""

    def __init__(self, ours: _Ours, objective: Synthetic) -> None:
        self.trainer, self.unet, self.recipe = ours.trainer, objective.trained, objective.recipe
        self.scheduler = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=self.recipe.objective.prediction,
        )
        batch, size = objective._batch, objective.recipe.data.size
        self.latents, self.text = batch["z0"], batch["text"]
        self.labels = size_conditions((size, size), (0, 0), (size, size), self.recipe.model.size_embedding)
        self.labels = self.labels.to(self.latents).expand(len(self.latents), -1)
        self.parameters = list(ours.trainer.parameters.values())
        optimizer = self.recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optimizer.learning_rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )

    def enter(self) -> None:
        """Lay the network out as it was built, and share the moments."""
        torch.backends.cudnn.benchmark = False
        _use(self.trainer, torch.contiguous_format, AttnProcessor2_0)
        for parameter, moments in self.trainer.optimizer.state.items():
            step = self.optimizer.state[parameter].get("step", torch.tensor(1.0))
            self.optimizer.state[parameter] = {**moments, "step": step}

    def step(self) -> None:
        """One step: noise, prediction, loss, gradients, AdamW, averages."""
        noise = torch.randn_like(self.latents)
        times = torch.randint(STEPS, (len(noise),), device=noise.device)
        noisy = self.scheduler.add_noise(self.latents, noise, times)
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16"):
            # not self.unet(...), which may be compiled
            predicted = self.unet.forward(noisy, times, self.text, class_labels=self.labels).sample
        loss = functional.mse_loss(predicted.float(), self._target(noise, times).float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.trainer.ema.step(self.parameters)

    def _target(self, noise: Tensor, times: Tensor) -> Tensor:
        if self.recipe.objective.prediction == "v_prediction":
            velocity: Tensor = self.scheduler.get_velocity(self.latents, noise, times)
            return velocity
        return noise


def _use(trainer: Trainer, layout: torch.memory_format, processor: type) -> None:
    """Lay out weights, moments and averages on a GPU; choose the attention on a CPU."""
    if trainer.accelerator.device.type == "cpu":
        trainer.objective.trained.set_attn_processor(processor())
        return
    for number, parameter in enumerate(trainer.parameters.values()):
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=layout)
            trainer.ema.shadow_params[number] = trainer.ema.shadow_params[number].to(memory_format=layout)
            moments = trainer.optimizer.state.get(parameter, {})
            moments |= {key: value.to(memory_format=layout) for key, value in moments.items() if value.ndim == 4}


def run(
    scale: str = "small",
    *,
    batch: int | None = None,
    steps: int = 3,
    repeats: int = 3,
    checkpoint_activations: bool | None = None,
    compiled: bool | None = None,
    device: str = "cpu",
    counter: Counter = silent,
) -> dict[str, Any]:
    """Measure the loop's step against a plain one.

    Args:
        scale: a key of `SCALES`.
        batch: samples of a step; the scale's by default.
        steps: of each run.
        repeats: runs of each kind, in turn, after one step each to warm up; medians are given.
        checkpoint_activations: of both kinds; the scale's by default.
        compiled: whether the loop compiles; on a GPU by default.
        device: where.
        counter: progress bar.

    Returns:
        For "ours" and "plain" the samples a second, the share of "ceiling" (operations a second in bare matrix
        products) that they come to, and the peak of memory in bytes (None on a CPU); "ratio"; "flops", counted, of a
        sample; all runs' seconds a step; settings, hardware and versions. Operations that checkpointing computes
        twice count once in "share", twice in "share_with_recomputation".

    Raises:
        UserError: an unknown scale, or counts below 1.
    """
    if scale not in SCALES:
        raise UserError(f"no scale {scale!r}: choose from {', '.join(SCALES)}")
    sizes = SCALES[scale]
    count = sizes.batch if batch is None else batch
    if min(count, steps, repeats) < 1:
        raise UserError(f"batch {count}, steps {steps}, repeats {repeats}: give 1 or more of each")
    checkpointed = sizes.checkpoint_activations if checkpoint_activations is None else checkpoint_activations
    compile_it = device == "cuda" if compiled is None else compiled
    recipe = synthetic_recipe(scale, count, checkpointed, compile_it, device)
    objective = Synthetic(recipe, sizes, device)
    ours = _Ours(recipe, objective, device)
    flops = measure.step_flops(objective, ours.trainer.skeleton, objective.batch(0, [])) // count
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    ceiling = measure.matmul_ceiling(device, dtype)
    kinds = {"ours": ours, "plain": _Plain(ours, objective)}
    with counter("benchmark", repeats + 1) as progress:
        seconds, memory = _take_turns(kinds, steps, repeats, device, progress)
    result: dict[str, Any] = {"scale": scale, "parameters": sum(p.numel() for p in objective.trained.parameters())}
    for kind, values in seconds.items():
        rate = count / median(values)
        share = rate * flops / ceiling
        result[kind] = {"samples_per_second": rate, "share": share, "peak_bytes": memory[kind], "seconds": values}
        if checkpointed:
            result[kind]["share_with_recomputation"] = share * 4 / 3  # a second forward pass
    result["ratio"] = result["ours"]["samples_per_second"] / result["plain"]["samples_per_second"]
    settings: dict[str, Any] = {"size": sizes.size, "batch": count, "steps": steps, "repeats": repeats}
    settings |= {"checkpoint_activations": checkpointed, "compile": recipe.train.compile}
    settings |= {"dtype": str(dtype).removeprefix("torch.")}
    return result | {
        "flops": flops,
        "ceiling": ceiling,
        "settings": settings,
        "hardware": hardware(device),
        "versions": versions(),
    }


def _take_turns(
    kinds: dict[str, Any], steps: int, repeats: int, device: str, progress: Callable[[int], None]
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Seconds a step of every run, and the peak of memory, of each kind; the first turn warms up."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, int | None] = dict.fromkeys(kinds)
    for turn in range(repeats + 1):
        for kind, step in kinds.items():
            step.enter()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = _timed(step.step, 1 if turn == 0 else steps, device)
            if turn:
                seconds[kind].append(taken)
                memory[kind] = torch.cuda.max_memory_allocated() if device == "cuda" else None
        progress(turn + 1)
    return seconds, memory


def _timed(step: Callable[[], None], steps: int, device: str) -> float:
    start = measure.clock(device)
    for _ in range(steps):
        step()
    return (measure.clock(device) - start) / steps


def synthetic_recipe(
    scale: str, batch: int, checkpoint_activations: bool, compiled: bool, device: str = "cpu"
) -> BaseRecipe:
    """The recipe whose steps are measured: the packaged base stage's, or the paper's at 512 x 512.

    In bfloat16 where the device has instructions for it.
    """
    small = load_recipe("scenes/base").to_dict()
    tables = {
        "recipe": {"name": f"bench-{scale}", "kind": "base"},
        "model": small["model"] if scale == "small" else FULL,
        "data": {"vae": "none", "text": "none", "size": SCALES[scale].size, "pictures": batch},
        "objective": small["objective"] if scale == "small" else {"prediction": "epsilon"},
        "optimizer": {"learning_rate": 1e-5},
        "train": {
            "images": 2**40,
            "batch": batch,
            "checkpoint_activations": checkpoint_activations,
            "compile": compiled,
            "precision": "bf16" if computes_bfloat16(device) else "no",
        },
    }
    recipe = parse_recipe(tables, "bench")
    assert isinstance(recipe, BaseRecipe)
    return recipe


def describe(result: dict[str, Any]) -> str:
    """The result in a few lines, for people."""
    how, machine = result["settings"], result["hardware"]
    lines = [
        f"UNet of {result['parameters'] / 1e6:,.1f} million parameters, {how['size']} x {how['size']}, batch "
        f"{how['batch']}, on {machine['device']}, {machine['torch_threads']} threads",
        f"counted: {result['flops']:.4g} FLOPs a sample; ceiling: {result['ceiling']:.4g} FLOP/s in {how['dtype']} "
        "products",
    ]
    for kind in ("ours", "plain"):
        row = result[kind]
        memory = "" if row["peak_bytes"] is None else f", {row['peak_bytes'] / 1e9:.1f} GB at most"
        twice = row.get("share_with_recomputation")
        again = "" if twice is None else f" ({twice:.1%} with what is computed twice)"
        lines.append(
            f"{kind}: {row['samples_per_second']:.3g} samples a second, {row['share']:.1%} of the ceiling"
            f"{again}{memory}"
        )
    return "\n".join([*lines, f"ratio {result['ratio']:.2f}"])
