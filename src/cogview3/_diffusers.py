"""Registers our pipelines with diffusers: `DiffusionPipeline.from_pretrained` takes classes from diffusers' namespace.

Nothing is imported for it. Where diffusers is there already, its namespace gets the names at once, else when it is
imported; the classes behind them load when they are asked for.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LIBRARY = "diffusers"


def register(names: Sequence[str], get: Callable[[str], Any]) -> None:
    """Have diffusers answer for classes of ours.

    Args:
        names: of the classes.
        get: gives the class of a name.
    """
    if _LIBRARY in sys.modules:
        _extend(sys.modules[_LIBRARY], names, get)
    else:
        sys.meta_path.insert(0, _Finder(names, get))


def _extend(module: ModuleType, names: Sequence[str], get: Callable[[str], Any]) -> None:
    kind: Any = type(module)

    class Extended(kind):  # type: ignore[misc]
        """diffusers' own lazy module, with a few names more."""

        def __getattr__(self, name: str) -> Any:
            return get(name) if name in names else super().__getattr__(name)

    module.__class__ = Extended


class _Finder(MetaPathFinder):
    """Finds diffusers, once, as it would be found without this, and has its namespace extended."""

    def __init__(self, names: Sequence[str], get: Callable[[str], Any]) -> None:
        self._names, self._get = names, get

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The library's specification with our loader around its own; None of other modules."""
        if fullname != _LIBRARY or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._names, self._get)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, names: Sequence[str], get: Callable[[str], Any]) -> None:
        self._loader, self._names, self._get = loader, names, get

    def __getattr__(self, name: str) -> Any:  # what else libraries ask of a loader, such as its files
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the library's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the library's own loader; what stands in `sys.modules` afterwards is the lazy module."""
        self._loader.exec_module(module)
        _extend(sys.modules[_LIBRARY], self._names, self._get)
