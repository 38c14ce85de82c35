"""LoRA adapters for the base and the relay UNet, in diffusers' file format."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from cogview3.config import UserError
from cogview3.errors import as_user_error
from cogview3.generation.adapters import check_alphas, check_layers, check_settings


class RelayLoraMixin(LoraBaseMixin):
    """Loads and saves adapters; `set_adapters`, `fuse_lora` and the like are diffusers' own.

    A file's names start with the component that they belong to: `unet.` (what other trainers write) for the
    base, `relay_unet.` for the relay.
    """

    _lora_loadable_modules: list[str] = ["unet", "relay_unet"]  # noqa: RUF012, as diffusers declares it
    unet_name = "unet"
    lora_state_dict = StableDiffusionLoraLoaderMixin.lora_state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load adapters into the UNets that the file names.

        Args:
            pretrained_model_name_or_path_or_dict: a folder with `weight_name` inside, a file, a hub name, or
                a state dictionary.
            adapter_name: name to address the adapter by.
            kwargs: `weight_name`, `subfolder`, `revision`, ... as for any diffusers pipeline.

        Raises:
            UserError: nothing to read, a damaged file, or an adapter that does not fit: before any UNet has taken it.
        """
        given = pretrained_model_name_or_path_or_dict
        if not isinstance(given, dict | str | os.PathLike):
            raise UserError(f"the LoRA is a {type(given).__name__}: give a path, or a dictionary of tensors")
        source = dict(given) if isinstance(given, dict) else os.fspath(given)
        if adapter_name is not None and (not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name):
            raise UserError(f"adapter_name is {adapter_name!r}: give a name without dots, or none")
        shown = "the LoRA" if isinstance(source, dict) else f"the LoRA {source}"
        named = kwargs.get("weight_name") or source
        kwargs.setdefault("use_safetensors", not str(named).endswith(".bin"))  # torch's own format: tensors alone
        with as_user_error(shown, "cannot be read; give an adapter's file"):
            state, alphas, metadata = self.lora_state_dict(source, return_lora_metadata=True, **kwargs)
            own = tuple(f"{name}." for name in self._lora_loadable_modules)
            wrong = [key for key in state if not key.startswith(own)]
        if wrong or not state:
            prefixes = sorted({key.split(".", 1)[0] for key in wrong}) or ["nothing"]
            raise UserError(
                f"not a LoRA of this model: names start with {', '.join(prefixes[:3])}, "
                f"not with {' or '.join(self._lora_loadable_modules)}: give one of this model's UNets alone"
            )
        alphas = dict(alphas or {}) | {key: float(state.pop(key)) for key in list(state) if key.endswith(".alpha")}
        check_alphas(alphas)
        if metadata is not None:
            check_settings(metadata)
        layers = {name: self._layers_of(name, state) for name in sorted(self._lora_loadable_modules)}
        layers = {name: weights for name, weights in layers.items() if weights}
        for name in layers:
            if getattr(self, name) is None:
                raise UserError(f"the LoRA is for {name}, which this pipeline does not have: load the complete model")
        for name, weights in layers.items():
            check_layers(name, getattr(self, name), weights)
        for name, weights in layers.items():
            with as_user_error(shown, "is damaged or does not fit this model"):
                getattr(self, name).load_lora_adapter(
                    {f"{name}.{key}": weight for key, weight in weights.items()},
                    prefix=name,
                    network_alphas=alphas,
                    adapter_name=adapter_name,
                    metadata=metadata,
                    _pipeline=self,
                )

    @staticmethod
    def _layers_of(name: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights for one component by peft's names, without the component's."""
        own = {key.removeprefix(f"{name}."): weight for key, weight in state.items() if key.startswith(f"{name}.")}
        layers: dict[str, torch.Tensor] = convert_unet_state_dict_to_peft(own)
        return layers

    def set_adapters(self, adapter_names: Sequence[str] | str, adapter_weights: Any = None) -> None:
        """As diffusers' own. Raises UserError for an adapter that is not loaded, or weights that are no numbers."""
        names = self._loaded(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise UserError(f"{len(weights)} weights for {len(names)} adapters: give one for each, or one for all")
        for weight in weights:
            _check_scale("adapter_weights", weight)
        super().set_adapters(names, weights)

    def delete_adapters(self, adapter_names: Sequence[str] | str) -> None:
        """As diffusers' own. Raises UserError for an adapter that is not loaded."""
        super().delete_adapters(self._loaded(adapter_names))

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """As diffusers' own; `components` are by default all UNets that have adapters.

        Raises UserError where there are none, and for another component, adapter or scale.
        """
        chosen = self._adapted(components)
        _check_scale("lora_scale", lora_scale)
        names = None if adapter_names is None else self._loaded(adapter_names)
        super().fuse_lora(chosen, lora_scale, safe_fusing, names, **kwargs)

    def unfuse_lora(self, components: Sequence[str] | None = None, **kwargs: Any) -> None:
        """As diffusers' own; `components` as in `fuse_lora`."""
        super().unfuse_lora(self._adapted(components), **kwargs)

    def _adapted(self, asked: Sequence[str] | None) -> list[str]:
        """UNets with adapters, or those of them that are asked for. Raises UserError where there are none."""
        known = self._lora_loadable_modules
        components = [asked] if isinstance(asked, str) else known if asked is None else list(asked)
        if wrong := [name for name in components if name not in known]:
            raise UserError(f"components has {wrong[0]!r}: choose from {', '.join(known)}")
        found = [name for name in components if getattr(getattr(self, name, None), "peft_config", None)]
        if not found:
            raise UserError("no LoRA is loaded: call load_lora_weights first")
        return found

    def _loaded(self, asked: Any) -> list[str]:
        """Names of adapters. Raises UserError where one of them is not loaded, or none is given."""
        names = [asked] if isinstance(asked, str) else asked
        known = sorted({name for each in self.get_list_adapters().values() for name in each})
        if not isinstance(names, list | tuple) or not names or any(name not in known for name in names):
            raise UserError(
                f"adapter_names is {asked!r}: choose from those loaded, {', '.join(known) or 'none so far'}"
            )
        return list(names)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: dict[str, torch.Tensor] | None = None,
        relay_unet_lora_layers: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., None] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: dict[str, Any] | None = None,
        relay_unet_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Write adapters, as diffusers' pipelines do. Raises UserError where neither is given.

        Args:
            save_directory: folder to write into, made if need be.
            unet_lora_layers, relay_unet_lora_layers: adapters, as `peft.get_peft_model_state_dict` gives them.
            is_main_process, weight_name, save_function, safe_serialization: as of diffusers' pipelines.
            unet_lora_adapter_metadata, relay_unet_lora_adapter_metadata: their `peft_config` as dictionaries; without
                it, alpha is read as the rank.
        """
        given = {"unet": unet_lora_layers, "relay_unet": relay_unet_lora_layers}
        layers: dict[str, dict[str, torch.nn.Module | torch.Tensor]] = {
            name: {**state} for name, state in given.items() if state
        }
        if not layers:
            raise UserError("no LoRA layers: give unet_lora_layers or relay_unet_lora_layers")
        metadata = {"unet": unet_lora_adapter_metadata, "relay_unet": relay_unet_lora_adapter_metadata}
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers=layers,
            lora_metadata=metadata,
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )


def _check_scale(name: str, scale: Any) -> None:
    """Refuse what is no finite number, in dictionaries by parts of a UNet as well. Raises UserError."""
    if isinstance(scale, Mapping | list | tuple):
        for each in scale.values() if isinstance(scale, Mapping) else scale:
            _check_scale(name, each)
    elif scale is not None and not (isinstance(scale, Real) and math.isfinite(scale)):
        raise UserError(f"{name} is {scale!r}: give a finite number, such as 0.8")
