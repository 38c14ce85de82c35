"""The training loop: the same for every objective.

Samples, noise and timesteps depend on (seed, sample index) alone, so a run that was stopped goes on with exactly the
losses it would have had, and how a batch is spread over processes does not matter.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from cogview3 import checkpoints
from cogview3.config import Optimizer, Recipe, UserError
from cogview3.training.objectives import Objective, build


def learning_rate(optimizer: Optimizer, images: int, total: int) -> float:
    """Learning rate after `images` of `total`: linear warm-up, then constant, linear or half-cosine to 0."""
    if images < optimizer.warmup_images:
        return optimizer.learning_rate * (images + 1) / optimizer.warmup_images
    done = (images - optimizer.warmup_images) / max(1, total - optimizer.warmup_images)
    factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return optimizer.learning_rate * factors[optimizer.decay]


def train(
    recipe: Recipe,
    out: Path | None = None,
    restart: bool = False,
    device: str = "auto",
    objective: Callable[[Any], Objective] | None = None,
) -> dict[str, Any]:
    """Run a recipe to its end in the run folder `out`, resuming from its newest checkpoint.

    SIGTERM and SIGINT write a checkpoint before they end it.

    Args:
        recipe: what to train.
        out: the run folder; runs/<recipe's name> by default.
        restart: move an existing run aside first.
        device: "auto" or "cpu".
        objective: makes the recipe's objective; `training.objectives.build` by default.

    Returns:
        {"run", "images", "loss", "validation", "seconds"}: images seen, the last logged mean loss (None where nothing
        was left to train), the figures of the last validation.

    Raises:
        UserError: a folder of another recipe, or a damaged checkpoint.
        FloatingPointError: the loss or its gradient is no longer finite.
        SystemExit, KeyboardInterrupt: after SIGTERM (code 143) and SIGINT.
    """
    run = Path(out) if out else Path("runs") / recipe.name
    accelerator = Accelerator(mixed_precision=recipe.train.precision, cpu=device == "cpu")
    if recipe.train.batch % accelerator.num_processes:
        raise UserError(
            f"train.batch {recipe.train.batch} does not divide among {accelerator.num_processes} processes; "
            "change it with --set train.batch=N"
        )
    if not restart:
        checkpoints.check_run(run, recipe.to_dict())
    built = (objective or build)(recipe)  # first, so that a wrong reference in the recipe leaves no run behind
    if accelerator.is_main_process:
        checkpoints.open_run(run, recipe.to_dict(), restart)
    accelerator.wait_for_everyone()
    return _Run(recipe, run, built, accelerator).go()


class _Run:
    """State of one run: objective, optimizer, EMA and the number of images seen."""

    def __init__(self, recipe: Recipe, run: Path, objective: Objective, accelerator: Accelerator) -> None:
        self.recipe, self.run, self.objective, self.accelerator = recipe, run, objective, accelerator
        with accelerator.main_process_first():
            self.objective.prepare(str(accelerator.device))
        parameters = [p for p in self.objective.trained.parameters() if p.requires_grad]
        optimizer = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self.objective.to(accelerator.device)
        self.ema = EMAModel(
            self.objective.trained.parameters(), decay=optimizer.ema_decay, use_ema_warmup=True, power=0.75
        )
        self.log = _Log(run, recipe.train.images, accelerator.is_main_process)
        self.images = 0
        found = checkpoints.checkpoints(run)
        if found:
            self._load(found[-1][1])
        self.saved = self.images
        self.log.forget_after(self.images)
        self.module = accelerator.prepare_model(self.objective)
        self.stop: int | None = None

    def go(self) -> dict[str, Any]:
        recipe, start, begun = self.recipe, time.time(), self.images
        figures: dict[str, float] = {}
        with _stop_signals(self), self.log:
            while self.images < recipe.train.images and self.stop is None:
                figures = self._advance() or figures
            if self.images != self.saved:
                self._save()
            if self.images == begun and self.stop is None:  # finished earlier, perhaps cut off while writing weights
                figures = self._validate()
                self._save_weights()
        if self.stop is not None:
            print(f"stopped at {self.images} images; the same command resumes", file=sys.stderr)
            raise KeyboardInterrupt if self.stop == signal.SIGINT else SystemExit(128 + self.stop)
        result = {"run": str(self.run), "images": self.images, "loss": self.log.last_loss, "validation": figures}
        return {**result, "seconds": round(time.time() - start, 1)}

    def _advance(self) -> dict[str, float]:
        """One step, and what is due after it; gives the figures of a validation. At the end, everything is due."""
        before, train = self.images, self.recipe.train
        self.log.add(self._step(), self.optimizer.param_groups[0]["lr"], self.images)

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

    def _step(self) -> dict[str, torch.Tensor]:
        recipe, accelerator = self.recipe, self.accelerator
        count = min(recipe.train.batch, recipe.train.images - self.images)
        indices = list(range(self.images, self.images + count))[accelerator.process_index :: accelerator.num_processes]
        batch = self.objective.batch(self.images, indices or [self.images])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe.optimizer, self.images, recipe.train.images)
        with accelerator.autocast():
            losses = self.module({key: value.to(accelerator.device) for key, value in batch.items()})
        self._require_finite("loss", losses["loss"])
        accelerator.backward(losses["loss"])
        norm = torch.nn.utils.clip_grad_norm_(self.objective.trained.parameters(), recipe.optimizer.clip)
        self._require_finite("gradient", norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.objective.trained.parameters())
        self.images += count
        return {**{key: value.detach() for key, value in losses.items()}, "gradient": norm}

    def _require_finite(self, name: str, value: torch.Tensor) -> None:
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the {name} is {value.item()} at image {self.images}; lower optimizer.learning_rate and --restart"
            )

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        parameters = list(self.objective.trained.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.objective.eval()
        try:
            yield
        finally:
            self.ema.restore(parameters)
            self.objective.train()

    def _validate(self) -> dict[str, float]:
        if not self.accelerator.is_main_process:
            return {}
        with self._averaged():
            figures = self.objective.validate()
            grid = self.objective.samples()
        if grid is not None:
            with checkpoints.whole_file(self.run / "samples" / f"images-{self.images}.png") as path:
                grid.save(path)
        return figures

    def _save(self) -> None:
        self.saved = self.images
        self.states = gather_object([self.objective.state()])
        if self.accelerator.is_main_process:
            checkpoints.save_checkpoint(self.run, self.images, self.recipe.train.keep_checkpoints, self._write)
            self._save_weights()

    def _save_weights(self) -> None:
        if self.accelerator.is_main_process:
            with self._averaged(), checkpoints.whole_folder(self.run / "weights") as folder:
                self.objective.save(folder)

    def _write(self, folder: Path) -> None:
        trained = self.objective.trained
        save_file(_named(_own_state(trained)), folder / "model.safetensors")
        names = [name for name, _ in trained.named_parameters()]
        save_file(_named(dict(zip(names, self.ema.shadow_params, strict=True))), folder / "ema.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        pending = {"count": self.log.count, "sums": self.log.sums}
        state = {"images": self.images, "ema_steps": self.ema.optimization_step, "log": pending}
        state["fingerprint"] = self.objective.fingerprint()
        state["objective"] = self.states
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def _load(self, folder: Path) -> None:
        state = checkpoints.read_state(folder)
        if state.get("fingerprint", self.objective.fingerprint()) != self.objective.fingerprint():
            raise UserError(f"{self.run} was trained with another vocabulary of captions; begin anew with --restart")
        trained = self.objective.trained
        try:
            state_dict = load_file(folder / "model.safetensors")
            if state_dict.keys() != _own_state(trained).keys():
                raise ValueError("its tensor names are not this model's")
            trained.load_state_dict(state_dict, strict=False)
            averaged = load_file(folder / "ema.safetensors")
            shadow = [averaged[name] for name, _ in trained.named_parameters()]
            stored = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(stored)
            self.images, self.ema.optimization_step = state["images"], state["ema_steps"]
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"checkpoint {folder} is damaged ({reason}); delete it to go on from the one before"
            ) from error
        self.ema.shadow_params = [value.to(self.accelerator.device) for value in shadow]
        states = state.get("objective", [{}])
        self.objective.load_state(states[self.accelerator.process_index % len(states)])
        if "log" in state:
            self.log.count, self.log.sums = state["log"]["count"], state["log"]["sums"]


def _own_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dictionary with each tied tensor once."""
    names = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    return {name: value for name, value in module.state_dict().items() if name in names}


