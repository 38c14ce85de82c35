"""A description of the machine that figures were measured on, and the versions that affect time."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cogview3 import __version__

_LIBRARIES = ("torch", "diffusers", "transformers")


def hardware(device: str) -> dict[str, Any]:
    """Device, processor, its cores, torch's threads and the load of the last minute (None where unknown)."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Of Python, the libraries, this package, which need not be installed, and of CUDA where torch has it."""
    found = {"python": platform.python_version()} | {library: version(library) for library in _LIBRARIES}
    found["cogview3"] = __version__
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
