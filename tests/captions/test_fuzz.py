"""Seeded mutants of what captioning keeps between runs: taken up, or refused in a line, never another error."""

import random
import shutil
from pathlib import Path

import pyarrow
import pytest

from cogview3.captions.journal import Journal, Name
from cogview3.captions.pairs import read_pairs
from cogview3.captions.parts import Part, part_address
from cogview3.captions.rows import Row
from cogview3.config import UserError
from cogview3.data.formats import find_shards
from cogview3.data.sidecars import CAPTIONS
from cogview3.prompts.budget import Usage
from tests.data.conftest import ordinary, write_tars
from tests.hostile import json_mutant, mutant, within

SETTINGS = {"model": "m", "instruction": 1, "side": 768}
MADE = {"old": "o", "queries": [{"question": "q", "answer": "a"}], "new": "new", "model": "m"}


def collected(folder: Path, shard: str) -> None:
    """A collection of three triplets, two of them in a part, and a picture put aside."""
    with Journal(folder, SETTINGS, part_rows=2) as journal:
        for number in range(3):
            key = f"000000{number}"
            name = Name.of(ordinary(key, number)[0][1], shard, key)
            journal.note("asked", name)
            journal.note("paid", name)
            place = {"image": name.image, "shard": shard, "key": name.key}
            journal.finish(name, {**place, **MADE, "usage": Usage().to_dict()}, Usage())
        journal.note("aside", Name("9" * 64, shard, "x"), reason="why")


def take_up(folder: Path) -> None:
    with Journal(folder, SETTINGS, part_rows=2) as journal:
        journal.write_part()
    read_pairs([str(folder)])


def with_a_line_damaged(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    number = rng.randrange(len(lines) - 1)
    lines[number] = json_mutant(lines[number], rng).replace(b"\n", b"")
    return b"\n".join(lines)


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_mutants_of_collections(tmp_path: Path, count: int) -> None:
    (shard,) = write_tars(tmp_path, (3,))
    collected(tmp_path / "sound", shard)
    take_up(shutil.copytree(tmp_path / "sound", tmp_path / "copy"))
    rng, refused = random.Random(count), 0
    with within(60 + count):
        for number in range(count):
            shutil.rmtree(tmp_path / "copy")
            copy = shutil.copytree(tmp_path / "sound", tmp_path / "copy")
            path = copy / ("part-00000.parquet" if number % 3 == 0 else "journal.jsonl")
            damage = mutant if number % 3 == 0 else with_a_line_damaged
            path.write_bytes(damage(path.read_bytes(), rng))
            try:
                take_up(copy)
            except UserError:
                refused += 1
    assert refused


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutants_of_begun_shards(tmp_path: Path, count: int) -> None:
    (shard,) = find_shards(write_tars(tmp_path, (3,)))
    Part(shard, SETTINGS).add([Row("0000000", "o", "n"), Row("0000001", "o", None, "failed", "e")])
    path, rng = Path(part_address(shard)), random.Random(count)
    content, refused = path.read_bytes(), 0
    with within(60 + count):
        for _ in range(count):
            path.write_bytes(with_a_line_damaged(content, rng))
            try:
                rows = Part(shard, SETTINGS).rows.values()
                pyarrow.Table.from_pylist([row.to_dict() for row in rows], CAPTIONS)
            except UserError:
                refused += 1
    assert 0 < refused < count
