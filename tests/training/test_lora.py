"""LoRA: only adapters are trained and kept, and they do in a pipeline what they did in training."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from cogview3 import CogView3Pipeline
from cogview3.cli.loading import LORA_FILE, load_loras, parse_lora
from cogview3.config import Recipe, UserError
from cogview3.training.loop import train
from cogview3.training.objectives import build
from tests.training.conftest import tiny_recipe
from tests.training.test_loop import after_step, metrics

STAGES = {"base": "unet", "relay": "relay_unet"}


def lora_recipe(stage: str, runs: Path, **changes: Any) -> Recipe:
    """alpha / rank is 3 / 2, so that a reader that takes alpha for the rank is found out."""
    given = {"recipe__start_from": str(runs / stage), "lora__rank": 2, "lora__alpha": 3.0, "train__images": 6}
    return tiny_recipe(stage, runs, **given | changes)


@pytest.fixture(scope="module")
def adapters(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of both stages' adapters; for reading only."""
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COGVIEW3_TENSORBOARD", "0")
        for stage in STAGES:
            train(lora_recipe(stage, runs), folder / stage, device="cpu")
    return folder


@pytest.fixture
def pipe(runs: Path, components: dict[str, Any]) -> CogView3Pipeline:
    """The stages that the adapters were trained on; text encoder and VAE do not matter."""
    unets = {
        name: UNet2DConditionModel.from_pretrained(runs / stage / "weights" / name) for stage, name in STAGES.items()
    }
    pipe = CogView3Pipeline(**components | unets)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def output(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text, labels = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 16), (2, 48)))
    with torch.no_grad():
        return unet.eval()(latents, torch.tensor([3, 280]), text, class_labels=labels).sample


