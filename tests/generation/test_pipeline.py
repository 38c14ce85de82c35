"""What only the text-to-image pipeline does: two stages by hand, sizes, steps, modes' defaults."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from cogview3 import CogView3Pipeline
from cogview3.config import UserError
from cogview3.diffusion import relay, schedule
from cogview3.models.modes import Mode
from cogview3.models.unet import size_conditions

Seeded = Callable[[int], torch.Generator]


@pytest.fixture
def pipe(components: dict[str, Any]) -> CogView3Pipeline:
    """The tiny pipeline: 32 x 32 base, 64 x 64 relay."""
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: CogView3Pipeline, **changes: Any) -> torch.Tensor:
    call = {
        "prompt": "a red star",
        "num_inference_steps": 2,
        "relay_steps": 2,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "pt",
    }
    return pipe(**{**call, **changes}).images


@torch.no_grad()
def draw_by_hand(pipe: CogView3Pipeline, steps: int, relay_steps: int, w: float, relay_w: float) -> torch.Tensor:
    """Both stages out of the networks and `diffusion`'s functions; returns the relay's latents."""
    generator = torch.Generator().manual_seed(0)
    ids = pipe.tokenizer(["a red star"], padding="max_length", max_length=12, return_tensors="pt").input_ids
    text = pipe.text_encoder(ids).last_hidden_state
    sigmas = schedule.make_sigmas()

    def clean(unet: Any, z: torch.Tensor, t: int, w: float, side: int) -> torch.Tensor:
        labels = size_conditions((side, side), (0, 0), (side, side), 8)
        sample = schedule.scale_model_input(z, sigmas[t])
        positive, negative = (
            schedule.to_x0(unet(sample, t, embeds, class_labels=labels).sample, z, sigmas[t])
            for embeds in (text, torch.zeros_like(text))
        )
        return negative + w * (positive - negative)

    times = schedule.base_timesteps(steps)
    levels = schedule.step_sigmas(sigmas, times)
    z = torch.randn(1, 4, 4, 4, generator=generator) * math.sqrt(1 + levels[0] ** 2)
    for i, t in enumerate(times):
        x0 = clean(pipe.unet, z, t, w, 32)
        z = x0 + levels[i + 1] / levels[i] * (z - x0)
    pixels = pipe.vae.decode(z / 0.5).sample.clamp(-1, 1)
    low = pipe.vae.encode(relay.enlarge(pixels)).latent_dist.mean * 0.5
    times = schedule.relay_timesteps(relay_steps)
    levels = schedule.step_sigmas(sigmas, times)
    f = relay.sampler_blur_fractions(relay_steps)
    z = low + levels[0] * torch.randn(1, 4, 8, 8, generator=generator)
    for i, t in enumerate(times):
        x0 = clean(pipe.relay_unet, z, t, relay_w, 64)
        z = relay.relay_step(z, x0, low, levels[i], levels[i + 1], f[i], f[i + 1])
    return z.float()


def test_both_stages_by_hand(pipe: CogView3Pipeline) -> None:
    found = draw(
        pipe,
        num_inference_steps=3,
        relay_steps=4,
        guidance_scale=2.0,
        relay_guidance_scale=1.5,
        output_type="latent",
    )
    expected = draw_by_hand(pipe, 3, 4, 2.0, 1.5)
    # float32 in other groupings, sigma up to 14.6
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert pipe.guidance_scale == 2.0
    assert pipe.relay_guidance_scale == 1.5


def test_the_vae_is_laid_out_for_convolutions(pipe: CogView3Pipeline, tmp_path: Path) -> None:
    found = draw(pipe)
    weights = [weight for weight in pipe.vae.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    pipe.save_pretrained(tmp_path)  # files hold the ordinary layout
    pipe.vae.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(draw(pipe), found, rtol=1e-4, atol=1e-5)
    assert torch.equal(draw(CogView3Pipeline.from_pretrained(tmp_path)), found)


def test_default_size_and_number_of_relays(pipe: CogView3Pipeline) -> None:
    assert draw(pipe).shape == (1, 3, 64, 64)
    assert draw(pipe, num_relays=0).shape == (1, 3, 32, 32)
    assert draw(pipe, num_relays=2).shape == (1, 3, 128, 128)
    assert pipe.num_timesteps == 6


def test_without_relay_unet_the_base_picture_is_drawn(components: dict[str, Any], pipe: CogView3Pipeline) -> None:
    expected = draw(pipe, num_relays=0)
    base = CogView3Pipeline(**components | {"relay_unet": None, "relay_scheduler": None})
    assert torch.equal(draw(base), expected)
    with pytest.raises(UserError, match="num_relays is 1, but relay_unet or relay_scheduler is missing: give 0"):
        draw(base, num_relays=1)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (16, 16), (48, None), (None, 48)])
def test_sizes(pipe: CogView3Pipeline, height: int | None, width: int | None) -> None:
    assert draw(pipe, height=height, width=width).shape == (1, 3, height or 64, width or 64)


def test_sides_of_a_rectangular_unet(pipe: CogView3Pipeline) -> None:
    pipe.unet.register_to_config(sample_size=(2, 4))
    assert draw(pipe, num_relays=0).shape == (1, 3, 16, 32)
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(UserError, match="width is unset and the UNet has no sample_size: give width"):
        draw(pipe, height=16)


def test_network_is_told_the_size_that_its_stage_draws(pipe: CogView3Pipeline) -> None:
    labels: dict[str, torch.Tensor] = {}
    for name in ("unet", "relay_unet"):
        getattr(pipe, name).register_forward_pre_hook(
            lambda _, __, kwargs, name=name: labels.update({name: kwargs["class_labels"]}), with_kwargs=True
        )
    draw(pipe, height=48, width=80)
    for name, size in (("unet", (24, 40)), ("relay_unet", (48, 80))):
        expected = size_conditions(size, (0, 0), size, 8).expand(2, -1)  # both branches of guidance keep it
        assert torch.equal(labels[name], expected)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 50}, "height 50 is not a multiple of 16: the nearest is 48"),
        ({"width": 57}, "width 57 is not a multiple of 16: the nearest is 64"),
        ({"width": 3}, "width 3 is not a multiple of 16: the nearest is 16"),
        ({"height": 24, "num_relays": 2}, "height 24 is not a multiple of 32"),
        ({"height": 0}, "height is 0: give a whole number from 1 to 8192"),
        ({"height": -16}, "height is -16"),
        ({"height": 16.5}, "height is 16.5"),
        ({"width": 10**9}, "width is 1000000000"),
        ({"num_relays": 8, "height": 8192, "width": 8192 - 16}, "width 8176 is not a multiple of 2048"),
    ],
)
def test_wrong_sizes_are_refused(pipe: CogView3Pipeline, size: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(pipe, **size)


def test_latents_are_the_base_noise(pipe: CogView3Pipeline, seeded: Seeded) -> None:
    noise = torch.randn(1, 4, 4, 4, generator=seeded(0))
    expected = draw(pipe, num_relays=0)
    assert torch.equal(draw(pipe, num_relays=0, latents=noise, generator=None), expected)
    with pytest.raises(UserError, match=r"latents are \(1, 4, 4, 4\): give \(2, 4, 4, 4\)"):
        draw(pipe, latents=noise, num_images_per_prompt=2)


def test_a_prompt_is_needed(pipe: CogView3Pipeline) -> None:
    with pytest.raises(UserError, match="neither prompt nor prompt_embeds is given"):
        draw(pipe, prompt=None)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5])
def test_wrong_relay_steps_are_refused(pipe: CogView3Pipeline, steps: Any) -> None:
    with pytest.raises(UserError, match=r"relay steps is .*: give a whole number from 1 to 1000"):
        draw(pipe, relay_steps=steps)


@pytest.mark.parametrize("guidance", [float("nan"), -2.0])
def test_wrong_relay_guidance_is_refused(pipe: CogView3Pipeline, guidance: float) -> None:
    with pytest.raises(UserError, match="relay_guidance_scale is"):
        draw(pipe, relay_guidance_scale=guidance)


def test_nothing_runs_before_the_checks(pipe: CogView3Pipeline) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("work started")

    for name in ("text_encoder", "unet", "relay_unet", "vae"):
        getattr(pipe, name).register_forward_pre_hook(fail)
    for wrong in (
        {"relay_steps": 0},
        {"height": 50},
        {"output_type": "gif"},
        {"relay_start": 5000},
        {"latents": torch.zeros(1)},
        {"generator": []},
    ):
        with pytest.raises(UserError):
            draw(pipe, **wrong)


def test_relay_start_changes_the_picture_and_its_steps(pipe: CogView3Pipeline) -> None:
    times: list[int] = []

    def look(_: Any, __: int, timestep: torch.Tensor, ___: Any) -> None:
        times.append(int(timestep))

    late = draw(pipe, relay_start=200, callback_on_step_end=look)
    assert times == [999, 499, 199, 99]
    assert not torch.equal(late, draw(pipe))


def test_interrupted_base_skips_the_relay(pipe: CogView3Pipeline) -> None:
    def stop(self: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._interrupt = step == 1
        return tensors

    assert draw(pipe, callback_on_step_end=stop).shape == (1, 3, 32, 32)


def test_schedulers_of_second_order_make_more_steps_than_asked_for(components: dict[str, Any]) -> None:
    pipe, seen = CogView3Pipeline(**components), []
    pipe.scheduler = HeunDiscreteScheduler.from_config(components["scheduler"].config)
    draw(pipe, callback_on_step_end=lambda _, step, *__: seen.append(step) or {})
    assert seen == list(range(pipe.num_timesteps))
    assert pipe.num_timesteps > 4


def test_other_base_schedulers(components: dict[str, Any]) -> None:
    pipe = CogView3Pipeline(**components)
    for kind in (DPMSolverMultistepScheduler, DDPMScheduler):
        pipe.scheduler = kind.from_config(components["scheduler"].config)
        assert draw(pipe).isfinite().all()
        assert pipe.scheduler.timesteps.tolist() == [999, 499]
    pipe.scheduler = DDIMScheduler.from_config(components["scheduler"].config)
    with pytest.raises(UserError, match="DDIMScheduler takes no list of timesteps: give another"):
        draw(pipe)


def test_mode_fills_in_what_a_call_leaves_unset(pipe: CogView3Pipeline) -> None:
    pipe.mode_name = "2+1"
    pipe.mode = Mode(steps=2, relay_steps=1, guidance=2.0, relay_guidance=1.0)
    unset = {"num_inference_steps": None, "relay_steps": None}
    found = draw(pipe, **unset)
    assert pipe.num_timesteps == 3
    given = {"relay_steps": 1, "guidance_scale": 2.0, "relay_guidance_scale": 1.0}
    assert torch.equal(found, draw(pipe, **given))
    assert not torch.equal(found, draw(pipe, **given | {"relay_guidance_scale": 2.0}))
    pipe.mode = Mode(steps=2, relay_steps=1, guidance=2.0)
    draw(pipe, **unset)
    assert pipe.relay_guidance_scale == 2.0


def test_defaults_without_a_mode_are_the_papers(pipe: CogView3Pipeline) -> None:
    def stop(self: Any, *_: Any) -> None:
        self._interrupt = True

    draw(pipe, num_inference_steps=None, relay_steps=None, callback_on_step_end=stop)
    assert pipe.num_timesteps == 60
    assert pipe.guidance_scale == pipe.relay_guidance_scale == 7.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 8}, "steps is 8, but mode '2\\+1' is distilled for 2: leave it out"),
        ({"relay_steps": 2}, "relay_steps is 2, but mode '2\\+1' is distilled for 1"),
        ({"relay_start": 500}, "relay_start is 500, but mode '2\\+1' is distilled for 200"),
        ({"guidance_scale": 0.5}, "guidance is 0.5, but mode '2\\+1' is distilled for 1 to 12"),
        ({"relay_guidance_scale": 13.0}, "relay_guidance is 13.0, but mode '2\\+1' is distilled for 1 to 12"),
    ],
)
def test_distilled_modes_refuse_what_they_were_not_trained_for(
    pipe: CogView3Pipeline, changes: dict[str, Any], message: str
) -> None:
    pipe.mode_name = "2+1"
    pipe.mode = Mode(steps=2, relay_steps=1, relay_start=200, distilled=True, guidance_range=(1, 12))
    with pytest.raises(UserError, match=message):
        draw(pipe, **{"num_inference_steps": None, "relay_steps": None, **changes})
    assert draw(pipe, num_inference_steps=2, relay_steps=1, guidance_scale=12.0).isfinite().all()


# From a picture


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def draw_from_image_by_hand(pipe: CogView3Pipeline, image: torch.Tensor, times: list[int]) -> torch.Tensor:
    """The base's latents, without guidance, from a picture of its own size."""
    ids = pipe.tokenizer(["a red star"], padding="max_length", max_length=12, return_tensors="pt").input_ids
    text = pipe.text_encoder(ids).last_hidden_state
    levels = schedule.step_sigmas(schedule.make_sigmas(), times)
    labels = size_conditions((32, 32), (0, 0), (32, 32), 8)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    z = pipe.vae.encode(image[None] * 2 - 1).latent_dist.mean * 0.5 + levels[0] * noise
    for i, t in enumerate(times):
        sample = schedule.scale_model_input(z, levels[i])
        x0 = schedule.to_x0(pipe.unet(sample, t, text, class_labels=labels).sample, z, levels[i])
        z = x0 + (levels[i + 1] / levels[i]) * (z - x0)
    return z


