"""The loop: exact resumption, signals, averages, logs, and what is wrong told clearly."""

import errno
import json
import math
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cogview3.cli.app import app
from cogview3.config import Optimizer, UserError, load_recipe
from cogview3.training import log as log_module
from cogview3.training import loop
from cogview3.training.log import Log
from cogview3.training.loop import train
from cogview3.training.objectives.text import TextTraining
from cogview3.training.trainer import learning_rate
from tests.processes import run_command
from tests.training.conftest import KINDS, tiny_recipe


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what the clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def weights(run: Path) -> dict[str, bytes]:
    """All files of the newest checkpoint's tensors and of the averaged weights."""
    folders = [run / "weights", run / "checkpoints" / "images-10"]
    files = [path for folder in folders for path in sorted(folder.rglob("*.safetensors"))]
    assert len(files) >= 3
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def after_step(monkeypatch: pytest.MonkeyPatch, images: int, act: Callable[[], object]) -> None:
    """Let `act` happen once, right after the step that ends at `images`."""
    advance, done = loop._Run._advance, []

    def advance_and_act(run: Any) -> dict[str, float]:
        figures = advance(run)
        if run.images == images and not done:
            done.append(images)
            act()
        return figures

    monkeypatch.setattr(loop._Run, "_advance", advance_and_act)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_what_the_layout_promises(runs: Path, kind: str) -> None:
    run = runs / kind
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["images-10", "images-6"]
    state = json.loads((run / "checkpoints" / "images-10" / "state.json").read_text())
    assert (state["images"], state["ema_steps"]) == (10, 5)
    # a line every 4 images, figures every 6, and both at the end
    logged = [(line["images"], "loss" in line) for line in metrics(run)]
    assert logged == [(4, True), (6, False), (8, True), (10, True), (10, False)]
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    samples = sorted(path.name for path in run.glob("samples/*"))
    assert samples == ([] if kind == "text" else ["images-10.png", "images-6.png"])
    components = {
        "vae": ["vae"],
        "text": ["text_encoder", "tokenizer"],
        "base": ["scheduler", "unet"],
        "relay": ["relay_scheduler", "relay_unet"],
    }
    assert sorted(path.name for path in (run / "weights").iterdir()) == components[kind]
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_the_middle_of_a_line_and_resumed_it_is_the_same_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    recipe, run = tiny_recipe(kind, runs), tmp_path / kind
    after_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        train(recipe, run, device="cpu")
    assert caught.value.code == 143
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["images-2"]
    result = train(recipe, run, device="cpu")
    assert metrics(run) == metrics(runs / kind)
    assert weights(run) == weights(runs / kind)
    assert result["loss"] == metrics(runs / kind)[3]["loss"]


