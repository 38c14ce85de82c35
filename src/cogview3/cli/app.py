"""The `cogview3` command, put together from its groups."""

from typing import Annotated

import typer

from cogview3 import __version__
from cogview3.cli import (
    bench,
    captions,
    convert,
    data,
    evaluate,
    expand,
    generate,
    info,
    reproduce,
    serve,
    study,
    train,
    upscale,
)
from cogview3.cli.errors import ReportingGroup


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cogview3 {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="COGVIEW3_DEBUG", help="Show tracebacks instead of one line.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Generate images from text by relay diffusion: draw small, then refine from halfway."""


app.command()(generate.generate)
app.command()(upscale.upscale)
app.command()(expand.expand)
app.command()(serve.serve)
app.command()(info.info)
app.command()(train.train)
app.command()(train.distill)
app.command()(train.export)
app.command()(convert.convert)
app.command()(evaluate.evaluate)
app.add_typer(data.app, name="data")
app.add_typer(captions.app, name="captions")
app.add_typer(bench.app, name="bench")
app.add_typer(reproduce.app, name="reproduce")
app.add_typer(study.app, name="study")
