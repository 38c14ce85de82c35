"""`data`: pictures with captions to train on."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cogview3.cli.options import JsonOption, SeedOption, check_writable, pick_seed, report

app = typer.Typer(rich_markup_mode=None)


class Captions(StrEnum):
    """The kinds of caption that can go beside a picture."""

    comprehensive = "comprehensive"
    brief = "brief"
    alt_text = "alt-text"


class Layout(StrEnum):
    """How the samples lie on disk."""

    tar = "tar"
    folder = "folder"


@app.callback()
def group() -> None:
    """Make data to train on."""


@app.command()
def scenes(
    count: Annotated[int, typer.Option("--count", min=1, help="Number of pictures.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make; it must not hold anything.")],
    size: Annotated[int, typer.Option("--size", min=32, max=4096, help="Side of the pictures.")] = 256,
    captions: Annotated[
        Captions, typer.Option("--captions", help="Which caption goes into the .txt.")
    ] = Captions.comprehensive,
    layout: Annotated[Layout, typer.Option("--layout", help="WebDataset tars, or plain files.")] = Layout.tar,
    shard: Annotated[int, typer.Option("--shard", min=1, max=10_000, help="Pictures a tar.")] = 1000,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write random scenes of the built-in world.

    Captions are true of their pictures, but for some of the alt-texts.
    """
    check_writable(out)
    from cogview3.cli.progress import counter
    from cogview3.data.scenes.write import write_scenes

    seed = pick_seed(seed)
    with counter("scenes", count) as progress:
        write_scenes(
            out,
            count,
            size=size,
            caption=str(captions),
            seed=seed,
            shard=shard if layout is Layout.tar else None,
            progress=progress,
        )
    result = {"out": str(out), "count": count, "size": size, "captions": str(captions), "seed": seed}
    report(result, f"{count} scenes written to {out} (seed {seed})", as_json)
