"""Reading recipes: from TOML to a validated recipe, or to an error of one line."""

import json
import reprlib
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from cogview3.config.distill import DistillBaseRecipe, DistillRecipe, DistillRelayRecipe, DistillRound
from cogview3.config.recipes import (
    SCENES,
    SHARDS,
    TRAIN_KINDS,
    BaseTables,
    TrainRecipe,
    data_tables,
    drop_scene_entries,
)
from cogview3.config.settings import parse_setting
from cogview3.config.tables import Kind, Table
from cogview3.errors import UserError, said

RunRecipe = TrainRecipe | DistillRound
"""What the training loop runs."""

Recipe = RunRecipe | DistillRecipe

KINDS: dict[str, type[TrainRecipe | DistillRecipe]] = {
    **TRAIN_KINDS,
    Kind.distill_base: DistillBaseRecipe,
    Kind.distill_relay: DistillRelayRecipe,
}

MAX_NUMBER = 2**62
"""Whole numbers of a recipe must be smaller."""

MAX_RECIPE = 2**20
"""Characters; a longer recipe is not parsed."""


def recipe_names() -> list[str]:
    """Names of the packaged recipes, as in "scenes/relay"."""
    root = files("cogview3") / "recipes"
    groups = [folder for folder in root.iterdir() if folder.is_dir()]
    found = [f"{g.name}/{f.name[:-5]}" for g in groups for f in g.iterdir() if f.name.endswith(".toml")]
    return sorted(found)


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises UserError, naming `what`: not TOML, too deep, or above `MAX_RECIPE` bytes."""
    if len(text) > MAX_RECIPE:
        raise UserError(f"{what} is not valid TOML for a recipe: more than {MAX_RECIPE} characters")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{what} is not valid TOML for a recipe: nested too deeply") from None
    except ValueError as error:  # numbers of thousands of digits too
        raise UserError(f"{what} is not valid TOML: {error}") from None


def load_recipe(name_or_path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe: a packaged name ("scenes/relay") or a TOML file, with `section.key=value` overrides.

    Raises UserError naming the key, the value and what is allowed.
    """
    data = _read(name_or_path)
    given = [_override(data, override) for override in overrides]
    kind = KINDS.get(_kind(data) or "")
    if kind is not None and "data.shards" in given:
        drop_scene_entries(kind, data["data"], [name.removeprefix("data.") for name in given])
    return parse_recipe(data, name_or_path)


def distillation_of(run: str | Path) -> DistillRecipe | None:
    """The recipe of a distillation's run, or of one of its rounds; None of other runs and of models."""
    path = Path(run) / "recipe.toml"
    recipe = load_recipe(str(path)) if path.is_file() else None
    return recipe if isinstance(recipe, DistillBaseRecipe | DistillRelayRecipe) else None


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Validate the dictionary of a recipe. Raises UserError naming `source`, the key and the fix."""
    name = _kind(data)
    if name not in KINDS:
        shown = data["recipe"].get("kind") if isinstance(data.get("recipe"), dict) else None
        raise UserError(f"recipe {source}: recipe.kind is {shown!r}; give one of {', '.join(KINDS)}")
    kind = KINDS[name]
    _check_numbers(data, source)
    text = json.dumps(data, default=str)  # JSON mode lets lists stand for tuples, and nothing else
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise UserError(f"recipe {source} is nested too deeply, or holds text that is not Unicode") from None
        place = ".".join(str(part) for part in first["loc"] if part not in (SCENES, SHARDS))
        value = "" if first["type"] == "missing" else f" (given: {reprlib.repr(first['input'])})"
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise UserError(f"recipe {source}: {place}: {_message(kind, first)}{value}{more}") from None


def _kind(data: dict[str, Any]) -> str | None:
    """The text of recipe.kind; None without one."""
    header = data.get("recipe")
    kind = header.get("kind") if isinstance(header, dict) else None
    return kind if isinstance(kind, str) else None


def _check_numbers(data: dict[str, Any], source: str) -> None:
    """Refuse whole numbers in which libraries overflow."""
    for table, entries in data.items():
        for name, value in entries.items() if isinstance(entries, dict) else ():
            for number in value if isinstance(value, list) else (value,):
                if isinstance(number, int) and abs(number) >= MAX_NUMBER:
                    raise UserError(f"recipe {source}: {table}.{name}: {number} is too large; give a smaller one")


def _message(kind: type[BaseTables], error: Mapping[str, Any]) -> str:
    if error["type"] == "missing" and error["loc"][-1] == "shards":
        return """no shards; give folders, tars or tables of pictures, as in --set 'data.shards=["pictures"]'"""
    if error["type"] == "missing":
        return "Field required: give it in the recipe, or with --set"
    if error["type"] == "extra_forbidden":
        table: type[Table] = kind
        for part in error["loc"][:-1]:
            table = data_tables(kind).get(part) or _entry_type(table, part)
        return f"unknown; known here: {', '.join(f.alias or name for name, f in table.model_fields.items())}"
    return said(error)


def _entry_type(table: type[Table], entry: str) -> Any:
    """The kind of table that an entry of a table is."""
    field = next((f for name, f in table.model_fields.items() if entry in (name, f.alias)), None)
    if field is None:  # the tag of [data], which follows its name
        return table
    return next((kind for kind in get_args(field.annotation) if hasattr(kind, "model_fields")), field.annotation)


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    packaged = files("cogview3") / "recipes" / f"{name_or_path}.toml"
    if path.suffix == ".toml" or not packaged.is_file():
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise UserError(f"no recipe {name_or_path!r}; give a .toml file or one of: {known}")
        try:
            with path.open(encoding="utf-8-sig") as file:
                text = file.read(MAX_RECIPE + 1)
        except UnicodeDecodeError:
            raise UserError(f"recipe {path} is not valid TOML: it is not text in UTF-8") from None
    else:
        text = packaged.read_text("utf-8")
    return parse_toml(text, f"recipe {name_or_path}")


def _override(data: dict[str, Any], override: str) -> str:
    """Change an entry as `section.key=value` says; returns section.key."""
    key, value = parse_setting(override, "train.images=2000", "SECTION.KEY=VALUE")
    section, dot, name = key.partition(".")
    if not dot or not section or not name or "." in name:
        raise UserError(f"--set {override!r}: write SECTION.KEY=VALUE, such as train.images=2000")
    table = data.setdefault(section, {})
    if not isinstance(table, dict):
        raise UserError(f"--set {override!r}: {section!r} is not a table of the recipe")
    table[name] = value
    return key
