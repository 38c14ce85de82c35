"""Memory: estimates against closed forms and real networks; placements and their errors."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cogview3 import CogView3Pipeline
from cogview3.config import OutOfMemory, UserError
from cogview3.generation import compiling, denoising, memory, placement
from cogview3.generation.attention import constant_text, project_text
from cogview3.generation.memory import GIB, MARGIN, MODES, Picture, estimates, peak_bytes, skeletons, weight_bytes
from cogview3.generation.placement import (
    Placement,
    apply_placement,
    check_free,
    explained,
    model_estimates,
    quantize_network,
)
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.references import find

CALL = {"num_inference_steps": 2, "relay_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}


@pytest.fixture
def folder(saved_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


_SKELETONS: dict[str, nn.Module] = {}


@pytest.fixture
def networks(saved_model: Path) -> dict[str, nn.Module]:
    """Those of the model folder, read once a session; estimates cast them as they need."""
    if not _SKELETONS:
        _SKELETONS.update(skeletons(placement.network_folders(find(saved_model))))
    return dict(_SKELETONS)


def pipeline(components: dict[str, Any]) -> CogView3Pipeline:
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: CogView3Pipeline, **changes: Any) -> torch.Tensor:
    call = {**CALL, "generator": torch.Generator().manual_seed(0), **changes}
    return pipe("a red star", **call).images


# Estimates


def test_a_chain_holds_two_tensors_at_once() -> None:
    chain = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 40), nn.Linear(40, 5)).to("meta")
    # the caller's input lives all along; the widest moment has it, 20 and 40 numbers
    assert peak_bytes(chain, lambda: chain(torch.empty(3, 10, device="meta"))) == 3 * (10 + 20 + 40) * 4


def test_attention_holds_no_matrix_of_weights() -> None:
    tokens = 1000
    query = torch.empty(1, 1, tokens, 8, device="meta")
    attention = nn.Identity()
    peak = peak_bytes(attention, lambda: nn.functional.scaled_dot_product_attention(query, query, query))
    assert peak == tokens * 8 * 4


def test_skeletons_weigh_what_the_networks_do(networks: dict[str, nn.Module], components: dict[str, Any]) -> None:
    for name, network in networks.items():
        real = sum(tensor.nbytes for tensor in components[name].parameters())
        assert weight_bytes(network, torch.float32) == real
        assert weight_bytes(network, torch.bfloat16) == real / 2


def test_quantized_weights_are_as_large_as_estimated(
    networks: dict[str, nn.Module], components: dict[str, Any]
) -> None:
    unet = components["relay_unet"].bfloat16()
    quantize_network(unet, "int8")
    held = 0
    for parameter in unet.parameters():
        parts = getattr(parameter, "tensor_data_names", None)
        tensors = [parameter] if parts is None else [getattr(parameter, part) for part in parts]
        held += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    assert weight_bytes(networks["relay_unet"], torch.bfloat16, "int8") == held
    plain = weight_bytes(networks["relay_unet"], torch.bfloat16)
    assert held < plain
    assert weight_bytes(networks["vae"], torch.bfloat16, "int8") == weight_bytes(networks["vae"], torch.bfloat16)


def test_stages_come_in_order_and_grow(networks: dict[str, nn.Module]) -> None:
    small = memory.stages(networks, Picture(128, 128, 2), torch.float32)
    names = [stage.name for stage in small]
    assert names == ["text", "base", "decode", *["encode", "relay", "decode"] * 2]
    large = memory.stages(networks, Picture(256, 256, 2), torch.float32)
    for one, four in zip(small[1:], large[1:], strict=True):
        # of the tiny UNets' memory most is the text's
        assert (3 if one.name in ("encode", "decode") else 1) < four.activations / one.activations < 4.1
    alone, pair, sliced, tiled = (
        memory.stages(networks, Picture(128, 128, 0, **changes), torch.float32)
        for changes in ({}, {"batch": 2}, {"batch": 2, "vae_slicing": True}, {"tile_size": 64})
    )
    assert pair[-1].activations > sliced[-1].activations > alone[-1].activations > tiled[-1].activations
    assert pair[1].activations == pytest.approx(2 * alone[1].activations, rel=0.01)


def test_each_mode_needs_less_than_the_one_before(networks: dict[str, nn.Module]) -> None:
    needs = estimates(networks, Picture(), torch.float32)
    assert tuple(needs) == MODES
    assert needs["none"] >= needs["drop-text-encoder"] >= needs["model"] > needs["sequential"]
    weights = sum(weight_bytes(network, torch.float32) for network in networks.values())
    most = max(stage.activations for stage in memory.stages(networks, Picture(), torch.float32))
    assert needs["none"] == round((weights + most) * MARGIN[0]) + MARGIN[1]


def test_enlarging_needs_no_base(networks: dict[str, nn.Module]) -> None:
    found = memory.stages(networks, Picture(64, 64, 1, upscale=True), torch.float32)
    assert [stage.name for stage in found] == ["text", "encode", "relay", "decode"]
    assert found[1].networks == ("text_encoder", "vae")  # nothing has sent the text encoder away by then
    found = memory.stages(networks, Picture(64, 64, 1, upscale=True, encoded=False), torch.float32)
    assert [stage.name for stage in found] == ["encode", "relay", "decode"]
    with_text, without = (
        estimates(networks, Picture(64, 64, 1, upscale=True, encoded=encoded), torch.float32)
        for encoded in (True, False)
    )
    saved = weight_bytes(networks["text_encoder"], torch.float32) * MARGIN[0]
    assert with_text["none"] - without["none"] >= saved - 1  # and what encoding takes, of these tiny networks most


@pytest.mark.parametrize(
    ("picture", "names"),
    [
        (Picture(128, 128, 2), "text base enlarge relay enlarge relay decode"),
        pytest.param(Picture(64, 64, 0), "text base decode", marks=pytest.mark.slow),
        (Picture(128, 128, 2, upscale=True, encoded=False), "encode relay enlarge relay decode"),
    ],
)
def test_light_parts_stand_in_for_the_vae(networks: dict[str, nn.Module], picture: Picture, names: str) -> None:
    with torch.device("meta"):
        networks |= {"latent_enlarger": LatentEnlarger(width=8, num_blocks=1)}
        networks |= {"light_decoder": LightDecoder(width=8, num_blocks=1)}
    plain, light = (memory.stages(networks, replace(picture, light=light), torch.float32) for light in (False, True))
    assert [stage.name for stage in light] == names.split()
    of_vae = [stage for stage in light if "vae" in stage.networks]
    assert bool(of_vae) == picture.upscale  # the picture that is given is encoded
    assert light[-1].activations < plain[-1].activations
    needs = [estimates(networks, replace(picture, light=light), torch.float32)["model"] for light in (False, True)]
    assert needs[1] <= needs[0]


@pytest.mark.slow
def test_a_modes_own_choice_of_light_parts_counts(components: dict[str, Any], tmp_path: Path) -> None:
    parts = {"light_decoder": LightDecoder(width=8, num_blocks=1)}
    CogView3Pipeline(**components, **parts).save_pretrained(tmp_path / "model")
    modes = {"full": {"steps": 2}, "small": {"steps": 2, "light": True}}
    table = {"format": 1, "default": "full", "modes": modes}
    (tmp_path / "model" / "sampling.json").write_text(json.dumps(table))
    folder, needs = str(tmp_path / "model"), {}
    for mode, light in (("full", None), ("full", True), ("small", None), ("small", False)):
        needs[mode, light] = model_estimates(folder, mode, Picture(1024, 1024, light=light), torch.float32)["none"]
    assert needs["full", True] == needs["small", None] < needs["full", None] == needs["small", False]


def test_damaged_configurations_are_named(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"vae.config\.json is (missing or )?damaged"):
        model_estimates(str(folder), None, Picture(), torch.float32)


def test_models_on_the_hub_are_not_estimated() -> None:
    assert model_estimates("owner/name", None, Picture(), torch.float32) == {}


# Too little memory

NEEDS = {"none": 20 * GIB, "drop-text-encoder": 14 * GIB, "model": 10 * GIB, "sequential": 3 * GIB}


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (15, "--drop-text-encoder needs 14.0 GiB"),
        (11, "--offload model needs 10.0 GiB"),
        (4, "--offload sequential needs 3.0 GiB"),
        (1, "no mode fits: use a smaller --batch"),
    ],
)
def test_the_error_names_the_mode_that_fits(free: int, words: str) -> None:
    with pytest.raises(OutOfMemory, match=rf"about 20\.0 GiB .* {free}\.0 are free: {words}"):
        check_free(NEEDS, Placement(), free * GIB)
    check_free(NEEDS, Placement(), 21 * GIB)
    check_free({}, Placement(), 0)  # nothing is known of it


@pytest.mark.parametrize("how", [Placement(quantize="int8"), Placement(compile=True)])
def test_sequential_offload_is_not_advised_where_it_is_refused(how: Placement) -> None:
    with pytest.raises(OutOfMemory, match="no mode fits: use a smaller --batch or --size") as caught:
        check_free(NEEDS, how, 4 * GIB)
    assert ("--quantize int8" in str(caught.value)) == (how.quantize is None)
    with pytest.raises(OutOfMemory, match="--offload model needs"):
        check_free(NEEDS, how, 11 * GIB)


def test_quantized_models_have_no_sequential_estimate(networks: dict[str, nn.Module]) -> None:
    assert tuple(estimates(networks, Picture(), torch.bfloat16, "int8")) == MODES[:-1]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (Picture(tile_size=-64), "tile_size is -64"),
        (Picture(50, 64), "height 50 is not a multiple of 16: the nearest is 48"),
        (Picture(64, 99_968), "width is 99968: give a whole number from 1 to 8192"),
        (Picture(10_000, 16, relays=1, upscale=True), "image is 8x5000: give sides of at most 4096 for 1 relays"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_not_estimated(folder: Path, picture: Picture, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_estimates(str(folder), None, picture, torch.float32)


@pytest.mark.parametrize(
    ("needs", "how", "total", "words"),
    [
        (NEEDS, Placement(), 80, "--drop-text-encoder needs 14.0 GiB"),
        (NEEDS, Placement("model"), 24, "--offload sequential needs 3.0 GiB"),
        (NEEDS, Placement("sequential"), 24, "no mode fits: use a smaller --batch"),
        (NEEDS, Placement(), 2, "no mode fits: use a smaller --batch"),
        ({}, Placement(), 80, "use --offload model, a smaller --batch or --size, --tile-size 512 or --quantize int8"),
        ({}, Placement("model"), 80, "use a smaller --batch or --size, --tile-size 512 or --quantize int8"),
    ],
)
def test_running_out_names_the_mode_that_needs_less(
    needs: dict[str, int], how: Placement, total: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(total_memory=total * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    with pytest.raises(OutOfMemory, match=f"memory ran out: {words}"), explained(needs, how):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="other"), explained(needs, how):
        raise RuntimeError("other")


# Placements


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Placement("model"), "--offload model is for a GPU"),
        (Placement("all"), "--offload all: choose from none, model, sequential"),
        (Placement(quantize="int4"), "--quantize int4: choose from int8, fp8"),
        (Placement(quantize="fp8"), "needs a CUDA GPU of capability 8.9 or more, not cpu"),
    ],
)
def test_what_cannot_be_had_is_refused(how: Placement, words: str) -> None:
    with pytest.raises(UserError, match=words):
        how.check("cpu")


@pytest.mark.parametrize("other", [{"quantize": "int8"}, {"compile": True}])
def test_single_weights_are_not_moved_with_others(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="use --offload model"):
        replace(Placement("sequential"), **other).check("cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fp8_is_for_bfloat16(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(UserError, match="--quantize fp8 works only with --dtype bfloat16"):
        Placement(quantize="fp8").check("cuda", dtype)
    Placement(quantize="fp8").check("cuda", torch.bfloat16)


def test_rows_of_zeros_stay_numbers_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the texts of unconditional branches are. The kernels run on a CPU, too; only torchao's check is left out."""
    api = pytest.importorskip("torchao.quantization.quant_api")
    monkeypatch.setattr(api, "_check_hardware_support", lambda granularity: None)
    layer = nn.Linear(64, 64).bfloat16()
    network, rows = nn.Sequential(layer), torch.randn(2, 64).bfloat16()
    rows[1] = 0
    expected = layer(rows)
    quantize_network(network, "fp8")
    found = network(rows)
    assert type(network[0].weight) is not type(layer.bias)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)  # float8 has three bits of mantissa


