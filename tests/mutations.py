"""Mutants of our own source, by changes of its syntax tree: what a test suite should notice.

One mutant is one change in one place: a comparison turned, an arithmetic operation exchanged, a number moved, a
condition negated, a `min` made a `max`, a returned value dropped.
"""

import ast
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

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
