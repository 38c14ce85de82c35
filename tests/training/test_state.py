"""Checkpoints that were damaged or swapped: what cannot be gone on from is refused before anything is changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cogview3 import checkpoints
from cogview3.config import UserError, load_recipe
from cogview3.training import state
from tests.hostile import VALUES

POSITION = {
    "images": 10,
    "ema_steps": 5,
    "log": {"count": 1, "skipped": 0, "sums": {"loss": 1.5}},
    "fingerprint": "a",
    "spikes": {"losses": [1.5, 2], "in_a_row": 0},
    "split": {"processes": 1, "accumulation": 1, "sharded": False},
    "precision": "no",
    "objective": [{}],
}
EARLIER = {"images": 10, "ema_steps": 5}
"""As the first version wrote it."""


def stored(folder: Path, position: Any) -> Path:
    """A checkpoint's folder with this state.json."""
    checkpoint = folder / "images-10"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "state.json").write_text(json.dumps(position))
    return checkpoint


@pytest.mark.parametrize("position", [POSITION, EARLIER, POSITION | {"of_a_later_version": 1}])
def test_positions_are_read(tmp_path: Path, position: dict[str, Any]) -> None:
    found = state.read_position(stored(tmp_path, position))
    assert (found.images, found.ema_steps) == (10, 5)
    assert found.model_dump(include=set(position)).items() <= position.items()


@pytest.mark.parametrize("key", POSITION)
def test_no_value_of_another_type_passes(tmp_path: Path, key: str) -> None:
    kinds = {"images": int, "ema_steps": int, "fingerprint": str | None, "precision": str | None, "split": None}
    for value in VALUES:
        folder = stored(tmp_path, POSITION | {key: value})
        try:
            found = getattr(state.read_position(folder), key)
        except UserError as error:
            assert str(folder) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert key in ("log", "spikes", "objective") or found is None or isinstance(found, kinds[key])


@pytest.mark.parametrize("images", [0, 9, 11, 10**30, -10, True, 10.0, float("nan"), None])
def test_the_number_of_images_is_the_folders(tmp_path: Path, images: object) -> None:
    with pytest.raises(UserError, match="images-10 is damaged"):
        state.read_position(stored(tmp_path, POSITION | {"images": images}))


def test_a_missing_entry_is_named_without_all_the_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(ema_steps: ") as caught:
        state.read_position(stored(tmp_path, {"images": 10, "fingerprint": "a" * 500}))
    assert "aaa" not in str(caught.value)


@pytest.fixture
def trainer() -> Any:
    """What `state` looks at of a trainer, after a step."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    parameters = dict(network.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values())
    network(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    ema = SimpleNamespace(shadow_params=[p.detach().clone() for p in parameters.values()])
    objective = SimpleNamespace(trained=network)
    return SimpleNamespace(objective=objective, parameters=parameters, optimizer=optimizer, ema=ema)


def everything(trainer: Any) -> list[torch.Tensor]:
    """A copy of all tensors that a checkpoint holds."""
    moments = [each[key] for each in trainer.optimizer.state.values() for key in sorted(each)]
    held = [*trainer.objective.trained.state_dict().values(), *trainer.ema.shadow_params, *moments]
    return [tensor.detach().clone() for tensor in held]


def test_tensors_come_back_as_they_were(tmp_path: Path, trainer: Any) -> None:
    state.save(trainer, tmp_path)
    before = everything(trainer)
    for tensor in trainer.objective.trained.state_dict().values():
        tensor.zero_()
    state.load(trainer, tmp_path, {})
    assert all(torch.equal(*pair) for pair in zip(before, everything(trainer), strict=True))


Change = Callable[[torch.Tensor], torch.Tensor]
CHANGES: dict[str, Change] = {
    "not finite": lambda tensor: tensor * float("nan"),
    "infinite": lambda tensor: tensor / 0,
    "a number": lambda tensor: tensor.flatten()[0],
    "one number": lambda tensor: tensor.flatten()[:1],
    "transposed": lambda tensor: tensor.T,
    "flat": lambda tensor: tensor.flatten(),
    "whole numbers": lambda tensor: tensor.to(torch.int8),
    "truths": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("part", ["model", "ema", "exp_avg", "exp_avg_sq"])
def test_tensors_of_other_shapes_or_kinds_change_nothing(
    tmp_path: Path, trainer: Any, part: str, change: Change
) -> None:
    state.save(trainer, tmp_path)
    if part in ("model", "ema"):
        path = tmp_path / f"{part}.safetensors"
        tensors = load_file(path)
        save_file(tensors | {"0.weight": change(tensors["0.weight"]).contiguous()}, path)
    else:
        held = torch.load(tmp_path / "optimizer.pt")
        held["state"][0][part] = change(held["state"][0][part])
        torch.save(held, tmp_path / "optimizer.pt")
    before = everything(trainer)
    with pytest.raises(ValueError, match=r"0\.weight"):
        state.load(trainer, tmp_path, {})
    assert all(torch.equal(*pair) for pair in zip(before, everything(trainer), strict=True))


@pytest.mark.parametrize("key", ["step", "exp_avg_sq"])
def test_counts_and_squares_of_the_optimizer_are_not_negative(tmp_path: Path, trainer: Any, key: str) -> None:
    """Their roots and quotients would be no numbers, and the first step would end the run with its weights spoilt."""
    state.save(trainer, tmp_path)
    held = torch.load(tmp_path / "optimizer.pt")
    held["state"][1][key] = -held["state"][1][key] - 1
    torch.save(held, tmp_path / "optimizer.pt")
    before = everything(trainer)
    with pytest.raises(ValueError, match=f"0.bias: {key} of the optimizer is negative"):
        state.load(trainer, tmp_path, {})
    assert all(torch.equal(*pair) for pair in zip(before, everything(trainer), strict=True))


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, trainer: Any, name: str, kind: str) -> None:
    checkpoint = stored(tmp_path, POSITION)
    state.save(trainer, checkpoint)
    (checkpoint / name).unlink()
    if kind == "pipe":
        os.mkfifo(checkpoint / name)
    elif kind == "endless":
        (checkpoint / name).symlink_to("/dev/zero")
    else:
        (checkpoint / name).mkdir()
    with pytest.raises((OSError, UserError), match=name):  # noqa: PT012
        state.read_position(checkpoint)
        state.load(trainer, checkpoint, {})


@pytest.mark.parametrize("name", ["checkpoints", "samples", "weights", "metrics.jsonl", "skipped.jsonl"])
@pytest.mark.parametrize("kind", ["another kind", "nowhere"])
def test_a_run_in_whose_places_nothing_can_be_written_is_refused_at_the_start(
    tmp_path: Path, name: str, kind: str
) -> None:
    recipe, run = load_recipe("scenes/vae").to_dict(), tmp_path / "run"
    with checkpoints.open_run(run, recipe):
        pass
    if kind == "nowhere":  # a disk that is not mounted: the run would begin anew
        (run / name).symlink_to(tmp_path / "disk" / name)
    elif name.endswith("l"):
        (run / name).mkdir()
    else:
        (run / name).touch()
    with pytest.raises(UserError, match=f"{run / name} is no f"):
        checkpoints.check_run(run, recipe)
    assert not (tmp_path / "disk").exists()


def test_a_run_that_is_a_link_to_nowhere_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match="run is a broken link"):
        checkpoints.check_run(tmp_path / "run", load_recipe("scenes/vae").to_dict())
