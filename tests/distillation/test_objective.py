"""One round's objective: how the student begins, what it is asked for, and how teacher and student are sampled."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from cogview3 import CogView3Pipeline
from cogview3.config import UserError, parse_recipe
from cogview3.diffusion import relay, schedule
from cogview3.distillation import step
from cogview3.distillation.objective import Distillation
from cogview3.distillation.teacher import student_of
from cogview3.generation.scheduler import RelayScheduler
from cogview3.models.unet import guidance_condition, size_conditions
from tests.distillation.conftest import tiny_distillation
from tests.training.test_sources import DATA, write_pictures


def stage(kind: str, runs: Path, number: int = 1, **changes: Any) -> Distillation:
    """The objective of a round, with its latents."""
    recipe = tiny_distillation(kind, runs, **changes)
    objective = Distillation(recipe.round(number, recipe.distill.teacher))
    objective.prepare("cpu")
    return objective


def labels(size: int, count: int) -> Tensor:
    return size_conditions((size, size), (0, 0), (size, size), 8).expand(count, -1)


# Student


def test_guidance_has_no_effect_at_the_start_and_the_student_is_its_teacher(
    make_unet: Callable[..., UNet2DConditionModel],
) -> None:
    teacher = make_unet()
    student = student_of(teacher, 32).eval()
    assert student.config.time_cond_proj_dim == 32
    generator = torch.Generator().manual_seed(0)
    z, text = (torch.randn(shape, generator=generator) for shape in ((3, 4, 4, 4), (3, 5, 16)))
    given = {"encoder_hidden_states": text, "class_labels": labels(32, 3)}
    times = torch.tensor([1, 400, 999])
    condition = guidance_condition(torch.tensor([1.0, 4.5, 12.0]), 32)
    with torch.no_grad():
        assert torch.equal(
            student(z, times, timestep_cond=condition, **given).sample, teacher(z, times, **given).sample
        )
    student(z, times, timestep_cond=condition, **given).sample.square().mean().backward()
    assert student.time_embedding.cond_proj.weight.grad.abs().min() > 0  # but it will have


def test_a_student_of_a_student_keeps_its_guidance(make_unet: Callable[..., UNet2DConditionModel]) -> None:
    teacher = make_unet(time_cond_proj_dim=8)
    student = student_of(teacher, 32)
    assert student.config.time_cond_proj_dim == 8
    weight = student.time_embedding.cond_proj.weight
    assert torch.equal(weight, teacher.time_embedding.cond_proj.weight)
    assert weight.abs().sum() > 0


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_only_the_student_is_trained(runs: Path, precision: str) -> None:
    objective = stage("relay", runs, train__precision=precision)
    assert dict(objective.named_parameters()).keys() == {
        f"trained.{n}" for n, _ in objective.trained.named_parameters()
    }
    objective(objective.batch(0, [0, 1]))["loss"].backward()
    teacher = objective._frozen["teacher"]
    assert not teacher.training
    assert teacher.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {p.dtype for p in objective.trained.parameters()} == {torch.float32}
    assert all(p.grad is not None for p in objective.trained.parameters())


def test_in_low_precision_the_loss_is_about_the_same(runs: Path) -> None:
    losses = {}
    for precision in ("no", "bf16"):
        objective = stage("base", runs, train__precision=precision)
        losses[precision] = objective(objective.batch(0, list(range(16))))["loss"].item()
    # bfloat16 has three digits, and half of a network's errors in the difference of two outputs
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.1)


def test_texts_of_another_encoder_are_refused(
    runs: Path, tmp_path: Path, make_unet: Callable[..., UNet2DConditionModel]
) -> None:
    make_unet(cross_attention_dim=24).save_pretrained(tmp_path / "unet")
    recipe = tiny_distillation("base", runs)
    with pytest.raises(UserError, match=r"reads texts 24 wide, but those of data.text .*text' are 16; give its own"):
        Distillation(recipe.round(1, str(tmp_path)))


# Batches


def test_samples_have_a_step_of_the_student_and_a_guidance(runs: Path) -> None:
    objective = stage("base", runs, distill__steps=[12, 3], distill__guidance_range=[2.0, 6.0])
    batch = objective.batch(0, list(range(600)))
    counts = torch.bincount(batch["t"])
    assert len(counts) == 3
    # four standard deviations: of 600 draws of a third, and of the mean of 600 uniform numbers over a length of log 3
    assert (counts - 200).abs().max() < 4 * (600 * 2 / 9) ** 0.5
    guidance = batch["guidance"]
    assert guidance.shape == (600,)
    assert 2 <= guidance.min() < 2.1
    assert 5.9 < guidance.max() <= 6
    middle = math.log(12**0.5)
    assert guidance.log().mean().item() == pytest.approx(middle, abs=4 * math.log(3) / 12**0.5 / 600**0.5)


def test_a_sample_is_the_same_in_every_batch(runs: Path) -> None:
    objective = stage("relay", runs)
    together = objective.batch(0, [5, 6, 7])
    alone = objective.batch(3, [6])
    for name, value in alone.items():
        # matrix products of T5 round differently by batch size, in the seventh digit
        torch.testing.assert_close(value[0], together[name][1], atol=1e-5, rtol=1e-5)


# Loss


class Known(nn.Module):
    """A network that puts out, at every noise level, what makes D a given value: the teacher of a point mass."""

    def __init__(self, z0: Tensor, sigmas: Tensor, like: UNet2DConditionModel, condition: int | None) -> None:
        super().__init__()
        self.z0, self.sigmas = z0, sigmas
        self.config = FrozenDict(
            time_cond_proj_dim=condition, projection_class_embeddings_input_dim=48, prediction_type="v_prediction"
        )
        self.attn_processors: dict = {}

    def set_attn_processor(self, processors: dict) -> None:
        pass

    def forward(self, given: Tensor, t: Tensor, **conditions: Any) -> Any:
        sigma = self.sigmas[t].view(-1, 1, 1, 1).float()
        alpha = (1 + sigma**2) ** -0.5
        z0 = self.z0.repeat(len(given) // len(self.z0), 1, 1, 1)
        return SimpleNamespace(sample=(alpha * given - z0) / (sigma * alpha))  # v of D = z_0; given is alpha z


@pytest.mark.parametrize(
    ("kind", "estimate"), [("base", "recompute"), *(("relay", estimate) for estimate in relay.BLUR_ESTIMATES)]
)
def test_a_teacher_that_knows_the_picture_asks_for_just_that(runs: Path, kind: str, estimate: str) -> None:
    """Both branches of the teacher and the student put out z_0: no loss; a student that is off by e: kappa^2 e^2.

    In units of the variance-preserving state that the next step is given; each sample counts 1 / (1 + (w - 1)^power).
    """
    changes, power = {"distill__steps": [12, 3]}, 1
    if kind == "relay":
        power = 2
        changes |= {"distill__blur_estimate": estimate, "distill__guidance_power": power}
    objective = stage(kind, runs, **changes)
    batch = objective.batch(0, list(range(8)))
    sigmas = schedule.make_sigmas()
    objective._frozen["teacher"] = Known(batch["z0"], sigmas, objective.trained, None)
    objective.trained = Known(batch["z0"], sigmas, objective.trained, 8)
    # float32 at sigma 14.6 and kappa 0.2 costs two of its seven digits, and squares are taken
    assert objective(batch)["loss"].item() < 1e-8
    objective.trained.z0 = batch["z0"] + 0.5
    now = objective.levels[3].at(batch["t"], 1)
    sigma, sigma_next, f, f_next = now
    gain = 1 - sigma_next / sigma if kind == "base" else 1 - f_next - sigma_next / sigma * (1 - f)
    if kind == "relay" and estimate == "carry":
        gain = 1 - f_next / f
    counts = 1 / (1 + (batch["guidance"] - 1) ** power) / (1 + sigma_next**2)
    assert objective(batch)["loss"].item() == pytest.approx((0.25 * gain**2 * counts).mean().item(), rel=1e-4)


@pytest.mark.parametrize("estimate", relay.BLUR_ESTIMATES)
def test_a_relays_steps_begin_with_the_true_blurred_latents_where_they_are_carried(
    runs: Path, monkeypatch: pytest.MonkeyPatch, estimate: str
) -> None:
    objective = stage("relay", runs, distill__steps=[12, 3], distill__blur_estimate=estimate)
    batch, seen = objective.batch(0, list(range(8))), []
    run_steps = step.run_steps
    monkeypatch.setattr(step, "run_steps", lambda *given: seen.append(given) or run_steps(*given))
    objective(batch)
    _, z, low, _, first, count, told = seen[0]
    assert (first.tolist(), count, told) == ((4 * batch["t"]).tolist(), 4, estimate)
    f = ((3 - batch["t"]) / 3).view(-1, 1, 1, 1)
    blurred = (1 - f) * batch["z0"] + f * batch["zL"]
    torch.testing.assert_close(low, batch["zL"] if estimate == "recompute" else blurred)
    sigma = schedule.make_sigmas()[[299, 199, 99]].float()[batch["t"]].view(-1, 1, 1, 1)  # equation 5
    torch.testing.assert_close(z, blurred + sigma * batch["noise"])


def guided(unet: UNet2DConditionModel, z: Tensor, t: int, text: Tensor, w: Tensor, size: int) -> Tensor:
    """Both branches, one after the other, with zeros for the unconditional one's text."""
    given = {"class_labels": labels(size, len(z))}
    unconditional, conditional = (unet(z, t, encoder_hidden_states=x, **given).sample for x in (0 * text, text))
    return unconditional + w.view(-1, 1, 1, 1) * (conditional - unconditional)


