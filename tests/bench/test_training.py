"""The benchmark of training: both kinds of step do the same work, and the report adds up. Speed is not tested."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cogview3.bench import training
from cogview3.bench.training import Scale, Synthetic, describe, run, synthetic_recipe
from cogview3.cli.app import app
from cogview3.config import UserError
from cogview3.diffusion import schedule


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenes' network on the smallest pictures; full is as small."""
    monkeypatch.setattr(training, "SCALES", {"small": Scale(64, 5, 16, 2, False), "full": Scale(64, 5, 16, 2, True)})
    model = {"block_out_channels": [8, 16, 16], "head_dim": 8, "norm_num_groups": 4, "size_embedding": 8}
    monkeypatch.setattr(training, "FULL", model)
    ceiling = training.measure.matmul_ceiling
    monkeypatch.setattr(training.measure, "matmul_ceiling", partial(ceiling, side=64))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [pytest.param("small", marks=pytest.mark.slow), "full"])
def test_a_report_adds_up(scale: str) -> None:
    result = run(scale, steps=1, repeats=2)
    for kind in ("ours", "plain"):
        row = result[kind]
        assert len(row["seconds"]) == 2
        assert row["samples_per_second"] == pytest.approx(2 / (sum(row["seconds"]) / 2))  # a batch of two
        assert row["share"] == pytest.approx(row["samples_per_second"] * result["flops"] / result["ceiling"])
        assert row["peak_bytes"] is None
        twice = row.get("share_with_recomputation")
        assert twice == (pytest.approx(row["share"] * 4 / 3) if scale == "full" else None)
    assert result["ratio"] == result["ours"]["samples_per_second"] / result["plain"]["samples_per_second"]
    assert result["settings"]["checkpoint_activations"] == (scale == "full")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = describe(result)
    assert "million parameters, 64 x 64, batch 2" in text
    assert ("computed twice" in text) == (scale == "full")


@pytest.mark.parametrize("scale", ["small", "full"])
def test_both_steps_learn_the_same(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same noise and times the losses' gradients are alike: v-prediction, and noise."""
    sizes = training.SCALES[scale]
    recipe = synthetic_recipe(scale, 2, False, False)
    recipe = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"offset_noise": 0.0})})
    objective = Synthetic(recipe, sizes, "cpu")
    ours = training._Ours(recipe, objective, "cpu")
    plain = training._Plain(ours, objective)
    batch = objective.batch(0, [])
    monkeypatch.setattr(torch, "randn_like", lambda like: batch["noise"])
    monkeypatch.setattr(torch, "randint", lambda *args, **how: batch["t"])
    gradients: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def step(*arguments: Any) -> None:
            gradients[name] = [parameter.grad.clone() for parameter in plain.parameters]

        return step

    plain.enter()
    monkeypatch.setattr(plain.optimizer, "step", keep("plain"))
    monkeypatch.setattr(ours.trainer.optimizer, "step", keep("ours"))
    plain.step()
    ours.enter()
    ours.trainer.optimizer.zero_grad()
    ours.step()
    for one, other in zip(gradients["ours"], gradients["plain"], strict=True):
        # bfloat16 products, and another computation of attention
        assert (one - other).norm() < 0.05 * other.norm() + 1e-3


def test_the_moments_are_shared_once_they_are_there() -> None:
    recipe = synthetic_recipe("full", 2, False, False)
    objective = Synthetic(recipe, training.SCALES["full"], "cpu")
    ours = training._Ours(recipe, objective, "cpu")
    plain = training._Plain(ours, objective)
    ours.enter()
    ours.step()
    plain.enter()
    for parameter in plain.parameters:
        states = [optimizer.state[parameter] for optimizer in (ours.trainer.optimizer, plain.optimizer)]
        assert states[0]["exp_avg"] is states[1]["exp_avg"]
        assert states[0]["step"] is not states[1]["step"]
    before = [parameter.clone() for parameter in plain.parameters]
    plain.step()
    assert any(not torch.equal(one, other) for one, other in zip(before, plain.parameters, strict=True))


def test_the_papers_network_is_measured_at_full_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    recipe = synthetic_recipe("full", 16, True, True)
    with torch.device("meta"):
        unet = training.build_unet(recipe.model, training.SCALES["full"].width, 64)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_906_612_484
    assert recipe.train.compile
    assert schedule.make_sigmas(training.STEPS).shape == (1000,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "huge"}, "no scale 'huge': choose from small, full"),
        ({"batch": 0}, "batch 0, steps 3, repeats 3: give 1 or more"),
        ({"steps": 0}, "give 1 or more"),
        ({"repeats": 0}, "give 1 or more"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**changes)


def test_the_command_reports_one_object() -> None:
    command = ["bench", "training", "--scale", "small", "--steps", "1", "--repeats", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--keep-activations", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"]["compile"] is False
