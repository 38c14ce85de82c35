"""What `generate` and `upscale` share: options, pictures written one by one, the report."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel

from cogview3.cli import options
from cogview3.cli.pictures import free_place, save_png

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from cogview3.generation.placement import Placement


class DrawOptions(BaseModel):
    """Options of commands that draw."""

    model: options.ModelOption = "scenes"
    mode: Annotated[str | None, typer.Option("--mode", help="Sampling mode of the model, such as 4+1.")] = None
    fast: options.FastOption = False
    negative: Annotated[str | None, typer.Option("--negative", help="Negative prompt.")] = None
    relay_steps: options.RelayStepsOption = None
    guidance: options.GuidanceOption = None
    light: options.LightOption = False
    tile_size: Annotated[
        int | None, typer.Option("--tile-size", help="Tile larger pictures by this side in pixels, to save memory.")
    ] = None
    prompt_cache: Annotated[
        Path | None,
        typer.Option(
            "--prompt-cache", help="Folder that caches prompt embeddings; cached prompts need no text encoder."
        ),
    ] = None
    offload: Annotated[
        Literal["none", "model", "sequential"],
        typer.Option("--offload", help="Offload networks (model) or single layers (sequential) to main memory."),
    ] = "none"
    quantize: options.QuantizeOption = None
    drop_text_encoder: Annotated[
        bool, typer.Option("--drop-text-encoder", help="Free the text encoder's memory once the prompts are encoded.")
    ] = False
    vae_slicing: Annotated[
        bool, typer.Option("--vae-slicing", help="Let the VAE encode and decode one picture at a time.")
    ] = False
    vae_tiling: options.VaeTilingOption = False
    compile_networks: options.CompileOption = False
    seed: options.SeedOption = None
    device: options.DeviceOption = "auto"
    dtype: options.DtypeOption = "auto"
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .png file, or a folder; the current one by default.")
    ] = None
    as_json: options.JsonOption = False

    @property
    def placement(self) -> "Placement":
        """How the networks are brought to their device."""
        from cogview3.generation.placement import Placement

        return Placement(
            self.offload,
            self.quantize,
            self.drop_text_encoder,
            self.vae_slicing,
            self.vae_tiling,
            self.compile_networks,
        )

    def seeds(self, count: int) -> range:
        """The seeds of `count` pictures, from --seed on."""
        first = options.pick_seed(self.seed)
        return range(first, first + count)


class Gallery:
    """Where a command's pictures go, and those that are there already.

    A picture drawn with other settings is never lost silently: in a folder the new one gets another name, and a file
    that --out names is replaced with a warning.

    Args:
        planned: a path for each picture.
        out: what --out names: a file, or the folder that they are planned in.
    """

    def __init__(self, planned: Sequence[Path], out: Path | None) -> None:
        self._planned, self._named = planned, out is not None and planned[0].parent != out
        self.written: list[Path] = []

    def add(self, image: "Image", facts: Mapping[str, object], place: Path | None = None) -> None:
        """Write the next picture, or one to its own path `place`, with its settings."""
        from cogview3.checkpoints import alone_in

        wanted = self._planned[len(self.written)] if place is None else place
        with alone_in(wanted.parent):  # others may draw into the same folder
            path = free_place(wanted, facts)
            if self._named and path != wanted:
                typer.echo(f"{wanted} held another picture, which is replaced", err=True)
                path = wanted
            save_png(image, path, facts)
        self.written.append(path)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Have Ctrl-C and SIGTERM within the block say which pictures were finished."""
        try:
            yield
        except KeyboardInterrupt as error:
            files, count = self.written, len(self._planned)
            done = f": {files[0]}" + f" to {files[-1]}" * (len(files) > 1) if files else ""
            raise type(error)(f"{len(files)} of {count} pictures are finished{done}") from None


def generators(seeds: Sequence[int]) -> "list[torch.Generator]":
    """One generator a seed, on the CPU, so that a seed gives the same noise on every device."""
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]


def tell(result: dict[str, Any], files: Sequence[Path], seconds: float, draw: DrawOptions) -> None:
    """Report the pictures written, how long drawing and compiling took, and the seeds."""
    if draw.compile_networks:
        from cogview3.generation.compiling import compile_seconds

        result |= {"compile_seconds": round(compile_seconds(), 1)}
    seeds = result["seeds"]
    shown = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    lines = [*map(str, files), f"{len(seeds)} picture{'s' * (len(seeds) > 1)} in {seconds:.1f} s, {shown}"]
    if "compile_seconds" in result:
        lines[-1] += f"; compiling took {result['compile_seconds']:.1f} s of it"
    options.report(
        result | {"files": list(map(str, files)), "seconds": round(seconds, 3)}, "\n".join(lines), draw.as_json
    )
