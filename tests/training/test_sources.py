"""Training from shards: conditions, captions and latents of real pictures, positions taken up exactly, hostile data."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import AutoTokenizer, T5EncoderModel

from cogview3.config import UserError, parse_recipe
from cogview3.data.buckets import Buckets, fit
from cogview3.data.encode import Encoding, encode_shards
from cogview3.data.encoded import Preprocessing, vae_fingerprint
from cogview3.data.formats import find_shards
from cogview3.fingerprints import encoder_fingerprint
from cogview3.training.loop import train
from cogview3.training.objectives import build
from cogview3.training.objectives.diffusion import DiffusionTraining
from cogview3.training.sources.shards import ShardSource
from tests.data.conftest import encoded, parquet_bytes, picture, tar_bytes
from tests.training.conftest import tiny_recipe
from tests.training.test_loop import after_step, metrics, weights

SIZES = ((80, 80), (60, 100), (110, 70), (64, 64), (200, 90))
"""Width and height of the pictures in turn."""

DATA = {"size": 96, "bucket_step": 32, "readers": 2, "workers": 0, "buffer": 4, "text_dropout": 0.0}


def write_pictures(folder: Path, count: int = 20, tars: int = 2, broken: int = 0, long: bool = False) -> str:
    """Tars of pictures of several ratios, PNG, with old captions; the first `broken` of each are cut off.

    With `long` every fifth caption has 200 words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for tar in range(tars):
        files = []
        for number in range(count // tars):
            key, content = f"{tar}{number:03}", encoded(picture(100 * tar + number, *SIZES[number % 5]), "PNG")
            files += [
                (f"{key}.png", content[:60] if number < broken else content),
                (f"{key}.txt", f"old {key}{' red' * 200 * (long and number % 5 == 0)}".encode()),
            ]
        (folder / f"{tar:05}.tar").write_bytes(tar_bytes(files))
    return f"{folder}/*.tar"


@pytest.fixture
def tars(tmp_path: Path) -> str:
    return write_pictures(tmp_path / "tars")


def shard_recipe(kind: str, runs: Path, shards: str, **changes: Any) -> Any:
    """A tiny recipe whose data are shards."""
    own = {name.removeprefix("data__"): changes.pop(name) for name in list(changes) if name.startswith("data__")}
    tables = tiny_recipe(kind, runs, **changes).to_dict()
    low = {"reconstructed_share": 0.5, "degraded_share": 0.2} if kind == "relay" else {}
    tables["data"] = {**DATA, **low, "vae": str(runs / "vae"), "text": str(runs / "text"), "shards": [shards], **own}
    return parse_recipe(tables, "tiny")


def data_figures(objective: DiffusionTraining) -> dict[str, float]:
    """The figures of its data."""
    objective.gather()
    return objective.source.figures()


def ready(recipe: Any) -> DiffusionTraining:
    objective = build(recipe)
    objective.prepare("cpu")
    return objective


def batches(objective: DiffusionTraining, count: int) -> list[dict[str, torch.Tensor]]:
    pairs = [[2 * n, 2 * n + 1] for n in range(count)]
    return [{**objective.batch(pair[0], pair), "keys": objective.keys(pair)} for pair in pairs]


def original(name: str) -> Image.Image:
    key = name.rpartition(": ")[2]
    number = int(key[1:])
    return picture(100 * int(key[0]) + number, *SIZES[number % 5])


# What a batch holds


def test_latents_texts_and_conditions_by_hand(runs: Path, tars: str) -> None:
    """The picture, cropped as the conditions say, encoded; its posterior's mean, scaled."""
    objective = ready(shard_recipe("base", runs, tars))
    vae = AutoencoderKL.from_pretrained(runs / "vae" / "weights" / "vae")
    text = T5EncoderModel.from_pretrained(runs / "text" / "weights" / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(runs / "text" / "weights" / "tokenizer")
    seen = set()
    for number in range(8):
        samples = objective.source.take(0, [0, 1])
        seen.add(tuple(samples.latents["z0"].shape[2:]))
        told = samples.captions([])
        assert told == [f"old {name.rpartition(': ')[2]}" for name in samples.keys]
        for row, name in enumerate(samples.keys):
            (height, width), (top, left), target = samples.sizes[row].tolist()
            image = original(name)
            assert (width, height) == image.size
            assert tuple(target) == tuple(8 * side for side in samples.latents["z0"].shape[2:])
            assert tuple(target) in Buckets(96, 32).sizes
            scale = max(target[0] / height, target[1] / width)
            whole = image.resize((max(target[1], round(width * scale)), max(target[0], round(height * scale))), 3)
            cut = np.asarray(whole.crop((left, top, left + target[1], top + target[0])), np.float32)
            with torch.no_grad():
                found = vae.encode(torch.from_numpy(cut / 127.5 - 1).permute(2, 0, 1)[None]).latent_dist
            expected = found.mean[0] * vae.config.scaling_factor
            # cropping after resizing rounds to 8 bits elsewhere than cropping while resizing
            torch.testing.assert_close(samples.latents["z0"][row], expected, atol=0.1, rtol=0)
            error = (samples.latents["z0"][row] - expected).square().mean().sqrt()
            assert error < 0.02 * expected.std()
        if number == 0:
            with torch.no_grad():
                tokens = tokenizer(told, padding="max_length", max_length=96, return_tensors="pt").input_ids
                expected = text(tokens).last_hidden_state
            batch = objective._noisy(samples)
            torch.testing.assert_close(batch["text"], expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(batch["sizes"], samples.sizes)
    assert len(seen) > 1, "all of one bucket: too few for this test to tell"


def test_a_relays_low_resolution_is_the_enlarged_half(runs: Path, tars: str) -> None:
    shares = {"data__reconstructed_share": 0.0, "data__degraded_share": 0.0, "data__crop": "center"}
    objective = ready(shard_recipe("relay", runs, tars, **shares))
    vae = AutoencoderKL.from_pretrained(runs / "vae" / "weights" / "vae")
    samples = objective.source.take(0, [0, 1])
    for row, name in enumerate(samples.keys):
        target = tuple(samples.sizes[row][2].tolist())
        x0 = torch.from_numpy(np.array(fit(original(name), target)[0], np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        half = torch.nn.functional.interpolate(x0, scale_factor=0.5, mode="bilinear", align_corners=False)
        low = torch.nn.functional.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        with torch.no_grad():
            mean = vae.encode(low).latent_dist.mean[0] * vae.config.scaling_factor
        # convolutions round differently by batch size
        torch.testing.assert_close(samples.latents["zL"][row], mean, atol=1e-4, rtol=0)


def test_the_network_gets_the_size_conditions(runs: Path, tars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, seen = ready(shard_recipe("base", runs, tars)), []
    forward = objective.trained.forward

    def record(*arguments: Any, class_labels: torch.Tensor, **options: Any) -> Any:
        seen.append(class_labels)
        return forward(*arguments, class_labels=class_labels, **options)

    monkeypatch.setattr(objective.trained, "forward", record)
    batch = objective.batch(0, [0, 1])
    objective(batch)
    # six numbers, 8 wide each, the first of each the cosine of the number itself
    assert torch.allclose(seen[0][:, ::8], batch["sizes"].flatten(1).float().cos(), atol=1e-4)


def test_captions_are_mixed_95_to_5_and_a_tenth_of_the_texts_dropped(
    runs: Path, tars: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tar in find_shards([tars]):
        keys = [f"{tar.address[-5]}{number:03}" for number in range(10)]
        rows = {"key": keys, "new": [f"new {key}" for key in keys], "status": ["ok"] * 10}
        Path(tar.sidecar("captions")).write_bytes(parquet_bytes(rows))
    objective = ready(shard_recipe("base", runs, tars, data__text_dropout=0.1, data__buckets=False))
    told: list[str] = []
    monkeypatch.setattr(objective, "_encoded", lambda texts: told.extend(texts) or torch.ones(len(texts), 2, 2))
    small = torch.zeros(40, 4, 1, 1)
    monkeypatch.setattr(objective.source, "_encode", lambda *_: {"mean": small, "logvar": small})
    dropped = sum(int((objective.batch(0, list(range(40)))["text"] == 0).all((1, 2)).sum()) for _ in range(40))
    assert len(told) == 1600
    old = sum(text.startswith("old") for text in told)
    # four standard deviations
    assert abs(old - 80) < 4 * (1600 * 0.05 * 0.95) ** 0.5
    assert abs(dropped - 160) < 4 * (1600 * 0.1 * 0.9) ** 0.5


def test_filters_and_weights_of_the_recipe_are_obeyed(runs: Path, tmp_path: Path) -> None:
    rare, often = write_pictures(tmp_path / "rare", 10, 1), write_pictures(tmp_path / "often", 10, 1)
    changes = {"data__shards": [rare, often], "data__weights": [1.0, 9.0], "data__min_side": 70, "data__max_ratio": 2.0}
    objective = ready(shard_recipe("base", runs, rare, **changes))
    names = [name for batch in batches(objective, 40) for name in batch["keys"]]
    assert {int(name[-3:]) % 5 for name in names} == {0, 2}, "60 and 64 are too small, 200 x 90 is too long"
    assert abs(sum("rare" in name for name in names) - 8) < 4 * (80 * 0.1 * 0.9) ** 0.5
    assert data_figures(objective)["data_left_out"] > 0


def test_captions_beyond_the_text_length_are_counted_across_a_stop(runs: Path, tmp_path: Path, capsys: Any) -> None:
    tars = write_pictures(tmp_path / "long", long=True)
    recipe = shard_recipe("base", runs, tars, data__buckets=False)
    objective = ready(recipe)
    assert data_figures(objective)["data_captions_cut"] == 0
    batches(objective, 4)
    position = objective.state()
    batches(objective, 6)  # the rest of the epoch
    figures = data_figures(objective)
    assert figures["data_captions_cut"] == pytest.approx(0.2)
    assert "20.0% of the captions are truncated to 96 tokens" in capsys.readouterr().err
    again = ready(recipe)
    again.load_state(position)
    batches(again, 6)
    assert data_figures(again) == figures


# Positions


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_stopped_within_an_epoch_and_resumed_with_a_worker_it_is_the_same_run(
    runs: Path, tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = partial(shard_recipe, "base", runs, tars)
    train(recipe(), tmp_path / "whole", device="cpu")
    after_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(recipe(), tmp_path / "run", device="cpu")
    train(recipe(data__workers=1), tmp_path / "run", device="cpu")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert (tmp_path / "run" / "samples" / "images-10.png").is_file()
    assert any(line.get("validation/data_used", 0) >= 10 for line in metrics(tmp_path / "run"))
    with pytest.raises(UserError, match=r"data\.readers"):
        train(recipe(data__readers=1), tmp_path / "run", device="cpu")


def test_a_checkpoint_without_a_position_is_told(runs: Path, tars: str, capsys: pytest.CaptureFixture[str]) -> None:
    objective = ready(shard_recipe("base", runs, tars))
    objective.load_state({})
    assert "reading starts over" in capsys.readouterr().err


def of_world(recipe: Any, monkeypatch: pytest.MonkeyPatch, world: int) -> list[ShardSource]:
    """The sources of processes that train together."""
    made = []
    for rank in range(world):
        monkeypatch.setattr("cogview3.training.sources.shards._place", lambda rank=rank: (rank, world))
        made.append(ready(recipe).source)
    return made


def test_on_another_number_of_processes_no_picture_is_lost_or_comes_twice(
    runs: Path, tars: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = shard_recipe("base", runs, tars)
    two = of_world(recipe, monkeypatch, 2)
    before = [key for _ in range(3) for source in two for key in source.take(0, [0]).keys + source.take(0, [0]).keys]
    states = json.loads(json.dumps([source.state() for source in two]))
    again = of_world(recipe, monkeypatch, 2)
    for source, state in zip(again, states, strict=True):
        source.load_state(state)
    for one, other in zip(two, again, strict=True):
        first, second = one.take(0, [0, 1]), other.take(0, [0, 1])
        assert (first.keys, first.seeds) == (second.keys, second.seeds)
        assert torch.equal(first.latents["z0"], second.latents["z0"])
    assert "processes" not in capsys.readouterr().err
    alone = of_world(recipe, monkeypatch, 1)[0]
    alone.load_state({"world": 2, "processes": states[0]["processes"] | states[1]["processes"]})
    assert "2 processes, here are 1" in capsys.readouterr().err
    after = [key for _ in range(8) for key in alone.take(0, [0]).keys]
    assert len(before) == 12
    assert sorted(before + after) == sorted(set(before + after)), "an epoch has 20"
    with pytest.raises(UserError, match="readers 2: give a multiple of the 3 processes"):
        of_world(recipe, monkeypatch, 3)


# Hostile data


def test_broken_pictures_are_counted_until_they_are_too_many(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_pictures(tmp_path / "tars", broken=2)
    recipe = partial(shard_recipe, "base", runs, shards, data__broken_window=20, validate__every_images=1000)
    result = train(recipe(data__broken_share=0.5), tmp_path / "run")
    assert result["images"] == 10
    assert result["validation"]["data_broken"] >= 1
    assert "broken: truncated image" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"[34] of the last 20 samples are broken, more than 10%: truncated image [34]"
    ) as caught:
        train(recipe(data__broken_share=0.1, train__images=40), tmp_path / "stopped", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__shards": ["nowhere/*.tar"]}, "nowhere"),
        ({"data__validation": ["nothing.tar"]}, "nothing.tar: not found"),
        ({"data__shards": []}, "data.shards"),
        ({"data__weights": [1.0, 2.0]}, "data.weights: give one for each of the 1 different"),
        ({"data__bucket_step": 64}, "data.bucket_step: does not divide size 96"),
        ({"data__latents": "require"}, r"00000.tar: no latents \(0 of 2"),
        ({"data__latents": "maybe"}, "data.latents"),
        ({"data__picture": 3}, "data.picture: unknown; known here: .*shards"),
        ({"data__reconstructed_share": 0.5}, "reconstructed_share is for relay"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    runs: Path, tars: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        build(shard_recipe("base", runs, tars, **changes))


# Latents encoded ahead


def encoding(runs: Path, *, text: bool = False, **changes: Any) -> Encoding:
    read = encoder_fingerprint(runs / "text" / "weights") if text else None
    settings = {"size": 96, "bucket_step": 32, "bucket_ratio": 2.0, "crop": "center", **changes}
    preprocessing = Preprocessing(vae_fingerprint(runs / "vae" / "weights" / "vae"), read, **settings)
    return Encoding(str(runs / "vae"), preprocessing, str(runs / "text") if text else None, batch=3)


@pytest.mark.parametrize("kind", ["base", "relay"])
def test_encoded_ahead_or_while_training_it_is_the_same(
    runs: Path, tars: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = partial(shard_recipe, kind, runs, tars, data__crop="center", data__broken_window=1)
    clean = {"data__reconstructed_share": 0.0, "data__degraded_share": 0.0}
    low = (0.0, 0.0) if kind == "relay" else None
    report, told = encode_shards(find_shards([tars]), encoding(runs, text=True, low=low))
    assert (report.samples, told["shards"], told["images"]) == (20, 2, 20)
    there = ready(recipe(data__latents="require", **clean))
    while_training = batches(ready(recipe(data__latents="never", **clean)), 12)
    with monkeypatch.context() as patch:
        for name in ("_encoded",):
            patch.setattr(there, name, lambda texts: pytest.fail("embeddings are there"))
        patch.setattr(there.source, "_encode", lambda *_: pytest.fail("latents are there"))
        ahead = batches(there, 12)
    for one, other in zip(ahead, while_training, strict=True):
        # the same order and conditions: only the tar's name differs
        assert [key.rpartition(": ")[2] for key in one["keys"]] == [key.rpartition(": ")[2] for key in other["keys"]]
        for name in ("t", "noise", "sizes"):
            assert torch.equal(one[name], other[name])
        for name in ("z0", "zL", "text")[:: 1 if kind == "relay" else 2]:
            # float16 keeps 11 bits; numbers are a few units large
            torch.testing.assert_close(one[name], other[name], atol=5e-3, rtol=2e-3)


@pytest.mark.slow
def test_a_run_on_pictures_goes_on_with_them_when_they_were_encoded_meanwhile(
    runs: Path, tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"train__images": 8, "train__checkpoint_images": 8, "validate__every_images": 8, "validate__images": 2}
    recipe = partial(shard_recipe, "base", runs, tars, data__crop="center", **short)
    train(recipe(), tmp_path / "whole", device="cpu")
    after_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(recipe(), tmp_path / "run", device="cpu")
    encode_shards(find_shards([tars]), encoding(runs))
    with pytest.raises(UserError, match=r"--set data\.latents=never"):
        train(recipe(), tmp_path / "run", device="cpu")
    train(recipe(data__latents="never"), tmp_path / "run", device="cpu")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_another_accumulation_is_told_where_it_changes_batches(
    runs: Path, tars: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ready(shard_recipe("base", runs, tars)).state()
    ready(shard_recipe("base", runs, tars, train__accumulation=2)).load_state(state)
    assert "accumulation was 1, here it is 2" in capsys.readouterr().err
    squares = ready(shard_recipe("base", runs, tars, data__buckets=False)).state()
    ready(shard_recipe("base", runs, tars, data__buckets=False, train__accumulation=2)).load_state(squares)
    assert "accumulation" not in capsys.readouterr().err


def test_new_captions_after_encoding_are_encoded_while_training(
    runs: Path, tars: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_shards(find_shards([tars]), encoding(runs, text=True))
    tar = find_shards([tars])[0]
    rows = {"key": ["0000"], "new": ["told anew"], "status": ["ok"]}
    Path(tar.sidecar("captions")).write_bytes(parquet_bytes(rows))
    objective = ready(shard_recipe("base", runs, tars, data__crop="center", data__new_share=1.0))
    told: list[str] = []
    whole = objective._encoded
    monkeypatch.setattr(objective, "_encoded", lambda texts: told.extend(texts) or whole(texts))
    batches(objective, 20)
    assert set(told) == {"told anew"}


@pytest.fixture(scope="module")
def encoded_tars(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tars with latents and embeddings beside them; for reading only."""
    tars = write_pictures(tmp_path_factory.mktemp("encoded") / "tars")
    encode_shards(find_shards([tars]), encoding(runs, text=True))
    return tars


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("base", {"data__crop": "random"}, r"crop \(center there, random here\)"),
        ("base", {"data__bucket_ratio": 1.5}, r"bucket_ratio \(2.0 there, 1.5 here\)"),
        ("base", {"data__buckets": False}, r"bucket_step \(32 there, 96 here\)"),
        ("base", {"data__text": "scenes"}, r"text \("),
        ("base", {"data__vae": "scenes"}, r"vae \("),
        ("relay", {"data__size": 128}, r"size \(96 there, 128 here\), relay \(False there, True here\)"),
    ],
)
def test_latents_of_another_kind_are_refused(
    runs: Path, encoded_tars: str, kind: str, changes: dict[str, Any], words: str
) -> None:
    recipe = partial(shard_recipe, kind, runs, encoded_tars)
    with pytest.raises(UserError, match=words) as caught:
        build(recipe(**{"data__crop": "center", **changes}))
    assert "--overwrite" in str(caught.value)
    build(recipe(**{"data__latents": "never", **changes, "data__text": str(runs / "text")}))


def test_a_base_takes_latents_that_were_made_for_a_relay(runs: Path, tars: str) -> None:
    encode_shards(find_shards([tars]), encoding(runs, low=(0.5, 0.2)))
    samples = ready(shard_recipe("base", runs, tars, data__crop="center", data__latents="require")).source.take(0, [0])
    assert samples.latents.keys() == {"z0"}


def test_where_some_shards_have_latents_all_are_read_as_pictures(
    runs: Path, tars: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_shards(find_shards([tars])[:1], encoding(runs))
    objective = ready(shard_recipe("base", runs, tars))
    assert "1 of 2 shards have latents" in capsys.readouterr().err
    assert ".latents.tar" not in objective.source.take(0, [0]).keys[0]
    with pytest.raises(UserError, match=r"00001\.tar: no latents"):
        build(shard_recipe("base", runs, tars, data__latents="require"))
    Path(find_shards([tars])[1].address.replace(".tar", ".latents.tar")).write_bytes(b"x" * 600)
    objective = ready(shard_recipe("base", runs, tars, data__crop="center"))
    with pytest.raises(UserError, match=r"00001.latents.tar: damaged .*--overwrite"):
        batches(objective, 20)


# Where runs begin


def test_a_relay_starts_from_the_relay_of_a_model_that_has_both(runs: Path, tars: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "unet").symlink_to(runs / "base" / "weights" / "unet")
    (model / "relay_unet").symlink_to(runs / "relay" / "weights" / "relay_unet")
    for kind, name in (("relay", "relay_unet"), ("base", "unet")):
        begun = build(shard_recipe(kind, runs, tars, recipe__start_from=str(model))).trained.state_dict()
        saved = UNet2DConditionModel.from_pretrained(model / name).state_dict()
        assert all(torch.equal(value, saved[key]) for key, value in begun.items())
