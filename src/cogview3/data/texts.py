"""Captions in their usual forms: encodings of text files, and values that hold one caption or several."""

import codecs
from collections.abc import Iterable
from typing import Any

from cogview3.data.report import Broken

CAPTIONS = ("text", "caption", "captions", "txt", "prompt")
"""Names under which tables and metadata files keep captions, in this order, without regard to case."""

MAX_CAPTION = 2**16
"""Characters; a longer text is no caption, and tokenizers would work at it for long."""

NO_TEXT = "caption is no text"
"""Reason against a caption that is a number, an object or the like."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32, for which a mark or the place of its zeros speaks.

    Raises Broken "undecodable text": other encodings are not guessed, since a wrong guess would be trained on.
    """
    encoding, skipped = "utf-8", 0
    for mark, name in _MARKS:
        if content.startswith(mark):
            encoding, skipped = name, len(mark)
            break
    else:
        even, odd = content[::2].count(0), content[1::2].count(0)
        if len(content) % 2 == 0 and 8 * max(even, odd) > len(content):  # a fourth of the characters are Latin
            encoding = "utf-16-be" if even > odd else "utf-16-le"
    try:
        text = content[skipped:].decode(encoding).removeprefix("\ufeff")  # some programs write two marks
    except UnicodeDecodeError:
        raise Broken("undecodable text") from None
    if "\0" in text:
        raise Broken("undecodable text")
    return text


def encodable(text: str) -> str:
    """A text without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def caption_choices(value: Any) -> tuple[str, ...]:
    """The captions that a value of JSON or of a table holds: a text is one, a list is a choice; blanks do not count.

    None and NaN are how tables say that there is none. Raises Broken `NO_TEXT` for anything else, and "caption too
    long" above `MAX_CAPTION`.
    """
    if value is None or value != value:
        return ()
    if isinstance(value, str):
        text = encodable(value).strip()
        if "\0" in text:
            raise Broken("undecodable text")
        if len(text) > MAX_CAPTION:
            raise Broken("caption too long")
        return (text,) if text else ()
    if isinstance(value, list | tuple):
        texts = [text for item in value if isinstance(item, str) for text in caption_choices(item)]
        if texts or all(item is None or isinstance(item, str) for item in value):
            return tuple(dict.fromkeys(texts))
    raise Broken(NO_TEXT)


def find_name(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of the wanted names that is there, as it is spelled there; case does not count. None without one."""
    known = {str(name).lower(): name for name in reversed([*names])}
    return next((known[name] for name in wanted if name in known), None)
