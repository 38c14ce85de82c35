"""Imports point one way, and importing the package is light, offline and free of torchvision."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cogview3

PACKAGE = Path(cogview3.__file__).parent

ORDER = [
    {"errors"},
    {"_diffusers", "config", "diffusion", "precision"},
    {"checkpoints", "fingerprints", "models", "references"},
    {"prompts"},
    {"data"},
    {"captions"},
    {"generation"},
    {"evaluation"},
    {"training"},
    {"distillation"},
    {"bench", "reproduce", "serving"},
    {"cli", "__main__"},
]
"""Each part may import those above it, itself, and those beside it."""

RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def modules() -> Iterator[tuple[str, Path]]:
    """Part and path of every module but the package's own `__init__`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            yield part, path


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of each import of our own, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "cogview3" and len(parts) > 1 and parts[1] in RANK:
                yield node.lineno, parts[1]


def test_every_module_has_a_place_in_the_order() -> None:
    assert {part for part, _ in modules()} <= RANK.keys()


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target}"
        for part, path in modules()
        for line, target in imported_parts(path)
        if RANK[target] > RANK[part]
    ]
    assert wrong == []


def test_the_check_sees_imports_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import cogview3.cli.app\nfrom cogview3 import training\nfrom cogview3.data.scenes import x\n"
        "def f():\n    import cogview3.bench as b\nfrom cogview3 import __version__\nimport torch\n"
    )
    assert sorted(imported_parts(path)) == [(1, "cli"), (2, "training"), (3, "data"), (5, "bench")]


def in_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


NO_NETWORK = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def test_importing_the_package_is_light() -> None:
    names = in_fresh_process(f"{NO_NETWORK}\nimport cogview3\nprint(*sys.modules)").split()
    heavy = {"torch", "diffusers", "transformers", "accelerate", "numpy", "pydantic", "typer", "rich"}
    assert not heavy & {name.partition(".")[0] for name in names}


@pytest.mark.slow
def test_the_core_needs_neither_torchvision_nor_a_network() -> None:
    names = "CogView3Pipeline, CogView3UpscalePipeline, RelayScheduler"
    in_fresh_process(f"{NO_NETWORK}\nsys.modules['torchvision'] = None\nfrom cogview3 import {names}")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        cogview3.Nothing  # noqa: B018
