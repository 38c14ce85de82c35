"""Runs in several processes of this machine, with an objective that takes milliseconds a step."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from torch import Tensor

from cogview3.config import BaseRecipe, parse_recipe
from cogview3.models.unet import unet_config
from cogview3.training import loop, parallel
from cogview3.training.objectives import Batch, Objective, diffusion
from cogview3.training.trainer import Trainer
from tests.processes import Context


def tiny_run(**changes: Any) -> BaseRecipe:
    """A base recipe for `Tiny`: four steps of four samples. changes: entries by "table__key"."""
    tables: dict[str, dict[str, Any]] = {
        "recipe": {"name": "tiny", "kind": "base"},
        "model": {"block_out_channels": [8, 16, 16], "head_dim": 8, "norm_num_groups": 4, "size_embedding": 8},
        "data": {"vae": "none", "text": "none", "size": 64, "pictures": 8},
        "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.6},
        "train": {"images": 16, "batch": 4, "precision": "no", "log_images": 4, "checkpoint_images": 8},
        "validate": {"every_images": 12},
    }
    for name, value in changes.items():
        table, _, key = name.partition("__")
        tables[table][key] = value
    return parse_recipe(tables, "tiny")


TWO_BLOCKS = {
    "block_out_channels": (8,),
    "attention_head_dim": (1,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
}
"""Changes that leave the tiny UNet one block down and one up: few parts that processes gather from each other."""


class Tiny(Objective):
    """Denoise random latents with a UNet of two blocks.

    Data depend on how many batches were drawn before, as much as `data.text_dropout` says, which does nothing else.
    """

    def __init__(self, recipe: BaseRecipe) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trained = UNet2DConditionModel(**unet_config("tiny", **TWO_BLOCKS))
        self.drawn: dict[str, int] = {}
        self.memory = recipe.data.text_dropout

    @property
    def reader(self) -> str:
        return os.environ.get("RANK", "0")

    def state(self) -> dict[str, Any]:
        return {"readers": dict(self.drawn)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.drawn = state["readers"]

    def keys(self, indices: list[int]) -> list[str]:
        return [f"picture-{index}" for index in indices]

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Reader n's n-th batch has `memory` n more of noise, the same for all readers."""
        count = self.drawn[self.reader] = self.drawn.get(self.reader, 0) + 1
        rngs = [np.random.default_rng(index) for index in indices]
        noise = torch.from_numpy(np.stack([rng.standard_normal((4, 8, 8), np.float32) for rng in rngs]))
        text = torch.from_numpy(np.stack([rng.standard_normal((3, 16), np.float32) for rng in rngs]))
        times = torch.tensor([int(rng.integers(1000)) for rng in rngs])
        return {"noise": noise * (1 + self.memory * count), "text": text, "t": times}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        noise, labels = batch["noise"], batch["noise"].flatten(1)[:, :48]
        output = self.trained(noise, batch["t"], batch["text"], class_labels=labels).sample
        return {"loss": (output.float() - noise.flip(1)).square().mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        drawn = dict(self.drawn)
        figures = {name: value.item() for name, value in self(self.batch(0, [1, 2, 3])).items()}
        self.drawn = drawn
        return figures

    def samples(self) -> None:
        """Nothing to see."""

    def save(self, folder: Path) -> None:
        self.trained.save_pretrained(folder / "unet")


Act = Callable[["loop._Run"], None]


def train_tiny(
    recipe: BaseRecipe, run: Path, act: Act | None = None, objective: Callable[[Any], Objective] | None = Tiny
) -> dict[str, Any]:
    """Train; `act` is called after every step. Without `objective`, the recipe's own."""
    if act is None:
        return loop.train(recipe, run, device="cpu", objective=objective)
    advance = loop._Run._advance

    def advance_and_act(this: loop._Run) -> dict[str, float]:
        figures = advance(this)
        act(this)
        return figures

    loop._Run._advance = advance_and_act
    try:
        return loop.train(recipe, run, device="cpu", objective=objective)
    finally:
        loop._Run._advance = advance


def write_keys_and_terminate(run: "loop._Run", folder: Path, images: int) -> None:
    """Write down a process's pictures; send the second one SIGTERM once it has done so many images."""
    indices = list(range(run.images - run.recipe.train.batch, run.images))
    own = [key for key in run.objective.keys(indices) if not key.isdecimal()]  # others' have their number alone
    with (folder / f"keys-{run.accelerator.process_index}").open("a") as file:
        file.write("".join(f"{key}\n" for key in own))
    terminate(run, images, process=1)


def terminate(run: loop._Run, images: int, process: int) -> None:
    """Send one process SIGTERM once it has done so many images."""
    if run.images == images and run.accelerator.process_index == process:
        os.kill(os.getpid(), signal.SIGTERM)


def train_and_count(recipe: BaseRecipe, run: Path, counts: Path) -> None:
    """Train, and write how many calls of functions that takes: all, and in the writing of each checkpoint."""
    save, number, saves = loop._Run._save, [0], {}

    def save_and_count(this: loop._Run) -> None:
        before = number[0]
        save(this)
        saves[this.images] = number[0] - before

    def count(frame: Any, event: str, argument: Any) -> None:
        number[0] += 1

    loop._Run._save = save_and_count
    sys.setprofile(count)
    train_tiny(recipe, run)
    sys.setprofile(None)
    counts.with_name(f"{counts.name}-{os.environ['RANK']}").write_text(json.dumps({"run": number[0], **saves}))


def die_at_call(recipe: BaseRecipe, run: Path, process: int, calls: int) -> None:
    """Train, but be killed at the given number of calls of functions, wherever that is."""
    if int(os.environ.get("RANK", "0")) == process:
        _die_after(calls)
    train_tiny(recipe, run)


def die_in_checkpoint(recipe: BaseRecipe, run: Path, process: int, images: int, calls: int) -> None:
    """Train, but be killed that many calls into the writing of a checkpoint and of the weights for use."""
    save = loop._Run._save

    def save_and_die(this: loop._Run) -> None:
        if this.images == images and this.accelerator.process_index == process:
            _die_after(calls)
        save(this)

    loop._Run._save = save_and_die
    train_tiny(recipe, run)


def _die_after(calls: int) -> None:
    left = [calls]

    def count(frame: Any, event: str, argument: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def write_gradients(recipes: list[BaseRecipe], file: Path) -> None:
    """The gradients of the first batch of each recipe, and its losses, into a file from the main process."""
    found = []
    for recipe in recipes:
        AcceleratorState._reset_state()
        steps = Trainer(recipe, Tiny(recipe), Accelerator(mixed_precision="no", cpu=True))
        figures = steps.gradients(0, recipe.train.batch)
        gradients = {name: parallel.whole(p.grad) for name, p in steps.parameters.items()}
        found.append({"figures": figures, "gradients": gradients})
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(found, file)


def in_processes(count: int, work: Callable[..., Any], *arguments: Any, log: Path) -> list[int]:
    """Do work in so many processes that know of each other; their exit codes, as `torchrun` would see them.

    Where one is killed, the others are too. What they print is in `log`, one file each, `log`.0 and so on.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    surroundings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    surroundings |= {"COGVIEW3_TENSORBOARD": "0", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(count):
        own = surroundings | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else surroundings
        process = Context().Process(target=_begin, args=(own, f"{log}.{rank}", work, *arguments))
        process.start()
        processes.append(process)
    waiting = {process.sentinel: process for process in processes}
    while waiting:
        for sentinel in multiprocessing.connection.wait(list(waiting)):
            ended = waiting.pop(sentinel)
            ended.join()
            if ended.exitcode == -signal.SIGKILL:
                for other in waiting.values():
                    other.kill()
    return [process.exitcode for process in processes]


def _begin(surroundings: dict[str, str], log: str, work: Callable[..., Any], *arguments: Any) -> None:
    os.environ |= surroundings
    if "RANK" not in surroundings:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
            os.environ.pop(name, None)
    file = open(log, "w", buffering=1)  # noqa: SIM115
    sys.stdout = sys.stderr = file
    torch.set_num_threads(1)
    diffusion.BASE_STEPS = diffusion.RELAY_STEPS = 2  # as tests/training/conftest.py has it
    try:
        work(*arguments)
    except SystemExit as end:
        os._exit(end.code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os._exit(0)
