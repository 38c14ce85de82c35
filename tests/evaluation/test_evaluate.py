"""Evaluations that are resumed, of other systems' pictures, in several processes, with failures; and their files."""

import csv
import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cogview3 import CogView3Pipeline, checkpoints
from cogview3.config import UserError
from cogview3.data.scenes.render import render
from cogview3.data.scenes.score import score
from cogview3.evaluation.baselines import BASELINES
from cogview3.evaluation.evaluate import evaluate
from cogview3.evaluation.folder import System
from cogview3.evaluation.metrics import Setting
from cogview3.evaluation.prompt_sets import load_prompts
from cogview3.evaluation.scorers.weights import Weights
from cogview3.evaluation.store import Store
from cogview3.evaluation.systems import Foreign, find_system, split_model
from cogview3.evaluation.workers import fill
from tests.evaluation.networks import write_clip

COUNT = 6


@pytest.fixture
def renders(tmp_path: Path) -> Path:
    folder = tmp_path / "renders"
    folder.mkdir()
    for index, prompt in enumerate(load_prompts("scenes-heldout", COUNT)):
        Image.fromarray(render(prompt.scene, 64)).save(folder / f"{index:05d}.png")
    return folder


def facts(result: dict, name: str) -> dict:
    return result["models"][name]["scene"]["model"]


def test_pictures_of_a_folder_are_scored_by_their_numbers(renders: Path) -> None:
    result = evaluate(images=[renders], count=COUNT)
    prompts = load_prompts("scenes-heldout", COUNT)
    scores = [score(prompt.facts, render(prompt.scene, 64)) for prompt in prompts]
    assert facts(result, "renders")["share"] == sum(s.right for s in scores) / sum(s.total for s in scores)
    assert result["models"]["renders"]["failed"] == 0


def test_missing_and_broken_pictures_are_counted(renders: Path, tmp_path: Path) -> None:
    (renders / "00001.png").unlink()
    (renders / "00004.png").write_bytes(b"\x89PNG broken")
    result = evaluate(images=[renders], count=COUNT, out=tmp_path / "out")
    entry = result["models"]["renders"]
    assert entry["failed"] == 2
    assert entry["failures"]["1"] == "missing"
    assert "00004.png" in entry["failures"]["4"]
    assert facts(result, "renders")["pictures"] == COUNT - 2
    assert "no picture: missing" in (tmp_path / "out" / "index.html").read_text()
    records = [json.loads(line) for line in (tmp_path / "out" / "pictures-renders.jsonl").read_text().splitlines()]
    assert len(records) == COUNT
    shutil.copy(renders / "00000.png", renders / "00001.png")  # what failed is tried again
    again = evaluate(images=[renders], count=COUNT, out=tmp_path / "out")
    assert again["models"]["renders"]["failed"] == 1


