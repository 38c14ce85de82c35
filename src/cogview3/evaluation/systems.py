"""What is evaluated: models of ours in their modes, other systems' pipelines, and folders of pictures."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from typing_extensions import override

from cogview3.config import UserError
from cogview3.data.images import SUFFIXES
from cogview3.data.latents import to_uint8
from cogview3.evaluation.baselines import BASELINES, Baseline
from cogview3.evaluation.drawing import Overrides, draw_batch, generators
from cogview3.evaluation.prompt import Prompt
from cogview3.generation.inputs import vae_factor
from cogview3.generation.loading import MODEL_INDEX, load_sampling, resolve_model, unloadable
from cogview3.generation.modes import pick_mode
from cogview3.generation.pipeline import CogView3Pipeline

Pictures = list[tuple[np.ndarray, np.ndarray | None]]
"""Of each prompt the picture and perhaps the base picture that it was made of, (H, W, 3) uint8."""


class System(ABC):
    """One thing that turns prompts into pictures.

    Attributes:
        name: in tables.
    """

    name: str

    @abstractmethod
    def how(self) -> dict[str, Any]:
        """The settings that hold, known before anything is loaded."""

    @abstractmethod
    def draw(
        self, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, device: str, dtype: torch.dtype
    ) -> tuple[Pictures, float]:
        """The pictures of these prompts and the seconds that they took."""

    def vae(self, device: str, dtype: torch.dtype) -> AutoencoderKL | None:
        """Its VAE, where scenes are to be reconstructed by it."""
        return None

    def size(self) -> tuple[int, int] | None:
        """Width and height of its pictures, None where that is not known before they are drawn."""
        return None

    def check(self, count: int) -> None:
        """Refuse, with a UserError, to draw `count` pictures."""
        return


class Own(System):
    """A model of ours in one of its modes.

    Args:
        name: as given.
        model: bundled name, folder or hub name.
        mode: one of its modes.
        sampling: what the mode is not to decide.
    """

    def __init__(self, name: str, model: str, mode: str | None, sampling: Overrides) -> None:
        self.name, self.model, self.sampling = name, model, sampling
        self.source = resolve_model(model)
        self.mode_name, self.mode = pick_mode(load_sampling(self.source), mode, model)
        self.mode.check_distilled(str(self.mode_name), asdict(sampling))
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

    @override
    def how(self) -> dict[str, Any]:
        index = Path(self.source) / MODEL_INDEX
        has_relay = not index.is_file() or _index(self.source).get("relay_unet", [None])[0] is not None
        own = {
            "steps": self.mode.steps,
            "relay_steps": self.mode.relay_steps,
            "guidance": self.mode.guidance,
            "relay_guidance": self.mode.relay_guidance_scale,
            "relays": int(has_relay),
        }
        given = {key: value for key, value in asdict(self.sampling).items() if value is not None}
        if "guidance" in given and self.mode.relay_guidance is None:
            own["relay_guidance"] = given["guidance"]
        own |= {key: value for key in ("sampler", "light") if (value := getattr(self.mode, key)) is not None}
        return {"kind": "model", "mode": self.mode_name} | own | given

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
            return AutoencoderKL.from_pretrained(self.source, subfolder="vae", dtype=dtype).to(device)
        except (OSError, ValueError) as error:
            raise unloadable(self.source, error) from error

    @override
    def size(self) -> tuple[int, int]:
        try:
            unet = UNet2DConditionModel.load_config(self.source, subfolder=self.mode.unet or "unet")
            vae = AutoencoderKL.load_config(self.source, subfolder="vae")
            has_relay = CogView3Pipeline.load_config(self.source).get("relay_unet", [None])[0] is not None
        except OSError as error:
            raise unloadable(self.source, error) from error
        side, relays = unet["sample_size"], self.sampling.relays
        sides = side if isinstance(side, list) else [side or 0] * 2  # without one, drawing refuses it
        factor = vae_factor(vae["block_out_channels"]) * 2 ** (int(has_relay) if relays is None else relays)
        return sides[0] * factor, sides[1] * factor


class Foreign(System):
    """Any other pipeline of diffusers, by the settings that its authors recommend or those given.

    Args:
        name: as given.
        baseline: source and settings.
        sampling: steps and guidance where they are given.
    """

    def __init__(self, name: str, baseline: Baseline, sampling: Overrides) -> None:
        alone = ("relay_steps", "relay_guidance", "relays", "sampler", "light")
        ours = [key for key in alone if getattr(sampling, key) is not None]
        if ours:
            raise UserError(f"{name} is no model of ours and has no {ours[0]}: leave --{ours[0].replace('_', '-')} out")
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
        told = {"steps": settings.get(self.baseline.steps), "guidance": settings.get(self.baseline.guidance)}
        return {"kind": "pipeline", "source": self.baseline.source} | told | {"settings": settings}

    @override
    def draw(
        self, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, device: str, dtype: torch.dtype
    ) -> tuple[Pictures, float]:
        import time

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


class Folder(System):
    """Pictures that some other system drew: number i of the prompts is the file named i, from 0 on.

    `00012.png` or `12.jpg`; in HPSv2's manner `anime/00012.jpg`, counted within the style; in GenEval's
    `00003/samples/0000.png`, several a prompt; or, where no name is a number, the files in order if there are as many.

    Args:
        folder: of the pictures.
        prompts: what they are of.
        per_prompt: pictures of each prompt, one after the other.
    """

    def __init__(self, folder: Path, prompts: Sequence[Prompt], per_prompt: int = 1) -> None:
        if not folder.is_dir():
            raise UserError(f"--images {folder}: is no folder; give one with a picture for each prompt")
        self.name, self.folder = folder.resolve().name, folder
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in SUFFIXES)
        if not found:
            raise UserError(f"--images {folder}: holds no pictures ({', '.join(SUFFIXES)}); give another folder")
        self.files = _assign(folder, found, prompts, per_prompt)
        if not any(self.files):
            raise UserError(
                f"--images {folder}: {found[0].name} and the other {len(found) - 1} are not named by the prompts' "
                f"numbers, and there are {len(prompts)} prompts: name them 00000.png, 00001.png, ..."
            )

    @override
    def how(self) -> dict[str, Any]:
        return {"kind": "images", "folder": str(self.folder)}

    @override
    def draw(
        self, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, device: str, dtype: torch.dtype
    ) -> tuple[Pictures, float]:
        return [(self._open(index), None) for index in indices], 0.0

    def _open(self, index: int) -> np.ndarray:
        from cogview3.data.images import decode
        from cogview3.data.report import Broken

        file = self.files[index]
        if file is None:
            raise UndrawnError("missing")
        try:
            return np.asarray(decode(file.read_bytes(), file.suffix.lower().lstrip(".")).image)
        except (Broken, OSError) as error:
            raise UndrawnError(f"{file.name}: {error}") from None

    @override
    def size(self) -> tuple[int, int] | None:
        """The one size of all pictures that can be read. Raises UserError where there are several."""
        first: tuple[Path, tuple[int, int]] | None = None
        for file in filter(None, self.files):
            try:
                with Image.open(file) as image:
                    size = image.size
            except OSError:
                continue  # counted as failed when it is read
            if first and size != first[1]:
                raise UserError(
                    f"{file} is {size[0]} x {size[1]} pixels and {first[0].name} {first[1][0]} x {first[1][1]}, but "
                    "Fréchet distances are of pictures of one size; resize them, or leave the metric out"
                )
            first = first or (file, size)
        return first and first[1]


class UndrawnError(Exception):
    """A picture that could not be had, with the reason."""


def _assign(folder: Path, found: Sequence[Path], prompts: Sequence[Prompt], per_prompt: int) -> list[Path | None]:
    by_name = {str(path.relative_to(folder).with_suffix("")): path for path in found}
    by_number: dict[tuple[str, ...], Path] = {}
    for name, path in by_name.items():
        *parents, last = Path(name).parts
        if last.isdigit():
            parents = [str(int(part)) if part.isdigit() else part for part in parents]
            by_number[(*parents, str(int(last)))] = path
    files: list[Path | None] = []
    seen: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        number, sample = divmod(place, per_prompt)
        style = prompt.tags.get("category", "")
        within = seen.setdefault(style, 0)
        seen[style] += 1
        names = [(str(place),), (str(number), "samples", str(sample)), (style, str(within))]
        files.append(next((by_number[name] for name in names if name in by_number), None))
    if not any(files) and len(found) == len(prompts):
        return list(found)
    return files


def _index(source: str) -> dict[str, Any]:
    """`model_index.json` of a folder or hub model; empty where there is none or it is damaged."""
    try:
        path = Path(source) / MODEL_INDEX if os.path.isdir(source) else Path(hf_hub_download(source, MODEL_INDEX))
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    except (EntryNotFoundError, OSError, ValueError):
        return {}  # told when the model is loaded


def find_system(name: str, sampling: Overrides) -> System:
    """The system of a name: a baseline, a model of ours, or another pipeline of diffusers.

    Raises:
        UserError: there is no such model or mode, or it does not go with what is asked for.
    """
    if name in BASELINES:
        return Foreign(name, BASELINES[name], sampling)
    model, mode, chosen = split_model(name, sampling)
    source = resolve_model(model)
    kind = str(_index(source).get("_class_name", ""))
    if (kind and not kind.startswith("CogView3")) or kind in ("CogView3PlusPipeline",):
        if mode:
            raise UserError(f"model {model!r} is a {kind}, which has no modes: leave out @{mode}")
        return Foreign(name, Baseline(source), chosen)
    return Own(name, model, mode, chosen)


def split_model(model: str, sampling: Overrides | None = None) -> tuple[str, str | None, Overrides]:
    """Model, mode and sampling of "MODEL[@MODE][:STEPS[+RELAY_STEPS]]"; a folder's name as it stands has neither.

    "scenes:4+1" is the model's default mode in 4 base steps and 1 relay step; "scenes@4+1" is a mode of that name.

    Args:
        model: as above.
        sampling: what else is asked for; step counts in `model` come before its own.

    Raises:
        UserError: a part is missing.
    """
    sampling = sampling or Overrides()
    if Path(model).is_dir():
        return model, None, sampling
    name, at, mode = model.rpartition("@")
    steps = re.search(r":(\d{1,4})(?:\+(\d{1,4}))?$", mode, re.ASCII)
    if steps:
        base, relay = (int(count) if count else None for count in steps.groups())
        sampling = replace(sampling, steps=base, relay_steps=sampling.relay_steps if relay is None else relay)
        mode = mode[: steps.start()]
    if not at:
        name, mode = mode, ""
    if not name or (at and not mode):
        raise UserError(f"model {model!r}: write MODEL, MODEL@MODE or MODEL:STEPS, such as scenes@4+1 or scenes:4+1")
    return name, mode or None, sampling
