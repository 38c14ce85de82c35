"""The models of an evaluation: CogView3 models in their modes, and other systems' pipelines."""

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from typing_extensions import override

from cogview3.config import UserError
from cogview3.data.latents import to_uint8
from cogview3.evaluation.baselines import BASELINES, Baseline
from cogview3.evaluation.drawing import draw_batch, generators
from cogview3.evaluation.folder import Pictures, System
from cogview3.evaluation.prompt import Prompt
from cogview3.fingerprints import drawing_fingerprint, folder_fingerprint
from cogview3.generation.loading import vae_factor
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.models.modes import Overrides
from cogview3.references import MODEL_INDEX, find, split, unloadable


class Own(System):
    """A model of ours in one of its modes; `sampling` is what the mode is not to decide."""

    def __init__(self, name: str, model: str, mode: str | None, sampling: Overrides) -> None:
        self.name, self.model, self.sampling = name, model, sampling
        found = find(model, mode)
        self.source, (self.mode_name, self.mode) = found.source, found.settings()
        self.settled = self.mode.settle(sampling, self.mode_name)
        self._given_mode = mode
        self._pipe: CogView3Pipeline | None = None

    def __getstate__(self) -> dict[str, Any]:  # what a drawing process gets
        return self.__dict__ | {"_pipe": None}

    def pipe(self, device: str, dtype: torch.dtype) -> CogView3Pipeline:
        """The pipeline, loaded once."""
        if self._pipe is None:
            loaded = CogView3Pipeline.from_pretrained(self.model, mode=self._given_mode, dtype=dtype).to(device)
            loaded.set_progress_bar_config(disable=True)
            self._pipe = loaded
        return self._pipe

    def free(self) -> None:
        """Let go of the pipeline."""
        self._pipe = None

    def _relays(self) -> int:
        if self.sampling.relays is not None:
            return self.sampling.relays
        return int(_index(self.source).get("relay_unet", [None])[0] is not None)

    @override
    def how(self) -> dict[str, Any]:
        keys = ("steps", "relay_steps", "guidance", "relay_guidance")
        settled = {key: getattr(self.settled, key) for key in keys} | {"relays": self._relays()}
        settled |= {key: value for key in ("sampler", "light") if (value := getattr(self.settled, key)) is not None}
        return {"kind": "model", "mode": self.mode_name} | settled | self._weights

    @cached_property
    def _weights(self) -> dict[str, str]:
        """A hash of a folder's weights, which may change under the same name."""
        return {"weights": drawing_fingerprint(self.source, self.mode)[:12]} if os.path.isdir(self.source) else {}

    @override
    def draw(
        self, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, device: str, dtype: torch.dtype
    ) -> tuple[Pictures, float]:
        drawn = draw_batch(self.pipe(device, dtype), prompts, indices, seed, self.sampling)
        pictures = list(to_uint8(drawn.pictures))
        bases = [None] * len(pictures) if drawn.base is None else list(to_uint8(drawn.base))
        return list(zip(pictures, bases, strict=True)), drawn.seconds

    @override
    def vae(self, device: str, dtype: torch.dtype) -> AutoencoderKL | None:
        if self._pipe is not None:
            return self._pipe.vae
        try:
            vae: AutoencoderKL = AutoencoderKL.from_pretrained(self.source, subfolder="vae", dtype=dtype)
        except (OSError, ValueError) as error:
            raise unloadable(self.source, error) from error
        vae.to(device)
        return vae

    @override
    def size(self) -> tuple[int, int]:
        try:
            unet = UNet2DConditionModel.load_config(self.source, subfolder=self.mode.unet or "unet")
            vae = AutoencoderKL.load_config(self.source, subfolder="vae")
        except OSError as error:
            raise unloadable(self.source, error) from error
        side = unet["sample_size"]
        sides = side if isinstance(side, list) else [side or 0] * 2  # without one, drawing refuses it
        factor = vae_factor(vae["block_out_channels"]) * 2 ** self._relays()
        return sides[0] * factor, sides[1] * factor


