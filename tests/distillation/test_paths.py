"""Paths of the teacher's own: that they are the pipeline's samplings, how often they come, and after a stop."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from cogview3.config import UserError, load_recipe, parse_recipe
from cogview3.diffusion import schedule
from cogview3.distillation import paths
from cogview3.distillation.objective import Distillation
from cogview3.distillation.rounds import check_teacher, distill
from cogview3.generation.scheduler import RelayScheduler
from cogview3.training.objectives import Interrupted
from tests.distillation.conftest import tiny_distillation
from tests.distillation.test_objective import Known, guided, pipeline, stage
from tests.distillation.test_rounds import after_step, content, in_fresh_state
from tests.training.test_sources import DATA, write_pictures

POOL = {"distill__paths": 4, "distill__visits": 3, "train__batch": 2, "train__images": 48}


def learned(objective: Distillation, samples: int, first: int = 0) -> list[dict[str, Tensor]]:
    """Samples one after the other, in batches of 2."""
    found = []
    for start in range(first, first + samples, 2):
        batch = objective.batch(start, [start, start + 1])
        found += [{name: value[place] for name, value in batch.items()} for place in range(2)]
    return found


# What a path is


def test_a_bases_path_is_the_pipelines_sampling(runs: Path) -> None:
    """Two student's steps of two teacher's each: states after steps 2 and 4 of the pipeline, from its own noise."""
    objective = stage("base", runs, distill__guidance_range=[3.0, 3.0], distill__guidance=3.0, **POOL)
    source = objective._noisy(objective.source.take(0, [0, 1, 2, 3]))  # what the pool's first paths are drawn with
    teacher = UNet2DConditionModel.from_pretrained(runs / "base" / "weights" / "unet")
    seen: list[Tensor] = []

    def note(pipe: Any, step: int, t: int, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(kwargs["latents"].clone())
        return kwargs

    pipe = pipeline(runs, unet=teacher.eval(), scheduler=objective.scheduler)
    given = {"prompt_embeds": source["text"], "latents": source["noise"], "guidance_scale": 3.0}
    pipe(num_inference_steps=4, output_type="latent", callback_on_step_end=note, **given)
    sigma = schedule.make_sigmas()[999]
    states = [source["noise"] * (1 + sigma**2).sqrt().float(), seen[1], seen[3]]
    found = set()
    for index, sample in enumerate(learned(objective, 24)):
        number, path = int(sample["t"]), index % 4
        for name, expected in (("z", states[number]), ("z_next", states[number + 1])):
            # the pipeline's sigmas are diffusers', in float32; z is up to 14.6 wide
            torch.testing.assert_close(sample[name], expected[path], atol=3e-3, rtol=1e-3)
        found.add((path, number))
    assert len(found) == 8


def test_a_relays_path_is_the_schedulers_sampling_from_the_small_picture(runs: Path) -> None:
    objective = stage("relay", runs, **POOL)
    source = objective._noisy(objective.source.take(0, [0, 1, 2, 3]))
    teacher = UNet2DConditionModel.from_pretrained(runs / "relay" / "weights" / "relay_unet")
    sampler = RelayScheduler.from_config(objective.scheduler.config)
    sampler.set_timesteps(4)
    z = sampler.add_start_noise(source["zL"], source["noise"])
    states = [z]
    with torch.no_grad():
        for t in sampler.timesteps:
            output = guided(teacher, sampler.scale_model_input(z, t), t, source["text"], source["guidance"], 128)
            z = sampler.step(output, t, z, source["zL"]).prev_sample
            states.append(z)
    for index, sample in enumerate(learned(objective, 8)):
        number, path = int(sample["t"]), index % 4
        assert torch.equal(sample["zL"], source["zL"][path])
        # networks in float32, guided by up to 12
        torch.testing.assert_close(sample["z"], states[2 * number][path], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(sample["z_next"], states[2 * number + 2][path], atol=1e-3, rtol=1e-3)


def test_a_student_that_is_off_by_e_loses_its_steps_gain_of_that(runs: Path) -> None:
    """Of a teacher that knows the picture, z_0: the mean square of z'' is kappa^2 e^2 / (1 + sigma''^2), each 1 / w."""
    objective = stage("base", runs, **{**POOL, "distill__steps": [12, 3], "train__images": 36})
    z0 = objective.source.fixed.latents["z0"][:1]
    sigmas = schedule.make_sigmas()
    objective._frozen["teacher"] = Known(z0, sigmas, objective.trained, None)
    batch = objective.batch(0, [0, 1])
    objective.trained = Known(z0, sigmas, objective.trained, 8)
    # the sampler's float32 from 14.6 on, and squares are taken
    assert objective(batch)["loss"].item() < 1e-8
    objective.trained.z0 = z0 + 0.5
    sigma, sigma_next, _, _ = objective.levels[3].at(batch["t"], 1)
    expected = (0.25 * (1 - sigma_next / sigma) ** 2 / (1 + sigma_next**2) / batch["guidance"]).mean().item()
    assert objective(batch)["loss"].item() == pytest.approx(expected, rel=1e-3)


# How often


def test_each_state_comes_as_often_as_asked_for_and_then_new_paths_do(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = stage("base", runs, **POOL)  # 4 paths of 2 states, 3 times
    drawn: list[int] = []
    path = objective._pool._draw
    objective._pool._draw = lambda given: drawn.append(len(given["guidance"])) or path(given)
    samples = learned(objective, 6)
    assert drawn == [2, 2]  # the first batches draw their paths
    samples += learned(objective, 18, 6)
    assert drawn == [2, 2]
    samples += learned(objective, 24, 24)
    assert drawn == [2, 2, 2, 2]
    for pool in (samples[:24], samples[24:]):
        counts = Counter((index % 4, int(sample["t"])) for index, sample in enumerate(pool))
        assert set(counts.values()) == {3}
        assert len(counts) == 8
    orders = {tuple(int(sample["t"]) for sample in samples[path:24:4]) for path in range(4)}
    assert len(orders) > 1  # paths are not all at the same noise level at once
    for path in range(4):
        texts = [sample["text"] for sample in samples[path::4]]
        assert all(torch.equal(text, texts[0]) for text in texts[:6])
        assert not torch.equal(texts[0], texts[6])
        assert samples[path]["guidance"] != samples[path + 24]["guidance"]
    assert "teacher's paths" not in capsys.readouterr().err


def test_the_validations_loss_is_of_paths_too(runs: Path) -> None:
    objective = stage("base", runs, **POOL)
    drawn: list[int] = []
    path = objective._path
    objective._path = lambda batch: drawn.append(len(batch["t"])) or path(batch)  # type: ignore[method-assign]
    figures = objective.validate()
    assert objective.validate() == figures
    assert drawn == [2]
    # an undistilled teacher's own steps, unguided, against its guided ones
    assert figures["loss"] > 0


# After a stop


@pytest.mark.parametrize(
    ("stopped", "told"),
    [
        (10, True),
        pytest.param(24, False, marks=pytest.mark.slow),  # between two pools
        pytest.param(2, True, marks=pytest.mark.slow),
        pytest.param(26, True, marks=pytest.mark.slow),
    ],
)
def test_pictures_in_shards_go_on_where_they_were(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stopped: int, told: bool
) -> None:
    tables = tiny_distillation("base", runs, **POOL).to_dict()
    tables["data"] = {**DATA, "vae": str(runs / "vae"), "text": str(runs / "text")}
    tables["data"]["shards"] = [write_pictures(tmp_path / "tars")]
    recipe = parse_recipe(tables, "tiny").round(1, str(runs / "base"))

    def fresh() -> Distillation:
        objective = Distillation(recipe)
        objective.prepare("cpu")
        return objective

    through = fresh()
    expected = learned(through, stopped)
    state = copy.deepcopy(through.state())
    expected += learned(through, 48 - stopped, stopped)
    assert len({tuple(sample["z"].shape) for sample in expected}) > 1  # of several aspect ratios
    assert all(".tar: " in key for key in through.keys([46, 47]))
    after = fresh()
    after.load_state(state)
    capsys.readouterr()
    for sample, other in zip(learned(after, 48 - stopped, stopped), expected[stopped:], strict=True):
        assert sample.keys() == other.keys()
        assert all(torch.equal(sample[name], other[name]) for name in sample)
    assert ("drawing the teacher's paths again: 0 of 4\n" in capsys.readouterr().err) is told


@pytest.mark.slow
def test_a_stopped_distillation_goes_on_exactly(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_distillation("relay", runs, **{**POOL, "train__images": 8, "distill__steps": [4, 2]})
    folders = []
    for name in ("through", "stopped"):
        out = tmp_path / name / "run"
        if name == "stopped":

            def stop() -> None:
                raise RuntimeError("killed")

            after_step(monkeypatch, "round-2", 6, stop)
            with pytest.raises(RuntimeError, match="killed"):
                in_fresh_state(lambda out=out: distill(recipe, out, device="cpu"))
        in_fresh_state(lambda out=out: distill(recipe, out, device="cpu"))
        folders.append(content(out))
    assert folders[0] == folders[1]
    assert "round-2/weights/relay_unet/config.json" in folders[0]


@pytest.mark.slow
def test_a_stop_is_heeded_while_paths_are_drawn_again(runs: Path) -> None:
    """What is stored then goes on with the same samples, and so does what is stored half-way through a new pool."""
    through, expected, states = stage("base", runs, **POOL), [], {}
    for place in (24, 30):  # a pool has 24 samples
        expected += learned(through, place - len(expected), len(expected))
        states[place] = copy.deepcopy(through.state())
    expected += learned(through, 48 - len(expected), len(expected))
    for place, state in states.items():
        stopped, answers = stage("base", runs, **POOL), iter([False, True])
        stopped.load_state(state)
        stopped.stop_asked = lambda answers=answers: next(answers)
        with pytest.raises(Interrupted):
            learned(stopped, 4, place)
        resumed = stage("base", runs, **POOL)
        resumed.load_state(stopped.state())
        for sample, other in zip(learned(resumed, 48 - place, place), expected[place:], strict=True):
            assert all(torch.equal(sample[name], other[name]) for name in other)


# What is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distill.paths=-1"], ["distill.paths", "greater than or equal to 0"]),
        (["distill.visits=0"], ["distill.visits", "greater than 0"]),
        (["distill.paths=1000"], ["paths is 1000", "train.batch 32"]),
        (["train.images=1000"], ["train.images must be a multiple of train.batch 32, not 1000"]),
    ],
)
def test_paths_are_drawn_and_learned_from_in_whole_batches(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("scenes/distill_base", overrides)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_carried_estimate_is_refused(runs: Path) -> None:
    recipe = tiny_distillation("relay", runs, distill__blur_estimate="carry", **POOL)
    with pytest.raises(UserError, match=r"distill\.paths: a path keeps no carried estimate"):
        check_teacher(recipe)


def test_a_pool_of_one_of_two_processes_has_its_paths_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process draws what it learns from: the same samples as of one process, each drawn once."""
    together = learned(stage("base", runs, **POOL), 24)
    for rank in (0, 1):
        objective = stage("base", runs, **POOL)
        fake = type("State", (), {"process_index": rank, "num_processes": 2, "is_main_process": rank == 0})
        monkeypatch.setattr(paths, "PartialState", fake)
        for index in range(rank, 24, 2):
            batch = objective.batch(index - rank, [index])
            assert batch["t"].item() == together[index]["t"]
            # matrix products round differently by batch size
            torch.testing.assert_close(batch["z_next"][0], together[index]["z_next"], atol=1e-3, rtol=1e-3)
