"""Distillation from start to end: round by round, each from the last, on the training loop.

runs/<name>/recipe.toml        the resolved recipe
runs/<name>/fine-tune/         an ordinary relay run, where the recipe has one
runs/<name>/round-<steps>/     a run for each round, named after the steps that its student takes
runs/<name>/rounds.json        the table of finished rounds
runs/<name>/weights/           the last round's, once it is finished
"""

import gc
import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from diffusers.models import UNet2DConditionModel

from cogview3 import checkpoints
from cogview3.config import (
    DistillBaseRecipe,
    DistillRecipe,
    DistillRelayRecipe,
    DistillRound,
    RelayRecipe,
    UserError,
    parse_recipe,
)
from cogview3.distillation.objective import Distillation
from cogview3.distillation.teacher import check_distilled, check_start, sampler_levels, teacher_scheduler
from cogview3.generation.scheduler import RelayScheduler
from cogview3.references import weights_folder
from cogview3.training.loop import PATIENCE, train

ROUNDS_FILE = "rounds.json"
FINE_TUNE = "fine-tune"
_STEPS = ("teacher_steps", "student_steps")


def distill(
    recipe: DistillRecipe, out: Path | None = None, restart: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Run all rounds of a recipe in the run folder `out`, going on where an earlier call stopped.

    Arguments are those of `training.loop.train`.

    Returns:
        {"run", "rounds"}: the folder, and the entries of rounds.json (`table_entry`).

    Raises:
        UserError: no distillation's recipe, no such teacher, impossible steps, or a folder of another recipe or in
            another process's use.
        FloatingPointError, SystemExit, KeyboardInterrupt: as `training.loop.train`.
    """
    if not isinstance(recipe, DistillBaseRecipe | DistillRelayRecipe):
        raise UserError(f"recipe {recipe.name} is of kind {recipe.kind}; run it with: cogview3 train")
    run = Path(out) if out else Path("runs") / recipe.name
    if not restart:
        checkpoints.check_run(run, recipe.to_dict())
    table = [] if restart else _read_table(run)
    fine_tuning = check_teacher(recipe, any(entry["round"] != FINE_TUNE for entry in table))
    if restart:
        _check_apart(recipe, run)
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    trained: list[str] = []

    def finish(part: RelayRecipe | DistillRound, folder: Path, **options: Any) -> str:
        """Train to the end what the table lacks; gives the folder as a reference to its weights."""
        if folder.name not in [entry["round"] for entry in table]:
            if state.is_main_process and isinstance(part, DistillRound) and part.distill.teacher in trained:
                checkpoints.set_entry(folder, "distill", "teacher", part.distill.teacher)  # the run may have been moved
            state.wait_for_everyone()
            train(part, folder, device=device, **options)
            state.wait_for_everyone()  # the main process writes the weights
            table.append(table_entry(folder, part))
            if state.is_main_process:
                checkpoints.write_text(run / ROUNDS_FILE, json.dumps({"format": 1, "rounds": table}, indent=1) + "\n")
        gc.collect()  # the networks of a finished run hang together in cycles
        trained.append(str(folder))
        return trained[-1]

    with checkpoints.open_run(run, recipe.to_dict(), restart) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        teacher = recipe.distill.teacher
        if fine_tuning is not None:
            teacher = finish(fine_tuning, run / FINE_TUNE)
            assert isinstance(recipe, DistillRelayRecipe)
            recipe = _with_estimate(recipe)
        for number in range(1, recipe.rounds + 1):
            part = recipe.round(number, teacher)
            teacher = finish(part, run / f"round-{part.distill.steps[1]}", objective=Distillation)
        if state.is_main_process:
            _copy_weights(Path(teacher) / "weights", run)
        return {"run": str(run), "rounds": table}


def _copy_weights(weights: Path, run: Path) -> None:
    if not weights.is_dir():
        raise UserError(
            f"{weights} is missing, although its round is finished: delete {run / ROUNDS_FILE} to write it again"
        )
    with checkpoints.whole_folder(run / "weights") as target:
        shutil.copytree(weights, target, dirs_exist_ok=True)


def _with_estimate(recipe: DistillRelayRecipe) -> DistillRelayRecipe:
    """The recipe with the blur estimate of its teacher, of which a fine-tuned one's scheduler knows nothing."""
    settings = recipe.distill
    estimate = teacher_scheduler(settings.model_copy(update={"relay_start": None}), True).config["blur_estimate"]
    if estimate == RelayScheduler().config["blur_estimate"]:
        return recipe
    return recipe.model_copy(update={"distill": settings.model_copy(update={"blur_estimate": estimate})})


def _check_apart(recipe: DistillRecipe, run: Path) -> None:
    """Refuse to move a run aside that the recipe begins with."""
    for name, given in (("distill.teacher", recipe.distill.teacher), ("recipe.start_from", recipe.recipe.start_from)):
        if given is not None and Path(given).resolve().is_relative_to(run.resolve()):
            raise UserError(f"{name} {given!r} lies in the run that --restart moves aside; give another with --out")


def check_teacher(recipe: DistillRecipe, begun: bool = False) -> RelayRecipe | None:
    """Refuse what cannot be distilled, before any work; gives the recipe of the fine-tuning, None without one.

    `begun`: the first round is finished, and what its student began as is not needed any more. Raises UserError naming
    the entry of the recipe at fault.
    """
    settings, is_relay = recipe.distill, isinstance(recipe, DistillRelayRecipe)
    fine_tuning = None
    check_distilled(settings, is_relay)
    if recipe.recipe.start_from and not begun:
        check_start(settings, recipe.recipe.start_from, is_relay)
    if isinstance(recipe, DistillRelayRecipe) and recipe.distill.fine_tune_images:
        if not recipe.data.text_dropout:
            raise UserError(
                "data.text_dropout is 0, but a teacher that is fine-tuned with distill.fine_tune_images is run without "
                "texts too; give a share above 0, such as 0.1"
            )
        network = UNet2DConditionModel.load_config(weights_folder(settings.teacher, "relay_unet"))
        plain = settings.model_copy(update={"relay_start": None})
        scheduler = teacher_scheduler(plain, is_relay)
        assert isinstance(scheduler, RelayScheduler)
        plain_config = RelayScheduler().config
        for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "power"):
            if scheduler.config[name] != plain_config[name]:
                raise UserError(
                    f"distill.fine_tune_images: the relay scheduler of {settings.teacher!r} has {name} "
                    f"{scheduler.config[name]}, and a fine-tuning is for {plain_config[name]}; leave it out"
                )
        fine_tuning = fine_tune_recipe(recipe, network, scheduler)
        scheduler = scheduler.changed(relay_start=recipe.distill.relay_start)
    else:
        weights_folder(settings.teacher, "relay_unet" if is_relay else "unet")
        scheduler = teacher_scheduler(settings, is_relay)
    if settings.paths and is_relay and scheduler.config["blur_estimate"] == "carry":
        raise UserError(
            "distill.paths: a path keeps no carried estimate of its blurred picture; set distill.blur_estimate to "
            '"recompute", or leave paths out'
        )
    for steps in settings.steps:
        sampler_levels(scheduler, steps)
    return fine_tuning


