"""`python -m benchmarks.full_size`, from the repository's root: measure or count, and draw bars."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from benchmarks.full_size import full
from benchmarks.full_size import plot as plots

from cogview3.cli.bench import pick_full_device
from cogview3.cli.errors import ReportingGroup
from cogview3.cli.options import DeviceOption, JsonOption, clean_stdout, pick_device, report
from cogview3.cli.pictures import plan_files
from cogview3.cli.progress import counter
from cogview3.config import UserError

app = typer.Typer(cls=ReportingGroup, rich_markup_mode=None, pretty_exceptions_enable=False)


class Scale(StrEnum):
    """Which networks are measured."""

    narrow = "narrow"
    full = "full"


@app.callback(invoke_without_command=True)
def main(
    scale: Annotated[Scale, typer.Option("--scale", help="narrow: a quarter of the widths, for a CPU.")] = Scale.full,
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="Runs of each kind; 3 by default.")] = None,
    count_only: Annotated[
        bool, typer.Option("--count-only", help="Count operations, run nothing; any machine will do.")
    ] = False,
    sides: Annotated[
        list[int] | None, typer.Option("--side", help="Pixels, repeatable; narrow 512, full 1024 and 2048 by default.")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Repeatable; narrow 1, full 1 and 4 by default.")
    ] = None,
    systems: Annotated[
        list[str] | None, typer.Option("--system", help="One of those compared; repeatable; all by default.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--eager", help="Compile all networks; full does by default.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw bars (needs plots).")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """CogView3 in its modes against SDXL, LCM-SDXL and Stable Cascade, with random weights."""
    if plot is not None:
        plan_files(plot, ["plot"])
    is_full = scale is Scale.full
    least = 512 if is_full else 256
    for side in sides or ():
        if side % 128 or not least <= side <= 4096:
            raise UserError(f"--side {side}: give a multiple of 128 from {least} to 4096")
    sizes = tuple(sides or (full.SIDES if is_full else full.NARROW_SIDES))
    with clean_stdout(as_json):
        if count_only:
            measuring = {"--batch": batches, "--repeats": repeats, "--compile/--eager": compiled is not None}
            if names := [name for name, value in measuring.items() if value]:
                raise UserError(f"{', '.join(names)} is for measuring: leave --count-only out, or leave {names[0]} out")
            result = full.count(sizes, str(scale), counter, systems or ())
            text, draw = full.describe_count(result), plots.of_counts
        else:
            result = full.run(
                sizes,
                tuple(batches or (full.BATCHES if is_full else (1,))),
                repeats or 3,
                pick_full_device(device, "--count-only, or --scale narrow") if is_full else pick_device(device),
                is_full if compiled is None else compiled,
                systems or (),
                str(scale),
                counter,
                lambda line: typer.echo(line, err=True),
            )
            text, draw = full.describe(result), plots.of_times
        if plot is not None:
            draw(result).savefig(plot, format="png")
    report(result, text, as_json)


if __name__ == "__main__":
    app()
