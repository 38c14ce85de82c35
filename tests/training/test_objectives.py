"""Objectives: what is asked of the networks, against closed forms; batches that depend on their indices alone."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, T5EncoderModel

from cogview3.config import UserError, load_recipe
from cogview3.data.latents import to_tensor
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import SHAPES, Facts, ObjectFacts, Relation, Scene
from cogview3.data.scenes.things import THINGS
from cogview3.training.objectives import Batch, Objective, build
from cogview3.training.objectives.diffusion import STEPS, DiffusionTraining
from cogview3.training.objectives.text import (
    _OFFSETS,
    TextTraining,
    fact_labels,
    matched_labels,
    named_objects,
    naming_words,
)
from cogview3.training.objectives.vae import VaeTraining, normalize_latents
from cogview3.training.sources import scenes as scene_source
from tests.training.conftest import KINDS, tiny_recipe


def stage(kind: str, runs: Path, **changes: Any) -> DiffusionTraining:
    """The objective of a base or relay, with its latents."""
    objective = DiffusionTraining(tiny_recipe(kind, runs, **changes))
    objective.prepare("cpu")
    return objective


# All kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_in_every_batch(runs: Path, kind: str) -> None:
    """Samples 6 and 7, an epoch's last sample and its next one's first, asked for in one batch and in two."""
    changes = {"data__pictures": 7} if kind in ("base", "relay") else {}
    objective = build(tiny_recipe(kind, runs, **changes))
    objective.prepare("cpu")
    together = objective.batch(0, [6, 7])
    torch.manual_seed(99)
    for row, index in ((1, 7), (0, 6)):
        alone = objective.batch(0, [index])
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"noise_seed"}:
            # matrix products of T5 round differently by batch size, in the seventh digit
            torch.testing.assert_close(alone[name][0], together[name][row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_fixed(runs: Path, kind: str) -> None:
    objective = build(tiny_recipe(kind, runs))
    objective.prepare("cpu")
    first = objective.validate()
    torch.manual_seed(99)
    objective.batch(0, [3])
    assert objective.validate() == first


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(runs: Path) -> None:
    weights = [VaeTraining(tiny_recipe("vae", runs, train__seed=seed)).trained.quant_conv.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# VAE


@pytest.fixture
def autoencoder(runs: Path) -> VaeTraining:
    return VaeTraining(tiny_recipe("vae", runs, train__images=100))


def is_cut_from(crop: np.ndarray, picture: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(picture, crop.shape)
    return bool((windows == crop).all((-3, -2, -1)).any())


def test_crops_are_cut_from_the_scenes_at_either_size(autoencoder: VaeTraining) -> None:
    indices = list(range(30))
    crops = ((autoencoder.batch(0, indices)["pictures"] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert crops.shape == (30, 32, 32, 3)
    sizes: Counter[int] = Counter()
    for index, crop in zip(indices, crops, strict=True):
        scene = autoencoder._scene(index)
        sizes[32 if np.array_equal(render(scene, 32), crop) else 64] += 1
        assert np.array_equal(render(scene, 32), crop) or is_cut_from(crop, render(scene, 64))
    assert 4 <= sizes[32] <= 18, "half_share is 0.35: 10.5 of 30, sd 2.6"


def test_whole_pictures_come_last_in_both_sizes_and_with_a_crop_batchs_pixels(autoencoder: VaeTraining) -> None:
    shapes = [autoencoder.batch(first, list(range(first, first + 8)))["pictures"].shape for first in range(60, 66, 2)]
    assert shapes == [(2, 3, 64, 64), (8, 3, 32, 32), (8, 3, 32, 32)]
    assert autoencoder.batch(58, [58, 59])["pictures"].shape == (2, 3, 32, 32)
    whole = autoencoder.batch(60, [60, 61, 62, 63])["pictures"]
    assert torch.equal(whole, to_tensor([render(autoencoder._scene(60), 64)]))


def test_the_loss_of_the_autoencoder_is_its_terms_weighted(runs: Path) -> None:
    objective = VaeTraining(tiny_recipe("vae", runs, objective__kl=0.1, objective__edge=0.5))
    batch = objective.batch(0, [0, 1])
    losses = {name: value.item() for name, value in objective(batch).items()}
    assert losses["loss"] == pytest.approx(losses["l1"] + 2 * losses["mse"] + 0.5 * losses["edge"] + 0.1 * losses["kl"])
    posterior = objective.trained.encode(batch["pictures"]).latent_dist
    mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
    kl = 0.5 * (mean**2 + variance - 1 - variance.log()).mean()
    assert losses["kl"] == pytest.approx(kl.item(), rel=1e-5)


def test_the_errors_of_a_known_reconstruction(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that gives the picture plus a ramp of 0.01 a column: L1, square and slope have closed forms."""
    objective = VaeTraining(tiny_recipe("vae", runs))
    batch = objective.batch(0, [0, 1])
    ramp = torch.arange(32) * 0.01
    monkeypatch.setattr(objective.trained, "decode", lambda latents: SimpleNamespace(sample=batch["pictures"] + ramp))
    losses = objective(batch)
    assert losses["l1"].item() == pytest.approx(0.155, rel=1e-5)
    assert losses["mse"].item() == pytest.approx(1e-4 * 31 * 63 / 6, rel=1e-5)
    assert losses["edge"].item() == pytest.approx(0.01, rel=1e-4)


