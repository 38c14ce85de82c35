"""Recipes of distillations: what they hold, what a round's is, and how a wrong one is refused."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cogview3.config import DistillBaseRecipe, DistillRelayRound, UserError, load_recipe, parse_recipe
from cogview3.distillation import rounds
from cogview3.distillation.rounds import check_teacher, distill
from cogview3.distillation.teacher import teacher_scheduler
from cogview3.training.objectives import build
from tests.distillation.conftest import tiny_distillation
from tests.training.conftest import tiny_recipe


@pytest.mark.parametrize("stage", ["base", "relay"])
def test_the_packaged_ladders_end_in_4_and_1_steps_and_start_from_the_shipped_model(stage: str) -> None:
    recipe = load_recipe(f"scenes/distill_{stage}")
    assert (recipe.distill.teacher, recipe.data.vae, recipe.data.text) == ("scenes",) * 3
    assert recipe.distill.steps[-1] == {"base": 4, "relay": 1}[stage]
    assert recipe.data.size == load_recipe(f"scenes/{stage}").data.size


def test_one_length_holds_for_all_rounds_or_each_has_its_own() -> None:
    ladder = "distill.steps=[16, 8, 4]"
    one = load_recipe("scenes/distill_base", [ladder, "train.images=8000"])
    assert [one.round(number, "t").train.images for number in (1, 2)] == [8000] * 2
    each = load_recipe("scenes/distill_base", [ladder, "train.images=[32, 64]"])
    assert [each.round(number, "t").train.images for number in (1, 2)] == [32, 64]


def test_a_rounds_recipe_is_the_whole_ones_but_for_teacher_steps_and_length(tmp_path: Path) -> None:
    steps = ["distill.steps=[4, 2, 1]", "train.images=[9600, 12800]"]
    recipe = load_recipe("scenes/distill_relay", ["distill.blur_estimate=carry", *steps])
    part = recipe.round(2, "runs/x/round-2")
    assert isinstance(part, DistillRelayRound)
    assert (part.name, part.kind) == ("scenes-distill_relay-round-1", "distill_relay")
    assert (part.distill.teacher, part.distill.steps, part.train.images) == ("runs/x/round-2", (2, 1), 12_800)
    assert part.distill.blur_estimate == "carry"
    assert (part.data, part.optimizer, part.validate_) == (recipe.data, recipe.optimizer, recipe.validate_)
    stored = tmp_path / "recipe.toml"  # as the run folder keeps it: a distillation of one round
    stored.write_text(tomli_w.dumps(part.to_dict()))
    again = load_recipe(str(stored))
    assert (again.rounds, again.distill, again.train.images) == (1, part.distill, (12_800,))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.steps=[64, 24]", ["distill.steps", "24 ", "[64, 24]"]),
        ("distill.steps=[4, 4]", ["distill.steps", "[4, 4]"]),
        ("distill.steps=[2, 4]", ["distill.steps", "[2, 4]"]),
        ("distill.steps=[4]", ["distill.steps", "at least 2", "[4]"]),
        ("distill.steps=[4, 0]", ["distill.steps.1", "greater than 0"]),
        ("distill.steps=4", ["distill.steps", "4"]),
        ("distill.guidance_range=[12.0, 1.0]", ["distill.guidance_range", "lowest", "[12.0, 1.0]"]),
        ("distill.guidance_range=[5.0, 6.0]", ["distill.guidance", "give 5 to 6", "2.5"]),
        ("distill.guidance=13.0", ["distill.guidance", "give 1 to 8", "13.0"]),
        ("distill.guidance_width=7", ["distill.guidance_width", "multiple of 2", "7"]),
        ("distill.blur_estimate=both", ["distill.blur_estimate", "'recompute' or 'carry'", "'both'"]),
        ("distill.relay_start=0", ["distill.relay_start", "0"]),
        ("distill.fine_tune_images=9", ["distill.fine_tune_images", "relay_start that differs", "9"]),
        ("distill.teachers=a", ["distill.teachers", "unknown", "teacher, steps"]),
        ("model.head_dim=3", ["model", "unknown", "distill"]),
        ("train.images=[16, 16, 16]", ["distill", "steps has 1 rounds, but train.images has 3"]),
        ("train.images=0", ["train.images", "greater than 0"]),
        ("train.images=[]", ["train.images", "at least 1"]),
        ("train.images=many", ["train.images", "'many'"]),
    ],
)
def test_wrong_values_are_refused_by_key_value_and_mend(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("scenes/distill_relay", [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["distill.relay_start", "distill.fine_tune_images", "data.degraded_share"])
def test_what_is_a_relays_is_refused_for_a_base(key: str) -> None:
    value = "0.5" if "share" in key else "5"
    with pytest.raises(UserError, match=key.partition(".")[2]):
        load_recipe("scenes/distill_base", [f"{key}={value}"])


@pytest.mark.parametrize("name", ["scenes/distill_base", "scenes/distill_relay"])
def test_to_dict_through_toml_and_back_is_the_same_recipe(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_recipe(tomllib.loads(tomli_w.dumps(recipe.to_dict())), "again") == recipe


def test_train_and_distill_name_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind vae; run it with: cogview3 train"):
        distill(load_recipe("scenes/vae"), tmp_path / "run")
    recipe = load_recipe("scenes/distill_base")
    assert isinstance(recipe, DistillBaseRecipe)
    with pytest.raises(UserError, match="kind distill_base; run it with: cogview3 distill"):
        build(recipe)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("base", {"distill__teacher": "./runs/none"}, "no unet in './runs/none'"),
        ("relay", {"distill__teacher": "{runs}/base"}, "no relay_unet in '.*base'"),
        ("base", {"distill__steps": [2000, 4]}, "distill.steps: num_steps 2000 is more than the 1000 noise levels"),
        ("relay", {"distill__steps": [400, 4]}, "distill.steps: num_steps 400 repeats noise levels"),
        ("relay", {"distill__relay_start": 200}, "relay_start is 200, but the teacher .* was trained for 300; leave"),
        (
            "relay",
            {"distill__relay_start": 100, "distill__fine_tune_images": 4, "distill__steps": [200, 1]},
            "num_steps 200 repeats noise levels .relay_start 100",
        ),
        (
            "relay",
            {"distill__relay_start": 200, "distill__fine_tune_images": 4, "data__text_dropout": 0.0},
            "data.text_dropout is 0, .*fine_tune_images .*give a share above 0, such as 0.1",
        ),
        ("base", {"data__vae": "./runs/none"}, "no vae in './runs/none'"),
        ("base", {"data__text": "./runs/none"}, "no text_encoder in './runs/none'"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_any_work(
    runs: Path, tmp_path: Path, stage: str, changes: dict[str, Any], words: str
) -> None:
    changes = {key: value.format(runs=runs) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError, match=words) as caught:
        distill(tiny_distillation(stage, runs, **changes), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill__steps": [4, 2, 1]}, "steps begins with 4, but the teacher .*distilled for 2 steps; begin with 2"),
        ({"distill__guidance_range": [1.0, 12.0]}, "guidance_range is 1 to 12, .*distilled for 1 to 8; keep within"),
        ({"distill__guidance_range": [0.5, 8.0]}, "guidance_range is 0.5 to 8, .*distilled for 1 to 8; keep within"),
    ],
)
def test_a_distilled_teacher_goes_on_from_its_own_steps_and_range(
    runs: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(runs / "base" / "weights", teacher / "weights")
    told = tiny_distillation("base", runs, distill__steps=[4, 2], distill__guidance_range=[1.0, 8.0])
    (teacher / "recipe.toml").write_text(tomli_w.dumps(told.to_dict()))
    fitting = {"distill__teacher": str(teacher), "distill__steps": [2, 1], "distill__guidance_range": [2.0, 8.0]}
    assert check_teacher(tiny_distillation("base", runs, **fitting)) is None
    with pytest.raises(UserError, match=words):
        distill(tiny_distillation("base", runs, **{**fitting, **changes}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_teacher_distilled_for_the_other_stage_is_told_so(runs: Path, tmp_path: Path) -> None:
    """It may have the right steps, or others: what is wrong is the stage."""
    told = tiny_distillation("base", runs, distill__steps=[8, 4])
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(told.to_dict()))
    with pytest.raises(UserError, match="is a run of kind distill_base; give one of a relay"):
        check_teacher(tiny_distillation("relay", runs, distill__teacher=str(tmp_path), distill__steps=[5, 1]))


def test_teacher_and_student_make_steps_of_first_order(runs: Path, tmp_path: Path) -> None:
    teacher = with_scheduler(runs, tmp_path, solver_order=2, power=1.5)
    scheduler = teacher_scheduler(tiny_distillation("relay", runs, distill__teacher=teacher).distill, True)
    assert (scheduler.config.solver_order, scheduler.config.power) == (1, 1.5)


def test_what_a_fine_tuning_would_lose_of_the_teachers_sampler_is_refused(runs: Path, tmp_path: Path) -> None:
    teacher = with_scheduler(runs, tmp_path, power=1.5)
    changes = {"distill__teacher": teacher, "distill__relay_start": 200, "distill__fine_tune_images": 4}
    with pytest.raises(UserError, match=r"fine_tune_images: the relay scheduler of .* has power 1.5, .* is for 1.0"):
        check_teacher(tiny_distillation("relay", runs, **changes))
    assert check_teacher(tiny_distillation("relay", runs, distill__teacher=teacher)) is None


def with_scheduler(runs: Path, folder: Path, **changes: Any) -> str:
    """A copy of the tiny relay's run whose scheduler has other entries."""
    shutil.copytree(runs / "relay", folder / "teacher")
    path = folder / "teacher" / "weights" / "relay_scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder / "teacher")


