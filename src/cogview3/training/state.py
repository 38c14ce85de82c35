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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from cogview3.training import parallel
from cogview3.training.trainer import Trainer

PARTS = "tensors"
"""Folder of the parts within a checkpoint."""


def save(trainer: Trainer, folder: Path) -> None:
    """Write whole tensors into a folder."""
    save_file(_named(own_state(trainer.objective.trained)), folder / "model.safetensors")
    averages = dict(zip(trainer.parameters, trainer.ema.shadow_params, strict=True))
    save_file(_named(averages), folder / "ema.safetensors")
    torch.save(trainer.optimizer.state_dict(), folder / "optimizer.pt")


def save_parts(trainer: Trainer, folder: Path) -> None:
    """Write this process' parts into a folder that all processes share; all must call it."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save_distributed(_parts(trainer), storage_writer=writer)
    except CheckpointException as error:  # the same on all processes
        raise next(iter(error.failures.values()))[0] from error


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of the parts, by which a lost one is noticed."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def load(trainer: Trainer, folder: Path, state: dict[str, Any]) -> None:
    """Take over the tensors of a checkpoint, whole or in parts; `state` is what its state.json says.

    Raises ValueError and others, where it is damaged or of another network.
    """
    if (folder / PARTS).is_dir():
        if sizes(folder / PARTS) != state["files"]:
            raise ValueError(f"files in {PARTS}/ are missing or cut")
        loaded = _load_parts(trainer, folder / PARTS)
    else:
        loaded = _load_whole(trainer, folder)
    model, averages, moments = loaded
    own = own_state(trainer.objective.trained)
    with torch.no_grad():
        for name, value in model.items():
            parallel.local(own[name]).copy_(parallel.local(value))
    trainer.ema.shadow_params = [parallel.local(averages[name]) for name in trainer.parameters]
    numbered = {number: moments[name] for number, name in enumerate(trainer.parameters) if name in moments}
    trainer.optimizer.load_state_dict(
        {"state": numbered, "param_groups": trainer.optimizer.state_dict()["param_groups"]}
    )


Loaded = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]
"""Weights, averages and the optimizer's tensors, laid out as the parameters, by name."""


def _load_whole(trainer: Trainer, folder: Path) -> Loaded:
    trained, parameters = own_state(trainer.objective.trained), trainer.parameters
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


def _load_parts(trainer: Trainer, folder: Path) -> Loaded:
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata.keys()
    target = {name: torch.zeros_like(value) for name, value in _parts(trainer, all_moments=True).items()}
    target = {name: value for name, value in target.items() if name in stored or not name.startswith("optimizer.")}
    if stored != target.keys():
        raise ValueError("its tensor names are not this model's")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load_distributed(target, storage_reader=reader, no_dist=not dist.is_initialized())
    loaded: Loaded = {}, {}, {}
    for name, value in target.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            key, _, parameter = rest.partition(".")
            loaded[2].setdefault(parameter, {})[key] = value
        elif kind == "ema":
            loaded[1][rest] = value
        else:
            loaded[0][rest] = value
    return loaded


def _parts(trainer: Trainer, all_moments: bool = False) -> dict[str, Tensor]:
    """All tensors by "model.", "ema." or "optimizer.<key>." and their names; none is copied.

    With `all_moments` the optimizer's are there, in form, before its first step too.
    """
    tensors = {f"model.{name}": value.detach() for name, value in own_state(trainer.objective.trained).items()}
    for (name, parameter), shadow in zip(trainer.parameters.items(), trainer.ema.shadow_params, strict=True):
        tensors[f"ema.{name}"] = parallel.as_sharded(shadow, parameter)
        moments = trainer.optimizer.state.get(parameter, {})
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
