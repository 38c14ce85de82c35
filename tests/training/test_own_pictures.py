"""Autoencoder and text encoder on pictures and captions of one's own: what is learned from, and exact resumption."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import AutoTokenizer, T5EncoderModel, T5Tokenizer

from cogview3.config import UserError, load_recipe, parse_recipe
from cogview3.training.loop import train
from cogview3.training.objectives import build
from cogview3.training.objectives.pairs import PairTraining
from cogview3.training.objectives.vae import OwnVaeTraining
from cogview3.training.sources import shards as shard_source
from tests.training.conftest import tiny_recipe
from tests.training.test_loop import after_step, metrics
from tests.training.test_sources import original, shard_recipe, write_pictures

OWN: dict[str, dict[str, Any]] = {
    "vae": {"size": 128, "patch": 32, "bucket_step": 32},
    "text": {"size": 64, "tokenizer_captions": 20},
}


def alone(loss: str) -> dict[str, float]:
    """Weights of the text encoder's losses, all 0 but one."""
    return {f"objective__{name}": float(name == loss) for name in ("masked", "contrastive", "swapped")}


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pictures(tmp_path_factory.mktemp("own") / "tars")


def own_recipe(kind: str, shards: str, **changes: Any) -> Any:
    own = {name.removeprefix("data__"): changes.pop(name) for name in list(changes) if name.startswith("data__")}
    objective = {name: changes.pop(name) for name in list(changes) if name.startswith("objective__")}
    tables = tiny_recipe(kind, Path("none"), **changes).to_dict()
    if objective:
        tables["objective"] = {name.removeprefix("objective__"): value for name, value in objective.items()}
    reading = {"shards": [shards], "readers": 2, "workers": 0, "buffer": 4}
    tables["data"] = {**OWN[kind], **reading, **own}
    return parse_recipe(tables, "tiny")


def test_parts_of_the_autoencoders_pictures_are_cut_from_them(tars: str) -> None:
    objective = build(own_recipe("vae", tars, data__half_share=0.0))
    assert isinstance(objective, OwnVaeTraining)
    taken: list[Any] = []
    read = objective.source.pictures
    objective.source.pictures = lambda count: taken.append(read(count)) or taken[-1]
    batch = objective.batch(0, [0, 1])
    assert batch["pictures"].shape == (2, 3, 32, 32)
    for part, picture in zip(batch["pictures"], taken[0].images, strict=True):
        pixels = ((part + 1) * 127.5).round().to(torch.uint8)
        windows = picture.unfold(1, 32, 1).unfold(2, 32, 1)
        assert (windows == pixels[:, None, None]).all(-1).all(-1).all(0).any(), "no part of its picture"
    assert [len(objective.keys([0, 1])), objective.keys([0])[0].count(".tar")] == [2, 1]