def test_psnr_is_that_of_the_reconstructions(runs: Path) -> None:
    objective = VaeTraining(tiny_recipe("vae", runs))
    pictures = to_tensor(objective._validation_pictures(64))
    with torch.no_grad():
        decoded = objective.trained.decode(objective.trained.encode(pictures).latent_dist.mode()).sample
    error = ((decoded.clamp(-1, 1) - pictures) * 127.5).double().square().mean()
    expected = 10 * np.log10(255**2 / error.item())
    assert objective.validate()["psnr_64"] == pytest.approx(expected, rel=1e-5)


def test_normalized_latents_drawn_have_mean_0_and_sd_1_and_the_same_reconstructions(
    make_vae: Callable[..., AutoencoderKL],
) -> None:
    vae = make_vae().requires_grad_(False)
    vae.quant_conv.bias += torch.arange(8) * 0.5 - 1
    vae.quant_conv.weight[0] *= 1e-3  # as if the KL divergence had emptied it: magnified, its noise would be endless
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(3)]
    before = [vae.encode(batch).latent_dist for batch in batches]
    decoded = [vae.decode(posterior.mode()).sample for posterior in before]
    normalize_latents(vae, batches)
    after = [vae.encode(batch).latent_dist for batch in batches]
    means = torch.cat([posterior.mean for posterior in after]).double()
    # float32 holds seven digits, and means up to 100 standard deviations away were taken off
    torch.testing.assert_close(means.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-4, rtol=0)
    drawn = torch.cat([posterior.var for posterior in after]).double().mean((0, 2, 3)) + means.var((0, 2, 3))
    torch.testing.assert_close(drawn, torch.ones(4).double(), atol=1e-4, rtol=0)
    assert means[:, 0].std() < 0.01
    for batch, old, new in zip(decoded, before, after, strict=True):
        torch.testing.assert_close(vae.decode(new.mode()).sample, batch, atol=1e-4, rtol=0)
        scale = (old.std / new.std).mean((0, 2, 3))
        torch.testing.assert_close((old.std / new.std), scale.view(1, -1, 1, 1).expand_as(old.std), atol=0, rtol=1e-3)


def test_the_vae_is_saved_with_normalized_latents(runs: Path) -> None:
    vae = AutoencoderKL.from_pretrained(runs / "vae" / "weights" / "vae")
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (1.0, 0.0)
    rng = np.random.default_rng(5)
    objective = VaeTraining(tiny_recipe("vae", runs))
    pictures = to_tensor([render(objective._scene(int(index)), 32) for index in rng.integers(1000, 9999, 64)])
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.sample(torch.Generator().manual_seed(0))
    # other pictures than those of the statistics, 64 of each: the error of a mean or sd is some tenths
    assert latents.mean((0, 2, 3)).abs().max() < 0.5
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.5


def test_an_autoencoder_starts_from_another_ones_averages(runs: Path) -> None:
    saved = AutoencoderKL.from_pretrained(runs / "vae" / "weights" / "vae").state_dict()
    started = VaeTraining(tiny_recipe("vae", runs, recipe__start_from=str(runs / "vae"))).trained.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in started.items())
    changes = {"recipe__start_from": str(runs / "vae"), "model__block_out_channels": [4, 4, 8, 16]}
    with pytest.raises(UserError, match=f"{runs / 'vae'}' has other shapes"):
        VaeTraining(tiny_recipe("vae", runs, **changes))


