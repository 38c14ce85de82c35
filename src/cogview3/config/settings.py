"""The grammar of --set, the same for all commands: KEY=VALUE, where a value is TOML, JSON, or else plain text."""

import json
import tomllib
from collections.abc import Iterable
from typing import Any

from cogview3.errors import UserError

MAX_VALUE = 2**20
"""Characters; a longer value is refused."""


def parse_settings(entries: Iterable[str], example: str) -> dict[str, Any]:
    """The settings that entries of `KEY=VALUE` give; of a key given twice, the last. Raises as `parse_setting`."""
    return dict(parse_setting(entry, example) for entry in entries)


def parse_setting(entry: str, example: str, form: str = "KEY=VALUE") -> tuple[str, Any]:
    """Key and value of one entry: numbers, true, [1, 2], "text", {"a": 1}, null, or any other text as it is.

    Raises:
        UserError: no key, no equals sign, text that is not Unicode, or a value that is too long or nested too deeply;
            shows `form` and `example`.
    """
    key, equals, text = entry.partition("=")
    key, text = key.strip(), text.strip()
    if not key or not equals:
        raise UserError(f"--set {entry!r}: write {form}, such as {example}")
    if any("\ud800" <= letter <= "\udfff" for letter in entry):
        raise UserError(f"--set {entry!r} is not valid UTF-8; check the terminal's encoding")
    if len(text) > MAX_VALUE:
        raise UserError(f"--set {key}: more than {MAX_VALUE} characters")
    try:
        return key, _parse(text)
    except RecursionError:
        raise UserError(f"--set {key}: nested too deeply") from None


def _parse(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
        if parsed.keys() == {"value"}:  # a line break would begin another entry
            return parsed["value"]
    except ValueError:
        pass
    try:
        return json.loads(text)
    except ValueError:
        return text
