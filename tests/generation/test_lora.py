"""LoRA adapters of both UNets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError

Adapter = dict[str, torch.Tensor]


@pytest.fixture
def make_adapter(make_unet: Callable[..., Any]) -> Callable[..., Adapter]:
    """State dictionaries of adapters that change something."""

    def make(seed: int) -> Adapter:
        unet = make_unet()
        unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
        generator = torch.Generator().manual_seed(seed)
        state = get_peft_model_state_dict(unet)
        return {name: torch.randn(each.shape, generator=generator) for name, each in state.items()}

    return make


@pytest.fixture
def pipe(components: dict[str, Any]) -> CogView3Pipeline:
    """The tiny pipeline."""
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: CogView3Pipeline, relays: int = 1) -> torch.Tensor:
    return pipe(
        "a red star",
        num_inference_steps=1,
        relay_steps=1,
        num_relays=relays,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


def prefixed(prefix: str, adapter: Adapter) -> Adapter:
    return {f"{prefix}.{name}": each for name, each in adapter.items()}


def test_adapters_go_to_the_network_that_they_name(
    pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter]
) -> None:
    base, both = draw(pipe, 0), draw(pipe)
    pipe.load_lora_weights(prefixed("relay_unet", make_adapter(1)), adapter_name="sharp")
    assert torch.equal(draw(pipe, 0), base)
    changed = draw(pipe)
    assert not torch.equal(changed, both)
    pipe.load_lora_weights(prefixed("unet", make_adapter(2)), adapter_name="style")
    assert not torch.equal(draw(pipe, 0), base)
    assert pipe.get_list_adapters() == {"unet": ["style"], "relay_unet": ["sharp"]}
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), both)


def test_adapters_work_as_their_merged_weights(pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter]) -> None:
    """W + B A, with scale alpha / r = 1."""
    adapter = make_adapter(3)
    pipe.load_lora_weights(prefixed("unet", adapter))
    found = draw(pipe, 0)
    pipe.unload_lora_weights()
    weights = pipe.unet.state_dict()
    for name in [name.removesuffix(".lora_A.weight") for name in adapter if name.endswith("lora_A.weight")]:
        weights[f"{name}.weight"] += adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
    # the same product in another order
    torch.testing.assert_close(found, draw(pipe, 0), rtol=0, atol=1e-4)


def test_adapters_are_scaled_and_fused(pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter]) -> None:
    plain = draw(pipe, 0)
    state = prefixed("unet", make_adapter(4))
    pipe.load_lora_weights(state, adapter_name="style")
    assert set(state) == set(prefixed("unet", make_adapter(4)))  # the caller's dictionary is left alone
    full = draw(pipe, 0)
    pipe.set_adapters("style", 0.0)
    torch.testing.assert_close(draw(pipe, 0), plain)
    pipe.set_adapters("style", 1.0)
    for components in (["unet"], None):
        pipe.fuse_lora(components=components)
        torch.testing.assert_close(draw(pipe, 0), full, rtol=0, atol=1e-4)  # merged weights, other rounding
        pipe.set_adapters("style", 0.0)  # what is merged stays
        torch.testing.assert_close(draw(pipe, 0), full, rtol=0, atol=1e-4)
        pipe.set_adapters("style", 1.0)
        pipe.unfuse_lora(components=components)
        pipe.set_adapters("style", 0.0)
        torch.testing.assert_close(draw(pipe, 0), plain, rtol=0, atol=1e-4)
        pipe.set_adapters("style", 1.0)


def test_nothing_is_fused_where_nothing_is_loaded(pipe: CogView3Pipeline) -> None:
    for act in (pipe.fuse_lora, pipe.unfuse_lora):
        with pytest.raises(UserError, match="no LoRA is loaded: call load_lora_weights first"):
            act()


def test_saved_adapters_load_again(
    pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    base, relay = make_adapter(5), make_adapter(6)
    pipe.load_lora_weights({**prefixed("unet", base), **prefixed("relay_unet", relay)})
    expected = draw(pipe)
    pipe.unload_lora_weights()
    CogView3Pipeline.save_lora_weights(tmp_path, unet_lora_layers=base, relay_unet_lora_layers=relay)
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert saved.keys() == {**prefixed("unet", base), **prefixed("relay_unet", relay)}.keys()
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(draw(pipe), expected)


def test_wrong_adapters_are_refused(
    pipe: CogView3Pipeline, components: dict[str, Any], make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="names start with transformer, not with unet or relay_unet"):
        pipe.load_lora_weights(prefixed("transformer", make_adapter(7)))
    with pytest.raises(UserError, match="names start with nothing"):
        pipe.load_lora_weights({})
    upscaler = CogView3UpscalePipeline(**components | {"unet": None})
    with pytest.raises(UserError, match="the LoRA is for unet, which this pipeline does not have"):
        upscaler.load_lora_weights(prefixed("unet", make_adapter(8)))
    with pytest.raises(UserError, match="no LoRA layers"):
        CogView3Pipeline.save_lora_weights(tmp_path)
