"""One step: the rule for spikes, Min-SNR, compiling, counted operations, and what the log makes of it."""

import json
import math
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from cogview3.config import Train, UserError
from cogview3.diffusion import schedule
from cogview3.training import log as log_module
from cogview3.training import loop, measure, parallel, trainer
from cogview3.training.log import Log, wandb_project
from cogview3.training.loop import train
from cogview3.training.objectives import build
from cogview3.training.spikes import LEAST, SpikeRule
from cogview3.training.trainer import Trainer
from tests.training.conftest import tiny_recipe
from tests.training.processes import Tiny, tiny_run, train_tiny


def rule(**changes: Any) -> SpikeRule:
    return SpikeRule(Train(images=1, batch=1, **changes))


def test_what_is_no_number_is_refused() -> None:
    judge = rule().judge
    assert judge(math.nan, 1.0) == "the loss is nan"
    assert judge(1.0, math.inf) == "the gradient is inf"
    assert judge(1.0, 1.0) is None


def test_a_spike_is_measured_by_the_median_of_the_good_losses() -> None:
    spikes = rule(spike_factor=3.0)
    for number in range(LEAST):
        assert spikes.judge(100.0 if number < 3 else 1.0, 1.0) is None  # too early to tell; the median forgets them
    assert spikes.judge(2.9, 1.0) is None
    assert spikes.judge(3.1, 1.0) == f"the loss is 3.1, 3.1 times the median of the last {LEAST + 1}"
    assert list(spikes.losses)[-1] == 2.9
    for _ in range(200):
        spikes.judge(9.0, 1.0)
    assert spikes.in_a_row == 201
    assert rule().judge(1e30, 1.0) is None  # without a factor there are no spikes


def test_a_good_loss_ends_the_row_and_the_rule_begins_with_enough_of_them() -> None:
    spikes = rule(spike_factor=3.0)
    for _ in range(LEAST - 1):
        spikes.judge(1.0, 1.0)
    assert spikes.judge(math.nan, 1.0) is not None
    assert (spikes.judge(1.0, 1.0), spikes.in_a_row) == (None, 0)
    assert len(spikes.losses) == LEAST
    assert spikes.judge(3.1, 1.0) is not None


def test_skipping_stops_after_too_many_in_a_row() -> None:
    skipping, stopping = rule(on_spike="skip", max_skips=3), rule()
    told = []
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan, math.nan):
        skipping.judge(loss, 1.0)
        told.append(skipping.must_stop())
    assert told == [False] * 5 + [True]
    stopping.judge(math.nan, 1.0)
    assert stopping.must_stop()
    again = rule(on_spike="skip", max_skips=3)
    again.remember(skipping.losses, skipping.in_a_row)
    assert (list(again.losses), again.must_stop()) == ([1.0], True)


