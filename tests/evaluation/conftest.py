"""A tiny model folder: base pictures of 64 x 64, the relay's of 128 x 128."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogview3 import CogView3Pipeline
from cogview3.data.scenes import score
from cogview3.data.scenes.reader import read
from cogview3.evaluation.metrics import scene

MODES = {
    "2+1": {"steps": 2, "relay_steps": 1, "guidance": 3.0},
    "2+1-fast": {"steps": 2, "relay_steps": 1, "guidance": 1.0, "distilled": True},
    "2+1-ranged": {"steps": 2, "relay_steps": 1, "guidance": 1.0, "distilled": True, "guidance_range": [1, 5]},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "tiny"


@pytest.fixture
def model(tiny: Path, make_components: Callable[..., dict[str, Any]]) -> Path:
    """The same one in all tests, which leave it as it is."""
    if not tiny.exists():
        CogView3Pipeline(**make_components(sample_size=8)).save_pretrained(tiny)
        (tiny / "sampling.json").write_text(json.dumps({"format": 1, "default": "2+1", "modes": MODES}))
    return tiny


@pytest.fixture
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pictures are read as an empty one's: what the tiny model draws is noise, slow to read."""
    nothing = read(np.full((64, 64, 3), 250, np.uint8))
    for module in (score, scene):
        monkeypatch.setattr(module, "read", lambda picture: nothing)


@pytest.fixture
def pipe(model: Path) -> CogView3Pipeline:
    pipe = CogView3Pipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe
