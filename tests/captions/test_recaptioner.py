"""Fine-tuning: a tiny model learns the colors of pictures, stops and goes on, and is loaded again."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cogview3.captions import recaptioner
from cogview3.captions.journal import SCHEMA
from cogview3.captions.model import ModelJob
from cogview3.captions.pairs import Pairs, read_pairs
from cogview3.captions.recaptioner import finetune
from cogview3.cli.app import app
from cogview3.config import FinetuneSettings, UserError
from tests.captions.tiny import save_llava
from tests.data.conftest import encoded, ordinary, parquet_bytes, tar_bytes

pytest.importorskip("trl")
pyarrow = pytest.importorskip("pyarrow")

COLORS = ("red", "blue")
FAST = {"batch": 8, "learning_rate": 3e-3, "check_images": 80}


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (16, 16), COLORS[number % 2])


def write_set(folder: Path, count: int = 40) -> Path:
    """Pictures of one color, and sidecars that tell it."""
    folder.mkdir()
    keys = [f"{number:04}" for number in range(count)]
    files = []
    for number, key in enumerate(keys):
        files += [(f"{key}.jpg", encoded(picture(number))), (f"{key}.txt", f"pic {number}".encode())]
    (folder / "00000.tar").write_bytes(tar_bytes(files))
    rows = {
        "key": keys,
        "old": [f"pic {number}" for number in range(count)],
        "new": [f"all {COLORS[number % 2]}" for number in range(count)],
        "status": ["ok"] * count,
    }
    (folder / "00000.captions.parquet").write_bytes(parquet_bytes(rows))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return read_pairs([str(write_set(tmp_path_factory.mktemp("data") / "set"))])


def test_pairs_of_sidecars(pairs: Pairs) -> None:
    assert len(pairs.pairs) == pairs.report.samples == 40
    pair = pairs.pairs[7]
    assert (pair.key, pair.old, pair.new) == ("0007", "pic 7", "all blue")
    assert pairs.image(pair.shard, pair.offset).getpixel((8, 8))[2] > 200
    learned, apart = pairs.split(500)
    assert (len(learned), len(apart)) == (36, 4)
    assert not {pair.key for pair in learned} & {pair.key for pair in apart}
    assert pairs.split(3)[1] == [pair for pair in apart if pair in pairs.split(3)[1]]


def test_pairs_of_triplets_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    tar = tmp_path / "shards" / "0.tar"
    tar.parent.mkdir()
    tar.write_bytes(tar_bytes([*ordinary("a"), *ordinary("b"), ("c.jpg", b"no picture"), ("c.txt", b"c")]))
    rows = [
        {"shard": str(tar), "key": key, "old": "told", "queries": [], "new": new, "model": "m", "usage": None}
        for key, new in (("a", "A new one. "), ("b", " "), ("c", "Something."), ("gone", "Something."))
    ]
    (tmp_path / "triplets").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), tmp_path / "triplets" / "part-00000.parquet")
    found = read_pairs([str(tmp_path / "triplets")])
    assert [(pair.key, pair.old, pair.new) for pair in found.pairs] == [("a", "told", "A new one.")]
    assert found.report.broken == {"not an image": 1, "no such picture": 1}
    with pytest.raises(UserError, match="1 pictures with a new caption; at least 2"):
        found.split(1)
    with pytest.raises(UserError, match="no new captions; collect triplets, or re-caption"):
        read_pairs([str(tar)])
    tar.write_bytes(tar_bytes(ordinary("other")))
    with pytest.raises(UserError, match="no usable picture; broken: no such picture 3"):
        read_pairs([str(tmp_path / "triplets")])
    with pytest.raises(UserError, match="no sample at byte 1000000"):
        found.image(0, 10**6)


def test_lora_learns_and_its_merged_model_writes(pairs: Pairs, folder: Path, tmp_path: Path) -> None:
    """Captions of both colors, right for pictures that were held out; twice the same command trains once."""
    settings = FinetuneSettings(images=960, rank=16, **FAST | {"learning_rate": 1e-2, "check_images": 240})
    told: list[tuple[int, str]] = []
    run = tmp_path / "run"
    result = finetune(pairs, str(folder), run, settings, micro_batch=8, progress=lambda *each: told.append(each))
    assert (result["steps"], result["learned"], result["held_out"]) == (120, 36, 4)
    assert result["held_out_loss"] < 0.2 * result["held_out_loss_before"]
    assert told[-1][0] == 960
    assert "held-out loss" in told[-1][1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[0] == result["held_out_loss_before"]
    assert min(losses[1:]) == result["held_out_loss"]
    writer = ModelJob(str(run)).load(0)
    olds = ["pic 3", "pic 4"]
    rows = writer.generate(writer.asker.inputs([picture(1), picture(0)], olds), ["a", "b"], olds)
    assert [row.new for row in rows] == ["all blue", "all red"]
    frozen, tuned = (load_file(path / "model.safetensors") for path in (folder, run / "weights" / "recaptioner"))
    changed = {name for name in frozen if not frozen[name].equal(tuned[name])}
    assert any("language_model" in name for name in changed)
    assert not [name for name in changed if "vision_tower" in name]
    before = (run / "metrics.jsonl").read_bytes()
    assert finetune(pairs, str(folder), run, settings, micro_batch=8) == result
    assert (run / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"holds a run of another recipe: finetune\.images"):
        finetune(pairs, str(folder), run, settings.model_copy(update={"images": 8}))


@pytest.mark.slow
def test_all_weights_go_on_where_they_were_stopped(pairs: Pairs, folder: Path, tmp_path: Path) -> None:
    settings = FinetuneSettings(images=240, full=True, **FAST)
    whole = finetune(pairs, str(folder), tmp_path / "whole", settings, micro_batch=4)
    assert whole["held_out_loss"] < 0.5 * whole["held_out_loss_before"]

    def stop(images: int, note: str) -> None:
        if images >= 130:
            with pytest.raises(UserError, match=f"{run}: another process"):
                finetune(pairs, str(folder), run, settings, micro_batch=4)
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(pairs, str(folder), run, settings, micro_batch=4, progress=stop)
    cut = run / "checkpoints" / "checkpoint-15"
    cut.mkdir()  # as a kill while it was written leaves it
    (cut / "model.safetensors").write_bytes(b"half")
    resumed = finetune(pairs, str(folder), run, settings, micro_batch=4)
    assert not cut.exists()
    assert resumed["held_out_loss_before"] == whole["held_out_loss_before"]
    assert resumed["held_out_loss"] == pytest.approx(whole["held_out_loss"], rel=1e-5)  # sums in float32
    first, second = (
        load_file(tmp_path / name / "weights" / "recaptioner" / "model.safetensors") for name in ("whole", "run")
    )
    assert first.keys() == second.keys()
    assert all(first[name].allclose(second[name], atol=1e-5) for name in first)


def test_training_ends_where_the_held_out_loss_does_not_fall(pairs: Pairs, folder: Path, tmp_path: Path) -> None:
    """At a rate that ruins the model, after `patience` looks; the best checkpoint is written, not the last."""
    settings = FinetuneSettings(images=4000, full=True, batch=8, learning_rate=0.5, check_images=8, patience=2)
    result = finetune(pairs, str(folder), tmp_path / "run", settings)
    assert result["ended_early"]
    losses = [
        json.loads(line)["eval_loss"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if "eval_loss" in line
    ]
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == 2
    assert result["held_out_loss"] == min(losses[1:])
    kept = tmp_path / "run" / "checkpoints" / f"checkpoint-{result['best_step']}" / "model.safetensors"
    written = load_file(tmp_path / "run" / "weights" / "recaptioner" / "model.safetensors")
    assert all(value.equal(written[name]) for name, value in load_file(kept).items())


def test_the_last_whole_checkpoint_is_found_however_long_its_log_and_nothing_else_is_deleted(tmp_path: Path) -> None:
    for name, log in (("8", "[]"), ("16", f"[{'0,' * 2**22}0]"), ("24", "[0,"), ("32", None), ("best", None)):
        (tmp_path / f"checkpoint-{name}").mkdir()
        if log is not None:
            (tmp_path / f"checkpoint-{name}" / "trainer_state.json").write_text(f'{{"log_history": {log}}}')
    assert recaptioner._newest_checkpoint(tmp_path) == tmp_path / "checkpoint-16"
    assert sorted(path.name[11:] for path in tmp_path.iterdir()) == ["16", "8", "best"]


def test_a_training_without_a_number_is_told(pairs: Pairs, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: value * math.nan for name, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"no held-out loss is a number; give a lower --learning-rate than 0\.003"):
        finetune(pairs, str(tmp_path / "model"), tmp_path / "run", FinetuneSettings(**FAST, images=16), micro_batch=8)


def test_the_defaults_are_the_paper_s() -> None:
    assert (FinetuneSettings().batch, FinetuneSettings().steps) == (256, 1500)
    assert (FinetuneSettings().rate, FinetuneSettings(full=True).rate, FinetuneSettings(learning_rate=0.01).rate) == (
        1e-4,
        1e-5,
        0.01,
    )


@pytest.mark.filterwarnings("ignore:.pin_memory. argument is set:UserWarning")  # a CPU plays the GPU
def test_gpus_that_only_imitate_bfloat16_learn_in_float32(
    pairs: Pairs, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recaptioner, "computes_bfloat16", lambda device: False)
    settings = FinetuneSettings(batch=4, images=8, check_images=4)
    result = finetune(pairs, str(folder), tmp_path / "run", settings, device="cuda", micro_batch=4)
    written = load_file(Path(result["model"]) / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}


def test_batches_that_cannot_be_split(pairs: Pairs, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch 8: not a multiple of 3 at once on 1 devices"):
        finetune(pairs, str(folder), tmp_path / "run", FinetuneSettings(batch=8), micro_batch=3)
    assert not (tmp_path / "run").exists()


def test_runs_of_several_processes_are_not_moved_aside(
    pairs: Pairs, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--restart is for one process"):
        finetune(pairs, str(folder), tmp_path / "run", FinetuneSettings(), restart=True)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", 12)
    options = ["--batch", 4, "--images", 8, "--check-images", 4, "--learning-rate", 1e-3, "--device", "cpu", "--json"]
    command = ["captions", "finetune", data, "--model", folder, "-o", tmp_path / "run", *options]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["steps"], told["images"], told["learned"], told["held_out"]) == (2, 8, 11, 1)
    assert (Path(told["model"]) / "config.json").is_file()
    bad = CliRunner().invoke(app, list(map(str, [*command, "--learning-rate", -1])))
    assert bad.exit_code == 2
