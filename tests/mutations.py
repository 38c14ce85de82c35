"""Mutants of our own source, by changes of its syntax tree: what a test suite should notice.

One mutant is one change in one place: a comparison turned, an arithmetic operation exchanged, a number moved, a
condition negated, a `min` made a `max`. `python -m tests.mutations [COUNT [SEED [FIRST]]]` has the tests judge some.
"""

import ast
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = {
    "diffusion/schedule.py": ["diffusion/test_schedule.py", "generation/test_scheduler.py"],
    "diffusion/relay.py": ["diffusion/test_relay.py", "generation/test_scheduler.py"],
    "diffusion/pixel_relay.py": ["diffusion/test_pixel_relay.py", "generation/test_pixel_relay.py"],
    "training/trainer.py": [
        "training/test_trainer.py",
        "training/test_loop.py",
        "training/test_processes.py::test_gradients_are_those_of_one_process_with_the_whole_batch",
    ],
    "training/spikes.py": ["training/test_trainer.py", "training/test_loop.py"],
    "data/order.py": ["data/test_shards.py", "training/test_sources.py"],
    "data/buckets.py": ["data/test_buckets.py"],
    "distillation/step.py": ["distillation/test_step.py", "distillation/test_objective.py"],
    "generation/tiles.py": ["generation/test_tiles.py"],
    "evaluation/frechet.py": ["evaluation/test_frechet.py"],
}
"""Modules that compute, and the tests that concern them, the quickest first."""
LIBRARIES = [
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.pipeline_utils",
    "pyarrow.parquet",
    "pytest",
    "scipy.stats",
    "transformers.models.t5.modeling_t5",
]
COUNT, SEED, SECONDS = 50, 21, 600

COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
NAMES = {"min": "max", "max": "min", "all": "any", "any": "all", "sum": "max"}


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Attributes:
        line: of the change.
        change: what it is, in words.
        source: the module's new source.
    """

    line: int
    change: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its syntax tree. Text, annotations and messages are left alone."""
    tree = ast.parse(source)
    count = sum(1 for _ in _places(tree))
    found = []
    for number in range(count):
        changed = deepcopy(tree)
        node = next(node for place, node in enumerate(_places(changed)) if place == number)
        change = _change(node)
        found.append(Mutant(node.lineno, change, ast.unparse(changed)))
    return found


def pick(sources: dict[str, str], count: int, seed: int) -> list[tuple[str, Mutant]]:
    """`count` mutants of modules by name, at random but the same for a seed, every module as likely as the others."""
    rng, known = random.Random(seed), {}
    chosen: list[tuple[str, Mutant]] = []
    while len(chosen) < count:
        name = rng.choice(sorted(sources))
        if name not in known:
            known[name] = mutants(sources[name])
        if known[name]:
            chosen.append((name, known[name].pop(rng.randrange(len(known[name])))))
    return chosen


def _places(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Nodes that can be changed."""
    for node in _walk(tree):
        if (
            (isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS)
            or (isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC)
            or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
            or isinstance(node, ast.If | ast.IfExp)
            or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES)
        ):
            yield node


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, depth first, without annotations, messages of errors, and what is only for type checkers."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(
            node, ast.Raise | ast.JoinedStr | ast.Assert
        ):
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            continue  # unions of types
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child)


def _change(node: ast.AST) -> str:
    """Change a node in its place; gives what was done."""
    before = ast.unparse(node).splitlines()[0]
    if isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = ARITHMETIC[type(node.op)]()
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 0.1
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Call):
        node.func = ast.Name(NAMES[node.func.id], ast.Load())  # type: ignore[attr-defined]
    return f"{before} -> {ast.unparse(node).splitlines()[0]}"


def main(count: int = COUNT, seed: int = SEED, first: int = 1) -> None:
    """Print what the tests say to each of `count` mutants, from number `first` on, and how many they killed.

    Every mutant has a process of its own, a copy of this one, which has imported the libraries but not the package.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    killed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "src"
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        sources = {name: (copy / "cogview3" / name).read_text("utf-8") for name in MODULES}
        chosen = pick(sources, count, seed)
        for name in sorted({name for name, _ in chosen[first - 1 :]}):
            if _fail(name, copy):
                raise SystemExit(f"the tests of {name} fail as it stands")
        for number, (name, mutant) in enumerate(chosen[first - 1 :], first):
            path = copy / "cogview3" / name
            path.write_text(mutant.source, "utf-8")
            begun = time.monotonic()
            dead = _fail(name, copy)
            killed += dead
            path.write_text(sources[name], "utf-8")
            what, seconds = "killed" if dead else "SURVIVED", time.monotonic() - begun
            print(f"{number}/{count} {what} in {seconds:.0f} s: {name}:{mutant.line} {mutant.change}", flush=True)
    print(f"{killed} of {count - first + 1} killed", flush=True)


def _fail(module: str, copy: Path) -> bool:
    """Whether a module's tests fail, or do not end, on the source in `copy`."""
    process = os.fork()
    if process == 0:
        os._exit(_judge(module, copy))
    until = time.monotonic() + SECONDS
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(ended[1])
    if code > 1:
        raise SystemExit(f"pytest ended with {code} on the tests of {module}")
    return code != 0


def _judge(module: str, copy: Path) -> int:
    import pytest

    os.setpgid(0, 0)
    os.chdir(ROOT)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(copy), str(ROOT)]
    os.environ["PYTHONPATH"] = f"{copy}{os.pathsep}{ROOT}"  # for processes that tests begin
    tests = [f"tests/{name}" for name in MODULES[module]]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", f"pythonpath={copy} {ROOT}"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that the libraries have imported
    return int(pytest.main([*options, *tests]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
