"""Random draws by name: a draw depends on its purpose and on nothing else.

A generator's draws depend on all those before, and so on how the work is split. These are hashes of names, such as
("crop", seed, sample index): any process gives the same ones, in any order.
"""

from hashlib import blake2b


def number(*names: int | str) -> int:
    """An integer of 0 to 2^63 - 1, uniform over names."""
    text = "\x00".join(map(str, names)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def chance(*names: int | str) -> float:
    """A float in [0, 1), uniform over names."""
    return (number(*names) >> 10) * 2.0**-53
