"""A client of OpenAI-compatible chat endpoints: hosted models, or vLLM, llama.cpp, Ollama on a machine of one's own.

It speaks HTTP itself, as every request must be counted, waited for, and known to have been paid or not: a library's
own retries hide that. The key comes from an environment variable, and is cut out of whatever a server sends back.
"""

import json
import os
import random
import re
import threading
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from cogview3.config import UserError
from cogview3.prompts.budget import Budget, Usage

DEFAULT_KEY = "OPENAI_API_KEY"
"""The environment variable of the key, where none is named; without it no key is sent."""

MAX_ANSWER = 2**25
"""Bytes; a longer answer is not read to its end."""

_TRANSIENT = {408, 409, 425, 429}  # 409: an earlier try with the same Idempotency-Key is still at work
_HOPELESS = {401, 402, 403, 404, 405, 410, 501}

Message = Mapping[str, Any]
"""Of a chat, as the endpoint takes it: {"role": ..., "content": ...}."""


class EndpointError(OSError):
    """No answer came, for the reason that the message gives. `usage` is what was spent on it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.usage = Usage()


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
    """How failures that may pass are met: rate limits, faults of the server, time-outs, dropped connections.

    Attributes:
        tries: requests until it is given up, the first one included.
        first: seconds before the second; doubled each time, and then drawn from half of that to all of it.
        longest: most seconds of that.
        patience: most seconds that the endpoint may ask for (Retry-After); for more it is given up at once.
    """

    tries: int = 6
    first: float = 1.0
    longest: float = 60.0
    patience: float = 600.0

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise UserError(f"tries {self.tries}: give 1 or more")
        for name in ("first", "longest", "patience"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)}: give seconds, 0 or more")


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        text: of the first choice; "" where there is none.
        finish: why it ends there, such as "stop", "length" or "content_filter".
        refusal: the model's own words against answering.
        usage: spent on it, failed tries included.
    """

    text: str
    finish: str
    refusal: str
    usage: Usage


