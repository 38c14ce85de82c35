"""A client of OpenAI-compatible chat endpoints: hosted models, or vLLM, llama.cpp, Ollama on your own machine.

It retries by itself, as every request must be counted, waited for, and known to have been paid or not: a library's own
retries hide that. The key comes from an environment variable, and is cut out of whatever a server sends back.
"""

import json
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cogview3.config import UserError
from cogview3.prompts import addresses, replies
from cogview3.prompts.addresses import DEFAULT_KEY, is_private
from cogview3.prompts.budget import Budget, Usage
from cogview3.prompts.replies import Answer
from cogview3.prompts.transport import MAX_ANSWER, Poster, Response, library

_TRANSIENT = {408, 409, 425, 429}  # 409: an earlier try with the same Idempotency-Key is still at work
_HOPELESS = {401, 402, 403, 404, 405, 410, 501}
_WHATEVER_IS_ASKED = _TRANSIENT | {401, 402, 403, 502, 503, 504, 529}
"""Statuses of keys, credit, load and what stands between: they say nothing about what was asked."""

_OF_THE_FORM = re.compile(r"response.?format|schema|grammar|structured|implemented|parameter", re.IGNORECASE)
_TRIES_WITH_SCHEMA = 2
"""Failures of a server that may be due to a schema, before it is asked without."""

Message = Mapping[str, Any]
"""Of a chat, as the endpoint takes it: {"role": ..., "content": ...}."""


