"""`reproduce`: figures and tables of the papers, measured again."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from cogview3.cli import options
from cogview3.config import UserError

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def tables(
    context: typer.Context,
    model: options.ModelOption = "scenes",
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts: 5 minutes instead of 30.")] = False,
    count: Annotated[
        int | None, typer.Option("--count", min=2, help="Number of prompts; default 64, or 8 with --quick.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Add the rows that need a training; the same command resumes it.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the prompts' noise.")] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report.")] = Path("reproduced"),
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Measure the paper's tables on the shipped system; `reproduce snr` its figure of noise."""
    if context.invoked_subcommand is not None:
        return
    options.check_writable(out)
    with options.clean_stdout(as_json):
        from cogview3.cli.expand import ExpanderOptions, open_expander
        from cogview3.cli.loading import quiet_libraries
        from cogview3.cli.progress import counter
        from cogview3.references import find
        from cogview3.reproduce import paper, snr_plots, training

        snr_plots.new_figure()  # first, so that a missing package costs no work
        quiet_libraries()
        place = options.pick_device(device)
        expander = None
        if (Path(find(model).source) / "expander").is_dir():
            expander = open_expander(model, ExpanderOptions(), device)
        trained = {}
        if train:
            runs = training.trainings(model, quick)
            total = sum(run.minutes for run in runs)
            typer.echo(f"{len(runs)} trainings first, about {total} minutes of a core: {out / 'runs'}", err=True)
            trained = training.train_rows(out / "runs", runs, place)
        how: dict[str, Any] = {"quick": quick, "count": count, "seed": seed, "device": place, "out": out}
        result = paper.reproduce(
            model, **how, expander=expander, trained=trained, counter=partial(counter, resumes=True)
        )
        paths = paper.write(out, result)
    text = "\n".join([f"{result['minutes']:.1f} minutes", *map(str, paths)])
    options.report({**result, "files": [str(path) for path in paths]}, text, as_json)


@app.command()
def pixel(
    relay: Annotated[
        Path | None, typer.Option("--relay", help="Run of scenes/pixel_relay: runs/scenes-pixel_relay.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Run of scenes/pixel_base: runs/scenes-pixel_base.")
    ] = None,
    edm: Annotated[Path | None, typer.Option("--edm", help="Run of scenes/pixel_edm: runs/scenes-pixel_edm.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Train the three first, or resume them.")] = False,
    count: Annotated[int, typer.Option("--count", min=2, help="Pictures per row; intervals need 100.")] = 500,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", min=1, max=1000, help="Steps of each stage; plain EDM runs with as many and with twice as many."
        ),
    ] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the table and the grid.")] = Path("pixel"),
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Compare the original relay, in pixels, with plain diffusion of equal training and equal time."""
    options.check_writable(out)
    with options.clean_stdout(as_json):
        from cogview3 import checkpoints
        from cogview3.cli.progress import counter
        from cogview3.reproduce import pixel as measured

        given = {"relay": relay, "base": base, "edm": edm}
        runs = {part: run or Path("runs") / f"scenes-pixel_{part}" for part, run in given.items()}
        place = options.pick_device(device)
        if train:
            typer.echo(f"three trainings first, about {measured.minutes()} minutes of a core", err=True)
            measured.train_parts(runs, place)
        images = {part: checkpoints.length_of(run) for part, run in runs.items()}
        how: dict[str, Any] = {"count": count, "steps": steps, "seed": seed, "device": place}
        figures, shown = measured.compare(measured.open_parts(runs), images, **how, counter=counter)
        paths = measured.write(out, figures, shown)
    text = "\n".join([*(f"{row['name']}: {row['distance']:.4f}" for row in figures["rows"]), *map(str, paths)])
    options.report({**figures, "files": [str(path) for path in paths]}, text, as_json)


@app.command()
def snr(
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of pictures; scenes of the built-in world by default.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Number of pictures.")] = 64,
    sizes: Annotated[
        str, typer.Option("--sizes", help="Sides in pixels, each twice the previous one.")
    ] = "32,64,128,256",
    model: Annotated[str, typer.Option("--model", help="Model whose VAE makes the latents.")] = "scenes",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the scenes.")] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for snr.json and the figures.")] = Path("snr"),
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Measure the signal-to-noise ratio by frequency at several resolutions: why a relay may start midway."""
    sides = parse_sides(sizes)
    options.check_writable(out)
    with options.clean_stdout(as_json):
        import json

        from diffusers.models import AutoencoderKL

        from cogview3 import checkpoints
        from cogview3.cli.progress import counter
        from cogview3.references import weights_folder
        from cogview3.reproduce import snr as measured
        from cogview3.reproduce import snr_plots

        snr_plots.new_figure()  # first, so that a missing package costs no work
        folder = weights_folder(model, "vae")
        vae = AutoencoderKL.from_pretrained(folder).eval().to(options.pick_device(device))
        if images is None:
            pictures = measured.scenes(count, sides[-1], seed)
        else:
            pictures = measured.folder_pictures(images, count, sides[-1])
        with counter("Measuring", len(pictures)) as progress:
            result = {**measured.measure(pictures, sides, vae, progress), "model": measured.own_start(model)}
        table = measured.to_dict(result)
        out.mkdir(parents=True, exist_ok=True)
        checkpoints.write_text(out / "snr.json", json.dumps(table, indent=1))
        paths = [out / "snr.json", *snr_plots.draw(result, out)]
        lines = measured.lines(result)
    options.report({**table, "files": [str(path) for path in paths]}, "\n".join([*lines, *map(str, paths)]), as_json)


def parse_sides(text: str) -> list[int]:
    """Sides of `--sizes`: powers of 2 from 32 on, each twice the previous one."""
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = []
    doubled = all(after == 2 * before for before, after in pairwise(sides))
    if len(sides) < 2 or sides[0] < 32 or sides[-1] > 4096 or sides[0] & (sides[0] - 1) or not doubled:
        raise UserError(
            f"--sizes {text!r}: give powers of 2 from 32 to 4096, each twice the previous one, such as 64,128,256"
        )
    return sides