# Text


def test_a_text_encoder_starts_from_another_ones_averages_and_words(runs: Path) -> None:
    weights = runs / "text" / "weights"
    start = {"recipe__start_from": str(runs / "text"), "train__seed": 1}
    started = TextTraining(tiny_recipe("text", runs, **start))
    saved = T5EncoderModel.from_pretrained(weights / "text_encoder").encoder.state_dict()
    begun = started.trained.t5.encoder.state_dict()
    assert begun.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in begun.items())
    assert started.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(weights / "tokenizer").get_vocab()
    assert TextTraining(tiny_recipe("text", runs, train__seed=1)).fingerprint() != started.fingerprint()
    with pytest.raises(UserError, match=r"recipe\.start_from .* has other shapes"):
        TextTraining(tiny_recipe("text", runs, **start, model__d_ff=24))
    with pytest.raises(UserError, match=r"reads 96 tokens; set model.max_length to that, not to 32"):
        TextTraining(tiny_recipe("text", runs, **start, model__max_length=32))


RED = ObjectFacts("star", "red", "striped", None, "large", "top left")
BLUE = ObjectFacts("ring", "blue", None, True)
GREEN = ObjectFacts("cross", "green")
FOX = ObjectFacts(thing="fox")


def tensors(*told: Facts) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (B, 33) and relations (B, 4, 4) of captions' facts."""
    labels, relations = zip(*map(fact_labels, told), strict=True)
    return torch.tensor(labels), torch.tensor(relations)


def random_logits(rows: int, seed: int) -> torch.Tensor:
    """What an untrained decoder may tell, (rows, slots, values), other slots' values masked."""
    logits = torch.randn(len(_OFFSETS) - 1, int(_OFFSETS[-1]), generator=torch.Generator().manual_seed(seed))
    for slot, (start, end) in enumerate(pairwise(_OFFSETS)):
        logits[slot, :start] = logits[slot, end:] = -1e4
    return logits.expand(rows, -1, -1)


def test_labels_are_0_for_what_is_not_stated_and_else_the_values_number() -> None:
    nothing = [[0] * 4 for _ in range(4)]
    assert fact_labels(Facts()) == ([0] * 33, nothing)  # ground, texture, count, different, denied; 7 of 4 objects
    star, ring = [5, 1, 2, 0, 3, 1, 0], [6, 6, 0, 2, 0, 0, 0]  # shape, color, fill, outline, size, position, thing
    facts = Facts(
        "gray", "tiled", 3, (RED, BLUE, FOX), (Relation(0, "above", 1),), (ObjectFacts("circle"),), ("color",)
    )
    labels, relations = fact_labels(facts)
    assert labels == [2, 2, 3, 2, 1, *star, *ring, *[0] * 6, 1 + list(THINGS).index("fox"), *[0] * 7]
    assert relations == [[0, 3, 0, 0], [4, 0, 0, 0], [0] * 4, [0] * 4]  # above one way, below the other
    denied = fact_labels(Facts(denied=(ObjectFacts(thing="fox"),)))[0]
    assert denied == [0] * 4 + [1 + len(SHAPES) + list(THINGS).index("fox")] + [0] * 28


def test_an_object_between_two_others_has_both_as_ends() -> None:
    _, relations = fact_labels(Facts(objects=(RED, BLUE, FOX), relations=(Relation(2, "between", 0, 1),)))
    assert relations == [[0, 0, 6, 0], [0, 0, 6, 0], [5, 5, 0, 0], [0] * 4]


