"""Inputs and outputs of models that write captions: samples, their prompt, rows of the sidecar, and the interface."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cogview3.data.entries import Entry, admit
from cogview3.data.filters import Filters
from cogview3.data.groups import Group
from cogview3.prompts.answers import is_refusal, plain

OK, CUT, FAILED, UNANSWERED = "ok", "cut", "failed", "unanswered"
"""Status of a row: a new caption; one without an end, of no use; none; none, as the endpoint did not answer."""

MAX_OLD = 1000
"""Characters of an old caption that are read; more is no caption, and would make a whole batch long."""

_REQUEST = "Original caption: {old}. Can you provide a more comprehensive description of the image?"


class CannotGoOn(OSError):
    """Nothing more can be written, by any worker, for the reason that the message gives."""


def admitted(group: Group, keep: Mapping[str, str] | None) -> Entry:
    """The entry of a group that is to get a new caption, whether it has one or not. Raises Broken or Filtered."""
    return admit(group, None, keep, Filters(), needs_caption=False)


@dataclass(frozen=True)
class Sample:
    """A picture that may want a new caption; `done` where it has one, and stands here for its neighbors' sake."""

    entry: Entry
    done: bool = False


def request(old: str) -> str:
    """The prompt of a recaptioner, in training and afterwards (CogView3, section 3.1): the text beside the picture.

    It has the old caption in it, on one line, its first `MAX_OLD` characters.
    """
    return _REQUEST.format(old=" ".join(old.split())[:MAX_OLD].rstrip(". "))


@dataclass(frozen=True)
class Row:
    """A row of the sidecar, and how many tokens were generated for it."""

    key: str  # of the image
    old: str  # the caption that it came with
    new: str | None  # the caption written, also where it has no end; None where there is none
    status: str = OK  # "ok", "cut", "failed" or "unanswered"
    error: str = ""  # why it is not "ok"; "" where it is
    tokens: int = 0  # generated; not kept

    def to_dict(self) -> dict[str, Any]:
        """Plain types, tokens left out."""
        return {name: value for name, value in asdict(self).items() if name != "tokens"}


def written(key: str, old: str, text: str, tokens: int, ended: bool) -> Row:
    """The row of a text that a model wrote, as one bare paragraph (`answers.plain`), as captions are."""
    bare = plain(text)
    if not ended or bare is None:
        return Row(key, old, bare or None, CUT, f"no end after {tokens} tokens", tokens)
    if not bare or is_refusal(bare):
        return Row(key, old, None, FAILED, "the model refused" if bare else "empty caption", tokens)
    return Row(key, old, bare, tokens=tokens)


class Writer(Protocol):
    """A loaded model, or a connection to one."""

    def run(self, samples: Iterable[Sample]) -> Iterator[list[Row]]:
        """Rows of the samples that are not done, some at a time, in any order. What was given out is kept.

        Raises UserError or CannotGoOn where nobody can go on.
        """


class Job(Protocol):
    """How to come by a writer; pickled, and loaded by each worker.

    Attributes:
        name: of the model, for the sidecar.
        settings: plain types on which the texts depend; a sidecar made with others is refused.
        has_budget: whether a worker counts what it spends, so that another one cannot take its place.
    """

    name: str

    @property
    def has_budget(self) -> bool: ...  # noqa: D102

    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102

    def load(self, place: int) -> Writer:
        """The writer of worker number `place`. Raises UserError where the model cannot be used."""