def _named(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


@contextmanager
def _stop_signals(run: _Run) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        run.stop = number

    previous: dict[int, Callable | int | None] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Log:
    """Metrics to metrics.jsonl and TensorBoard, progress to the terminal."""

    def __init__(self, run: Path, total: int, enabled: bool) -> None:
        self.path, self.total, self.enabled = run / "metrics.jsonl", total, enabled
        self.sums: dict[str, float] = {}  # since the last line, of `count` steps
        self.count, self.rate, self.since = 0, 0.0, 0
        self.last_loss: float | None = None
        self.board: Any = None

    def forget_after(self, images: int) -> None:
        """Drop what was logged after the checkpoint that the run goes on from, half-written lines too."""
        self.since = images
        if self.enabled and self.path.exists():
            lines = self.path.read_text("utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _images_of(line) <= images]
            checkpoints.write_text(self.path, "".join(line + "\n" for line in kept))

    def __enter__(self) -> "_Log":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self.progress = Progress(*columns, console=console, disable=not (self.enabled and console.is_terminal))
        self.progress.start()
        self.task = self.progress.add_task("images", total=self.total, completed=self.since, text="")
        self.clock = time.time()
        if self.enabled and os.environ.get("COGVIEW3_TENSORBOARD", "1") != "0":
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self.since + 1)
            except ImportError:
                self.board = None
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        if self.board is not None:
            self.board.close()

    def add(self, losses: dict[str, torch.Tensor], rate: float, images: int) -> None:
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + value.item()
        self.count, self.rate = self.count + 1, rate
        self.progress.update(self.task, completed=images)

    def write(self, images: int) -> None:
        means = {key: value / self.count for key, value in self.sums.items()}
        seconds = max(time.time() - self.clock, 1e-9)
        self.last_loss = means["loss"]
        speed = round((images - self.since) / seconds, 2)
        self._line({"images": images, **means, "learning_rate": self.rate, "images_per_second": speed})
        self.progress.update(self.task, text=f"{speed}/s loss {self.last_loss:.4f}")
        self.sums, self.count, self.clock, self.since = {}, 0, time.time(), images

    def write_figures(self, images: int, figures: dict[str, float]) -> None:
        self._line({"images": images, **{f"validation/{key}": value for key, value in figures.items()}})

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Leave the time within the block out of `images_per_second`."""
        start = time.time()
        yield
        self.clock += time.time() - start

    def _line(self, entries: dict[str, float]) -> None:
        if not self.enabled:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entries) + "\n")
        if self.board is not None:
            for key, value in entries.items():
                self.board.add_scalar(key, value, entries["images"])
        if not self.progress.console.is_terminal:
            shown = ", ".join(f"{key} {value:.5g}" for key, value in entries.items())
            print(f"{shown} (of {self.total})", file=sys.stderr, flush=True)


def _images_of(line: str) -> float:
    try:
        return json.loads(line)["images"]
    except json.JSONDecodeError:
        return math.inf