def fine_tune_recipe(recipe: DistillRelayRecipe, network: Mapping[str, Any], scheduler: RelayScheduler) -> RelayRecipe:
    """The relay recipe that trains the teacher, a UNet of configuration `network`, on with T_r = `distill.relay_start`.

    Its optimizer and data are the distillation's. Raises UserError where the teacher takes guidance as a condition.
    """
    settings, tables = recipe.distill, recipe.to_dict()
    if network.get("time_cond_proj_dim") is not None:
        raise UserError(
            f"distill.fine_tune_images: the teacher {settings.teacher!r} is distilled already; fine-tune before that"
        )
    channels = network["block_out_channels"]
    model = {
        "block_out_channels": list(channels),
        "layers_per_block": network["layers_per_block"],
        "transformer_layers_per_block": _three(network["transformer_layers_per_block"]),
        "head_dim": channels[1] // _three(network["attention_head_dim"])[1],
        "norm_num_groups": network["norm_num_groups"],
        "size_embedding": network["projection_class_embeddings_input_dim"] // 6,
    }
    objective = {
        "prediction": scheduler.config["prediction_type"],
        "relay_start": settings.relay_start,
        "blur": scheduler.config["blur"],
    }
    header = {"name": f"{recipe.name}-fine-tune", "kind": "relay", "start_from": settings.teacher}
    shared = {name: tables[name] for name in ("data", "optimizer", "validate")}
    length = tables["train"] | {"images": settings.fine_tune_images}
    made = {"recipe": header, "model": model, "objective": objective, "train": length, **shared}
    fine_tuning = parse_recipe(made, f"{recipe.name} (fine-tuning)")
    assert isinstance(fine_tuning, RelayRecipe)
    return fine_tuning


def table_entry(folder: Path, recipe: RelayRecipe | DistillRound) -> dict[str, Any]:
    """A finished run's line in the table, read from its metrics.jsonl.

    Keys: "round" (the folder's name), "teacher_steps" and "student_steps" (of a round), "images", "first_loss" and
    "loss" (first and last logged means), "seconds" (of training, by the logged rates) and the last validation's
    figures.

    Raises UserError where that is damaged.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        logged = [line for line in lines if "loss" in line]
        figures = [line for line in lines if "validation/loss" in line][-1]
        before = [0, *(line["images"] for line in logged)]
        losses = logged[0]["loss"], logged[-1]["loss"]
        rates = [max(line["images_per_second"], 0.005) for line in logged]  # rates are rounded to hundredths
        seconds = sum((line["images"] - seen) / rate for line, seen, rate in zip(logged, before, rates, strict=False))
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged; delete {folder} to train this round again") from None
    steps = {} if isinstance(recipe, RelayRecipe) else dict(zip(_STEPS, recipe.distill.steps, strict=True))
    return {
        "round": folder.name,
        **steps,
        "images": recipe.train.images,
        "first_loss": losses[0],
        "loss": losses[1],
        "seconds": round(seconds, 1),
        **{name: value for name, value in figures.items() if name.startswith("validation/")},
    }


def _read_table(run: Path) -> list[dict[str, Any]]:
    path, fix = run / ROUNDS_FILE, "start over with --restart"
    table = checkpoints.read_json(path, fix).get("rounds") if path.is_file() else []
    if not isinstance(table, list) or not all(isinstance(entry, dict) and "round" in entry for entry in table):
        raise UserError(f"{path} is damaged: {fix}")
    return table


def _three(value: int | tuple[int, ...]) -> list[int]:
    return [value] * 3 if isinstance(value, int) else list(value)
