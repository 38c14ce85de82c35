"""The network prepared for training, its optimizer and averages, and one training step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from cogview3.config import Optimizer, RunRecipe, UserError
from cogview3.generation.compiling import allow_variants
from cogview3.training import parallel
from cogview3.training.objectives import Batch, Objective
from cogview3.training.spikes import SpikeRule

COMPILER = "inductor"  # torch.compile's backend


def learning_rate(optimizer: Optimizer, images: int, total: int) -> float:
    """Learning rate after `images` of `total`: linear warm-up, then constant, linear or half-cosine to 0."""
    if images < optimizer.warmup_images:
        return optimizer.learning_rate * (images + 1) / optimizer.warmup_images
    done = (images - optimizer.warmup_images) / max(1, total - optimizer.warmup_images)
    factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return optimizer.learning_rate * factors[optimizer.decay]


class Trainer:
    """Makes the steps of a recipe, one at a time, on all processes together.

    Attributes:
        parameters: what is trained, by name.
        skeleton: the network without its weights, as it was before it was sharded or compiled.
        last_batch: part of a batch that was computed last.
        sharded: whether each process holds only a part of the weights, their averages and the optimizer's state.
    """

    def __init__(self, recipe: RunRecipe, objective: Objective, accelerator: Accelerator) -> None:
        self.recipe, self.objective, self.accelerator = recipe, objective, accelerator
        trained, train, device = objective.trained, recipe.train, accelerator.device
        self.sharded = train.shard and accelerator.num_processes > 1
        self.bf16 = train.precision == "bf16"
        self.skeleton = parallel.skeleton(trained)
        if train.checkpoint_activations:
            enable = getattr(trained, "enable_gradient_checkpointing", None)
            if enable is None:
                raise UserError("train.checkpoint_activations: this kind of network cannot; leave it out")
            enable()
        objective.to(device)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            if not self.sharded:  # FSDP2 takes contiguous weights only
                trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if train.compile:
            allow_variants()
            for part in parallel.units(trained) if self.sharded else [trained]:
                part.compile(backend=COMPILER)
        if self.sharded:
            parallel.shard(trained, device, self.bf16)
        self.parameters = {name: p for name, p in trained.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=recipe.optimizer.learning_rate,
            betas=recipe.optimizer.betas,
            weight_decay=recipe.optimizer.weight_decay,
            fused=True,
        )
        self.ema = EMAModel(
            self._locals(),
            decay=recipe.optimizer.ema_decay,
            use_ema_warmup=True,
            power=0.75,
            foreach=device.type == "cuda",
        )
        self.rule = SpikeRule(train)
        self.last_batch: Batch = {}
        self.module: nn.Module = objective if self.sharded else accelerator.prepare_model(objective)

    def _locals(self) -> list[nn.Parameter]:
        """This process' part of each parameter; with requires_grad, by which the EMA knows what to average."""
        return [cast(nn.Parameter, parallel.local(parameter)) for parameter in self.parameters.values()]

    def step(self, first: int, count: int) -> tuple[dict[str, float], str | None]:
        """One step on the `count` samples from number `first` on.

        Returns:
            The losses' means over the batch and "gradient", the norm before clipping; and None, or why nothing was
            changed (`SpikeRule`).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe.optimizer, first, self.recipe.train.images)
        figures = self.gradients(first, count)
        reason = self.rule.judge(figures["loss"], figures["gradient"])
        if reason is None:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # first: on a GPU the averages take as much room for a moment
        if reason is None:
            self.ema.step(self._locals())
        return figures, reason

    def gradients(self, first: int, count: int) -> dict[str, float]:
        """Clipped gradients of the batch's mean loss, added to none; gives the figures as `step` does."""
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        totals: dict[str, Tensor] = {}
        own = self.own_parts(first, count)
        for number, indices in enumerate(own):
            batch = self.objective.batch(first, indices or [first])
            self.last_batch = batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
            seeds = np.random.SeedSequence([self.recipe.train.seed, first, number, process])
            torch.manual_seed(int(seeds.generate_state(1)[0]))  # for dropout and the like
            weight = len(indices) * processes / count  # processes' gradients are averaged
            keeps = number + 1 < len(own) and not self.sharded  # gradients, up to the last part; sharded, memory counts
            with self.accelerator.no_sync(self.module) if keeps else nullcontext():
                with self.accelerator.autocast():
                    losses = self.module(batch)
                self.accelerator.backward(losses["loss"] * weight)
            for key, value in losses.items():
                totals[key] = totals.get(key, 0.0) + value.detach().float() * weight
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.optimizer.clip)
        means = parallel.summed(torch.stack(list(totals.values()))) / processes
        values = torch.cat([means, parallel.whole(norm).float().view(1)]).tolist()  # the device is waited for once
        return dict(zip([*totals, "gradient"], values, strict=True))

    def own_parts(self, first: int, count: int) -> list[list[int]]:
        """The samples of this process, in the parts that it computes one after the other."""
        accelerator = self.accelerator
        split = accelerator.process_index, accelerator.num_processes, self.recipe.train.accumulation
        return parallel.parts(first, count, *split)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with its EMA weights, to be looked at, in the precision that it needs."""
        narrow = (self.sharded and self.bf16) or any(p.dtype == torch.bfloat16 for p in self.skeleton.parameters())
        parameters = self._locals()
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.objective.eval()
        try:
            with self.accelerator.autocast() if narrow else nullcontext():
                yield
        finally:
            self.ema.restore(parameters)
            self.objective.train()

    @contextmanager
    def gathered_average(self) -> Iterator[None]:
        """Sharded: the main process' objective with a whole network of EMA weights, on the CPU.

        All processes must enter; on the others the objective stays as it is.
        """
        tensors = {}
        for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
            tensor = parallel.whole(parallel.as_sharded(shadow, parameter))
            if self.accelerator.is_main_process:
                tensors[name] = tensor.cpu()
        if not self.accelerator.is_main_process:
            yield
            return
        trained, network = self.objective.trained, parallel.skeleton(self.skeleton)
        network.load_state_dict({**dict(network.named_buffers()), **tensors}, assign=True, strict=False)
        self.objective.trained = network
        try:
            yield
        finally:
            self.objective.trained = trained