def test_a_crash_after_a_checkpoint_goes_back_to_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line at 8 images was written after the checkpoint at 6; a kill may cut a line in two."""
    run = tmp_path / "text"

    def crash() -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"images": 9, "lo')
        raise MemoryError

    after_step(monkeypatch, 8, crash)
    with pytest.raises(MemoryError):
        train(tiny_recipe("text", runs), run, device="cpu")
    assert [json.loads(line)["images"] for line in (run / "metrics.jsonl").read_text().splitlines()[:3]] == [4, 6, 8]
    train(tiny_recipe("text", runs), run, device="cpu")
    assert metrics(run) == metrics(runs / "text")
    assert weights(run) == weights(runs / "text")


def test_bfloat16_resumes_exactly_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe("text", tmp_path, train__precision="bf16", train__images=6, train__checkpoint_images=2)
    train(recipe, tmp_path / "whole", device="cpu")
    after_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "stopped", device="cpu")
    train(recipe, tmp_path / "stopped", device="cpu")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert names == ["images-4", "images-6"], "keep_checkpoints is 2"


def terminate_at_four_images() -> None:
    advance = loop._Run._advance

    def advance_and_signal(run: Any) -> dict[str, float]:
        figures = advance(run)
        if run.images == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return figures

    loop._Run._advance = advance_and_signal


@pytest.mark.slow
def test_at_the_command_line_signals_end_with_a_checkpoint_and_the_same_command_resumes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.toml").write_text(tomli_w.dumps(tiny_recipe("text", runs).to_dict()))
    command = ["train", "text.toml", "--device", "cpu"]
    killed = run_command(*command, before=terminate_at_four_images)
    assert killed.returncode == 143, killed.stderr
    assert "stopped at 4 images; the same command resumes" in killed.stderr
    assert "Traceback" not in killed.stderr
    assert [path.name for path in Path("runs/text/checkpoints").iterdir()] == ["images-4"]

    after_step(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupted = CliRunner().invoke(app, command)
    assert interrupted.exit_code == 130, interrupted.output
    assert "Traceback" not in interrupted.output
    assert (Path("runs/text/checkpoints") / "images-8").is_dir()

    finished = CliRunner().invoke(app, [*command, "--json"])
    assert finished.exit_code == 0, finished.output
    assert json.loads(finished.stdout)["images"] == 10
    assert metrics(Path("runs/text")) == metrics(runs / "text")
    assert weights(Path("runs/text")) == weights(runs / "text")


def test_a_finished_run_is_left_as_it_is_but_for_lost_weights(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "text"
    shutil.copytree(runs / "text", run)
    shutil.rmtree(run / "weights")
    result = train(tiny_recipe("text", runs), run, device="cpu")
    assert (result["images"], result["loss"]) == (10, None)
    last = {f"validation/{key}": value for key, value in result["validation"].items()}
    assert metrics(runs / "text")[-1] == {"images": 10, **last}
    assert metrics(run) == metrics(runs / "text")
    assert weights(run) == weights(runs / "text")


def test_a_finished_run_says_so(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "text", tmp_path / "text")
    train(tiny_recipe("text", runs), tmp_path / "text", device="cpu")
    first = capsys.readouterr().err.splitlines()[0]
    for told in ("finished", "10 of 10", "train.images=20"):
        assert told in first


def test_a_lengthened_run_is_the_longer_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under a constant rate nothing but the end depends on the length: 4 images and 6 more are 10."""
    changes = {"optimizer__decay": "constant", "train__checkpoint_images": 2}
    train(tiny_recipe("text", tmp_path, **changes), tmp_path / "whole", device="cpu")
    train(tiny_recipe("text", tmp_path, **changes, train__images=4), tmp_path / "run", device="cpu")
    capsys.readouterr()
    result = train(tiny_recipe("text", tmp_path, **changes), tmp_path / "run", device="cpu")
    told = capsys.readouterr().err
    for part in ("4 of 10", "train.images 4 -> 10", "at 0.01 "):
        assert part in told
    assert result["images"] == 10
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_lengthened_run_follows_the_schedule_of_its_new_length(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "text", tmp_path / "text")
    longer = tiny_recipe("text", runs, train__images=14)
    train(longer, tmp_path / "text", device="cpu")
    rate = 0.01 * (1 + math.cos(math.pi * 6 / 10)) / 2  # 6 of the 10 images behind the warm-up
    assert f"at {rate:.3g} (on the shorter schedule: 0)" in capsys.readouterr().err
    told = {line["images"]: line["learning_rate"] for line in metrics(tmp_path / "text") if "loss" in line}
    assert told[12] == pytest.approx(rate)
    with pytest.raises(UserError, match=r"train.images \(14 there, 10 here\)"):
        train(tiny_recipe("text", runs), tmp_path / "text", device="cpu")


