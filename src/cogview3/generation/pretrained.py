"""Pipelines that load one mode of a model folder, and save it again."""

import inspect
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from cogview3.config import UserError
from cogview3.generation.loading import (
    check_component,
    check_model_folder,
    fetch_model,
    load_sampling,
    resolve_model,
    unloadable,
)
from cogview3.generation.modes import SAMPLING_FILE, Mode, Sampling, pick_mode, write_sampling
from cogview3.generation.scheduler import RelayScheduler
from cogview3.models.int8 import load_unet
from cogview3.models.unet import takes_guidance
from cogview3.prompts.text_models import check_folder, check_vocabulary, load_tokenizer

PIPELINE_CLASSES = ("CogView3Pipeline", "CogView3UpscalePipeline")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Arguments of `from_pretrained` that say how the hub is asked."""

_RELAY_SETTINGS = {
    "relay_start": "relay_start",
    "blur_estimate": "blur_estimate",
    "relay_power": "power",
    "relay_order": "solver_order",
}
"""Entries of a mode, and what the relay scheduler's configuration calls them."""

LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    SafetensorError,
    ImportError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
)
"""What diffusers and transformers raise on files that they cannot use."""


class ModePipeline(DiffusionPipeline):
    """A pipeline whose model folder may hold several modes, described by its `sampling.json`.

    Attributes:
        mode_name: name of the loaded mode, None for a model without `sampling.json`.
        mode: its step counts and guidance, used where a call leaves them unset.
    """

    mode_name: str | None = None
    mode: Mode = Mode()
    _required_components: ClassVar[tuple[str, ...]] = ()
    _skipped_components: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], mode: str | None = None, **kwargs: Any
    ) -> Self:
        """Load a model, with the UNets and settings of one of its modes.

        Args:
            pretrained_model_name_or_path: a bundled model's name ("scenes"), else a folder ("./scenes" is
                one), else a hub name.
            mode: a mode of the model's `sampling.json`, its default one if left out. Only that mode's UNets
                are read.
            kwargs: as for any diffusers pipeline. `dtype` is float32 by default, whatever the weights are
                stored in; float16 is for the UNets alone, since T5 and the VAE overflow in it: they get bfloat16,
                unless a dictionary says otherwise. Only safetensors are read. A `relay_scheduler` of the caller's
                is left as it is; a distilled mode is for its own.

        Raises:
            UserError: an unknown model or mode, a foreign or damaged folder, no number format, or what a mode with
                UNets of its own does not go together with.
        """
        source = resolve_model(pretrained_model_name_or_path)
        hub_options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        given_dtype = kwargs.pop("torch_dtype", None)
        dtype = _number_formats(given_dtype if kwargs.get("dtype") is None else kwargs["dtype"])
        kwargs["dtype"] = dtype
        kwargs.setdefault("use_safetensors", True)
        for name in cls._skipped_components:
            kwargs.setdefault(name, None)
        if not os.path.isdir(source):
            source = fetch_model(source, mode, kwargs, **hub_options)
        mode_name, entry = pick_mode(load_sampling(source), mode, str(pretrained_model_name_or_path))
        own = _own_unets(entry, kwargs)
        cls._check_folder(source, entry, kwargs)
        if entry.distilled and kwargs.get("relay_scheduler") is not None:
            raise UserError(f"relay_scheduler: mode {mode_name!r} is distilled for its own; leave it out")
        if own and (option := next((key for key in ("quantization_config", "device_map") if kwargs.get(key)), None)):
            raise UserError(
                f"{option} does not reach the UNets that mode {mode_name!r} has of its own; leave it out, and use "
                "to(DEVICE) or cogview3.generation.placement.quantize_network"
            )
        kwargs.update(load_mode_unets(source, entry, own, dtype, kwargs.get("variant")))
        if "tokenizer" not in kwargs and (Path(source) / "tokenizer").is_dir():  # encoders and tokenizers are optional
            kwargs["tokenizer"] = load_tokenizer(Path(source) / "tokenizer")
        try:
            pipeline = super().from_pretrained(source, **kwargs)
        except LOADING_ERRORS as error:
            raise unloadable(source, error) from error
        if not {"device_map", "quantization_config"} & kwargs.keys():
            for name, module in pipeline.components.items():
                if name not in kwargs and isinstance(module, torch.nn.Module):
                    check_weights_complete(source, name, module)
        parts = (getattr(pipeline, "tokenizer", None), getattr(pipeline, "text_encoder", None))
        if None not in parts:
            check_vocabulary(*parts, source)
        for name, guidance in (("unet", entry.guidance), ("relay_unet", entry.relay_guidance_scale)):
            unet = getattr(pipeline, name, None)
            if entry.distilled and guidance > 1 and unet is not None and not takes_guidance(unet):
                raise UserError(
                    f"{source}: mode {mode_name} is marked distilled in sampling.json, but its {name} does not take "
                    "guidance as a condition: correct the entry, or give the mode a distilled network"
                )
        pipeline._use_mode(mode_name, entry, kwargs.get("relay_scheduler") is None)
        return pipeline

    @classmethod
    def check_model(cls, model: str, mode: str | None = None) -> None:
        """Refuse what `from_pretrained` would, without loading it: reads configurations and headers of weights.

        A name on the hub is left alone.

        Raises:
            UserError: an unknown model or mode, a foreign or damaged folder.
        """
        source = resolve_model(model)
        if os.path.isdir(source):
            cls._check_folder(source, pick_mode(load_sampling(source), mode, model)[1], cls._skipped_components)

    @classmethod
    def _check_folder(cls, source: str, mode: Mode, given: Collection[str]) -> None:
        own = _own_unets(mode, given)
        check_model_folder(source, PIPELINE_CLASSES, cls._required_components, {*given, *own})
        for name in own:
            check_component(Path(source) / getattr(mode, name))
        for name in {"tokenizer", "text_encoder"} - set(given):
            check_folder(Path(source) / name)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as any diffusers pipeline; the loaded mode is kept as the folder's only one.

        An expander that the model's folder holds is no component, and is not saved along.
        """
        if self.mode_name is None:  # a table of what was there before would not fit
            (Path(save_directory) / SAMPLING_FILE).unlink(missing_ok=True)
        else:
            entry = self.mode.model_copy(update={"unet": None, "relay_unet": None} | self._relay_entries())
            os.makedirs(save_directory, exist_ok=True)
            write_sampling(Sampling(default=self.mode_name, modes={self.mode_name: entry}), save_directory)
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: "ModePipeline", **kwargs: Any) -> Self:
        """A pipeline of this class around another one's components, in the same mode and with the same switches.

        Unlike diffusers' it casts nothing unless it is told to: the two pipelines share their networks.

        Args:
            pipeline: one of ours.
            kwargs: components in place of the other's; `dtype`, which all networks are cast to, in both pipelines.

        Raises:
            UserError: the other one lacks a component that this one cannot do without.
        """
        dtypes = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        known = inspect.signature(cls.__init__).parameters
        components = {name: each for name, each in pipeline.components.items() if name in known} | kwargs
        if missing := [name for name in cls._required_components if components.get(name) is None]:
            raise UserError(
                f"a {cls.__name__} needs {', '.join(missing)}, which the {type(pipeline).__name__} has not; give it "
                "as an argument, or load the model by from_pretrained"
            )
        new = cls(**components)
        new.register_to_config(_name_or_path=pipeline.name_or_path)
        if any(dtypes):
            new.to(dtype=dtypes[0] or dtypes[1])
        for name in ("mode_name", "mode", "compiled", "vae_tile_size", "prompt_cache", "prompt_expander"):
            if hasattr(pipeline, name):
                setattr(new, name, getattr(pipeline, name))
        return new

    def _use_mode(self, name: str | None, mode: Mode, into_scheduler: bool = True) -> None:
        """Take over a mode's settings, those of the relay scheduler `into_scheduler`'s configuration."""
        self.mode_name, self.mode = name, mode
        changes = {own: value for key, own in _RELAY_SETTINGS.items() if (value := getattr(mode, key)) is not None}
        if self.relay_scheduler is not None and changes and into_scheduler:
            self.relay_scheduler = RelayScheduler.from_config(self.relay_scheduler.config, **changes)

    def _relay_entries(self) -> dict[str, Any]:
        """What the relay scheduler does now, by the entries that the mode has for it."""
        if self.relay_scheduler is None:
            return {}
        config = self.relay_scheduler.config
        return {key: config[own] for key, own in _RELAY_SETTINGS.items() if getattr(self.mode, key) is not None}


def _number_formats(given: Any) -> Any:
    """A dtype, or diffusers' dictionary of them, of what `from_pretrained` was given; names of dtypes will do.

    float16 is for the UNets alone: the others get bfloat16.
    """
    if isinstance(given, dict):
        return {name: _number_format(each) for name, each in given.items()}
    dtype = _number_format(given)
    if dtype == torch.float16:
        return {"text_encoder": torch.bfloat16, "vae": torch.bfloat16, "default": torch.float16}
    return dtype


def _number_format(given: Any) -> torch.dtype:
    dtype = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if dtype is None and given is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype is {given!r}: give torch.float32, torch.bfloat16 or torch.float16")
    return dtype


def _own_unets(mode: Mode, given: Collection[str]) -> list[str]:
    """The UNets that a mode has of its own, without those that the caller brings along."""
    return [name for name in ("unet", "relay_unet") if getattr(mode, name) and name not in given]


def check_weights_complete(source: str, name: str, module: torch.nn.Module) -> None:
    """Refuse weights that lacked tensors, which the libraries only warn of; `source` is for the error.

    diffusers leaves a missing tensor on the meta device. transformers draws it at random; there the names in
    the files that it was loaded from are compared, a tied tensor counting as present.

    Raises:
        UserError: names the component and the first missing tensors, or there are no files to compare.
    """
    state = module.state_dict()
    missing = [key for key, tensor in state.items() if tensor.is_meta]
    if isinstance(module, PreTrainedModel):
        files = sorted(Path(module.name_or_path).glob("*.safetensors"))
        if not files:
            raise UserError(f"{source}: {name} has no *.safetensors to check: copy or export the model again")
        saved: set[str] = set()
        for file in files:
            with safe_open(file, "pt") as tensors:
                saved.update(tensors.keys())
        storages = {tensor.data_ptr() for key, tensor in state.items() if key in saved}
        missing += [key for key, tensor in state.items() if tensor.data_ptr() not in storages]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"{source}: {name} lacks {len(missing)} tensors ({shown}): copy or export the model again")


def load_mode_unets(
    source: str, mode: Mode, names: Collection[str], dtype: Any, variant: str | None = None
) -> dict[str, UNet2DConditionModel]:
    """The UNets that a mode has of its own.

    Args:
        source: model folder.
        mode: the mode's entry in `sampling.json`.
        names: those of "unet" and "relay_unet" that the mode has of its own.
        dtype: a torch dtype, or a dictionary of them by component with "default", as diffusers takes it.
        variant: of the files, as in diffusers.

    Returns:
        By component.

    Raises:
        UserError: a UNet is missing or damaged.
    """
    unets = {}
    for name in names:
        subfolder = getattr(mode, name)
        check_component(Path(source) / subfolder)
        chosen = dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype
        try:
            unets[name] = load_unet(Path(source) / subfolder, chosen, variant)
        except UserError:
            raise
        except LOADING_ERRORS as error:
            raise unloadable(source, error) from error
        check_weights_complete(source, subfolder, unets[name])
    return unets
