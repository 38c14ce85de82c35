"""The parts of a checkpoint: network, averages and optimizer; whole, or one part from each process.

Whole, as one process or several with equal copies write it: model.safetensors, ema.safetensors, optimizer.pt. In
parts, as sharded training writes it with torch.distributed.checkpoint: tensors/*.safetensors. Either is read by any
number of processes, sharded or not.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.config.tables import Count, Positive
from cogview3.errors import one_line
from cogview3.training import parallel
from cogview3.training.trainer import Trainer

PARTS = "tensors"
"""Folder of the parts within a checkpoint."""


class _Entry(BaseModel):
    """Keys that a later version may add are left alone."""

    model_config = ConfigDict(frozen=True, strict=True)


class LogState(_Entry):
    """Sums since the last logged line, of `count` steps."""

    count: Count = 0
    skipped: Count = 0
    sums: dict[str, float] = {}


class Spikes(_Entry):
    """What `SpikeRule` remembers."""

    losses: list[FiniteFloat] = []
    in_a_row: Count = 0


class Split(_Entry):
    """On what the order of sums depends, and so the last digits of the losses."""

    processes: Positive
    accumulation: Positive
    sharded: bool = False


class Position(_Entry):
    """Where a run stands: state.json of a checkpoint. What earlier versions did not write down has a default.

    Attributes:
        images: trained so far, as the checkpoint's folder says too.
        ema_steps: that the averages are of.
        files: bytes of each file of the parts, where there are any.
        fingerprint: what the weights depend on beside the recipe.
        objective: each process' position in the data.
    """

    images: Count
    ema_steps: Count
    files: dict[str, int] = {}
    log: LogState = LogState()
    fingerprint: str | None = None
    spikes: Spikes = Spikes()
    split: Split | None = None
    precision: str | None = None
    objective: Annotated[list[dict[str, Any]], Field(min_length=1)] = [{}]


def read_position(folder: Path) -> Position:
    """state.json of a checkpoint's folder.

    Raises UserError where it is missing or damaged, or is of another number of images than the folder says.
    """
    stored = checkpoints.read_state(folder)
    try:
        position = Position.model_validate(stored)
        if folder.name != checkpoints.checkpoint_name(position.images):
            raise ValueError(f"images {position.images}: the folder's name says another number")
    except ValueError as error:
        raise damaged(folder, error) from None
    return position


def damaged(folder: Path, error: Exception) -> UserError:
    """What to tell of a checkpoint that cannot be gone on from."""
    return UserError(f"checkpoint {folder} is damaged ({one_line(error)}); delete it to resume from the one before")


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


def load(trainer: Trainer, folder: Path, files: dict[str, int]) -> None:
    """Take over the tensors of a checkpoint, whole or in parts; `files` are the parts' sizes.

    Raises ValueError and others, where it is damaged or of another network.
    """
    if (folder / PARTS).is_dir():
        if sizes(folder / PARTS) != files:
            raise ValueError(f"files in {PARTS}/ are missing or cut")
        loaded = _load_parts(trainer, folder / PARTS)
    else:
        loaded = _load_whole(trainer, folder)
    model, averages, moments = loaded
    for name, value in _all_of(*loaded):
        if not torch.isfinite(parallel.local(value)).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    for name, held in moments.items():
        if negative := [key for key in ("step", "exp_avg_sq") if (parallel.local(held[key]) < 0).any()]:
            raise ValueError(f"{name}: {negative[0]} of the optimizer is negative")
    own = own_state(trainer.objective.trained)
    with torch.no_grad():
        for name, value in model.items():
            parallel.local(own[name]).copy_(parallel.local(value))
    trainer.ema.shadow_params = [parallel.local(averages[name]) for name in trainer.parameters]
    numbered = {number: moments[name] for number, name in enumerate(trainer.parameters) if name in moments}
    trainer.optimizer.load_state_dict(
        {"state": numbered, "param_groups": trainer.optimizer.state_dict()["param_groups"]}
    )


_MOMENTS = ("exp_avg", "exp_avg_sq")

Loaded = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]
"""Weights, averages and the optimizer's tensors, laid out as the parameters, by name."""


def _load_whole(trainer: Trainer, folder: Path) -> Loaded:
    trained, parameters = own_state(trainer.objective.trained), trainer.parameters
    model, averages = (load_file(checkpoints.regular(folder / f"{name}.safetensors")) for name in ("model", "ema"))
    if model.keys() != trained.keys() or not averages.keys() >= parameters.keys():
        raise ValueError("its tensor names are not this model's")
    stored = torch.load(checkpoints.regular(folder / "optimizer.pt"), map_location="cpu", weights_only=True)["state"]
    moments = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        if number in stored:
            if stored[number].keys() != {"step", *_MOMENTS}:
                raise ValueError(f"{name}: the optimizer's tensors are {', '.join(map(str, stored[number]))}")
            moments[name] = {
                key: value.float() if key == "step" and not value.ndim else _like(name, value, parameter)
                for key, value in stored[number].items()
            }
    return (
        {name: _like(name, value, trained[name]) for name, value in model.items()},
        {name: _like(name, averages[name], parameter) for name, parameter in parameters.items()},
        moments,
    )


def _like(name: str, value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor laid out as a parameter, whose shape and kind of numbers it must have."""
    if value.shape != parameter.shape:
        raise ValueError(f"{name}: a tensor of shape {tuple(value.shape)} instead of {tuple(parameter.shape)}")
    if (value.is_floating_point(), value.is_complex()) != (parameter.is_floating_point(), parameter.is_complex()):
        raise ValueError(f"{name}: a tensor of {value.dtype} instead of {parameter.dtype}")
    return parallel.like(value, parameter)


def _all_of(*loaded: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """All tensors, those within dictionaries too, with the names that they have there."""
    for tensors in loaded:
        for name, value in tensors.items():
            yield from ((name, value),) if isinstance(value, Tensor) else ((name, each) for each in value.values())


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
            moments = dict.fromkeys(_MOMENTS, parameter.detach()) | {"step": torch.zeros(())}
        tensors |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
    return tensors


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers by name, each tied tensor once."""
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    names |= {name for name, _ in module.named_buffers()}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if name in names}


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
