"""Rounds: each from the last, resumed exactly, and what comes out is a model's mode that draws."""

import gc
import json
import os
import shutil
import signal
import tomllib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

from cogview3 import CogView3Pipeline
from cogview3.cli.app import app
from cogview3.config import UserError, load_recipe
from cogview3.distillation import rounds
from cogview3.distillation.objective import Distillation
from cogview3.distillation.rounds import distill
from cogview3.generation.scheduler import RelayScheduler
from cogview3.training import loop
from cogview3.training.export import export
from tests.distillation.conftest import tiny_distillation
from tests.training.processes import in_processes

FINE_TUNED = {"distill__relay_start": 200, "distill__fine_tune_images": 4, "distill__steps": [2, 1]}


def in_fresh_state(act: Callable[[], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COGVIEW3_TENSORBOARD", "0")
        AcceleratorState._reset_state(reset_partial_state=True)
        return act()


@pytest.fixture(scope="module")
def base(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed distillation of the base, 4 steps to 2 to 1: for reading only."""
    out = tmp_path_factory.mktemp("distilled") / "base"
    in_fresh_state(lambda: distill(tiny_distillation("base", runs), out, device="cpu"))
    return out


@pytest.fixture(scope="module")
def relay(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A relay of one step from T_r = 200, its teacher of 300 fine-tuned for that: for reading only."""
    out = tmp_path_factory.mktemp("distilled") / "relay"
    in_fresh_state(lambda: distill(tiny_distillation("relay", runs, **FINE_TUNED), out, device="cpu"))
    return out


def content(run: Path) -> dict[str, Any]:
    """All that a run leaves, without what the clock decides or names the run's own folder."""
    files: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.name == "metrics.jsonl":
            files[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name == "rounds.json":
            files[name] = [_timeless(entry) for entry in json.loads(path.read_text())["rounds"]]
        elif path.name == "recipe.toml":
            files[name] = path.read_text().replace(str(run), "RUN")
        elif path.is_file():
            files[name] = path.read_bytes()
    return files


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("images_per_second", "seconds")}


def after_step(monkeypatch: pytest.MonkeyPatch, folder: str, images: int, act: Callable[[], object]) -> None:
    """Let `act` happen once, right after the step of the run in `folder` that ends at `images`."""
    advance, done = loop._Run._advance, []

    def advance_and_act(run: Any) -> dict[str, float]:
        figures = advance(run)
        if run.run.name == folder and run.images == images and not done:
            done.append(images)
            act()
        return figures

    monkeypatch.setattr(loop._Run, "_advance", advance_and_act)


# What a run leaves


def test_each_round_starts_from_the_last_and_the_last_ones_weights_are_the_runs(runs: Path, base: Path) -> None:
    recipes = {name: tomllib.loads((base / name / "recipe.toml").read_text()) for name in ("round-2", "round-1")}
    assert [recipe["distill"]["steps"] for recipe in recipes.values()] == [[4, 2], [2, 1]]
    assert recipes["round-2"]["distill"]["teacher"] == str(runs / "base")
    assert recipes["round-1"]["distill"]["teacher"] == str(base / "round-2")
    assert sorted(path.name for path in (base / "weights").iterdir()) == ["scheduler", "unet"]
    for path in (base / "round-1" / "weights").rglob("*.*"):
        assert path.read_bytes() == (base / "weights" / path.relative_to(base / "round-1" / "weights")).read_bytes()
    first, last = (
        UNet2DConditionModel.from_pretrained(base / name / "weights" / "unet") for name in ("round-2", "round-1")
    )
    assert first.config.time_cond_proj_dim == last.config.time_cond_proj_dim == 8
    assert first.time_embedding.cond_proj.weight.abs().min() > 0  # zero at first, trained
    for name in ("round-2", "round-1"):
        assert sorted(path.name for path in (base / name / "samples").iterdir()) == ["images-8.png"]
    assert not list(base.rglob(".*"))


def test_the_table_tells_steps_losses_and_figures_of_the_rounds(base: Path) -> None:
    table = json.loads((base / "rounds.json").read_text())
    assert table["format"] == 1
    assert [(e["round"], e["teacher_steps"], e["student_steps"], e["images"]) for e in table["rounds"]] == [
        ("round-2", 4, 2, 8),
        ("round-1", 2, 1, 8),
    ]
    for entry in table["rounds"]:
        lines = [json.loads(line) for line in (base / entry["round"] / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert (entry["first_loss"], entry["loss"]) == (losses[0], losses[-1])
        assert lines[-1].items() >= {key: value for key, value in entry.items() if "/" in key}.items()
        names = {"loss", "difference", "undistilled", "facts_teacher", "facts_student"}
        assert {key.removeprefix("validation/") for key in entry if "/" in key} == names
        # two images between lines, at the rates that the lines tell
        seconds = sum(2 / line["images_per_second"] for line in lines if "loss" in line)
        assert entry["seconds"] == pytest.approx(seconds, abs=0.051)


def test_a_fine_tuning_goes_before_the_rounds_of_another_start(relay: Path) -> None:
    assert [entry["round"] for entry in json.loads((relay / "rounds.json").read_text())["rounds"]] == [
        "fine-tune",
        "round-1",
    ]
    starts = [
        RelayScheduler.from_pretrained(folder / "weights" / "relay_scheduler").config.relay_start
        for folder in (relay / "fine-tune", relay / "round-1", relay)
    ]
    assert starts == [200, 200, 200]
    fine_tuned = tomllib.loads((relay / "fine-tune" / "recipe.toml").read_text())
    assert (fine_tuned["recipe"]["kind"], fine_tuned["objective"]["relay_start"]) == ("relay", 200)
    part = tomllib.loads((relay / "round-1" / "recipe.toml").read_text())
    assert part["distill"]["teacher"] == str(relay / "fine-tune")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["base", pytest.param("relay", marks=pytest.mark.slow)])
def test_two_rounds_lower_their_losses(runs: Path, tmp_path: Path, stage: str) -> None:
    """On 64 samples that the rounds do not see, against the student as it begins."""
    changes = {"images": 96, "batch": 8, "log_images": 48, "checkpoint_images": 96}
    changes = {f"train__{key}": value for key, value in changes.items()} | {"validate__every_images": 96}
    recipe = tiny_distillation(stage, runs, **changes, optimizer__learning_rate=1e-3)
    distill(recipe, tmp_path / "run", device="cpu")
    name = "unet" if stage == "base" else "relay_unet"
    teachers = (recipe.distill.teacher, str(tmp_path / "run" / "round-2"))
    for number, teacher, student in ((1, *teachers), (2, teachers[1], str(tmp_path / "run" / "round-1"))):
        objective = Distillation(recipe.round(number, teacher))
        objective.prepare("cpu")
        batch = objective.batch(0, list(range(1000, 1064)))
        with torch.no_grad():
            before = objective(batch)["loss"].item()
            objective.trained = UNet2DConditionModel.from_pretrained(Path(student) / "weights" / name)
            after = objective(batch)["loss"].item()
        assert after < 0.9 * before, (before, after)


@pytest.mark.slow
def test_networks_of_a_finished_round_are_let_go(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref] = []
    init = Distillation.__init__

    def note(self: Distillation, recipe: Any) -> None:
        gc.disable()  # only what the rounds collect themselves counts
        assert [ref() for ref in seen] == [None] * len(seen)
        seen.append(weakref.ref(self))
        init(self, recipe)

    monkeypatch.setattr(Distillation, "__init__", note)
    try:
        recipe = tiny_distillation("base", runs, train__images=2, validate__images=1)
        distill(recipe, tmp_path / "run", device="cpu")
    finally:
        gc.enable()
    assert len(seen) == 2


# Resumption


def copied(run: Path, to: Path) -> Path:
    """A copy of a run in another place, whose rounds know it."""
    shutil.copytree(run, to)
    for path in to.glob("*/recipe.toml"):
        path.write_text(path.read_text().replace(str(run), str(to)))
    return to


@pytest.mark.parametrize(("folder", "images"), [("round-2", 2), pytest.param("round-1", 6, marks=pytest.mark.slow)])
def test_stopped_and_resumed_it_is_the_same_run(
    runs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, images: int
) -> None:
    recipe, run, part = tiny_distillation("base", runs), tmp_path / "base", ""
    if folder == "round-2":  # no need to do the second round again, too
        recipe, part = tiny_distillation("base", runs, distill__steps=[4, 2]), "round-2/"
    else:  # no need to do the first round again
        copied(base, run)
        shutil.rmtree(run / "round-1")
        shutil.rmtree(run / "weights")
        table = json.loads((run / "rounds.json").read_text())
        (run / "rounds.json").write_text(json.dumps({**table, "rounds": table["rounds"][:1]}))
    after_step(monkeypatch, folder, images, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        distill(recipe, run, device="cpu")
    assert caught.value.code == 143
    assert not (run / "weights").exists()
    distill(recipe, run, device="cpu")
    undisturbed, resumed = (
        {name: value for name, value in content(each).items() if name.startswith(part)} for each in (base, run)
    )
    assert any(name.endswith(".safetensors") for name in resumed)
    # a stop leaves a checkpoint of its own; two are kept
    for files in (undisturbed, resumed):
        for name in [name for name in files if "/checkpoints/" in name and "images-8" not in name]:
            del files[name]
    assert resumed == undisturbed


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on_as_if_nothing_was(
    runs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second round, whose teacher lies in the run, and then named otherwise."""
    recipe, run, moved = tiny_distillation("base", runs), tmp_path / "run", tmp_path / "elsewhere" / "moved"
    shutil.copytree(base, run)
    for name in ("round-1", "weights"):
        shutil.rmtree(run / name)
    table = json.loads((run / "rounds.json").read_text())
    (run / "rounds.json").write_text(json.dumps({**table, "rounds": table["rounds"][:1]}))
    after_step(monkeypatch, "round-1", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        distill(recipe, run, device="cpu")
    moved.parent.mkdir()
    run.rename(moved)
    monkeypatch.chdir(tmp_path)
    distill(recipe, Path("elsewhere") / "moved", device="cpu")
    undisturbed, resumed = content(base), content(moved)
    told = tomllib.loads(resumed.pop("round-1/recipe.toml")), tomllib.loads(undisturbed.pop("round-1/recipe.toml"))
    assert [recipe["distill"].pop("teacher") for recipe in told] == ["elsewhere/moved/round-2", "RUN/round-2"]
    assert told[0] == told[1]
    assert resumed == undisturbed


# Several processes


def run_command(*arguments: str) -> None:
    """The program, as `torchrun -m cogview3` begins it in every process."""
    app(["distill", *arguments, "--device", "cpu"])


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_one_of_them_reports(runs: Path, tmp_path: Path) -> None:
    recipe = tiny_distillation("base", runs, distill__steps=[2, 1], train__shard=True)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(recipe.to_dict()))
    found = {}
    for count in (1, 2):
        log, out = tmp_path / f"log-{count}", tmp_path / f"run-{count}"
        codes = in_processes(count, run_command, str(tmp_path / "tiny.toml"), "--out", str(out), log=log)
        logs = [log.with_name(f"{log.name}.{number}").read_text() for number in range(count)]
        assert codes == [0] * count, logs
        assert [f"run: {out}\nround-1: 2 to 1 steps, 8 images" in told for told in logs] == [True, False][:count]
        lines = [json.loads(line) for line in (out / "round-1" / "metrics.jsonl").read_text().splitlines()]
        found[count] = [value for line in lines for key, value in line.items() if key.endswith("loss")]
        assert (out / "weights" / "unet").is_dir()
        assert (out / "round-1" / "checkpoints" / "images-8" / "tensors").is_dir() == (count == 2)  # sharded
    assert len(found[1]) == 5  # of four steps and a validation
    assert found[2] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_a_round_cut_off_while_its_last_weights_were_written_writes_them_again(
    runs: Path, base: Path, tmp_path: Path
) -> None:
    """The last checkpoint is there, but the weights are an older one's and the table lacks the round."""
    run = copied(base, tmp_path / "base")
    (run / "rounds.json").unlink()
    for path in run.glob("round-*/weights/unet/*.safetensors"):
        path.write_bytes(b"older")
    shutil.rmtree(run / "weights")
    distill(tiny_distillation("base", runs), run, device="cpu")
    assert content(run) == content(base)


def test_finished_rounds_are_left_as_they_are(
    runs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(base, tmp_path / "base")
    shutil.rmtree(run / "weights")
    monkeypatch.setattr(rounds, "train", None)
    result = distill(tiny_distillation("base", runs), run, device="cpu")
    assert content(run) == content(base)
    assert result["rounds"] == json.loads((run / "rounds.json").read_text())["rounds"]


def test_a_folder_is_of_one_distillation_at_a_time(
    runs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = copied(base, tmp_path / "base"), tiny_distillation("base", runs)
    (run / "rounds.json").unlink()
    refused = []

    def second(*arguments: Any, **options: Any) -> dict[str, Any]:
        with pytest.raises(UserError, match=f"{run}: another process"):
            distill(recipe, run, device="cpu")
        refused.append(arguments[1].name)
        return loop.train(*arguments, **options)

    monkeypatch.setattr(rounds, "train", second)
    distill(recipe, run, device="cpu")
    assert refused == ["round-2", "round-1"]


def test_another_recipe_is_refused_and_restart_begins_anew(runs: Path, base: Path, tmp_path: Path) -> None:
    run = copied(base, tmp_path / "base")
    other = tiny_distillation("base", runs, distill__steps=[4, 2], train__images=2)
    with pytest.raises(UserError, match=r"another recipe: distill.steps .*--restart"):
        distill(other, run, device="cpu")
    assert content(run) == content(base)
    result = distill(other, run, restart=True, device="cpu")
    assert [entry["round"] for entry in result["rounds"]] == ["round-2"]
    assert not (run / "round-1").exists()
    assert (tmp_path / "base.old-1" / "round-1").is_dir()


# Export


def exported(runs: Path, out: Path, modes: dict[str, tuple[Path, Path]], **sampling: Any) -> Path:
    parts = {name: runs / name for name in ("vae", "text", "base", "relay")}
    export(**parts, modes=modes, out=out, sampling={"steps": 3, "relay_steps": 2, "guidance": 4.0, **sampling})
    return out


@pytest.fixture(scope="module")
def model(runs: Path, base: Path, relay: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with both as a mode: for reading only."""
    return exported(runs, tmp_path_factory.mktemp("models") / "first", {"1+1": (base, relay)})


def test_a_distilled_pair_becomes_a_mode_that_draws(runs: Path, base: Path, relay: Path, tmp_path: Path) -> None:
    """Base and relay of one step each; and the base's round of two steps with the same relay."""
    model = exported(runs, tmp_path / "model", {"1+1": (base, relay), "2+1": (base / "round-2", relay)})
    modes = json.loads((model / "sampling.json").read_text())["modes"]
    assert modes["1+1"] == {
        "steps": 1,
        "relay_steps": 1,
        "guidance": 4.0,
        "relay_start": 200,
        "blur_estimate": "recompute",
        "relay_power": 1.0,
        "unet": "modes/1+1/unet",
        "relay_unet": "modes/1+1/relay_unet",
        "distilled": True,
        "guidance_range": [1.0, 8.0],
    }
    assert "relay_start" not in modes["3+2"]
    drawn = {}
    for mode, steps in (("1+1", 2), ("2+1", 3), (None, 5)):
        pipe = CogView3Pipeline.from_pretrained(str(model), mode=mode)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.relay_scheduler.config.relay_start == (300 if mode is None else 200)
        times: list[int] = []

        def note(pipe: Any, step: int, t: torch.Tensor, given: dict, times: list[int] = times) -> dict:
            times.append(int(t))
            return given

        for guidance in (2.0, 7.0):
            generator = torch.Generator().manual_seed(0)
            options = {"guidance_scale": guidance, "output_type": "pt", "callback_on_step_end": note}
            drawn[mode, guidance] = pipe("a red star", generator=generator, **options).images
        assert len(times) == 2 * steps
        if mode is not None:
            assert times[-1] == 199
            for wrong in ({"num_inference_steps": 4}, {"relay_start": 300}, {"guidance_scale": 9.0}):
                with pytest.raises(UserError, match=rf"is {next(iter(wrong.values()))}, but mode"):
                    pipe("a red star", **wrong)
    assert drawn["1+1", 2.0].shape == (1, 3, 128, 128)
    assert not torch.equal(drawn["1+1", 2.0], drawn["1+1", 7.0])  # guidance is a condition
    assert not torch.equal(drawn["1+1", 2.0], drawn["2+1", 2.0])


def test_stages_of_a_models_mode_serve_another_model(runs: Path, base: Path, model: Path, tmp_path: Path) -> None:
    first, own = model, Path(f"{model}@1+1")
    second = exported(runs, tmp_path / "second", {"1+1": (own, own), "2+1": (base / "round-2", own)})
    modes = [json.loads((each / "sampling.json").read_text())["modes"] for each in (first, second)]
    assert modes[1]["1+1"] == modes[0]["1+1"]
    assert modes[1]["2+1"] == modes[0]["1+1"] | {"steps": 2} | {
        name: f"modes/2+1/{name}" for name in ("unet", "relay_unet")
    }
    for name in ("unet", "relay_unet"):
        file = f"modes/1+1/{name}/diffusion_pytorch_model.safetensors"
        assert (second / file).read_bytes() == (first / file).read_bytes()


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("@3+2", r"--mode 2\+1: .*@3\+2 is not distilled; give a mode that is, or a run of distill"),
        ("@1+1", r"--mode 2\+1: .*@1\+1 is distilled for 1 steps, not for 2"),
        ("@8+2", r"has no mode '8\+2': choose from 3\+2, 1\+1"),
        ("-none@1+1", "no model .*-none"),
    ],
)
def test_modes_that_cannot_serve_are_refused(
    runs: Path, model: Path, relay: Path, tmp_path: Path, reference: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        exported(runs, tmp_path / "other", {"2+1": (Path(f"{model}{reference}"), relay)})
    assert not (tmp_path / "other").exists()


def test_a_hub_name_is_no_folder_to_take_a_mode_from(runs: Path, relay: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="some/model"):
        exported(runs, tmp_path / "other", {"2+1": (Path("some/model@2+1"), relay)})


def test_ranges_of_guidance_meet_and_hold_the_models_own(runs: Path, base: Path, relay: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    shutil.copytree(relay, narrow)
    recipe = tomllib.loads((narrow / "recipe.toml").read_text())
    recipe["distill"] |= {"guidance_range": [2.0, 20.0], "guidance": 3.0}
    (narrow / "recipe.toml").write_text(tomli_w.dumps(recipe))
    model = exported(runs, tmp_path / "model", {"1+1": (base, narrow)}, relay_guidance=2.0)
    assert json.loads((model / "sampling.json").read_text())["modes"]["1+1"]["guidance_range"] == [2.0, 8.0]
    for name, value in (("relay_guidance", 1.5), ("guidance", 8.5)):
        with pytest.raises(UserError, match=rf"{name} {value} .*distilled for, 2 to 8; .*--set {name}="):
            exported(runs, tmp_path / "other", {"1+1": (base, narrow)}, **{name: value})


@pytest.mark.parametrize("mode", ["4+1", "1+2"])
def test_a_mode_of_other_steps_than_its_runs_is_refused(
    runs: Path, base: Path, relay: Path, tmp_path: Path, mode: str
) -> None:
    with pytest.raises(UserError, match=rf"--mode {mode[0]}.{mode[2]}: .* is distilled for 1 steps, not for [42]"):
        exported(runs, tmp_path / "model", {mode: (base, relay)})
    assert not (tmp_path / "model").exists()


# Command line


@pytest.mark.slow
def test_the_command_ends_with_143_on_sigterm_resumes_and_reports(
    runs: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(tomli_w.dumps(tiny_distillation("base", runs).to_dict()))
    command = ["distill", "tiny.toml", "--device", "cpu"]
    after_step(monkeypatch, "round-2", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 143, stopped.output
    assert "stopped at 4 images; the same command resumes" in stopped.stderr
    finished = CliRunner().invoke(app, [*command, "--json"])
    assert finished.exit_code == 0, finished.output
    result = json.loads(finished.stdout)
    assert result["run"] == "runs/distill-base"
    table = content(base)["rounds.json"]
    assert [_timeless(entry) for entry in result["rounds"]] == table
    again = CliRunner().invoke(app, command)
    assert again.stdout.splitlines()[0] == "run: runs/distill-base"
    assert again.stdout.splitlines()[1].startswith("round-2: 4 to 2 steps, 8 images, loss 0.0")


_LOGGED = '{"loss": 1, "images": %s}\n{"validation/loss": 1}\n'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{\n", "[]\n", "5\n", '{"loss": 1}\n', "[" * 100_000, '{"validation/loss": 1}\n'),
        *(_LOGGED % "4", _LOGGED % '4, "images_per_second": "fast"', _LOGGED % '"4", "images_per_second": 1'),
    ],
)
def test_a_round_whose_metrics_are_damaged_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        rounds.table_entry(tmp_path, load_recipe("scenes/distill_base").round(1, "scenes"))


def test_lost_weights_of_a_finished_round_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"round-4/weights is missing, .*: delete .*rounds\.json"):
        rounds._copy_weights(tmp_path / "round-4" / "weights", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"rounds": 5}', '{"rounds": [5]}', "[" * 100_000])
def test_a_damaged_table_of_rounds_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rounds.json").write_text(text)
    with pytest.raises(UserError, match=r"rounds\.json is damaged"):
        rounds._read_table(tmp_path)
