"""Components in diffusers' format, read and written tensor by tensor, so that large ones need little memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cogview3.config import UserError
from cogview3.errors import one_line
from cogview3.models.light import LatentEnlarger, LightDecoder

_WEIGHTS = "diffusion_pytorch_model"

Component = TypeVar("Component", AutoencoderKL, UNet2DConditionModel, LatentEnlarger, LightDecoder)


def untrained(kind: type[Component], folder: Path) -> Component:
    """A network of the configuration in its folder, with weights as they are drawn."""
    config: Any = kind.load_config(str(folder))
    component = kind.from_config(config)
    assert isinstance(component, kind)
    return component


def read_component(kind: type[Component], folder: Path) -> Component:
    """A UNet or VAE from its folder, its tensors memory-mapped and in the formats that they are stored in.

    Raises UserError where tensors are missing, unexpected or misshapen, or a file is damaged.
    """
    try:
        with torch.device("meta"):
            component = untrained(kind, folder)
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors.update(load_file(file))
        component.load_state_dict(tensors, assign=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = one_line(error, 300)
        raise UserError(f"{folder} cannot be loaded ({reason}): copy or export the model again") from None
    component.eval()
    return component


def write_component(
    component: UNet2DConditionModel | AutoencoderKL, folder: Path, dtype: torch.dtype | None = None, shard: str = "1GB"
) -> None:
    """Write a UNet or VAE as diffusers does, converting one file's tensors at a time.

    Args:
        component: its tensors may be memory-mapped.
        folder: where to; must not exist yet.
        dtype: number format of the files; None leaves each tensor's own.
        shard: size of one file at most, which is also what is held in memory.

    Raises:
        UserError: a number is not finite, or too large for `dtype`.
    """
    folder.mkdir(parents=True)
    component.save_config(folder)
    state = component.state_dict()
    sizes = {name: torch.empty_like(tensor, device="meta", dtype=dtype) for name, tensor in state.items()}
    pattern = f"{_WEIGHTS}{{suffix}}.safetensors"
    plan = split_torch_state_dict_into_shards(sizes, filename_pattern=pattern, max_shard_size=shard)
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: in_format(f"{folder.name}: {name}", state[name], dtype) for name in names}
        save_file(unshared(tensors), folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{_WEIGHTS}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, each with memory of its own, which safetensors asks for; copied only where they share."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def in_format(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The tensor in another number format, or as it is for None; `name` is for the error.

    Raises UserError where a number is not finite, or too large for the format.
    """
    converted = tensor.detach().to(dtype=dtype or tensor.dtype)
    if torch.isfinite(converted).all():
        return converted
    if torch.isfinite(tensor).all():
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"{name} holds a number too large for {kind}: choose --dtype bfloat16 or float32")
    raise UserError(f"{name} holds numbers that are not finite: the weights are damaged, download them again")