@pytest.mark.slow
def test_from_the_bundled_autoencoder_it_stops_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [
        "recipe.start_from=scenes",
        "optimizer.learning_rate=1e-6",
        "objective.statistics_images=64",
        *("train.images=6", "train.batch=2", "train.precision=no", "train.checkpoint_images=6", "train.log_images=2"),
        *("validate.images=2", "validate.every_images=6"),
    ]
    recipe = load_recipe("scenes/vae", overrides)
    result = train(recipe, tmp_path / "whole", device="cpu")
    assert result["validation"]["psnr_256"] > 24, "it begins as the bundled one, which knows such pictures"
    after_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGHUP))
    with pytest.raises(SystemExit) as caught:
        train(recipe, tmp_path / "stopped", device="cpu")
    assert caught.value.code == 129
    train(recipe, tmp_path / "stopped", device="cpu")
    for name in ("checkpoints/images-6/model.safetensors", "weights/vae/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop._stop_signals(SimpleNamespace(stop=None)):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_learning_rate_warms_up_and_decays() -> None:
    optimizer = Optimizer(learning_rate=0.8, warmup_images=4, decay="cosine")
    assert [learning_rate(optimizer, images, 12) for images in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    cosine = [0.8, 0.8 * (2 + 2**0.5) / 4, 0.4, 0.8 * (2 - 2**0.5) / 4, 0.0]
    assert [learning_rate(optimizer, images, 12) for images in (4, 6, 8, 10, 12)] == pytest.approx(cosine)
    linear = optimizer.model_copy(update={"decay": "linear"})
    assert [learning_rate(linear, images, 12) for images in (4, 6, 12)] == pytest.approx([0.8, 0.6, 0.0])
    constant = optimizer.model_copy(update={"decay": "constant", "warmup_images": 0})
    assert [learning_rate(constant, images, 12) for images in (0, 11)] == [0.8, 0.8]


def test_each_line_tells_the_rate_of_its_last_step(runs: Path) -> None:
    optimizer = tiny_recipe("text", runs).optimizer
    told = {line["images"]: line["learning_rate"] for line in metrics(runs / "text") if "loss" in line}
    assert told == {images: learning_rate(optimizer, images - 2, 10) for images in (4, 8, 10)}


def test_averages_follow_the_recurrence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s <- d s + (1 - d) p with d = min(ema_decay, 1 - n^-3/4), n counting from 1, as diffusers warms it up."""
    step, seen = loop._Run._step, []

    def step_and_record(run: Any) -> dict[str, float]:
        losses = step(run)
        seen.append({name: value.detach().double() for name, value in run.objective.trained.named_parameters()})
        return losses

    monkeypatch.setattr(loop._Run, "_step", step_and_record)
    recipe = tiny_recipe("text", tmp_path, train__images=10, optimizer__ema_decay=0.5)
    train(recipe, tmp_path / "run", device="cpu")
    decays = [0.0, 1 - 2**-0.75, 0.5, 0.5, 0.5]  # 1 - 2^-3/4 is 0.405, 1 - 3^-3/4 is 0.561 and so above ema_decay
    expected = seen[0]
    for decay, values in zip(decays, seen, strict=True):
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in values.items()}
    stored = load_file(tmp_path / "run" / "checkpoints" / "images-10" / "ema.safetensors")
    for name, value in expected.items():
        # five roundings of float32 to numbers of order one
        torch.testing.assert_close(stored[name].double(), value, atol=2e-6, rtol=1e-6)
    drift = max((stored[name] - seen[-1][name]).abs().max().item() for name in stored)
    assert drift > 1e-3, "averages and weights are too much alike for this test"


@pytest.mark.parametrize("kind", ["base", "relay"])
def test_the_weights_for_use_are_the_averages(runs: Path, kind: str) -> None:
    averaged = load_file(runs / kind / "checkpoints" / "images-10" / "ema.safetensors")
    name = {"base": "unet", "relay": "relay_unet"}[kind]
    used = load_file(runs / kind / "weights" / name / "diffusion_pytorch_model.safetensors")
    assert used.keys() == averaged.keys()
    assert all(torch.equal(used[key], averaged[key]) for key in used)


def damage_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def lose_averages(folder: Path) -> None:
    (folder / "ema.safetensors").unlink()


def forget_images(folder: Path) -> None:
    (folder / "state.json").write_text('{"ema_steps": 3}')


def swap_model(folder: Path) -> None:
    shutil.copy(folder.parents[2] / "vae" / "checkpoints" / "images-10" / "model.safetensors", folder)


class _Trap:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("sprung",)


def lay_trap(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(pickle.dumps(_Trap()))


@pytest.mark.parametrize("damage", [damage_tensors, lose_averages, forget_images, swap_model, lay_trap])
def test_a_damaged_checkpoint_is_told_with_the_mend(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("text", "vae"):
        shutil.copytree(runs / kind, tmp_path / kind)
    damage(tmp_path / "text" / "checkpoints" / "images-10")
    with pytest.raises(UserError, match=r"checkpoint .*images-10 is damaged .*delete it") as caught:
        train(tiny_recipe("text", runs), tmp_path / "text", device="cpu")
    assert "\n" not in str(caught.value)
    assert not Path("sprung").exists()


def test_the_mend_for_a_damaged_checkpoint_works(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "text", tmp_path / "text")
    shutil.rmtree(tmp_path / "text" / "checkpoints" / "images-10")
    train(tiny_recipe("text", runs), tmp_path / "text", device="cpu")
    assert metrics(tmp_path / "text") == metrics(runs / "text")
    assert weights(tmp_path / "text") == weights(runs / "text")


def test_checkpoints_without_a_log_still_load(runs: Path, tmp_path: Path) -> None:
    """As written before the log's sums were kept."""
    shutil.copytree(runs / "text", tmp_path / "text")
    shutil.rmtree(tmp_path / "text" / "checkpoints" / "images-10")
    path = tmp_path / "text" / "checkpoints" / "images-6" / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("log")["count"] == 1
    path.write_text(json.dumps(state))
    train(tiny_recipe("text", runs), tmp_path / "text", device="cpu")
    assert weights(tmp_path / "text") == weights(runs / "text")


def test_a_run_with_another_vocabulary_is_not_resumed(runs: Path, tmp_path: Path) -> None:
    """As after a change of the captions' wording in the code."""
    shutil.copytree(runs / "text", tmp_path / "text")
    path = tmp_path / "text" / "checkpoints" / "images-10" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "other"}))
    with pytest.raises(UserError, match=r"trained with another vocabulary of captions; .*--restart"):
        train(tiny_recipe("text", runs), tmp_path / "text", device="cpu")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    recipe = tiny_recipe("vae", tmp_path, optimizer__learning_rate=1e30, optimizer__warmup_images=0)
    with pytest.raises(FloatingPointError, match=r"the (loss|gradient) is (nan|inf) at image 2; leave it out with"):
        train(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_gradient_that_is_no_number_leaves_the_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: TextTraining, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": (self.trained.queries.sum() * 0).sqrt()}  # 0, with a slope of infinity times 0

    monkeypatch.setattr(TextTraining, "forward", forward)
    with pytest.raises(FloatingPointError, match="the gradient is nan at image 0"):
        train(tiny_recipe("text", tmp_path), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_wrong_reference_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no vae in '.*vae'"):
        train(tiny_recipe("base", tmp_path), tmp_path / "run", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_another_recipe_is_refused_before_anything_is_built(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "text", tmp_path / "text")
    monkeypatch.setattr(loop, "build", None)
    with pytest.raises(UserError, match=r"train.seed \(0 there, 3 here\)"):
        train(tiny_recipe("text", runs, train__seed=3), tmp_path / "text", device="cpu")


def test_restart_begins_anew_beside_the_earlier_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "text", tmp_path / "text")
    recipe = tiny_recipe("text", runs, train__images=2, train__seed=3)
    assert train(recipe, tmp_path / "text", restart=True, device="cpu")["images"] == 2
    assert metrics(tmp_path / "text.old-1") == metrics(runs / "text")


def test_a_folder_is_of_one_training_at_a_time(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, go = tiny_recipe("text", runs, train__images=2), loop._Run.go

    def second(run: loop._Run) -> dict[str, Any]:
        with pytest.raises(UserError, match=f"{tmp_path / 'text'}: another process"):
            train(recipe, tmp_path / "text", device="cpu")
        return go(run)

    monkeypatch.setattr(loop._Run, "go", second)
    assert train(recipe, tmp_path / "text", device="cpu")["images"] == 2


def test_tensorboard_gets_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("COGVIEW3_TENSORBOARD", "1")
    train(tiny_recipe("text", tmp_path, train__images=4), tmp_path / "run", device="cpu")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    # TensorBoard stores float32
    assert shown == [(4, pytest.approx(metrics(tmp_path / "run")[0]["loss"], rel=1e-6))]


@pytest.mark.parametrize("begun", [False, True])
def test_tensorboard_on_a_full_disk_is_one_error_that_names_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begun: bool
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("COGVIEW3_TENSORBOARD", "1")
    monkeypatch.setattr(RecordWriter, "write" if begun else "flush", refuse)
    before = threading.excepthook
    log = Log(tmp_path, tiny_recipe("text", tmp_path), enabled=True)
    with pytest.raises(OSError, match="No space") as caught, log:  # noqa: PT012
        for images in range(20):  # the thread that writes is slower
            log.write_figures(images, {"loss": 1.0})
    assert caught.value.filename == str(tmp_path / "tensorboard")
    assert "Traceback" not in capsys.readouterr().err
    assert threading.excepthook is before


def test_images_are_told_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(tmp_path, tiny_recipe("text", tmp_path, train__images=256_000), enabled=True) as log:
        log.write_figures(129_600, {"loss": 0.123456789})
    assert "images 129600 of 256000, validation/loss 0.12346\n" in capsys.readouterr().err


def test_progress_is_told_within_seconds_with_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(log_module, "time", SimpleNamespace(time=lambda: now.seconds))
    with Log(tmp_path, tiny_recipe("text", tmp_path, train__images=7_208), enabled=True) as log:
        for images in (2, 4, 6, 8, 10):
            now.seconds += 1
            log.add({"loss": 0.5}, 0.1, images)
    assert capsys.readouterr().err == "images 4 of 7208, loss 0.5, images_per_second 2, 1:00:02 left\n"


def test_the_rate_leaves_validation_and_checkpoints_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(log_module, "time", SimpleNamespace(time=lambda: now.seconds))
    log, loss = Log(tmp_path, tiny_recipe("text", tmp_path, train__images=8), enabled=True), {"loss": 1.0}
    with log:
        now.seconds += 2
        log.add(loss, 0.1, 4)
        with log.not_counted():
            now.seconds += 50
        log.write_figures(4, {"loss": 1.0})
        now.seconds += 2
        log.add(loss, 0.1, 8)
        log.write(8)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["images_per_second"] == 2.0  # 8 images in 2 + 2 seconds
