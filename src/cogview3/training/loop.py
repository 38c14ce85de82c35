"""The training loop: the same for every objective, on one process or many.

Samples, noise and timesteps depend on (seed, sample index) alone, so a stopped run resumes with exactly the
losses it would have had. How a batch is spread over processes does not matter to base and relay stages, their
distillation and tiny autoencoders. Elsewhere losses are means over what a part holds (words, tokens, patches), so that
another split weighs samples a little otherwise, and a VAE's parts have a whole picture each.
"""

import functools
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from cogview3 import checkpoints
from cogview3.config import Recipe, RunRecipe, UserError
from cogview3.precision import computes_bfloat16
from cogview3.training import measure, parallel, state
from cogview3.training.log import Log, wandb_project
from cogview3.training.objectives import Interrupted, Objective, build
from cogview3.training.trainer import Trainer, learning_rate

PATIENCE = timedelta(hours=2)
"""How long processes wait for one that encodes, validates or writes."""


def train(
    recipe: Recipe,
    out: Path | None = None,
    restart: bool = False,
    device: str = "auto",
    objective: Callable[[Any], Objective] | None = None,
) -> dict[str, Any]:
    """Run a recipe to its end in the run folder `out`, resuming from its newest checkpoint.

    SIGTERM, SIGINT, SIGHUP and SIGUSR1 (SLURM's warning) write a checkpoint before they end it. `train.images` may be
    larger than when the run was begun: it is trained on from where it is. With several processes
    (torchrun, accelerate launch) each calls this; the folder must be one that all of them see.

    Args:
        recipe: what to train.
        out: the run folder; runs/<recipe's name> by default.
        restart: move an existing run aside first.
        device: "auto" or "cpu".
        objective: makes the recipe's objective; `training.objectives.build` by default.

    Returns:
        {"run", "images", "loss", "validation", "seconds"}: images seen, the last logged mean loss (None where nothing
        was left to train), the figures of the last validation ({} on processes that only help).

    Raises:
        UserError: a folder of another recipe or in another process's use, or a damaged checkpoint.
        FloatingPointError: the loss or its gradient is no longer finite, or one of them a spike (`train.on_spike`).
        SystemExit, KeyboardInterrupt: after SIGTERM (code 143), SIGHUP (129), SIGUSR1 (138) and SIGINT.
    """
    run = Path(out) if out else Path("runs") / recipe.name
    wandb_project()
    process = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    settled = _settle_precision(cast(RunRecipe, recipe), process)
    options = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    accelerator = Accelerator(mixed_precision=settled.train.precision, cpu=device == "cpu", kwargs_handlers=options)
    _check_processes(settled, accelerator)
    before = None
    if not restart:
        checkpoints.check_run(run, recipe.to_dict())
        before = checkpoints.length_of(run)
    built = (objective or build)(settled)  # first, so that a wrong reference in the recipe leaves no run behind
    accelerator.wait_for_everyone()
    with checkpoints.open_run(run, recipe.to_dict(), restart) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        state = _Run(settled, run, built, accelerator)
        if accelerator.is_main_process:
            print(_beginning(state, before), file=sys.stderr, flush=True)
        return state.go()


def _beginning(run: "_Run", before: int | None) -> str:
    """The first line: where the run stands; and what a length other than the one `before` does to its schedule."""
    recipe, images, total = run.recipe, run.images, run.recipe.train.images
    if images >= total:
        return (
            f"{run.run} is finished: {images} of {total} images trained. Train longer with --set "
            f"train.images={2 * total}, or start over with --restart"
        )
    message = f"{recipe.name}: {images} of {total} images trained; the run is in {run.run}"
    if not images or before in (None, total):
        return message
    optimizer = recipe.optimizer
    rates = [learning_rate(optimizer, images, length) for length in (before, total)]
    shares = "; data.whole_from is a share of the new length" if hasattr(recipe.data, "whole_from") else ""
    return (
        f"{message}\ntrain.images {before} -> {total}: the learning rate continues at {rates[1]:.3g} (on the shorter "
        f"schedule: {rates[0]:.3g}), with decay {optimizer.decay!r} to image {total}{shares}"
    )


def _settle_precision(recipe: RunRecipe, process: PartialState) -> RunRecipe:
    """The recipe with the `train.precision` that "auto" means on the device; warns of a slow choice."""
    train, fast = recipe.train, computes_bfloat16(process.device)
    if train.precision == "bf16" and not fast and process.is_main_process:
        print(
            "train.precision is bf16, but this device has no instructions for bfloat16 and emulates it, many times "
            "slower than float32; leave it out, or give --set train.precision=no",
            file=sys.stderr,
        )
    if train.precision != "auto":
        return recipe
    return recipe.model_copy(update={"train": train.model_copy(update={"precision": "bf16" if fast else "no"})})


