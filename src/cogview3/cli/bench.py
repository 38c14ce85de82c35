"""`bench`: benchmarks of speed."""

from importlib import import_module
from typing import Annotated, Any, Literal

import typer

from cogview3.cli import options
from cogview3.config import UserError

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Run benchmarks, each side by side with a baseline."""


@app.command()
def inference(
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind.")] = 3,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Time the relay against a single stage at the final size, prompt to picture, with the networks of scenes."""
    _run("inference", as_json, repeats=repeats, device=options.pick_device(device))


def _run(module: str, as_json: bool, *arguments: Any, **how: Any) -> None:
    """Run and report a benchmark of `cogview3.bench`."""
    with options.clean_stdout(as_json):
        from cogview3.cli.loading import quiet_libraries
        from cogview3.cli.progress import counter

        quiet_libraries()
        bench = import_module(f"cogview3.bench.{module}")
        result = bench.run(*arguments, counter=counter, **how)
    options.report(result, bench.describe(result), as_json)


def pick_full_device(device: options.Device, instead: str) -> str:
    """The GPU. Raises UserError without one, naming what to do instead: networks of that size would take hours."""
    where = options.pick_device(device)
    if where != "cuda":
        raise UserError(f"--scale full needs a CUDA GPU, not {where}: give {instead}")
    return where


@app.command()
def data(
    pictures: Annotated[int, typer.Option("--pictures", min=16, help="Pictures read in each run.")] = 512,
    size: Annotated[int, typer.Option("--size", min=64, max=4096, help="Side of the square bucket.")] = 512,
    shards: Annotated[int, typer.Option("--shards", min=10, max=100_000, help="Tars in the larger set.")] = 10_000,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind; medians are given.")] = 3,
    as_json: options.JsonOption = False,
) -> None:
    """Time the data loader, tars to batches, against bare JPEG decoding and resizing, on one core."""
    _run("data", as_json, pictures=pictures, size=size, shards=shards, repeats=repeats)


@app.command()
def training(
    scale: Annotated[Literal["small", "full"], typer.Option("--scale", help="Size of the network.")] = "small",
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Batch size; 32, or 16 with --scale full.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of each run.")] = 3,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind; medians are given.")] = 3,
    checkpoint_activations: Annotated[
        bool | None,
        typer.Option(
            "--checkpoint-activations/--keep-activations",
            help="Recompute activations in the backward pass; default with --scale full.",
        ),
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--eager", help="Compile the loop's network; default on a GPU.")
    ] = None,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Time the training loop's step against a plain diffusers step, on the same UNet."""
    how = {"checkpoint_activations": checkpoint_activations, "compiled": compiled}
    where = options.pick_device(device)
    _run("training", as_json, scale, batch=batch, steps=steps, repeats=repeats, device=where, **how)


@app.command()
def distillation(
    stage: Annotated[Literal["base", "relay"], typer.Option("--stage", help="Stage of the paper's recipes.")] = "base",
    scale: Annotated[
        Literal["narrow", "full"],
        typer.Option("--scale", help="Size of the networks; narrow: a quarter of the widths."),
    ] = "full",
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Batch size; 16, or 4 for a relay.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps, after one of warm-up.")] = 3,
    checkpoint_activations: Annotated[
        bool,
        typer.Option("--checkpoint-activations/--keep-activations", help="Recompute activations in the backward pass."),
    ] = True,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Measure time and memory of a distillation step, with teacher and student on one device."""
    full = scale == "full"
    where = pick_full_device(device, "--scale narrow") if full else options.pick_device(device)
    how = {"checkpoint_activations": checkpoint_activations, "device": where}
    _run("distillation", as_json, stage, scale, batch=batch, steps=steps, **how)


@app.command()
def captions(
    shards: Annotated[list[str], typer.Argument(metavar="SHARDS...", help="Tars on a disk; they are copied.")],
    model: Annotated[str, typer.Option("--model", help="Folder, run or hub name of an image-text-to-text model.")],
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures per batch.")] = 8,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Maximum caption length in tokens.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each kind; medians are given.")] = 3,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Time re-captioning of whole shards against bare generation for the same pictures."""
    with options.clean_stdout(as_json):
        from cogview3.captions.model import ModelJob
        from cogview3.data.formats import find_shards

        where = options.pick_device(device)
        kind = str(options.pick_dtype(dtype, where)).removeprefix("torch.")
        job = ModelJob(model, where, kind, batch, max_new_tokens=max_new_tokens)
        found = find_shards(shards)
    _run("captions", as_json, found, job, repeats=repeats)
