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
