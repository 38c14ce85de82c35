"""Masks: what is kept stays exactly, in latents at every step of both stages and in the finished picture."""

import pytest
import torch
from PIL import Image

from cogview3 import CogView3Pipeline, RelayScheduler
from cogview3.config import UserError
from cogview3.generation.masks import to_mask

CALL = {"prompt": "a red star", "num_inference_steps": 3, "relay_steps": 2, "output_type": "pt"}


def left_half(side: int = 64) -> torch.Tensor:
    """A mask that draws the left half anew."""
    mask = torch.zeros(1, side, side)
    mask[:, :, : side // 2] = 1
    return mask


def test_what_is_kept_is_exact_and_the_rest_is_drawn(components, seeded):
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    image, stages = torch.rand(3, 64, 64, generator=seeded(1)), []

    def see(pipeline, step, timestep, tensors):
        stages.append(pipeline.stage)
        return {}

    drawn = pipe(**CALL, image=image, mask_image=left_half(), generator=seeded(0), callback_on_step_end=see).images[0]
    torch.testing.assert_close(drawn[:, :, 32:], image[:, :, 32:], rtol=0, atol=1e-6)
    assert (drawn - image)[:, :, :32].abs().max() > 0.01
    assert stages == ["base"] * 3 + ["relay 1"] * 2


@pytest.mark.parametrize("relays", [0, 1])
def test_kept_latents_are_the_pictures_own(components, seeded, relays):
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    side = 32 << relays
    image = torch.rand(3, side, side, generator=seeded(1))
    call = {**CALL, "output_type": "latent", "num_relays": relays, "generator": seeded(0)}
    latents = pipe(**call, image=image, mask_image=torch.zeros(1, side, side)).images
    with torch.no_grad():
        mode = pipe.vae.encode(image[None] * 2 - 1).latent_dist.mode()
    known = (mode - (pipe.vae.config.shift_factor or 0)) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents, known, rtol=1e-5, atol=1e-5)


def test_relay_noise_is_equation_5(seeded):
    scheduler = RelayScheduler(relay_start=500)
    z0, low, noise = (torch.randn(2, 4, 3, 3, generator=seeded(i)) for i in range(3))
    times = torch.tensor([100, 400])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    sigma = ((1 - kept) / kept).sqrt()[times].float()[:, None, None, None]
    f = (times / 500)[:, None, None, None]
    expected = (1 - f) * z0 + f * low + sigma * noise
    torch.testing.assert_close(scheduler.add_noise(z0, noise, times, low), expected, rtol=1e-4, atol=1e-5)


def test_refusals(components):
    pipe = CogView3Pipeline(**components)
    with pytest.raises(UserError, match="mask_image"):
        pipe(**CALL, mask_image=left_half())
    with pytest.raises(UserError, match="16x16"):
        pipe(**CALL, image=torch.rand(3, 64, 64), mask_image=left_half(16))
    with pytest.raises(UserError, match=r"0\.\.1"):
        to_mask(left_half() * 2)
    assert to_mask(Image.new("RGB", (5, 4), "white")).shape == (1, 1, 4, 5)