def test_of_one_pairs_two_relations_the_first_told_counts() -> None:
    relations = (Relation(0, "above", 1), Relation(1, "right of", 0))
    both = fact_labels(Facts(objects=(RED, BLUE), relations=relations))
    assert both == fact_labels(Facts(objects=(RED, BLUE), relations=relations[:1]))
    assert both != fact_labels(Facts(objects=(RED, BLUE), relations=relations[1:]))


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_objects_does_not_matter(seed: int) -> None:
    told = Facts("white", None, 3, (RED, BLUE, GREEN), (Relation(0, "left of", 1), Relation(2, "above", 0)))
    turned = Facts("white", None, 3, (GREEN, RED, BLUE), (Relation(1, "left of", 2), Relation(0, "above", 1)))
    reverse = Facts("white", None, 3, (BLUE, GREEN, RED), (Relation(0, "right of", 2), Relation(2, "below", 1)))
    wrong = Facts("white", None, 3, (RED, BLUE, GREEN), (Relation(1, "left of", 0), Relation(2, "above", 0)))
    matched = matched_labels(random_logits(4, seed), *tensors(told, turned, reverse, wrong))
    assert matched.shape == (4, 39)
    assert torch.equal(matched[0], matched[1])
    assert torch.equal(matched[0], matched[2])
    assert not torch.equal(matched[0, 33:], matched[3, 33:])


@pytest.mark.parametrize("seed", range(5))
def test_objects_are_matched_by_the_least_cross_entropy(seed: int) -> None:
    facts = Facts("white", None, 3, (RED, BLUE, GREEN), (Relation(0, "left of", 1), Relation(2, "above", 0)))
    logits = random_logits(1, seed)
    offsets = torch.tensor(_OFFSETS[:-1])

    def cost(labels: torch.Tensor) -> float:
        return -logits[0, 5:33].double().log_softmax(-1).gather(1, (labels + offsets)[5:33, None]).sum().item()

    costs = []
    for order in permutations(range(4)):  # the fourth object is the one that is not there
        objects = [facts.objects[i] if i < 3 else ObjectFacts() for i in order]
        relations = tuple(Relation(order.index(r.first), r.kind, order.index(r.second)) for r in facts.relations)
        labels, pairs = tensors(Facts("white", None, 3, tuple(objects), relations))
        upper = torch.triu_indices(4, 4, 1)
        costs.append((cost(torch.cat([labels[0], pairs[0][upper[0], upper[1]]])), labels[0], pairs[0][upper.unbind()]))
    least = min(costs, key=lambda item: item[0])
    assert torch.equal(matched_labels(logits, *tensors(facts))[0], torch.cat(least[1:]))


def test_words_name_an_object_where_only_one_fits() -> None:
    words = naming_words()
    assert (words["star",], words["red",]) == (("shape", "star"), ("color", "red"))
    facts = Facts(objects=(RED, ObjectFacts("ring", "red"), GREEN))
    pieces = ["▁a", "▁red", "▁star", "▁left", "▁of", "▁ring", "▁,", "▁green", "▁blue", "</s>"]
    assert named_objects(pieces, facts, words) == [-1, -1, 0, -1, -1, 1, -1, 2, -1, -1]


def test_things_are_named_by_their_whole_names() -> None:
    facts = Facts(objects=(ObjectFacts(thing="bear"), ObjectFacts(thing="teddy bear"), FOX))
    pieces = ["▁a", "▁teddy", "▁bear", "▁over", "▁a", "▁bear", "▁and", "▁a", "▁fox", "</s>"]
    assert named_objects(pieces, facts, naming_words()) == [-1, -1, 1, -1, -1, 0, -1, -1, 2, -1]


def test_words_for_several_objects_name_the_first_where_the_same_is_stated_of_all() -> None:
    facts = Facts(objects=(GREEN, ObjectFacts("ring", "red"), GREEN))
    pieces = ["▁two", "▁green", "▁crosses", "</s>"]
    assert named_objects(pieces, facts, naming_words()) == [-1, 0, 0, -1]
    assert named_objects(pieces, facts, naming_words(), places=[2, 1, 0]) == [-1, 2, 2, -1]
    apart = Facts(objects=(GREEN, ObjectFacts("cross", "green", position="top left")))
    assert named_objects(pieces, apart, naming_words()) == [-1] * 4


@pytest.fixture(scope="module")
def reader(runs: Path) -> TextTraining:
    return TextTraining(tiny_recipe("text", runs))


