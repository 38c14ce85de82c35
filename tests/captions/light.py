"""A writer without a model, which dies, fails and waits where it is told to, and notes what it wrote."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cogview3.captions.rows import FAILED, UNANSWERED, Row, Sample, written
from cogview3.config import UserError


@dataclass(frozen=True)
class LightJob:
    """Captions that tell the key.

    `once` and `always` are keys at which the process kills itself, `hold` one at which it waits for the file "go",
    `broken` one at which it raises, `failing` and `silent` such that get no caption while the file "ill" is there.
    `loads` is False for a model that cannot be loaded, and the words of an error where loading fails by itself.
    """

    folder: Path
    once: str = ""
    always: str = ""
    hold: str = ""
    broken: str = ""
    failing: str = ""
    silent: str = ""
    loads: bool | str = True
    flavor: str = "plain"
    name: str = "light"
    has_budget: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        return {"flavor": self.flavor}

    def load(self, place: int) -> "LightWriter":
        with (self.folder / "loads").open("a") as file:
            file.write(f"{place}\n")
        if isinstance(self.loads, str):
            raise RuntimeError(self.loads)
        if not self.loads:
            raise UserError("this model cannot be loaded")
        return LightWriter(self)

    def log(self) -> list[str]:
        """Keys that were written, repeated ones too."""
        path = self.folder / "log"
        return path.read_text().split() if path.exists() else []


class LightWriter:
    def __init__(self, job: LightJob) -> None:
        self.job = job

    def run(self, samples: Iterable[Sample]) -> Iterator[list[Row]]:
        waiting = (sample for sample in samples if not sample.done)
        while batch := list(islice(waiting, 2)):
            yield [self._write(sample.entry.key, sample.entry.old) for sample in batch]

    def _write(self, key: str, old: str) -> Row:
        job, folder = self.job, self.job.folder
        if key == job.broken:
            raise RuntimeError("the device is on fire")
        died = folder / f"died-{key}"
        if key == job.always or (key == job.once and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if key == job.hold:
            (folder / "held").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
        with (folder / "log").open("a") as file:
            file.write(f"{key}\n")
        if (folder / "ill").exists() and key in (job.failing, job.silent):
            return Row(key, old, None, FAILED if key == job.failing else UNANSWERED, "ill")
        return written(key, old, f"A {job.flavor} caption of {key}, which was {old}.", 5, True)
