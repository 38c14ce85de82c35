"""Captions written by a model behind an OpenAI-compatible chat endpoint, several requests at once."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from cogview3.captions.instruction import shown
from cogview3.captions.rows import FAILED, UNANSWERED, CannotGoOn, Row, Sample, request, written
from cogview3.config import UserError
from cogview3.data.report import Skipped
from cogview3.prompts.answers import lacks_end, plain
from cogview3.prompts.budget import Budget, Price
from cogview3.prompts.endpoint import Endpoint, EndpointError, GaveUp, Refused, Retry, Unusable

MOST_IN_A_ROW = 10
"""Pictures without an answer one after the other, after which the endpoint counts as gone."""

_REFUSED = "refused: "


@dataclass(frozen=True)
class EndpointJob:
    """An endpoint to ask. Its model is asked what a fine-tuned recaptioner is asked."""

    url: str  # this and the next four: as `prompts.endpoint.Endpoint` takes them
    name: str
    key_env: str | None = None
    timeout: float = 120.0
    tries: int = 6
    requests: int = 8  # at once, of each worker
    side: int = 768  # pixels that the larger side of a picture is brought down to
    seed: int = 0  # sent along, with the temperature; what the endpoint makes of it is its own affair
    temperature: float = 0.0  # 0 asks for the likeliest
    max_new_tokens: int | None = None  # of a caption; None leaves it to the endpoint
    limits: tuple[int | None, int | None, float | None] = (None, None, None)  # requests, tokens, money of a worker
    price: tuple[float, float] | None = None  # of a million tokens of prompts and of completions
    fields: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise UserError(f"requests {self.requests}: give 1 or more at once")
        self.connect()  # what is wrong with it is told now

    @property
    def settings(self) -> dict[str, Any]:
        """What the texts depend on, as far as this side can tell."""
        return {
            "endpoint_model": self.name,
            "request": request(""),
            "side": self.side,
            "seed": self.seed if self.temperature else None,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "fields": dict(self.fields),
        }

    @property
    def has_budget(self) -> bool:
        """Whether there are limits."""
        return any(limit is not None for limit in self.limits)

    def connect(self) -> Endpoint:
        """A connection. Raises UserError as `Endpoint` does."""
        fixed: dict[str, Any] = {"temperature": self.temperature}
        if self.temperature:
            fixed["seed"] = self.seed % 2**31
        if self.max_new_tokens is not None:
            fixed["max_tokens"] = self.max_new_tokens
        return Endpoint(
            self.url,
            self.name,
            key_env=self.key_env,
            timeout=self.timeout,
            retry=Retry(tries=self.tries),
            budget=Budget(*self.limits, Price(*self.price) if self.price else None),
            extra=fixed | dict(self.fields),
        )

    def load(self, place: int) -> "EndpointWriter":
        """A connection of worker `place`."""
        return EndpointWriter(self.connect(), self)


class EndpointWriter:
    """Asks an endpoint about one picture after the other, `requests` at a time."""

    def __init__(self, endpoint: Endpoint, job: EndpointJob) -> None:
        self.endpoint, self.job = endpoint, job
        self._in_a_row, self._refused = 0, 0
        self._answered = False
        self._held: list[Row] = []

    def run(self, samples: Iterable[Sample]) -> Iterator[list[Row]]:
        """As `rows.Writer.run`, each as its answer comes."""
        waiting = (sample for sample in samples if not sample.done)
        asked: set[Future[Row]] = set()
        with ThreadPoolExecutor(self.job.requests) as pool:
            try:
                while True:
                    asked |= {pool.submit(self._ask, s) for s in islice(waiting, self.job.requests - len(asked))}
                    if not asked:
                        yield self._released()
                        return
                    finished, asked = wait(asked, return_when=FIRST_COMPLETED)
                    yield from self._told(finished)
            except GeneratorExit:
                self.endpoint.stop.set()
                raise
            except Exception as error:
                self.endpoint.stop.set()
                rows = [each.result() for each in wait(asked).done if each.exception() is None]  # they are paid for
                yield [row for row in rows if self._answered or not row.error.startswith(_REFUSED)]
                if isinstance(error, EndpointError):
                    raise CannotGoOn(str(error)) from None
                raise

    def _told(self, finished: Iterable[Future[Row]]) -> Iterator[list[Row]]:
        """The rows that came; then the error, if one did.

        Raises GaveUp where too many in a row went unanswered, Unusable where the first ones were all refused.
        """
        errors = [error for each in finished if (error := each.exception())]
        rows = [each.result() for each in finished if not each.exception()]
        if not self._answered:
            refused = [row for row in rows if row.error.startswith(_REFUSED)]
            rows = [row for row in rows if row not in refused]
            self._held += refused
            self._refused += len(refused)
            if self._refused >= MOST_IN_A_ROW:
                raise Unusable(f"{refused[-1].error}; and so for the first {self._refused} pictures")
        else:
            rows = self._released() + rows
        yield rows
        for error in errors:
            raise error
        for row in rows:
            self._in_a_row = self._in_a_row + 1 if row.status == UNANSWERED else 0
            if self._in_a_row >= MOST_IN_A_ROW:
                raise GaveUp(f"{row.error}; and so for {MOST_IN_A_ROW} pictures in a row")

    def _released(self) -> list[Row]:
        """Rows that were held back: refusals before the first answer, when it may be the request that is wrong.

        Without an answer by the end of a shard nobody knows: a later run asks again.
        """
        held, self._held = self._held, []
        return held if self._answered else [replace(row, status=UNANSWERED) for row in held]

    def _ask(self, sample: Sample) -> Row:
        entry = sample.entry
        try:
            image = entry.decode().image
        except Skipped as reason:
            return Row(entry.key, entry.old, None, FAILED, str(reason))
        try:
            answer = self.endpoint.chat([shown(image, self.job.side, request(entry.old))])
        except Refused as error:
            return Row(entry.key, entry.old, None, FAILED, f"{_REFUSED}{error}")
        except GaveUp as error:
            return Row(entry.key, entry.old, None, UNANSWERED, str(error))
        self._answered = True
        tokens = answer.usage.completion_tokens
        if answer.refused:
            return Row(entry.key, entry.old, None, FAILED, "the model refused", tokens)
        ended = not answer.cut and not lacks_end(plain(answer.text) or "", answer.finish)
        return written(entry.key, entry.old, answer.text, tokens, ended)
