"""What only the upscaling pipeline does: pictures of any kind and size, calls without a prompt."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError
from cogview3.models.modes import Mode

Seeded = Callable[[int], torch.Generator]


@pytest.fixture
def pipe(components: dict[str, Any]) -> CogView3UpscalePipeline:
    """The tiny upscaler."""
    pipe = CogView3UpscalePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def picture(seeded: Seeded) -> torch.Tensor:
    """(3, 20, 28), whole steps of 1/255."""
    return torch.randint(0, 256, (3, 20, 28), generator=seeded(3)) / 255


def enlarge(pipe: CogView3UpscalePipeline, image: Any, **changes: Any) -> torch.Tensor:
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return pipe(image, **{**call, **changes}).images


def test_last_relay_of_the_other_pipeline(pipe: CogView3UpscalePipeline, components: dict[str, Any]) -> None:
    """Enlarging the base picture is what the text-to-image pipeline's relay does with it, the noise alike."""
    both = CogView3Pipeline(**components)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    call = {"prompt": "a red star", "latents": noise, "num_inference_steps": 2, "output_type": "pt"}
    base = both(**call, num_relays=0).images
    expected = both(**call, relay_steps=2, generator=torch.Generator().manual_seed(0)).images
    # the base picture goes through 0..1 and back in float32
    torch.testing.assert_close(enlarge(pipe, base, prompt="a red star"), expected, rtol=0, atol=1e-4)


