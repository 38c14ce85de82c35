"""Names of models and of their parts: one grammar for every command, recipe and function.

NAME        a bundled model's name, else a folder, else OWNER/NAME on the hub, where no folder here is called OWNER;
            ./NAME and any `pathlib.Path` is a folder
NAME@MODE   one of that model's modes

A folder is a model folder, or a run, of which the newest weights count.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from cogview3.checkpoints import LORA_FILE
from cogview3.config import UserError
from cogview3.errors import one_line
from cogview3.models.modes import SAMPLING_FILE, Mode, Sampling, pick_mode, read_sampling

BUNDLED = Path(__file__).parent / "models" / "bundled"
MODEL_INDEX = "model_index.json"
INT8_FILE = "weights_int8.safetensors"
"""Weights of a UNet in a byte each, see `cogview3.models.int8`."""
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What of a component is fetched from the hub: no code, nothing pickled."""

_CONFIGURATIONS = ("config.json", "scheduler_config.json", "tokenizer.json")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def user_cache(name: str) -> Path | None:
    """Our folder `name` in the cache of the user; None where neither XDG_CACHE_HOME nor a home is known."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without an account, as containers have them
        return None
    return base / "cogview3" / name


@dataclass(frozen=True)
class Reference:
    """A model or run that was found by its name.

    Attributes:
        name: as it was written, without the mode.
        source: its folder, or OWNER/NAME on the hub.
        mode: name of the mode that was asked for; None for the default one.
    """

    name: str
    source: str
    mode: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether it is a name on the hub."""
        return not os.path.isdir(self.source)

    @property
    def is_bundled(self) -> bool:
        """Whether the package brings it along."""
        return Path(self.source).parent == BUNDLED

    @property
    def label(self) -> str:
        """What it is called in reports: a folder's own name, without the way to it."""
        return self.name if self.on_hub else Path(self.source).resolve().name

    @property
    def folder(self) -> Path:
        """Its folder. Raises UserError where it is on the hub."""
        if self.on_hub:
            raise UserError(f"{self.name} is a name on the hub; download it and give its folder")
        return Path(self.source)

    def sampling(self, **hub_options: Any) -> Sampling | None:
        """Its `sampling.json`; None where there is none. Raises UserError where it is wrong, or the hub unreachable."""
        if not self.on_hub:
            path = os.path.join(self.source, SAMPLING_FILE)
            return read_sampling(path) if os.path.exists(path) else None
        try:
            return read_sampling(hf_hub_download(self.source, SAMPLING_FILE, **hub_options))
        except LocalEntryNotFoundError as error:  # no network and not in the cache: whether it exists is unknown
            raise unloadable(self.source, error) from error
        except EntryNotFoundError:
            return None
        except OSError as error:
            raise unloadable(self.source, error) from error

    def settings(self, **hub_options: Any) -> tuple[str | None, Mode]:
        """Name and entry of its mode, as `modes.pick_mode`. Raises UserError where there is no such mode."""
        return pick_mode(self.sampling(**hub_options), self.mode, self.name)


def bundled_models() -> list[str]:
    """Names of the models that the package ships."""
    return sorted(index.parent.name for index in BUNDLED.glob(f"*/{MODEL_INDEX}"))


def split(reference: str) -> tuple[str, str | None]:
    """Name and mode of NAME@MODE; no mode where there is none, or where a folder is called so.

    Raises UserError where nothing stands before or behind the @.
    """
    name, at, mode = reference.rpartition("@")
    if not at or os.path.exists(reference):
        return reference, None
    if not name or not mode:
        raise UserError(f"model {reference!r}: write MODEL or MODEL@MODE, such as scenes@4+1")
    return name, mode


def find(reference: str | os.PathLike[str], mode: str | None = None) -> Reference:
    """The model or run of NAME or NAME@MODE, as above; `mode` may be asked for beside the name.

    Whether there is such a mode is only seen by `Reference.settings`. Raises UserError where there is no such model or
    run, or for two modes.
    """
    if not isinstance(reference, str | os.PathLike):
        raise UserError(f"model is a {type(reference).__name__}: give a name or a path")
    name, named = split(os.fspath(reference))
    if None not in (named, mode) and named != mode:
        raise UserError(f"model {os.fspath(reference)!r} names mode {named!r}, and --mode {mode!r}: give one of them")
    mode = named if mode is None else mode
    is_path = isinstance(reference, os.PathLike)
    if not is_path and name in bundled_models():
        return Reference(name, str(BUNDLED / name), mode)
    if os.path.isdir(name):
        return Reference(name, name, mode)
    if os.path.exists(name):
        raise UserError(f"{name} is a file: give the model's folder")
    if not is_path and _HUB_NAME.fullmatch(name) and not os.path.isdir(os.path.dirname(name)):  # runs/new is no owner's
        return Reference(name, name, mode)
    raise UserError(
        f"no model {name!r}: there is no such folder, and the bundled models are "
        f"{', '.join(bundled_models()) or 'none'}; a hub name is owner/name"
    )


def weights_folder(reference: str | os.PathLike[str], component: str) -> Path:
    """Folder of a component, such as "vae", of a run, a model or, as NAME@MODE, a mode; fetched where it is on the hub.

    Raises UserError where there is no such model, run or mode, or no such component in it.
    """
    text, place = os.fspath(reference), component
    try:
        found = find(reference)
        if found.mode is not None and component in ("unet", "relay_unet"):
            place = getattr(found.settings()[1], component) or component
        root = Path(fetch(found.source, [f"{place}/{kind}" for kind in FETCHED])) if found.on_hub else found.folder
    except UserError as error:
        raise UserError(f"no {component} in {text!r}: {error}") from None
    for folder in (root / "weights" / place, root / place):
        if any((folder / name).is_file() for name in _CONFIGURATIONS):
            return folder
    if (root / "weights" / LORA_FILE).is_file():
        raise UserError(f"{text!r} holds an adapter and no {component}; draw with generate --lora {text}")
    raise UserError(f"no {component} in {text!r}; give a run folder with a checkpoint, a model folder or bundled model")


def fetch(name: str, patterns: Sequence[str], **hub_options: Any) -> str:
    """Folder, in the hub's cache, with those files of a hub model that match `patterns`.

    Raises UserError where the hub cannot be asked or has no such model.
    """
    try:
        return str(snapshot_download(name, allow_patterns=list(patterns), **hub_options))
    except (OSError, ValueError) as error:
        raise unloadable(name, error) from error


def unloadable(source: str, error: Exception) -> UserError:
    """The one-line error for a model that diffusers, transformers or the hub could not load."""
    where = (
        "copy or export the model again"
        if os.path.isdir(source)
        else "it is no folder here, and as a hub name it needs a network and an existing model"
    )
    return UserError(f"model {source} cannot be loaded: {where} ({one_line(error)})")
