"""Folders of scenes: what another command wrote there meanwhile stays."""

from pathlib import Path

import pytest

from cogview3.config import UserError
from cogview3.data.scenes.write import write_scenes


def test_a_folder_that_came_since_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "made"

    def come_between(done: int) -> None:
        out.mkdir()
        (out / "00000.tar").write_text("theirs")

    with pytest.raises(UserError, match="made: already exists"):
        write_scenes(out, 1, size=32, progress=come_between)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (out / "00000.tar").read_text() == "theirs"
