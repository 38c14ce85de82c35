"""The release's files: names and shapes against the published list, outputs against a network of its own."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

from cogview3.config import UserError
from cogview3.models.component_folders import read_component, write_component
from cogview3.models.release import load_unet, load_vae, save_unet, save_vae
from cogview3.models.release_names import unet_config_of, unet_name, vae_config_of, vae_name
from cogview3.models.unet import guidance_condition, unet_config
from tests.models.published import (
    LABEL_WIDTH,
    PREFIX,
    TEXT_WIDTH,
    full_shapes,
    published_forward,
    tiny_tensors,
    write_release,
)

FULL_ATTENTION = (True, True, False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny undistilled UNet in the published layout; not to be changed."""
    return write_release(tmp_path_factory.mktemp("release") / "base", tiny_tensors(0))


def on_meta(shapes: dict[str, list[int]]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**unet_config_of(shapes))


def written(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


# Names and shapes


@pytest.mark.parametrize("distilled", [False, True])
def test_shapes_tell_the_papers_backbone(distilled: bool) -> None:
    condition = {"time_cond_proj_dim": 512} if distilled else {}
    assert unet_config_of(full_shapes(distilled)) == unet_config("full", **condition)
    unet = on_meta(full_shapes(distilled))
    assert sum(each.numel() for each in unet.parameters()) == 2_906_612_484 + distilled * 512 * 320


def test_every_name_and_shape_of_the_release_has_its_place() -> None:
    shapes = full_shapes()
    found = {unet_name(name, 2, FULL_ATTENTION): tensor.shape for name, tensor in on_meta(shapes).state_dict().items()}
    assert found == {name: torch.Size(shape) for name, shape in shapes.items()}
    assert len(found) == 1681


def test_names_are_those_that_diffusers_finds_for_networks_of_this_family() -> None:
    names = {PREFIX + name: name for name in full_shapes(distilled=False)}  # diffusers' converter only moves values
    reference = convert_ldm_unet_checkpoint(names, unet_config("full"))
    assert len(reference) == 1680
    assert {name: unet_name(name, 2, FULL_ATTENTION) for name in reference} == reference


def test_one_wrong_tensor_does_not_mislead_the_configuration() -> None:
    shapes = full_shapes(distilled=False)
    alone = {"input_blocks.0.0.weight", "label_emb.0.0.weight"}  # nothing else tells what these tell
    for name in list(shapes)[::37]:
        without = {other: shape for other, shape in shapes.items() if other != name}
        assert name in alone or unet_config_of(without) == unet_config("full"), name
    for part in ("in_layers.2.bias", "out_layers.3.bias"):
        assert unet_config_of(shapes | {f"input_blocks.4.0.{part}": [32]}) == unet_config("full")
    for name in alone:
        with pytest.raises(UserError, match=f"lacks {re.escape(name)}"):
            unet_config_of({other: shape for other, shape in shapes.items() if other != name})


def of_width(width: int) -> dict[str, list[int]]:
    """All that tells the width of the second level."""
    parts = ("in_layers.2.bias", "emb_layers.1.bias", "out_layers.0.weight", "out_layers.0.bias", "out_layers.3.bias")
    return {f"input_blocks.4.0.{part}": [width] for part in parts}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_blocks.9.0.in_layers.0.weight": [32]}, "not numbered as levels"),
        ({"input_blocks.1000000000.0.op.weight": [32, 32, 3, 3]}, "not numbered as levels"),
        (of_width(650), "width 650 is no multiple of the 32 groups"),
        (of_width(672), "width 672 is no multiple of 64, the channels"),
    ],
)
def test_other_structures_are_refused(changes: dict[str, list[int]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        unet_config_of(full_shapes() | changes)


def test_parameters_that_the_release_lacks_are_refused() -> None:
    for name in ("add_embedding.linear_1.weight", "down_blocks.0.resnets.0.norm3.weight"):
        with pytest.raises(UserError, match=f"has no {name}"):
            unet_name(name, 2, FULL_ATTENTION)


# Outputs


@pytest.mark.parametrize("distilled", [False, True])
def test_a_loaded_network_computes_what_the_published_one_does(tmp_path: Path, distilled: bool) -> None:
    tensors = tiny_tensors(3, distilled)
    unet = load_unet(write_release(tmp_path / "unet", tensors)).float()
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, TEXT_WIDTH, generator=generator)
    labels = torch.randn(2, LABEL_WIDTH, generator=generator)
    times = torch.tensor([999, 17])
    guidance = guidance_condition([7.5, 2.0], 8) if distilled else None
    with torch.no_grad():
        found = unet(latents, times, text, class_labels=labels, timestep_cond=guidance).sample
    expected = published_forward(tensors, latents, times, text, labels, guidance)
    assert expected.std() > 0.1
    # float32 sums in another order
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("form", ["folder", "file", "safetensors"])
def test_all_forms_of_a_network_give_the_same(tiny: Path, tmp_path: Path, form: str) -> None:
    tensors = tiny_tensors(0)
    path = {
        "folder": tiny,
        "file": tiny / "1" / "mp_rank_00_model_states.pt",
        "safetensors": written(tmp_path / "unet.safetensors", tensors),
    }[form]
    unet = load_unet(path, sample_size=16)
    assert unet.config.sample_size == 16
    assert not unet.training
    assert unet.config.transformer_layers_per_block == (1, 2, 3)
    assert unet.config.attention_head_dim == (1, 1, 2)
    state = unet.state_dict()
    assert {PREFIX + unet_name(name, 2, FULL_ATTENTION) for name in state} == tensors.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, tensors[PREFIX + unet_name(name, 2, FULL_ATTENTION)])  # float16, as stored


