"""Which batches to skip or stop at: the rule for losses that are not finite, and for spikes."""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from cogview3.config import Train

WINDOW = 100  # steps whose losses the median is of
LEAST = 20  # steps before spikes are looked for


class SpikeRule:
    """Judges each step by its loss, its gradient and the losses before it.

    Attributes:
        in_a_row: steps refused since the last good one.
        losses: of the last good steps, oldest first.
    """

    def __init__(self, train: Train) -> None:
        self.train = train
        self.in_a_row = 0
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def judge(self, loss: float, gradient: float) -> str | None:
        """Why a step of this mean loss and norm of the gradient, before clipping, must not be made; None if it may."""
        reason = self._reason(loss, gradient)
        if reason is None:
            self.losses.append(loss)
        self.in_a_row = 0 if reason is None else self.in_a_row + 1
        return reason

    def _reason(self, loss: float, gradient: float) -> str | None:
        for name, value in (("loss", loss), ("gradient", gradient)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
        if self.train.spike_factor is not None and len(self.losses) >= LEAST:
            usual = median(self.losses)
            if loss > self.train.spike_factor * usual:
                return f"the loss is {loss:.4g}, {loss / usual:.1f} times the median of the last {len(self.losses)}"
        return None

    def must_stop(self) -> bool:
        """Whether the run ends after a refused step."""
        return self.train.on_spike == "stop" or self.in_a_row >= self.train.max_skips

    def remember(self, losses: Iterable[float], in_a_row: int) -> None:
        """Go on as after these losses, oldest first."""
        self.losses.clear()
        self.losses.extend(losses)
        self.in_a_row = in_a_row