def test_the_loss_of_the_text_encoder_is_each_facts_own_cross_entropy(reader: TextTraining) -> None:
    batch = reader.batch(0, list(range(6)))
    assert batch["tokens"].shape == batch["named"].shape == (6, 96)
    with torch.no_grad():
        logits, words = reader.trained(batch["tokens"])
        losses = {name: value.item() for name, value in reader(batch).items()}
    labels = matched_labels(logits, batch["labels"], batch["relations"])
    slots = [
        -logits[:, slot, start:end].double().log_softmax(-1).gather(1, labels[:, slot : slot + 1]).mean().item()
        for slot, (start, end) in enumerate(pairwise(_OFFSETS))
    ]
    assert losses["slots"] == pytest.approx(np.mean(slots), rel=1e-5)
    naming = []
    for row, place in (batch["named"] >= 0).nonzero().tolist():
        first = 5 + 7 * int(batch["named"][row, place])
        wanted, start = batch["labels"][row, first : first + 7].tolist(), 0
        for number, classes in zip(wanted, (9, 9, 5, 3, 4, 10, 1 + len(THINGS)), strict=True):
            part = words[row, place, start : start + classes].double().log_softmax(0)
            naming.append(-part[number].item())
            start += classes
    assert len(naming) > 20
    assert losses["naming"] == pytest.approx(np.mean(naming), rel=1e-5)
    assert losses["loss"] == pytest.approx(losses["slots"] + losses["naming"])


def test_a_batch_whose_words_name_nothing_has_a_loss(reader: TextTraining) -> None:
    batch = reader.batch(0, [0, 1])
    losses = reader({**batch, "named": torch.full_like(batch["named"], -1)})
    assert losses["naming"].item() == 0
    assert losses["loss"].isfinite()


def test_figures_of_a_reader_that_is_always_right(runs: Path) -> None:
    reader = TextTraining(tiny_recipe("text", runs))
    batch = reader._batch(reader.recipe.validate_.seed, list(range(4)))
    upper = torch.triu_indices(4, 4, 1)
    labels = torch.cat([batch["labels"], batch["relations"][:, upper[0], upper[1]]], 1)
    answers = 50.0 * nn.functional.one_hot(labels + torch.tensor(_OFFSETS[:-1]), int(_OFFSETS[-1]))

    class Answering(nn.Module):
        queries = nn.Parameter(torch.zeros(1))

        def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
            assert torch.equal(tokens, batch["tokens"])
            return answers, None

    reader.trained = Answering()
    assert reader.validate() == {"facts_right": 1.0, "captions_right": 1.0, "captions_full_length": 0.0}
    slot = int((labels[0] > 0).nonzero()[0])
    answers[0, slot] = 0
    answers[0, slot, int(_OFFSETS[slot])] = 50  # "not stated"
    figures = reader.validate()
    assert figures["captions_right"] == 0.75
    assert figures["facts_right"] == pytest.approx(1 - 1 / (labels > 0).sum().item())


def test_the_vocabulary_is_the_fingerprint(reader: TextTraining, runs: Path) -> None:
    again = TextTraining(tiny_recipe("text", runs, train__images=4))
    other = TextTraining(tiny_recipe("text", runs, data__tokenizer_captions=32))
    unused = again.fingerprint()
    assert unused == reader.fingerprint() != other.fingerprint()
    again.batch(0, [0])  # the tokenizer keeps its padding and truncation as a state
    assert again.fingerprint() == unused


def test_shares_of_captions_come_to_one_at_most() -> None:
    with pytest.raises(UserError, match=r"data\.alt_share.*more than brief_share leaves; give at most 0\.4"):
        load_recipe("scenes/text", ["data.alt_share=0.9"])


