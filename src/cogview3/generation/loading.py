"""Model folders: fetched from the hub, and refused with a reason if they are of another kind or damaged.

Light, so that commands can check a model before they import torch.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from cogview3.checkpoints import read_json
from cogview3.config import UserError
from cogview3.models.modes import SAMPLING_FILE
from cogview3.prompts.text_models import check_folder
from cogview3.references import FETCHED, INT8_FILE, MODEL_INDEX, Reference, fetch, unloadable

PIPELINE_CLASSES = ("CogView3Pipeline", "CogView3UpscalePipeline")
EXPANDER_FOLDER = "expander"
"""Subfolder of a model folder where its own expander lies."""

_FLOATS = {"F16", "BF16", "F32", "F64"}
_LIBRARIES = ("diffusers", "transformers", "cogview3.generation.scheduler", "cogview3.models.light")


def fetch_model(model: Reference, left_out: Collection[str] = (), **hub_options: Any) -> str:
    """Folder, in the hub's cache, of a hub model's mode: its components' safetensors, the mode's UNets and the tables.

    diffusers' own download wants the code of components that are not its own, such as `RelayScheduler`, in the
    repository; here it comes with the package. Components in `left_out` are not needed; `hub_options` are those of
    `huggingface_hub.snapshot_download`.

    Raises UserError where there is no such mode or model, or the hub could not be asked.
    """
    name, (_, entry) = model.source, model.settings(**hub_options)
    try:
        index = read_index(Path(hf_hub_download(name, MODEL_INDEX, **hub_options)))
        present = [part for part, held in index.items() if isinstance(held, list) and None not in held]
        folders = [getattr(entry, part, None) or part for part in present if part not in left_out]
        files = [f"{folder}/{kind}" for folder in folders for kind in FETCHED]
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise unloadable(name, error) from error
        raise UserError(f"{name} on the hub is no model in diffusers' format ({MODEL_INDEX} is missing)") from error
    except (OSError, ValueError) as error:
        raise unloadable(name, error) from error
    return fetch(name, [MODEL_INDEX, SAMPLING_FILE, *files], **hub_options)


def check_model_folder(folder: str, required: Collection[str], given: Collection[str]) -> None:
    """Refuse a foreign or damaged model folder; reads the headers of the weights only.

    The folder must have the components `required`, but for those that the caller brings along, `given`. Raises
    UserError naming the file or component at fault.
    """
    index_path = Path(folder) / MODEL_INDEX
    if not index_path.is_file():
        fix = "give the folder that holds it"
        if (Path(folder) / "recipe.toml").is_file():
            fix = "it is a run; make a model of runs with cogview3 export"
        raise UserError(f"{folder} is no model folder ({MODEL_INDEX} is missing): {fix}")
    index = read_index(index_path)
    if index["_class_name"] not in PIPELINE_CLASSES:
        raise UserError(f"{folder} holds a {index['_class_name']} model: give one of {', '.join(PIPELINE_CLASSES)}")
    present = {name for name, entry in index.items() if isinstance(entry, list) and None not in entry}
    if missing := sorted(set(required) - present - set(given)):
        raise UserError(f"model folder {folder} has no {', '.join(missing)}: give a complete model")
    for name in sorted(present - set(given)):
        check_component(Path(folder) / name)


def vae_factor(block_out_channels: Sequence[int]) -> int:
    """Pixels of a side that a VAE with these channels, one entry a level, makes one of its latents: 8 with four."""
    return int(2 ** (len(block_out_channels) - 1))


def read_index(path: Path) -> dict[str, Any]:
    """A `model_index.json`, whose components are of libraries that have such.

    Raises UserError where it is damaged, or with code of elsewhere.
    """
    index = read_json(path, "copy or export the model again")
    if not isinstance(index.get("_class_name"), str):
        raise UserError(f"{path} is damaged: copy or export the model again")
    if index["_class_name"] not in PIPELINE_CLASSES:
        return index
    named = [entry for name, entry in index.items() if isinstance(entry, list) and not name.startswith("_")]
    if any(len(entry) != 2 or not all(isinstance(each, str | None) for each in entry) for entry in named):
        raise UserError(f"{path} is damaged: copy or export the model again")
    if foreign := [entry[0] for entry in named if entry[0] not in (None, *_LIBRARIES)]:
        raise UserError(f"{path}: no component is of {foreign[0]!r}, whose code is not run: export the model again")
    return index


def check_component(folder: Path) -> None:
    """Refuse a component's folder that is missing, empty, without its weights, or with wrong ones; reads headers only.

    Raises UserError naming the folder or file at fault.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(f"{folder} is missing or empty: copy or export the model again")
    check_folder(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / "config.json").exists() and not weights:
        raise UserError(f"{folder} has no weights (*.safetensors): copy or export the model again")
    for file in weights:
        try:
            with safe_open(file, "np") as tensors:
                kinds = {tensors.get_slice(name).get_dtype(): name for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            raise UserError(f"{file} is damaged: copy or export the model again") from None
        if file.name != INT8_FILE and (wrong := sorted(set(kinds) - _FLOATS)):
            raise UserError(f"{file}: {kinds[wrong[0]]} is stored as {wrong[0]}, not as floats: export it again")


def check_target(out: Path) -> None:
    """Refuse to write a model where something else is; an earlier model may be replaced.

    Raises UserError where `out` is a file, a folder with other things in it, the current folder, or a disk's own.
    """
    if out.resolve() == Path.cwd() or os.path.ismount(out):
        raise UserError(f"{out} is the current folder or a disk's own, which cannot be replaced; give one inside it")
    if out.exists() and not (out / MODEL_INDEX).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and holds no model; give another folder with -o")


def folder_sizes(folder: Path) -> dict[str, int]:
    """Bytes in each subfolder."""
    parts = [part for part in sorted(folder.iterdir()) if part.is_dir()]
    return {part.name: sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) for part in parts}
