"""Reading recipes: TOML in, a validated recipe or one clear line out."""

import json
import reprlib
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from cogview3.config.recipes import (
    DATA_TABLES,
    KINDS,
    DistillBaseRecipe,
    DistillRecipe,
    DistillRelayRecipe,
    Recipe,
    without_scenes,
)

MAX_NUMBER = 2**62
"""No whole number of a recipe is that large."""

MAX_RECIPE = 2**20
"""Characters; a longer recipe is not parsed."""


class OutOfMemory(MemoryError):
    """Not enough memory, found out before or while it was used. The message names what would fit."""


class UserError(ValueError):
    """Bad input. The message is one line that names the value and the mend; exit code 2 at the command line."""


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

    Values of overrides are TOML; what does not parse as TOML is taken as a string.
    Raises UserError naming the key, the value and what is allowed.
    """
    data = _read(name_or_path)
    for override in overrides:
        _override(data, override)
    without_scenes(data, [override.partition("=")[0].strip() for override in overrides])
    return parse_recipe(data, name_or_path)


def distillation_of(run: str | Path) -> DistillRecipe | None:
    """The recipe of a distillation's run, or of one of its rounds; None of other runs and of models."""
    path = Path(run) / "recipe.toml"
    recipe = load_recipe(str(path)) if path.is_file() else None
    return recipe if isinstance(recipe, DistillBaseRecipe | DistillRelayRecipe) else None


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Validate the dictionary of a recipe. Raises UserError naming `source`, the key and the mend."""
    header = data.get("recipe")
    kind = header.get("kind") if isinstance(header, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"recipe {source}: recipe.kind is {kind!r}; give one of {', '.join(KINDS)}")
    _check_numbers(data, source)
    text = json.dumps(data, default=str)  # JSON mode lets lists stand for tuples, and nothing else
    try:
        return KINDS[kind].model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise UserError(f"recipe {source} is nested too deeply, or holds text that is not Unicode") from None
        place = ".".join(str(part) for part in first["loc"] if part not in DATA_TABLES)
        value = "" if first["type"] == "missing" else f" (given: {reprlib.repr(first['input'])})"
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise UserError(f"recipe {source}: {place}: {_message(kind, first)}{value}{more}") from None


def _check_numbers(data: dict[str, Any], source: str) -> None:
    """Refuse whole numbers in which libraries overflow."""
    for table, entries in data.items():
        for name, value in entries.items() if isinstance(entries, dict) else ():
            for number in value if isinstance(value, list) else (value,):
                if isinstance(number, int) and abs(number) >= MAX_NUMBER:
                    raise UserError(f"recipe {source}: {table}.{name}: {number} is beyond any run; give a smaller one")


def _message(kind: str, error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return "Field required: give it in the recipe, or with --set"
    if error["type"] == "extra_forbidden":
        table: Any = KINDS[kind]
        for part in error["loc"][:-1]:
            fields = table.model_fields.items() if part not in DATA_TABLES else ()
            table = DATA_TABLES.get(part) or next(f.annotation for name, f in fields if part in (name, f.alias))
            table = next((kind for kind in get_args(table) if hasattr(kind, "model_fields")), table)  # of "Lora | None"
        return f"unknown; known here: {', '.join(f.alias or name for name, f in table.model_fields.items())}"
    return error["msg"]


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    packaged = files("cogview3") / "recipes" / f"{name_or_path}.toml"
    if path.suffix == ".toml" or not packaged.is_file():
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise UserError(f"no recipe {name_or_path!r}; give a .toml file or one of: {known}")
        text = _decode(path)
    else:
        text = packaged.read_text("utf-8")
    return parse_toml(text, f"recipe {name_or_path}")


def _decode(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_RECIPE + 1)
    except UnicodeDecodeError:
        raise UserError(f"recipe {path} is not valid TOML: it is not text in UTF-8") from None


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not section or not name or "." in name:
        raise UserError(f"--set {override!r} is not of the form section.key=value, as in train.images=2000")
    value: Any = text.strip()
    if len(value) > MAX_RECIPE:
        raise UserError(f"--set {section}.{name}: more than {MAX_RECIPE} characters")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except RecursionError:
        raise UserError(f"--set {section}.{name}: nested too deeply") from None
    except ValueError:
        parsed = {}
    if parsed.keys() == {"value"}:  # a line break would begin another entry
        value = parsed["value"]
    table = data.setdefault(section, {})
    if not isinstance(table, dict):
        raise UserError(f"--set {override!r}: {section!r} is not a table of the recipe")
    table[name] = value
