"""`bench`: reports on speed."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cogview3.cli.options import (
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    clean_stdout,
    pick_device,
    pick_dtype,
    report,
)
from cogview3.cli.pictures import plan_files
from cogview3.config import UserError

app = typer.Typer(rich_markup_mode=None)


class Scale(StrEnum):
    """Which networks are measured."""

    small = "small"
    narrow = "narrow"
    full = "full"


@app.callback()
def group() -> None:
    """Measure speed, side by side in one run."""


@app.command()
def inference(
    scale: Annotated[Scale, typer.Option("--scale", help="Size of the networks.")] = Scale.small,
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="Runs of each kind; by default 3.")] = None,
    count_only: Annotated[
        bool, typer.Option("--count-only", help="Narrow, full: count operations, run nothing; any machine will do.")
    ] = False,
    sides: Annotated[
        list[int] | None,
        typer.Option("--side", help="Narrow, full: pixels, repeatable; narrow 512, full 1024 and 2048 by default."),
    ] = None,
    batches: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Narrow, full: repeatable; narrow 1, full 1 and 4 by default."),
    ] = None,
    systems: Annotated[
        list[str] | None,
        typer.Option("--system", help="Narrow, full: one of those compared; repeatable."),
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--eager", help="Narrow, full: compile all networks; full does by default.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Narrow, full: draw bars.")] = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Relay against a single stage at the final size, prompt to picture.

    --scale full: against other systems, with random weights; narrow: likewise with a quarter of the widths, for a CPU.
    """
    if plot is not None:
        plan_files(plot, ["plot"])
    with clean_stdout(as_json):
        from cogview3.cli.progress import counter

        if scale is Scale.small:
            _refuse_full_options(count_only, sides, batches, systems, compiled, plot)
            from cogview3.bench.inference import describe, run

            result = run(str(scale), repeats=repeats or 3, device=pick_device(device), counter=counter)
            text = describe(result)
        else:
            from cogview3.bench import full
            from cogview3.bench import plot as plots

            is_full = scale is Scale.full
            least = 512 if is_full else 256
            for side in sides or ():
                if side % 128 or not least <= side <= 4096:
                    raise UserError(f"--side {side}: give a multiple of 128 from {least} to 4096")
            sizes = tuple(sides or (full.SIDES if is_full else full.NARROW_SIDES))
            if count_only:
                _refuse(
                    {"--batch": batches, "--repeats": repeats} | _compiling(compiled),
                    "is for measuring: leave --count-only out",
                )
                result = full.count(sizes, str(scale), counter, systems or ())
                text, draw = full.describe_count(result), plots.of_counts
            else:
                where = pick_full_device(device, "--count-only, or --scale narrow") if is_full else pick_device(device)
                result = full.run(
                    sizes,
                    tuple(batches or (full.BATCHES if is_full else (1,))),
                    repeats or 3,
                    where,
                    is_full if compiled is None else compiled,
                    systems or (),
                    str(scale),
                    counter,
                    lambda line: typer.echo(line, err=True),
                )
                text, draw = full.describe(result), plots.of_times
            if plot is not None:
                draw(result).save(plot)
    report(result, text, as_json)


def pick_full_device(device: Device, instead: str) -> str:
    """A GPU: without one, networks of that size would take hours. Raises UserError, with what to do instead."""
    where = pick_device(device)
    if where != "cuda":
        raise UserError(f"--scale full needs a CUDA GPU, not {where}: give {instead}")
    return where


def _refuse_full_options(
    count_only: bool,
    sides: list[int] | None,
    batches: list[int] | None,
    systems: list[str] | None,
    compiled: bool | None,
    plot: Path | None,
) -> None:
    given = {"--count-only": count_only, "--side": sides, "--batch": batches, "--system": systems, "--plot": plot}
    _refuse(given | _compiling(compiled), "is for --scale full or narrow: add it")


def _compiling(compiled: bool | None) -> dict[str, bool]:
    return {"--eager" if compiled is False else "--compile": compiled is not None}