@pytest.fixture
def bad_batches(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Batches of `Tiny`, by their first images, whose loss is made NaN."""
    bad: set[int] = set()
    batch = Tiny.batch

    def spoil(self: Tiny, first: int, indices: list[int]) -> dict[str, Tensor]:
        drawn = batch(self, first, indices)
        return {**drawn, "noise": drawn["noise"] * math.nan} if first in bad else drawn

    monkeypatch.setattr(Tiny, "batch", spoil)
    return bad


def test_a_bad_batch_is_left_out_and_written_down(tmp_path: Path, bad_batches: set[int]) -> None:
    bad_batches.add(8)
    recipe = tiny_run(train__on_spike="skip", train__log_images=8, train__accumulation=2)
    result = train_tiny(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line.get("skipped_batches") for line in losses] == [None, 1]
    assert all(math.isfinite(line["loss"]) for line in losses)
    assert result["loss"] == losses[-1]["loss"]
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    keys = [f"picture-{index}" for index in range(8, 12)]
    assert skipped == [{"images": 8, "reason": "the loss is nan", "indices": [8, 9, 10, 11], "keys": keys}]
    state = json.loads((tmp_path / "run" / "checkpoints" / "images-16" / "state.json").read_text())
    assert (state["ema_steps"], len(state["spikes"]["losses"])) == (3, 3)


def test_a_line_of_skipped_batches_alone_has_no_loss(tmp_path: Path, bad_batches: set[int]) -> None:
    bad_batches |= {4, 8}
    train_tiny(tiny_run(train__on_spike="skip", train__images=12, train__log_images=4), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [("loss" in line, line.get("skipped_batches")) for line in lines if "learning_rate" in line]
    assert told == [(True, None), (False, 1), (False, 1)]


def test_what_was_skipped_after_the_checkpoint_is_forgotten(tmp_path: Path, bad_batches: set[int]) -> None:
    bad_batches |= {4, 8}
    recipe = tiny_run(train__on_spike="skip", train__max_skips=2)
    with pytest.raises(
        FloatingPointError, match=r"2 batches in a row: the loss is nan at image 8; allow more with .*max_skips"
    ):
        train_tiny(recipe, tmp_path / "run")
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 2
    checkpoint = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoint.iterdir()] == ["images-8"]
    bad_batches.clear()
    train_tiny(recipe, tmp_path / "run")
    skipped = [json.loads(line)["images"] for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [4]


def test_the_run_stops_at_a_bad_batch_and_names_it(tmp_path: Path, bad_batches: set[int]) -> None:
    bad_batches.add(8)
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at image 8; leave it out with --set train.on_spike=skip, or"
    ):
        train_tiny(tiny_run(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "skipped.jsonl").read_text())["indices"] == [8, 9, 10, 11]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("stage", ["base", "relay"])
def test_min_snr_weights_the_error_of_what_is_predicted(runs: Path, stage: str, prediction: str) -> None:
    """Hang et al. 2023: min(SNR, g) / SNR for noise, min(SNR, g) / (SNR + 1) for v, min(SNR, g) for z_0."""
    recipe = tiny_recipe(stage, runs, objective__min_snr=5.0, objective__prediction=prediction)
    plain = tiny_recipe(stage, runs, objective__prediction=prediction)
    objective = build(recipe)
    shape, t = (3, 4, 8, 8), torch.tensor([0, 120, 299])
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(shape, generator=generator) for name in ("z0", "zL", "noise")}
    size = torch.tensor([[recipe.data.size] * 2, [0, 0], [recipe.data.size] * 2])
    batch |= {"t": t, "text": torch.randn(3, 5, 16, generator=generator), "sizes": size.expand(3, 3, 2)}
    with torch.no_grad():
        found, errors = objective(batch)["loss"], objective._errors(batch)
        objective.recipe = plain
        assert torch.equal(objective(batch)["loss"], errors.mean())
    alphas = 1 / (1 + schedule.make_sigmas()[t] ** 2)
    snr = alphas / (1 - alphas)
    divided = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(3)}[prediction]
    expected = (snr.clamp(max=5) / divided * errors.double()).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)  # float32's sums


@pytest.mark.parametrize("parts", [1, 3])
def test_figures_are_the_mean_loss_and_the_norm_of_its_gradient(parts: int) -> None:
    recipe = tiny_run(data__text_dropout=0.0, optimizer__clip=1e6, train__accumulation=parts)
    objective = Tiny(recipe)
    ready = Trainer(recipe, objective, Accelerator(mixed_precision="no", cpu=True))
    loss = objective(objective.batch(0, [0, 1, 2, 3]))["loss"]
    gradients = torch.autograd.grad(loss, list(ready.parameters.values()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    expected = {"loss": loss.item(), "gradient": norm.item()}
    assert ready.gradients(0, 4) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_compiled_network_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "COMPILER", "eager")  # captured, but not translated, which takes minutes
    captured, figures, gradients = [], [], []
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: (captured.append(how), compile_module(self, **how)))
    for compiled in (False, True):
        recipe = tiny_run(train__compile=compiled, data__text_dropout=0.0)
        ready = Trainer(recipe, Tiny(recipe), Accelerator(mixed_precision="no", cpu=True))
        figures.append(ready.gradients(0, 4))
        gradients.append([parameter.grad for parameter in ready.parameters.values()])
    assert captured == [{"backend": "eager"}]
    assert figures[1] == pytest.approx(figures[0], rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_gradients_are_let_go_before_the_averages_need_room(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_run(data__text_dropout=0.0)
    ready = Trainer(recipe, Tiny(recipe), Accelerator(mixed_precision="no", cpu=True))
    before = [parameter.detach().clone() for parameter in ready.parameters.values()]
    held: list[bool] = []
    follow = ready.ema.step

    def watched(parameters: list[Tensor]) -> None:
        held.extend(parameter.grad is not None for parameter in ready.parameters.values())
        assert not all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))
        follow(parameters)

    monkeypatch.setattr(ready.ema, "step", watched)
    ready.step(0, 4)
    assert len(held) == len(before)
    assert not any(held)


def test_operations_are_those_of_the_layers() -> None:
    """Three times the forward pass: a product of the forward pass has two in the backward one, but for the input's."""
    recipe = tiny_run()
    objective = Tiny(recipe)
    batch = objective.batch(0, [0, 1])
    found = measure.step_flops(objective, parallel.skeleton(objective.trained), batch)
    counts: list[int] = []

    def linear(layer: nn.Linear, args: tuple, output: Tensor) -> None:
        counts.append(3 * 2 * output.numel() * layer.in_features)

    def convolution(layer: nn.Conv2d, args: tuple, output: Tensor) -> None:
        passes = 2 if layer is objective.trained.conv_in else 3  # noise needs no gradient
        counts.append(passes * 2 * output.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1])

    def attention(layer: Attention, args: tuple, options: dict, output: Tensor) -> None:
        context = options.get("encoder_hidden_states")
        context = args[0] if context is None else context
        counts.append(3 * 2 * 2 * len(context) * args[0].shape[1] * context.shape[1] * layer.inner_dim)

    for layer in objective.trained.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(linear)
        elif isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(convolution)
        elif isinstance(layer, Attention):
            layer.register_forward_hook(attention, with_kwargs=True)
    objective(batch)
    # text, labels and times need no gradient either: their layers have two passes instead of three
    assert found <= sum(counts)
    assert found > 0.9 * sum(counts)
    assert objective.trained.conv_in.weight.device.type == "cpu"