@pytest.mark.parametrize("stage", STAGES)
def test_a_trained_adapter_does_in_the_pipeline_what_it_did_in_training(
    runs: Path, adapters: Path, pipe: CogView3Pipeline, stage: str
) -> None:
    trained = build(lora_recipe(stage, runs)).trained
    averages = load_file(adapters / stage / "checkpoints" / "images-6" / "ema.safetensors")
    assert not trained.load_state_dict(averages, strict=False).unexpected_keys
    unet = getattr(pipe, STAGES[stage])
    before = output(unet)
    pipe.load_lora_weights(adapters / stage / "weights")
    assert torch.equal(output(unet), output(trained))
    assert not torch.allclose(output(unet), before, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_only_adapters_are_trained_averaged_and_kept(runs: Path, adapters: Path, stage: str) -> None:
    folder = adapters / stage / "checkpoints" / "images-6"
    for name in ("model", "ema"):
        stored = load_file(folder / f"{name}.safetensors")
        assert stored
        assert all("lora_" in key and value.dtype == torch.float32 for key, value in stored.items())
    assert [path.name for path in (adapters / stage / "weights").iterdir()] == [LORA_FILE]
    names = load_file(adapters / stage / "weights" / LORA_FILE).keys()
    assert {name.partition(".")[0] for name in names} == {STAGES[stage]}
    frozen = build(lora_recipe(stage, runs)).trained.state_dict()
    weights = runs / stage / "weights" / STAGES[stage] / "diffusion_pytorch_model.safetensors"
    for key, value in load_file(weights).items():
        place = key if key in frozen else ".base_layer.".join(key.rsplit(".", 1))
        assert torch.equal(frozen[place], value)


@pytest.mark.slow
def test_stopped_and_resumed_it_is_the_same_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout too, whose generator is begun anew at every step."""
    recipe = lora_recipe("base", runs, lora__dropout=0.3)
    train(recipe, tmp_path / "whole", device="cpu")
    after_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "run", device="cpu")
    train(recipe, tmp_path / "run", device="cpu")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    files = [tmp_path / name / "weights" / LORA_FILE for name in ("run", "whole")]
    resumed, whole = map(load_file, files)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    notes = []  # the order in which safetensors writes them is drawn anew each time
    for path in files:
        with safe_open(path, "pt") as file:
            notes.append(file.metadata())
    assert notes[0] == notes[1]


def test_frozen_weights_are_narrow_where_the_precision_is(runs: Path, tmp_path: Path) -> None:
    recipe = lora_recipe("base", runs, train__precision="bf16", train__checkpoint_activations=True, train__images=2)
    kinds = {(p.requires_grad, p.dtype) for p in build(recipe).trained.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    result = train(recipe, tmp_path / "run", device="cpu")
    assert result["validation"]["loss"] > 0
    assert (tmp_path / "run" / "samples" / "images-2.png").is_file()


def test_a_run_goes_on_in_another_precision(runs: Path, tmp_path: Path) -> None:
    """Which may change where it is "auto" and the device is another one."""
    prints = {
        build(lora_recipe("base", runs, train__precision=precision)).fingerprint() for precision in ("no", "bf16")
    }
    assert len(prints) == 1


def test_another_frozen_network_is_not_gone_on_with(runs: Path, adapters: Path, tmp_path: Path) -> None:
    run = tmp_path / "base"
    shutil.copytree(adapters / "base", run)
    for path in run.glob("checkpoints/*/state.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "other"}))
    with pytest.raises(UserError, match=r"trained with another network of recipe.start_from; .*--restart"):
        train(lora_recipe("base", runs), run, device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe__start_from": None}, "lora: adapters need a network to adapt; give recipe.start_from"),
        ({"train__shard": True}, "leave train.shard out"),
        ({"lora__rank": 0}, "lora.rank"),
        ({"lora__ranks": 4}, "lora.ranks: unknown; known here: rank, alpha, targets, dropout"),
        ({"lora__targets": ["to_q", "to_nothing"]}, "no layer's name ends in 'to_nothing'"),
    ],
)
def test_impossible_adapters_are_refused(runs: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(lora_recipe("base", runs, **changes), tmp_path / "run", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_relay_starts_from_the_relay_of_a_model_that_has_both(runs: Path, tmp_path: Path) -> None:
    for stage, name in STAGES.items():
        shutil.copytree(runs / stage / "weights" / name, tmp_path / name)
    started = build(lora_recipe("relay", runs, recipe__start_from=str(tmp_path))).trained
    expected = UNet2DConditionModel.from_pretrained(tmp_path / "relay_unet")
    assert torch.equal(output(started), output(expected))  # a new adapter changes nothing


def test_adapters_are_scaled_and_named_by_run_folder_or_file(adapters: Path, pipe: CogView3Pipeline) -> None:
    run = adapters / "base"
    weights = run / "weights"
    assert parse_lora(str(run)) == parse_lora(str(weights)) == (weights / LORA_FILE, 1.0)
    assert parse_lora(f"{weights / LORA_FILE}:0.5") == (weights / LORA_FILE, 0.5)
    for wrong, words in (("nothing:0.5", "no such file"), ("nothing:x", "no such file"), (f"{run}:inf", "inf")):
        with pytest.raises(UserError, match=words):
            parse_lora(wrong)
    with pytest.raises(UserError, match=f"holds no {LORA_FILE}"):
        parse_lora(str(adapters))
    before = output(pipe.unet)
    load_loras(pipe, [])
    load_loras(pipe, [parse_lora(f"{run}:0.5"), parse_lora(str(adapters / "relay"))])
    assert pipe.get_active_adapters() == ["lora-1"] or set(pipe.get_active_adapters()) == {"lora-1", "lora-2"}
    halved = output(pipe.unet)
    pipe.set_adapters(["lora-1"], [0.0])
    torch.testing.assert_close(output(pipe.unet), before)
    pipe.set_adapters(["lora-1"], [1.0])
    full = output(pipe.unet)
    assert (full - before).norm() > 1.2 * (halved - before).norm() > 0


def test_an_adapter_of_another_shape_is_refused(adapters: Path, components: dict[str, Any], tmp_path: Path) -> None:
    wide = UNet2DConditionModel.from_config({**components["unet"].config, "cross_attention_dim": 24})
    pipe = CogView3Pipeline(**components | {"unet": wide, "text_encoder": None})
    with pytest.raises(UserError, match=f"--lora {adapters / 'base'}"):
        load_loras(pipe, [parse_lora(str(adapters / "base"))])
