"""Compiled networks: block by block, so that seventy like blocks are compiled as one, and kept for the next run."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin

from cogview3.config import UserError

REGIONS: Mapping[str, tuple[str, ...]] = {
    "UNet2DConditionModel": ("BasicTransformerBlock", "ResnetBlock2D"),
    "AutoencoderKL": ("ResnetBlock2D",),
    "StableCascadeUNet": ("SDCascadeResBlock", "SDCascadeAttnBlock", "SDCascadeTimestepBlock"),
    "PaellaVQModel": ("MixingResidualBlock",),
}
"""Classes of blocks that are compiled, by network. What lies between them runs as it is."""

FEW_STEPS = 12
"""Up to so many steps of both stages together, starting kernels counts, and CUDA graphs are used."""

_VARIANTS = 256
"""How often torch may compile one kind of block: for each width, place with or without shortcut, pipeline..."""


def cache_folder() -> Path:
    """Where compiled code is kept from run to run: `TORCHINDUCTOR_CACHE_DIR`, else a folder in the user's cache."""
    if given := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cogview3" / "compiled"


def check_compiler(device: str) -> None:
    """Refuse to compile where torch has nothing to compile with.

    Raises:
        UserError: no C++ compiler for a CPU, or no Triton for a GPU.
    """
    if torch.device(device).type == "cpu":
        names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
        if not any(map(shutil.which, names)):
            raise UserError(
                f"--compile on a CPU needs a C++ compiler ({' or '.join(names)}): install it"
            )
    elif importlib.util.find_spec("triton") is None:
        raise UserError("--compile on a GPU needs the package triton: install it, or leave --compile out")


def compile_networks(
    pipe: DiffusionPipeline, graphs: bool = False, dynamic: bool | None = True, backend: str = "inductor"
) -> list[str]:
    """Have a pipeline's networks compiled at their first use, convolutions channels last.

    Args:
        pipe: any of diffusers' pipelines; networks that `REGIONS` does not name are left alone.
        graphs: use CUDA graphs, worth it in few steps; does nothing on a CPU.
        dynamic: True compiles for any size, None or False for each size anew, which is a little faster to run.
        backend: of `torch.compile`.

    Returns:
        Names of the components that will be compiled.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 16 * _VARIANTS
    )
    options = {"mode": "reduce-overhead"} if graphs and backend == "inductor" else {}
    compiled = []
    for name, network in pipe.components.items():
        regions = REGIONS.get(type(network).__name__)
        if regions is None or not isinstance(network, ModelMixin):
            continue
        network.to(memory_format=torch.channels_last)
        network._repeated_blocks = list(regions)
        network.compile_repeated_blocks(dynamic=dynamic, backend=backend, **options)
        compiled.append(name)
    return compiled


def compile_seconds() -> float:
    """Seconds that torch spent compiling in this process so far."""
    return torch._dynamo.utils.calculate_time_spent().get("total_wall_time", 0.0)
