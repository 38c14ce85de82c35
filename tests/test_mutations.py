"""Whether the tests notice faults: of 50 mutants they must kill 45. And that mutants are what they say."""

import ast
import os
import subprocess
import sys

import pytest

from tests.mutations import MODULES, ROOT, mutants, pick

NEEDED = 45


@pytest.mark.slow
def test_the_tests_notice_faults() -> None:
    command = [sys.executable, "-m", "tests.mutations"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout.splitlines()[-1].split()[0]) >= NEEDED, done.stdout


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
            assert (ROOT / "tests" / name.partition("::")[0]).is_file(), name
