"""What a run reports: metrics.jsonl, skipped.jsonl, TensorBoard, Weights & Biases and the terminal."""

import json
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from accelerate.utils import is_tensorboard_available

from cogview3 import checkpoints
from cogview3.config import Recipe, UserError
from cogview3.training.state import LogState

_FIRST_LINE = 2.0  # seconds of training until the first sign of progress


class Log:
    """Metrics to metrics.jsonl and the trackers, progress to the terminal.

    Trackers: TensorBoard where it is installed, unless COGVIEW3_TENSORBOARD=0; Weights & Biases where COGVIEW3_WANDB
    names a project.

    Attributes:
        flops: operations that the training of one image takes; None where they are not known.
        ceiling: operations a second that all devices reach together in bare matrix products; None likewise.
    """

    def __init__(self, run: Path, recipe: Recipe, enabled: bool) -> None:
        self.run, self.recipe, self.enabled = run, recipe, enabled
        self.path, self.total = run / "metrics.jsonl", recipe.train.images
        self.sums: dict[str, float] = {}  # since the last line, of `count` steps
        self.count, self.skipped, self.rate, self.since = 0, 0, 0.0, 0
        self.begun: tuple[float, int] | None = None  # when the first step was done, and how many images then
        self.shown = False  # whether any progress was reported yet
        self.last_loss: float | None = None
        self.flops: int | None = None
        self.ceiling: float | None = None
        self.trackers: list[GeneralTracker] = []

    def state(self) -> dict[str, Any]:
        """What a run resumes with in the middle of a line, as JSON."""
        return {"count": self.count, "skipped": self.skipped, "sums": self.sums}

    def load_state(self, state: LogState) -> None:
        """The inverse of `state`."""
        self.count, self.sums, self.skipped = state.count, dict(state.sums), state.skipped

    def forget_after(self, images: int) -> None:
        """Drop what was logged after the checkpoint that the run resumes from, half-written lines too."""
        self.since = images
        for path in (self.path, self.run / "skipped.jsonl"):
            if self.enabled and path.exists():
                lines = path.read_text("utf-8", errors="replace").splitlines()
                last = images - (path != self.path)  # a skipped batch is identified by its first image
                kept = [line for line in lines if _images_of(line) <= last]
                checkpoints.write_text(path, "".join(line + "\n" for line in kept))

    def __enter__(self) -> "Log":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
        self.progress = Progress(*columns, console=console, disable=not (self.enabled and console.is_terminal))
        self.progress.start()
        self.task = self.progress.add_task("images", total=self.total, completed=self.since, text="")
        self.clock = time.time()
        self.in_threads, threading.excepthook = threading.excepthook, self._in_threads
        try:
            if self.enabled:
                self._open_trackers()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _in_threads(self, failed: threading.ExceptHookArgs) -> None:
        """Leave out the traceback of TensorBoard's own thread: its error, of a full disk say, is raised by `_line`."""
        if not _is_tensorboards(failed.thread):
            self.in_threads(failed)

    def _open_trackers(self) -> None:
        made: list[GeneralTracker] = []
        if os.environ.get("COGVIEW3_TENSORBOARD", "1") != "0" and is_tensorboard_available():
            # where the run resumes from an earlier checkpoint, what came after it is hidden
            made.append(TensorBoardTracker("tensorboard", self.run, purge_step=self.since + 1))
        if project := wandb_project():
            number = self.run / "wandb.id"  # a resumed run continues its own curves
            if not number.exists():
                checkpoints.write_text(number, uuid.uuid4().hex[:12])
            names = {"name": self.recipe.name, "id": number.read_text("utf-8"), "resume": "allow"}
            config = self.recipe.to_dict()
            made.append(WandBTracker(project, **names, dir=str(self.run), config=config))
        for tracker in made:
            with checkpoints.naming(self.run / tracker.name):
                tracker.start()
            self.trackers.append(tracker)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.progress.stop()
        try:
            for tracker in self.trackers:
                with checkpoints.naming(self.run / tracker.name) if kind is None else suppress(OSError):
                    tracker.finish()
        finally:
            for thread in filter(_is_tensorboards, threading.enumerate()):  # one that fails, as others are closed
                thread.join(1)
            threading.excepthook = self.in_threads

    def add(self, losses: dict[str, float], rate: float, images: int) -> None:
        """A step was made, and `images` are done."""
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count, self.rate = self.count + 1, rate
        self.progress.update(self.task, completed=images)
        if self.begun is None:  # the first step waits for workers to start, and says nothing about the speed
            self.begun = time.time(), images
        elif self.enabled and not self.shown and (now := time.time()) - self.clock >= _FIRST_LINE:
            speed = (images - self.begun[1]) / max(now - self.begun[0], 1e-9)
            self._show(images, {"loss": losses["loss"], "images_per_second": speed})

    def _show(self, images: int, entries: dict[str, float]) -> None:
        """Progress to the terminal: a line, with the time left where the speed is known; or the bar's text."""
        self.shown = True
        speed, loss = entries.get("images_per_second"), entries.get("loss", self.last_loss)
        if self.progress.console.is_terminal:
            if speed:
                self.progress.update(self.task, text=f"{speed:.2f}/s" + (f" loss {loss:.4f}" if loss else ""))
            return
        values = ", ".join(f"{key} {value:.5g}" for key, value in entries.items() if key != "images")
        left = "" if not speed else f", {timedelta(seconds=round((self.total - images) / speed))} left"
        print(f"images {images} of {self.total}, {values}{left}", file=sys.stderr, flush=True)

    def skip(self, reason: str, images: int, samples: list[tuple[int, str]]) -> None:
        """A batch of `samples`, (number, key) each, the first number `images`, was left out, or stops the run."""
        self.skipped += 1
        if not self.enabled:
            return
        indices, keys = zip(*sorted(samples), strict=True)
        entry = {"images": images, "reason": reason, "indices": indices, "keys": keys}
        checkpoints.append_line(self.run / "skipped.jsonl", json.dumps(entry))
        print(f"batch at image {images}: {reason}; see {self.run / 'skipped.jsonl'}", file=sys.stderr, flush=True)

    def write(self, images: int) -> None:
        """A line of the means since the last one."""
        means = {key: value / self.count for key, value in self.sums.items()}
        seconds = max(time.time() - self.clock, 1e-9)
        self.last_loss = means.get("loss", self.last_loss)
        speed = (images - self.since) / seconds
        line = {"images": images, **means, "learning_rate": self.rate, "images_per_second": round(speed, 2)}
        if self.skipped:
            line["skipped_batches"] = self.skipped
        if self.flops and self.ceiling:
            line["ceiling_share"] = round(speed * self.flops / self.ceiling, 4)
        self._line(line)
        self.sums, self.count, self.skipped = {}, 0, 0
        self.clock, self.since = time.time(), images

    def write_figures(self, images: int, figures: dict[str, float]) -> None:
        """A line of a validation's figures."""
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
        checkpoints.append_line(self.path, json.dumps(entries))
        for tracker in self.trackers:
            with checkpoints.naming(self.run / tracker.name):
                tracker.log(entries, step=int(entries["images"]))
        self._show(int(entries["images"]), entries)


def wandb_project() -> str | None:
    """The project that COGVIEW3_WANDB names. Raises UserError where wandb is not installed for it."""
    project = os.environ.get("COGVIEW3_WANDB")
    if project:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise UserError(
                f"COGVIEW3_WANDB={project}: wandb is not installed; pip install wandb, or unset it"
            ) from None
    return project or None


def _is_tensorboards(thread: threading.Thread | None) -> bool:
    return type(thread).__module__.startswith("tensorboard.")


def _images_of(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return math.inf
