"""Cross attention to a constant text: the same numbers as plain attention, and less work."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from cogview3 import CogView3Pipeline
from cogview3.generation.attention import TextAttention, constant_text

MakeUNet = Callable[..., UNet2DConditionModel]
CALL = {"num_inference_steps": 3, "relay_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}


class Foreign(AttnProcessor2_0):
    """Does what plain attention does, but could do anything."""


def call(unet: UNet2DConditionModel, text: torch.Tensor, samples: int, t: int = 500) -> torch.Tensor:
    generator = torch.Generator().manual_seed(t)
    sample = torch.randn(samples, 4, 8, 8, generator=generator, dtype=unet.dtype)
    labels = torch.randn(samples, 48, generator=generator, dtype=unet.dtype)
    with torch.no_grad():
        return unet(sample, t, encoder_hidden_states=text, class_labels=labels).sample


def texts(count: int) -> torch.Tensor:
    return torch.randn(count, 5, 16, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
def test_it_equals_plain_attention(make_unet: MakeUNet, processor: type) -> None:
    unet, text = make_unet().double(), texts(2)
    unet.set_attn_processor(processor())
    expected = [call(unet, text, 2, t) for t in (700, 300)]
    with constant_text(unet) as fewer_texts:
        assert fewer_texts
        for given, wanted in zip([call(unet, text, 2, t) for t in (700, 300)], expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-12)


def test_samples_without_a_text_are_as_with_zeros(make_unet: MakeUNet) -> None:
    unet, text = make_unet().double(), texts(2)
    expected = call(unet, torch.cat([torch.zeros_like(text), text]), 4)
    with constant_text(unet):
        torch.testing.assert_close(call(unet, text, 4), expected, rtol=1e-10, atol=1e-12)


def test_overlapping_uses_of_one_network_do_not_end_each_others(make_unet: MakeUNet) -> None:
    unet, text = make_unet().double(), texts(2)
    expected = call(unet, torch.cat([torch.zeros_like(text), text]), 4)
    one, other = constant_text(unet), constant_text(unet)
    plain = dict(unet.attn_processors)
    assert one.__enter__() is True
    assert other.__enter__() is True
    one.__exit__(None, None, None)
    torch.testing.assert_close(call(unet, text, 4), expected, rtol=1e-10, atol=1e-12)
    other.__exit__(None, None, None)
    assert unet.attn_processors == plain


def test_threads_with_pipelines_around_the_same_networks_draw_as_alone(components: dict[str, Any]) -> None:
    pipes = [CogView3Pipeline(**components | copies(components)) for _ in range(2)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)

    def draw(number: int) -> list[torch.Tensor]:
        calls = [{**CALL, "generator": torch.Generator().manual_seed(number + 10 * time)} for time in range(4)]
        return [pipes[number]("a red star" if number else "a blue circle", **call).images for call in calls]

    alone = [draw(number) for number in range(2)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(draw, range(2)))
    for given, expected in zip(together, alone, strict=True):
        assert all(map(torch.equal, given, expected))


def copies(components: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(components[name]) for name in ("scheduler", "relay_scheduler")}


def test_another_text_is_projected_anew(make_unet: MakeUNet) -> None:
    unet = make_unet().double()
    one, other = texts(2), texts(2) * 2
    with constant_text(unet):
        given = [call(unet, text, 2) for text in (one, other, one)]
    assert torch.equal(given[0], given[2])
    torch.testing.assert_close(given[1], call(unet, other, 2), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(given[0], given[1])


def test_the_processors_are_put_back(make_unet: MakeUNet) -> None:
    unet = make_unet()
    before = dict(unet.attn_processors)
    kinds = {}

    def interrupted() -> None:
        with constant_text(unet):
            kinds.update({name.split(".")[-2]: type(used) for name, used in unet.attn_processors.items()})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert kinds == {"attn1": type(before[next(iter(before))]), "attn2": TextAttention}
    assert unet.attn_processors == before


def test_foreign_attention_is_left_alone(make_unet: MakeUNet) -> None:
    unet, foreign = make_unet(), Foreign()
    unet.set_attn_processor(foreign)
    with constant_text(unet) as fewer_texts:
        assert not fewer_texts
        assert set(unet.attn_processors.values()) == {foreign}


def test_biases_of_keys_and_values_are_heeded(make_unet: MakeUNet) -> None:
    unet = make_unet()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_v = torch.nn.Linear(16, 16)
    own = attention.processor
    with constant_text(unet) as fewer_texts:
        assert not fewer_texts
        assert attention.processor is own


# In pipelines


@pytest.fixture
def components(make_components: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Of v prediction: with eps, rounding errors are multiplied by sigma, up to 14.6."""
    return make_components("v_prediction")


def count_projections(unet: UNet2DConditionModel) -> list[tuple[int, ...]]:
    """Shapes of the texts that one cross attention projects from now on."""
    shapes: list[tuple[int, ...]] = []
    keys = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    keys.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


def draw(components: dict[str, Any], **changes: Any) -> torch.Tensor:
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(["a red star", "blue"], **{**CALL, "generator": generator, **changes}).images


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, {"negative_prompt": "circle"}])
def test_pictures_are_those_of_plain_attention(components: dict[str, Any], changes: dict[str, Any]) -> None:
    given = draw(components, **changes)
    for name in ("unet", "relay_unet"):
        components[name].set_attn_processor(Foreign())
    # float32 in another order of sums, over five steps
    torch.testing.assert_close(given, draw(components, **changes), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "rows"), [({}, 2), ({"guidance_scale": 1.0}, 2), ({"negative_prompt": "circle"}, 4)]
)
def test_a_text_is_projected_once_a_stage(components: dict[str, Any], changes: dict[str, Any], rows: int) -> None:
    seen = [count_projections(components[name]) for name in ("unet", "relay_unet")]
    draw(components, **changes)
    assert seen == [[(rows, 12, 16)]] * 2


@pytest.mark.parametrize("in_place", [True, False])
def test_texts_that_a_callback_changes_are_heeded(components: dict[str, Any], in_place: bool) -> None:
    shown = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}

    def halve_once(pipe: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if step:
            return {}
        if in_place:
            tensors["prompt_embeds"].mul_(0.5)
            return {}
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.5}

    given = draw(components, callback_on_step_end=halve_once, **shown)
    assert not torch.allclose(given, draw(components), atol=1e-3)
    for name in ("unet", "relay_unet"):
        components[name].set_attn_processor(Foreign())
    expected = draw(components, callback_on_step_end=halve_once, **shown)
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


def test_guidance_that_a_callback_switches_off_is_heeded(components: dict[str, Any]) -> None:
    def off(pipe: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0
        return {}

    given = draw(components, callback_on_step_end=off)
    for name in ("unet", "relay_unet"):
        components[name].set_attn_processor(Foreign())
    torch.testing.assert_close(given, draw(components, callback_on_step_end=off), atol=1e-4, rtol=1e-4)
