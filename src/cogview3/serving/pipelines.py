"""The model that is served: its modes, the sizes that it draws, and a pipeline for each mode when it is needed."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from cogview3 import CogView3Pipeline
from cogview3.generation.placement import Placement, apply_placement
from cogview3.models.modes import Mode
from cogview3.references import find

ONLY_MODE = "default"
"""What the mode of a model without `sampling.json` is called."""


class Pipelines(Mapping[str, CogView3Pipeline]):
    """Pipelines by mode, loaded at first use; modes share what they have in common.

    `mode` is drawn where none is asked for, the model's own choice by default.

    Raises:
        UserError: no such model or mode, or a damaged one.
    """

    def __init__(
        self,
        model: str,
        mode: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        placement: Placement | None = None,
    ) -> None:
        CogView3Pipeline.check_model(model, mode)
        found = find(model, mode)
        sampling, (default, entry) = found.sampling(), found.settings()
        self.model, self.name = found.source, found.label
        self.default = default or ONLY_MODE
        self.modes: dict[str, Mode] = dict(sampling.modes) if sampling else {ONLY_MODE: entry}
        self._listed = sampling is not None
        self._device, self._dtype, self._placement = device, dtype, placement or Placement()
        self._loaded: dict[str, CogView3Pipeline] = {}

    @property
    def on_gpu(self) -> bool:
        """Whether networks run on a GPU."""
        return torch.device(self._device).type == "cuda"

    @property
    def placed(self) -> str:
        """Where networks run and in which number format, in words."""
        return f"{self._device} {self._dtype} {self._placement}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.modes)

    def __len__(self) -> int:
        return len(self.modes)

    def __getitem__(self, mode: str) -> CogView3Pipeline:
        """Raises KeyError where there is no such mode."""
        if mode not in self._loaded:
            self._loaded[mode] = self._load(mode)
        return self._loaded[mode]

    def _load(self, mode: str) -> CogView3Pipeline:
        entry = self.modes[mode]
        shared: dict[str, Any] = {}
        separate = self._placement.quantize or self._placement.compile  # they change the networks
        for other, pipe in () if separate else self._loaded.items():
            parts = pipe.components
            shared |= {name: parts[name] for name in parts if name not in ("unet", "relay_unet", "relay_scheduler")}
            for name in ("unet", "relay_unet"):
                if getattr(entry, name) == getattr(self.modes[other], name):
                    shared[name] = parts[name]
        pipe = CogView3Pipeline.from_pretrained(
            self.model, mode=mode if self._listed else None, dtype=self._dtype, **shared
        )
        pipe.set_progress_bar_config(disable=True)
        apply_placement(pipe, self._device, self._placement)
        return pipe
