"""LoRA adapters of both UNets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

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


Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({A: None}, f"no {Q}.lora_A.weight"),
        ({B: None}, f"no {Q}.lora_B.weight"),
        ({A: torch.zeros(3, 16)}, r"is \(3, 16\) and \(16, 2\), which does not fit \(16, 16\)"),
        ({A: torch.zeros(2, 320), B: torch.zeros(320, 2)}, r"is \(2, 320\) and \(320, 2\), which does not fit"),
        ({A: torch.zeros(0, 16), B: torch.zeros(16, 0)}, r"is \(0, 16\) and \(16, 0\)"),
        ({A: torch.tensor(1.0)}, r"is \(\) and"),
        ({A: torch.full((2, 16), torch.nan)}, f"{A} holds undefined numbers"),
        ({A: torch.zeros(2, 16, dtype=torch.int64)}, f"{A} holds torch.int64 numbers"),
        ({A: "x"}, f"{A} is a str"),
        ({f"{Q}.weight": torch.zeros(16, 16)}, f"{Q}.weight is no weight of an adapter"),
        ({f"{Q}.alpha": torch.tensor(torch.nan)}, f"{Q}.alpha is nan: give it a finite number"),
        ({f"{Q}.alpha": torch.tensor(0.0)}, f"{Q}.alpha is 0.0: give it a finite number"),
        (
            {"unet.x.lora_A.weight": torch.zeros(2, 16), "unet.x.lora_B.weight": torch.zeros(16, 2)},
            "is for unet.x, which",
        ),
        ({"unet": torch.zeros(1)}, "names start with unet, not with"),
        ({5: torch.zeros(1)}, "cannot be read"),
    ],
)
def test_adapters_that_do_not_fit_touch_nothing(
    pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter], changes: dict[Any, Any], words: str
) -> None:
    adapter = prefixed("unet", make_adapter(9)) | changes
    relay = prefixed("relay_unet", make_adapter(9))
    with pytest.raises(UserError, match=words):
        pipe.load_lora_weights(relay | {key: each for key, each in adapter.items() if each is not None})
    assert pipe.get_list_adapters() == {}
    assert not [name for name, _ in pipe.relay_unet.named_modules() if "lora" in name]


def test_alphas_beside_the_weights_scale_them(pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter]) -> None:
    adapter = prefixed("unet", make_adapter(10))
    doubled = {name: each * 2 if name.endswith("lora_B.weight") else each for name, each in adapter.items()}
    pipe.load_lora_weights(doubled, adapter_name="doubled")
    expected = draw(pipe, 0)
    pipe.unload_lora_weights()
    alphas = {name.replace("lora_A.weight", "alpha"): torch.tensor(4.0) for name in adapter if "lora_A" in name}
    pipe.load_lora_weights(adapter | alphas)
    assert torch.allclose(draw(pipe, 0), expected, atol=1e-6)  # products in another order


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("x", "cannot be read"),
        ("[]", "metadata is a list"),
        ('{"unet.r": 2, "unet.lora_alpha": NaN}', "unet.lora_alpha is nan"),
        ('{"unet.r": "2", "unet.lora_alpha": 2}', "unet.r is '2'"),
        ('{"unet.modules_to_save": ["conv_in"]}', r"unet.modules_to_save is \['conv_in'\]"),
        ('{"unet.r": 2, "unet.newer": 1}', "is damaged or does not fit this model"),
    ],
)
def test_damaged_metadata_of_adapters_is_refused(
    pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter], tmp_path: Path, metadata: str, words: str
) -> None:
    expected, file = draw(pipe, 0), tmp_path / "theirs.safetensors"
    save_file(prefixed("unet", make_adapter(11)), file, metadata={"lora_adapter_metadata": metadata, "format": "pt"})
    with pytest.raises(UserError, match=words):
        pipe.load_lora_weights(file)
    assert torch.equal(draw(pipe, 0), expected)


def test_what_is_no_adapter_is_refused_by_name(
    pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 9)
    (tmp_path / "empty").mkdir()
    for name in ("junk.safetensors", "empty"):
        with pytest.raises(UserError, match=f"LoRA {tmp_path / name}: cannot be read; give an adapter's file"):
            pipe.load_lora_weights(tmp_path / name)
    for given, kind in ((None, "NoneType"), ([], "list"), (b"x", "bytes")):
        with pytest.raises(UserError, match=f"the LoRA is a {kind}: give a path"):
            pipe.load_lora_weights(given)
    for name in ("", "a.b", 5):
        with pytest.raises(UserError, match=f"adapter_name is {name!r}: give a name without dots"):
            pipe.load_lora_weights(prefixed("unet", make_adapter(12)), adapter_name=name)


NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pipe: pipe.set_adapters("b"), "adapter_names is 'b': choose from those loaded, a"),
        (lambda pipe: pipe.set_adapters([]), r"adapter_names is \[\]"),
        (lambda pipe: pipe.set_adapters(None), "adapter_names is None"),
        (lambda pipe: pipe.set_adapters(["a"], [1.0, 2.0]), "2 weights for 1 adapters"),
        (lambda pipe: pipe.set_adapters("a", "x"), "adapter_weights is 'x': give a finite number"),
        (lambda pipe: pipe.set_adapters("a", {"unet": {"mid": NAN}}), "adapter_weights is nan: give a finite number"),
        (lambda pipe: pipe.delete_adapters("b"), "adapter_names is 'b': choose from those loaded, a"),
        (lambda pipe: pipe.fuse_lora(lora_scale=NAN), "lora_scale is nan: give a finite number"),
        (lambda pipe: pipe.fuse_lora(adapter_names=["b"]), r"adapter_names is \['b'\]"),
        (lambda pipe: pipe.fuse_lora(components=["vae"]), "components has 'vae': choose from unet, relay_unet"),
        (lambda pipe: pipe.unfuse_lora(components="vae"), "components has 'vae'"),
    ],
)
def test_adapters_that_are_not_there_are_named(
    pipe: CogView3Pipeline, make_adapter: Callable[..., Adapter], call: Callable[..., Any], words: str
) -> None:
    pipe.load_lora_weights(prefixed("unet", make_adapter(13)), adapter_name="a")
    with pytest.raises(UserError, match=words):
        call(pipe)
    assert pipe.get_active_adapters() == ["a"]
    pipe.set_adapters("a", {"unet": 0.5})
    pipe.fuse_lora(components="unet")


def test_without_a_gpu_nothing_is_offloaded(pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogview3.generation.base.get_device", lambda: "cpu")
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        with pytest.raises(UserError, match=f"{name}: there is no GPU to offload from; leave the call out"):
            getattr(pipe, name)()
