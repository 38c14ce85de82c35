"""The scene metric on pictures whose scores are known, and its parts against direct computation."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from cogview3.config import UserError
from cogview3.data.latents import to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Facts, ObjectFacts, Relation
from cogview3.data.scenes.score import Score, ScoredFact, score
from cogview3.evaluation.intervals import bootstrap_interval, paired
from cogview3.evaluation.metrics import METRICS, Drawn, SceneMetric, make_metrics
from cogview3.evaluation.metrics.scene import gradient_energy
from cogview3.evaluation.metrics.shares import summarize_row
from cogview3.evaluation.prompt_sets import Prompt, load_prompts
from cogview3.evaluation.response import correlations, summarize

COUNT, BATCH = 12, 5


@pytest.fixture
def vae(make_vae: Callable[..., AutoencoderKL]) -> AutoencoderKL:
    return make_vae()


@pytest.fixture
def prompts() -> list[Prompt]:
    return load_prompts("scenes-heldout", COUNT)


def renders(prompts: list[Prompt], size: int) -> torch.Tensor:
    return to_tensor([render(prompt.scene, size) for prompt in prompts])


def measure(
    prompts: list[Prompt], pictures: torch.Tensor, base: torch.Tensor | None = None, vae: AutoencoderKL | None = None
) -> tuple[dict, list[dict]]:
    metric, notes = SceneMetric(prompts, 0), []
    for first in range(0, len(prompts), BATCH):
        part = slice(first, first + BATCH)
        indices = range(len(prompts))[part]
        notes += metric.update(Drawn(indices, pictures[part], None if base is None else base[part], vae))
    return metric.result(), notes


def direct(prompts: list[Prompt], pictures: np.ndarray) -> float:
    scores = [score(prompt.facts, picture) for prompt, picture in zip(prompts, pictures, strict=True)]
    return sum(item.right for item in scores) / sum(item.total for item in scores)


def test_perfect_pictures_score_what_the_reader_allows(prompts: list[Prompt]) -> None:
    result, notes = measure(prompts, renders(prompts, 256))
    assert result["model"]["share"] >= 0.98  # 0.99 of facts over many renders; these are a dozen
    assert result["model"]["pictures"] == COUNT
    assert [note["right"] for note in notes] == [note["facts"] - len(note["wrong"]) for note in notes]
    assert sum(note["right"] for note in notes) / sum(note["facts"] for note in notes) == result["model"]["share"]


def test_chance_is_the_pictures_against_the_next_prompts(prompts: list[Prompt]) -> None:
    pictures = renders(prompts, 128)
    result, _ = measure(prompts, pictures)
    rotated = prompts[1:] + prompts[:1]
    assert result["chance"]["share"] == direct(rotated, to_uint8(pictures))
    assert result["chance"]["share"] < 0.6
    matching, _ = measure(rotated, pictures.roll(-1, 0))
    assert matching["model"]["share"] == result["model"]["share"]


def test_enlarged_rows_and_ceilings_are_what_they_say(prompts: list[Prompt], vae: AutoencoderKL) -> None:
    prompts = prompts[: BATCH + 1]
    pictures, base = renders(prompts, 128), renders(prompts, 64)
    result, _ = measure(prompts, pictures, base, vae)

    def through_vae(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)

    def enlarged(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(images, size=(128, 128), mode="bilinear", align_corners=False)

    assert result["base_enlarged"]["share"] == direct(prompts, to_uint8(enlarged(base)))
    # Batches of another size may round differently, and a fact may hang on that in gray pictures.
    slack = 2 / result["ceiling"]["facts"]
    ceiling = through_vae(pictures)
    assert result["ceiling"]["share"] == pytest.approx(direct(prompts, to_uint8(ceiling)), abs=slack)
    small = enlarged(through_vae(base))
    assert result["ceiling_enlarged"]["share"] == pytest.approx(direct(prompts, to_uint8(small)), abs=slack)
    energies = {"model": pictures, "base_enlarged": enlarged(base)}
    for row, images in energies.items():
        expected = _energy(images.numpy()) / _energy(ceiling.numpy())
        assert result["gradient_energy"][row] == pytest.approx(expected, rel=1e-4)  # float32 against float64
    assert result["fine_gain"] == result["model"]["fine"] - result["base_enlarged"]["fine"]


def test_of_some_prompts_scenes_alone_there_is_no_ceiling(prompts: list[Prompt], vae: AutoencoderKL) -> None:
    """In batches of 5, the first has a prompt without a scene and the others have none."""
    some = [replace(prompts[0], scene=None), *prompts[1:]]
    result, _ = measure(some, renders(prompts, 128), renders(prompts, 64), vae)
    assert result["model"]["pictures"] == result["base_enlarged"]["pictures"] == COUNT
    assert result["ceiling"] is result["ceiling_enlarged"] is result["gradient_energy"]["model"] is None


def _energy(pictures: np.ndarray) -> float:
    pictures = pictures.astype(np.float64)
    across, down = np.diff(pictures, axis=3), np.diff(pictures, axis=2)
    return float((across**2).mean() + (down**2).mean())


def test_relays_that_double_twice_are_enlarged_twice(prompts: list[Prompt], vae: AutoencoderKL) -> None:
    result, _ = measure(prompts[:2], renders(prompts[:2], 256), renders(prompts[:2], 64), vae)
    assert result["base_enlarged"]["pictures"] == result["ceiling_enlarged"]["pictures"] == 2


def test_what_cannot_be_had_is_none(prompts: list[Prompt], vae: AutoencoderKL) -> None:
    alone, _ = measure([Prompt("a", prompts[0].facts)], renders(prompts[:1], 64), None, vae)
    assert {key for key, value in alone.items() if value is None} == {
        "base_enlarged",
        "chance",
        "ceiling",
        "ceiling_enlarged",
        "fine_gain",
    }
    assert alone["gradient_energy"] == {"model": None, "base_enlarged": None}
    mixed = [prompts[0], Prompt("a", prompts[1].facts)]
    result, _ = measure(mixed, renders(prompts[:2], 64), None, vae)
    assert result["gradient_energy"]["model"] is None


def test_energy_of_a_ramp_and_of_stripes() -> None:
    ramp = torch.linspace(-1, 1, 9).expand(1, 3, 9, 9)
    assert gradient_energy(ramp).item() == pytest.approx(0.25**2)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(2, 3, 8, 8) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
    assert gradient_energy(stripes).tolist() == [4.0, 1.0]


def made_up(kinds: dict[str, bool]) -> Score:
    return Score(tuple(ScoredFact(kind, None, right) for kind, right in kinds.items()))


def test_groups_of_a_row(prompts: list[Prompt]) -> None:
    pool = load_prompts("scenes-heldout", 60)
    single = next(prompt for prompt in pool if len(prompt.objects) == 1 and not prompt.held_out)
    triple = next(prompt for prompt in pool if len(prompt.objects) == 3 and prompt.held_out)
    row = summarize_row(
        [
            (single, made_up({"ground": True, "fill": True, "outline": True})),
            (single, made_up({"ground": False, "fill": True})),
            (triple, made_up({"fill": False, "outline": False, "shape": True, "size": False})),
        ],
        seed=0,
    )
    assert (row["pictures"], row["facts"]) == (3, 9)
    assert row["share"] == 5 / 9
    assert row["fine"] == 3 / 5
    assert row["whole"] == 1 / 3
    assert row["one_object_whole"] == 1 / 2
    assert row["objects"] == {"1": 4 / 5, "3": 1 / 4}
    assert (row["seen"], row["held_out"]) == (4 / 5, 1 / 4)
    assert row["kinds"] == {"ground": 1 / 2, "shape": 1, "fill": 2 / 3, "outline": 1 / 2, "size": 0}


def test_values_are_of_what_has_one_value() -> None:
    facts = Facts(objects=(ObjectFacts(shape="star", color="red"),), denied=(ObjectFacts(shape="ring"),))
    scored = (ScoredFact("shape", 0, True), ScoredFact("color", 0, False), ScoredFact("denied", None, True))
    row = summarize_row([(Prompt("a red star, no ring", facts), Score(scored))], seed=0)
    assert row["values"] == {"shape": {"star": 1.0}, "color": {"red": 0.0}}
    assert row["kinds"] == {"shape": 1.0, "color": 0.0, "denied": 1.0}


def test_empty_groups_are_none() -> None:
    row = summarize_row([(Prompt("a"), made_up({"ground": True}))], seed=0)
    assert row["one_object_whole"] is row["fine"] is row["held_out"] is None
    assert row["interval"] == [1.0, 1.0]


def test_the_interval_is_the_normal_one_where_pictures_are_many() -> None:
    rng = np.random.default_rng(0)
    scores = [made_up({"ground": bool(rng.random() < 0.7)}) for _ in range(2000)]
    share = np.mean([item.whole for item in scores])
    low, high = bootstrap_interval(scores, seed=1)
    half = 1.96 * np.sqrt(share * (1 - share) / 2000)
    # A quantile of 1000 draws at 2.5 % is off by about 0.08 standard errors (1 sd); 0.3 is nearly 4 of these.
    assert (share - low, high - share) == pytest.approx((half, half), abs=0.3 * half / 1.96)
    assert bootstrap_interval(scores, seed=1) == [low, high]


def test_the_interval_counts_pictures_not_facts() -> None:
    kinds = ("ground", "texture", "count", "shape", "color", "fill", "outline", "size", "position")
    scores = [made_up(dict.fromkeys(kinds, right)) for right in (True, False) * 50]
    low, high = bootstrap_interval(scores, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)  # 0.05: sd of a mean of 100 coins


def test_metrics_are_found_by_name(prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "twin", SceneMetric)
    assert list(make_metrics(["twin", "scene"], prompts, 0)) == ["twin", "scene"]
    with pytest.raises(UserError, match=r"no metric 'inception': choose from aesthetic, .*, frechet, .*, scene, twin"):
        make_metrics(["inception"], prompts, 0)
    with pytest.raises(UserError, match="metric scene needs"):
        make_metrics(["scene"], [*prompts, Prompt("a red star")], 0)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            Facts(objects=(ObjectFacts("star"),), relations=(Relation(0, "above", 1),)),
            "second=1.* not stated; there are 1",
        ),
        (Facts(), "no facts are stated"),
    ],
)
def test_facts_that_cannot_be_scored_are_refused_before_anything_is_drawn(
    prompts: list[Prompt], facts: Facts, words: str
) -> None:
    with pytest.raises(UserError, match=f"the facts of prompt 'a star': .*{words}"):
        make_metrics(["scene"], [*prompts, Prompt("a star", facts)], 0)


def of_facts(right: int, total: int) -> Score:
    return Score(tuple(ScoredFact("shape", number, number < right) for number in range(total)))


def test_paired_shares_of_equal_models_have_no_spread() -> None:
    scores = [of_facts(right, 10) for right in (3, 5, 9)]
    figures = paired(scores, scores, seed=0)
    assert (figures["ratio"], figures["difference"]) == (1, 0)
    assert figures["ratio_interval"] == [1, 1]
    assert figures["interval"] == [0, 0]


def test_paired_intervals_are_the_normal_ones_of_differences() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(40, 60, 400)
    own = reference - rng.integers(0, 11, 400)  # by 5 of 100 on average, which vary less than either
    figures = paired([of_facts(n, 100) for n in own], [of_facts(n, 100) for n in reference], seed=1)
    differences = (own - reference) / 100
    margin = 1.96 * differences.std() / 20
    assert figures["difference"] == pytest.approx(differences.mean())
    assert figures["ratio"] == pytest.approx(own.sum() / reference.sum())
    assert figures["interval"] == pytest.approx(differences.mean() + np.array([-margin, margin]), abs=margin / 5)
    assert figures["ratio_interval"][0] < figures["ratio"] < figures["ratio_interval"][1]


def test_a_ratio_to_nothing_right_is_none() -> None:
    figures = paired([of_facts(1, 2), of_facts(2, 2)], [of_facts(0, 2), of_facts(0, 2)], seed=0)
    assert (figures["ratio"], figures["ratio_interval"], figures["difference"]) == (None, None, 0.75)
    some = paired([of_facts(1, 2), of_facts(2, 2)], [of_facts(0, 2), of_facts(1, 2)], seed=0)
    assert (some["ratio"], some["ratio_interval"]) == (3, None)  # a quarter of the draws has no denominator
    assert all(np.isfinite(some["interval"]))


def test_changes_correlate_as_numpy_says() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5, 40))
    second += first
    second[4] = 3.0  # does not change: left out
    figures = summarize(correlations(torch.from_numpy(second), torch.from_numpy(first)))
    expected = [np.corrcoef(one, other)[0, 1] for one, other in zip(second[:4], first[:4], strict=True)]
    assert figures["correlation"] == pytest.approx(np.mean(expected))
    assert figures["pictures"] == 4
    nothing = summarize(correlations(torch.ones(2, 3), torch.ones(2, 3)))
    assert nothing == {"correlation": None, "interval": None, "pictures": 0}


def test_the_interval_of_correlations_is_the_closed_form() -> None:
    """Changes c u + (1 - c^2)^(1/2) v of orthogonal u and v have the correlation c with u."""
    u, v = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1])
    wanted = torch.tensor([0.2, 0.4, 0.6, 0.8]).double()
    values = correlations(wanted[:, None] * u + (1 - wanted[:, None] ** 2).sqrt() * v, u.expand(4, 4))
    assert values.tolist() == pytest.approx(wanted.tolist(), abs=1e-12)
    figures = summarize(values)
    half = 1.96 * (0.2 / 3) ** 0.5 / 4**0.5  # squared deviations of 0.2 in all, over 4 - 1
    assert figures["correlation"] == pytest.approx(0.5)
    assert figures["interval"] == pytest.approx([0.5 - half, 0.5 + half])
    alone = summarize(torch.tensor([0.7, torch.nan]).double())
    assert alone == {"correlation": pytest.approx(0.7), "interval": None, "pictures": 1}
