"""UNets stored in a byte a weight: int8 with one scale an output channel, in a safetensors file of their own.

A component's folder then holds `weights_int8.safetensors` instead of `diffusion_pytorch_model.safetensors`. Of
every tensor W of two dimensions and more it has `NAME`, int8 from -127 to 127, and `NAME.int8_scale`, float32 (out,):
W = NAME * scale, the scale of output channel c being max |W_c| / 127, or 1 where all is 0. All else, biases and norms,
is float16. Weights are turned back when they are read; arithmetic is that of the number format asked for.
"""

from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cogview3.config import UserError
from cogview3.errors import one_line
from cogview3.models.component_folders import untrained
from cogview3.models.trial import try_network
from cogview3.references import INT8_FILE

SCALE = ".int8_scale"
_LAYOUT = {"layout": "int8, one scale an output channel", "version": "1"}
_LIMIT = 127


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and the float32 scale of each output channel (out,) of a weight (out, ...) of any float format."""
    weight = weight.detach().float().cpu()
    largest = weight.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / _LIMIT, torch.ones_like(largest))
    return (weight / _over(scale, weight)).round().clamp(-_LIMIT, _LIMIT).to(torch.int8), scale


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """The weight, float32, of int8 values (out, ...) and scales (out,)."""
    return values.float() * _over(scale, values)


def save_int8(network: UNet2DConditionModel, folder: Path) -> None:
    """Write a network's configuration and its weights, as above, into a folder, which is made where it is missing."""
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if value.dim() > 1:
            tensors[name], tensors[name + SCALE] = quantize(value)
        else:
            tensors[name] = value.half().cpu().contiguous()
    network.save_config(folder)
    save_file(tensors, folder / INT8_FILE, metadata=_LAYOUT)


def load_unet(folder: Path, dtype: torch.dtype = torch.float32, variant: str | None = None) -> UNet2DConditionModel:
    """A UNet of a component's folder, whether its weights are stored as floats or as above, in evaluation mode.

    Raises:
        UserError: int8 weights of another layout than the network's or this module's, damaged or not alone; a network
            that cannot compute.
        OSError, ValueError, RuntimeError, SafetensorError: diffusers' own, of other weights.
    """
    path = folder / INT8_FILE
    if not path.is_file():
        unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(
            str(folder), torch_dtype=dtype, use_safetensors=True, variant=variant, local_files_only=True
        )
        try_network(unet, folder)
        return unet
    if others := sorted(set(folder.glob("*.safetensors")) - {path}):
        raise UserError(f"{folder} holds {INT8_FILE} and {others[0].name}; keep one of them")
    with torch.device("meta"):  # a configuration of another size then costs no memory
        network = untrained(UNet2DConditionModel, folder)
    weights = _read(path, {name: value.shape for name, value in network.state_dict().items()})
    network.load_state_dict(weights, assign=True)
    try_network(network, folder)
    nn.Module.to(network, dtype)  # diffusers' own warns of networks that need float32, whatever they are
    network.eval()
    return network


def _read(path: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The weights of a file, by name, which must be of these shapes and of our layout."""
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() != _LAYOUT:
                raise _refused(path, f"its layout is {file.metadata()}")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dictionary
    except (SafetensorError, OSError) as error:
        raise _refused(path, one_line(error)) from None
    wanted = shapes.keys() | {name + SCALE for name, shape in shapes.items() if len(shape) > 1}
    if names := sorted(wanted ^ stored.keys()):
        kind = "lacks" if names[0] in wanted else "has besides"
        raise _refused(path, f"it {kind} {names[0]}")
    return {name: _checked(path, name, shape, stored) for name, shape in shapes.items()}


def _checked(path: Path, name: str, shape: torch.Size, stored: dict[str, Tensor]) -> Tensor:
    value, scale = stored[name], stored.get(name + SCALE)
    if value.shape != shape:
        raise _refused(path, f"{name} is {list(value.shape)}, not {list(shape)}")
    if value.dtype != (torch.float16 if scale is None else torch.int8):
        raise _refused(path, f"{name} is {value.dtype}")
    if scale is None:
        return value.float()
    if scale.dtype != torch.float32 or scale.shape != shape[:1]:
        raise _refused(path, f"{name + SCALE} is {scale.dtype} {list(scale.shape)}, not float32 {list(shape[:1])}")
    if not (scale.isfinite().all() and (scale > 0).all()) or (value == -_LIMIT - 1).any():
        raise _refused(path, f"{name} has values outside -{_LIMIT} to {_LIMIT}, or scales that are no positive number")
    return dequantize(value, scale)


def _over(scale: Tensor, values: Tensor) -> Tensor:
    """Scales (out,) that multiply values (out, ...)."""
    return scale.view(-1, *[1] * (values.dim() - 1))


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is no int8 UNet of this network ({reason}); export the model again")
