"""`bench`: reports on speed."""

from enum import StrEnum
from typing import Annotated

import typer

from cogview3.cli.options import Device, DeviceOption, JsonOption, clean_stdout, pick_device, report

app = typer.Typer(rich_markup_mode=None)


class Scale(StrEnum):
    """Which networks are measured."""

    small = "small"


@app.callback()
def group() -> None:
    """Measure speed, side by side in one run."""


@app.command()
def inference(
    scale: Annotated[Scale, typer.Option("--scale", help="Size of the networks.")] = Scale.small,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind; medians are given.")] = 3,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Relay against a single stage at the full size, prompt to picture."""
    with clean_stdout(as_json):
        from cogview3.bench.inference import describe, run
        from cogview3.cli.progress import counter

        result = run(str(scale), repeats=repeats, device=pick_device(device), counter=counter)
    report(result, describe(result), as_json)


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
