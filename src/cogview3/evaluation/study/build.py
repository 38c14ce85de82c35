"""Building a study: pictures without a trace of their system, and a list of pairs for each annotator."""

import hashlib
import itertools
import json
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.evaluation.folder import Folder, UndrawnError
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.study.database import DATABASE, Task, create

STUDY = "study.json"
LINKS = "links.csv"


@dataclass(frozen=True)
class Plan:
    """How many judge how many pairs each, as many of every pair of systems.

    Attributes:
        checks: pairs among them whose better side is known: the prompt's picture against another prompt's.
    """

    annotators: int = 10
    tasks: int = 60
    checks: int = 3
    seed: int = 0


def build(out: Path, systems: Mapping[str, Path], prompts: Sequence[Prompt], plan: Plan) -> dict[str, Any]:
    """Write a study folder: pictures/, study.json, study.db and links.csv with the annotators' secrets.

    Args:
        out: a folder that does not hold a study yet.
        systems: folders of pictures by the systems' names, as `folder.Folder` reads them.
        prompts: what the pictures are of; those that a system lacks a picture of are left out, and counted.
        plan: who judges how much.

    Returns:
        "systems", "prompts", "left_out", "annotators", "tasks", "pairs", and "links", the secrets.

    Raises:
        UserError: a folder that is not empty, fewer than two systems, no common pictures, or a plan that does not come
            out even.
    """
    if (out / STUDY).exists():
        raise UserError(f"{out} already holds a study: give another folder, so that no vote is lost")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: give a new folder, as a study replaces what is there")
    if len(systems) < 2:
        raise UserError(f"{len(systems)} systems: a study compares two or more; give --images NAME=FOLDER for each")
    pairs = list(itertools.combinations(systems, 2))
    _check(plan, len(pairs))
    folders = {name: Folder(folder, prompts) for name, folder in systems.items()}
    random_ids = random.Random(secrets.token_bytes(16))
    with checkpoints.whole_folder(out) as new:
        (new / "pictures").mkdir()
        files, left_out = _pictures(new / "pictures", folders, prompts, random_ids)
        usable = [index for index in range(len(prompts)) if index not in left_out]
        if len(usable) < (2 if plan.checks else 1):
            raise UserError(f"{len(usable)} prompts have pictures of every system: give more, or --checks 0")
        tokens = [secrets.token_urlsafe(16) for _ in range(plan.annotators)]
        tasks = [task for number in range(plan.annotators) for task in _tasks(number, plan, pairs, usable, files)]
        create(new / DATABASE, [hash_token(token) for token in tokens], tasks, [prompt.text for prompt in prompts])
        study = {
            "systems": list(systems),
            "prompts": len(usable),
            "left_out": len(left_out),
            "annotators": plan.annotators,
            "tasks": plan.tasks,
            "checks": plan.checks,
            "pairs": len(pairs),
            "seed": plan.seed,
        }
        (new / STUDY).write_text(json.dumps(study, indent=2) + "\n", "utf-8")
        lines = ["annotator,path", *(f"{number},/a/{token}" for number, token in enumerate(tokens))]
        (new / LINKS).write_text("\n".join(lines) + "\n", "utf-8")
    return study | {"links": [f"/a/{token}" for token in tokens]}


def hash_token(token: str) -> str:
    """What is kept of a link's secret."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_study(folder: Path) -> dict[str, Any]:
    """study.json of a folder. Raises UserError where there is none, or not the whole of a study."""
    for file in (folder / STUDY, folder / DATABASE):
        if not file.is_file():
            raise UserError(f"{folder} holds no study, as {file.name} is missing: make one with cogview3 study build")
    fix = "copy the study's folder again"
    study = checkpoints.read_json(folder / STUDY, fix)
    systems = study.get("systems")
    if not (isinstance(systems, list) and len(systems) > 1 and all(isinstance(name, str) for name in systems)):
        raise UserError(f"{folder / STUDY} is damaged: {fix} (it names no systems)")
    return study


def from_evaluation(folder: Path) -> dict[str, Path]:
    """The systems of an evaluation's --out folder: the folders of their pictures by name."""
    pictures = folder / "pictures"
    if not pictures.is_dir():
        raise UserError(f"{folder}: no evaluation: give the --out folder of cogview3 evaluate")
    found = sorted(path for path in pictures.glob("[!.]*") if path.is_dir())
    systems = {path.name: path for path in found if not path.name.endswith("-other-noise")}
    if len(systems) < 2:
        raise UserError(f"{folder} holds the pictures of {len(systems)} systems: give an evaluation of two or more")
    return systems


def _check(plan: Plan, pairs: int) -> None:
    if plan.annotators < 1 or plan.tasks < 1 or plan.checks < 0:
        raise UserError(f"{plan.annotators} annotators, {plan.tasks} tasks, {plan.checks} checks: give 1, 1, 0 or more")
    if plan.tasks % pairs:
        near = max(pairs, round(plan.tasks / pairs) * pairs)
        raise UserError(f"{plan.tasks} tasks cannot be shared equally by {pairs} pairs of systems: give {near}")


def _pictures(
    folder: Path, folders: Mapping[str, Folder], prompts: Sequence[Prompt], ids: random.Random
) -> tuple[dict[tuple[str, int], str], set[int]]:
    """Copies under names that reveal nothing, without any text inside the file; and the prompts that lack one."""
    files: dict[tuple[str, int], str] = {}
    left_out: set[int] = set()
    for index in range(len(prompts)):
        try:
            drawn = {name: system.draw(prompts, [index], 0, "cpu", None)[0][0][0] for name, system in folders.items()}
        except UndrawnError:
            left_out.add(index)
            continue
        for name, pixels in drawn.items():
            files[name, index] = f"{ids.getrandbits(64):016x}.png"
            Image.fromarray(pixels).save(folder / files[name, index], format="PNG", compress_level=1)
    return files, left_out


def _tasks(
    annotator: int,
    plan: Plan,
    pairs: Sequence[tuple[str, str]],
    prompts: Sequence[int],
    files: Mapping[tuple[str, int], str],
) -> list[Task]:
    """One annotator's tasks: each pair equally often, its prompts going on where the annotator before left off."""
    rng = np.random.default_rng([plan.seed, annotator])
    each = plan.tasks // len(pairs)
    chosen: list[Task] = []
    for place, (first, second) in enumerate(pairs):
        order = np.random.default_rng([plan.seed, 10_000 + place]).permutation(prompts)
        flips = rng.permutation(np.arange(each) % 2)  # each side equally often
        for number in range(each):
            prompt = int(order[(annotator * each + number) % len(order)])
            left, right = (first, second) if flips[number] else (second, first)
            chosen.append(Task(annotator, 0, prompt, left, right, files[left, prompt], files[right, prompt], ""))
    for number in range(plan.checks):
        system = pairs[number % len(pairs)][0]
        own, other = (int(value) for value in rng.choice(prompts, 2, replace=False))
        sides = [files[system, own], files[system, other]]
        expected = "left" if rng.integers(2) else "right"
        left, right = sides if expected == "left" else sides[::-1]
        chosen.append(Task(annotator, 0, own, system, system, left, right, expected))
    order = rng.permutation(len(chosen))
    return [replace(chosen[place], position=position) for position, place in enumerate(order)]
