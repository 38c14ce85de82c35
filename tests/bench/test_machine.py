"""What is told of the machine and the versions beside every figure."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from cogview3 import __version__
from cogview3.bench import machine


def test_versions_are_found_in_a_source_tree_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if name == "cogview3":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(machine, "version", installed)
    found = machine.versions()
    assert found["cogview3"] == __version__
    assert found["diffusers"] == version("diffusers")
