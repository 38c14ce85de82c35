"""From an endpoint's reply to an answer, or to what is wrong with it. Servers differ, and make mistakes."""

import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from cogview3.prompts.answers import is_cut, is_filtered
from cogview3.prompts.budget import MOST_TOKENS, Usage


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str  # of the first choice; "" where there is none
    finish: str  # why it ends there, such as "stop", "length" or "content_filter", in the server's words
    refusal: str  # the model's own words against answering
    usage: Usage  # spent on it, failed tries included
    most: int | None = None  # tokens that the request allowed; None where it did not say

    @property
    def cut(self) -> bool:
        """Whether it reached a limit, by the server's word or by the count of its tokens."""
        return is_cut(self.finish) or (self.most is not None and self.usage.completion_tokens >= self.most)

    @property
    def refused(self) -> bool:
        """Whether the model, or a filter behind it, would not answer."""
        return bool(self.refusal) or is_filtered(self.finish)


_DIGITS = 300


class Malformed(ValueError):
    """An answer that is no chat completion."""


def parse(content: bytes) -> Any:
    """The JSON of an answer, also of one that came as server-sent events or JSON lines; None where it is none."""
    try:
        data = _json(content)
        return _joined([data]) if isinstance(data, dict) and _is_chunk(data) else data
    except (ValueError, RecursionError, TypeError, AttributeError):
        pass
    lines = (line.removeprefix(b"data:").strip() for line in re.split(rb"[\r\n]+", content.removeprefix(BOM_UTF8)))
    try:
        chunks = [_json(line) for line in lines if line.startswith(b"{")]
        return _joined(chunks) if chunks else None
    except (ValueError, RecursionError, TypeError, AttributeError):
        return None


def _json(content: bytes) -> Any:
    """JSON whose whole numbers may have any count of digits: Python refuses the long ones, and all around them."""
    return json.loads(content, parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else float(digits))


def _is_chunk(data: Mapping[str, Any]) -> bool:
    choices = data.get("choices")
    return isinstance(choices, list) and any(isinstance(each, dict) and "delta" in each for each in choices)


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The completion that the chunks of a stream make."""
    if failed := [chunk for chunk in chunks if chunk.get("error")]:
        return failed[0]
    told: dict[str, str] = {"content": "", "refusal": ""}
    finish, usage = None, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or ():
            if choice.get("index") not in (0, None):
                continue
            delta = choice.get("delta") or choice.get("message") or {}
            for name in told:
                told[name] += _text(delta.get(name))
            finish = choice.get("finish_reason") or finish
    whole = {"message": told, "finish_reason": finish or "incomplete"}  # a stream tells its end
    return {"choices": [whole]} | ({"usage": usage} if usage else {})


def first_choice(data: Any) -> tuple[str, str, str]:
    """Text, reason of the end and refusal of a chat completion. Raises Malformed where it is none."""
    try:
        choice = data["choices"][0]
        message = choice["message"]
        finish, refusal = (
            _text(each) if isinstance(each, str | list) else ""  # false, or a number
            for each in (choice.get("finish_reason"), message.get("refusal"))
        )
        return _text(message.get("content")), finish, refusal
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Malformed("an answer that is no chat completion") from None


def _text(content: Any) -> str:
    """A text, or those of a list of parts, thoughts left out; without halves of surrogate pairs."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode()
    if isinstance(content, dict):
        return _text(content.get("text")) if content.get("type") in (None, "text", "output_text") else ""
    if isinstance(content, list):
        return "".join(map(_text, content))
    raise TypeError(content)


def tokens(data: Any) -> tuple[int, int] | None:
    """Tokens of prompt and completion, where the answer tells them and they can be believed."""
    try:
        prompt, completion = (int(data["usage"][name] or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (prompt, completion) if 0 <= prompt <= MOST_TOKENS and 0 <= completion <= MOST_TOKENS else None


def error_in(data: Any) -> Any:
    """The error that an answer's body holds; None without one."""
    return (data.get("error") or None) if isinstance(data, dict) else None


def status_in(error: Any) -> int | None:
    """The HTTP status that an error names as its code: routers put there what stands behind them said."""
    code = str(error.get("code", "")) if isinstance(error, dict) and isinstance(error.get("code"), str | int) else ""
    return int(code) if re.fullmatch("[1-5][0-9][0-9]", code) else None


def message(data: Any) -> str:
    """What an error's body says, in the places where servers put it."""
    if isinstance(data, dict):
        for name in ("error", "message", "detail"):
            if data.get(name):
                return message(data[name]) if isinstance(data[name], dict) else str(data[name])
    return ""


def in_a_line(text: str) -> str:
    """The beginning of a text as one line that any terminal can show."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text.encode("utf-8", "replace").decode())
    return " ".join(clean.split())[:300]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, given as such or as a date."""
    text = headers.get("retry-after", "").strip()
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
            return float(text)
        then = parsedate_to_datetime(text)
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = max(0.0, (then - datetime.now(UTC)).total_seconds())
        return seconds if math.isfinite(seconds) else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