def test_latents_of_the_other_pipeline_are_taken_over(
    pipe: CogView3UpscalePipeline, components: dict[str, Any]
) -> None:
    both = CogView3Pipeline(**components)
    call = {"prompt": "a red star", "num_inference_steps": 2, "num_relays": 0}
    latents, base = (
        both(**call, generator=torch.Generator().manual_seed(1), output_type=kind).images for kind in ("latent", "pt")
    )
    given = enlarge(pipe, None, latents=latents)
    # the base picture goes through 0..1 and back in float32
    torch.testing.assert_close(given, enlarge(pipe, base), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "latents", "words"),
    [
        (None, None, "neither image nor latents"),
        (torch.zeros(3, 8, 8), torch.zeros(1, 4, 4, 4), "both image and latents"),
        (None, torch.zeros(4, 4, 4), r"latents is \(4, 4, 4\)"),
        (None, torch.zeros(1, 3, 4, 4), r"give a tensor of shape \(B, 4, "),
        (None, "x", "latents is str"),
    ],
)
def test_wrong_latents_are_refused(pipe: CogView3UpscalePipeline, image: Any, latents: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        enlarge(pipe, image, latents=latents)


def test_every_kind_of_picture_is_read_alike(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    bytes_ = (picture * 255).round().to(torch.uint8)
    array = picture.permute(1, 2, 0).numpy()
    byte_array = bytes_.permute(1, 2, 0).numpy()
    expected = enlarge(pipe, picture)
    kinds = (picture[None], [picture], bytes_, array, array[None], byte_array, Image.fromarray(byte_array))
    for kind in kinds:
        torch.testing.assert_close(enlarge(pipe, kind), expected, rtol=0, atol=1e-5)  # k/255 in float32


def test_gray_pictures(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    gray = (picture[0].numpy() * 255).round().astype(np.uint8)
    expected = enlarge(pipe, np.stack([gray] * 3, axis=-1))
    assert torch.equal(enlarge(pipe, gray), expected)
    assert torch.equal(enlarge(pipe, Image.fromarray(gray)), expected)


@pytest.mark.parametrize(("height", "width"), [(20, 28), (21, 27), (4, 5), (7, 33)])
@pytest.mark.parametrize("relays", [1, 2])
def test_any_size_is_enlarged_exactly(pipe: CogView3UpscalePipeline, height: int, width: int, relays: int) -> None:
    image = torch.rand(3, height, width)
    scale = 2**relays
    found = enlarge(pipe, image, num_relays=relays, num_inference_steps=1)
    assert found.shape == (1, 3, scale * height, scale * width)
    assert pipe.num_timesteps == relays


def test_padding_reflects_and_is_cropped(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    odd = picture[:, :19, :26]
    padded = torch.cat([odd, odd[:, 17:18]], dim=1)
    padded = torch.cat([padded, padded[:, :, [24, 23]]], dim=2)
    assert torch.equal(enlarge(pipe, odd), enlarge(pipe, padded)[:, :, :38, :52])
    latents = enlarge(pipe, odd, output_type="latent")
    assert latents.shape == (1, 4, 5, 7)  # of 40 x 56 pixels: latents cannot be cropped


def test_without_a_prompt_there_is_one_branch_that_sees_zeros(
    pipe: CogView3UpscalePipeline, picture: torch.Tensor
) -> None:
    rows: list[int] = []
    pipe.relay_unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    found = enlarge(pipe, picture, keep_colors=False, guidance_scale=5.0)
    assert set(rows) == {1}
    zeros = enlarge(pipe, picture, keep_colors=False, guidance_scale=1.0, prompt_embeds=torch.zeros(1, 12, 16))
    torch.testing.assert_close(found, zeros, rtol=0, atol=1e-5)  # the mean of equal values, in another count


def test_negative_prompt_alone_guides_from_it_to_zeros(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    found = enlarge(pipe, picture, keep_colors=False, negative_prompt="blue", guidance_scale=3.0)
    expected = enlarge(
        pipe,
        picture,
        keep_colors=False,
        negative_prompt="blue",
        prompt_embeds=torch.zeros(1, 12, 16),
        guidance_scale=3.0,
    )
    assert torch.equal(found, expected)
    embeds, _ = pipe.encode_prompt("blue")
    assert torch.equal(
        enlarge(pipe, picture, keep_colors=False, negative_prompt_embeds=embeds, guidance_scale=3.0), expected
    )
    assert not torch.equal(found, enlarge(pipe, picture, keep_colors=False, guidance_scale=3.0))


def test_a_negative_prompt_alone_is_not_expanded(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    call = {"keep_colors": False, "negative_prompt": "blue", "guidance_scale": 3.0}
    plain = enlarge(pipe, picture, **call)
    asked: list[str] = []
    pipe.prompt_expander = lambda prompts: asked.extend(prompts) or ["a red star"] * len(prompts)
    assert torch.equal(enlarge(pipe, picture, **call), plain)
    assert asked == []
    assert not torch.equal(enlarge(pipe, picture, **call, prompt="star"), plain)
    assert asked == ["star"]


def test_one_prompt_serves_all_pictures(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    images = [picture, picture.flip(-1)]
    one = enlarge(pipe, images, prompt="star")
    assert torch.equal(one, enlarge(pipe, images, prompt=["star", "star"]))
    with pytest.raises(UserError, match="3 prompts for 2 pictures: give one for each, or one for all"):
        enlarge(pipe, images, prompt=["star"] * 3)
    with pytest.raises(UserError, match="3 prompts for 2 pictures"):
        enlarge(pipe, images, negative_prompt=["star"] * 3)


def test_mode_gives_steps_and_guidance(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    pipe.mode_name = "4+1"
    pipe.mode = Mode(steps=4, relay_steps=1, guidance=2.0, relay_guidance=4.0, distilled=True)
    enlarge(pipe, picture, num_inference_steps=None)
    assert pipe.num_timesteps == 1
    assert pipe.guidance_scale == 4.0
    with pytest.raises(UserError, match="relay_steps is 2, but mode '4\\+1' is distilled for 1"):
        enlarge(pipe, picture)


def test_interrupt_keeps_the_sides_in_step(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    def stop(self: Any, *_: Any) -> None:
        self._interrupt = True

    found = enlarge(pipe, picture[:, :19], num_relays=2, callback_on_step_end=stop)
    assert found.shape == (1, 3, 38, 56)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.png", "image is str: give PIL pictures, numpy arrays or tensors"),
        ([], "image is an empty list"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 12)], "pictures of sizes 8x8, 12x8 in one call"),
        (torch.zeros(4, 8, 8), r"image has shape \(4, 8, 8\).*give 3 color channels"),
        (np.zeros((8, 8, 4), dtype=np.float32), r"image has shape \(4, 8, 8\)"),
        (torch.zeros(3, 0, 8), r"image has shape \(3, 0, 8\)"),
        (np.zeros(5), r"image has shape \(5,\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "image holds torch.int32 numbers"),
        (torch.full((3, 8, 8), -0.5), "image has values outside 0..1"),
        (torch.full((3, 8, 8), 255.0), "image has values outside 0..1"),
        (torch.full((3, 8, 8), float("nan")), "image has values outside 0..1"),
        (torch.zeros(3, 3, 8), "image is 8x3: give sides of at least 4 pixels"),
        (torch.zeros(3, 5000, 8), "image is 8x5000: give sides of at most 4096 for 1 relays"),
    ],
)
def test_wrong_pictures_are_refused(pipe: CogView3UpscalePipeline, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        enlarge(pipe, image)


def test_at_least_one_relay(pipe: CogView3UpscalePipeline, picture: torch.Tensor) -> None:
    with pytest.raises(UserError, match="num_relays is 0: give a whole number from 1 to 8"):
        enlarge(pipe, picture, num_relays=0)
