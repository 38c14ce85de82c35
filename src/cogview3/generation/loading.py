"""Model folders: finding them, and refusing foreign or damaged ones by name before anything is loaded."""

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from cogview3.config import UserError
from cogview3.generation.modes import SAMPLING_FILE, Mode, Sampling, read_sampling

BUNDLED = Path(__file__).parents[1] / "models" / "bundled"
MODEL_INDEX = "model_index.json"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Arguments of `from_pretrained` that say how the hub is asked."""

LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)
"""What diffusers and transformers raise on files that they cannot use."""


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


def unloadable(source: str, error: Exception) -> UserError:
    """The one-line error for a model that diffusers, transformers or the hub could not load."""
    where = (
        "copy or export the model again"
        if os.path.isdir(source)
        else "it is no folder here, and as a hub name it needs a network and an existing model"
    )
    reason = " ".join(str(error).split())[:300]
    return UserError(f"model {source} cannot be loaded: {where} ({reason})")


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
    present = {name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}
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
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError):
            raise UserError(f"{file} is damaged: copy or export the model again") from None


def check_weights_complete(source: str, name: str, module: torch.nn.Module) -> None:
    """Refuse weights that lacked tensors, which the libraries only warn of.

    diffusers leaves a missing tensor on the meta device. transformers draws it at random; there the names in
    the file are compared, a tied tensor counting as present.

    Raises:
        UserError: names the component and the first missing tensors.
    """
    state = module.state_dict()
    missing = [key for key, tensor in state.items() if tensor.is_meta]
    files = sorted(Path(source, name).glob("*.safetensors"))
    if isinstance(module, PreTrainedModel) and files:
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
    source: str, mode: Mode, names: Collection[str], dtype: Any, **hub_options: Any
) -> dict[str, UNet2DConditionModel]:
    """The UNets that a mode has of its own.

    Args:
        source: model folder or hub name.
        mode: the mode's entry in `sampling.json`.
        names: components to look for, of "unet" and "relay_unet".
        dtype: a torch dtype, or a dictionary of them by component with "default", as diffusers takes it.

    Returns:
        By component; empty for modes that share the model's own UNets.

    Raises:
        UserError: a UNet is missing or damaged.
    """
    unets = {}
    for name in names:
        subfolder = getattr(mode, name)
        if subfolder is None:
            continue
        if os.path.isdir(source):
            check_component(Path(source) / subfolder)
        chosen = dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype
        try:
            unets[name] = UNet2DConditionModel.from_pretrained(
                source, subfolder=subfolder, torch_dtype=chosen, use_safetensors=True, **hub_options
            )
        except LOADING_ERRORS as error:
            raise unloadable(source, error) from error
        check_weights_complete(source, subfolder, unets[name])
    return unets