def test_head_width_is_an_argument(tiny: Path) -> None:
    assert load_unet(tiny, head_dim=32).config.attention_head_dim == (1, 2, 4)


# There and back


@pytest.mark.parametrize("distilled", [False, True])
def test_back_in_the_releases_files_nothing_has_changed(tmp_path: Path, distilled: bool) -> None:
    tensors = tiny_tensors(4, distilled)
    unet = load_unet(write_release(tmp_path / "unet", tensors))
    write_component(unet, tmp_path / "diffusers", shard="5MB")
    assert len(list((tmp_path / "diffusers").glob("*-of-*.safetensors"))) > 1
    save_unet(read_component(UNet2DConditionModel, tmp_path / "diffusers"), tmp_path / "back")
    assert (tmp_path / "back" / "latest").read_text() == "1"
    path = tmp_path / "back" / "1" / "mp_rank_00_model_states.pt"
    back = torch.load(path, weights_only=True)["module"]
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    content = sum(tensor.nbytes for tensor in tensors.values())
    assert path.stat().st_size < 1.1 * content  # each tensor alone, not the file that it came from


def test_diffusers_reads_what_is_written(tiny: Path, tmp_path: Path) -> None:
    unet = load_unet(tiny)
    write_component(unet, tmp_path / "unet", torch.bfloat16, shard="5MB")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32, use_safetensors=True)
    assert again.config.attention_head_dim == list(unet.config.attention_head_dim)
    found = again.state_dict()
    for name, tensor in unet.state_dict().items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16).float()), name


def test_numbers_too_large_for_the_format_are_refused(tmp_path: Path) -> None:
    tensors = {name: tensor.float() for name, tensor in tiny_tensors(0, blocks=1).items()}
    tensors[f"{PREFIX}out.2.bias"][1] = 1e5
    unet = load_unet(written(tmp_path / "unet.safetensors", tensors))
    with pytest.raises(UserError, match=r"conv_out\.bias holds a number too large for float16: choose --dtype"):
        write_component(unet, tmp_path / "unet", torch.float16)
    write_component(unet, tmp_path / "brain", torch.bfloat16)
    tensors[f"{PREFIX}out.2.bias"][1] = torch.nan
    unet = load_unet(written(tmp_path / "broken.safetensors", tensors))
    with pytest.raises(UserError, match=r"conv_out\.bias holds numbers that are not finite"):
        save_unet(unet, tmp_path / "release")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_num_groups": 16}, r"norm_num_groups 16 \(they imply 32\)"),
        ({"attention_head_dim": (1, 2, 4)}, r"channels a head \[16, 32\] \(they imply \[64\]\)"),
        ({"flip_sin_to_cos": False}, r"flip_sin_to_cos False \(they imply True\)"),
        ({"mid_block_type": None}, r"mid_block_type None .*tensor mid_block\.attentions"),
        (
            {"use_linear_projection": False},
            r"use_linear_projection False .*tensor down_blocks\.1\.attentions\.0\.proj_in",
        ),
        ({"block_out_channels": (24, 64, 64), "norm_num_groups": 8}, "width 24 is no multiple of the 32 groups"),
        ({"addition_embed_type": "text", "encoder_hid_dim": 8}, "the release's UNet has no "),
    ],
)
def test_what_the_releases_files_cannot_hold_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = {"block_out_channels": (32, 64, 64), "attention_head_dim": (1, 1, 1), "norm_num_groups": 32}
    unet = UNet2DConditionModel(**unet_config("tiny", **{**config, **changes}))
    with pytest.raises(UserError, match=words):
        save_unet(unet, tmp_path / "unet")
    assert not (tmp_path / "unet").exists()


