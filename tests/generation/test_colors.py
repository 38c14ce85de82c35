"""Colors that are kept: low frequencies of one picture, detail of another."""

from typing import Any

import pytest
import torch

from cogview3 import CogView3UpscalePipeline
from cogview3.generation.colors import low_frequencies, with_colors_of


def test_a_wave_is_damped_as_a_gaussian_does() -> None:
    """Against the closed form: a wave of frequency k under a Gaussian of deviation s is scaled by exp(-s^2 k^2 / 2)."""
    places, spread = torch.arange(200.0, dtype=torch.float64), 2.0
    for length in (40.0, 20.0):
        k = 2 * torch.pi / length
        wave = torch.sin(k * places).expand(1, 3, 60, 200)
        middle = low_frequencies(wave, spread)[..., 20:-20, 20:-20]
        expected = wave[..., 20:-20, 20:-20] * torch.exp(torch.tensor(-0.5 * (spread * k) ** 2))
        torch.testing.assert_close(middle, expected, atol=3e-3, rtol=0)  # the Gaussian is cut at three deviations


def test_colors_come_from_one_and_detail_from_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    detail = torch.randn(1, 4, 32, 32, generator=generator)
    detail = detail - low_frequencies(detail)
    kept = with_colors_of(detail + 3, torch.full_like(detail, -2))
    assert kept.mean() == pytest.approx(-2, abs=0.01)
    torch.testing.assert_close(with_colors_of(detail, detail), detail)


def test_they_are_kept_without_a_prompt_alone(components: dict[str, Any]) -> None:
    del components["unet"], components["scheduler"]
    pipe = CogView3UpscalePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))

    def draw(**changes: Any) -> torch.Tensor:
        seed = torch.Generator().manual_seed(0)
        return pipe(image, num_inference_steps=2, output_type="latent", generator=seed, **changes).images

    plain, kept = draw(keep_colors=False), draw(keep_colors=True)
    assert torch.equal(draw(), kept)
    assert not torch.allclose(plain, kept, atol=1e-2)
    prompted = draw(prompt="a red star")
    assert torch.equal(prompted, draw(prompt="a red star", keep_colors=False))
