"""`convert`: published weights to a model folder, and back."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cogview3.cli import options
from cogview3.cli.loading import quiet_libraries
from cogview3.cli.train import parse_modes, warn_of_replacing
from cogview3.config import UserError

Format = Literal["diffusers", "release"]
UNetOption = typer.Option(metavar="PATH", help="Folder with `latest`, .pt or .safetensors file.")


def convert(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    model: Annotated[str | None, typer.Argument(help="Model folder, with --to release.")] = None,
    to: Annotated[Format, typer.Option("--to", help="Format to write.")] = "diffusers",
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
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option("--dtype", help="Number format to write; as stored by default."),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Convert the published CogView3 weights to a model folder, or a model back to such files.

    Needs --unet, --relay-unet, --vae and --text-encoder; with --to release, a model instead.
    """
    files = {"--unet": unet, "--relay-unet": relay_unet, "--vae": vae, "--text-encoder": text_encoder}
    check_choice(to, model, files, mode or [])
    modes = {name: (Path(base), Path(relay)) for name, (base, relay) in parse_modes(mode or []).items()}
    options.check_writable(out)
    warn_of_replacing(out)
    with options.clean_stdout(as_json):
        quiet_libraries()
        import torch

        from cogview3.generation.conversion import convert as to_diffusers
        from cogview3.generation.conversion import convert_to_release

        kind = None if dtype is None else getattr(torch, dtype)

        def announce(component: str) -> None:
            typer.echo(f"writing {component}", err=True)

        if to == "release":
            result = convert_to_release(model, out, kind, announce)
        else:
            result = to_diffusers(unet, relay_unet, vae, text_encoder, modes, out, kind, announce)
    what = "model" if to == "diffusers" else "release's files"
    options.report(result, f"{what} written to {out}: {result['bytes'] / 1e6:.1f} MB", as_json)


def check_choice(to: Format, model: str | None, files: dict[str, Path | None], modes: list[str]) -> None:
    """Refuse options of the other direction, and require those of this one."""
    given = [name for name, path in files.items() if path is not None] + ["--mode"] * bool(modes)
    if to == "release":
        if model is None:
            raise UserError("--to release needs a model folder: cogview3 convert --to release MODEL -o DIR")
        if given:
            raise UserError(f"--to release takes a model folder only; leave out {', '.join(given)}")
        return
    if model is not None:
        raise UserError(f"{model}: a model is only converted with --to release; give it, or the published files")
    if missing := [name for name, path in files.items() if path is None]:
        raise UserError(f"{', '.join(missing)} missing; give the published files, or a model with --to release")
