"""Whether the tests notice faults: 50 mutants, of which they must kill 45. And that mutants are what they say."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations import Mutant, mutants, pick

ROOT = Path(__file__).parent.parent
MODULES = {
    "diffusion/schedule.py": ["diffusion/test_schedule.py", "generation/test_scheduler.py"],
    "diffusion/relay.py": ["diffusion/test_relay.py", "generation/test_scheduler.py"],
    "diffusion/pixel_relay.py": ["diffusion/test_pixel_relay.py", "generation/test_pixel_relay.py"],
    "training/steps.py": ["training/test_steps.py", "training/test_loop.py"],
    "training/spikes.py": ["training/test_steps.py", "training/test_loop.py"],
    "data/order.py": ["data/test_shards.py", "training/test_sources.py"],
    "data/buckets.py": ["data/test_buckets.py"],
    "distillation/step.py": ["distillation/test_step.py", "distillation/test_objective.py"],
    "generation/tiles.py": ["generation/test_tiles.py"],
    "evaluation/frechet.py": ["evaluation/test_frechet.py"],
}
"""Modules that compute, and the tests that import them."""
COUNT, NEEDED, SEED = 50, 45, 21


def killed(module: str, mutant: Mutant, copy: Path) -> bool:
    """Whether the module's tests fail on a mutant; `copy` is a source tree of their own."""
    path, tests = copy / "cogview3" / module, [str(ROOT / "tests" / name) for name in MODULES[module]]
    whole = path.read_text("utf-8")
    path.write_text(mutant.source, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", f"pythonpath={copy} {ROOT}"]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run([*command, *tests], cwd=ROOT, env=environment, capture_output=True, timeout=900)
        return done.returncode == 1
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(whole, "utf-8")


@pytest.mark.slow
def test_the_tests_notice_faults(tmp_path: Path) -> None:
    source = ROOT / "src" / "cogview3"
    shutil.copytree(source, tmp_path / "cogview3", ignore=shutil.ignore_patterns("__pycache__"))
    for module in MODULES:
        unchanged = Mutant(0, "nothing", (source / module).read_text("utf-8"))
        assert not killed(module, unchanged, tmp_path), f"the tests of {module} fail as it stands"
    chosen = pick({name: (source / name).read_text("utf-8") for name in MODULES}, COUNT, SEED)
    survivors = []
    for number, (module, mutant) in enumerate(chosen, 1):
        dead = killed(module, mutant, tmp_path)
        line = f"{number}/{COUNT} {'killed' if dead else 'SURVIVED'} {module}:{mutant.line} {mutant.change}"
        print(line, file=sys.stderr, flush=True)
        if not dead:
            survivors.append(line)
    assert COUNT - len(survivors) >= NEEDED, "\n".join(survivors)


def test_mutants_differ_in_one_place_each() -> None:
    source = """
def f(x: int = 3) -> int:
    if x < 2:
        raise ValueError(f"{x + 1}")
    return min(x * 2, 9)
"""
    found = mutants(source)
    assert [mutant.change for mutant in found] == [
        "3 -> 4",
        "if x < 2: -> if not x < 2:",
        "x < 2 -> x <= 2",
        "2 -> 3",
        "min(x * 2, 9) -> max(x * 2, 9)",
        "x * 2 -> x / 2",
        "2 -> 3",
        "9 -> 10",
    ]
    assert len({mutant.source for mutant in found}) == len(found)
    for mutant in found:
        ast.parse(mutant.source)


def test_the_same_seed_picks_the_same_mutants() -> None:
    sources = {"a": "x = 1 + 2\ny = 3\n", "b": "z = 4 * 5\n"}
    assert pick(sources, 5, 3) == pick(sources, 5, 3)
    assert len({(name, mutant.source) for name, mutant in pick(sources, 5, 3)}) == 5


def test_the_modules_and_their_tests_are_there() -> None:
    for module, tests in MODULES.items():
        assert (ROOT / "src" / "cogview3" / module).is_file()
        for name in tests:
            assert (ROOT / "tests" / name).is_file(), name