def test_old_gpus_have_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(UserError, match=r"this GPU has 8\.6: use int8"):
        Placement(quantize="fp8").check("cuda")


def test_a_dropped_text_encoder_draws_the_same(components: dict[str, Any]) -> None:
    expected = draw(pipeline(dict(components)), negative_prompt="circle")
    pipe = pipeline(components)
    apply_placement(pipe, "cpu", Placement(drop_text_encoder=True, vae_slicing=True), ["a red star", "circle", None])
    assert pipe.text_encoder is None
    torch.testing.assert_close(draw(pipe, negative_prompt="circle"), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="lacks a prompt"):
        pipe("blue")


def test_unets_are_quantized_on_the_device_when_the_text_encoder_has_gone(
    components: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    networks = {id(components[name]): name for name in ("text_encoder", "unet", "relay_unet")}
    monkeypatch.setattr(placement, "quantize_network", lambda network, *given: order.append(networks[id(network)]))
    drop = placement.drop_text_encoder
    monkeypatch.setattr(placement, "drop_text_encoder", lambda *given: order.append("dropped") or drop(*given))
    apply_placement(pipeline(components), "cpu", Placement(quantize="int8", drop_text_encoder=True), ["a red star"])
    assert order == ["text_encoder", "dropped", "unet", "relay_unet"]


def test_int8_draws_nearly_the_same(components: dict[str, Any]) -> None:
    expected = draw(pipeline(dict(components)))
    pipe = pipeline(components)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_placement(pipe, "cpu", Placement(quantize="int8"))
    linear = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight
    assert type(linear.data).__name__ != "Tensor"
    given = draw(pipe)
    assert not torch.equal(given, expected)
    assert (given - expected).norm() / expected.norm() < 0.05


def test_offload_places_hooks_and_slices(components: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's hooks, towards the CPU, which here stands for the GPU."""
    expected = draw(pipeline(dict(components)))
    pipe = pipeline(components)
    monkeypatch.setattr(Placement, "check", lambda self, device: None)
    apply_placement(pipe, "cpu", Placement("model"))
    assert pipe.vae.use_slicing
    assert len(pipe._all_hooks) == 4
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-4)
    apply_placement(pipe, "cpu", Placement("sequential"))
    assert pipe.unet.conv_in.weight.is_meta


def test_light_parts_stand_outside_the_offloaded_chain(
    components: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each network sends the one before it back, whether light parts run or not."""
    light = {
        "latent_enlarger": LatentEnlarger(width=8, num_blocks=1),
        "light_decoder": LightDecoder(width=8, num_blocks=1),
    }
    pipe = pipeline(components | light)
    monkeypatch.setattr(Placement, "check", lambda self, device: None)
    apply_placement(pipe, "cpu", Placement("model"))
    assert not any(hasattr(part, "_hf_hook") for part in light.values())
    chain = [pipe.text_encoder, pipe.unet, pipe.relay_unet, pipe.vae]
    sent_back = [network._hf_hook.prev_module_hook for network in chain]
    assert sent_back[0] is None
    assert [hook.model for hook in sent_back[1:]] == chain[:-1]


def test_vae_tiles_of_its_own(components: dict[str, Any]) -> None:
    pipe = pipeline(components)
    seen: list[tuple[int, ...]] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    pipe.enable_vae_tiling(64)
    assert draw(pipe, height=128, width=128).shape == (1, 3, 128, 128)
    assert set(seen) == {(8, 8)}
    pipe.disable_vae_tiling()
    draw(pipe, height=128, width=128)
    assert (16, 16) in seen
    with pytest.raises(UserError, match="nearest is 128"):
        pipe.enable_vae_tiling(100)


def test_float16_is_for_the_unets(folder: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(folder, dtype=torch.float16)
    assert pipe.unet.dtype == pipe.relay_unet.dtype == torch.float16
    assert pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16
    pipe.set_progress_bar_config(disable=True)
    assert draw(pipe).isfinite().all()


# Compiled


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(make_unet: Callable[..., Any]) -> None:
    """Traced by dynamo and run by PyTorch: what is compiled is the same, whatever the code is made by."""
    torch._dynamo.reset()
    unet, counters = make_unet(), torch._dynamo.utils.counters
    sample, text, labels = torch.randn(2, 4, 8, 8), torch.randn(1, 5, 16), torch.randn(2, 48)

    def call() -> torch.Tensor:
        with torch.no_grad():
            return unet(sample, 500, text, class_labels=labels).sample

    with constant_text(unet):
        expected = call()
    assert compiling.compile_network(unet, backend="eager")
    graphs = counters["stats"]["unique_graphs"]
    with constant_text(unet), torch.no_grad():
        project_text(unet, text)
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4)
        first = counters["stats"]["unique_graphs"]
        assert first > graphs
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == first, "the second step was compiled anew"
    assert compiling.compile_seconds() > 0
    torch._dynamo.reset()


@pytest.mark.parametrize("network", [LatentEnlarger(width=8, num_blocks=2), LightDecoder(width=8, num_blocks=2)])
def test_compiled_light_parts_compute_the_same(network: torch.nn.Module) -> None:
    torch._dynamo.reset()
    latents = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        expected = network(latents)
        assert compiling.compile_network(network, backend="eager")
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch.testing.assert_close(network(latents), expected, rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before, "no block was compiled"
    torch._dynamo.reset()


def test_a_compiled_pipeline_projects_ahead(components: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    projected: list[Any] = []
    monkeypatch.setattr(denoising, "project_text", lambda unet, text: projected.append(unet))
    pipe = pipeline(components)
    pipe.compiled = True
    draw(pipe)
    assert projected == [pipe.unet, pipe.relay_unet]


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"])),
    reason="compiling for a CPU needs a C++ compiler",
)
def test_compiled_code_draws_the_same(components: dict[str, Any]) -> None:
    expected = draw(pipeline(dict(components)))
    pipe = pipeline(components)
    apply_placement(pipe, "cpu", Placement(compile=True))
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-4)


def test_no_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler \(no-such-compiler\)"):
        compiling.check_compiler("cpu")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package triton"):
        compiling.check_compiler("cuda")


def test_compiled_code_is_kept_where_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiling.cache_folder() == tmp_path / "cogview3" / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    assert compiling.cache_folder() == tmp_path / "own"


def test_other_networks_are_left_alone(make_text_encoder: Callable[[], Any]) -> None:
    assert not compiling.compile_network(make_text_encoder())
    assert not compiling.compile_network(None)
