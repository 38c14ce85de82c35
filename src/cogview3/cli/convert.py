"""`convert`: published weights to a model folder, and back."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogview3.cli.loading import quiet_libraries
from cogview3.cli.options import JsonOption, check_writable, clean_stdout, report
from cogview3.cli.train import parse_modes, warn_of_replacing
from cogview3.config import UserError

if TYPE_CHECKING:
    import torch


class Format(StrEnum):
    """What is written."""

    diffusers = "diffusers"
    release = "release"


class Stored(StrEnum):
    """The number format of the files."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


UNetOption = typer.Option(metavar="PATH", help="Folder with `latest`, .pt or .safetensors file.")


def convert(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    model: Annotated[str | None, typer.Argument(help="Model folder, with --to release.")] = None,
    to: Annotated[Format, typer.Option("--to", help="Format to write.")] = Format.diffusers,
    unet: Annotated[Path | None, UNetOption] = None,
    relay_unet: Annotated[Path | None, UNetOption] = None,
    vae: Annotated[Path | None, typer.Option(metavar="FILE", help="sdxl_vae.safetensors.")] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Transformers folder with T5's encoder and tokenizer.")
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option("--mode", metavar="NAME=UNET,RELAY", help="Distilled UNets, such as 4+1=a,b.")
    ] = None,
    dtype: Annotated[
        Stored | None, typer.Option("--dtype", help="Number format to write; as stored by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert the published CogView3 weights to a model folder, or a model back to such files.

    Needs --unet, --relay-unet, --vae and --text-encoder; with --to release, a model instead.
    """
    files = {"--unet": unet, "--relay-unet": relay_unet, "--vae": vae, "--text-encoder": text_encoder}
    check_choice(to, model, files, mode or [])
    modes = {name: (Path(base), Path(relay)) for name, (base, relay) in parse_modes(mode or []).items()}
    check_writable(out)
    warn_of_replacing(out)
    with clean_stdout(as_json):
        quiet_libraries()
        from cogview3.generation.conversion import convert as to_diffusers
        from cogview3.generation.conversion import convert_to_release

        if to is Format.release:
            result = convert_to_release(model, out, torch_dtype(dtype), announce)
        else:
            result = to_diffusers(unet, relay_unet, vae, text_encoder, modes, out, torch_dtype(dtype), announce)
    what = "model" if to is Format.diffusers else "release's files"
    report(result, f"{what} written to {out}: {result['bytes'] / 1e6:.1f} MB", as_json)


def check_choice(to: Format, model: str | None, files: dict[str, Path | None], modes: list[str]) -> None:
    """Refuse options of the other direction, and require those of this one."""
    given = [name for name, path in files.items() if path is not None] + ["--mode"] * bool(modes)
    if to is Format.release:
        if model is None:
            raise UserError("--to release needs a model folder: cogview3 convert --to release MODEL -o DIR")
        if given:
            raise UserError(f"--to release takes a model folder only; leave out {', '.join(given)}")
        return
    if model is not None:
        raise UserError(f"{model}: a model is only converted with --to release; give it, or the published files")
    if missing := [name for name, path in files.items() if path is None]:
        raise UserError(f"{', '.join(missing)} missing; give the published files, or a model with --to release")


def torch_dtype(dtype: Stored | None) -> "torch.dtype | None":
    """The torch dtype behind the option."""
    import torch

    return None if dtype is None else getattr(torch, dtype)


def announce(component: str) -> None:
    """Say on stderr what is being written."""
    typer.echo(f"writing {component}", err=True)
