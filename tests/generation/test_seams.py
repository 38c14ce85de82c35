"""Seams against pictures whose jumps are known."""

import numpy as np
import pytest

from cogview3.config import UserError
from tests.generation.seams import seam_ratio


def test_a_ramp_has_no_seams() -> None:
    ramp = np.add.outer(np.arange(160.0), np.arange(160.0))[:, :, None]
    assert seam_ratio(ramp, 96) == pytest.approx(1)


def test_steps_at_the_borders_are_what_it_measures() -> None:
    """Tiles of 96 of 160 pixels begin at 0 and 64 and end at 96: four steps of 5 more in a ramp of 1."""
    line = np.arange(160.0)
    line[64:] += 5
    line[96:] += 5
    picture = np.add.outer(line, line)[:, :, None]
    assert seam_ratio(picture, 96) == pytest.approx(6)
    shifted = np.roll(picture, 16, axis=(0, 1))
    assert seam_ratio(shifted, 96) < 1.01


def test_one_tile_has_no_borders() -> None:
    with pytest.raises(UserError, match="covers the whole picture"):
        seam_ratio(np.zeros((64, 64, 3)), 96)