def test_whole_pictures_come_last_with_as_many_pixels(tars: str) -> None:
    objective = build(own_recipe("vae", tars, data__buckets=False, data__size=128, train__batch=16))
    shapes = {}
    for number in range(3):
        first = 160 + 16 * number
        shapes[first // 16 % 3] = objective.batch(first, list(range(first, first + 16)))["pictures"].shape
    assert shapes == {0: (1, 3, 128, 128), 1: (4, 3, 64, 64), 2: (4, 3, 64, 64)}


def test_the_autoencoders_psnr_is_that_of_its_pictures(tars: str) -> None:
    objective = build(own_recipe("vae", tars))
    objective.eval()
    figures = objective.validate()
    pictures = objective.source.fixed_pictures.images.float() / 127.5 - 1
    with torch.no_grad():
        back = objective.trained(pictures).sample.clamp(-1, 1)
    assert figures["psnr_128"] == pytest.approx(  # pooled
        -10 * math.log10((back - pictures).square().mean().item() / 4), rel=1e-4
    )
    assert figures["data_used"] == 0, "the validation's own are not counted"


@pytest.mark.parametrize("kind", [pytest.param("vae", marks=pytest.mark.slow), "text"])
def test_stopped_and_resumed_it_is_the_same_run(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    recipe = own_recipe(kind, tars)
    train(recipe, tmp_path / "whole", device="cpu")
    after_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "stopped", device="cpu")
    train(recipe, tmp_path / "stopped", device="cpu")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "weights").rglob("*.safetensors")):
        assert (tmp_path / "stopped" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    if kind == "text":
        folder = tmp_path / "whole" / "weights"
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        assert tokenizer.tokenize("old")[0] == "▁old", "the captions' own words are words"
        assert T5EncoderModel.from_pretrained(folder / "text_encoder").config.d_model == 16


def test_hidden_words_are_told_from_the_rest(tars: str) -> None:
    """The loss by hand; what is hidden is not given."""
    objective = build(own_recipe("text", tars, **alone("masked"), objective__masked_share=0.5))
    assert isinstance(objective, PairTraining)
    batch = objective.batch(0, list(range(8)))
    hidden, tokens = batch["hidden"], batch["tokens"]
    special = torch.isin(tokens, torch.tensor([0, 1]))  # padding and end
    assert not (hidden & special).any()
    assert 0.2 < hidden.sum() / (~special).sum() < 0.8
    losses = objective(batch)
    assert losses.keys() == {"loss", "masked"}
    given = torch.where(hidden, 2, tokens)
    output = objective.trained.t5(given, attention_mask=torch.ones_like(given)).last_hidden_state
    chances = objective.trained.words(output).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    assert losses["loss"].item() == pytest.approx(-chances[hidden].mean().item(), rel=1e-5)


def test_captions_are_told_their_pictures_both_ways(tars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build(own_recipe("text", tars, **alone("contrastive"), objective__temperature=0.5))
    batch = objective.batch(0, [0, 1, 2])
    batch["tokens"][2] = batch["tokens"][1]  # one caption of two pictures
    likeness = torch.tensor([[0.9, 0.1, -0.2], [0.3, 0.2, 0.4], [0.3, 0.2, 0.4]])
    monkeypatch.setattr(objective.trained, "read", lambda *_: likeness)
    monkeypatch.setattr(objective.trained, "look", lambda *_: torch.eye(3))
    rows, columns = ((2 * values).log_softmax(1) for values in (likeness, likeness.T))
    wanted = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])
    expected = -((wanted * rows).sum(1).mean() + (wanted * columns).sum(1).mean()) / 2
    assert objective(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    fixed = objective.source.fixed_pictures
    monkeypatch.setattr(objective.trained, "look", lambda pictures: torch.eye(len(pictures)))
    monkeypatch.setattr(objective.trained, "read", lambda tokens, *_: torch.eye(len(tokens)).roll(1, 1))
    assert objective.validate()["pictures_found"] == 0.0
    assert len(set(fixed.captions)) == len(fixed.captions)
    monkeypatch.setattr(objective.trained, "read", lambda tokens, *_: torch.eye(len(tokens)))
    assert objective.validate()["pictures_found"] == 1.0


def test_pictures_choose_between_their_caption_and_a_swapped_one(tars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss by hand; the swapped caption has two words of the other in each other's place, and nothing else."""
    objective = build(own_recipe("text", tars, **alone("swapped"), objective__temperature=0.5))
    batch = objective.batch(0, list(range(8)))
    moved = batch["tokens"] != batch["swapped"]
    assert set(moved.sum(1).tolist()) <= {0, 2}, "two equal words may be swapped"
    assert moved.any()
    assert not (moved & torch.isin(batch["tokens"], torch.tensor([0, 1]))).any(), "padding and end stay"
    assert torch.equal(batch["tokens"].sort(1).values, batch["swapped"].sort(1).values)
    batch = {name: value[:3] for name, value in batch.items()}
    batch["swapped"][2] = batch["tokens"][2]  # counts nothing
    right, wrong = torch.tensor([0.9, -0.2, 0.3]), torch.tensor([0.1, 0.4, 0.3])
    monkeypatch.setattr(objective.trained, "look", lambda pictures: torch.ones(3, 1))
    monkeypatch.setattr(
        objective.trained, "read", lambda tokens, _: (right if tokens is batch["tokens"] else wrong)[:, None]
    )
    chances = torch.sigmoid(2 * (right - wrong))[:2]
    assert objective(batch)["loss"].item() == pytest.approx(-chances.log().mean().item(), rel=1e-5)


def test_known_words_keep_their_embeddings_and_new_ones_start_as_their_pieces(tars: str, tmp_path: Path) -> None:
    first = build(own_recipe("text", tars, **alone("masked")))
    first.save(tmp_path / "weights")
    start = T5EncoderModel.from_pretrained(tmp_path / "weights" / "text_encoder")
    other = tmp_path / "other"
    other.mkdir()
    for number, words in enumerate(("an older house", "an older tree", "zebra", "a zebra")):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(other / f"{number}.png")
        (other / f"{number}.txt").write_text(words)
    second = build(own_recipe("text", str(other), recipe__start_from=str(tmp_path)))
    old, new = first.tokenizer.get_vocab(), second.tokenizer.get_vocab()
    assert "▁zebra" in new, "the captions' own words"
    assert "▁zebra" not in old
    before, after = start.shared.weight, second.trained.t5.shared.weight
    both = sorted(old.keys() & new.keys())
    assert torch.equal(after[[new[word] for word in both]], before[[old[word] for word in both]])
    pieces = [old[character] for character in ("▁", *"zebra")]
    assert torch.allclose(after[new["▁zebra"]], before[pieces].mean(0))
    layers = {name: value for name, value in start.state_dict().items() if "block" in name or "norm" in name}
    assert all(torch.equal(second.trained.t5.state_dict()[name], value) for name, value in layers.items())
    with pytest.raises(UserError, match="start_from"):
        build(own_recipe("text", str(other), recipe__start_from=str(tmp_path), model__d_model=32))


def test_shards_by_set_take_the_place_of_scenes() -> None:
    vae = load_recipe("scenes/vae", ['data.shards=["a"]'])
    assert (vae.data.shards, vae.data.size, vae.data.patch) == (("a",), 256, 64)
    assert load_recipe("scenes/text", ['data.shards=["a"]']).data.size == 64
    relay = load_recipe("scenes/relay", ['data.shards=["a"]'])
    assert (relay.data.size, relay.data.reconstructed_share, relay.data.crop) == (256, 0.5, "random")
    assert load_recipe("scenes/enlarger", ['data.shards=["a"]']).data.shards == ("a",)
    with pytest.raises(UserError, match="pictures"):
        load_recipe("scenes/relay", ['data.shards=["a"]', "data.pictures=5"])
    for name, override, words in (
        ("scenes/vae", "data.patch=128", "at most 64"),
        ("scenes/own_text", "objective.masked=0", None),
        ("scenes/text", "objective.masked=1", "data.shards"),
    ):
        overrides = [override] if name == "scenes/text" else ['data.shards=["a"]', override]
        if words is None:
            assert load_recipe(name, overrides).objective.masked == 0
        else:
            with pytest.raises(UserError, match=words):
                load_recipe(name, overrides)
    none = [f"objective.{name}=0" for name in ("masked", "contrastive", "swapped")]
    with pytest.raises(UserError, match="masked, contrastive and swapped"):
        load_recipe("scenes/own_text", ['data.shards=["a"]', *none])
    assert load_recipe("scenes/own_text", ['data.shards=["a"]', *none[:2]]).objective.swapped > 0


@pytest.mark.parametrize("least", [0.0, 99.0])
def test_what_the_autoencoder_loses_of_the_pictures_is_told_before_a_run(
    tmp_path: Path,
    tars: str,
    make_vae: Callable[..., AutoencoderKL],
    make_text_encoder: Callable[[], T5EncoderModel],
    make_tokenizer: Callable[..., T5Tokenizer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    least: float,
) -> None:
    vae = make_vae()
    vae.save_pretrained(tmp_path / "model" / "vae")
    make_text_encoder().save_pretrained(tmp_path / "text" / "text_encoder")
    make_tokenizer().save_pretrained(tmp_path / "text" / "tokenizer")
    monkeypatch.setattr(shard_source, "FEWEST_DECIBELS", least)
    places = {"data__vae": str(tmp_path / "model"), "data__text": str(tmp_path / "text")}
    objective = build(shard_recipe("base", Path("none"), tars, **places))
    objective.prepare("cpu")
    told = capsys.readouterr().err
    pictures = objective.source.fixed_pictures.images.float() / 127.5 - 1
    with torch.no_grad():
        error = (vae(pictures).sample.clamp(-1, 1) - pictures).square().mean().item() / 4
    assert f"{-10 * math.log10(error):.1f} dB" in told
    assert ("own_vae" in told) == (least > 0)


def test_pictures_are_those_of_the_shards(tars: str) -> None:
    """A whole square picture of the smallest kind is what the file holds."""
    objective = build(own_recipe("text", tars))
    fixed = objective.source.fixed_pictures
    names = [name for name in fixed.keys if original(name).size == (64, 64)]
    for name in names:
        expected = np.asarray(original(name)).transpose(2, 0, 1)
        assert np.array_equal(fixed.images[fixed.keys.index(name)].numpy(), expected)
