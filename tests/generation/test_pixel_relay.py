"""The scheduler and the pipeline of pixel relay against the sampler of `diffusion.pixel_relay`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from cogview3.config import PixelModel, UserError
from cogview3.diffusion import pixel_relay
from cogview3.generation.pixel_relay import PixelRelayPipeline, PixelRelayScheduler
from cogview3.models.pixel_unet import TIME_SCALE, build_pixel_unet, on_patches

EDM = {"factor": 1, "length": 1.0, "sigma_start": 80.0, "eta": 0.0}


def make_unet(patch: int, size: int, seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    model = PixelModel(block_out_channels=(8, 16), norm_num_groups=4, patch=patch)
    return build_pixel_unet(model, size).eval()


def make_pipe(base: bool = True, **settings: Any) -> PixelRelayPipeline:
    parts = {"base_unet": make_unet(1, 8, seed=1), "base_scheduler": PixelRelayScheduler(**EDM)} if base else {}
    pipe = PixelRelayPipeline(make_unet(4, 32), PixelRelayScheduler(**settings), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("solver", pixel_relay.SOLVERS)
@pytest.mark.parametrize(("factor", "eta"), [(4, 0.0), (4, 0.2), (1, 0.0)])
def test_the_pipeline_draws_what_the_sampler_on_one_screen_does(solver: str, factor: int, eta: float) -> None:
    unet, settings = make_unet(4, 32), {"factor": factor, "eta": eta, "solver": solver}
    pipe = PixelRelayPipeline(unet, PixelRelayScheduler(**settings))
    pipe.set_progress_bar_config(disable=True)
    small = torch.rand(2, 3, 8, 8, generator=seeded(1))
    options = {"image": small} if factor > 1 else {"batch_size": 2}
    drawn = pipe(**options, num_inference_steps=4, generator=seeded(), output_type="pt").images

    generator, shape = seeded(), (2, 3, 32, 32)

    def noise() -> torch.Tensor:
        white = torch.randn(shape, generator=generator)
        other = torch.randn(shape, generator=generator) if factor > 1 else white
        return pixel_relay.relay_noise(white, other, factor)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = torch.full((2,), sigma)
        with torch.no_grad():
            return pixel_relay.denoise(lambda x, c: on_patches(unet, x, TIME_SCALE * c, 4), x, level)

    sigmas = pixel_relay.edm_sigmas(4, 0.9, 0.008, 7.0)
    alphas = [
        pixel_relay.damping(pixel_relay.blur_strength(pixel_relay.time_of(sigma, 0.93)), factor) for sigma in sigmas
    ]
    start = pixel_relay.enlarge(2 * small - 1, 4) if factor > 1 else torch.zeros(shape)
    start = start + sigmas[0].float() * noise()
    expected = pixel_relay.sample_pixel_relay(denoise, start, sigmas.tolist(), alphas, solver, eta, noise)
    # float32, and the sampler's last step draws noise of strength 0 where the scheduler draws none
    torch.testing.assert_close(drawn, (expected.clamp(-1, 1) + 1) / 2, rtol=1e-4, atol=1e-4)


def test_small_pictures_come_from_the_base() -> None:
    pipe = make_pipe()
    images = pipe(batch_size=2, num_inference_steps=2, base_steps=2, generator=seeded()).images
    assert [image.size for image in images] == [(32, 32)] * 2
    small = PixelRelayPipeline(pipe.base_unet, pipe.base_scheduler)
    small.set_progress_bar_config(disable=True)
    generator = seeded()  # base and relay draw from the same one, one after the other
    first = small(batch_size=2, num_inference_steps=2, generator=generator, output_type="pt").images
    again = pipe(image=first, num_inference_steps=2, generator=generator).images
    assert np.abs(np.asarray(images[1], np.int16) - np.asarray(again[1], np.int16)).max() <= 1


def test_pictures_are_taken_in_any_form_and_size() -> None:
    pipe, rng = make_pipe(base=False), np.random.default_rng(0)
    array = rng.integers(0, 256, (8, 12, 3), np.uint8)
    options = {"num_inference_steps": 1, "output_type": "np"}
    drawn = [
        pipe(image=image, generator=seeded(), **options).images
        for image in (Image.fromarray(array), array[None] / 255, torch.from_numpy(array / 255).movedim(-1, 0)[None])
    ]
    assert drawn[0].shape == (1, 32, 48, 3)
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-5)
    np.testing.assert_allclose(drawn[2], drawn[0], atol=1e-5)


def test_it_is_saved_and_loaded_as_diffusers_pipelines_are(tmp_path: Path) -> None:
    pipe = make_pipe(solver="euler", max_blur=2.0)
    pipe.save_pretrained(tmp_path)
    options = {"batch_size": 1, "num_inference_steps": 2, "base_steps": 2, "output_type": "np"}
    loaded = PixelRelayPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler.config.max_blur == 2.0
    expected = pipe(generator=seeded(), **options).images
    np.testing.assert_array_equal(loaded(generator=seeded(), **options).images, expected)
    assert PixelRelayPipeline.from_pipe(loaded).unet is loaded.unet


def test_generators_of_a_batch_draw_each_their_own_noise() -> None:
    pipe, small = make_pipe(base=False), torch.rand(2, 3, 8, 8, generator=seeded(1))
    options = {"num_inference_steps": 2, "output_type": "pt"}
    both = pipe(image=small, generator=[seeded(1), seeded(2)], **options).images
    alone = pipe(image=small[1:], generator=seeded(2), **options).images
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_callbacks_see_and_replace_the_noisy_picture() -> None:
    pipe, seen = make_pipe(base=False), []

    def callback(_: Any, index: int, time: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((index, float(time)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    small = torch.rand(1, 3, 8, 8, generator=seeded(1))
    images = pipe(image=small, num_inference_steps=2, output_type="pt", callback_on_step_end=callback).images
    torch.testing.assert_close(images, torch.full_like(images, 0.5))
    # Heun's method calls the network twice a step, but for the last
    levels = [0.9, 0.008, 0.008]
    assert [index for index, _ in seen] == [0, 1, 2]
    assert [time for _, time in seen] == pytest.approx([250 * np.log(level) for level in levels], rel=1e-5)


@pytest.mark.parametrize(
    ("base", "options", "named"),
    [
        (False, {}, "image"),
        (False, {"image": torch.zeros(1, 3, 7, 8)}, "8 x 7"),
        (True, {"batch_size": 2, "generator": [seeded()]}, "generator"),
    ],
)
def test_what_cannot_be_drawn_is_refused(base: bool, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_pipe(base)(**options)
    with pytest.raises(UserError, match="image"):
        PixelRelayPipeline(make_unet(1, 8), PixelRelayScheduler(**EDM))(image=torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("wrong", [{"solver": "rk4"}, {"eta": 1.5}, {"sigma_min": 2.0}, {"factor": 0}])
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        PixelRelayScheduler(**wrong)
    with pytest.raises(ValueError, match="factor 4"):
        PixelRelayPipeline(make_unet(4, 32), PixelRelayScheduler(), None, PixelRelayScheduler())


def test_more_calls_than_timesteps_are_refused() -> None:
    scheduler = PixelRelayScheduler(solver="euler")
    scheduler.set_timesteps(1)
    x = torch.zeros(1, 3, 4, 4)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="all 1"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("factor", [1, 4])
def test_noise_is_added_as_the_sampler_has_it_at_its_times(factor: int) -> None:
    scheduler = PixelRelayScheduler(factor=factor, eta=0.0)
    scheduler.set_timesteps(5)
    x, noise = torch.rand(2, 3, 8, 8, generator=seeded(1)), torch.randn(2, 3, 8, 8, generator=seeded(2))
    calls = scheduler.timesteps[[0, 3]]
    noisy = scheduler.add_noise(x, noise, calls)
    for row, time in enumerate(calls):
        index = int((250 * scheduler.sigmas[:-1].log() - time).abs().argmin())
        expected = pixel_relay.forward(
            x[row : row + 1], scheduler.sigmas[index].float(), scheduler.alphas[index].float(), noise[row : row + 1]
        )
        torch.testing.assert_close(noisy[row : row + 1], expected, rtol=0, atol=1e-5)  # times are kept in float32
    assert scheduler.init_noise_sigma == scheduler.sigmas[0]
