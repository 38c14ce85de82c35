"""Several processes: the same gradients and losses as one, whatever kills them, and on another number of them."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cogview3.config import UserError
from cogview3.training import parallel
from tests.training.processes import (
    die_at_call,
    die_in_checkpoint,
    in_processes,
    terminate,
    tiny_run,
    train_and_count,
    train_tiny,
    write_gradients,
    write_keys_and_terminate,
)
from tests.training.test_loop import metrics
from tests.training.test_sources import shard_recipe, write_pictures

SHARDED = {"sharded": {"train__shard": True}, "copies": {}}


def losses(run: Path) -> list[float]:
    return [value for line in metrics(run) for key, value in line.items() if key.endswith("loss")]


class WholeRuns(dict[str, Path]):
    """Undisturbed runs: of two processes, sharded and with copies; and of one, without memory. For reading only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        """Run at first use."""
        run, log = self.folder / name, self.folder / f"{name}.log"
        if name == "one":
            assert in_processes(1, train_tiny, tiny_run(data__text_dropout=0.0), run, log=log) == [0]
        else:
            counts = self.folder / f"{name}.calls"
            assert in_processes(2, train_and_count, tiny_run(**SHARDED[name]), run, counts, log=log) == [0, 0]
        self[name] = run
        return run


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return WholeRuns(tmp_path_factory.mktemp("whole"))


def told(log: Path) -> str:
    """What the main process printed."""
    return log.with_name(f"{log.name}.0").read_text()


