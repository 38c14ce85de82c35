"""Fréchet distance: closed forms, another library's matrix root, and its way through `evaluate`."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from cogview3.config import UserError
from cogview3.data.latents import to_tensor
from cogview3.data.scenes.render import render
from cogview3.evaluation.drawing import draw_batch
from cogview3.evaluation.evaluate import evaluate
from cogview3.evaluation.frechet import compare, distance_of_statistics, features, frechet_distance
from cogview3.evaluation.metrics import FrechetMetric
from cogview3.evaluation.prompt_sets import load_prompts
from cogview3.evaluation.tables import show
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.models.modes import Overrides


def samples(count: int, dimensions: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixing + seed


def test_it_equals_scipys_matrix_root() -> None:
    first, second = samples(300, 6, 1), samples(200, 6, 2)
    means = [x.numpy().mean(0) for x in (first, second)]
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    statistics = (torch.from_numpy(each) for each in (means[1], covariances[1]))
    assert distance_of_statistics(first, *statistics) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("own", "other"), [(9, 12), (30, 12), (45, 60)])
def test_fewer_pictures_than_features(own: int, other: int) -> None:
    """The root's trace by eigenvalues of C_1^(1/2) C_2 C_1^(1/2), which are real whatever the ranks."""
    first, second = samples(own, 40, 1), samples(other, 40, 2)
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)).sum()
    means = [x.numpy().mean(0) for x in (first, second)]
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * trace
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_scaled_and_shifted_sets_have_a_closed_form() -> None:
    first = samples(400, 5, 1)
    second = 3 * first + torch.arange(5, dtype=torch.float64)
    # covariances C and 9 C: tr(C + 9 C - 6 C) = 4 tr C
    expected = (second.mean(0) - first.mean(0)).square().sum() + 4 * first.T.cov().trace()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9 * first.T.cov().trace().item())


def test_sets_without_spread_differ_by_their_means() -> None:
    ones = torch.ones(3, 4, dtype=torch.float64)
    assert frechet_distance(ones, 3 * ones) == pytest.approx(16)


def test_extrapolated_the_distance_of_gaussians_is_the_closed_form() -> None:
    """N(0, I) and N(m, 4 I) in 8 dimensions: |m|^2 + 8 (1 + 4 - 2 2), which 150 pictures overstate."""
    generator, truth, found = torch.Generator().manual_seed(3), 8 * 0.01 + 8, []
    for seed in range(12):
        first, second = (torch.randn(150, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        found.append(compare(first, 0.1 + 2 * second, seed))
    plain, extrapolated = (np.array([each[key] for each in found]) for key in ("distance", "extrapolated"))
    assert plain.mean() - truth > 3 * plain.std() / 12**0.5
    assert abs(extrapolated.mean() - truth) < 3 * extrapolated.std() / 12**0.5
    inside = sum(each["interval"][0] < truth < each["interval"][1] for each in found)
    assert inside >= 9  # of 12, expected 11.4; fewer than 9 come once in 500


def test_equal_worlds_are_at_no_distance_once_extrapolated() -> None:
    generator = torch.Generator().manual_seed(9)
    first, second = (torch.randn(300, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    figures = compare(first, second)
    assert figures["distance"] > 0.02
    assert figures["interval"][0] < 0 < figures["interval"][1]
    assert compare(first[:99], second[:99])["interval"] is None


def test_features_are_cells_colors_and_energies() -> None:
    pictures = torch.zeros(1, 3, 64, 64)
    pictures[0, 0, 16:32, 48:] = 0.5  # one cell, red: row 1, column 3
    pictures[0, :, 48:, :16] = torch.arange(16).remainder(2)[None, None, :] * 2.0 - 1  # stripes: row 3, column 0
    numbers = features(pictures)[0].view(4, 4, 4)
    assert numbers.dtype == torch.float64
    colors = torch.zeros(3, 4, 4, dtype=torch.float64)
    colors[0, 1, 3] = 0.5
    torch.testing.assert_close(numbers[:3], colors)  # the stripes' mean is 0
    # 15 differences of 2 along each row of the stripes, in 3 channels, and one of 1 at their border to the right;
    # the picture has 63 columns of differences: 16 of them, overlapping, in each cell
    energy = numbers[3]
    assert energy.argmax() == 12
    assert energy[3, 0] > 3
    assert energy[0, 0] == 0


@pytest.mark.usefixtures("nothing_read")
def test_models_are_compared_with_the_first_and_that_with_itself(model: Path) -> None:
    names = [str(model), f"{model}@2+1-fast"]
    results = evaluate(names, "scenes-heldout", 3, ["scene", "frechet"], seed=5)
    first, second = (results["models"][name]["frechet"] for name in names)
    assert first.keys() == {"pictures", "bias", "renders", "floor"}
    assert first["floor"]["distance"] > 0
    assert second.keys() == {"pictures", "bias", "renders", "distance", "extrapolated", "interval"}
    pipe, prompts = CogView3Pipeline.from_pretrained(model), load_prompts("scenes-heldout", 3)
    pictures = draw_batch(pipe, prompts, range(3), 5, Overrides()).pictures
    renders = to_tensor([render(prompt.scene, pictures.shape[-1]) for prompt in prompts])
    expected = frechet_distance(features(pictures), features(renders))
    assert first["renders"]["distance"] == pytest.approx(expected, rel=1e-3)  # drawn in batches of another size
    assert second["distance"] > 0
    assert first["pictures"] == second["pictures"] == 3
    swapped = evaluate(names[::-1], "scenes-heldout", 3, ["frechet"], seed=5)["models"][names[0]]["frechet"]
    assert swapped["distance"] == pytest.approx(second["distance"], rel=1e-6)
    (table,) = [table for table in show(results) if table.heads[0] == "Fréchet distance"]
    rows = {
        f"{names[0]}, other noise to {names[0]}": first["floor"],
        f"{names[0]} to renders": first["renders"],
        f"{names[1]} to {names[0]}": second,
        f"{names[1]} to renders": second["renders"],
    }
    assert [list(column) for column in zip(*table.rows, strict=True)] == [
        list(rows),
        [f"{figures['distance']:.4f}" for figures in rows.values()],
        *[["-"] * 4] * 2,  # of three pictures there is nothing to extrapolate
    ]


def test_a_single_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="2 prompts or more"):
        FrechetMetric(load_prompts("scenes-heldout", 1), 0)
