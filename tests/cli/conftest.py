"""A tiny model folder, and commands run in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cogview3 import CogView3Pipeline
from cogview3.cli.app import app

SAMPLING = {
    "format": 1,
    "default": "2+2",
    "modes": {
        "2+2": {"steps": 2, "relay_steps": 2, "guidance": 3.0},
        "4+1": {
            "unet": "modes/4+1/unet",
            "relay_unet": "modes/4+1/relay_unet",
            "steps": 4,
            "relay_steps": 1,
            "relay_start": 200,
            "guidance_range": [1, 12],
            "distilled": True,
        },
    },
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tiny_model` is written, once a session."""
    return tmp_path_factory.mktemp("models") / "tiny"


@pytest.fixture
def tiny_model(model_folder: Path, make_components: Callable[..., dict], make_unet: Callable[..., Any]) -> Path:
    """A model folder with a mode of its own UNets: base pictures of 32 x 32, relay to 64 x 64. Not to be changed."""
    if not model_folder.exists():
        CogView3Pipeline(**make_components()).save_pretrained(model_folder)
        for seed, name in enumerate(("unet", "relay_unet")):
            make_unet(seed, time_cond_proj_dim=8).save_pretrained(model_folder / "modes" / "4+1" / name)
        (model_folder / "sampling.json").write_text(json.dumps(SAMPLING))
    return model_folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `cogview3 ARGUMENTS...` in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COGVIEW3_DEBUG", raising=False)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_line(result: Result) -> str:
    """The message of a command that failed, which must be one line and the last on stderr."""
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert lines[-1] == errors[0], result.stderr
    assert "Traceback" not in result.output
    return errors[0]
