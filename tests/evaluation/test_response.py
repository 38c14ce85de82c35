"""Responses to guidance, against NumPy, SciPy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from cogview3.evaluation.response import Response, pooled_r2, squares


def changes(count: int, seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def test_pixels_and_means_of_cells_are_compared_batch_by_batch() -> None:
    first = changes(5, 1)
    second = 0.6 * first + 0.3 * changes(5, 2) + 0.1
    response = Response()
    for part in (slice(0, 3), slice(3, 5)):
        response.update(torch.from_numpy(second[part]), torch.from_numpy(first[part]))
    figures = response.result()
    cells = [ndimage.uniform_filter(values, (0, 0, 8, 8))[:, :, 4::8, 4::8] for values in (second, first)]
    for found, (own, other) in ((figures, (second, first)), (figures["cells"], cells)):
        pairs = zip(own.reshape(5, -1), other.reshape(5, -1), strict=True)
        expected = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
        assert found["correlation"] == pytest.approx(expected, abs=1e-5)
        r2 = 1 - ((own - other) ** 2).sum() / ((other - other.mean()) ** 2).sum()
        assert found["r2"] == pytest.approx(r2, abs=1e-4)
        assert found["pictures"] == 5
        assert found["r2_interval"][0] < r2 < found["r2_interval"][1]


def test_half_the_change_has_an_r2_of_three_quarters() -> None:
    """A correlation of 1: the R^2 sees the strength of the response too."""
    reference = torch.from_numpy(changes(4, 3))
    reference -= reference.mean()
    response = Response()
    response.update(reference / 2, reference)
    figures = response.result()
    assert figures["correlation"] == pytest.approx(1)
    assert figures["r2"] == pytest.approx(0.75, abs=1e-6)


def test_pictures_that_change_more_count_for_more() -> None:
    large, small = 10 * torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, -1.0]])
    parts = torch.cat([squares(large, large), squares(-small, small)])
    assert pooled_r2(parts)["r2"] == pytest.approx(1 - 8 / 202)  # an error of 2^2 twice, of 2 (100 + 1) in all


def test_without_a_change_or_with_one_picture_there_is_nothing_to_tell() -> None:
    ones = squares(torch.ones(2, 3), torch.ones(2, 3))
    assert pooled_r2(ones) == {"r2": None, "r2_interval": None}
    assert pooled_r2(squares(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])))["r2_interval"] is None
