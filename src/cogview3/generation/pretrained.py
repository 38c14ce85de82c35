"""Pipelines that load one mode of a model folder, and save it again."""

import os
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline

from cogview3.generation.loading import (
    HUB_OPTIONS,
    LOADING_ERRORS,
    check_model_folder,
    check_weights_complete,
    load_mode_unets,
    load_sampling,
    resolve_model,
    unloadable,
)
from cogview3.generation.modes import Mode, Sampling, pick_mode, write_sampling
from cogview3.generation.scheduler import RelayScheduler

PIPELINE_CLASSES = ("CogView3Pipeline", "CogView3UpscalePipeline")


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
                stored in; only safetensors are read.

        Raises:
            UserError: an unknown model or mode, a foreign or damaged folder.
        """
        source = resolve_model(pretrained_model_name_or_path)
        hub_options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        if kwargs.get("torch_dtype") is None and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        kwargs.setdefault("use_safetensors", True)
        for name in cls._skipped_components:
            kwargs.setdefault(name, None)
        sampling = load_sampling(source, **hub_options)
        mode_name, entry = pick_mode(sampling, mode, str(pretrained_model_name_or_path))
        own = [name for name in ("unet", "relay_unet") if getattr(entry, name) and name not in kwargs]
        if os.path.isdir(source):
            check_model_folder(source, PIPELINE_CLASSES, cls._required_components, {*kwargs, *own})
        dtype = kwargs.get("torch_dtype") or kwargs["dtype"]
        kwargs.update(load_mode_unets(source, entry, own, dtype, **hub_options))
        try:
            pipeline = super().from_pretrained(source, **kwargs)
        except LOADING_ERRORS as error:
            raise unloadable(source, error) from error
        if not {"device_map", "quantization_config"} & kwargs.keys():
            for name, module in pipeline.components.items():
                if name not in kwargs and isinstance(module, torch.nn.Module):
                    check_weights_complete(source, name, module)
        pipeline._use_mode(mode_name, entry)
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as any diffusers pipeline; the loaded mode is kept as the folder's only one."""
        super().save_pretrained(save_directory, **kwargs)
        if self.mode_name is not None:
            entry = self.mode.model_copy(update={"unet": None, "relay_unet": None})
            sampling = Sampling(default=self.mode_name, modes={self.mode_name: entry})
            write_sampling(sampling, Path(save_directory))

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline of this class around another one's components, in the same mode.

        As in diffusers, all components are cast to `torch_dtype`, float32 by default.
        `cls(**pipeline.components)` leaves them as they are, but knows no mode.
        """
        new = super().from_pipe(pipeline, **kwargs)
        if isinstance(pipeline, ModePipeline):
            new.mode_name, new.mode = pipeline.mode_name, pipeline.mode
        return new

    def _use_mode(self, name: str | None, mode: Mode) -> None:
        """Take over a mode's settings, those of the relay scheduler into its configuration."""
        self.mode_name, self.mode = name, mode
        changes = {
            "relay_start": mode.relay_start,
            "blur_estimate": mode.blur_estimate,
            "power": mode.relay_power,
        }
        changes = {key: value for key, value in changes.items() if value is not None}
        if self.relay_scheduler is not None and changes:
            self.relay_scheduler = RelayScheduler.from_config(self.relay_scheduler.config, **changes)
