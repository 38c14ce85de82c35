"""What `generate` and `upscale` share: placement and noise of a call, pictures written one by one, the report."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogview3.cli.options import report
from cogview3.cli.pictures import free_place, save_png

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


NegativeOption = Annotated[str | None, typer.Option("--negative", help="What to steer away from.")]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="A .png file, or a folder; the current one by default.")
]


class Gallery:
    """Where a command's pictures go, and those that are there already.

    A picture drawn otherwise is never lost without a word: in a folder the new one gets another name, and a file that
    was asked for by name is replaced, which is said.

    Args:
        planned: a path for each picture.
        named: whether the user named the file.
    """

    def __init__(self, planned: Sequence[Path], named: bool) -> None:
        self._planned, self._named = planned, named
        self.written: list[Path] = []

    def add(self, image: "Image", facts: Mapping[str, object], place: Path | None = None) -> None:
        """Write the next picture, or one to a `place` of its own, with what it was drawn with."""
        wanted = self._planned[len(self.written)] if place is None else place
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


def compiling(compiled: bool) -> dict[str, float]:
    """How long compiling took, as a part of the report; nothing where nothing was."""
    if not compiled:
        return {}
    from cogview3.generation.compiling import compile_seconds

    return {"compile_seconds": round(compile_seconds(), 1)}


def tell(result: dict[str, Any], files: Sequence[Path], seconds: float, as_json: bool) -> None:
    """Report the pictures written, how long drawing took, and the seeds."""
    seeds = result["seeds"]
    shown = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    lines = [*map(str, files), f"{len(seeds)} picture{'s' * (len(seeds) > 1)} in {seconds:.1f} s, {shown}"]
    if "compile_seconds" in result:
        lines[-1] += f"; compiling took {result['compile_seconds']:.1f} s of it"
    report(result | {"files": list(map(str, files)), "seconds": round(seconds, 3)}, "\n".join(lines), as_json)
