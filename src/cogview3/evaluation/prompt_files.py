"""Prompt sets in their published formats, which are detected from a file's content.

PartiPrompts (TSV), DrawBench (CSV), HPSv2 (JSON lists of strings, one file a style), ImageReward's (a JSON list of
objects), GenEval (JSONL), COCO captions (JSON), objects a line, and a prompt a line.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogview3.config import UserError
from cogview3.data.scenes.scene import Facts, Scene
from cogview3.errors import as_user_error
from cogview3.evaluation.prompt import Prompt

COCO_COUNT, COCO_SEED = 5000, 0
"""Pictures chosen of a larger COCO set, and the seed of the choice: "coco-5k, seed 0"."""

GENEVAL_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_LINE_END = re.compile(r"\r\n|\n|\r")  # others, as U+2028, may stand within a prompt
_PROMPT_COLUMNS = ("Prompt", "Prompts", "prompt")


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file, or of the .json files of a folder, each of which then is a category.

    Raises:
        UserError: no text in UTF-8, damaged, or none of the formats above.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise UserError(f"{path} holds no .json files: give a prompt file, or HPSv2's folder of styles")
        return [prompt for file in files for prompt in read_prompts(file)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    split = _LINE_END.split(text)
    lines = [(number, line.strip()) for number, line in enumerate(split, 1) if line.strip()]
    if not lines:
        return []
    if path.suffix == ".jsonl" or _is_object(lines[0][1]):
        return [_from_object(path, number, line) for number, line in lines]
    if text.lstrip().startswith(("[", "{")) and (whole := _whole_json(path, text)) is not None:
        return _from_json(path, whole)
    first = lines[0][1]
    with as_user_error(f"{path} is no table of prompts", "copy it again"):
        if "\t" in first and set(first.split("\t")) & set(_PROMPT_COLUMNS):
            return _from_table(path, split, "\t")
        if "," in first and set(next(csv.reader([first]))) & set(_PROMPT_COLUMNS):
            return _from_table(path, split, ",")
    return [Prompt(line) for _, line in lines]


def _is_object(line: str) -> bool:
    """Whether a line is a JSON object by itself that holds a prompt."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and bool({"text", "prompt"} & entry.keys())


def _whole_json(path: Path, text: str) -> Any:
    """The file as one JSON value; None of a text that only begins like one, as "[a red ring]" does."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if path.suffix == ".json":
            raise UserError(f"{path} is damaged JSON ({error}): copy it again") from None
        return None


def _from_table(path: Path, lines: Sequence[str], delimiter: str) -> list[Prompt]:
    """PartiPrompts, with quotes that mean nothing, or DrawBench, with quotes around commas."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.DictReader(lines, delimiter=delimiter, quoting=quoting)
    column = next(name for name in _PROMPT_COLUMNS if name in (reader.fieldnames or ()))
    prompts = []
    for row in reader:
        prompt = (row[column] or "").strip()
        if not prompt:
            raise UserError(f"{path}, line {reader.line_num}: has no prompt; give one, or delete the line")
        groups = {name.lower(): (row.get(name) or "").strip() for name in ("Category", "Challenge")}
        prompts.append(Prompt(prompt, tags={name: value for name, value in groups.items() if value}))
    return prompts


def _from_json(path: Path, whole: Any) -> list[Prompt]:
    if isinstance(whole, dict) and {"images", "annotations"} <= whole.keys():
        return _from_coco(path, whole)
    if isinstance(whole, list) and all(isinstance(item, str) and item.strip() for item in whole):
        return [Prompt(item.strip(), tags={"category": path.stem}) for item in whole]
    if isinstance(whole, list) and all(
        isinstance(item, dict) and isinstance(item.get("prompt"), str) for item in whole
    ):
        return [Prompt(item["prompt"].strip()) for item in whole]
    raise UserError(
        f"{path} is JSON of no known kind: give a list of strings (HPSv2), a list of objects with prompt, "
        "or COCO's captions with images and annotations"
    )


def _from_coco(path: Path, whole: Mapping[str, Any]) -> list[Prompt]:
    """One caption a picture, that of the lowest number; of more than 5,000 pictures a fixed choice, by `COCO_SEED`.

    The real pictures are looked for beside the file, in its folder or in one of COCO's names, once a metric asks.
    """
    captions: dict[int, tuple[int, str]] = {}
    try:
        names = {int(item["id"]): str(item["file_name"]) for item in whole["images"]}
        for item in whole["annotations"]:
            entry = (int(item["id"]), " ".join(str(item["caption"]).split()))
            picture = int(item["image_id"])
            captions[picture] = min(entry, captions.get(picture, entry))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no file of COCO captions ({error!r}): give captions_val2014.json, say") from None
    pictures = sorted(captions.keys() & names.keys())
    if len(pictures) > COCO_COUNT:
        chosen = np.random.default_rng(COCO_SEED).permutation(len(pictures))[:COCO_COUNT]
        pictures = [pictures[index] for index in chosen]
    return [Prompt(captions[number][1], reference=path.parent / names[number]) for number in pictures]


def _from_object(path: Path, number: int, line: str) -> Prompt:
    try:
        entry = json.loads(line)
        text = entry["text"] if "text" in entry or "prompt" not in entry else entry["prompt"]
        facts, scene = entry.get("facts"), entry.get("scene")
        if not isinstance(text, str) or not text.strip():
            raise ValueError("text is empty or not a string")
        scene = Scene.from_dict(scene) if scene else None
        facts = Facts.from_dict(facts) if facts else scene.facts() if scene else None
        geneval = _geneval(entry) if "tag" in entry and "include" in entry else None
        tags = {key: str(entry[key]) for key in ("category", "challenge") if entry.get(key)}
        tags = {"task": entry["tag"]} if geneval else tags
    except UserError as error:  # names the value and the fix
        raise UserError(f"{path}, line {number}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}, line {number}: {reason}; write objects with text and perhaps facts") from None
    return Prompt(text.strip(), facts, scene, tags, geneval)


def _geneval(entry: Mapping[str, Any]) -> dict[str, Any]:
    """GenEval's record, checked: its task is known, and each thing has a class and a count."""
    if entry["tag"] not in GENEVAL_TASKS:
        raise ValueError(f"tag {entry['tag']!r} is none of {', '.join(GENEVAL_TASKS)}")
    for place, item in enumerate([*entry["include"], *entry.get("exclude", [])]):
        if not isinstance(item["class"], str) or not isinstance(item["count"], int):
            raise ValueError(f"thing {place} has no class and count")
        relation = item.get("position")
        if relation and not (isinstance(relation, Sequence) and 0 <= int(relation[1]) < place):
            raise ValueError(f"position {relation} does not name an earlier thing")
    return {"tag": entry["tag"], "include": entry["include"], "exclude": entry.get("exclude", [])}