def _refuse(given: dict[str, Any], why: str) -> None:
    if names := [name for name, value in given.items() if value]:
        raise UserError(f"{', '.join(names)} {why}, or leave {names[0]} out")


@app.command()
def data(
    pictures: Annotated[int, typer.Option("--pictures", min=16, help="Pictures read in each run.")] = 512,
    size: Annotated[int, typer.Option("--size", min=64, max=4096, help="Side of the square bucket.")] = 512,
    shards: Annotated[int, typer.Option("--shards", min=10, max=100_000, help="Tars in the larger set.")] = 10_000,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind; medians are given.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Tars to batches against bare JPEG decoding and resizing, on one core."""
    with clean_stdout(as_json):
        from cogview3.bench.data import describe, run
        from cogview3.cli.progress import counter

        result = run(pictures=pictures, size=size, shards=shards, repeats=repeats, counter=counter)
    report(result, describe(result), as_json)


class TrainingScale(StrEnum):
    """Which network is trained."""

    small = "small"
    full = "full"


@app.command()
def training(
    scale: Annotated[TrainingScale, typer.Option("--scale", help="Size of the network.")] = TrainingScale.small,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Samples of a step; 32, or 16 at full.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each run.")] = 3,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind; medians are given.")] = 3,
    checkpoint_activations: Annotated[
        bool | None,
        typer.Option("--checkpoint-activations/--keep-activations", help="Compute activations twice; default at full."),
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--eager", help="Compile the loop's network; default on a GPU.")
    ] = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """The loop's step against a plain diffusers step, on the same UNet."""
    with clean_stdout(as_json):
        from cogview3.bench.training import describe, run
        from cogview3.cli.progress import counter

        result = run(
            str(scale),
            batch=batch,
            steps=steps,
            repeats=repeats,
            checkpoint_activations=checkpoint_activations,
            compiled=compiled,
            device=pick_device(device),
            counter=counter,
        )
    report(result, describe(result), as_json)


class Stage(StrEnum):
    """Which stage is distilled."""

    base = "base"
    relay = "relay"


class DistillationScale(StrEnum):
    """Which networks are distilled."""

    narrow = "narrow"
    full = "full"


@app.command()
def distillation(
    stage: Annotated[Stage, typer.Option("--stage", help="Stage of the paper's recipes.")] = Stage.base,
    scale: Annotated[
        DistillationScale, typer.Option("--scale", help="Size of the networks; narrow: a quarter of the widths.")
    ] = DistillationScale.full,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Samples of a step; 16, of a relay 4.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps that are timed, after one.")] = 3,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations/--keep-activations", help="Compute activations twice.")
    ] = True,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Time and memory of a step of distillation, teacher and student on one device."""
    where = pick_full_device(device, "--scale narrow") if scale is DistillationScale.full else pick_device(device)
    with clean_stdout(as_json):
        from cogview3.bench.distillation import describe, run
        from cogview3.cli.progress import counter

        result = run(
            str(stage),
            str(scale),
            batch=batch,
            steps=steps,
            checkpoint_activations=checkpoint_activations,
            device=where,
            counter=counter,
        )
    report(result, describe(result), as_json)


@app.command()
def captions(
    shards: Annotated[list[str], typer.Argument(metavar="SHARDS...", help="Tars on a disk; they are copied.")],
    model: Annotated[str, typer.Option("--model", help="Folder, run or hub name of an image-text-to-text model.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures at once.")] = 8,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Of a caption.")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind; medians are given.")] = 3,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    as_json: JsonOption = False,
) -> None:
    """Re-captioning whole shards against bare generation of the same pictures."""
    with clean_stdout(as_json):
        from cogview3.bench.captions import describe, run
        from cogview3.captions.model import ModelJob
        from cogview3.cli.progress import counter
        from cogview3.data.formats import find_shards

        where = pick_device(device)
        kind = str(pick_dtype(dtype, where)).removeprefix("torch.")
        job = ModelJob(model, where, kind, batch, max_new_tokens=max_new_tokens)
        result = run(find_shards(shards), job, repeats=repeats, counter=counter)
    report(result, describe(result), as_json)
