"""Addresses of endpoints and their keys: which are accepted, and which parts may be shown."""

import os
import re
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from cogview3.config import UserError

DEFAULT_KEY = "OPENAI_API_KEY"
"""The environment variable of the key, where none is named; without it no key is sent."""


def chat_address(url: str) -> str:
    """The address of an endpoint's chat completions.

    Raises:
        UserError: none of http or https, or one with an @: what stands before it may be a password, wherever libraries
            would take it to begin, so nothing of it is shown.
    """
    if "@" in url:
        raise UserError(
            "the endpoint's address holds an @, as with a user name or a password; put the key into a variable "
            "(and write any other @ as %40)"
        )
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UserError(f"endpoint {shown(url)}: not an address; give one such as http://localhost:8000/v1")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    return urlunsplit(parts._replace(path=path, fragment=""))


def shown(url: str) -> str:
    """An address without its query, which may hold a key."""
    return re.split(r"[?#]", url, maxsplit=1)[0]


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
            raise UserError(f"key_env {name}: this environment variable is not set; it should hold the endpoint's key")
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"the environment variable {name or DEFAULT_KEY} holds no key: it has spaces or other letters")
    return SecretStr(key)