@pytest.mark.parametrize("estimate", relay.BLUR_ESTIMATES)
def test_the_loss_of_a_relay_is_the_schedulers_two_steps_against_one(runs: Path, estimate: str) -> None:
    """Teacher and student by `RelayScheduler`, whose steps are tested against the published sampler's equations."""
    objective = stage("relay", runs, distill__blur_estimate=estimate)  # 4 steps to 2, student as the teacher
    batch = objective.batch(0, list(range(8)))
    batch["t"] = torch.zeros(8, dtype=torch.long)  # the first step, where what is carried is z_L
    teacher = UNet2DConditionModel.from_pretrained(runs / "relay" / "weights" / "relay_unet")
    fine, coarse = (RelayScheduler.from_config(objective.scheduler.config) for _ in range(2))
    assert fine.config.blur_estimate == estimate
    fine.set_timesteps(4)
    coarse.set_timesteps(2)
    start = ended = fine.add_start_noise(batch["zL"], batch["noise"])
    with torch.no_grad():
        for t in fine.timesteps[:2]:
            output = guided(teacher, fine.scale_model_input(ended, t), t, batch["text"], batch["guidance"], 128)
            ended = fine.step(output, t, ended, batch["zL"]).prev_sample
        t, given = coarse.timesteps[0], {"class_labels": labels(128, 8)}
        output = teacher(coarse.scale_model_input(start, t), t, encoder_hidden_states=batch["text"], **given).sample
        alone = coarse.step(output, t, start, batch["zL"]).prev_sample
        loss = objective(batch)["loss"].item()
        missed = coarse.scale_model_input(alone - ended, coarse.timesteps[1])  # as the next step's network is given it
    # networks in float32, guided by up to 8
    errors, counts = missed.square().mean((1, 2, 3)), 1 / batch["guidance"]
    assert loss == pytest.approx((counts * errors).mean().item(), rel=1e-3)


