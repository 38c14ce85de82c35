"""Recipes: what is accepted, what is refused and how the refusal reads."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError

from cogview3.config import Recipe, UserError, load_recipe, parse_recipe, recipe_names

STAGE = """
[recipe]
name = "small"
kind = "relay"
[model]
block_out_channels = [8, 16, 16]
head_dim = 8
norm_num_groups = 4
[data]
vae = "runs/vae"
text = "runs/text"
size = 64
pictures = 6
[optimizer]
learning_rate = 1e-3
[train]
images = 10
batch = 2
"""


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A relay recipe's file."""
    path = tmp_path / "stage.toml"
    path.write_text(STAGE)
    return path


def refusal(source: str | Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(str(source), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def load_packaged(name: str) -> Recipe:
    """A packaged recipe; what its user has to name is named."""
    if name in ("paper/enlarger", "paper/light_decoder"):
        return load_recipe(name, ["data.vae=a", 'data.shards=["c"]'])
    if name.startswith("paper/"):
        return load_recipe(name, ["data.vae=a", "data.text=b", 'data.shards=["c"]'])
    own = name.startswith("scenes/own_") or name == "scenes/base_shards"
    return load_recipe(name, ['data.shards=["c"]'] if own else [])


def test_every_packaged_recipe_loads_and_is_named_after_its_file() -> None:
    assert {"scenes/vae", "scenes/text", "scenes/base", "scenes/relay"} <= set(recipe_names())
    for name in recipe_names():
        assert load_packaged(name).name == name.replace("/", "-")


@pytest.mark.parametrize("name", recipe_names())
def test_to_dict_through_toml_and_back_is_the_same_recipe(name: str) -> None:
    recipe = load_packaged(name)
    stored = tomllib.loads(tomli_w.dumps(recipe.to_dict()))
    assert stored == recipe.to_dict()
    assert parse_recipe(stored, "again") == recipe


def test_a_byte_order_mark_is_no_part_of_a_recipe(stage: Path) -> None:
    recipe = load_recipe(str(stage))
    stage.write_text(stage.read_text(), "utf-8-sig")  # as Notepad saves it
    assert load_recipe(str(stage)) == recipe


def test_overrides_are_toml_values_or_else_strings(stage: Path) -> None:
    recipe = load_recipe(
        str(stage),
        ["train.images=1_000", "data.vae=runs/other", "optimizer.betas=[0.5, 0.6]", "validate.images = 3"],
    )
    assert recipe.train.images == 1000
    assert recipe.data.vae == "runs/other"
    assert recipe.optimizer.betas == (0.5, 0.6)
    assert recipe.validate_.images == 3


def test_recipes_are_frozen(stage: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(str(stage)).train.images = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.imags=3", ["train.imags", "unknown", "images, batch, accumulation, seed"]),
        ("trian.images=3", ["trian", "unknown", "train"]),
        ("validate.count=3", ["validate.count", "unknown", "every_images"]),
        ("train.images=many", ["train.images", "integer", "'many'"]),
        ("train.images=2.5", ["train.images", "integer", "2.5"]),
        ("train.images=nan", ["train.images", "integer", "nan"]),
        ("train.images=0", ["train.images", "greater than 0", "0"]),
        ("train.seed=-1", ["train.seed", "greater than or equal to 0", "-1"]),
        ("optimizer.learning_rate=nan", ["optimizer.learning_rate", "finite", "nan"]),
        ("optimizer.learning_rate=inf", ["optimizer.learning_rate", "finite", "inf"]),
        ("optimizer.learning_rate='0.1'", ["optimizer.learning_rate", "number", "'0.1'"]),
        ("optimizer.betas=[0.9, 1.0]", ["optimizer.betas.1", "less than 1", "1.0"]),
        ("optimizer.decay=sudden", ["optimizer.decay", "'constant', 'linear' or 'cosine'", "'sudden'"]),
        ("objective.relay_start=1001", ["objective.relay_start", "1000", "1001"]),
        ("data.text_dropout=1.5", ["data.text_dropout", "less than or equal to 1", "1.5"]),
        ("data.size=100", ["data.size", "multiple of 16", "100"]),
        ("model.norm_num_groups=3", ["model.norm_num_groups", "[8, 16, 16]", "common divisor", "3"]),
        ("model.head_dim=6", ["model.head_dim", "[16, 16]", "6"]),
        ("recipe.name=../x", ["recipe.name", "pattern", "'../x'"]),
        ("recipe.kind=magic", ["recipe.kind", "'magic'", "vae, text, recaptioner, expander, base, relay"]),
        ("recipe.kind=[1]", ["recipe.kind", "[1]", "vae, text, recaptioner, expander, base, relay"]),
    ],
)
def test_wrong_values_are_refused_by_key_value_and_mend(stage: Path, override: str, words: list[str]) -> None:
    message = refusal(stage, override)
    assert all(word in message for word in [str(stage), *words]), message


def test_of_several_faults_the_first_is_shown_and_the_rest_counted(stage: Path) -> None:
    assert "and 1 more" in refusal(stage, "train.images=0", "train.batch=0")


@pytest.mark.parametrize("override", ["train", "train.images", "images=3", "=3", "train.=3", ".images=3", "a.b.c=3"])
def test_overrides_of_another_form_are_refused(stage: Path, override: str) -> None:
    message = refusal(stage, override)
    assert repr(override) in message


def test_an_override_into_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text("train = 3\n" + STAGE.replace("[train]\nimages = 10\nbatch = 2", ""))
    assert "'train' is not a table" in refusal(tmp_path / "odd.toml", "train.images=3")


def test_missing_tables_and_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "part.toml"
    path.write_text(STAGE.replace("images = 10", ""))
    assert "train.images: Field required" in refusal(path)
    path.write_text(STAGE.partition("[train]")[0])
    assert "train: Field required" in refusal(path)
    path.write_text(STAGE.partition("[model]")[2])
    assert "recipe.kind is None" in refusal(path)
    path.write_text("recipe = 3")
    assert "recipe.kind is None" in refusal(path)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    assert all(word in refusal("scenes/none") for word in ("'scenes/none'", "scenes/vae"))
    assert "none.toml" in refusal(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml" in refusal(tmp_path / "folder.toml")
    (tmp_path / "broken.toml").write_text("[recipe\n")
    assert "not valid TOML" in refusal(tmp_path / "broken.toml")
    (tmp_path / "latin.toml").write_bytes(STAGE.replace("small", "klein").encode() + "# größer".encode("latin-1"))
    assert "UTF-8" in refusal(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("scenes/text", "recipe.start=runs/x", ["recipe.start", "unknown"]),
        ("scenes/base", "data.reconstructed_share=0.5", ["data", "reconstructed_share is for relay recipes"]),
        ("scenes/base", "data.degraded_share=0.5", ["data", "degraded_share is for relay recipes"]),
        ("scenes/relay", "data.degraded_share=0.75", ["data.degraded_share", "at most 0.5", "0.75"]),
        ("scenes/base", "objective.relay_start=300", ["objective.relay_start", "unknown"]),
        ("scenes/vae", "data.crop=136", ["data.crop", "at most 128", "136"]),
    ],
)
def test_keys_that_a_kind_would_not_heed_are_refused(name: str, override: str, words: list[str]) -> None:
    message = refusal(name, override)
    assert all(word in message for word in words), message


def test_defaults_are_checked_against_what_is_given() -> None:
    data: dict[str, Any] = tomllib.loads(STAGE.replace("norm_num_groups = 4", ""))
    with pytest.raises(UserError, match=r"model.norm_num_groups: does not divide .* \(given: 16\)"):
        parse_recipe(data, "here")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 500 + "]" * 500,
        "a." * 500 + "b = 1",
        "a = " + "{b = " * 500,
        "[" * 10_000_000,
        f"a = {'9' * 5000}",
    ],
    ids=["arrays", "keys", "tables", "10 MB", "digits"],
)
def test_recipes_that_are_too_much_to_parse(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.toml").write_text(f"{text}\n{STAGE}")
    assert "r.toml" in refusal(tmp_path / "r.toml")


@pytest.mark.parametrize("kind", [5, [], {}, True])
@pytest.mark.parametrize("table", ["recipe", "train", "data", "model"])
def test_tables_that_are_none(table: str, kind: Any) -> None:
    tables = tomllib.loads(STAGE) | {table: kind}
    with pytest.raises(UserError, match=table):
        parse_recipe(tables, "r.toml")


@pytest.mark.parametrize("entry", ["train.images", "train.seed", "model.block_out_channels", "data.size"])
def test_numbers_beyond_any_run(stage: Path, entry: str) -> None:
    value = [2**62] * 3 if entry.endswith("channels") else 2**63
    assert str(2**62)[:6] in refusal(stage, f"{entry}={value}") or str(2**63)[:6] in refusal(stage, f"{entry}={value}")


def test_a_line_break_ends_no_override(stage: Path) -> None:
    assert "train.images" in refusal(stage, "train.images=8\nbatch=1")
    assert "data.vae" in refusal(stage, "data.vae=" + "[" * 600)
    assert load_recipe(str(stage), ['data.vae="a"\nb = 2']).data.vae == '"a"\nb = 2'


@pytest.mark.parametrize("name", ["vae", "text", "base", "relay"])
def test_shards_that_are_forgotten_are_asked_for(name: str) -> None:
    with pytest.raises(UserError, match=re.escape("""--set 'data.shards=["pictures"]'""")):
        load_recipe(f"scenes/own_{name}")
    assert load_recipe(f"scenes/own_{name}", ['data.shards=["pictures"]']).data.shards == ("pictures",)
