"""API keys, kept as hashes, and their rate limits."""

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cogview3.errors import UserError

ENVIRONMENT = "COGVIEW3_API_KEYS"
"""Variable that holds entries as a file does, separated by commas or line ends; keys in plain are taken there too."""

_ENTRY = re.compile(r"([\w.-]{1,64}):(sha256:[0-9a-f]{64}|[!-~]{16,256}?)(?::(\d{1,6}))?")


@dataclass
class Key:
    """One client's key.

    Attributes:
        digest: SHA-256 of the key: it is random and long, so that a slow hash would add nothing.
        pictures: a minute; None sets no limit.
    """

    name: str
    digest: str
    pictures: int | None = None


@dataclass
class Bucket:
    """A token bucket: `rate` pictures a minute, a minute's worth at once."""

    rate: float
    now: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at = self.rate, self.now()

    def take(self, count: int) -> float:
        """Take `count`; returns 0, or the seconds until there are as many, where nothing is taken."""
        now = self.now()
        self._left = min(self.rate, self._left + (now - self._at) * self.rate / 60)
        self._at = now
        if count <= self._left or (count > self.rate and self._left == self.rate):
            self._left -= count
            return 0.0
        return (min(count, self.rate) - self._left) * 60 / self.rate


class Keys:
    """Those who may ask. Without any, everybody may.

    Args:
        keys: all of them.
        pictures: a minute, of each client without a limit of its own; None sets none.
        now: a clock in seconds.

    Raises:
        UserError: two of one name or one key twice.
    """

    def __init__(
        self, keys: Iterable[Key] = (), pictures: int | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys: dict[str, Key] = {}
        self._pictures, self._now = pictures, now
        self._buckets: dict[str, Bucket] = {}
        for key in keys:
            if key.digest in self._keys or key.name in {each.name for each in self._keys.values()}:
                raise UserError(f"API key {key.name} is there twice: remove one")
            self._keys[key.digest] = key

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, secret: str) -> str | None:
        """Whose key this is; None where it is nobody's."""
        key = self._keys.get(digest_of(secret))
        return None if key is None else key.name

    def wait(self, client: str, pictures: int) -> float:
        """Count a client's pictures; returns 0, or the seconds after which they would be within its limit."""
        own = next((key.pictures for key in self._keys.values() if key.name == client and key.pictures), None)
        rate = own or self._pictures
        if rate is None:
            return 0.0
        if len(self._buckets) > 10_000:  # addresses of clients without keys
            self._buckets.clear()
        return self._buckets.setdefault(client, Bucket(rate, self._now)).take(pictures)


def digest_of(secret: str) -> str:
    """What is kept of a key."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def new_key(name: str) -> tuple[str, str]:
    """A random key, and the line for the file of keys."""
    secret = "cv3-" + secrets.token_urlsafe(32)
    return secret, f"{name}:{digest_of(secret)}"


def read_keys(path: Path | None, environment: str | None) -> list[Key]:
    """Keys of a file, a line each, and of the environment.

    An entry is NAME:sha256:HEX or NAME:sha256:HEX:PICTURES (a minute); in the environment also NAME:KEY.

    Raises:
        UserError: an entry that is none; keys in plain in a file.
    """
    sources = [(ENVIRONMENT, re.split(r"[,\n]", environment or ""), True)]
    if path is not None:
        try:
            sources.append((f"--keys {path}", path.read_text("utf-8-sig").splitlines(), False))
        except UnicodeDecodeError:
            raise UserError(f"--keys {path}: not UTF-8 text; give a file with a line for each key") from None
    keys = []
    for source, entries, plain in sources:
        for number, entry in enumerate(map(str.strip, entries), 1):
            if not entry or entry.startswith("#"):
                continue
            match = _ENTRY.fullmatch(entry)
            hashed = match is not None and match[2].startswith("sha256:")
            if match is None or not (plain or hashed):
                raise UserError(
                    f"{source}: entry {number} is no NAME:sha256:HEX, as `cogview3 serve --new-key NAME` prints it"
                )
            digest = match[2] if hashed else digest_of(match[2])
            keys.append(Key(match[1], digest, int(match[3]) if match[3] else None))
    return keys