# Validation


def pipeline(runs: Path, **components: Any) -> CogView3Pipeline:
    parts = {"vae": None, "tokenizer": None, "text_encoder": None, "scheduler": None, **components}
    pipe = CogView3Pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_bases_final_latents_are_the_pipelines(runs: Path) -> None:
    """The teacher with both branches in 4 steps; a student with guidance as a condition in 2."""
    objective = stage("base", runs, distill__guidance=3.0, distill__guidance_range=[1.0, 3.0])
    torch.nn.init.normal_(objective.trained.time_embedding.cond_proj.weight)
    teacher = UNet2DConditionModel.from_pretrained(runs / "base" / "weights" / "unet")
    pictures = objective._pictures
    for network, steps in ((teacher, 4), (objective.trained, 2)):
        pipe = pipeline(runs, unet=network.eval(), scheduler=objective.scheduler)
        expected = pipe(
            prompt_embeds=pictures["text"],
            latents=pictures["noise"],
            num_inference_steps=steps,
            guidance_scale=3.0,
            output_type="latent",
        ).images
        with torch.no_grad():
            finals = objective._finals(network, objective.levels[steps], 2)
        # the pipeline's sigmas are diffusers', in float32
        torch.testing.assert_close(finals, expected, atol=1e-3, rtol=1e-3)