def test_an_evaluation_is_of_one_process_at_a_time(renders: Path, tmp_path: Path) -> None:
    with checkpoints.held(tmp_path), pytest.raises(UserError, match=f"{tmp_path}: another process works there"):
        evaluate(images=[renders], count=COUNT, out=tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_hidden_files_are_no_pictures(renders: Path) -> None:
    whole = evaluate(images=[renders], count=COUNT)
    for path in list(renders.iterdir()):  # as macOS leaves them on foreign disks
        (renders / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        path.rename(renders / f"picture-{path.name}")
    (renders / ".trash").mkdir()
    (renders / ".trash" / "a.png").write_bytes(b"")
    assert facts(evaluate(images=[renders], count=COUNT), renders.name) == facts(whole, renders.name)


def test_several_of_a_prompt_by_genevals_names(tmp_path: Path) -> None:
    prompts = load_prompts("scenes-heldout", 2)
    for number, prompt in enumerate(prompts):
        for sample in range(2):
            file = tmp_path / "g" / f"{number:05d}" / "samples" / f"{sample:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render(prompt.scene, 64)).save(file)
    result = evaluate(images=[tmp_path / "g"], count=2, per_prompt=2)
    assert (result["count"], facts(result, "g")["pictures"]) == (2, 4)
    assert facts(result, "g")["share"] > 0.9
    chance = result["models"]["g"]["scene"]["chance"]
    assert chance["share"] < 0.8  # against the other prompt, not the same one's second picture


def test_folders_that_cannot_be_the_prompts_pictures(renders: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--images {tmp_path / 'empty'}"):
        evaluate(images=[tmp_path / "empty"], count=COUNT)
    for path in sorted(renders.iterdir()):
        path.rename(path.with_name(f"x{path.stem}y.png"))
    assert evaluate(images=[renders], count=COUNT)["models"]["renders"]["failed"] == 0  # as many: in order
    next(renders.iterdir()).unlink()
    with pytest.raises(UserError, match=f"--images {renders}"):
        evaluate(images=[renders], count=COUNT)


def test_pictures_of_several_sizes_have_no_frechet_distance(renders: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 96)).save(renders / "00003.png")
    other = tmp_path / "other"
    other.mkdir()
    for path in renders.iterdir():
        with Image.open(path) as image:
            image.resize((64, 64)).save(other / path.name)
    with pytest.raises(UserError, match=r"00003\.png is 96 x 96 pixels"):
        evaluate(images=[other, renders], count=COUNT, metrics=["frechet"])
    assert evaluate(images=[renders], count=COUNT)["models"]["renders"]["failed"] == 0


def test_a_stopped_run_goes_on_and_gives_the_same(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate([str(model)], count=3, seed=2, batch=1, relays=0)
    call, drawn = CogView3Pipeline.__call__, []

    def stop(pipe: CogView3Pipeline, texts: list[str], **options: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(texts)
        return call(pipe, texts, **options)

    monkeypatch.setattr(CogView3Pipeline, "__call__", stop)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate([str(model)], count=3, seed=2, batch=1, out=out, relays=0)
    drawn.clear()
    resumed = evaluate([str(model)], count=3, seed=2, batch=1, out=out, relays=0)
    assert len(drawn) == 1
    assert resumed["models"][str(model)]["scene"] == whole["models"][str(model)]["scene"]
    drawn.clear()
    longer = evaluate([str(model)], count=4, seed=2, batch=1, out=out, relays=0)
    assert (len(drawn), longer["count"]) == (1, 4)


def test_damaged_pictures_and_records_are_named(tmp_path: Path) -> None:
    prompts = load_prompts("scenes-heldout", 1)
    store = Store(tmp_path, prompts, 0, {})
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    store.save(0, noise, None, 1.0)
    picture, record = tmp_path / "00000.png", tmp_path / "00000.json"
    second = list(re.finditer(b"IDAT", content := picture.read_bytes()))[1]
    for damaged in (b"", content[:90_000], content[: second.start()] + b"\0" * 4 + content[second.end() :]):
        picture.write_bytes(damaged)
        with pytest.raises(UserError, match=r"00000\.png is damaged: delete 00000\.json to draw it again"):
            store.load(0)
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": "fast"}))
    with pytest.raises(UserError, match=r"00000\.json is damaged: delete it"):
        Store(tmp_path, prompts, 0, {})


def test_a_folder_of_another_run_is_refused(model: Path, tmp_path: Path) -> None:
    given = {"prompts": "scenes-heldout", "count": 1, "relays": 0, "out": tmp_path / "out"}
    evaluate([str(model)], **given)
    for changes in ({"seed": 1}, {"prompts": "scenes-brief"}, {"steps": 1}, {"per_prompt": 2}):
        with pytest.raises(UserError, match=rf"{next(iter(changes))}.*give another --out"):
            evaluate([str(model)], **{**given, **changes})


def test_other_weights_under_the_same_name_are_noticed(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    given = {"prompts": "scenes-heldout", "count": 1, "relays": 0, "out": tmp_path / "out"}
    before = evaluate([str(folder)], **given)
    (folder / "README.md").write_text("A card.")
    assert evaluate([str(folder)], **given) == before
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights .*give another --out"):
        evaluate([str(folder)], **given)


def test_pictures_that_changed_are_read_again(renders: Path, tmp_path: Path) -> None:
    first = evaluate(images=[renders], count=COUNT, out=tmp_path / "out")
    for path in renders.iterdir():
        Image.new("RGB", (128, 128), "white").save(path)
    second = evaluate(images=[renders], count=COUNT, out=tmp_path / "out")
    assert facts(first, "renders")["share"] > 0.9 > 0.5 > facts(second, "renders")["share"]


def test_pictures_that_overflow_are_counted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, bad = CogView3Pipeline.__call__, load_prompts("scenes-heldout", 3)[1].text

    def overflow(pipe: CogView3Pipeline, texts: list[str], **options: Any) -> Any:
        if bad in texts:
            raise FloatingPointError("the base overflowed")
        return call(pipe, texts, **options)

    monkeypatch.setattr(CogView3Pipeline, "__call__", overflow)
    entry = evaluate([str(model)], count=3, relays=0)["models"][str(model)]
    assert entry["failures"] == {"1": "the base overflowed"}
    assert entry["scene"]["model"]["pictures"] == 2


def test_two_processes_draw_what_one_does(model: Path, tmp_path: Path) -> None:
    one = evaluate([str(model)], count=3, batch=1, relays=0)
    two = evaluate([str(model)], count=3, batch=1, relays=0, processes=2, out=tmp_path / "out")
    assert two["models"][str(model)]["scene"] == one["models"][str(model)]["scene"]


class Failing(System):
    """Draws nothing; its processes fail, or are killed."""

    def __init__(self, error: Exception | None) -> None:
        self.name, self.error = "failing", error

    def how(self) -> dict[str, Any]:
        return {}

    def draw(self, *arguments: object) -> Any:
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space", "a.png"), UserError("prompt 3: too long"), None])
def test_what_ends_a_drawing_process_is_raised_here(tmp_path: Path, error: Exception | None) -> None:
    store = Store(tmp_path, load_prompts("scenes-heldout", 2), 0, {})
    with pytest.raises(type(error) if error else ChildProcessError) as caught:
        fill(Failing(error), store, 1, "cpu", torch.float32, 2, lambda done: None)
    killed = "a drawing process of failing was ended by SIGKILL; the same command resumes"
    assert str(caught.value) == str(error or killed)


def test_files_hold_every_figure_and_prompts_are_shown_as_text(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", "שלום עולם", "a | b *c* 🎈"]
    (tmp_path / "own.txt").write_text("\n".join(texts), "utf-8")
    write_clip(tmp_path / "clip")
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / name / f"{index}.png")
    setting = Setting(Weights({"clip-l14": str(tmp_path / "clip")}))
    folders = [tmp_path / "first", tmp_path / "second"]
    out = tmp_path / "out"
    result = evaluate(images=folders, prompts=str(tmp_path / "own.txt"), metrics=["clip"], setting=setting, out=out)
    html = (out / "index.html").read_text("utf-8")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert all(text in html for text in texts[1:])
    assert html.count("<img") == 6
    for source in ("pictures/first/00000.png", "pictures/second/00002.png"):
        assert f'src="{source}"' in html
        assert (out / source).is_file()
    figures = result["models"]["second"]["clip"]
    rows = {
        (row["model"], row["figure"]): row for row in csv.DictReader((out / "results.csv").read_text().splitlines())
    }
    assert float(rows["second", "clip/mean"]["value"]) == figures["mean"]
    assert float(rows["second", "clip/mean"]["low"]) == figures["interval"][0]
    scores = {
        name: [json.loads(line)["clip"]["score"] for line in (out / f"pictures-{name}.jsonl").read_text().splitlines()]
        for name in ("first", "second")
    }
    differences = np.subtract(scores["second"], scores["first"])
    assert figures["compared"]["difference"] == pytest.approx(differences.mean())
    report = (out / "report.md").read_text("utf-8")
    assert "max(100 cos, 0)" in report
    assert not (out / "quality_time.png").exists()  # nothing was drawn, so there are no times


def test_missing_weights_are_told_before_anything_is_drawn(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CogView3Pipeline, "from_pretrained", None)
    with pytest.raises(UserError, match=r"--weights hpsv2=.*no such file"):
        evaluate([str(model)], count=1, metrics=["hpsv2"], setting=Setting(Weights({"hpsv2": "/nowhere"})))


def test_other_pipelines_are_told_by_their_class(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    chosen = split_model("x:7")[2]
    system = find_system(str(folder), chosen)
    assert isinstance(system, Foreign)
    assert system.how()["settings"] == {"num_inference_steps": 7}
    assert find_system("stable-cascade", chosen).how()["settings"]["prior_num_inference_steps"] == 7
    assert find_system(str(model), chosen).how()["kind"] == "model"
    with pytest.raises(UserError, match="--relays"):
        evaluate([str(folder)], count=1, relays=0)
    with pytest.raises(UserError, match=r"leave out @4\+1"):
        find_system(f"{folder}@4+1", split_model("x")[2])
    assert BASELINES["sdxl"].settings == {"num_inference_steps": 50, "guidance_scale": 5.0}


def test_more_pictures_than_anyone_waits_for_are_refused_at_once(renders: Path) -> None:
    with pytest.raises(UserError, match=f"per-prompt {10**20}: {COUNT * 10**20} pictures; at most 1000000"):
        evaluate(images=[renders], count=COUNT, per_prompt=10**20)