class _Failure(Exception):
    """A try that may be repeated, but not before `wait` seconds, where the endpoint says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass
class Endpoint:
    """A chat endpoint with one of its models. Threads may share it.

    Args:
        url: address up to and with "/v1", or of the chat completions themselves.
        model: the model's name there.
        key_env: environment variable of the key; None takes `DEFAULT_KEY` if that is set and the address is of https
            or of this machine, where nobody can read it on its way.
        timeout: seconds for one request, its whole answer included.
        retry: what is done about failures that may pass.
        budget: what may be spent; shared by all that asks.
        extra: further fields of each request, such as {"temperature": 0}.
        stop: set it to end waiting; requests under way are then still waited for.

    Raises:
        UserError: not an address of http or https, one with a password in it, an unset or unprintable key, a time-out
            of 0 or less, fields that are not the user's to set, or the HTTP library is missing.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout: float = 120.0
    retry: Retry = Retry()
    budget: Budget = field(default_factory=Budget)
    extra: Mapping[str, Any] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.url = chat_address(self.url)
        if not self.model:
            raise UserError("the endpoint's model is not named; give the name that the endpoint knows it by")
        if not 0 < self.timeout < float("inf"):
            raise UserError(f"timeout {self.timeout}: give seconds above 0")
        if taken := sorted({"model", "messages", "response_format", "stream", "n"} & self.extra.keys()):
            raise UserError(f"{', '.join(taken)}: not to be set; give other fields, such as temperature")
        self._key = read_key(self.key_env) if self.key_env or is_private(self.url) else None
        self._http = _library()
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        self._client = self._http.Client(
            headers=headers,
            timeout=self.timeout,
            limits=self._http.Limits(max_connections=None),
            trust_env=not is_here(self.url),  # whose proxy would be given the key
            verify=self.url.startswith("https:"),  # else the system's certificates are loaded for nothing
        )
        weakref.finalize(self, self._client.close)
        self._takes_schema: bool | None = None
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._random = random.Random()

    @property
    def takes_schema(self) -> bool | None:
        """Whether it accepts a JSON schema for its answers; None until it was asked."""
        return self._takes_schema

    @property
    def shown(self) -> str:
        """The address without its query, for messages."""
        return urlunsplit(urlsplit(self.url)._replace(query=""))

    def chat(self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None) -> Answer:
        """The model's answer to a conversation.

        Args:
            messages: of the conversation.
            schema: JSON schema that the answer should keep to. An endpoint that refuses such requests, and answers
                them without, is not sent one again.

        Raises:
            Refused, Unusable, GaveUp, Stopped, Spent: no answer.
        """
        body = {"model": self.model, "messages": list(messages), **self.extra}
        if schema is None or self._takes_schema is False:
            return self._persist(body)
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        try:
            answer = self._persist(body | {"response_format": form})
        except Refused as error:
            if self._takes_schema:
                raise
            before = error.usage
        else:
            self._takes_schema = True
            return answer
        try:
            answer = self._persist(body)
        except EndpointError as error:
            error.usage += before
            raise
        if self._takes_schema is None:  # another thread may have had an answer with it meanwhile
            self._takes_schema = False
        return replace(answer, usage=before + answer.usage)

    def _persist(self, body: Mapping[str, Any]) -> Answer:
        """Ask until there is an answer, a reason why there will be none, or no try left.

        All tries carry one Idempotency-Key, by which servers that know it bill a request once.
        """
        content = json.dumps(body, ensure_ascii=False).encode()
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
                    tokens = _tokens(data)
                    text, finish, refusal = _first_choice(data)
                    answered = True
                except _Failure as error:
                    failure = error
                    if error.wait is not None and error.wait <= self.retry.patience:
                        with self._lock:  # for whoever asks next
                            self._not_before = max(self._not_before, time.monotonic() + error.wait)
                    continue
                finally:
                    usage += self.budget.settle(tokens, answered)
                return Answer(self._hide(text), finish, self._hide(refusal), usage)
            raise GaveUp(f"{self.shown}: {failure}; given up after {_times(self.retry.tries)}")
        except EndpointError as error:
            error.usage = usage
            raise

    def _wait_before(self, number: int, failure: _Failure | None) -> None:
        """Wait before try `number`, of 0 on: back off after a failure, and as long as the endpoint asked anyone to.

        Raises GaveUp where it asks for too long, Stopped where `stop` is set.
        """
        delay = 0.0
        if failure is not None:
            delay = min(self.retry.longest, self.retry.first * 2 ** (number - 1)) * self._random.uniform(0.5, 1)
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
        until = time.monotonic() + self.timeout
        try:
            with self._client.stream("POST", self.url, content=content, headers=headers) as response:
                received = bytearray()
                for piece in response.iter_bytes():
                    received += piece
                    if time.monotonic() > until:
                        raise _Failure(f"no whole answer in {self.timeout:g} s")
                    if len(received) > MAX_ANSWER:
                        raise Refused(f"{self.shown}: an answer of more than {MAX_ANSWER} bytes")
        except self._http.TimeoutException:
            raise _Failure(f"no answer in {self.timeout:g} s") from None
        except self._http.TransportError as error:
            raise _Failure(
                self._hide(f"no connection, or a dropped one ({str(error) or type(error).__name__})")
            ) from None
        except (self._http.InvalidURL, UnicodeError) as error:
            raise Unusable(self._hide(f"{self.shown}: not an address ({error})")) from None
        except self._http.HTTPError as error:
            raise _Failure(self._hide(f"an unreadable answer ({error})")) from None
        data = _parsed(bytes(received))
        self._check(response.status_code, response.headers, data, bytes(received))
        return data

    def _check(self, status: int, headers: Mapping[str, str], data: Any, received: bytes) -> None:
        """Raise what a status, or an error in the body, stands for."""
        fault = data.get("error") if isinstance(data, dict) else None
        if status == 200 and fault and isinstance(fault, dict) and str(fault.get("code", "")).isdigit():
            status = int(fault["code"])  # routers put the status of who stands behind them there
        if status == 200 and not fault:
            return
        said = self._hide(_message(data) or received.decode("utf-8", "replace"))
        said = " ".join(said.split())[:300]
        told = f"HTTP {status}" + f" ({said})" * bool(said)
        no_credit = isinstance(fault, dict) and fault.get("code") == "insufficient_quota"
        if (status in _TRANSIENT or status >= 500 or status == 200) and not no_credit and status not in _HOPELESS:
            raise _Failure(told, _retry_after(headers))
        if status in (401, 403) and not self._key:
            told += f"; no key was sent: {self._how_to_send_one()}"
        kind = Unusable if status in _HOPELESS or 300 <= status < 400 or no_credit else Refused
        raise kind(f"{self.shown}: {told}")

    def _how_to_send_one(self) -> str:
        if os.environ.get(DEFAULT_KEY) and not is_private(self.url):
            return f"{DEFAULT_KEY} goes over https alone unless it is named as the key's variable"
        return f"set {DEFAULT_KEY}"

    def _hide(self, text: str) -> str:
        """The text without the key, should it hold it."""
        return text.replace(self._key.get_secret_value(), "[key]") if self._key else text


