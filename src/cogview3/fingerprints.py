"""Hashes of models' files, to notice that one was changed; nothing is loaded.

Small files count whole; of large ones the size, the beginning (a safetensors file's table of tensors) and samples.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from cogview3.checkpoints import read_json
from cogview3.config import UserError
from cogview3.models.modes import Mode
from cogview3.references import MODEL_INDEX

_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of each weights file: all bytes of T5-XXL would take minutes
_WHOLE = 2**20  # files up to this size are read whole


def encoder_fingerprint(model: str | os.PathLike[str]) -> str:
    """Hash of a model folder's tokenizer and text encoder.

    Raises:
        UserError: no such folder, or no tokenizer or text encoder in it.
    """
    digest = hashlib.sha256()
    for name in ("tokenizer", "text_encoder"):
        if not _update_files(digest.update, Path(model) / name, f"{name}/"):
            raise UserError(f"{model} holds no {name}: a prompt cache needs a model folder with its text encoder")
    return digest.hexdigest()


def folder_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Hash of all files in a folder."""
    digest = hashlib.sha256()
    _update_files(digest.update, Path(folder))
    return digest.hexdigest()


def drawing_fingerprint(model: str | os.PathLike[str], mode: Mode) -> str:
    """Hash of the components of a model folder that draw in a mode; cards, other modes and expanders do not count.

    Raises:
        UserError: the folder's `model_index.json` is damaged.
    """
    digest, root = hashlib.sha256(), Path(model)
    index = read_json(root / MODEL_INDEX, "write the model again")
    own = {name: place for name in ("unet", "relay_unet") if (place := getattr(mode, name)) is not None}
    for name in sorted(name for name, value in index.items() if isinstance(value, list)):
        _update_files(digest.update, root / own.get(name, name), f"{name}/")
    return digest.hexdigest()


def _update_files(update: Callable[[bytes], None], folder: Path, prefix: str = "") -> bool:
    """Whether there are any."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        update(f"{prefix}{path.relative_to(folder)}:{path.stat().st_size};".encode())
        _update(update, path)
    return bool(files)


def _update(update: Callable[[bytes], None], path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            update(file.read())
            return
        update(file.read(_WHOLE // 16))
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            update(file.read(_SAMPLE_BYTES))
