"""What a checkpoint holds of the network, its averages and its optimizer; whole, or a part from each process.

Whole, as one process or several with equal copies write it: model.safetensors, ema.safetensors, optimizer.pt. In
parts, as sharded training writes it with torch.distributed.checkpoint: tensors/*.safetensors. Either is read by any
number of processes, sharded or not.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from cogview3.training import parallel
from cogview3.training.steps import Steps

PARTS = "tensors"
"""Folder of the parts within a checkpoint."""


def save(steps: Steps, folder: Path) -> None:
    """Write whole tensors into a folder."""
    save_file(_named(own_state(steps.objective.trained)), folder / "model.safetensors")
    averages = dict(zip(steps.parameters, steps.ema.shadow_params, strict=True))
    save_file(_named(averages), folder / "ema.safetensors")
    torch.save(steps.optimizer.state_dict(), folder / "optimizer.pt")


def save_parts(steps: Steps, folder: Path) -> None:
    """Write this process' parts into a folder that all processes share; all must call it."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(_parts(steps), storage_writer=writer)
    except CheckpointException as error:  # the same on all processes
        raise next(iter(error.failures.values()))[0] from error


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of the parts, by which a lost one is noticed."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def load(steps: Steps, folder: Path, state: dict[str, Any]) -> None:
    """Take over the tensors of a checkpoint, whole or in parts; `state` is what its state.json says.

    Raises ValueError and others, where it is damaged or of another network.
    """
    if (folder / PARTS).is_dir():
        if sizes(folder / PARTS) != state["files"]:
            raise ValueError(f"files in {PARTS}/ are missing or cut")
        loaded = _load_parts(steps, folder / PARTS)
    else:
        loaded = _load_whole(steps, folder)
    model, averages, moments = loaded
    own = own_state(steps.objective.trained)
    with torch.no_grad():
        for name, value in model.items():
            parallel.local(own[name]).copy_(parallel.local(value))
    steps.ema.shadow_params = [parallel.local(averages[name]) for name in steps.parameters]
    numbered = {number: moments[name] for number, name in enumerate(steps.parameters) if name in moments}
    steps.optimizer.load_state_dict({"state": numbered, "param_groups": steps.optimizer.state_dict()["param_groups"]})


Loaded = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]
"""Weights, averages and the optimizer's tensors, laid out as the parameters, by name."""


def _load_whole(steps: Steps, folder: Path) -> Loaded:
    trained, parameters = own_state(steps.objective.trained), steps.parameters
    model, averages = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    if model.keys() != trained.keys() or not averages.keys() >= parameters.keys():
        raise ValueError("its tensor names are not this model's")
    stored = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)["state"]
    moments = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        if number in stored:
            moments[name] = {key: _like(value, parameter) for key, value in stored[number].items()}
    return (
        {name: _like(value, trained[name]) for name, value in model.items()},
        {name: _like(averages[name], parameter) for name, parameter in parameters.items()},
        moments,
    )


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor laid out as a parameter; counts of steps, which are numbers, as they are."""
    return parallel.like(value, parameter) if value.ndim or not parameter.ndim else value


def _load_parts(steps: Steps, folder: Path) -> Loaded:
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata.keys()
    target = {name: torch.zeros_like(value) for name, value in _parts(steps, all_moments=True).items()}
    target = {name: value for name, value in target.items() if name in stored or not name.startswith("optimizer.")}
    if stored != target.keys():
        raise ValueError("its tensor names are not this model's")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(target, storage_reader=reader, no_dist=not dist.is_initialized())
    loaded: Loaded = {}, {}, {}
    for name, value in target.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            key, _, parameter = rest.partition(".")
            loaded[2].setdefault(parameter, {})[key] = value
        else:
            loaded[kind == "ema"][rest] = value
    return loaded


def _parts(steps: Steps, all_moments: bool = False) -> dict[str, Tensor]:
    """All tensors by "model.", "ema." or "optimizer.<key>." and their names; none is copied.

    With `all_moments` the optimizer's are there, in form, before its first step too.
    """
    tensors = {f"model.{name}": value.detach() for name, value in own_state(steps.objective.trained).items()}
    for (name, parameter), shadow in zip(steps.parameters.items(), steps.ema.shadow_params, strict=True):
        tensors[f"ema.{name}"] = parallel.as_sharded(shadow, parameter)
        moments = steps.optimizer.state.get(parameter, {})
        if all_moments and not moments:
            moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.detach()) | {"step": torch.zeros(())}
        tensors |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
    return tensors


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers by name, each tied tensor once."""
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    names |= {name for name, _ in module.named_buffers()}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if name in names}


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
