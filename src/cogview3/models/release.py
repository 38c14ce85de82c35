"""Networks of the published release <-> diffusers' networks, strict both ways."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.torch import save_file

from cogview3.config import UserError
from cogview3.models.component_folders import in_format, unshared
from cogview3.models.release_files import check_tensors, find_unet_file, listing, read_tensors, write_unet_file
from cogview3.models.release_names import Shapes, unet_config_of, unet_name, vae_config_of, vae_name

PREFIX = "model.diffusion_model."

# Entries that the files do not hold, or that can be written in several ways for one network.
_FREE = {
    *("sample_size", "force_upcast", "attention_head_dim", "num_attention_heads"),
    *("layers_per_block", "transformer_layers_per_block"),
}


def load_unet(path: str | Path, head_dim: int = 64, sample_size: int = 64) -> UNet2DConditionModel:
    """A UNet of the published release.

    Its tensors stay as they are stored, memory-mapped: they take memory once they are used.

    Args:
        path: the folder with `latest`, the .pt file that it leads to, or a .safetensors file of the same names.
        head_dim: channels of an attention head, which no tensor tells; 64 in the release.
        sample_size: side of the latents that the stage draws by default; 64 for the release's base, 128 for its
            relay.

    Raises:
        UserError: no such file, a damaged or a foreign one; missing, unexpected or misshapen tensors are counted
            and the first ones listed.
    """
    file = find_unet_file(Path(path))
    found = read_tensors(file)
    shapes = {name.removeprefix(PREFIX): tensor.shape for name, tensor in found.items() if name.startswith(PREFIX)}
    if not shapes:
        raise UserError(f"{file} has no tensors {PREFIX}*: give the file of a UNet of the release")
    config = _config(file, unet_config_of, shapes, head_dim) | {"sample_size": sample_size}
    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel(**config)
    names = _unet_names(unet)
    expected = {names[name]: tensor.shape for name, tensor in unet.state_dict().items()}
    check_tensors(file, expected, found, "UNet")
    unet.load_state_dict({ours: found[theirs] for ours, theirs in names.items()}, assign=True)
    unet.eval()
    return unet


def load_vae(path: str | Path) -> AutoencoderKL:
    """The VAE of the published release, SDXL's, from `sdxl_vae.safetensors`; tensors stay memory-mapped.

    Raises UserError as `load_unet`.
    """
    file = Path(path)
    found = read_tensors(file)
    config = _config(file, vae_config_of, {name: tensor.shape for name, tensor in found.items()})
    with torch.device("meta"):
        vae: AutoencoderKL = AutoencoderKL(**config)
    state, names = vae.state_dict(), _vae_names(vae)
    expected = {theirs: _as_convolution(theirs, state[ours]).shape for ours, theirs in names.items()}
    check_tensors(file, expected, found, "VAE")
    tensors = {ours: found[theirs].reshape(state[ours].shape) for ours, theirs in names.items()}
    vae.load_state_dict(tensors, assign=True)
    vae.eval()
    return vae


def save_unet(unet: UNet2DConditionModel, folder: Path, dtype: torch.dtype | None = None, head_dim: int = 64) -> None:
    """Write a UNet as the release does: `folder`/latest and `folder`/1/mp_rank_00_model_states.pt.

    Args:
        unet: of the release's structure, at any width.
        folder: where to; must not exist yet.
        dtype: number format of the file; None leaves each tensor's own.
        head_dim: channels of its attention heads.

    Raises:
        UserError: reading the file again would not give this network.
    """
    state, names = unet.state_dict(), _unet_names(unet)
    shapes = {theirs.removeprefix(PREFIX): state[ours].shape for ours, theirs in names.items()}
    with torch.device("meta"):
        again = UNet2DConditionModel(**_config(folder, unet_config_of, shapes, head_dim))
    _require_same(folder, unet, again)
    write_unet_file(
        folder, {theirs: in_format(f"{folder.name}: {ours}", state[ours], dtype) for ours, theirs in names.items()}
    )


def save_vae(vae: AutoencoderKL, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write a VAE under its original names as a .safetensors file.

    Raises:
        UserError: reading the file again would not give this network.
    """
    state, names = vae.state_dict(), _vae_names(vae)
    tensors = {theirs: _as_convolution(theirs, state[ours]) for ours, theirs in names.items()}
    config = _config(path, vae_config_of, {name: tensor.shape for name, tensor in tensors.items()})
    with torch.device("meta"):
        again = AutoencoderKL(**config)
    _require_same(path, vae, again)
    save_file(
        unshared({name: in_format(f"{path.name}: {name}", tensor, dtype) for name, tensor in tensors.items()}), path
    )


def _config(place: Path, of: Callable[..., dict[str, Any]], shapes: Shapes, *arguments: Any) -> dict[str, Any]:
    """What `of` reads off the shapes; its error names the file."""
    try:
        return of(shapes, *arguments)
    except UserError as error:
        raise UserError(f"{place} has not the release's structure: {error}; give a network of the release") from None


def _unet_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """The file's names of all parameters, by diffusers'."""
    layers = sum(1 for _ in unet.down_blocks[0].get_submodule("resnets").children())
    attended = [hasattr(block, "attentions") for block in unet.up_blocks]
    return {name: PREFIX + unet_name(name, layers, attended) for name in unet.state_dict()}


def _vae_names(vae: AutoencoderKL) -> dict[str, str]:
    levels = len(vae.config["block_out_channels"])
    return {name: vae_name(name, levels) for name in vae.state_dict()}


def _as_convolution(theirs: str, tensor: torch.Tensor) -> torch.Tensor:
    """The VAE's attention has 1 x 1 convolutions where diffusers has linear layers."""
    return tensor[:, :, None, None] if ".attn_1." in theirs and tensor.ndim == 2 else tensor


def _require_same(place: Path, network: Any, again: Any) -> None:
    """Refuse a network that differs from the one that the release's files of its shapes imply.

    Raises UserError naming the entries of the configuration, or the tensors.
    """
    faults = [
        f"{key} {value} (they imply {implied})" for key, value, implied in _differences(_facts(network), _facts(again))
    ]
    shapes, implied_shapes = (
        {name: tensor.shape for name, tensor in each.state_dict().items()} for each in (network, again)
    )
    faults += [f"tensor {name}" for name, _, _ in _differences(shapes, implied_shapes)]
    if faults:
        raise UserError(
            f"{place.name}: the release's files cannot hold {listing(faults)}; "
            "only networks of the release's structure convert to it"
        )


def _facts(network: UNet2DConditionModel | AutoencoderKL) -> dict[str, Any]:
    """What defines a network beside its tensors' shapes."""
    # Through JSON, since a configuration's lists and tuples mean the same.
    config = json.loads(json.dumps(dict(network.config), default=str))
    facts = {key: value for key, value in config.items() if not key.startswith("_") and key not in _FREE}
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    return facts | {"channels a head": sorted({each.to_q.out_features // each.heads for each in attentions})}


def _differences(ours: dict[str, Any], implied: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = [*ours, *(name for name in implied if name not in ours)]
    return [(name, ours.get(name), implied.get(name)) for name in names if ours.get(name) != implied.get(name)]