def _check_processes(recipe: RunRecipe, accelerator: Accelerator) -> None:
    processes = accelerator.num_processes
    if recipe.train.batch % (processes * recipe.train.accumulation):
        raise UserError(
            f"train.batch {recipe.train.batch} is not a multiple of {processes} processes times train.accumulation "
            f"{recipe.train.accumulation}; change it with --set train.batch=N"
        )
    if recipe.train.shard and recipe.kind in ("vae", "text", "expander", "recaptioner"):
        raise UserError(f"train.shard is for UNets, not for a recipe of kind {recipe.kind}; leave it out")
    if recipe.train.shard and processes == 1:
        print("train.shard has no effect: there is only one process", file=sys.stderr)


class _Run:
    """State of one run: its steps, its log and the number of images seen."""

    def __init__(self, recipe: RunRecipe, run: Path, objective: Objective, accelerator: Accelerator) -> None:
        self.recipe, self.run, self.objective, self.accelerator = recipe, run, objective, accelerator
        with accelerator.main_process_first():
            objective.prepare(str(accelerator.device))
        self.trainer = Trainer(recipe, objective, accelerator)
        self.log = Log(run, recipe, accelerator.is_main_process)
        self.images = 0
        found = checkpoints.checkpoints(run)
        if found:
            self._load(found[-1][1])
        self.saved = self.images
        self.log.forget_after(self.images)
        self.stop: int | None = None
        objective.stop_asked = lambda: self._stop() is not None

    def go(self) -> dict[str, Any]:
        start, begun = time.time(), self.images
        figures: dict[str, float] = {}
        with _stop_signals(self), self.log:
            while not (stop := self._stop()) and self.images < self.log.total:
                try:
                    figures = self._advance() or figures
                except Interrupted:
                    continue
            if self.images != self.saved:
                self._save()
            if self.images == begun and stop is None:  # finished earlier, perhaps cut off while writing weights
                figures = self._validate()
                self._save_weights()
        if stop is not None:
            message = f"stopped at {self.images} images; the same command resumes"
            if stop == signal.SIGINT:
                raise KeyboardInterrupt(message)
            if self.accelerator.is_main_process:
                print(message, file=sys.stderr)
            raise SystemExit(128 + stop)
        result = {"run": str(self.run), "images": self.images, "loss": self.log.last_loss, "validation": figures}
        return {**result, "seconds": round(time.time() - start, 1)}

    def _stop(self) -> int | None:
        """The signal by which the run is to end, agreed among processes."""
        return parallel.agreed(self.stop, self.accelerator.device)

    def _advance(self) -> dict[str, float]:
        """One step, and what is due after it; gives the figures of a validation. At the end, everything is due."""
        before, train = self.images, self.recipe.train
        self._step()
        if self.log.ceiling is None and self.accelerator.device.type == "cuda":
            with self.log.not_counted():
                self._measure()

        def due(every: int) -> bool:
            return before // every != self.images // every or self.images == train.images

        figures = {}
        if due(train.log_images):
            self.log.write(self.images)
        if due(self.recipe.validate_.every_images):
            with self.log.not_counted():
                figures = self._validate()
            self.log.write_figures(self.images, figures)
        if due(train.checkpoint_images):
            with self.log.not_counted():
                self._save()
        return figures

    def _step(self) -> None:
        trainer, first = self.trainer, self.images
        count = min(self.recipe.train.batch, self.recipe.train.images - first)
        figures, reason = trainer.step(first, count)
        self.images += count
        if reason is None:
            self.log.add(figures, trainer.optimizer.param_groups[0]["lr"], self.images)
            return
        indices = list(chain(*trainer.own_parts(first, count)))
        gathered = parallel.gathered(list(zip(indices, self.objective.keys(indices), strict=True)))
        self.log.skip(reason, first, list(chain(*gathered)))
        if trainer.rule.must_stop():
            stop = self.recipe.train.on_spike == "stop"
            often = "" if stop else f"{trainer.rule.in_a_row} batches in a row: "
            fix = "leave it out with --set train.on_spike=skip" if stop else "allow more with --set train.max_skips=N"
            raise FloatingPointError(
                f"{often}{reason} at image {first}; {fix}, or lower optimizer.learning_rate and --restart"
            )

    def _measure(self) -> None:
        """How many operations an image takes, and how many the devices could do; once, after the first step."""
        batch, train = self.trainer.last_batch, self.recipe.train
        dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        flops = measure.step_flops(self.objective, self.trainer.skeleton, batch)
        self.log.flops = flops and flops // len(batch["t"])
        self.log.ceiling = measure.matmul_ceiling(self.accelerator.device, dtype) * self.accelerator.num_processes

    def _validate(self) -> dict[str, float]:
        """Figures and samples of the EMA weights, reported by the main process; sharded, all must work on them."""
        self.objective.gather()
        if not (self.accelerator.is_main_process or self.trainer.sharded):
            return {}
        with self.trainer.averaged():
            figures = self.objective.validate()
            grid = self.objective.samples()
        if grid is not None and self.accelerator.is_main_process:
            with checkpoints.whole_file(self.run / "samples" / f"images-{self.images}.png") as path:
                grid.save(path)
        return figures

    def _save(self) -> None:
        self.saved = self.images
        states = parallel.gathered(self.objective.state())
        parts = self.run / "checkpoints" / f".images-{self.images}.parts"
        if self.trainer.sharded:
            if self.accelerator.is_main_process:
                shutil.rmtree(parts, ignore_errors=True)
                parts.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            state.save_parts(self.trainer, parts)
        if self.accelerator.is_main_process:
            write = functools.partial(self._write, parts=parts if self.trainer.sharded else None, states=states)
            checkpoints.save_checkpoint(self.run, self.images, self.recipe.train.keep_checkpoints, write)
        self._save_weights()

    def _save_weights(self) -> None:
        if not (self.accelerator.is_main_process or self.trainer.sharded):
            return
        with self.trainer.gathered_average() if self.trainer.sharded else self.trainer.averaged():
            if self.accelerator.is_main_process:
                with checkpoints.whole_folder(self.run / "weights") as folder:
                    self.objective.save(folder)

    def _write(self, folder: Path, parts: Path | None, states: list[dict[str, Any]]) -> None:
        trainer = self.trainer
        entries: dict[str, Any] = {}
        if parts is None:
            state.save(trainer, folder)
        else:
            parts.rename(folder / state.PARTS)
            entries["files"] = state.sizes(folder / state.PARTS)
        entries |= {
            "images": self.images,
            "ema_steps": trainer.ema.optimization_step,
            "log": self.log.state(),
            "fingerprint": self.objective.fingerprint(),
            "spikes": {"losses": list(trainer.rule.losses), "in_a_row": trainer.rule.in_a_row},
            "split": self._split().model_dump(),
            "precision": self.recipe.train.precision,
            "objective": states,
        }
        (folder / "state.json").write_text(json.dumps(entries), encoding="utf-8")

    def _split(self) -> state.Split:
        processes, accumulation = self.accelerator.num_processes, self.recipe.train.accumulation
        return state.Split(processes=processes, accumulation=accumulation, sharded=self.trainer.sharded)

    def _load(self, folder: Path) -> None:
        stored = state.read_position(folder)
        if stored.fingerprint not in (None, self.objective.fingerprint()):
            raise UserError(
                f"{self.run} was trained with another {self.objective.depends_on}; start over with --restart"
            )
        try:
            state.load(self.trainer, folder, stored.files)
            alike = len(stored.objective) == self.accelerator.num_processes
            self.objective.load_state(
                stored.objective[self.accelerator.process_index]
                if alike
                else functools.reduce(_union, stored.objective)
            )
        except (MemoryError, UserError, torch.OutOfMemoryError, PermissionError):
            raise
        except Exception as error:
            raise state.damaged(folder, error) from error
        self.images, self.trainer.ema.optimization_step = stored.images, stored.ema_steps
        self.log.load_state(stored.log)
        self.trainer.rule.remember(stored.spikes.losses, stored.spikes.in_a_row)
        if stored.split not in (None, self._split()) and self.accelerator.is_main_process:
            print(_inexact(stored.split, self._split()), file=sys.stderr)
        before, now = stored.precision or self.recipe.train.precision, self.recipe.train.precision
        if before != now and self.accelerator.is_main_process:
            print(
                f"resuming with precision {before} -> {now}: losses agree in about two digits only; "
                f"--set train.precision={before} resumes exactly",
                file=sys.stderr,
            )


def _union(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both dictionaries in one, those within them likewise; what both have otherwise is the first's."""
    both = {
        key: _union(first[key], second[key]) for key in first.keys() & second.keys() if isinstance(first[key], dict)
    }
    return {**second, **first, **both}


def _inexact(before: state.Split, now: state.Split) -> str:
    """What resuming keeps and what it does not, where the work is split in another way; data report their own."""
    old = before.model_dump()
    changes = ", ".join(f"{key} {old[key]} -> {value}" for key, value in now if old[key] != value)
    return (
        f"resuming with {changes}: learning rate, noise and times of every sample stay the same; sums are taken in "
        "another order, so losses agree in about six digits only (fewer for a VAE, texts and captions)"
    )


@contextmanager
def _stop_signals(run: _Run) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        run.stop = number

    previous: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
        number = getattr(signal, name, None)  # Windows lacks two of them
        if number and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):  # nohup's is left ignored
            previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
