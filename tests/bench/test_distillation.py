"""The benchmark of distillation, on tiny networks: what a step runs, and that the report adds up."""

import json
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from cogview3.bench.distillation import describe, run, synthetic_recipe
from cogview3.bench.networks import CONFIGS
from cogview3.cli.app import app
from cogview3.config import UserError


@pytest.mark.parametrize("stage", ["base", "relay"])
def test_a_step_runs_the_teachers_steps_with_both_branches_and_the_students_with_one(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, int, bool]] = []
    forward = UNet2DConditionModel.forward

    def watched(self: UNet2DConditionModel, sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append((self.config.time_cond_proj_dim is not None, len(sample), torch.is_grad_enabled()))
        return forward(self, sample, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watched)
    result = run(stage, "tiny", batch=2, steps=2, size=256, device="cpu")
    teacher_steps, student_steps = result["settings"]["steps"]
    one_step = [(False, 4, False)] * (teacher_steps // student_steps) + [(True, 2, True)]
    assert calls == one_step * 3  # one to warm up


@pytest.mark.parametrize("checkpointed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_report_adds_up(checkpointed: bool) -> None:
    result = run("base", "tiny", batch=2, steps=3, size=256, checkpoint_activations=checkpointed, device="cpu")
    assert len(result["seconds"]) == 3
    assert result["samples_per_second"] == pytest.approx(2 / sorted(result["seconds"])[1])
    assert [result[f"{kind}_bytes"] for kind in ("frozen", "held", "peak")] == [None] * 3  # there is no GPU
    assert result["settings"]["checkpoint_activations"] == checkpointed
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = describe(result)
    assert text.startswith("base, 64 to 32 steps")
    assert f"256 x 256, batch 2, activations {'computed twice' if checkpointed else 'kept'}" in text
    assert "memory" not in text
    text = describe(result | {"frozen_bytes": 15_752e6, "held_bytes": 62.7e9, "peak_bytes": 80e9})
    assert "memory: 15.8 GB of teacher, T5 and VAE, 62.7 GB between steps, 80.0 GB at most" in text


def test_it_is_the_papers_first_round() -> None:
    recipe = synthetic_recipe("relay", 4, 1024, True, "cpu")
    assert (recipe.distill.steps, recipe.distill.relay_start, recipe.data.size) == ((8, 4), 200, 1024)
    assert (recipe.train.shard, recipe.train.checkpoint_activations, recipe.train.batch) == (False, True, 4)
    assert synthetic_recipe("base", 16, 512, False, "cpu").distill.guidance_width == 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "middle"}, "no 'middle' at 'tiny': choose from base, relay and full, narrow, tiny"),
        ({"scale": "huge"}, "no 'base' at 'huge'"),
        ({"batch": 0}, "batch 0, steps 3: give 1 or more of each"),
        ({"steps": 0}, "steps 0: give 1 or more"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(**({"stage": "base", "scale": "tiny", "device": "cpu"} | changes))


def test_the_command_measures_narrow_networks_and_full_ones_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "narrow", CONFIGS["tiny"])
    options = ["--stage", "base", "--scale", "narrow", "--batch", "1", "--steps", "1", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, ["bench", "distillation", *options])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["stage"], told["scale"], told["settings"]["size"]) == ("base", "narrow", 512)
    result = CliRunner().invoke(app, ["bench", "distillation", "--device", "cpu"])
    assert result.exit_code == 2
    assert "needs a CUDA GPU, not cpu: give --scale narrow" in result.stderr
