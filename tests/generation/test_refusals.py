"""What pipelines refuse before any work, and numbers that they do not pass on."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMWuerstchenScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks
from PIL import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError
from cogview3.generation import inputs
from cogview3.models.light import LatentEnlarger

CALL = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture
def calls(components: dict[str, Any]) -> list[str]:
    """Names of the networks that have run."""
    names: list[str] = []
    networks = {name: components[name] for name in ("text_encoder", "unet", "relay_unet")}
    networks |= {"encode": components["vae"].encoder, "decode": components["vae"].decoder}
    for name, network in networks.items():
        network.register_forward_pre_hook(lambda *_, name=name: names.append(name))
    return names


def pipeline(kind: Any, components: dict[str, Any]) -> Any:
    pipe = kind(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("tile_size", "words"), [(4, "not a multiple of 64"), (-8, "tile_size is -8: give a whole number"), (0, "is 0")]
)
@pytest.mark.parametrize("changes", [{}, {"relay_unet": None, "relay_scheduler": None}])
def test_tiles_are_checked_without_a_relay(
    components: dict[str, Any], calls: list[str], changes: dict[str, None], tile_size: int, words: str
) -> None:
    relays = None if changes else 0
    pipe = pipeline(CogView3Pipeline, components | changes)
    with pytest.raises(UserError, match=words):
        pipe("a red star", num_relays=relays, tile_size=tile_size, **CALL)
    assert calls == []


# Pictures that are too large; their pixels are never touched

HUGE = [
    Image.new("1", (30_000, 30_000)),
    np.broadcast_to(np.zeros(3, np.uint8), (30_000, 30_000, 3)),
    torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 30_000, 30_000),
]


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_one_to_pixels", lambda image: pytest.fail("its pixels were converted"))


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize("image", HUGE)
def test_huge_pictures_are_refused_by_their_sides(components: dict[str, Any], image: Any) -> None:
    with pytest.raises(UserError, match="image is 30000x30000: give sides of at most 4096"):
        pipeline(CogView3UpscalePipeline, components)(image, **CALL)
    with pytest.raises(UserError, match="image is 30000x30000: give at most 8192x8192 pixels"):
        pipeline(CogView3Pipeline, components)("a red star", image=[image], **CALL)


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((1, 4, 4, 600), {}, "image is 4800x32: give sides of at most 4096 for 1 relays"),
        ((1, 4, 0, 4), {}, "image is 32x0: give sides of at least 4 pixels"),
        ((2, 4, 4, 4), {"prompt": ["star"] * 3}, "3 prompts for 2 pictures"),
        ((2, 4, 4, 4), {"generator": [torch.Generator()]}, "1 generators for 2 pictures"),
    ],
)
def test_latents_are_checked_before_they_are_decoded(
    components: dict[str, Any], calls: list[str], shape: tuple[int, ...], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        pipeline(CogView3UpscalePipeline, components)(latents=torch.zeros(shape), **CALL, **changes)
    assert calls == []


# Callbacks


def test_a_callback_must_keep_a_text_for_each_picture(components: dict[str, Any]) -> None:
    pipe = pipeline(CogView3Pipeline, components)
    first = {"prompt_embeds": torch.zeros(1, 12, 16)}
    call = {**CALL, "relay_steps": 2, "callback_on_step_end": lambda *_: first}
    with pytest.raises(UserError, match="the callback gave 1 prompt_embeds for 2 pictures: give one for each"):
        pipe(["a red star", "a blue circle"], **call)
    assert pipe("a red star", **call).images.isfinite().all()


# Undefined numbers


def test_undefined_numbers_name_the_vaes_encoder(components: dict[str, Any]) -> None:
    components["vae"].encoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the VAE's encoder .* in torch\.float32"):
        pipeline(CogView3UpscalePipeline, components)(torch.rand(3, 16, 16), **CALL)


def test_undefined_numbers_name_the_latent_enlarger(components: dict[str, Any]) -> None:
    enlarger = LatentEnlarger(width=8, num_blocks=1).eval()
    for parameter in enlarger.parameters():
        parameter.data.fill_(float("nan"))
    pipe = pipeline(CogView3Pipeline, components | {"latent_enlarger": enlarger})
    with pytest.raises(FloatingPointError, match=r"the latent enlarger .* in torch\.float32"):
        pipe("a red star", light=True, **CALL)


# Values of other libraries' kinds


@pytest.mark.parametrize("two", [np.uint8(2), np.float32(2), np.array(2), torch.tensor(2), torch.tensor(2.0)])
def test_numbers_of_every_kind_are_taken(components: dict[str, Any], two: Any) -> None:
    call = {"num_inference_steps": two, "relay_steps": two, "guidance_scale": two, "num_images_per_prompt": two}
    assert len(pipeline(CogView3Pipeline, components)("a red star", num_relays=0, output_type="pt", **call).images) == 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, 10**400) for name in ("num_inference_steps", "relay_steps", "guidance_scale", "eta", "num_relays")),
        *(("generator", each) for each in (5, "x", [None], np.random.default_rng(0), np.int64(3))),
        *(("latents", each) for each in ("x", np.zeros((1, 4, 4, 4)), [[1]])),
        *(("image", np.zeros((32, 32, 3), kind)) for kind in (object, str)),
        *(("callback_on_step_end", each) for each in (5, [print], lambda *_: 5, lambda *_: {"latents": np.zeros(1)})),
        ("callback_on_step_end", lambda *_: {"latents": torch.zeros(1)}),
        ("callback_on_step_end", lambda pipe, step: {}),
        ("callback_on_step_end", IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5)),
        ("callback_on_step_end", MultiPipelineCallbacks([IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5)])),
        ("callback_on_step_end_tensor_inputs", None),
        ("callback_on_step_end_tensor_inputs", "latents"),
        ("prompt", "\ud800"),
        ("negative_prompt", "a \udfff"),
    ],
)
def test_values_of_other_kinds_are_refused_by_name(components: dict[str, Any], argument: str, value: Any) -> None:
    call = {**CALL, "prompt": "a red star", argument: value}
    with pytest.raises(UserError, match=argument.replace("_", "[_ ]").removesuffix("[_ ]on[_ ]step[_ ]end")):
        pipeline(CogView3Pipeline, components)(**call)


@pytest.mark.parametrize("part", ["scheduler", "relay_scheduler"])
@pytest.mark.parametrize("kind", [DDPMWuerstchenScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler])
def test_schedulers_that_were_put_in_later_are_checked_in_the_call(
    components: dict[str, Any], calls: list[str], part: str, kind: Any
) -> None:
    pipe = pipeline(CogView3Pipeline, components)
    setattr(pipe, part, kind())
    with pytest.raises(UserError, match=f"{part} .*{kind.__name__}"):
        pipe("a red star", **CALL)
    assert calls == []
