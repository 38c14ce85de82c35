"""Tars, as the tests of data have them."""

from pathlib import Path

import pytest

from tests.data.conftest import write_tars


@pytest.fixture
def tars(tmp_path: Path) -> list[str]:
    """Three tars of 5, 4 and 6 samples."""
    return write_tars(tmp_path / "tars", (5, 4, 6))
