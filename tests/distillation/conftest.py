"""Tiny recipes of both distillations, over the tiny runs of tests/training."""

import copy
from pathlib import Path
from typing import Any

from cogview3.config import DistillRecipe, parse_recipe
from tests.training.conftest import COMMON, TABLES, few_steps, runs

__all__ = ["few_steps", "runs"]  # fixtures

STEPS = {"base": [4, 2, 1], "relay": [4, 2, 1]}


def tiny_distillation(stage: str, runs: Path, **changes: Any) -> DistillRecipe:
    """A recipe of two rounds that runs in seconds; the runs that it refers to stand in `runs`.

    changes: entries by "table__key".
    """
    tables = copy.deepcopy({**COMMON, "recipe": {"name": f"distill-{stage}", "kind": f"distill_{stage}"}})
    tables["data"] = {**TABLES[stage]["data"], "cache": str(runs / "cache")}
    tables["data"] |= {"vae": str(runs / "vae"), "text": str(runs / "text")}
    tables["distill"] = {"teacher": str(runs / stage), "steps": STEPS[stage], "guidance_width": 8}
    tables["train"] |= {"images": 8, "checkpoint_images": 4, "log_images": 2}
    tables["validate"] = {"images": 2, "every_images": 8}
    for name, value in changes.items():
        table, _, key = name.partition("__")
        tables.setdefault(table, {})[key] = value
    return parse_recipe(tables, "tiny")
