"""Counts of the samples that were read, by reason, and the rule that stops at too many broken ones."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cogview3.config import UserError

NO_CAPTION = "missing caption"
"""Reason against a picture that nothing says anything of; no verdict on the picture, which may be captioned later."""


MOST_REASONS, MAX_REASON, OTHERS = 32, 64, "other reasons"
"""Reasons that are told apart and their characters, since a keep sidecar may give each sample its own; the rest."""


class Skipped(ValueError):
    """A sample that is not given out; the message is the reason that it is counted under."""


class Broken(Skipped):
    """A sample that something is wrong with."""


class Filtered(Skipped):
    """A sample that is left out on purpose."""


@dataclass
class Report:
    """Counts of samples."""

    samples: int = 0  # given out
    # skipped because something is wrong with them, by reason. A tar that is cut or missing counts once
    broken: Counter[str] = field(default_factory=Counter)
    # skipped on purpose, by a filter's or a keep sidecar's reason
    filtered: Counter[str] = field(default_factory=Counter)
    # given out, but corrected or lacking something, by what was done
    corrected: Counter[str] = field(default_factory=Counter)

    def skip(self, reason: Skipped) -> None:
        """Count a sample that is not given out."""
        counts, text = self.broken if isinstance(reason, Broken) else self.filtered, str(reason)[:MAX_REASON]
        counts[text if text in counts or len(counts) < MOST_REASONS else OTHERS] += 1

    def give(self, corrected: Iterable[str]) -> None:
        """Count a sample that is used, and what was corrected in it."""
        self.samples += 1
        self.corrected.update(corrected)

    def add(self, other: "Report") -> None:
        """Add another report's counts to these."""
        self.samples += other.samples
        self.broken.update(other.broken)
        self.filtered.update(other.filtered)
        self.corrected.update(other.corrected)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, reasons by falling count."""
        counts = {name: dict(getattr(self, name).most_common()) for name in ("broken", "filtered", "corrected")}
        return {"samples": self.samples, **counts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        counts = [data.get("samples"), *(data.get(name) for name in ("broken", "filtered", "corrected"))]
        if not isinstance(counts[0], int) or not all(map(_are_counts, counts[1:])):
            raise ValueError("it holds no counts of samples")
        return cls(counts[0], *map(Counter, counts[1:]))


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(count, int) for count in value.values())


def listed(counts: Mapping[str, int]) -> str:
    """Reasons and counts in one line, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in Counter(counts).most_common()) or "none"


class Tolerance:
    """How much may be broken: a share of the last `window` samples, filtered ones left out.

    Judged once `window` samples were seen. Raises UserError for a share outside [0, 1] or a window below 1.
    """

    def __init__(self, share: float = 0.1, window: int = 1000) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"broken share {share}: give 0 (none may be broken) to 1 (all may)")
        if window < 1:
            raise UserError(f"broken window {window}: give 1 sample or more")
        self.share = share
        self.window = window
        self._last: deque[bool] = deque(maxlen=window)
        self._broken = 0

    def see(self, broken: bool, report: Report) -> None:
        """Count one sample. Raises UserError with the report's reasons where too many of the last are broken."""
        if len(self._last) == self.window:
            self._broken -= self._last[0]
        self._last.append(broken)
        self._broken += broken
        self._judge(report)

    def turn(self, broken: bool, report: Report) -> None:
        """A sample that was counted as good is broken after all, or else left out. Raises UserError as `see` does."""
        for index in range(len(self._last) - 1, -1, -1):
            if not self._last[index]:
                break
        else:  # it has left the window
            if broken:
                self.see(True, report)
            return
        if not broken:
            del self._last[index]
            return
        self._last[index] = True
        self._broken += 1
        self._judge(report)

    def _judge(self, report: Report) -> None:
        if len(self._last) == self.window and self._broken > self.share * self.window:
            raise UserError(
                f"{self._broken} of the last {self.window} samples are broken, more than {self.share:.0%}: "
                f"{listed(report.broken)}; repair the data, run `cogview3 data filter`, or allow a larger share"
            )

    def state_dict(self) -> str:
        """The window as text, oldest first: 1 for a broken sample."""
        return "".join("01"[broken] for broken in self._last)

    def load_state_dict(self, state: str) -> None:
        """Resume from a window that `state_dict` gave."""
        self._last = deque((flag == "1" for flag in state), maxlen=self.window)
        self._broken = sum(self._last)
