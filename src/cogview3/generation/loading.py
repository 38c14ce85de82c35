"""Model folders: finding them, reading their modes, and refusing foreign or damaged ones by name.

Light, so that commands can check a model before they import torch.
"""

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.errors import one_line
from cogview3.generation.modes import SAMPLING_FILE, Mode, Sampling, pick_mode, read_sampling

BUNDLED = Path(__file__).parents[1] / "models" / "bundled"
MODEL_INDEX = "model_index.json"


def bundled_models() -> list[str]:
    """Names of the models that the package ships."""
    return sorted(index.parent.name for index in BUNDLED.glob(f"*/{MODEL_INDEX}"))


def resolve_model(name: str | os.PathLike[str]) -> str:
    """A bundled model's folder, the folder itself, or a hub name, in this order; "./scenes" is a folder.

    Raises:
        UserError: none of these.
    """
    text = os.fspath(name)
    if text in bundled_models():
        return str(BUNDLED / text)
    if os.path.isdir(text):
        return text
    if os.path.exists(text):
        raise UserError(f"{text} is a file: give the model's folder")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text):
        return text
    raise UserError(
        f"no model {text!r}: there is no such folder, and the bundled models are "
        f"{', '.join(bundled_models()) or 'none'}; a hub name is owner/name"
    )


def load_sampling(source: str, **hub_options: Any) -> Sampling | None:
    """`sampling.json` of a model folder or hub model; None where there is none.

    Raises:
        UserError: the file is wrong, or the hub could not be asked.
    """
    if os.path.isdir(source):
        path = os.path.join(source, SAMPLING_FILE)
        return read_sampling(path) if os.path.exists(path) else None
    try:
        return read_sampling(hf_hub_download(source, SAMPLING_FILE, **hub_options))
    except LocalEntryNotFoundError as error:  # no network and not in the cache: whether it exists is unknown
        raise unloadable(source, error) from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise unloadable(source, error) from error


def fetch_model(name: str, mode: str | None, left_out: Collection[str] = (), **hub_options: Any) -> str:
    """Folder, in the hub's cache, of a hub model's mode: its components' safetensors, the mode's UNets and the tables.

    diffusers' own download wants the code of components that are not its own, such as `RelayScheduler`, in the
    repository; here it comes with the package.

    Args:
        name: owner/name.
        mode: a mode of its `sampling.json`, the default one if left out.
        left_out: components that are not needed.
        hub_options: those of `huggingface_hub.snapshot_download`.

    Raises:
        UserError: no such mode, no model there, or the hub could not be asked.
    """
    _, entry = pick_mode(load_sampling(name, **hub_options), mode, name)
    try:
        index = json.loads(Path(hf_hub_download(name, MODEL_INDEX, **hub_options)).read_bytes())
        present = [part for part, held in index.items() if isinstance(held, list) and None not in held]
        folders = [getattr(entry, part, None) or part for part in present if part not in left_out]
        files = [f"{folder}/{kind}" for folder in folders for kind in ("*.json", "*.safetensors", "*.model", "*.txt")]
        return snapshot_download(name, allow_patterns=[MODEL_INDEX, SAMPLING_FILE, *files], **hub_options)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise unloadable(name, error) from error
        raise UserError(f"{name} on the hub is no model in diffusers' format ({MODEL_INDEX} is missing)") from error
    except (OSError, ValueError) as error:
        raise unloadable(name, error) from error


def mode_of(reference: str | Path) -> tuple[Path, Mode] | None:
    """Folder and mode of MODEL@MODE; None of other references. Raises UserError where there is none."""
    model, at, name = str(reference).rpartition("@")
    if not at or Path(reference).exists():
        return None
    folder = Path(resolve_model(model))
    if not folder.is_dir():
        raise UserError(f"{reference}: there is no model folder {model}; give one, or a bundled model")
    return folder, pick_mode(load_sampling(str(folder)), name, model)[1]


def unet_folder(reference: str | Path, component: Literal["unet", "relay_unet"]) -> Path:
    """Folder of a UNet of a run, of a model or, as MODEL@MODE, of one of its modes.

    Raises:
        UserError: there is no such mode or UNet.
    """
    own = mode_of(reference)
    if own is None:
        return checkpoints.weights_folder(reference, component)
    folder, mode = own
    return checkpoints.weights_folder(folder, getattr(mode, component) or component)


def check_model_folder(
    folder: str, classes: Collection[str], required: Collection[str], given: Collection[str]
) -> None:
    """Refuse a foreign or damaged model folder; reads the headers of the weights only.

    Args:
        folder: an existing folder.
        classes: names of the pipeline classes whose folders are ours.
        required: components that the folder must have.
        given: components that the caller brings along; they need not be there.

    Raises:
        UserError: names the file or component at fault.
    """
    index_path = Path(folder) / MODEL_INDEX
    if not index_path.is_file():
        raise UserError(f"{folder} is no model folder ({MODEL_INDEX} is missing): give the folder that holds it")
    try:
        index = json.loads(index_path.read_bytes())
        kind = index["_class_name"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{index_path} is damaged: copy or export the model again") from None
    if kind not in classes:
        raise UserError(f"{folder} holds a {kind} model: give one of {', '.join(classes)}")
    present = {name for name, entry in index.items() if isinstance(entry, list) and None not in entry}
    if missing := sorted(set(required) - present - set(given)):
        raise UserError(f"model folder {folder} has no {', '.join(missing)}: give a complete model")
    for name in sorted(present - set(given)):
        check_component(Path(folder) / name)


def check_component(folder: Path) -> None:
    """Refuse a component's folder that is missing, empty, without its weights, or with truncated ones.

    Raises:
        UserError: names the folder or file at fault.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(f"{folder} is missing or empty: copy or export the model again")
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / "config.json").exists() and not weights:
        raise UserError(f"{folder} has no weights (*.safetensors): copy or export the model again")
    for file in weights:
        try:
            with safe_open(file, "np"):
                pass
        except (SafetensorError, OSError):
            raise UserError(f"{file} is damaged: copy or export the model again") from None


def check_target(out: Path) -> None:
    """Refuse to write a model where something else is; an earlier model may be replaced.

    Raises:
        UserError: `out` is a file, a folder with other things in it, or one that nothing can take the place of: the
            current one, or where a disk is mounted.
    """
    if out.resolve() == Path.cwd() or os.path.ismount(out):
        raise UserError(f"{out} is the current folder or a disk's own, which cannot be replaced; give one inside it")
    if out.exists() and not (out / MODEL_INDEX).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and holds no model; give another folder with -o")


def folder_sizes(folder: Path) -> dict[str, int]:
    """Bytes in each subfolder."""
    return {item.name: _bytes(item) for item in sorted(folder.iterdir()) if item.is_dir()}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def unloadable(source: str, error: Exception) -> UserError:
    """The one-line error for a model that diffusers, transformers or the hub could not load."""
    where = (
        "copy or export the model again"
        if os.path.isdir(source)
        else "it is no folder here, and as a hub name it needs a network and an existing model"
    )
    reason = one_line(error, 300)
    return UserError(f"model {source} cannot be loaded: {where} ({reason})")
