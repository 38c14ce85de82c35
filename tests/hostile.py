"""Seeded damage: copies of files with bytes or values changed, for fuzzers; and a limit against hangs."""

import copy
import faulthandler
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXTREMES = (b"\xff" * 4, b"\0" * 4, b"\x7f" * 8, b"\x80" * 8)

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, -1e9, 1e300, "", "x", "4", "\0", "é" * 300, [], [[]],
    [None], ["x"], {}, {"a": {}}, [0], [1, 2, 3, 4], [10**6] * 4,
)  # fmt: skip
"""What entries of JSON are replaced with."""

DEPTHS = (200, 5000, 200_000)


def mutant(content: bytes, rng: random.Random) -> bytes:
    """A copy with bytes changed, cut out, repeated or added, or numbers made extreme."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + rng.choice((1, 2, 4, 8))] = rng.choice(EXTREMES)
            case 2:
                del data[at : at + rng.randrange(1, 64)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 512)]
            case 4:
                del data[at:]
            case 5:
                data[at:at] = rng.randbytes(rng.randrange(1, 32))
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def json_mutant(content: bytes, rng: random.Random) -> bytes:
    """A copy of JSON with entries of other types, missing, renamed or repeated, or nested deeply; or of its bytes."""
    if rng.random() < 0.2:
        return mutant(content, rng)
    if rng.random() < 0.1:
        depth, (opening, closing) = rng.choice(DEPTHS), rng.choice(("[]", ('{"a":', "}")))
        return (opening * depth + "1" * (opening != "[") + closing * depth).encode()
    held = {"": copy.deepcopy(json.loads(content))}
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, key = rng.choice(list(_places(held)))
        match rng.randrange(5):
            case 0 | 1:
                at[key] = copy.deepcopy(rng.choice(VALUES))
            case 2 if key != "":
                del at[key]
            case 3 if isinstance(at, dict) and key != "":
                at[f"{key}x"] = at.pop(key)
            case _:
                at[key] = [at[key]] if rng.random() < 0.5 else {"a": at[key]}
    return json.dumps(held[""]).encode()


def _places(held: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of all values; of long lists some."""
    entries = list(held.items()) if isinstance(held, dict) else list(enumerate(held))[:20]
    for key, value in entries:
        yield held, key
        if isinstance(value, dict | list):
            yield from _places(value)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End the whole process, with a traceback, where the block takes longer: a hang cannot be told otherwise."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