@pytest.mark.parametrize("stage", ["base", "relay"])
def test_the_papers_distillations_are_sharded_as_its_other_stages(stage: str) -> None:
    places = [f"data.{name}=model" for name in ("vae", "text")] + ['data.shards=["a.tar"]']
    recipe, other = (load_recipe(f"paper/{name}", places) for name in (f"distill_{stage}", "base_512"))
    for key in ("shard", "on_spike", "spike_factor"):
        assert getattr(recipe.train, key) == getattr(other.train, key), key
    assert recipe.train.shard
    if stage == "relay":  # its fine-tuned teacher needs both branches
        assert recipe.data.text_dropout == load_recipe("scenes/distill_relay").data.text_dropout == 0.1


def test_the_fine_tuning_is_a_relay_recipe_of_the_teachers_network(runs: Path) -> None:
    recipe = tiny_distillation("relay", runs, distill__relay_start=200, distill__fine_tune_images=4)
    made, teacher = check_teacher(recipe), tiny_recipe("relay", runs)
    assert made is not None
    assert made.model == teacher.model
    assert made.recipe.start_from == recipe.distill.teacher
    assert (made.objective.prediction, made.objective.relay_start) == (teacher.objective.prediction, 200)
    assert (made.data, made.optimizer, made.train.images) == (recipe.data, recipe.optimizer, 4)
    assert check_teacher(tiny_distillation("relay", runs)) is None


@pytest.mark.parametrize("given", [None, "recompute", "carry"])
def test_the_rounds_after_a_fine_tuning_keep_the_teachers_estimate(
    runs: Path, tmp_path: Path, given: str | None
) -> None:
    """The fine-tuned run's scheduler would say "recompute"."""
    teacher = with_scheduler(runs, tmp_path, blur_estimate="carry")
    changes = {"distill__relay_start": 200, "distill__fine_tune_images": 4, "distill__teacher": teacher}
    recipe = tiny_distillation("relay", runs, **changes, **({"distill__blur_estimate": given} if given else {}))
    kept = rounds._with_estimate(recipe).round(1, str(runs / "relay"))
    assert teacher_scheduler(kept.distill.model_copy(update={"relay_start": None}), True).config.blur_estimate == (
        given or "carry"
    )
