"""Checks of LoRA adapters before a network takes them: what does not fit is refused, neither left out nor made up."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

from cogview3.config import UserError

_WEIGHTS = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora_magnitude_vector.weight")
_NUMBERS = {"r": 1, "lora_alpha": -math.inf}
"""Numbers of an adapter's configuration, and how much they are at least."""
_OTHER_CHANGES = ("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters")
"""Entries of an adapter's configuration that change more of a network than an adapter does."""


def check_layers(component: str, network: torch.nn.Module, layers: Mapping[str, torch.Tensor]) -> None:
    """Refuse an adapter that does not fit a network.

    Args:
        component: the network's name, for errors.
        network: a UNet, which may have adapters already.
        layers: the adapter's weights by peft's names, without the component's.

    Raises:
        UserError: naming a weight that is none of an adapter's, half a pair, for a module that the network lacks, or
            of other shapes or numbers than it takes.
    """
    places: dict[str, dict[str, torch.Tensor]] = {}
    for key, weight in layers.items():
        _check_numbers(f"{component}.{key}", weight)
        place, dot, kind = key.rpartition(".lora_")
        if ".lokr_" in key:  # factors of another kind, for peft to take
            continue
        if not dot or f"lora_{kind}" not in _WEIGHTS:
            raise UserError(f"the LoRA's {component}.{key} is no weight of an adapter: remove it, or save it again")
        places.setdefault(place, {})[f"lora_{kind}"] = weight
    modules = dict(network.named_modules())
    for place, weights in places.items():
        for needed in _WEIGHTS[:2]:
            if needed not in weights:
                raise UserError(f"the LoRA has no {component}.{place}.{needed}: copy or save it again")
        module = modules.get(place)
        target = getattr(getattr(module, "base_layer", module), "weight", None)
        if target is None or target.ndim < 2:
            raise UserError(f"the LoRA is for {component}.{place}, which this model does not have: give one of its own")
        down, up = (tuple(weights[name].shape) for name in _WEIGHTS[:2])
        rank = down[:1]
        wanted = rank + target.shape[1:], target.shape[:1] + rank + (1,) * (target.ndim - 2)
        if rank in ((), (0,)) or (down, up) != tuple(map(tuple, wanted)):
            raise UserError(
                f"the LoRA's pair for {component}.{place} is {down} and {up}, which does not fit "
                f"{tuple(target.shape)}: give an adapter of this model"
            )


def check_alphas(alphas: Mapping[str, Any]) -> None:
    """Refuse the alphas of an adapter, by names, that are no scale. Raises UserError."""
    for name, alpha in alphas.items():
        if not _is_scale(alpha):
            raise UserError(f"the LoRA's {name} is {alpha!r}: give it a finite number other than 0")


def check_settings(settings: Any) -> None:
    """Refuse an adapter's configuration, as its file stores it, that is none. Raises UserError."""
    if not isinstance(settings, Mapping):
        raise UserError(f"the LoRA's metadata is a {type(settings).__name__}: save it again, or remove its metadata")
    for key, value in settings.items():
        name = str(key).rpartition(".")[2]
        if name in _OTHER_CHANGES and value:
            raise UserError(f"the LoRA's {key} is {value!r}: save it without, adapters alone are loaded")
        if name in _NUMBERS and not (_is_scale(value) and value >= _NUMBERS[name]):
            raise UserError(f"the LoRA's {key} is {value!r}: give it a finite number other than 0")


def _check_numbers(name: str, weight: Any) -> None:
    if not isinstance(weight, torch.Tensor):
        raise UserError(f"the LoRA's {name} is a {type(weight).__name__}: give a tensor")
    if not weight.is_floating_point():
        raise UserError(f"the LoRA's {name} holds {weight.dtype} numbers: save it in floats")
    if weight.is_meta or not weight.float().isfinite().all():
        raise UserError(f"the LoRA's {name} holds undefined numbers: copy it, or train it again")


def _is_scale(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value != 0
