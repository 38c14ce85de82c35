"""Ours among diffusers' pipelines: found by its loading, saved by its rules, made of its parts.

What diffusers' own common pipeline tests ask of every pipeline, on our tiny components.
"""

import importlib
import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    VQModel,
)
from diffusers.callbacks import SDCFGCutoffCallback
from peft import LoraConfig

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline, RelayScheduler, _diffusers
from cogview3.config import UserError
from cogview3.models.modes import Mode, Sampling, read_sampling, write_sampling

FAST = Mode(steps=4, relay_steps=1, guidance=3.0, relay_start=200, distilled=True, guidance_range=(1, 12))
CALL = {"num_inference_steps": 2, "relay_steps": 1, "output_type": "pt"}


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, **changes: Any) -> torch.Tensor:
    call = {"prompt": "a red star", "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return quiet(pipe)(**call | changes).images


@pytest.fixture
def pipe(components: dict[str, Any]) -> CogView3Pipeline:
    return quiet(CogView3Pipeline(**components))


@pytest.fixture(scope="module")
def fast_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the folder that `fast` copies is written, once a module."""
    return tmp_path_factory.mktemp("written") / "fast"


@pytest.fixture
def fast(fast_folder: Path, make_components: Callable[..., dict[str, Any]], tmp_path: Path) -> CogView3Pipeline:
    """A distilled pipeline, loaded from a folder of the mode 4+1."""
    if not fast_folder.exists():
        CogView3Pipeline(**make_components(time_cond_proj_dim=8)).save_pretrained(fast_folder)
        write_sampling(Sampling(default="4+1", modes={"4+1": FAST}), fast_folder)
    shutil.copytree(fast_folder, tmp_path / "fast")
    return quiet(CogView3Pipeline.from_pretrained(tmp_path / "fast"))


# Found by plain diffusers, with its mode


def test_plain_diffusers_finds_the_class_and_the_mode(fast: CogView3Pipeline, tmp_path: Path) -> None:
    fast.save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(again) is CogView3Pipeline
    assert (again.mode_name, again.mode) == ("4+1", FAST)
    assert again.relay_scheduler.config.relay_start == 200
    assert torch.equal(draw(again), draw(fast))
    assert again.num_timesteps == 5
    assert again.guidance_scale == 3.0


def test_plain_diffusers_takes_one_of_several_modes(saved_model: Path, fast: CogView3Pipeline, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_model, tmp_path / "both"))
    fast.unet.save_pretrained(folder / "fast" / "unet")
    fast.relay_unet.save_pretrained(folder / "fast" / "relay_unet")
    own = FAST.model_copy(update={"unet": "fast/unet", "relay_unet": "fast/relay_unet"})
    write_sampling(
        Sampling(default="2+1", modes={"2+1": Mode(steps=2, relay_steps=1, guidance=2.0), "4+1": own}), folder
    )
    plain = DiffusionPipeline.from_pretrained(folder)
    assert (plain.mode_name, plain.unet.config.time_cond_proj_dim) == ("2+1", None)
    assert torch.equal(draw(plain), draw(CogView3Pipeline.from_pretrained(folder)))
    chosen = DiffusionPipeline.from_pretrained(folder, mode="4+1")
    assert torch.equal(draw(chosen), draw(CogView3Pipeline.from_pretrained(folder, mode="4+1")))
    assert chosen.num_timesteps == 5
    with pytest.raises(UserError, match=r"no mode '8\+2'"):
        DiffusionPipeline.from_pretrained(folder, mode="8+2")


@pytest.mark.parametrize("first", [True, False])
def test_a_library_knows_our_names_whichever_comes_first(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As diffusers is: a module that puts a lazy one in its own place."""
    lazy = "class Lazy(types.ModuleType):\n    def __getattr__(self, name):\n        raise AttributeError(name)\n"
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "__init__.py").write_text(
        f"import sys, types\n{lazy}itself = Lazy(__name__)\nitself.own, itself.__spec__ = 1, __spec__\n"
        "sys.modules[__name__] = itself\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(_diffusers, "_LIBRARY", "stand_in")
    monkeypatch.delitem(sys.modules, "stand_in", raising=False)
    if first:
        importlib.import_module("stand_in")
    _diffusers.register(["Ours"], {"Ours": CogView3Pipeline}.__getitem__)
    assert ("stand_in" in sys.modules) == first, "it is not imported for it"
    library = importlib.import_module("stand_in")
    assert (library.Ours, library.own) == (CogView3Pipeline, 1)
    with pytest.raises(AttributeError, match="NoSuchPipeline"):
        library.NoSuchPipeline  # noqa: B018
    found = importlib.util.find_spec("stand_in")
    assert found is not None
    assert found.origin == str(tmp_path / "stand_in" / "__init__.py")


def test_diffusers_knows_our_names() -> None:
    for kind in (CogView3Pipeline, CogView3UpscalePipeline):
        assert getattr(diffusers, kind.__name__) is kind
    with pytest.raises(AttributeError, match="NoSuchPipeline"):
        diffusers.NoSuchPipeline  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import cogview3, diffusers", "import diffusers, cogview3"])
def test_diffusers_knows_our_names_whichever_comes_first(imports: str) -> None:
    code = f"{imports}\nassert diffusers.CogView3Pipeline.__module__ == 'cogview3.generation.pipeline'\n"
    code += "import importlib.util; assert importlib.util.find_spec('diffusers').origin.endswith('__init__.py')\n"
    code += "try: diffusers.NoSuchPipeline\nexcept AttributeError: print('unknown')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "unknown\n", done.stderr


def test_a_distilled_mode_goes_along_with_the_components(fast: CogView3Pipeline) -> None:
    expected = draw(CogView3UpscalePipeline.from_pipe(fast), image=torch.zeros(3, 16, 16))
    for kind in (CogView3Pipeline, CogView3UpscalePipeline):
        other = kind(**fast.components)
        assert (other.mode_name, other.mode) == ("4+1", FAST)
    assert torch.equal(draw(other, image=torch.zeros(3, 16, 16)), expected)
    with pytest.raises(UserError, match="relay_steps is 5, but mode '4\\+1' is distilled for 1"):
        draw(other, image=torch.zeros(3, 16, 16), num_inference_steps=5)


def test_distilled_networks_without_a_mode_are_not_drawn_with(make_components: Callable[..., dict[str, Any]]) -> None:
    components = make_components(time_cond_proj_dim=8)
    with pytest.raises(UserError, match=r"the UNets are distilled.*mode=Mode"):
        draw(CogView3Pipeline(**components))
    assert draw(CogView3Pipeline(**components, mode=FAST)).isfinite().all()
    with pytest.raises(UserError, match="mode is '4\\+1', and these components are of no folder"):
        draw(CogView3Pipeline(**components, mode="4+1"))


# Saved


@pytest.mark.parametrize("component", ["unet", "relay_unet"])
def test_a_pipeline_with_an_adapter_is_not_saved(pipe: CogView3Pipeline, component: str, tmp_path: Path) -> None:
    plain = draw(pipe, **CALL)
    getattr(pipe, component).add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    with pytest.raises(UserError, match=rf"{component} has an adapter \(style\).*unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(draw(CogView3Pipeline.from_pretrained(tmp_path / "saved"), **CALL), plain)


def test_what_is_not_saved_along_is_named(
    fast: CogView3Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.utils import logging

    monkeypatch.setattr(logging._get_library_root_logger(), "propagate", True)
    monkeypatch.setattr(logging.logging.getLogger("cogview3.generation.pretrained"), "propagate", True)
    fast.save_pretrained(tmp_path / "one")
    assert caplog.messages == []
    write_sampling(Sampling(default="4+1", modes={"4+1": FAST, "8+2": FAST}), tmp_path / "fast")
    (tmp_path / "fast" / "expander").mkdir()
    CogView3Pipeline.from_pretrained(tmp_path / "fast").save_pretrained(tmp_path / "other")
    (told,) = caplog.messages
    assert "mode 8+2, the expander" in told
    assert str(tmp_path / "other") in told
    assert list(read_sampling(tmp_path / "other" / "sampling.json").modes) == ["4+1"]


# Texts


def test_a_distilled_pipeline_takes_its_own_embeddings_and_an_empty_negative_prompt(fast: CogView3Pipeline) -> None:
    expected = draw(fast)
    for negative in (None, "", "  ", [""]):
        positive, zeros = fast.encode_prompt("a red star", negative)
        assert not zeros.any()
        assert torch.equal(draw(fast, prompt=None, prompt_embeds=positive, negative_prompt_embeds=zeros), expected)
        assert torch.equal(draw(fast, negative_prompt=negative), expected)
    for negative in ({"negative_prompt": "blue"}, {"negative_prompt_embeds": torch.ones_like(positive)}):
        with pytest.raises(UserError, match="a distilled model has no negative branch"):
            draw(fast, **negative)
    upscaler = CogView3UpscalePipeline.from_pipe(fast)
    picture = {"image": torch.zeros(3, 16, 16)}
    again = draw(upscaler, prompt=None, prompt_embeds=positive, negative_prompt_embeds=zeros, **picture)
    assert torch.equal(again, draw(upscaler, **picture))


def test_prompts_are_encoded_in_a_pipeline_of_text_alone(components: dict[str, Any]) -> None:
    text = {name: components[name] for name in ("tokenizer", "text_encoder")}
    others = dict.fromkeys(components)
    positive, negative = CogView3Pipeline(**others | text).encode_prompt(["a red star", "a blue circle"], "red")
    without = quiet(CogView3Pipeline(**components | dict.fromkeys(text)))
    whole = quiet(CogView3Pipeline(**components))
    seeds = [[torch.Generator().manual_seed(seed) for seed in (0, 1)] for _ in range(2)]
    found = without(prompt_embeds=positive, negative_prompt_embeds=negative, generator=seeds[0], **CALL).images
    expected = whole(["a red star", "a blue circle"], negative_prompt="red", generator=seeds[1], **CALL).images
    torch.testing.assert_close(found, expected)


def test_calls_have_the_arguments_that_all_pipelines_of_text_have() -> None:
    common = {"prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "height", "width", "latents"}
    common |= {"num_inference_steps", "guidance_scale", "num_images_per_prompt", "generator", "output_type"}
    common |= {"return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}
    assert common <= inspect.signature(CogView3Pipeline.__call__).parameters.keys()


def test_components_are_those_given(components: dict[str, Any], pipe: CogView3Pipeline) -> None:
    light = {"latent_enlarger", "light_decoder"}
    assert set(pipe.components) == set(components) | light
    assert torch.equal(draw(CogView3Pipeline(**pipe.components), **CALL), draw(pipe, **CALL))


def test_tuples_hold_what_outputs_hold(pipe: CogView3Pipeline) -> None:
    found = quiet(pipe)("a red star", generator=torch.Generator().manual_seed(0), return_dict=False, **CALL)
    assert torch.equal(found[0], draw(pipe, **CALL))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("prompts", [["a red star"], ["a red star", "a blue circle"]])
def test_there_are_so_many_pictures_of_each_prompt(pipe: CogView3Pipeline, count: int, prompts: list[str]) -> None:
    assert len(draw(pipe, prompt=prompts, num_images_per_prompt=count, **CALL)) == count * len(prompts)


# Callbacks


def test_diffusers_callback_ends_guidance_in_batches_as_alone(pipe: CogView3Pipeline) -> None:
    prompts = ["a red star", "a blue circle"]

    def cut(prompt: Any, seeds: list[int]) -> torch.Tensor:
        callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = CALL | {"num_inference_steps": 3, "num_relays": 0}
        return draw(pipe, prompt=prompt, generator=generators, callback_on_step_end=callback, **call)

    alone = torch.cat([cut(prompt, [seed]) for seed, prompt in enumerate(prompts)])
    torch.testing.assert_close(cut(prompts, [0, 1]), alone)
    assert pipe.guidance_scale == 0.0


# Numbers as other programs have them


def test_numbers_come_as_numpy_has_them_and_from_sliders(pipe: CogView3Pipeline) -> None:
    plain = {"num_inference_steps": 2, "relay_steps": 1, "height": 32, "width": 64, "num_relays": 1, "tile_size": 64}
    plain |= {"relay_start": 300, "num_images_per_prompt": 1}
    scales = {"guidance_scale": 2.0, "relay_guidance_scale": 3.0}
    expected = draw(pipe, **plain, **scales)
    for kind in (np.int64, np.uint16, np.float32, float):
        given = {name: kind(value) for name, value in plain.items()}
        given |= {name: np.float32(value) for name, value in scales.items()}
        assert torch.equal(draw(pipe, **given), expected)
    for wrong in (np.bool_(True), True, np.float32("nan"), float("inf"), 2.5, "2", np.array([2])):
        with pytest.raises(UserError, match=r"num_inference_steps is .*: give a whole number"):
            draw(pipe, num_inference_steps=wrong)


# Components of other kinds


def test_the_asymmetric_autoencoder_draws(components: dict[str, Any]) -> None:
    torch.manual_seed(0)
    vae = AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(4, 4, 8, 8),
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(4, 4, 8, 8),
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.5,
    ).eval()
    assert draw(CogView3Pipeline(**components | {"vae": vae}), **CALL).shape == (1, 3, 64, 64)


def test_the_tiny_autoencoder_draws_what_is_done_by_hand(components: dict[str, Any]) -> None:
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()
    pipe = CogView3Pipeline(**components | {"vae": vae})
    latents = draw(pipe, **CALL | {"output_type": "latent", "num_relays": 0})
    with torch.no_grad():
        expected = (vae.decode(latents).sample.clamp(-1, 1) + 1) / 2
        pixels = torch.rand(1, 3, 16, 16)
        torch.testing.assert_close(pipe._to_latents(pixels), vae.encode(pixels).latents)
    torch.testing.assert_close(draw(pipe, num_relays=0, num_inference_steps=2), expected)
    assert draw(pipe, **CALL).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float16])
def test_a_vae_that_overflows_in_float16_runs_in_float32(pipe: CogView3Pipeline, dtype: torch.dtype) -> None:
    latents, expected = torch.rand(1, 4, 4, 4), None
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.to(dtype).to(torch.float32)
    expected = pipe._to_pixels(latents)
    pipe.vae.to(dtype)
    assert torch.equal(pipe._to_pixels(latents), expected)
    assert pipe.vae.dtype == dtype


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae": VQModel(block_out_channels=(4,), norm_num_groups=2)}, "vae is a VQModel: give AutoencoderKL"),
        ({"scheduler": DDIMScheduler()}, "scheduler DDIMScheduler takes no list of timesteps"),
        ({"scheduler": RelayScheduler()}, "scheduler RelayScheduler takes no list of timesteps"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, "scheduler FlowMatchEulerDiscreteScheduler"),
        ({"scheduler": EulerDiscreteScheduler(use_karras_sigmas=True)}, "cannot take the base's step list"),
        ({"relay_scheduler": EulerDiscreteScheduler()}, "relay_scheduler is a EulerDiscreteScheduler: give a Relay"),
    ],
)
def test_components_of_other_kinds_are_refused_at_once(
    components: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        CogView3Pipeline(**components | changes)


def test_networks_that_do_not_belong_together_are_refused_at_once(
    components: dict[str, Any], make_unet: Callable[..., Any], make_vae: Callable[..., Any]
) -> None:
    for name in ("unet", "relay_unet"):
        with pytest.raises(UserError, match=f"{name} takes text 24 wide, but the text encoder gives 16"):
            CogView3Pipeline(**components | {name: make_unet(cross_attention_dim=24)})
    with pytest.raises(UserError, match="unet takes 4 and gives 4 channels, but the VAE's latents have 8"):
        CogView3Pipeline(**components | {"vae": make_vae(latent_channels=8)})


# Adapters


@pytest.mark.parametrize("safe", [True, False])
def test_adapters_are_saved_in_both_of_diffusers_formats(
    pipe: CogView3Pipeline, make_unet: Callable[..., Any], tmp_path: Path, safe: bool
) -> None:
    from peft import get_peft_model_state_dict

    unet = make_unet()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]))
    state = {name: torch.ones_like(each) for name, each in get_peft_model_state_dict(unet).items()}
    CogView3Pipeline.save_lora_weights(tmp_path, unet_lora_layers=state, safe_serialization=safe)
    name = "pytorch_lora_weights.safetensors" if safe else "pytorch_lora_weights.bin"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    found, alphas = CogView3Pipeline.lora_state_dict(tmp_path, weight_name=name)
    assert found.keys() == {f"{CogView3Pipeline.unet_name}.{key}" for key in state}
    assert not alphas
    plain = draw(pipe, **CALL)
    pipe.load_lora_weights(tmp_path, weight_name=name)
    assert not torch.equal(draw(pipe, **CALL), plain)


def test_model_index_names_our_class(fast: CogView3Pipeline, tmp_path: Path) -> None:
    fast.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "CogView3Pipeline"
    assert "mode" not in index
