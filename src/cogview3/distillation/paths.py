"""The teacher's own paths: whole samplings from noise, from whose states a student learns its steps.

The states z_t of a sampler, guided by w and begun with nothing but noise, are not noisy data; they are what a student
will be used on. One path gives a sample for each of the student's steps, with its target z'', and each may be learned
from more than once, so that a teacher costs a fraction of what it does where every sample has steps of its own.

A path is drawn when its first sample is due, and what a resumed run has drawn of its pool is redrawn: what a batch
holds depends on its number and the source's position before the pool, no more.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from cogview3.config import DistillRound
from cogview3.training import parallel
from cogview3.training.objectives import Batch, Interrupted
from cogview3.training.sources import Source

_TOLD_EVERY = 32  # batches


@dataclass(frozen=True)
class _Path:
    """One sampling: its states (n + 1, C, H, W) before each of the student's n steps and at the end, and its givens.

    `order` holds which of the steps is learned at each visit.
    """

    states: Tensor
    given: Batch
    key: str
    order: list[int]


class PathPool:
    """`distill.paths` paths at a time, each state of which comes `distill.visits` times before the next are drawn.

    Sample i of a pool is of path i mod `paths`: the first batches draw their paths, all others come back to them. Every
    path goes through its student's steps in an order of its own.
    """

    def __init__(
        self,
        recipe: DistillRound,
        source: Source,
        take: Callable[[int, list[int]], tuple[Batch, list[str]]],
        draw: Callable[[Batch], Tensor],
        stop_asked: Callable[[], bool],
    ) -> None:
        """A pool that is still empty.

        Args:
            recipe: the round's.
            source: whose position is kept.
            take: noise, guidance, text and all else that samples of the source are drawn with, and their names.
            draw: states (B, n + 1, C, H, W) of the paths of such a batch.
            stop_asked: asked before each; where it says so, drawing is given up by `Interrupted`.
        """
        self._recipe, self._source, self._take, self._draw = recipe, source, take, draw
        self._stop_asked = stop_asked
        self._paths, self._steps = recipe.distill.paths, recipe.distill.steps[1]
        self._length = self._paths * self._steps * recipe.distill.visits  # samples of a pool
        self._number = -1
        self._rows: dict[int, _Path] = {}
        self._drawn = 0  # of the pool's paths, those of other processes among them
        self._before: dict[str, Any] = {}  # the source's position when the pool was begun
        self._next = 0  # the sample after the last batch

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Samples: "z" before and "z_next" after the teacher's way, (B, C, H, W), the step's number "t" and givens."""
        number, place = divmod(first, self._length)
        if number != self._number:
            self._number, self._before, self._rows, self._drawn = number, self._source.state(), {}, 0
        self._draw_until(min(place + self._recipe.train.batch, self._paths))
        self._next = first + self._recipe.train.batch
        rows = [self._rows[index % self._paths] for index in indices]
        steps = [row.order[index % self._length // self._paths] for row, index in zip(rows, indices, strict=True)]
        batch = {name: torch.stack([row.given[name] for row in rows]) for name in rows[0].given}
        batch["t"] = torch.tensor(steps)
        batch["z"] = torch.stack([row.states[step] for row, step in zip(rows, steps, strict=True)])
        batch["z_next"] = torch.stack([row.states[step + 1] for row, step in zip(rows, steps, strict=True)])
        return batch

    def keys(self, indices: list[int]) -> list[str]:
        """Names of samples of the last batch."""
        return [self._rows[index % self._paths].key for index in indices]

    def state(self) -> dict[str, Any]:
        """Where the source has to stand for the next batch."""
        finished = self._next == (self._number + 1) * self._length
        return self._source.state() if finished or self._number < 0 else self._before

    def _order(self, path: int) -> list[int]:
        rng = np.random.default_rng([self._recipe.train.seed, path, 8])
        return [int(number) for number in rng.permutation(self._length // self._paths) % self._steps]

    def _draw_until(self, count: int) -> None:
        """Draw the pool's paths up to the `count`-th, those of this process."""
        process, train = PartialState(), self._recipe.train
        reports = process.is_main_process and count - self._drawn > train.batch
        split = process.process_index, process.num_processes, train.accumulation
        for drawn in range(self._drawn, count, train.batch):
            if self._stop_asked():
                raise Interrupted
            if reports and drawn // train.batch % _TOLD_EVERY == 0:
                print(f"drawing the teacher's paths again: {drawn} of {count}", file=sys.stderr, flush=True)
            start = self._number * self._paths + drawn
            for part in parallel.parts(start, train.batch, *split):
                given, keys = self._take(start, part)
                states = self._draw(given).cpu()
                given = {name: given[name].cpu() for name in given.keys() - {"z0", "noise", "t"}}
                for place, index in enumerate(part):
                    row = {name: value[place] for name, value in given.items()}
                    self._rows[index % self._paths] = _Path(states[place], row, keys[place], self._order(index))
        self._drawn = count
