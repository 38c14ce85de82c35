"""Export: runs become a model folder that the pipelines load, whole or not at all."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from safetensors.torch import load_file

from cogview3 import CogView3Pipeline
from cogview3.config import UserError
from cogview3.distillation.teacher import student_of
from cogview3.training.export import export


def export_runs(runs: Path, out: Path, **changes: Any) -> dict[str, Any]:
    arguments = {name: runs / name for name in ("vae", "text", "base", "relay")}
    return export(**{**arguments, "modes": {}, "out": out, **changes})


def as_distilled(runs: Path, folder: Path) -> tuple[Path, Path]:
    """The networks of the runs' base and relay, taking guidance as a condition, as two models in `folder`."""
    for stage, component in (("base", "unet"), ("relay", "relay_unet")):
        network = UNet2DConditionModel.from_pretrained(runs / stage / "weights" / component)
        student_of(network, guidance_width=8).save_pretrained(folder / stage / component)
    return folder / "base", folder / "relay"


@pytest.fixture(scope="module")
def distilled(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """`as_distilled` of the tiny runs; for reading only."""
    return as_distilled(runs, tmp_path_factory.mktemp("distilled"))


@pytest.fixture(scope="module")
def exported(runs: Path, distilled: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiny runs with a distilled mode; for reading only."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    modes = {"2+1": distilled}
    export_runs(runs, folder, modes=modes, sampling={"steps": 3, "relay_steps": 2, "guidance": 4.0})
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_model_draws_as_its_modes_say(exported: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(str(exported))
    pipe.set_progress_bar_config(disable=True)
    steps = []

    def count(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return given

    image = pipe("a red star", generator=torch.Generator().manual_seed(0), callback_on_step_end=count).images[0]
    assert image.size == (128, 128)
    assert len(steps) == 3 + 2
    assert np.asarray(image).std() > 0
    assert pipe.mode.guidance == 4.0
    assert pipe.relay_scheduler.config.relay_start == 300


def test_distilled_modes_stand_beside_the_default_one(exported: Path) -> None:
    table = json.loads((exported / "sampling.json").read_text())
    assert (table["format"], table["default"]) == (1, "3+2")
    shared = {"guidance": 4.0}
    assert table["modes"] == {
        "3+2": {"steps": 3, "relay_steps": 2, "distilled": False, **shared},
        "2+1": {
            "steps": 2,
            "relay_steps": 1,
            "distilled": True,
            "unet": "modes/2+1/unet",
            "relay_unet": "modes/2+1/relay_unet",
            **shared,
        },
    }
    pipe = CogView3Pipeline.from_pretrained(str(exported), mode="2+1")
    with pytest.raises(UserError, match="distilled for 2"):
        pipe("a red star", num_inference_steps=5)


def test_a_mode_of_fewer_steps_has_the_same_networks(
    runs: Path, distilled: tuple[Path, Path], exported: Path, tmp_path: Path
) -> None:
    sampling = {"steps": 3, "relay_steps": 2, "guidance": 4.0}
    given = {"modes": {"2+1": distilled}, "sampling": sampling}
    export_runs(runs, tmp_path / "model", fewer_steps=["1+2", "2+2"], **given)
    table = json.loads((tmp_path / "model" / "sampling.json").read_text())
    assert table["modes"]["1+2"] == {**table["modes"]["3+2"], "steps": 1}
    assert [*table["modes"]] == ["3+2", "1+2", "2+2", "2+1"]
    assert content(tmp_path / "model").keys() == content(exported).keys()
    for names in (["3+2"], ["2+1"]):
        with pytest.raises(UserError, match=re.escape(f"--mode {names[0]} is ")):
            export_runs(runs, tmp_path / "other", fewer_steps=names, **given)
    with pytest.raises(UserError, match=r"fast.*as in 4\+1"):
        export_runs(runs, tmp_path / "other", fewer_steps=["fast"], **given)
    assert not (tmp_path / "other").exists()


def test_weights_are_the_averages_in_float16(runs: Path, exported: Path) -> None:
    files = sorted(exported.rglob("*.safetensors"))
    assert len(files) == 6
    for path in files:
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}, path
    unet = UNet2DConditionModel.from_pretrained(exported / "unet").state_dict()
    averaged = load_file(runs / "base" / "checkpoints" / "images-10" / "ema.safetensors")
    for name, value in averaged.items():
        assert torch.equal(unet[name], value.half().float())


def test_modes_in_a_byte_a_weight_draw_as_those_in_float16(
    runs: Path, distilled: tuple[Path, Path], exported: Path, tmp_path: Path
) -> None:
    sampling = {"steps": 3, "relay_steps": 2, "guidance": 4.0}
    export_runs(runs, tmp_path / "model", modes={"2+1": distilled}, sampling=sampling, int8=True)
    files = {path.name for path in (tmp_path / "model" / "modes" / "2+1").rglob("*.safetensors")}
    assert files == {"weights_int8.safetensors"}
    pictures = []
    for model in (exported, tmp_path / "model"):
        pipe = CogView3Pipeline.from_pretrained(str(model), mode="2+1")
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipe("a red star", generator=generator, output_type="np").images)
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 0.02
    taken = f"{tmp_path / 'model'}@2+1"  # taken over from a model, they are stored again without a loss
    export_runs(runs, tmp_path / "again", modes={"2+1": (taken, taken)}, sampling=sampling, int8=True)
    for name in ("unet", "relay_unet"):
        place = f"modes/2+1/{name}/weights_int8.safetensors"
        first, second = (load_file(tmp_path / model / place) for model in ("model", "again"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first if first[key].dtype == torch.int8)


def test_nothing_tells_where_the_weights_came_from(runs: Path, exported: Path) -> None:
    texts = [path.read_text("utf-8") for path in exported.rglob("*.json")]
    assert len(texts) >= 10
    assert not any(str(runs) in text or "_name_or_path" in text for text in texts)


def test_the_report_adds_up(runs: Path, tmp_path: Path) -> None:
    result = export_runs(runs, tmp_path / "model", relay=None)
    assert result["modes"] == ["50+10"]
    assert set(result["components"]) == {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}
    assert result["bytes"] == sum(size for name, size in _sizes(tmp_path / "model").items() if "/" in name)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _sizes(folder: Path) -> dict[str, int]:
    return {name: len(data) for name, data in content(folder).items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modes": {"fast": ("a", "b")}}, "--mode 'fast' does not name its steps"),
        ({"modes": {"4+": ("a", "b")}}, r"--mode '4\+' does not name its steps"),
        ({"modes": {"50+10": ("a", "b")}}, r"--mode 50\+10 is the default mode's name"),
        ({"modes": {"4+1": (Path("a"), Path("b"))}}, "no unet in 'a'"),
        ({"vae": Path("none")}, "no vae in 'none'"),
        ({"base": Path("none")}, "no unet in 'none'"),
        ({"relay": Path("none")}, "no relay_scheduler in 'none'"),
    ],
)
def test_what_is_missing_or_misnamed_is_refused_before_anything_is_written(
    runs: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        export_runs(runs, tmp_path / "model", **changes)
    assert list(tmp_path.iterdir()) == []


def test_networks_of_the_wrong_kind_are_refused(runs: Path, distilled: tuple[Path, Path], tmp_path: Path) -> None:
    """A mode's must take guidance as a condition, the default one's must not."""
    base, relay = distilled
    for pair, words in (((runs / "base", relay), "unet of .*base"), ((base, runs / "relay"), "relay_unet of .*relay")):
        with pytest.raises(UserError, match=rf"--mode 2\+1: the {words} is not distilled; give a run of distill"):
            export_runs(runs, tmp_path / "model", modes={"2+1": pair})
    for name, component, scheduler in (("base", "unet", "scheduler"), ("relay", "relay_unet", "relay_scheduler")):
        whole = tmp_path / name
        shutil.copytree(distilled[name == "relay"] / component, whole / component)
        shutil.copytree(runs / name / "weights" / scheduler, whole / scheduler)
        with pytest.raises(UserError, match=rf"--{name} .*{name} is distilled; give it with --mode"):
            export_runs(runs, tmp_path / "model", **{name: whole})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("changes", [{"modes": {"0+1": ("a", "b")}}, {"sampling": {"steps": 0}}])
def test_no_steps_are_refused(runs: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="steps"):
        export_runs(runs, tmp_path / "model", **changes)


def test_foreign_folders_and_files_are_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match=rf"{out.name} .*holds no model; give another folder"):
            export_runs(runs, out)
    assert content(tmp_path) == {"mine/thesis.txt": b"precious"}


def test_an_earlier_model_is_replaced_but_kept_if_writing_fails(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    export_runs(runs, model, sampling={"steps": 7})
    before = content(tmp_path)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cogview3.training.export.write_sampling", fail)
        with pytest.raises(OSError, match="No space left"):
            export_runs(runs, model)
    assert content(tmp_path) == before
    export_runs(runs, model, relay=None, sampling={"steps": 8})
    assert not (model / "relay_unet").exists()
    assert json.loads((model / "sampling.json").read_text())["default"] == "8+10"


def test_a_models_own_sampling_is_kept_where_its_base_is_taken(
    runs: Path, tmp_path: Path, distilled: tuple[Path, Path]
) -> None:
    """As where a distilled mode is put beside a model: its guidance and steps stay."""
    first, second = tmp_path / "first", tmp_path / "second"
    own = {"steps": 9, "relay_steps": 3, "guidance": 2.0, "relay_guidance": 2.5, "sampler": "dpm++"}
    own |= {"relay_start": 250, "relay_power": 2.0, "relay_order": 2}
    export_runs(runs, first, sampling=own)
    export_runs(runs, second, base=first, relay=first, modes={"2+1": distilled}, sampling={"relay_guidance": 3.0})
    table = json.loads((second / "sampling.json").read_text())
    assert table["default"] == "9+3"
    assert table["modes"]["9+3"] == own | {"relay_guidance": 3.0, "distilled": False}
    assert table["modes"]["2+1"]["guidance"] == 2.0
    assert "relay_power" not in table["modes"]["2+1"]
    export_runs(runs, tmp_path / "third", relay=None)  # of runs alone
    assert json.loads((tmp_path / "third" / "sampling.json").read_text())["modes"]["50+10"]["guidance"] == 7.5


@pytest.mark.parametrize("text", ["null", "[" * 100_000, "{}"])
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_configurations_of_runs_are_named(runs: Path, tmp_path: Path, file: str, text: str) -> None:
    shutil.copytree(runs / "base" / "weights", tmp_path / "base" / "weights")
    (tmp_path / "base" / "weights" / file).write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path / 'base' / 'weights' / file} is damaged: copy or export it again"):
        export_runs(runs, tmp_path / "out", base=tmp_path / "base")
    assert not (tmp_path / "out").exists()
