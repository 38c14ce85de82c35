"""Tiny recipes of all four kinds, and runs of them that went through undisturbed."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from filelock import FileLock

from cogview3.config import Recipe, parse_recipe
from cogview3.training.loop import train
from cogview3.training.objectives import diffusion

KINDS = ("vae", "text", "base", "relay")

COMMON = {
    "optimizer": {"learning_rate": 1e-2, "warmup_images": 4, "ema_decay": 0.6},
    "train": {"images": 10, "batch": 2, "precision": "no", "log_images": 4, "checkpoint_images": 6},
    "validate": {"images": 4, "every_images": 6},
}
UNET = {"block_out_channels": [8, 16, 16], "layers_per_block": 1, "head_dim": 8, "norm_num_groups": 4}
TABLES: dict[str, dict[str, Any]] = {
    "vae": {
        "model": {"block_out_channels": [4, 4, 8, 8], "norm_num_groups": 2, "sample_size": 64},
        "data": {"size": 64, "crop": 32},
        "objective": {"statistics_images": 64},
    },
    "text": {
        "model": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1, "vocab_size": 512},
        "data": {"tokenizer_captions": 64},
    },
    "base": {"model": {**UNET, "size_embedding": 8}, "data": {"size": 64, "pictures": 6}},
    "relay": {
        "model": {**UNET, "size_embedding": 8},
        "data": {"size": 128, "pictures": 6, "reconstructed_share": 0.5, "degraded_share": 0.2},
        "objective": {"relay_start": 300},
    },
}


def tiny_recipe(kind: str, runs: Path, **changes: Any) -> Recipe:
    """A recipe that runs in a second; the runs that it refers to stand in `runs`.

    changes: entries by "table__key".
    """
    tables = copy.deepcopy({**COMMON, **TABLES[kind], "recipe": {"name": kind, "kind": kind}})
    if kind in ("base", "relay"):
        tables["data"] |= {"vae": str(runs / "vae"), "text": str(runs / "text"), "cache": str(runs / "cache")}
    if kind == "relay":
        tables["recipe"]["start_from"] = str(runs / "base")
    for name, value in changes.items():
        table, _, key = name.partition("__")
        tables.setdefault(table, {})[key] = value
    return parse_recipe(tables, "tiny")


@contextmanager
def drawn_in_two_steps() -> Iterator[pytest.MonkeyPatch]:
    """What is drawn in between, to look at or to count, takes two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion, "BASE_STEPS", 2)
        patch.setattr(diffusion, "RELAY_STEPS", 2)
        yield patch


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """For runs of a module's fixtures too."""
    with drawn_in_two_steps():
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of undisturbed runs, vae, text, base and relay: for reading only.

    Trained once for the tests of all folders, and of all of pytest's processes.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, done = root / "trained-runs", root / "trained-runs" / "done"
    with FileLock(root / "trained-runs.lock"), drawn_in_two_steps() as patch:
        patch.setenv("COGVIEW3_TENSORBOARD", "0")
        for kind in KINDS if not done.exists() else ():
            AcceleratorState._reset_state(reset_partial_state=True)
            train(tiny_recipe(kind, folder), folder / kind, device="cpu")
        done.touch()
    return folder
