"""Tiny real components: the classes that real models are made of, at toy width, built in memory."""

import gc
import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from cogview3 import CogView3Pipeline
from cogview3.data.scenes.reader import Reading, read
from cogview3.generation.scheduler import RelayScheduler, base_scheduler
from cogview3.models.unet import unet_config
from tests.processes import Context

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("a", "red", "blue", "star", "circle", "left", "of")


def pytest_configure(config: pytest.Config) -> None:
    """Let equal sums be equal to the last bit: on some processors MKL's depend on where in memory they lie."""
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in jobs that a script runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Look no more for garbage among all that was imported and collected, which takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quick_processes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Processes that the package starts afresh begin as copies; but for those of tests marked `spawned`."""
    if not request.node.get_closest_marker("spawned"):
        monkeypatch.setitem(multiprocessing.context._concrete_contexts, "spawn", Context())


@pytest.fixture(autouse=True)
def fresh_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps one state for the whole process, and refuses another precision in it."""
    monkeypatch.setenv("COGVIEW3_TENSORBOARD", "0")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


_READINGS: dict[tuple[tuple[int, ...], bytes], Reading] = {}


def read_once(picture: Any) -> Reading:
    """`read`, which depends on the picture alone and takes a tenth of a second: of each picture once a session."""
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        return read(picture)
    key = picture.shape, hashlib.sha256(picture.tobytes()).digest()
    if key not in _READINGS:
        _READINGS[key] = read(picture)
    return _READINGS[key]


@pytest.fixture(autouse=True)
def quick_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores read a picture that they were given before no second time."""
    for name in ("cogview3.data.scenes.score", "cogview3.evaluation.metrics.scene"):
        if name in sys.modules:
            monkeypatch.setattr(sys.modules[name], "read", read_once)


@pytest.fixture
def make_tokenizer() -> Callable[..., T5Tokenizer]:
    """T5 tokenizers with a token for each letter and for a few words; text length 12 unless told."""

    def make(text_length: int = 12) -> T5Tokenizer:
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
        vocabulary += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -3.0) for letter in LETTERS]
        return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=text_length)

    return make


@pytest.fixture
def make_text_encoder() -> Callable[[], T5EncoderModel]:
    """T5 encoders 16 wide, as the tiny UNet's cross attention expects."""

    def make() -> T5EncoderModel:
        torch.manual_seed(0)
        config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        return T5EncoderModel(config).eval()

    return make


@pytest.fixture
def make_vae() -> Callable[..., AutoencoderKL]:
    """8x KL autoencoders with 4 latent channels; latents are scaled by 0.5 unless overridden."""

    def make(**overrides: Any) -> AutoencoderKL:
        torch.manual_seed(1)
        config = {
            "block_out_channels": (4, 4, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": 4,
            "norm_num_groups": 2,
            "scaling_factor": 0.5,
        }
        return AutoencoderKL(**{**config, **overrides}).eval()

    return make


@pytest.fixture
def make_unet() -> Callable[..., UNet2DConditionModel]:
    """The "tiny" UNet, 4 x 4 latents, that is 32 x 32 pixels; `seed` draws its weights."""

    def make(seed: int = 2, **overrides: Any) -> UNet2DConditionModel:
        torch.manual_seed(seed)
        return UNet2DConditionModel(**unet_config("tiny", **overrides)).eval()

    return make


@pytest.fixture
def make_components(
    make_tokenizer: Callable[..., T5Tokenizer],
    make_text_encoder: Callable[[], T5EncoderModel],
    make_vae: Callable[..., AutoencoderKL],
    make_unet: Callable[..., UNet2DConditionModel],
) -> Callable[..., dict[str, Any]]:
    """All components of a pipeline; keyword arguments go to both UNets."""

    def make(prediction_type: str = "epsilon", **unet_overrides: Any) -> dict[str, Any]:
        return {
            "tokenizer": make_tokenizer(),
            "text_encoder": make_text_encoder(),
            "vae": make_vae(),
            "unet": make_unet(2, **unet_overrides),
            "scheduler": base_scheduler(prediction_type),
            "relay_unet": make_unet(3, **unet_overrides),
            "relay_scheduler": RelayScheduler(prediction_type=prediction_type),
        }

    return make


@pytest.fixture
def components(make_components: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """All components of a pipeline."""
    return make_components()


@pytest.fixture(scope="session")
def saved_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `saved_model` is written, once a session."""
    return tmp_path_factory.mktemp("saved") / "model"


@pytest.fixture
def saved_model(saved_folder: Path, make_components: Callable[..., dict[str, Any]]) -> Path:
    """A model folder of `components`. Not to be changed."""
    if not saved_folder.exists():
        CogView3Pipeline(**make_components()).save_pretrained(saved_folder)
    return saved_folder


@pytest.fixture
def seeded() -> Callable[[int], torch.Generator]:
    """Generators by seed."""
    return lambda seed: torch.Generator().manual_seed(seed)
