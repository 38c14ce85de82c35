"""Networks that were built, loaded, tried or estimated before in this session: copied, in a fraction of the time."""

import copy
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from cogview3.generation import memory
from cogview3.generation.memory import Picture
from cogview3.models.trial import try_network

KINDS = ("UNet2DConditionModel", "AutoencoderKL", "T5EncoderModel", "LatentEnlarger", "LightDecoder")
"""Classes whose objects hold nothing but modules, tensors and plain values."""

MOST = 16
"""Loaded networks that are kept."""

LARGEST = 2**25
"""Bytes of a folder that is loaded only once."""


def copy_of(network: nn.Module, copies: dict[int, Any] | None = None) -> Any:
    """A copy with tensors of its own, quicker than `copy.deepcopy`.

    Args:
        network: of one of `KINDS`, on the CPU.
        copies: those of modules, tensors and configurations so far, by the originals' ids: what is shared stays so.
    """
    copies = {} if copies is None else copies
    if id(network) in copies:
        return copies[id(network)]
    copies[id(network)] = copied = network.__new__(type(network))
    state = vars(copied)
    for name, value in vars(network).items():
        state[name] = value.copy() if type(value) in (dict, list, set, OrderedDict) else value
        if isinstance(value, PreTrainedConfig):
            if id(value) not in copies:
                copies[id(value)] = copy.deepcopy(value)
            state[name] = copies[id(value)]
    for name in ("_parameters", "_buffers"):
        for key, tensor in state[name].items():
            if tensor is not None and id(tensor) not in copies:
                own = tensor.detach().clone()
                copies[id(tensor)] = own if name == "_buffers" else nn.Parameter(own, tensor.requires_grad)
            state[name][key] = copies.get(id(tensor))
    for key, module in network._modules.items():
        state["_modules"][key] = module if module is None else copy_of(module, copies)
    return copied


# Built

_BUILT: dict[str, tuple[nn.Module, Tensor]] = {}


def built_once(key: str, build: Callable[[], nn.Module]) -> Any:
    """A copy of what `build` makes, with torch's random numbers where they are after building."""
    if key not in _BUILT:
        _BUILT[key] = build(), torch.get_rng_state()
    network, state = _BUILT[key]
    torch.set_rng_state(state)
    return copy_of(network)


# Tried

_TRIED: set[bytes] = set()


def try_once(network: nn.Module, source: object) -> None:
    """`try_network`, which runs every network that is loaded: of those that are equal the first."""
    key = _fingerprint(network)
    if key not in _TRIED:
        try_network(network, source)
        if key is not None:
            _TRIED.add(key)


def _fingerprint(network: Any) -> bytes | None:
    """A hash of a network's kind, configuration and numbers; None of large ones, and of tensors not on the CPU."""
    if type(network).__name__ not in KINDS or sum(each.numel() for each in network.parameters()) > 10**6:
        return None
    config = network.config.to_dict() if isinstance(network.config, PreTrainedConfig) else network.config
    parts = sorted((name, value) for name, value in config.items() if not name.startswith("_"))
    found = hashlib.sha256(repr((type(network), parts)).encode())
    for name, tensor in network.state_dict().items():
        if type(tensor) is not Tensor or tensor.device.type != "cpu":
            return None
        found.update(repr((name, tensor.dtype, tensor.shape)).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.digest()


# Estimated

PEAKS: dict[str, Callable[..., int]] = {
    name: getattr(memory, name) for name in ("_unet_peak", "_vae_peak", "_light_peak")
}
_PEAKS: dict[str, int] = {}


def peak_once(peak: Callable[..., int], network: Any, size: tuple[int, int], *given: Any) -> int:
    """One of `PEAKS`, computed once for equal networks and arguments.

    Of the picture only what says how a network is called counts, not which ones are and at what `size`.
    """
    config = sorted((name, value) for name, value in network.config.items() if not name.startswith("_"))
    plain = {"height": None, "width": None, "relays": None, "light": None, "upscale": False, "encoded": True}
    called = [replace(each, **plain) if isinstance(each, Picture) else each for each in given]
    key = repr((peak.__name__, type(network), next(network.parameters()).dtype, config, size, called))
    if key not in _PEAKS:
        _PEAKS[key] = peak(network, size, *given)
    return _PEAKS[key]


# Loaded

_LOADED: dict[str, nn.Module] = {}


def keep_loaded() -> None:
    """Have diffusers and transformers load folders of equal content once; later networks are copies of the first."""
    for library in (ModelMixin, PreTrainedModel):
        method = library.__dict__["from_pretrained"].__func__
        if not hasattr(method, "kept"):
            library.from_pretrained = classmethod(_loaded_once(method))  # type: ignore[method-assign, assignment]


def _loaded_once(load: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(kind: type[nn.Module], folder: Any = None, *given: Any, **options: Any) -> Any:
        key = None if given else _key(kind, folder, options)
        if key is None:
            return load(kind, folder, *given, **options)
        if key not in _LOADED:
            network = load(kind, folder, **options)
            if all(type(each.data) is Tensor and each.device.type == "cpu" for each in network.parameters()):
                _LOADED[key] = copy_of(network)
                for oldest in list(_LOADED)[:-MOST]:
                    del _LOADED[oldest]
            return network
        _LOADED[key] = _LOADED.pop(key)
        network = copy_of(_LOADED[key])
        if isinstance(network, PreTrainedModel):
            network.name_or_path = network.config._name_or_path = str(folder)
        else:
            network.register_to_config(_name_or_path=folder)
        return network

    from_pretrained.kept = load  # type: ignore[attr-defined]
    return from_pretrained


def _key(kind: type[nn.Module], folder: Any, options: dict[str, Any]) -> str | None:
    """What a loaded network depends on; None where it is not to be kept."""
    said = repr(sorted(options.items(), key=lambda option: option[0]))
    if kind.__name__ not in KINDS or " at 0x" in said or "output_loading_info" in options:
        return None
    if options.get("device_map") is not None or options.get("quantization_config") is not None:
        return None
    path = Path(folder or "", options.get("subfolder") or "")
    if not folder or not path.is_dir():
        return None
    files = sorted(Path(each.path) for each in os.scandir(path) if each.is_file())
    if sum(file.stat().st_size for file in files) > LARGEST:
        return None
    found = hashlib.sha256(repr((kind, said)).encode())
    for file in files:
        content = file.read_bytes()
        found.update(repr((file.name, len(content))).encode() + content)
    return found.hexdigest()
