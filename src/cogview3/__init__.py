"""CogView3: text-to-image by relay diffusion, from training to serving.

Light to import and offline: the public classes load torch and diffusers when they are first asked for.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cogview3._diffusers import register

if TYPE_CHECKING:  # what type checkers see of the names below
    from cogview3.generation.pipeline import CogView3Pipeline as CogView3Pipeline
    from cogview3.generation.pixel_relay import PixelRelayPipeline as PixelRelayPipeline
    from cogview3.generation.scheduler import RelayScheduler as RelayScheduler
    from cogview3.generation.upscale import CogView3UpscalePipeline as CogView3UpscalePipeline

try:
    __version__ = version("cogview3")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_EXPORTS = {
    "CogView3Pipeline": "cogview3.generation.pipeline",
    "CogView3UpscalePipeline": "cogview3.generation.upscale",
    "PixelRelayPipeline": "cogview3.generation.pixel_relay",
    "RelayScheduler": "cogview3.generation.scheduler",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cogview3' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


register(list(_EXPORTS), __getattr__)


def __dir__() -> list[str]:
    return sorted(__all__)