class Foreign(System):
    """Any other pipeline of diffusers, by the settings that its authors recommend or those given."""

    def __init__(self, name: str, baseline: Baseline, sampling: Overrides) -> None:
        alone = ("relay_steps", "relay_guidance", "relays", "sampler", "light")
        ours = [key for key in alone if getattr(sampling, key) is not None]
        if ours:
            raise UserError(
                f"{name} is not a CogView3 model, with no {ours[0]}: leave --{ours[0].replace('_', '-')} out"
            )
        self.name, self.baseline, self.sampling = name, baseline, sampling
        self._pipe: DiffusionPipeline | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pipe": None}

    def _settings(self) -> dict[str, Any]:
        given = {self.baseline.steps: self.sampling.steps, self.baseline.guidance: self.sampling.guidance}
        return {**self.baseline.settings, **{key: value for key, value in given.items() if value is not None}}

    @override
    def how(self) -> dict[str, Any]:
        settings = self._settings()
        sampled = {"steps": settings.get(self.baseline.steps), "guidance": settings.get(self.baseline.guidance)}
        source = self.baseline.source
        weights = {"weights": folder_fingerprint(source)[:12]} if os.path.isdir(source) else {}
        return {"kind": "pipeline", "source": source} | sampled | {"settings": settings} | weights

    @override
    def draw(
        self, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, device: str, dtype: torch.dtype
    ) -> tuple[Pictures, float]:
        if self._pipe is None:
            self._pipe = self.baseline.load(dtype).to(device)
            self._pipe.set_progress_bar_config(disable=True)
        texts = [prompts[index].text for index in indices]
        start = time.perf_counter()
        images = self._pipe(texts, generator=generators(seed, indices), output_type="np", **self._settings()).images
        seconds = time.perf_counter() - start
        if not np.isfinite(images).all():
            raise FloatingPointError(f"{self.name} overflowed in {dtype}: use --dtype float32 or bfloat16")
        pictures = (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
        return [(picture, None) for picture in pictures], seconds


def _index(source: str) -> dict[str, Any]:
    """`model_index.json` of a folder or hub model; empty where there is none or it is damaged."""
    try:
        path = Path(source) / MODEL_INDEX if os.path.isdir(source) else Path(hf_hub_download(source, MODEL_INDEX))
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    except (EntryNotFoundError, OSError, ValueError):
        return {}  # reported when the model is loaded


def find_system(name: str, sampling: Overrides) -> System:
    """The system of a name: a baseline, a model of ours, or another pipeline of diffusers.

    Raises:
        UserError: there is no such model or mode, or it does not go with what is asked for.
    """
    if name in BASELINES:
        return Foreign(name, BASELINES[name], sampling)
    model, mode, chosen = split_model(name, sampling)
    source = find(model).source
    kind = str(_index(source).get("_class_name", ""))
    if (kind and not kind.startswith("CogView3")) or kind == "CogView3PlusPipeline":
        if mode:
            raise UserError(f"model {model!r} is a {kind}, which has no modes: leave out @{mode}")
        return Foreign(name, Baseline(source), chosen)
    return Own(name, model, mode, chosen)


def split_model(model: str, sampling: Overrides | None = None) -> tuple[str, str | None, Overrides]:
    """Model, mode and sampling of "MODEL[@MODE][:STEPS[+RELAY_STEPS]]"; a folder's name as it stands has neither.

    "scenes:4+1" is the model's default mode in 4 base steps and 1 relay step; "scenes@4+1" is a mode of that name.

    Step counts in `model` come before those of `sampling`. Raises UserError where a part is missing.
    """
    sampling = sampling or Overrides()
    if Path(model).is_dir():
        return model, None, sampling
    steps = re.search(r":(\d{1,4})(?:\+(\d{1,4}))?$", model, re.ASCII)
    if steps:
        base, relay = (int(count) if count else None for count in steps.groups())
        sampling = replace(sampling, steps=base, relay_steps=sampling.relay_steps if relay is None else relay)
        model = model[: steps.start()]
    if not model:
        raise UserError("a model has no name: write MODEL, MODEL@MODE or MODEL:STEPS, such as scenes@4+1 or scenes:4+1")
    return *split(model), sampling
