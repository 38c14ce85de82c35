"""What a GPU trains with: text encoder, and frozen weights under adapters, in bfloat16; other networks in float32."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.models.attention_processor import AttnProcessor2_0

from cogview3.config import Recipe
from cogview3.distillation.objective import Distillation
from cogview3.training import measure
from cogview3.training.objectives import build
from cogview3.training.trainer import Trainer
from tests.distillation.conftest import tiny_distillation
from tests.training.conftest import tiny_recipe
from tests.training.test_lora import lora_recipe


def recipe_of(kind: str, runs: Path, precision: str) -> Recipe:
    if kind == "lora":
        return lora_recipe("base", runs, train__precision=precision)
    if kind == "distill":
        recipe = tiny_distillation("relay", runs, train__precision=precision)
        return recipe.round(1, recipe.distill.teacher)
    return tiny_recipe(kind, runs, train__precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("base", marks=pytest.mark.slow),
        pytest.param("relay", marks=pytest.mark.slow),
        pytest.param("lora", marks=pytest.mark.slow),
        "distill",
    ],
)
def test_steps_validation_and_counted_operations_bear_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    counts, formats = [], []
    for precision in ("bf16", "no"):
        recipe = recipe_of(kind, runs, precision)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)  # what decides on the text encoder's format
            objective = Distillation(recipe) if kind == "distill" else build(recipe)
        objective.prepare("cpu")
        objective.trained.set_attn_processor(AttnProcessor2_0())  # the GPUs'
        formats.append(objective._frozen["text"].dtype)
        AcceleratorState._reset_state(reset_partial_state=True)
        ready = Trainer(recipe, objective, Accelerator(mixed_precision=precision, cpu=True))
        assert math.isfinite(ready.gradients(0, 2)["loss"])
        with ready.averaged():
            assert math.isfinite(objective.validate()["loss"])
            assert objective.samples().size[0] > 0
        counts.append(measure.step_flops(objective, ready.skeleton, ready.last_batch))
    assert formats == [torch.bfloat16, torch.float32]
    if kind == "distill":  # whose teacher does most of the work
        assert counts == [None, None]
    else:
        assert counts[0] == counts[1] > 0
