"""`evaluate`: how right a model's pictures are."""

from pathlib import Path
from typing import Annotated

import typer

from cogview3.cli.options import (
    Device,
    DeviceOption,
    JsonOption,
    check_writable,
    clean_stdout,
    pick_device,
    report,
)


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL[@MODE]...", help="What to compare.")],
    prompts: Annotated[
        str, typer.Option("--prompts", help="Built-in set, or a file with a prompt a line.")
    ] = "scenes-heldout",
    count: Annotated[int, typer.Option("--count", min=1, help="Number of prompts.")] = 500,
    metrics: Annotated[str, typer.Option("--metrics", help="Names of metrics, joined by commas.")] = "scene",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the prompts' noise.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures drawn at once.")] = 8,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the table, the pictures and their grid.")
    ] = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Score models on a set of prompts.

    Chance and ceiling stand beside every figure.
    """
    if out is not None:
        check_writable(out)
    with clean_stdout(as_json):
        from cogview3.evaluation.tables import evaluate as run

        names = [name.strip() for name in metrics.split(",")]
        result = run(models, prompts, count, names, seed=seed, out=out, batch=batch, device=pick_device(device))
    report(result, str(result), as_json)
