"""Options that several commands share, and functions that interpret them."""

import errno
import json
import math
import os
import re
import secrets
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cogview3.cli.errors import STDOUT
from cogview3.config import UserError

if TYPE_CHECKING:
    import torch


Device = Literal["auto", "cuda", "mps", "cpu"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""The number format of the networks; auto is bfloat16 on GPUs that compute in it and float32 elsewhere."""

Quantize = Literal["int8", "fp8"]

ModelOption = Annotated[str, typer.Option("--model", help="Bundled model, model folder or hub name.")]
FastOption = Annotated[bool, typer.Option("--fast", help="Short for --mode 4+1.")]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, max=1000, help="Sampling steps of the base stage.")]
RelayStepsOption = Annotated[
    int | None, typer.Option("--relay-steps", min=1, max=1000, help="Sampling steps of each relay stage.")
]
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option("--quantize", help="Quantize text encoder and UNets to 8 bits; fp8 needs a GPU that has it."),
]
VaeTilingOption = Annotated[
    bool, typer.Option("--vae-tiling", help="Let the VAE encode and decode in tiles of 512 pixels.")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the networks with torch.compile; pays off for many pictures.")
]
RelaysOption = Annotated[
    int | None,
    typer.Option("--relays", min=0, max=8, help="Relay stages, each doubling the size; 0 stops after the base."),
]
GuidanceOption = Annotated[float | None, typer.Option("--guidance", help="Guidance scale; 1 disables it.")]
RelayGuidanceOption = Annotated[
    float | None, typer.Option("--relay-guidance", help="Guidance scale of the relay stages; 1 disables it.")
]
SamplerOption = Annotated[
    Literal["euler", "dpm++"] | None,
    typer.Option("--sampler", help="Sampler of the base stage; dpm++ needs fewer steps than euler."),
]
LightOption = Annotated[
    bool,
    typer.Option(
        "--light", help="Decode with the model's tiny autoencoder instead of its VAE: faster, slightly coarser."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Pictures per batch.")]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=2**63 - 1, help="Random seed; drawn at random and printed by default."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Device that runs the networks.")]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="Precision of the networks; auto: bfloat16 on GPUs that support it, else float32."),
]
RestartOption = Annotated[bool, typer.Option("--restart", help="Move an existing run aside and start over.")]


def pick_device(device: Device) -> str:
    """The torch device behind the option; asking for one that is not there is a `UserError`."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if not present[device]:
        raise UserError(f"--device {device}: not available here; use --device auto")
    return device


def pick_devices(device: Device) -> tuple[str, ...]:
    """All torch devices of the kind behind the option."""
    import torch

    kind = pick_device(device)
    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count())) if kind == "cuda" else (kind,)


def pick_dtype(dtype: Dtype, device: str) -> "torch.dtype":
    """The torch dtype behind the option, for a device from `pick_device`."""
    import torch

    from cogview3.precision import computes_bfloat16

    if dtype == "auto":
        return torch.bfloat16 if device == "cuda" and computes_bfloat16(device) else torch.float32
    named: torch.dtype = getattr(torch, dtype)
    return named


def pick_mode(mode: str | None, fast: bool) -> str | None:
    """The mode that --mode and --fast name together; None is the model's default."""
    if fast and mode not in (None, "4+1"):
        raise UserError(f"--fast means --mode 4+1, but --mode is {mode}; give one of them")
    return "4+1" if fast else mode


def pick_seed(seed: int | None) -> int:
    """The seed given, else a random one below 2^31, short enough to type again."""
    return secrets.randbelow(2**31) if seed is None else seed


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Width and height in pixels from `WxH`; (None, None) leaves them to the model."""
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", size.strip())
    if not match or 0 in (sides := (int(match[1]), int(match[2]))):
        raise UserError(f"--size {size}: write width x height in pixels, such as 256x256")
    return sides


def check_finite(option: str, value: float | None) -> None:
    """Refuse NaN and infinity, which the command line parses without complaint."""
    if value is not None and not math.isfinite(value):
        raise UserError(f"{option} {value}: give a finite number, such as 7.5")


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuse, before any work is done, a folder that cannot be written to, or made in an existing parent."""
    existing = folder if folder.exists() else folder.absolute().parent
    if not existing.is_dir():
        reason = "is not a folder" if existing.exists() else "does not exist; create it first"
        raise UserError(f"{option} {folder}: {existing} {reason}")
    try:
        with TemporaryFile(dir=existing):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise UserError(f"{option} {folder}: cannot write there ({error.strerror}); choose another folder") from None


def clean_stdout(as_json: bool) -> AbstractContextManager[object]:
    """With --json, send what libraries print to stderr, so that stdout holds one object and nothing else."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def lines(result: dict[str, Any]) -> str:
    """The text of an outcome that has no other: an entry a line; those of tables have both names."""
    entries: dict[str, Any] = {}
    for name, value in result.items():
        entries |= {f"{name}/{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return "\n".join(f"{name}: {'none' if value is None else value}" for name, value in entries.items())


def report(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a command's outcome: the object with --json, else the text."""
    try:
        typer.echo(json.dumps(result, ensure_ascii=False, default=str) if as_json else text)
    except OSError as error:  # a full disk, or a pipe that nobody reads; the work is done and its files are there
        raise OSError(error.errno, os.strerror(error.errno or 0), STDOUT) from error
