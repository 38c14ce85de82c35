"""`train`, `distill` and `export`: from a recipe to a run, from runs to a model folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from cogview3.cli import options
from cogview3.cli.loading import quiet_libraries
from cogview3.cli.settings import with_options
from cogview3.config import UserError
from cogview3.config.settings import parse_settings

RecipeArgument = Annotated[str, typer.Argument(help="Recipe name such as scenes/relay, or a TOML file.")]
RoundsArgument = Annotated[str, typer.Argument(help="Recipe name such as scenes/distill_base, or a TOML file.")]
RunOption = Annotated[str, typer.Option(metavar="RUN", help="Run or model whose EMA weights are taken.")]


class RunOptions(BaseModel):
    """How a recipe is run."""

    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override an entry of the recipe; repeatable."),
    ] = None
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder; runs/<recipe name> by default.")] = None
    restart: options.RestartOption = False
    device: options.DeviceOption = "auto"
    as_json: options.JsonOption = False


@with_options(how=RunOptions)
def train(recipe: RecipeArgument, how: RunOptions) -> None:
    """Train a recipe, or resume its run.

    The same command resumes a stopped run.
    """
    with _loaded(recipe, how) as (loaded, run):
        from cogview3.training.loop import train

        result = train(loaded, out=run, restart=how.restart, device=options.pick_device(how.device))
    _report(result, options.lines(result), how.as_json)


@with_options(how=RunOptions)
def distill(recipe: RoundsArgument, how: RunOptions) -> None:
    """Distill a base or relay stage into few steps, or resume a distillation.

    The same command resumes a stopped run; finished rounds are not repeated.
    """
    with _loaded(recipe, how) as (loaded, run):
        from cogview3.distillation.rounds import distill

        result = distill(loaded, out=run, restart=how.restart, device=options.pick_device(how.device))
    _report(result, "\n".join([f"run: {result['run']}", *map(_round_line, result["rounds"])]), how.as_json)


@contextmanager
def _loaded(recipe: str, how: RunOptions) -> Iterator[tuple[Any, Path]]:
    """A recipe and its run folder, --out or runs/<name>, with the libraries quiet within the block."""
    from cogview3.config import load_recipe

    loaded = load_recipe(recipe, how.overrides or [])
    run = how.out or Path("runs") / loaded.name
    if run.exists() and not run.is_dir():
        raise UserError(f"--out {run} is a file; give a run folder")
    with options.clean_stdout(how.as_json):
        quiet_libraries()
        yield loaded, run


def _report(result: dict[str, Any], text: str, as_json: bool) -> None:
    """End what `torchrun` and the like began; of several processes, the main one reports."""
    from torch import distributed

    main = not distributed.is_initialized() or distributed.get_rank() == 0
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if main:
        options.report(result, text, as_json)


def _round_line(entry: dict[str, Any]) -> str:
    """One round in words, such as `round-4: 8 to 4 steps, 20000 images, loss 0.0123 to 0.0031, 812 s`."""
    steps = f"{entry['teacher_steps']} to {entry['student_steps']} steps, " if "student_steps" in entry else ""
    losses = f"loss {entry['first_loss']:.4g} to {entry['loss']:.4g}"
    return f"{entry['round']}: {steps}{entry['images']} images, {losses}, {entry['seconds']:.0f} s"


def export(
    vae: RunOption,
    text: RunOption,
    base: RunOption,
    out: Annotated[Path, typer.Option("-o", "--out", help="Model folder to write.")],
    relay: Annotated[str | None, typer.Option(metavar="RUN", help="Run of the relay stage, if there is one.")] = None,
    enlarger: Annotated[
        str | None, typer.Option("--enlarger", metavar="RUN", help="Run of a latent enlarger, for light modes.")
    ] = None,
    light_decoder: Annotated[
        str | None, typer.Option("--light-decoder", metavar="RUN", help="Run of a tiny decoder, for light modes.")
    ] = None,
    expander: Annotated[
        str | None, typer.Option("--expander", metavar="RUN", help="Run of a small prompt expander.")
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            metavar="NAME[=BASE,RELAY]",
            help="Runs of another mode, or MODEL@MODE for each, such as 4+1=a,scenes@4+1; or fewer steps, as in 8+2.",
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Store the UNets of --mode in int8, half of float16's size.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set the default mode's steps, guidance and so on."),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Combine trained runs into a model.

    Writes EMA weights in float16 as a folder in diffusers' format.
    """
    modes = parse_modes([entry for entry in mode or [] if "=" in entry])
    fewer_steps = [entry for entry in mode or [] if "=" not in entry]
    sampling = parse_settings(settings or [], "guidance=4.5")
    options.check_writable(out)
    warn_of_replacing(out)
    if int8 and not modes:
        raise UserError("--int8 is for the UNets of --mode; give one, such as --mode 4+1=scenes@4+1,scenes@4+1")
    with options.clean_stdout(as_json):
        quiet_libraries()
        from cogview3.training.export import export as write

        given = {"latent_enlarger": enlarger, "light_decoder": light_decoder}
        light = {name: run for name, run in given.items() if run is not None}
        result = write(vae, text, base, relay, modes, out, sampling, light, expander, int8, fewer_steps)
    options.report(result, f"model written to {out}: {result['bytes'] / 1e6:.1f} MB", as_json)


def warn_of_replacing(out: Path) -> None:
    """Warn on stderr that an existing model will be replaced."""
    if (out / "model_index.json").is_file():
        typer.echo(f"{out} already holds a model, which is replaced", err=True)


def parse_modes(entries: list[str]) -> dict[str, tuple[str, str]]:
    """Base and relay by mode, from `NAME=BASE,RELAY` each; the same mode twice is a `UserError`."""
    modes: dict[str, tuple[str, str]] = {}
    for entry in entries:
        name, _, runs = entry.partition("=")
        stages = [run for run in runs.split(",") if run]
        if not name or len(stages) != 2:
            raise UserError(f"--mode {entry}: write NAME=BASE,RELAY, such as 4+1=some/base,some/relay")
        if name in modes:
            raise UserError(f"--mode {name} is given twice; give each mode once")
        modes[name] = stages[0], stages[1]
    return modes
