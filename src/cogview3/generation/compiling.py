"""Compiled networks: block by block, so that seventy equal blocks are compiled once, and cached for the next run."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from cogview3.config import UserError
from cogview3.references import user_cache

REGIONS: Mapping[str, tuple[str, ...]] = {
    "UNet2DConditionModel": ("BasicTransformerBlock", "ResnetBlock2D"),
    "AutoencoderKL": ("ResnetBlock2D",),
    "LatentEnlarger": ("_Block",),
    "LightDecoder": ("_Block",),
    "StableCascadeUNet": ("SDCascadeResBlock", "SDCascadeAttnBlock", "SDCascadeTimestepBlock"),
    "PaellaVQModel": ("MixingResidualBlock",),
}
"""Classes of blocks that are compiled, by network. What lies between them runs as it is."""

FEW_STEPS = 12
"""Up to so many steps of both stages together, starting kernels counts, and CUDA graphs are used."""

_VARIANTS = 256
"""How often torch may compile one kind of block: for each width, place with or without shortcut, pipeline..."""


def cache_folder() -> Path | None:
    """Where compiled code is kept from run to run: `TORCHINDUCTOR_CACHE_DIR`, else in the cache of the user, if any."""
    if given := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(given)
    return user_cache("compiled")


def check_compiler(device: str) -> None:
    """Refuse to compile where torch has nothing to compile with.

    Raises UserError without a C++ compiler for a CPU, or Triton for a GPU.
    """
    if torch.device(device).type == "cpu":
        names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
        if not any(map(shutil.which, names)):
            raise UserError(f"--compile on a CPU needs a C++ compiler ({' or '.join(names)}): install it")
    elif importlib.util.find_spec("triton") is None:
        raise UserError("--compile on a GPU needs the package triton: install it, or leave --compile out")


def compile_networks(
    pipe: DiffusionPipeline, graphs: bool = False, dynamic: bool | None = True, backend: str = "inductor"
) -> list[str]:
    """`compile_network` for each of a pipeline's, graphs for UNets alone; returns the names of those that it knows."""
    return [
        name
        for name, network in pipe.components.items()
        if compile_network(network, graphs and isinstance(network, UNet2DConditionModel), dynamic, backend)
    ]


def compile_network(
    network: object, graphs: bool = False, dynamic: bool | None = True, backend: str = "inductor"
) -> bool:
    """Have a network's blocks compiled at their first use, convolutions channels last.

    Args:
        network: one of the classes of `REGIONS`; others are left alone.
        graphs: use CUDA graphs, worth it in few steps; does nothing on a CPU.
        dynamic: True compiles for any size, None or False for each size separately, which is a little faster to run.
        backend: of `torch.compile`.

    Returns:
        Whether it will be compiled.
    """
    regions = REGIONS.get(type(network).__name__)
    if regions is None or not isinstance(network, ModelMixin):
        return False
    if (folder := cache_folder()) is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    allow_variants()
    network.to(memory_format=torch.channels_last)
    network._repeated_blocks = list(regions)
    if graphs and backend == "inductor":
        network.compile_repeated_blocks(dynamic=dynamic, backend=backend, mode="reduce-overhead")
        network.register_forward_pre_hook(_begin_step)
    else:
        network.compile_repeated_blocks(dynamic=dynamic, backend=backend)
    return True


def allow_variants() -> None:
    """Let blocks that share their code be compiled for each network, size and setting; by default some eight are."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * _VARIANTS)


def _begin_step(*_: object) -> None:
    """Tell CUDA graphs that what they put out in the step before is no longer needed."""
    torch.compiler.cudagraph_mark_step_begin()


def compile_seconds() -> float:
    """Seconds that torch spent compiling in this process so far."""
    return torch._dynamo.utils.calculate_time_spent().get("total_wall_time", 0.0)