@pytest.mark.parametrize(
    ("strength", "times"),
    [(1.0, [999, 749, 499, 249]), (0.5, [499, 249]), (0.3, [249]), (0.01, [249]), (None, [499, 249])],
)
def test_an_image_is_noised_to_where_the_steps_begin(
    pipe: CogView3Pipeline, image: torch.Tensor, strength: float | None, times: list[int]
) -> None:
    changes = {"num_inference_steps": 4, "num_relays": 0, "guidance_scale": 1.0, "output_type": "latent"}
    given = draw(pipe, image=image, strength=strength, **changes)
    assert pipe.num_timesteps == len(times)
    # float32, eps at sigma 14.6
    torch.testing.assert_close(given, draw_from_image_by_hand(pipe, image, times).float(), atol=1e-3, rtol=1e-3)


def test_images_of_several_prompts_and_of_other_sizes(pipe: CogView3Pipeline, image: torch.Tensor) -> None:
    prompts, seeds = ["a red star", "blue"], [torch.Generator().manual_seed(i) for i in range(4)]
    changes = {"prompt": prompts, "num_images_per_prompt": 2, "generator": seeds, "strength": 0.5, "num_relays": 0}
    wide = torch.cat([image.flip(1), image, image.flip(2)], dim=2)  # 32 x 96: its middle is `image`
    given = draw(pipe, image=wide, **changes)
    seeds[:] = [torch.Generator().manual_seed(i) for i in range(4)]
    assert torch.equal(given, draw(pipe, image=[image, image], **changes))
    seeds[:] = [torch.Generator().manual_seed(i) for i in range(4)]
    other = draw(pipe, image=[image, image.flip(1)], **changes)
    assert torch.equal(other[:2], given[:2])
    assert not torch.allclose(other[2:], given[2:], atol=1e-3)


def test_the_size_that_an_image_is_brought_to_is_the_bases(pipe: CogView3Pipeline, image: torch.Tensor) -> None:
    large = torch.nn.functional.interpolate(image[None], scale_factor=3, mode="nearest")[0]
    assert draw(pipe, image=large, height=128, width=64).shape == (1, 3, 128, 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strength": 0.5}, "no image"),
        ({"image": "x", "strength": 0}, "strength is 0, which would draw nothing"),
        ({"image": "x", "strength": 1.5}, "strength is 1.5"),
        ({"image": "x", "strength": math.nan}, "strength is nan"),
        ({"image": "x"}, "image is str"),
        ({"image": [torch.zeros(3, 32, 32)] * 2}, "2 images for 1 prompts"),
        ({"image": torch.zeros(3, 32, 32), "latents": torch.zeros(1, 4, 4, 4)}, "both image and latents"),
    ],
)
def test_wrong_images_and_strengths_are_refused(pipe: CogView3Pipeline, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw(pipe, **changes)
