"""`bench`: reports on speed."""

from enum import StrEnum
from typing import Annotated

import typer

from cogview3.cli.options import Device, DeviceOption, JsonOption, clean_stdout, pick_device, report

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


class Scale(StrEnum):
    """Which networks are measured."""

    small = "small"


@app.callback()
def group() -> None:
    """Measure speed, side by side in one run."""


@app.command()
def inference(
    scale: Annotated[Scale, typer.Option("--scale", help="Size of the networks.")] = Scale.small,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Relay against a single stage at the full size, prompt to picture."""
    with clean_stdout(as_json):
        from cogview3.bench.inference import run

        result = run(str(scale), device=pick_device(device))
    report(result, "\n".join(f"{key}: {value}" for key, value in result.items()), as_json)