def test_a_network_written_otherwise_but_equal_is_not_refused(tmp_path: Path) -> None:
    unet = UNet2DConditionModel(
        **unet_config("tiny", block_out_channels=(32, 64, 64), attention_head_dim=(7, 1, 1), norm_num_groups=32)
    )
    save_unet(unet, tmp_path / "unet")  # 7 heads on a level without attention
    state = load_unet(tmp_path / "unet").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in unet.state_dict().items())


# Wrong tensors


def without(tensors: dict[str, torch.Tensor]) -> None:
    for number in range(9):
        del tensors[f"{PREFIX}output_blocks.{number}.0.in_layers.0.bias"]


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["first_stage_model.out.2.bias"] = tensors.pop(f"{PREFIX}out.2.bias")


def reshaped(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{PREFIX}middle_block.1.proj_in.weight"] = torch.zeros(128, 128, 1, 1)


def whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{PREFIX}out.2.bias"] = torch.zeros(4, dtype=torch.int64)


def other_prefix(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix(PREFIX)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, r"tensors 9 missing \((model\S+output_blocks\.\d\.0\.in_layers\.0\.bias, ){5}and 4 more\); download"),
        (
            renamed,
            r"1 missing \(model\.diffusion_model\.out\.2\.bias\), 1 unexpected \(first_stage_model\.out\.2\.bias\)",
        ),
        (reshaped, r"1 misshapen \(\S+middle_block\.1\.proj_in\.weight is \(128, 128, 1, 1\), not \(128, 128\)\)"),
        (whole_numbers, r"'model\.diffusion_model\.out\.2\.bias' is no tensor of floating-point numbers"),
        (other_prefix, r"has no tensors model\.diffusion_model\.\*: give"),
    ],
)
def test_wrong_tensors_are_listed_and_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    tensors = tiny_tensors(0, blocks=1)
    change(tensors)
    path = written(tmp_path / "unet.safetensors", tensors)
    with pytest.raises(UserError, match=words) as caught:
        load_unet(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Wrong files


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "unet.pt"
    torch.save({"module": tiny_tensors(0, blocks=1), "more": Hostile(mark)}, path)
    with pytest.raises(
        UserError, match=r"unet\.pt holds more than tensors \(\w+\.mkdir\); nothing in it was run: give"
    ) as caught:
        load_unet(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # shows that the pickle would have done it
    assert mark.is_dir()


def test_tensors_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    """A view of one number can have any shape: small files that would be written out as terabytes."""
    path, tensors = tmp_path / "unet.pt", tiny_tensors(0, blocks=1)
    wide = {name: torch.zeros(()).half().expand([30 * side for side in each.shape]) for name, each in tensors.items()}
    torch.save({"module": wide}, path)
    assert path.stat().st_size < 10**6
    with pytest.raises(UserError, match=r"unet\.pt has \d+ bytes, but its tensors \d+: give a file in which none"):
        load_unet(path)


def test_other_objects_are_refused_but_plain_values_are_not(tmp_path: Path) -> None:
    path = tmp_path / "unet.pt"
    torch.save({"module": tiny_tensors(0, blocks=1), "args": argparse.Namespace(fp16=True)}, path)
    with pytest.raises(UserError, match=r"more than tensors \(argparse\.Namespace\)"):
        load_unet(path)
    torch.save({"module": tiny_tensors(0, blocks=1), "iteration": 1, "names": ["a"], "rate": None}, path)
    load_unet(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged, or no file that torch.save writes"),
        (b"<html>not found</html>" * 99, "is damaged, or no file that torch.save writes"),
        ({"state_dict": {}}, "has no dictionary 'module': give the release's mp_rank_00"),
        ([1, 2], "has no dictionary 'module'"),
        ({"module": {"a": 1}}, "'a' is no tensor of floating-point numbers"),
        ({"module": {1: torch.zeros(2)}}, "1 is no tensor of floating-point numbers"),
        ({"module": {}}, "has no tensors model.diffusion_model"),
        ({"module": {f"{PREFIX}out.2.bias": torch.zeros(4)}}, "not the release's structure: its input_blocks are not"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "unet.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=words) as caught:
        load_unet(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files_are_refused(tiny: Path, tmp_path: Path, suffix: str, share: float) -> None:
    whole = tiny / "1" / "mp_rank_00_model_states.pt"
    if suffix == ".safetensors":
        whole = written(tmp_path / "whole.safetensors", tiny_tensors(0, blocks=1))
    data = whole.read_bytes()
    path = tmp_path / f"unet{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=rf"unet{suffix} is damaged,? .*download it again"):
        load_unet(path)


@pytest.mark.parametrize(
    ("latest", "words"),
    [
        (None, "has no file 'latest' that names the iteration: give the folder that has it"),
        (b"2", "latest names iteration '2', but there is no .*mp_rank_00_model_states.pt: download"),
        (b"", "latest names no iteration but ''"),
        (b"../1", r"latest names no iteration but '\.\./1'"),
        (b"\xff\xfe\n\n1", "latest names no iteration"),
        (b"1\n", None),
    ],
)
def test_folders(tmp_path: Path, latest: bytes | None, words: str | None) -> None:
    folder = write_release(tmp_path / "unet", tiny_tensors(0, blocks=1))
    (folder / "latest").unlink()
    if latest is not None:
        (folder / "latest").write_bytes(latest)
    if words is None:
        load_unet(folder)
        return
    with pytest.raises(UserError, match=words):
        load_unet(folder)


def test_missing_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none does not exist: give a UNet's folder"):
        load_unet(tmp_path / "none")
    with pytest.raises(UserError, match=r"none does not exist: give the weights' file"):
        load_vae(tmp_path / "none")


# VAE


@pytest.fixture
def vae() -> AutoencoderKL:
    """SDXL's structure at toy width."""
    torch.manual_seed(0)
    config = vae_config_of(
        {
            **{f"encoder.down.{level}.block.0.conv1.bias": (width,) for level, width in enumerate((32, 32, 64, 96))},
            "encoder.down.0.block.1.conv1.bias": (32,),
            "encoder.conv_in.weight": (32, 3, 3, 3),
            "decoder.conv_out.bias": (3,),
            "post_quant_conv.bias": (4,),
        }
    )
    return AutoencoderKL(**config).eval()


def test_vae_names_are_those_that_diffusers_converts(vae: AutoencoderKL, tmp_path: Path) -> None:
    save_vae(vae, tmp_path / "sdxl_vae.safetensors")
    tensors = load_file(tmp_path / "sdxl_vae.safetensors")
    assert tensors["decoder.mid.attn_1.proj_out.weight"].shape == (96, 96, 1, 1)
    reference = convert_ldm_vae_checkpoint(dict(tensors), vae.config)
    state = vae.state_dict()
    assert reference.keys() == state.keys()
    loaded = load_vae(tmp_path / "sdxl_vae.safetensors")
    assert loaded.config.scaling_factor == 0.13025
    assert loaded.config.force_upcast
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, reference[name]), name
        assert torch.equal(tensor, state[name]), name


def test_the_full_vae_is_sdxls() -> None:
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
    }
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    shapes = {vae_name(name, 4): tensor.shape for name, tensor in vae.state_dict().items()}
    found = vae_config_of(shapes)
    assert {key: found[key] for key in config} == config
    with torch.device("meta"):
        assert sum(each.numel() for each in AutoencoderKL(**found).parameters()) == 83_653_863


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensors: tensors.pop("quant_conv.bias"),
            r"no VAE of the release: tensors 1 missing \(quant_conv\.bias\)",
        ),
        (lambda tensors: tensors.update(more=torch.zeros(1)), r"1 unexpected \(more\)"),
        (
            lambda tensors: tensors.update({"decoder.mid.attn_1.q.weight": torch.zeros(96, 96)}),
            r"1 misshapen \(decoder\.mid\.attn_1\.q\.weight is \(96, 96\), not \(96, 96, 1, 1\)\)",
        ),
        (lambda tensors: tensors.pop("encoder.conv_in.weight"), r"structure: it lacks encoder\.conv_in\.weight"),
        (lambda tensors: tensors.clear(), r"structure: it has no encoder\.down\.0\.block"),
    ],
)
def test_wrong_vaes_are_refused(vae: AutoencoderKL, tmp_path: Path, change: Callable[[dict], Any], words: str) -> None:
    path = tmp_path / "sdxl_vae.safetensors"
    save_vae(vae, path)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match=words):
        load_vae(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scaling_factor": 0.18215}, r"scaling_factor 0\.18215 \(they imply 0\.13025\)"),
        ({"mid_block_add_attention": False}, r"mid_block_add_attention False .*tensor encoder\.mid_block\.attentions"),
        ({"norm_num_groups": 16}, r"norm_num_groups 16"),
    ],
)
def test_vaes_that_the_releases_files_cannot_hold_are_refused(
    vae: AutoencoderKL, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    other = AutoencoderKL(**{**vae.config, **changes})
    with pytest.raises(UserError, match=words):
        save_vae(other, tmp_path / "sdxl_vae.safetensors")
    assert list(tmp_path.iterdir()) == []


# Component folders


def test_damaged_component_folders_are_refused(tiny: Path, tmp_path: Path) -> None:
    write_component(load_unet(tiny), tmp_path / "unet", shard="5MB")
    first = min((tmp_path / "unet").glob("*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=r"unet cannot be loaded \(.*Missing key.*\): copy or export the model again"):
        read_component(UNet2DConditionModel, tmp_path / "unet")
    first.write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"{tmp_path / 'unet'} cannot be loaded"):
        read_component(UNet2DConditionModel, tmp_path / "unet")