class EndpointError(OSError):
    """No answer came, for the reason that the message gives.

    Attributes:
        status: of HTTP, or that its body named; None where there was no answer at all, or it says nothing.
        usage: what was spent on it.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status, self.usage = status, Usage()


class Refused(EndpointError):
    """The endpoint does not answer this request; it may answer others."""


class Unusable(EndpointError):
    """The endpoint answers no request: a wrong key or model, no credit, not a chat endpoint."""


class GaveUp(EndpointError):
    """All tries failed."""


class Spent(EndpointError):
    """The budget leaves nothing for a further request."""


class Stopped(EndpointError):
    """Whoever waited asked to stop."""


@dataclass(frozen=True)
class Retry:
    """How failures that may pass are met: rate limits, faults of the server, time-outs, dropped connections."""

    tries: int = 6  # requests until it is given up, the first one included
    first: float = 1.0  # seconds before the second; doubled each time, and then drawn from half of that to all of it
    longest: float = 60.0  # most seconds of that
    patience: float = 600.0  # most seconds that the endpoint may ask for (Retry-After); for more it is given up at once

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise UserError(f"tries {self.tries}: give 1 or more")
        for name in ("first", "longest", "patience"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)}: give seconds, 0 or more")


class _Failure(Exception):
    """A try that may be repeated, but not before `wait` seconds, where the endpoint says so."""

    def __init__(self, reason: str, wait: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.wait, self.status = wait, status


@dataclass
class Endpoint:
    """A chat endpoint with one of its models. Threads may share it.

    Raises:
        UserError: not an address of http or https, one with a password in it, an unset or unprintable key, a time-out
            of 0 or less, fields that are not the user's to set, or the HTTP library is missing.
    """

    url: str  # address up to and with "/v1", or of the chat completions themselves
    model: str  # the model's name there
    key_env: str | None = None  # variable of the key; None takes `DEFAULT_KEY` if nobody can read it on its way
    timeout: float = 120.0  # seconds for one request, its whole answer included
    retry: Retry = Retry()  # what is done about failures that may pass
    budget: Budget = field(default_factory=Budget)  # what may be spent; shared by all that asks
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of each request, such as {"temperature": 0}
    stop: threading.Event = field(default_factory=threading.Event)  # set it to end waiting, but for requests under way

    def __post_init__(self) -> None:
        self.url = addresses.chat_address(self.url)
        if not self.model:
            raise UserError("the endpoint's model is not named; give the name that the endpoint knows it by")
        if not 0 < self.timeout < float("inf"):
            raise UserError(f"timeout {self.timeout}: give seconds above 0")
        if taken := sorted({"model", "messages", "response_format", "stream", "n"} & self.extra.keys()):
            raise UserError(f"fields {','.join(taken)}: not to be set; give other fields, such as temperature")
        self._key = addresses.read_key(self.key_env) if self.key_env or is_private(self.url) else None
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        self._poster = Poster(self.url, headers, self.timeout)
        self.takes_schema: bool | None = None  # whether it accepts a JSON schema for its answers; None until asked
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._random = random.Random()

    @property
    def shown(self) -> str:
        """The address without its query, for messages."""
        return addresses.shown(self.url)

    def chat(self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None) -> Answer:
        """The model's answer to a conversation.

        Args:
            messages: of the conversation.
            schema: JSON schema that the answer should keep to. An endpoint that refuses such requests, or fails at
                them, and answers them without, is not sent one again.

        Raises:
            Refused, Unusable, GaveUp, Stopped, Spent: no answer.
        """
        body = {"model": self.model, "messages": list(messages), "stream": False, **self.extra}
        if schema is None or self.takes_schema is False:
            return self._persist(body)
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        unsure = self.takes_schema is None
        try:
            answer = self._persist(body | {"response_format": form}, unsure)
        except (Refused, Unusable, GaveUp) as error:
            if not unsure or not _may_be_due_to_schema(error.status, str(error)):
                raise
            before = error.usage
        else:
            self.takes_schema = True
            return answer
        try:
            answer = self._persist(body)
        except EndpointError as error:
            error.usage += before
            raise
        if self.takes_schema is None:  # another thread may have had an answer with it meanwhile
            self.takes_schema = False
        return replace(answer, usage=before + answer.usage)

    def _persist(self, body: Mapping[str, Any], unsure: bool = False) -> Answer:
        """Ask until there is an answer, a reason why there will be none, or no try left.

        All tries carry one Idempotency-Key, by which servers that know it bill a request once. Where it is `unsure`
        whether the endpoint takes a schema, its failures are not met by all tries.
        """
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
        usage, failure = Usage(), None
        try:
            for number in range(self.retry.tries):
                self._wait_before(number, failure)
                if reason := self.budget.reserve():
                    raise Spent(reason)
                usage += Usage(requests=1)
                tokens, answered = None, False
                try:
                    data = self._post(content, headers)
                    tokens = replies.tokens(data)
                    text, finish, refusal = replies.first_choice(data)
                    answered = True
                except (_Failure, replies.Malformed) as error:
                    failure = error if isinstance(error, _Failure) else _Failure(str(error))
                    self._heed(failure)
                    enough = number + 1 >= _TRIES_WITH_SCHEMA or _OF_THE_FORM.search(str(failure))
                    if unsure and enough and _may_be_due_to_schema(failure.status, str(failure)):
                        break
                    continue
                finally:
                    usage += self.budget.settle(tokens, answered)
                given = (body.get("max_tokens"), body.get("max_completion_tokens"))
                most = min((each for each in given if isinstance(each, int)), default=None)
                return Answer(self._hide(text), finish, self._hide(refusal), usage, most)
            tries = usage.requests
            attempts = "one try" if tries == 1 else f"{tries} tries"
            raise GaveUp(
                f"{self.shown}: {failure}; given up after {attempts}", None if failure is None else failure.status
            )
        except EndpointError as error:
            error.usage = usage
            raise

    def _heed(self, failure: _Failure) -> None:
        """Let whoever asks next wait as long as the endpoint asked."""
        if failure.wait is not None and failure.wait <= self.retry.patience:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + failure.wait)

    def _wait_before(self, number: int, failure: _Failure | None) -> None:
        """Wait before try `number`, of 0 on: back off after a failure, and as long as the endpoint asked anyone to.

        Raises GaveUp where it asks for too long, Stopped where `stop` is set.
        """
        delay = 0.0
        if failure is not None:
            delay = min(self.retry.longest, self.retry.first * 2 ** min(number - 1, 64)) * self._random.uniform(0.5, 1)
            if (failure.wait or 0) > self.retry.patience:
                raise GaveUp(f"{self.shown}: {failure}; it asks to wait {failure.wait:.0f} s, which is too long")
        while True:
            with self._lock:
                asked = self._not_before - time.monotonic()
            if asked > 0:  # those who wait do not come back all at once
                delay = max(delay, asked + self._random.uniform(0, self.retry.first))
            if self.stop.wait(delay) if delay > 0 else self.stop.is_set():
                raise Stopped("stopped")
            if delay <= 0:
                return
            delay = 0.0

    def _post(self, content: bytes, headers: Mapping[str, str]) -> Any:
        """The JSON of a successful answer. Raises _Failure, Refused or Unusable."""
        http = library()
        try:
            response = self._poster.post(content, headers)
        except (TimeoutError, http.TimeoutException):
            raise _Failure(f"no whole answer in {self.timeout:g} s") from None
        except http.TransportError as error:
            raise _Failure(self._said(f"no connection, or a dropped one ({error or type(error).__name__})")) from None
        except (http.InvalidURL, UnicodeError) as error:
            raise Unusable(self._said(f"{self.shown}: not an address ({error})")) from None
        except http.HTTPError as error:
            raise _Failure(self._said(f"an unreadable answer ({error})")) from None
        if len(response.content) > MAX_ANSWER:
            raise Refused(f"{self.shown}: an answer of more than {MAX_ANSWER} bytes")
        return self._checked(response)

    def _checked(self, response: Response) -> Any:
        """The JSON of a response. Raises what its status, or an error in its body, stands for."""
        data = replies.parse(response.content)
        fault, status = replies.error_in(data), response.status
        fine = 200 <= status < 300
        if fine and fault:
            status = replies.status_in(fault) or status
        if fine and not fault:
            return data
        said = self._said(replies.message(data) or response.content.decode("utf-8", "replace"))
        message = f"HTTP {status}" + f" ({said})" * bool(said)
        no_credit = isinstance(fault, dict) and fault.get("code") == "insufficient_quota"
        passing = status in _TRANSIENT or status >= 500 or 200 <= status < 300
        if passing and not no_credit and status not in _HOPELESS:
            raise _Failure(message, replies.retry_after(response.headers), status)
        if status in (401, 403) and not self._key:
            message += f"; no key was sent: {self._how_to_send_one()}"
        kind = Unusable if status in _HOPELESS or 300 <= status < 400 or no_credit else Refused
        raise kind(f"{self.shown}: {message}", 402 if no_credit else status)

    def _how_to_send_one(self) -> str:
        if os.environ.get(DEFAULT_KEY) and not is_private(self.url):
            return f"{DEFAULT_KEY} goes over https alone unless it is named as the key's variable"
        return f"set {DEFAULT_KEY}"

    def _said(self, text: str) -> str:
        """What the other side said, in a line and without the key."""
        return replies.in_a_line(self._hide(text))

    def _hide(self, text: str) -> str:
        """The text without the key, should it hold it."""
        return text.replace(self._key.get_secret_value(), "[key]") if self._key else text


def _may_be_due_to_schema(status: int | None, said: str) -> bool:
    """Whether a failure may pass where the same is asked without a schema."""
    return status is not None and (status not in _WHATEVER_IS_ASKED or bool(_OF_THE_FORM.search(said)))