def test_the_shares_of_the_kinds_of_captions(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: Counter[str] = Counter()
    for name in ("comprehensive", "brief", "alt_text"):
        monkeypatch.setattr(
            f"cogview3.training.objectives.text.captions.{name}",
            lambda scene, rng, name=name: told.update([name]) or SimpleNamespace(text=name, facts=Facts()),
        )
    TextTraining(tiny_recipe("text", runs, data__tokenizer_captions=1000))
    shares = {name: count / told.total() for name, count in told.items()}
    # sd of a share of 1000 is 0.016 at most
    assert shares == pytest.approx({"comprehensive": 0.45, "brief": 0.45, "alt_text": 0.1}, abs=0.06)


def test_only_the_encoder_is_saved_and_it_gives_what_it_gave(reader: TextTraining, tmp_path: Path) -> None:
    reader.save(tmp_path)
    encoder = T5EncoderModel.from_pretrained(tmp_path / "text_encoder")
    tokens = reader.batch(0, [0, 1])["tokens"]
    with torch.no_grad():
        mine = reader.trained.t5.encoder(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        assert torch.equal(encoder(tokens).last_hidden_state, mine)
    assert not any("decoder" in name for name in encoder.state_dict())


# Base and relay


def known_denoiser(objective: DiffusionTraining, prediction: str, batch: Batch, seen: list[torch.Tensor]) -> nn.Module:
    """A network that puts out what makes D = z_0, by solving D's definitions: the loss must then be 0.

    alpha = 1 / sqrt(1 + sigma^2); eps: D = z - sigma out; v: D = alpha^2 z - sigma alpha out; sample: D = out.
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    sigmas = torch.from_numpy(np.sqrt((1 - kept) / kept)).float()

    class Known(nn.Module):
        def forward(self, given: torch.Tensor, t: torch.Tensor, text: torch.Tensor, class_labels: torch.Tensor) -> Any:
            sigma = sigmas[t].view(-1, 1, 1, 1)
            alpha = (1 + sigma**2) ** -0.5
            z_t = given / alpha
            seen.append(z_t)
            outputs = {
                "epsilon": (z_t - batch["z0"]) / sigma,
                "v_prediction": (alpha**2 * z_t - batch["z0"]) / (sigma * alpha),
                "sample": batch["z0"],
            }
            return SimpleNamespace(sample=outputs[prediction])

    return Known()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["base", "relay"])
def test_the_target_makes_d_the_clean_latents(
    runs: Path, monkeypatch: pytest.MonkeyPatch, kind: str, prediction: str
) -> None:
    objective = stage(kind, runs, objective__prediction=prediction, objective__offset_noise=0.3)
    batch, seen = objective.batch(0, list(range(6))), []
    monkeypatch.setattr(objective, "trained", known_denoiser(objective, prediction, batch, seen))
    # D = z_0 to float32; dividing by sigma >= 0.03 costs two of its seven digits, and squares are taken
    assert objective(batch)["loss"].item() < 1e-7
    t = batch["t"].view(-1, 1, 1, 1)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    sigma = torch.from_numpy(np.sqrt((1 - kept) / kept)).float()[t]
    f = t / 300
    center = batch["z0"] if kind == "base" else (1 - f) * batch["z0"] + f * batch["zL"]
    # equation 5; undoing the input's scale costs float32's last digit of numbers up to 40
    torch.testing.assert_close(seen[0], center + sigma * batch["noise"], atol=1e-4, rtol=1e-4)


def test_an_objective_unlike_the_starts_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny runs predict v, and the relay's T_r is 300."""
    changes = {"objective__relay_start": 200, "objective__blur": "sin4"}
    DiffusionTraining(tiny_recipe("relay", runs, recipe__start_from=str(runs / "relay"), **changes))
    told = capsys.readouterr().err
    assert "objective.relay_start is 200, but recipe.start_from" in told
    assert "was trained with 300" in told
    assert "objective.blur is sin4" in told
    lora = {"lora__rank": 2, "recipe__start_from": str(runs / "base"), "objective__prediction": "epsilon"}
    with pytest.raises(UserError, match=r"an adapter must be for the same: --set objective\.prediction=v_prediction"):
        DiffusionTraining(tiny_recipe("base", runs, **lora))
    DiffusionTraining(
        tiny_recipe("relay", runs, recipe__start_from=str(runs / "base"))
    )  # another stage's weights alone
    assert "relay_start" not in capsys.readouterr().err


def test_starts_that_are_none_are_named(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no unet in 'nothere'"):
        DiffusionTraining(tiny_recipe("base", runs, recipe__start_from="nothere"))
    with pytest.raises(UserError, match=r"start_from 'scenes@4\+1' is distilled"):
        DiffusionTraining(tiny_recipe("base", runs, recipe__start_from="scenes@4+1"))
    (tmp_path / "lora" / "weights").mkdir(parents=True)
    (tmp_path / "lora" / "weights" / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(UserError, match="holds an adapter and no unet; draw with generate --lora"):
        DiffusionTraining(tiny_recipe("base", runs, recipe__start_from=str(tmp_path / "lora")))
    unet = stage("base", runs).trained
    UNet2DConditionModel(**{**unet.config, "time_cond_proj_dim": 8}).save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match=f"'{tmp_path}' is distilled"):
        DiffusionTraining(tiny_recipe("base", runs, recipe__start_from=str(tmp_path)))


@pytest.mark.parametrize("kind", ["base", "relay"])
def test_no_step_computes_in_float64_which_some_devices_lack(runs: Path, kind: str) -> None:
    """On such a device even moving a tensor of float64 fails; here all that a loss is made of is looked at."""
    objective = stage(kind, runs, objective__min_snr=5.0, **({"objective__blur": "sigma"} if kind == "relay" else {}))

    class Watch(TorchFunctionMode):
        def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = call(*args, **(kwargs or {}))
            tensors = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
            assert all(tensor.dtype != torch.float64 for tensor in tensors), call
            return result

    batch = objective.batch(0, [0, 1])
    with Watch():
        objective(batch)["loss"].backward()


def test_the_loss_of_a_silent_network_is_the_targets_mean_square(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = stage("base", runs, objective__prediction="epsilon")

    class Silent(nn.Module):
        def forward(self, given: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            return SimpleNamespace(sample=torch.zeros_like(given))

    monkeypatch.setattr(objective, "trained", Silent())
    batch = objective.batch(0, list(range(6)))
    # for the base the eps target is the drawn noise, up to float32's rounding of z_t at sigma 0.03 and more
    assert objective(batch)["loss"].item() == pytest.approx(batch["noise"].square().mean().item(), rel=1e-3)


@pytest.fixture(scope="module")
def many(runs: Path) -> tuple[DiffusionTraining, Batch]:
    """Six hundred samples of the relay, 0.3 of the texts dropped."""
    objective = stage("relay", runs, data__text_dropout=0.3)
    return objective, objective.batch(0, list(range(600)))


def test_dropped_texts_are_zeros(many: tuple[DiffusionTraining, Batch]) -> None:
    dropped = (many[1]["text"] == 0).flatten(1).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.075)  # 4 sd of 600 draws


def test_z_l_is_the_pictures_own(many: tuple[DiffusionTraining, Batch]) -> None:
    objective, batch = many
    stored = {name: objective.source.latents[name].float() for name in ("z0", "zL")}
    order = [int((stored["z0"] == z0).flatten(1).all(1).nonzero()) for z0 in batch["z0"]]
    assert torch.equal(batch["zL"], stored["zL"][order])
    assert objective.source.kind.low == (0.5, 0.2), "as the recipe says"


def test_times_lie_below_t_r_and_are_uniform(many: tuple[DiffusionTraining, Batch]) -> None:
    t = many[1]["t"]
    assert t.dtype == torch.int64
    assert 0 <= t.min() < 6
    assert 294 <= t.max() < 300
    # four standard deviations of the mean of 600
    assert t.double().mean().item() == pytest.approx(149.5, abs=4 * 86.6 / 600**0.5)


@pytest.fixture(scope="module")
def many_of_base(runs: Path) -> Batch:
    """Six hundred samples of the base, with offset noise."""
    return stage("base", runs, objective__offset_noise=0.5).batch(0, list(range(600)))


def test_the_base_sees_all_times(many_of_base: Batch) -> None:
    t = many_of_base["t"]
    assert t.min() < 12
    assert STEPS - 12 < t.max() < STEPS


def test_noise_is_normal_with_one_more_number_a_sample(many_of_base: Batch) -> None:
    noise = many_of_base["noise"].double()
    means = noise.mean((1, 2, 3))
    within = noise - means.view(-1, 1, 1, 1)
    # 4 sd: 153,600 numbers for the variance within samples, 600 for that of the offsets, 0.25 + 1/256
    assert within.square().sum().item() / (600 * 255) == pytest.approx(1, abs=4 * (2 / 153_600) ** 0.5)
    assert means.var().item() == pytest.approx(0.25 + 1 / 256, rel=4 * (2 / 600) ** 0.5)


def test_an_epoch_visits_each_picture_once(runs: Path) -> None:
    objective = stage("base", runs)
    z0 = objective.batch(0, list(range(18)))["z0"]
    visits = [int((objective.source.latents["z0"].float() == item).flatten(1).all(1).nonzero()) for item in z0]
    epochs = [visits[:6], visits[6:12], visits[12:]]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_captions_are_those_of_the_pictures(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, Scene]] = []
    for name in ("comprehensive", "brief"):
        write = getattr(scene_source.captions, name)
        monkeypatch.setattr(
            scene_source.captions,
            name,
            lambda scene, rng, name=name, write=write: told.append((name, scene)) or write(scene, rng),
        )
    objective = stage("base", runs)
    batch = objective.batch(0, list(range(200)))
    for (_, scene), z0 in zip(told, batch["z0"], strict=True):
        picture = int((objective.source.latents["z0"].float() == z0).flatten(1).all(1).nonzero())
        assert scene == objective.source.kind.scene(picture)
    share = sum(name == "comprehensive" for name, _ in told) / 200
    assert share == pytest.approx(0.55, abs=0.14)  # 4 sd


def test_validation_tells_the_loss_of_each_quarter_of_the_noise_levels(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = stage("relay", runs, validate__images=40)
    monkeypatch.setattr(objective, "_errors", lambda batch: batch["t"].double())
    monkeypatch.setattr(objective, "_fills", dict)  # forty pictures to draw and to read
    figures = objective.validate()
    bands = [figures[f"loss_{number}_of_4"] for number in (1, 2, 3, 4)]
    assert all(75 * number <= band < 75 * (number + 1) for number, band in enumerate(bands))
    times = [np.random.default_rng([objective.source.validation.seed, index, 3]).integers(300) for index in range(40)]
    assert figures["loss"] == pytest.approx(np.mean(times))


def test_the_relay_starts_from_the_base(runs: Path) -> None:
    relay = DiffusionTraining(tiny_recipe("relay", runs))
    base = UNet2DConditionModel.from_pretrained(runs / "base" / "weights" / "unet").state_dict()
    assert all(torch.equal(value, base[name]) for name, value in relay.trained.state_dict().items())
    again = DiffusionTraining(tiny_recipe("relay", runs, recipe__start_from=str(runs / "relay"))).trained.state_dict()
    assert any(not torch.equal(value, base[name]) for name, value in again.items())


def test_with_more_layers_a_block_it_starts_as_the_same_function(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = str(runs / "relay")
    shallow, deep = (
        stage("relay", runs, recipe__start_from=start, model__layers_per_block=layers) for layers in (1, 2)
    )
    assert "start as the identity" in capsys.readouterr().err
    batch = shallow.batch(0, list(range(4)))
    assert deep(batch)["loss"].item() == pytest.approx(shallow(batch)["loss"].item(), rel=1e-5)


def test_validation_tells_the_fills_by_kind_in_the_relays_pictures(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = stage("relay", runs, validate__images=6)

    def true_pictures(texts: list[str], small: np.ndarray) -> np.ndarray:
        assert small.shape == (len(texts), 64, 64, 3)
        return np.stack([render(objective.source.validation.scene(index), 256) for index in range(len(texts))])

    monkeypatch.setattr(objective, "_finished", true_pictures)
    stated = [item.fill for told in objective.source._told(6) for item in told.facts.objects if item.fill is not None]
    figures = {name: value for name, value in objective.validate().items() if name.startswith("fills_")}
    assert figures == {f"fills_{fill}": 1.0 for fill in stated}
    monkeypatch.setattr(objective, "_finished", lambda texts, small: np.zeros((len(texts), 256, 256, 3), np.uint8))
    empty = {name: value for name, value in objective.validate().items() if name.startswith("fills_")}
    assert {value for name, value in empty.items() if name != "fills_plain"} == {0.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__block_out_channels": [16, 16, 16]}, "other shapes"),
        ({"recipe__start_from": "./runs/none"}, "no relay_unet in './runs/none'"),
        ({"data__vae": "./runs/none"}, "no vae in './runs/none'"),
        ({"data__text": "./runs/none"}, "no text_encoder in './runs/none'"),
    ],
)
def test_what_does_not_fit_is_refused(runs: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        DiffusionTraining(tiny_recipe("relay", runs, **changes))
    assert "\n" not in str(caught.value)


def test_frozen_networks_are_neither_trained_nor_saved(runs: Path) -> None:
    objective: Objective = stage("base", runs)
    own = dict(objective.named_parameters())
    assert own.keys() == {f"trained.{name}" for name, _ in objective.trained.named_parameters()}
    loss = objective(objective.batch(0, [0, 1]))["loss"]
    loss.backward()
    assert all(p.grad is None for net in objective._frozen.values() for p in net.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.trained.parameters())