def averages(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same_run(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    found, expected = averages(run), averages(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the first batch of six: in one process, in parts, with checkpointed activations, and in two processes."""
    folder = tmp_path_factory.mktemp("gradients")
    shared = {"train__batch": 6, "optimizer__clip": 1e6, "data__text_dropout": 0.0}
    shard, checkpoint = {"train__shard": True}, {"train__checkpoint_activations": True}
    alone = {
        "one": {},
        "parts": {"train__accumulation": 3},
        "uneven parts": {"train__accumulation": 4},
        "checkpointed": checkpoint,
    }
    two = {
        "copies": {},
        "copies in parts": {"train__accumulation": 2},
        "sharded": shard,
        "sharded and checkpointed": {**shard, **checkpoint},
    }
    found: dict[str, Any] = {}
    for count, kinds in ((1, alone), (2, two)):
        recipes, log = [tiny_run(**shared, **changes) for changes in kinds.values()], folder / f"{count}.log"
        assert in_processes(count, write_gradients, recipes, folder / "found.pt", log=log) == [0] * count, told(log)
        found |= dict(zip(kinds, torch.load(folder / "found.pt", weights_only=True), strict=True))
    return found


KINDS = ["parts", "uneven parts", "checkpointed"]
KINDS += ["copies", "copies in parts", "sharded", "sharded and checkpointed"]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_one_process_with_the_whole_batch(gradients: dict[str, Any], kind: str) -> None:
    expected, found = gradients["one"], gradients[kind]
    assert found["figures"] == pytest.approx(expected["figures"], rel=1e-5)
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, value in expected["gradients"].items():
        error = (found["gradients"][name] - value).norm() / value.norm()
        assert error < 1e-5, name  # float32 sums in another order


@pytest.mark.parametrize("kind", ["sharded", pytest.param("copies", marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_at_the_same_step_and_they_go_on_as_if_nothing_was(
    whole_runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    recipe, run, log = tiny_run(**SHARDED[kind]), tmp_path / "run", tmp_path / "log"
    stop = partial(terminate, images=12, process=1)
    assert in_processes(2, train_tiny, recipe, run, stop, log=log) == [143, 143], told(log)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["images-12", "images-8"]
    assert (run / "checkpoints" / "images-12" / "tensors").is_dir() == (kind == "sharded")
    assert "stopped at 12 images; the same command resumes" in told(log)
    assert in_processes(2, train_tiny, recipe, run, log=log) == [0, 0], told(log)
    assert "resuming with" not in told(log)
    assert_same_run(run, whole_runs[kind])


@pytest.mark.parametrize(
    ("before", "kind", "after"), [pytest.param(2, "sharded", 1, marks=pytest.mark.slow), (1, "copies", 2)]
)
def test_another_number_of_processes_goes_on_and_says_what_is_not_exact(
    whole_runs: dict[str, Path], tmp_path: Path, before: int, kind: str, after: int
) -> None:
    """`Tiny`'s data depend on its readers, so it is compared with memory off."""
    steady = {"data__text_dropout": 0.0, **SHARDED[kind]}
    recipe, run, log = tiny_run(**steady), tmp_path / "run", tmp_path / "log"
    stop = partial(terminate, images=12, process=0)
    assert in_processes(before, train_tiny, recipe, run, stop, log=log) == [143] * before, told(log)
    assert in_processes(after, train_tiny, recipe, run, log=log) == [0] * after, told(log)
    assert f"resuming with processes {before} -> {after}" in told(log)
    assert "agree in about six digits" in told(log)
    state = json.loads((run / "checkpoints" / "images-16" / "state.json").read_text())
    # reader 0 went on from its own position, and that of reader 1 was not lost
    drawn = [each["readers"] for each in state["objective"]]
    assert drawn[0]["0"] == 4
    assert len(drawn) == after
    if after == 1:
        assert drawn[0]["1"] == 3
    whole = whole_runs["one"]
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)  # float32 sums in another order
    found, expected = averages(run), averages(whole)
    for name, value in expected.items():
        # Adam's first steps go by the sign of a gradient, which is rounding where a gradient is next to nothing
        assert (found[name] - value).norm() < 1e-3 * value.norm() + 1e-4, name


@pytest.mark.parametrize("kind", ["sharded", "copies"])
@pytest.mark.slow
def test_two_processes_train_from_shards_through_a_signal_on_each_picture_once(
    runs: Path, tmp_path: Path, kind: str
) -> None:
    """An epoch of 20 pictures; with FSDP2 in buckets of many sizes, of which the processes may have different ones."""
    shards = write_pictures(tmp_path / "tars")
    lengths = {"train__images": 20, "train__batch": 4, "train__checkpoint_images": 8, "validate__every_images": 16}
    recipe = shard_recipe("base", runs, shards, data__buckets=kind == "sharded", **lengths, **SHARDED[kind])
    log = tmp_path / "log"

    def run(name: str, stop_at: int) -> list[int]:
        (tmp_path / f"{name}-keys").mkdir(exist_ok=True)
        act = partial(write_keys_and_terminate, folder=tmp_path / f"{name}-keys", images=stop_at)
        return in_processes(2, train_tiny, recipe, tmp_path / name, act, None, log=log)

    def keys(name: str) -> list[list[str]]:
        return [(tmp_path / f"{name}-keys" / f"keys-{process}").read_text().split("\n")[:-1] for process in (0, 1)]

    assert run("whole", stop_at=-1) == [0, 0], told(log)
    assert run("run", stop_at=12) == [143, 143], told(log)
    assert run("run", stop_at=-1) == [0, 0], told(log)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert keys("run") == keys("whole")
    used = [line["validation/data_used"] for line in metrics(tmp_path / "run") if "validation/data_used" in line]
    assert used[-1] >= 20, "of both processes"
    seen = [key for own in keys("run") for key in own]
    assert len(seen) == 20
    if kind == "copies":  # buckets put what is left of an epoch into the next
        assert len(set(seen)) == 20


def survive(folder: Path, seed: int, whole: Path, kind: str) -> None:
    """Kill one of two processes somewhere, even seeds within a checkpoint; the run goes on as if nothing had been."""
    recipe, run, log = tiny_run(**SHARDED[kind]), folder / f"{kind}-{seed}", folder / "log"
    rng = random.Random(seed)
    process = rng.randrange(2)
    counts = json.loads(whole.with_name(f"{kind}.calls-{process}").read_text())
    if seed % 2:
        work = partial(die_at_call, process=process, calls=rng.randint(1000, int(0.9 * counts["run"])))
    else:
        images = 8 * rng.randint(1, 2)
        calls = rng.randint(1, int(0.9 * counts[str(images)]))
        work = partial(die_in_checkpoint, process=process, images=images, calls=calls)
    codes = in_processes(2, work, recipe, run, log=log)
    assert min(codes) < 0, told(log)  # killed; the profile hook may also abort it within native code
    assert in_processes(2, train_tiny, recipe, run, log=log) == [0, 0], told(log)
    assert_same_run(run, whole)
    assert not list(run.rglob(".*")), "leftovers"


@pytest.mark.parametrize(("seed", "kind"), [(0, "sharded"), pytest.param(1, "copies", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_with_the_losses_it_would_have_had(
    whole_runs: dict[str, Path], tmp_path: Path, seed: int, kind: str
) -> None:
    survive(tmp_path, seed, whole_runs[kind], kind)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 23))
def test_many_killed_runs_go_on_alike(whole_runs: dict[str, Path], tmp_path: Path, seed: int) -> None:
    kind = ("sharded", "copies")[seed // 2 % 2]
    survive(tmp_path, seed, whole_runs[kind], kind)


def cut(folder: Path) -> None:
    path = next(iter(sorted(folder.glob("tensors/*.safetensors"))))
    path.write_bytes(path.read_bytes()[:-9])


def lose(folder: Path) -> None:
    next(iter(sorted(folder.glob("tensors/*00002*.safetensors")))).unlink()


def disturb(folder: Path) -> None:
    path = next(iter(sorted(folder.glob("tensors/*.safetensors"))))
    path.write_bytes(b"\xff" * path.stat().st_size)


def rename(folder: Path) -> None:
    path = next(iter(sorted(folder.glob("tensors/*00001*.safetensors"))))
    path.write_bytes(path.read_bytes().replace(b"conv_in", b"conv_on"))


@pytest.mark.parametrize("damage", [cut, lose, disturb, rename])
def test_a_damaged_part_is_told_with_the_mend(
    whole_runs: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_runs["sharded"], run)
    damage(run / "checkpoints" / "images-16")
    with pytest.raises(UserError, match=r"checkpoint .*images-16 is damaged .*delete it") as caught:
        train_tiny(tiny_run(**SHARDED["sharded"]), run)
    assert "\n" not in str(caught.value)


def test_all_samples_are_computed_once() -> None:
    for count in range(1, 14):
        for processes in (1, 2, 3):
            for accumulation in (1, 2, 5):
                split = [parallel.parts(7, count, p, processes, accumulation) for p in range(processes)]
                assert len({len(own) for own in split}) == 1, "all wait for each other as often"
                assert 1 <= len(split[0]) <= accumulation
                samples = [index for own in split for part in own for index in part]
                assert sorted(samples) == list(range(7, 7 + count))