def test_figures_and_pictures_are_of_the_same_prompts_and_noise(runs: Path) -> None:
    objective = stage("relay", runs)
    figures = objective.validate()
    # the student is its teacher, but for guidance: 4.0 for one, none (1) for the other
    again = stage("relay", runs, distill__guidance=1.0).validate()
    assert again["difference"] == pytest.approx(again["undistilled"], rel=1e-4)
    assert figures["difference"] != pytest.approx(figures["undistilled"], rel=1e-2)
    assert 0 <= figures["facts_teacher"] <= 1
    assert objective.validate() == figures
    picture = np.asarray(objective.samples())
    assert picture.shape == (2 * 128, 2 * 128, 3)  # two pictures are validated on
    with torch.no_grad():
        objective.trained.conv_out.bias += 3.0
    changed = np.asarray(objective.samples())
    assert np.array_equal(changed[:128], picture[:128])
    assert not np.array_equal(changed[128:], picture[128:])
    assert objective.validate()["difference"] > figures["difference"]


def test_the_last_steps_of_both_end_at_no_noise(runs: Path) -> None:
    objective = stage("relay", runs, number=2)
    for steps in (2, 1):
        levels = objective.levels[steps]
        assert (levels.sigmas[-1], levels.f[-1]) == (0, 0)
        assert torch.equal(step.step_gain(levels.at(torch.tensor([steps - 1]), 1)), torch.ones(1, dtype=torch.float64))


# Pictures of one's own


@pytest.mark.parametrize("kind", ["base", "relay"])
def test_pictures_in_shards_are_distilled_from_alike(
    runs: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tiny_distillation(kind, runs).to_dict()
    tables["data"] = {**DATA, "vae": str(runs / "vae"), "text": str(runs / "text")}
    tables["data"]["shards"] = [write_pictures(tmp_path / "tars")]
    recipe = parse_recipe(tables, "tiny")
    objective = Distillation(recipe.round(1, recipe.distill.teacher))
    objective.prepare("cpu")
    seen, output = [], objective._output

    def record(network: nn.Module, z: Tensor, levels: Any, number: Tensor, batch: Any, text: Tensor) -> Tensor:
        seen.append(batch["sizes"])
        return output(network, z, levels, number, batch, text)

    monkeypatch.setattr(objective, "_output", record)
    shapes = set()
    for first in range(0, 16, 2):
        batch = objective.batch(first, [first, first + 1])
        assert objective(batch)["loss"].isfinite()
        shapes.add(tuple(batch["z0"].shape[2:]))
        assert all(sizes is batch["sizes"] for sizes in seen), "teacher and student are told the pictures' sizes"
        seen.clear()
    assert len(shapes) > 1
    figures = objective.validate()
    assert figures.keys() >= {"loss", "difference", "undistilled", "data_used"}
    assert not any("facts" in name for name in figures)
    assert objective.samples().size == (2 * 96, 2 * 96)
