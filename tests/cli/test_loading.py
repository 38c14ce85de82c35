"""What commands check before they load a model, adapters, and which prompt cache they open."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import Result

from cogview3 import CogView3Pipeline
from cogview3.cli.loading import open_prompt_cache
from cogview3.config import UserError
from cogview3.generation import placement
from tests.cli.conftest import error_line

Run = Callable[..., Result]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, as far as its memory is asked for."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**40, 2**40))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `models` are written, once a module."""
    return tmp_path_factory.mktemp("lacking")


@pytest.fixture
def models(folders: Path, tiny_model: Path, make_components: Callable[..., dict[str, Any]]) -> dict[str, Path]:
    """Whole and lacking model folders by what they are. Not to be changed."""
    found = {name: folders / name for name in ("empty", "foreign", "baseless", "lone")}
    if not found["empty"].exists():
        found["foreign"].mkdir()
        (found["foreign"] / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        shutil.copytree(tiny_model, found["baseless"])
        shutil.rmtree(found["baseless"] / "modes" / "4+1" / "unet")
        lone = make_components() | {"relay_unet": None, "relay_scheduler": None}
        CogView3Pipeline(**lone).save_pretrained(found["lone"])
        found["empty"].mkdir()
    return {"tiny": tiny_model, **found}


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("empty", ["generate", "x"], "is no model folder"),
        ("foreign", ["generate", "x"], "holds a StableDiffusionPipeline model"),
        ("foreign", ["upscale", "a.png"], "holds a StableDiffusionPipeline model"),
        ("lone", ["upscale", "a.png"], "has no relay_scheduler, relay_unet"),
        ("lone", ["generate", "x", "--relays", 1], "num_relays is 1, but relay_unet or relay_scheduler is missing"),
        ("lone", ["generate", "x", "--tile-size", 4], "tile_size 4 is not a multiple of 64"),
        ("baseless", ["generate", "x", "--mode", "4+1"], "modes/4+1/unet is missing or empty"),
        ("tiny", ["generate", "x", "--mode", "9+9"], "9+9"),
        ("tiny", ["generate", "x", "--tile-size", -64], "tile_size is -64"),
        ("tiny", ["generate", "x", "--tile-size", 4], "tile_size 4 is not a multiple of 64"),
        ("tiny", ["generate", "x", "--size", "50x64"], "width 50 is not a multiple of 16"),
        ("tiny", ["upscale", "a.png", "--tile-size", -64], "tile_size is -64"),
        ("tiny", ["upscale", "a.png", "--relays", 8], "image is 100x8: give sides of at most 32 for 8 relays"),
    ],
)
def test_models_and_pictures_are_checked_before_an_estimate(
    run: Run, models: dict[str, Path], model: str, arguments: list[Any], words: str
) -> None:
    Image.new("RGB", (100, 8)).save("a.png")
    result = run(*arguments, "--model", models[model], "--device", "cuda")
    assert result.exit_code == 2, result.output
    assert words in error_line(result)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("options", "guided"),
    [
        (["--guidance", 1, "--relay-guidance", 1], False),
        (["--guidance", 1, "--relay-guidance", 4], True),
        (["--guidance", 1], True),
        (["--relay-guidance", 1], True),
    ],
)
def test_the_estimate_has_two_branches_if_a_stage_is_guided(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, options: list[Any], guided: bool
) -> None:
    seen = []

    def estimate(model: str, mode: str | None, picture: Any, *_: Any) -> dict[str, int]:
        seen.append(picture.guided)
        raise UserError("far enough")

    monkeypatch.setattr(placement, "model_estimates", estimate)
    result = run("generate", "x", "--model", tiny_model, "--device", "cuda", *options)
    assert "far enough" in error_line(result)
    assert seen == [guided]


def test_prompt_caches_tell_quantized_encoders_apart(tiny_model: Path, tmp_path: Path) -> None:
    caches = {
        kind: open_prompt_cache(tmp_path / "cache", str(tiny_model), torch.float32, kind)
        for kind in (None, "int8", "fp8")
    }
    caches["int8"].encode(["a red star"], lambda prompts: torch.zeros(len(prompts), 12, 16))
    assert {kind: cache.has(["a red star"]) for kind, cache in caches.items()} == {
        None: False,
        "int8": True,
        "fp8": False,
    }


def test_a_truncated_adapter_is_named(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"short")
    result = run("generate", "x", "--model", tiny_model, "--device", "cpu", "--lora", "adapter.safetensors")
    assert result.exit_code == 2, result.output
    assert "--lora adapter.safetensors: is damaged or does not fit this model" in error_line(result)


def test_what_libraries_say_of_an_unused_torchao_is_dropped_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    said = {
        "torchao": "Failed to load /x/_C_mxfp8.so: no such GPU",
        "torch.utils._pytree": "<enum 'KernelPreference'> is an Enum subclass and is now natively supported",
        "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects. This may",
    }
    loggers = {name: logging.getLogger(name) for name in said}
    for name, logger in loggers.items():  # the filters are there since cogview3.cli was imported, in workers too
        with caplog.at_level(logging.WARNING, name):
            logger.addHandler(caplog.handler)  # some do not pass on what they are told
            logger.warning(said[name])
            logger.warning("another %s", name)
            logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {f"another {name}" for name in said}
