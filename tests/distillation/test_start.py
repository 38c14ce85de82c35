"""`recipe.start_from`: a first round's student begins as another student, which must be one of the same network."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from cogview3.config import UserError
from cogview3.distillation.objective import Distillation
from cogview3.distillation.rounds import distill
from cogview3.distillation.teacher import check_start, load_teacher, student_of
from cogview3.training.export import export
from tests.distillation.conftest import tiny_distillation


def tiny_student(runs: Path, stage: str, folder: Path, width: int = 8) -> Path:
    """A run's folder whose network is a student of the tiny teacher, with weights of its own."""
    name, scheduler = ("unet", "scheduler") if stage == "base" else ("relay_unet", "relay_scheduler")
    settings = tiny_distillation(stage, runs).distill
    student = student_of(load_teacher(settings, stage == "relay"), width)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    student.save_pretrained(folder / "weights" / name)
    shutil.copytree(runs / stage / "weights" / scheduler, folder / "weights" / scheduler)
    return folder


def first_round(runs: Path, stage: str, start: str | None) -> Distillation:
    recipe = tiny_distillation(stage, runs, **({} if start is None else {"recipe__start_from": start}))
    objective = Distillation(recipe.round(1, recipe.distill.teacher))
    objective.prepare("cpu")
    return objective


@pytest.mark.parametrize("stage", ["base", "relay"])
def test_the_student_begins_as_the_one_given_and_learns_from_its_teacher(
    runs: Path, tmp_path: Path, stage: str
) -> None:
    given = tiny_student(runs, stage, tmp_path / "student")
    name = "unet" if stage == "base" else "relay_unet"
    wanted = UNet2DConditionModel.from_pretrained(given / "weights" / name).state_dict()
    alone, begun = first_round(runs, stage, None), first_round(runs, stage, str(given))
    for key, value in begun.trained.state_dict().items():
        assert torch.equal(value, wanted[key]), key
    teacher = alone._frozen["teacher"].state_dict()
    for key, value in begun._frozen["teacher"].state_dict().items():
        assert torch.equal(value, teacher[key]), key
    batch = begun.batch(0, list(range(8)))
    with torch.no_grad():
        assert begun(batch)["loss"].item() != pytest.approx(alone(batch)["loss"].item(), rel=0.01)


def test_a_models_mode_is_begun_with(runs: Path, tmp_path: Path) -> None:
    students = {stage: tiny_student(runs, stage, tmp_path / stage) for stage in ("base", "relay")}
    parts = {name: runs / name for name in ("vae", "text", "base", "relay")}
    sampling = {"steps": 3, "relay_steps": 2, "guidance": 4.0}
    export(**parts, modes={"2+2": (students["base"], students["relay"])}, out=tmp_path / "model", sampling=sampling)
    for stage, name in (("base", "unet"), ("relay", "relay_unet")):
        wanted = UNet2DConditionModel.from_pretrained(tmp_path / "model" / "modes" / "2+2" / name).state_dict()
        begun = first_round(runs, stage, f"{tmp_path / 'model'}@2+2")
        assert begun.trained.dtype == torch.float32  # the model's is float16
        for key, value in begun.trained.state_dict().items():
            assert torch.equal(value, wanted[key].float()), key


def test_only_the_first_round_begins_with_it(runs: Path, tmp_path: Path) -> None:
    given = str(tiny_student(runs, "base", tmp_path / "student"))
    recipe = tiny_distillation("base", runs, recipe__start_from=given, train__images=2, validate__images=1)
    result = distill(recipe, tmp_path / "run", device="cpu")
    assert [entry["round"] for entry in result["rounds"]] == ["round-2", "round-1"]
    starts = [
        tomllib.loads((tmp_path / "run" / name / "recipe.toml").read_text())["recipe"].get("start_from")
        for name in (".", "round-2", "round-1")
    ]
    assert starts == [given, given, None]


@pytest.mark.parametrize("entry", [{"sample_size": 16}, {"sample_size": [8, 8]}, {"transformer_layers_per_block": 1}])
def test_what_makes_no_other_network_does_not_matter(runs: Path, tmp_path: Path, entry: dict[str, Any]) -> None:
    given = tiny_student(runs, "base", tmp_path / "student")
    path = given / "weights" / "unet" / "config.json"
    config = json.loads(path.read_text())
    for key, value in entry.items():
        assert config[key] != value
    path.write_text(json.dumps(config | entry))
    check_start(tiny_distillation("base", runs).distill, str(given), is_relay=False)


def test_a_scheduler_that_names_no_prediction_has_the_customary_one(runs: Path, tmp_path: Path) -> None:
    given = tiny_student(runs, "base", tmp_path / "student")
    path = given / "weights" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    del config["prediction_type"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="predicts epsilon, but the teacher"):
        check_start(tiny_distillation("base", runs).distill, str(given), is_relay=False)


@pytest.mark.slow
def test_it_is_needed_until_the_first_round_is_finished(runs: Path, tmp_path: Path) -> None:
    given = tiny_student(runs, "base", tmp_path / "student")
    recipe = tiny_distillation("base", runs, recipe__start_from=str(given), distill__steps=[2, 1], train__images=2)
    distill(recipe, tmp_path / "run", device="cpu")
    shutil.rmtree(given)
    assert [entry["round"] for entry in distill(recipe, tmp_path / "run", device="cpu")["rounds"]] == ["round-1"]
    with pytest.raises(UserError, match="no unet in"):
        distill(recipe, tmp_path / "other", device="cpu")


def test_a_run_is_not_moved_aside_from_under_itself(runs: Path, tmp_path: Path) -> None:
    student = tiny_student(runs, "base", tmp_path / "run")
    recipe = tiny_distillation("base", runs, recipe__start_from=str(student))
    with pytest.raises(UserError, match=r"recipe.start_from .* lies in the run that --restart moves aside; .* --out"):
        distill(recipe, student, restart=True, device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def _another_network(runs: Path, folder: Path, make_unet: Callable[..., UNet2DConditionModel]) -> Path:
    student = tiny_student(runs, "base", folder)
    shutil.rmtree(student / "weights" / "unet")
    make_unet(time_cond_proj_dim=8, block_out_channels=(8, 16, 24)).save_pretrained(student / "weights" / "unet")
    return student


def _another_prediction(runs: Path, folder: Path, _: Any) -> Path:
    student = tiny_student(runs, "base", folder)
    path = student / "weights" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    assert config["prediction_type"] == "v_prediction"
    path.write_text(json.dumps(config | {"prediction_type": "epsilon"}))
    return student


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda runs, *_: runs / "base", "is not distilled; give a run of distill or MODEL@MODE, or leave it out"),
        (
            lambda runs, folder, _: tiny_student(runs, "base", folder, width=12),
            "embeds guidance 12 wide, not 8; set distill.guidance_width to 12",
        ),
        (_another_network, r"another network than the teacher .*: \w+ is .*, not .*; give a student"),
        (_another_prediction, "predicts epsilon, but the teacher .* v_prediction; give a student"),
        (lambda runs, *_: runs / "vae", "no unet in"),
        (lambda *_: "scenes@9+9", r"no mode '9\+9': choose from 50\+10"),
    ],
)
def test_what_no_student_can_begin_as_is_refused_before_any_work(
    runs: Path,
    tmp_path: Path,
    make_unet: Callable[..., UNet2DConditionModel],
    make: Callable[..., Path | str],
    words: str,
) -> None:
    given = make(runs, tmp_path / "student", make_unet)
    recipe = tiny_distillation("base", runs, recipe__start_from=str(given))
    with pytest.raises(UserError, match=words):
        distill(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
