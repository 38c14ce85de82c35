"""Sizes that a model draws, and the nearest one to a size that is asked for."""

import math
import re
from dataclasses import dataclass

from cogview3.errors import UserError

NARROWEST = 1 / 3
"""Least width over height, and least height over width."""

AREAS = (0.5, 1.6)
"""Least and most pixels of a base picture, as a share of those of the model's own: others it draws badly."""


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT, 1 to 99999 each. Raises UserError."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.strip())
    if match is None:
        raise UserError(f"size is {text!r}: give WIDTHxHEIGHT, such as 256x256")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Size:
    """Width and height of a finished picture in pixels, and how often its base is doubled."""

    width: int
    height: int
    relays: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Sizes:
    """What a model draws.

    Attributes:
        width, height: of its own base picture, in pixels.
        factor: pixels of a side that are one of its latents.
        relays: most doublings; 0 without a relay.
    """

    width: int
    height: int
    factor: int = 8
    relays: int = 1

    @property
    def own(self) -> Size:
        """The model's own size: one relay where it has one."""
        relays = min(1, self.relays)
        return Size(self.width << relays, self.height << relays, relays)

    def nearest(self, width: int, height: int) -> Size:
        """The size drawn whose sides differ least, as ratios, from those asked for; of equals the one of more relays.

        Base sides are multiples of `factor`, their proportions 1:3 to 3:1, their pixels within `AREAS`.
        """
        found = [self._nearest(width, height, relays) for relays in range(self.relays, -1, -1)]
        return min(found, key=lambda size: abs(math.log(size.width / width)) + abs(math.log(size.height / height)))

    def _nearest(self, width: int, height: int, relays: int) -> Size:
        """The nearest size of those with so many doublings."""
        proportion = min(max(width / height, NARROWEST), 1 / NARROWEST)
        wanted, own = width * height / 4**relays, self.width * self.height
        area = min(max(wanted, own * AREAS[0]), own * AREAS[1])
        if relays == self.relays and wanted > area:
            area = own  # larger than all that there is: the model's own number of pixels
        sides = math.sqrt(area * proportion), math.sqrt(area / proportion)
        base = [max(1, round(side / self.factor)) * self.factor for side in sides]
        return Size(base[0] << relays, base[1] << relays, relays)