def chat_address(url: str) -> str:
    """The address of an endpoint's chat completions. Raises UserError where `url` is none of http or https."""
    if "@" in url.rpartition("://")[2].partition("/")[0]:
        raise UserError("the endpoint's address holds a user name or a password; put the key into a variable instead")
    shown = url.partition("?")[0]  # a query may hold a key
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        known = known and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise UserError(f"endpoint {shown}: not an address; give one such as http://localhost:8000/v1")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return urlunsplit(parts._replace(path=path, fragment=""))


def is_private(url: str) -> bool:
    """Whether nobody can read what is sent there on its way: https, or this machine itself, which is asked directly."""
    return urlsplit(url).scheme == "https" or is_here(url)


def is_here(url: str) -> bool:
    """Whether an address is one of this machine itself, without encryption."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")


def read_key(name: str | None) -> SecretStr | None:
    """The key in an environment variable, `DEFAULT_KEY` unless named; None where only that one is unset.

    Raises:
        UserError: the named variable is unset, or what it holds cannot be a key.
    """
    key = os.environ.get(name or DEFAULT_KEY, "").strip()
    if not key:
        if name is not None:
            raise UserError(f"the environment variable {name} is not set; it should hold the endpoint's key")
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"the environment variable {name or DEFAULT_KEY} holds no key: it has spaces or other letters")
    return SecretStr(key)


def _library() -> ModuleType:
    try:
        import httpx2
    except ImportError:
        raise UserError('endpoints need httpx2; install it with pip install "cogview3[captions]"') from None
    return httpx2


def _parsed(received: bytes) -> Any:
    try:
        return json.loads(received)
    except (ValueError, RecursionError):
        return None


def _message(data: Any) -> str:
    """What an error's body says, in the places where servers put it."""
    if isinstance(data, dict):
        for name in ("error", "message", "detail"):
            if data.get(name):
                return _message(data[name]) if isinstance(data[name], dict) else str(data[name])
    return ""


def _first_choice(data: Any) -> tuple[str, str, str]:
    """Text, reason of the end and refusal of a chat completion. Raises _Failure where it is none."""
    try:
        choice = data["choices"][0]
        content = choice["message"].get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        told = content, str(choice.get("finish_reason") or ""), str(choice["message"].get("refusal") or "")
        return tuple(text.encode("utf-8", "replace").decode() for text in told)  # without halves of surrogate pairs
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Failure("an answer that is no chat completion") from None


def _tokens(data: Any) -> tuple[int, int] | None:
    """Tokens of prompt and completion, where the answer tells them."""
    try:
        counts = tuple(int(data["usage"][name] or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return counts if min(counts) >= 0 else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, given as such or as a date."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text)) if text.replace(".", "", 1).isdigit() else _seconds_until(text)
    except (ValueError, TypeError):
        return None


def _seconds_until(date: str) -> float:
    then = parsedate_to_datetime(date)
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _times(count: int) -> str:
    return "one try" if count == 1 else f"{count} tries"
