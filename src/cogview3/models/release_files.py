"""The published release's files: finding, reading (without running anything in them) and writing them.

<folder>/latest                                    names the iteration, such as 1
<folder>/<iteration>/mp_rank_00_model_states.pt    a dictionary whose "module" maps names to tensors
sdxl_vae.safetensors                               SDXL's VAE under its original names
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cogview3.config import UserError
from cogview3.errors import one_line

LATEST = "latest"
STATES = "mp_rank_00_model_states.pt"
VAE_FILE = "sdxl_vae.safetensors"

_FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_SHOWN = 5  # names in an error, of each kind


def find_unet_file(path: Path) -> Path:
    """The file with a UNet's tensors: `path` itself, or the one that the folder's `latest` leads to.

    Raises UserError saying what is missing.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give a UNet's folder, the one with {LATEST!r}, or its .pt file")
    latest = path / LATEST
    if not latest.is_file():
        raise UserError(f"{path} has no file {LATEST!r} that names the iteration: give the folder that has it")
    with latest.open("rb") as file:
        iteration = file.read(100).decode("utf-8", "replace").strip()
    if not re.fullmatch(r"\w[\w.-]*", iteration):
        raise UserError(f"{latest} names no iteration but {iteration!r}: write the subfolder's name into it, such as 1")
    states = path / iteration / STATES
    if not states.is_file():
        raise UserError(f"{latest} names iteration {iteration!r}, but there is no {states}: download it again")
    return states


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a .safetensors file, or of the "module" of a .pt file; memory-mapped, on the CPU.

    Nothing in the file is run: a pickle with anything but tensors and plain values is refused.

    Raises UserError where it is missing, truncated, or holds other than tensors of floats of 16, 32 or 64 bits.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: give the weights' file")
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            reason = one_line(error, 150)
            raise UserError(f"{path} is damaged or no safetensors file ({reason}): download it again") from None
    else:
        tensors = _read_pickle(path)
    for name, tensor in tensors.items():
        dense = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        if not isinstance(name, str) or not dense or not tensor.is_floating_point():
            raise UserError(f"{path}: {name!r} is no tensor of floating-point numbers: give a file of weights")
        if tensor.is_meta:
            raise UserError(f"{path}: {name!r} has a shape but no numbers (meta): give a file of weights")
        if tensor.dtype not in _FORMATS:
            found = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name!r} is {found}: give weights in float16, bfloat16, float32 or float64")
    total, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if total > size:  # as views of few numbers can be of any shape
        raise UserError(f"{path} has {size} bytes, but its tensors {total}: give a file in which none share numbers")
    return tensors


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"more than tensors ({found[1]})" if found else "something else than tensors, or is damaged"
        raise UserError(
            f"{path} holds {what}; nothing in it was run: give a file with tensors alone, .safetensors say"
        ) from None
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # what torch raises on a damaged file depends on where the damage is
        raise UserError(
            f"{path} is damaged, or no file that torch.save writes ({one_line(error, 150)}): download it again"
        ) from None
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict):
        raise UserError(f"{path} has no dictionary 'module': give the release's {STATES}")
    return module


def check_tensors(
    path: Path, expected: Mapping[str, Sequence[int]], found: Mapping[str, torch.Tensor], kind: str
) -> None:
    """Refuse names or shapes other than the expected ones, those of a `kind` of network in the file `path`.

    Raises UserError, which counts the missing, unexpected and misshapen names and lists the first of each.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    faults = [f"{len(names)} {fault} ({listing(names)})" for fault, names in kinds.items() if names]
    if faults:
        raise UserError(f"{path} is no {kind} of the release: tensors {', '.join(faults)}; download it again")


def listing(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def write_unet_file(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a UNet's tensors, by the release's names, as iteration 1 of `folder`, which must not exist yet."""
    iteration = folder / "1"
    iteration.mkdir(parents=True)
    torch.save({"module": tensors}, iteration / STATES)
    (folder / LATEST).write_text("1")