def test_the_ceiling_is_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0])  # warming up 9 s, then 2 s and 1 s
    monkeypatch.setattr(measure, "time", SimpleNamespace(process_time=lambda: next(clock)))
    assert measure.matmul_ceiling("cpu", torch.float32, side=16, repeats=2) == 2 * 16**3


def test_the_log_tells_the_share_of_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(log_module, "time", SimpleNamespace(time=lambda: now.seconds))
    log = Log(tmp_path, tiny_run(), enabled=True)
    with log:
        log.flops, log.ceiling = 50, 400
        now.seconds += 2
        log.add({"loss": 1.0}, 0.1, 8)
        log.write(8)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["ceiling_share"] == 0.5  # 4 a second, 50 each, of 400


def test_weights_and_biases_gets_the_lines_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, told, ended = [], [], []
    fake = SimpleNamespace()
    fake.init = lambda **how: begun.append(how) or fake
    fake.log = lambda entries, step: told.append((step, entries))
    fake.finish = lambda: ended.append(True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("COGVIEW3_WANDB", "faces")
    for _ in range(2):
        train_tiny(tiny_run(train__images=12), tmp_path / "run")
    assert [(how["project"], how["name"]) for how in begun] == [("faces", "tiny")] * 2
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[0]["config"]["train"]["batch"] == 4
    assert [step for step, entries in told if "loss" in entries] == [4, 8, 12]
    assert ended == [True, True]


def test_a_missing_tracker_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("COGVIEW3_WANDB", "faces")
    with pytest.raises(UserError, match="COGVIEW3_WANDB=faces: wandb is not installed"):
        train_tiny(tiny_run(), tmp_path / "run")
    monkeypatch.setenv("COGVIEW3_WANDB", "")
    assert wandb_project() is None
    assert list(tmp_path.iterdir()) == []


def test_how_a_run_is_computed_may_change_in_its_middle(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    steady = {"data__text_dropout": 0.0}
    train_tiny(tiny_run(**steady), tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        train_tiny(tiny_run(**steady), run, lambda this: setattr(this, "stop", 15 if this.images == 8 else None))
    capsys.readouterr()
    changed = tiny_run(train__accumulation=2, train__checkpoint_activations=True, **steady)
    result = train_tiny(changed, run)
    assert "resuming with accumulation 1 -> 2: " in capsys.readouterr().err
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    whole = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert result["loss"] == pytest.approx(whole[-1], rel=1e-5)  # float32's sums
    assert "accumulation = 2" in (run / "recipe.toml").read_text()


def test_sigusr1_writes_a_checkpoint(tmp_path: Path) -> None:
    def warn(run: loop._Run) -> None:
        if run.images == 4:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(SystemExit) as caught:
        train_tiny(tiny_run(), tmp_path / "run", warn)
    assert caught.value.code == 128 + signal.SIGUSR1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["images-4"]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (
            "text",
            {"train__accumulation": 4},
            "train.batch 2 is not a multiple of 1 processes times train.accumulation 4",
        ),
        ("text", {"train__shard": True}, "train.shard is for UNets, not for a recipe of kind text"),
        ("text", {"train__checkpoint_activations": True}, "train.checkpoint_activations: this kind of network cannot"),
    ],
)
def test_what_cannot_be_computed_so_is_refused(tmp_path: Path, kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(tiny_recipe(kind, tmp_path, **changes), tmp_path / "run", device="cpu")


def test_one_process_keeps_everything_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train_tiny(tiny_run(train__shard=True, train__images=4), tmp_path / "run")
    assert "train.shard has no effect: there is only one process" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "images-4" / "model.safetensors").is_file()


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(tiny_run(train__images=4), run)
    for name in ("checkpoints/.images-8.parts", ".weights.abc", "checkpoints/.images-8.xyz"):
        (run / name).mkdir()
    (run / ".metrics.jsonl.tmp.jsonl").touch()
    (run / ".mine").touch()
    train_tiny(tiny_run(train__images=4), run)
    assert [path.name for path in run.rglob(".*")] == [".mine"]


def test_a_run_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    """Its recipe lacks the entries that came later."""
    run = tmp_path / "run"
    train_tiny(tiny_run(train__images=4), run)
    path = run / "recipe.toml"
    lines = path.read_text().splitlines()
    later = ("accumulation", "checkpoint_activations", "compile", "shard", "on_spike", "max_skips")
    path.write_text("\n".join(line for line in lines if line.split(" = ")[0] not in later))
    assert train_tiny(tiny_run(train__images=4), run)["images"] == 4
