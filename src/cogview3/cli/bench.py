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
