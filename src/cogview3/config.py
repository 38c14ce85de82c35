"""Recipes: one frozen, validated TOML file a run.

A recipe holds the tables recipe, model, data, objective, optimizer, train and validate. Which keys a table knows
depends on `recipe.kind`; unknown keys, wrong types and missing values are refused before any work starts.
Lengths count images, so that the batch size may change without moving schedules.
"""

import json
import reprlib
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator


class UserError(ValueError):
    """Bad input. The message is one line that names the value and the mend; exit code 2 at the command line."""


class Table(BaseModel):
    """A table of a recipe: frozen, unknown keys refused, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _divisor(number: int, widths: tuple[int, ...]) -> int:
    if any(width % number for width in widths):
        raise ValueError(f"does not divide block_out_channels {list(widths)}; give a common divisor")
    return number


Prediction = Literal["epsilon", "v_prediction", "sample"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]
Checked = Field(validate_default=True)


class Optimizer(Table):
    """AdamW with a linear warm-up and a decay, both counted in images."""

    learning_rate: PositiveFloat
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NotNegative = 0.01
    clip: PositiveFloat = 1.0
    warmup_images: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    ema_decay: Share = 0.999


class Train(Table):
    """Length and bookkeeping of a run; all lengths in images."""

    images: Positive
    batch: Positive
    seed: Seed = 0
    precision: Literal["no", "bf16"] = "bf16"
    log_images: Positive = 2_000
    checkpoint_images: Positive = 20_000
    keep_checkpoints: Positive = 2


class Validate(Table):
    """A fixed validation set, drawn from a seed of its own."""

    images: Positive = 64
    every_images: Positive = 20_000
    seed: Seed = 1_000_003


class VaeModel(Table):
    """AutoencoderKL of one latent cell for each 8 x 8 pixels."""

    block_out_channels: tuple[Positive, Positive, Positive, Positive]
    layers_per_block: Positive = 1
    norm_num_groups: Annotated[Positive, Checked] = 8
    latent_channels: Positive = 4
    sample_size: Positive = 256

    @field_validator("norm_num_groups")
    @classmethod
    def _divides(cls, number: int, info: ValidationInfo) -> int:
        return _divisor(number, info.data.get("block_out_channels", ()))


class VaeData(Table):
    """First crops of `crop` pixels around objects, from whole pictures of `size` and of half of it; then whole ones."""

    size: Annotated[int, Field(ge=64, multiple_of=16)] = 256
    crop: Annotated[int, Field(ge=32, multiple_of=8), Checked] = 64
    half_share: Share = 0.35
    whole_from: Share = 0.6

    @field_validator("crop")
    @classmethod
    def _fits(cls, crop: int, info: ValidationInfo) -> int:
        if crop > info.data.get("size", crop * 2) // 2:
            raise ValueError(f"more than half of size {info.data['size']}; give at most {info.data['size'] // 2}")
        return crop


class VaeObjective(Table):
    """Weights of L1, squared error, edge (finite differences) and KL terms."""

    l1: NotNegative = 1.0
    mse: NotNegative = 2.0
    edge: NotNegative = 0.25
    kl: NotNegative = 1e-3
    statistics_images: Annotated[int, Field(ge=64)] = 1024


class TextModel(Table):
    """T5 with gated GELU; the decoder only serves training and is not shipped."""

    d_model: Positive = 128
    d_kv: Positive = 32
    d_ff: Positive = 256
    num_heads: Positive = 4
    num_layers: Positive = 4
    num_decoder_layers: Positive = 1
    vocab_size: Annotated[int, Field(ge=512)] = 1024
    max_length: Annotated[int, Field(ge=16)] = 96


class TextData(Table):
    """Shares of the three kinds of captions, and captions read to build the tokenizer."""

    brief_share: Share = 0.45
    alt_share: Share = 0.1
    tokenizer_captions: Positive = 8_000


class UNetModel(Table):
    """UNet2DConditionModel of three levels: DownBlock2D, CrossAttnDownBlock2D x 2."""

    block_out_channels: tuple[Positive, Positive, Positive]
    layers_per_block: Positive = 2
    transformer_layers_per_block: tuple[Positive, Positive, Positive] = (1, 1, 1)
    head_dim: Annotated[Positive, Checked] = 32
    norm_num_groups: Annotated[Positive, Checked] = 16
    size_embedding: Annotated[int, Field(gt=0, multiple_of=2)] = 16

    @field_validator("head_dim")
    @classmethod
    def _divides_attending(cls, number: int, info: ValidationInfo) -> int:
        return _divisor(number, info.data.get("block_out_channels", ())[1:])  # the first level has no attention

    @field_validator("norm_num_groups")
    @classmethod
    def _divides(cls, number: int, info: ValidationInfo) -> int:
        return _divisor(number, info.data.get("block_out_channels", ()))


class LatentData(Table):
    """Latents of `pictures` scenes of side `size`, encoded once with the VAE and cached in `cache`.

    A relay's z_L is made of a small picture that went through the VAE in `reconstructed_share` of the pictures, of one
    that was blurred and disturbed as well in `degraded_share`, of a clean one in the others.
    """

    vae: str
    text: str
    size: Annotated[int, Field(ge=64, multiple_of=16)]
    pictures: Positive
    comprehensive_share: Share = 0.55
    text_dropout: Share = 0.1
    reconstructed_share: Share = 0.0
    degraded_share: Annotated[Share, Checked] = 0.0
    cache: str = "runs/cache"

    @field_validator("degraded_share")
    @classmethod
    def _fits(cls, share: float, info: ValidationInfo) -> float:
        rest = 1 - info.data.get("reconstructed_share", 0.0)
        if share > rest + 1e-9:
            raise ValueError(f"more than reconstructed_share leaves; give at most {rest:g}")
        return share


class BaseObjective(Table):
    """Plain diffusion on all 1000 steps."""

    prediction: Prediction = "v_prediction"
    offset_noise: NotNegative = 0.05


class RelayObjective(Table):
    """Latent relay diffusion (equations 4 to 7), t uniform in 0..relay_start - 1."""

    prediction: Prediction = "v_prediction"
    relay_start: Annotated[int, Field(ge=1, le=1000)] = 500
    blur: Literal["linear", "sigma", "sin4"] = "linear"
    offset_noise: NotNegative = 0.05


class _Header(Table):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    description: str = ""


class VaeHeader(_Header):
    """Table [recipe] of an autoencoder."""

    kind: Literal["vae"]
    start_from: str | None = None


class TextHeader(_Header):
    """Table [recipe] of a text encoder; `start_from` gives the encoder's weights and the tokenizer."""

    kind: Literal["text"]
    start_from: str | None = None


class BaseHeader(_Header):
    """Table [recipe] of a base stage; `start_from` is a run or a model folder whose UNet's weights it begins with."""

    kind: Literal["base"]
    start_from: str | None = None


class RelayHeader(_Header):
    """Table [recipe] of a relay stage; `start_from` as for a base stage."""

    kind: Literal["relay"]
    start_from: str | None = None


class _Recipe(Table):
    optimizer: Optimizer
    train: Train
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()

    @property
    def kind(self) -> str:
        return self.recipe.kind  # type: ignore[attr-defined]

    @property
    def name(self) -> str:
        return self.recipe.name  # type: ignore[attr-defined]

    def to_dict(self) -> dict[str, Any]:
        """Every value, defaults included, as plain TOML types (None left out)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class VaeRecipe(_Recipe):
    """How to train the autoencoder."""

    recipe: VaeHeader
    model: VaeModel
    data: VaeData = VaeData()
    objective: VaeObjective = VaeObjective()


class TextRecipe(_Recipe):
    """How to train the text encoder."""

    recipe: TextHeader
    model: TextModel = TextModel()
    data: TextData = TextData()


class BaseRecipe(_Recipe):
    """How to train a base UNet."""

    recipe: BaseHeader
    model: UNetModel
    data: LatentData
    objective: BaseObjective = BaseObjective()

    @field_validator("data")
    @classmethod
    def _no_low_resolution(cls, data: LatentData) -> LatentData:
        for name in ("reconstructed_share", "degraded_share"):
            if getattr(data, name):
                raise ValueError(f"{name} is for relay recipes; leave it out")
        return data


class RelayRecipe(_Recipe):
    """How to train a relay UNet."""

    recipe: RelayHeader
    model: UNetModel
    data: LatentData
    objective: RelayObjective = RelayObjective()


Recipe = VaeRecipe | TextRecipe | BaseRecipe | RelayRecipe
_KINDS: dict[str, type[_Recipe]] = {
    "vae": VaeRecipe,
    "text": TextRecipe,
    "base": BaseRecipe,
    "relay": RelayRecipe,
}


def recipe_names() -> list[str]:
    """Names of the packaged recipes, as in "scenes/relay"."""
    root = files("cogview3") / "recipes"
    groups = [folder for folder in root.iterdir() if folder.is_dir()]
    found = [f"{g.name}/{f.name[:-5]}" for g in groups for f in g.iterdir() if f.name.endswith(".toml")]
    return sorted(found)


def load_recipe(name_or_path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe: a packaged name ("scenes/relay") or a TOML file, with `section.key=value` overrides.

    Values of overrides are TOML; what does not parse as TOML is taken as a string.
    Raises UserError naming the key, the value and what is allowed.
    """
    data = _read(name_or_path)
    for override in overrides:
        _override(data, override)
    return parse_recipe(data, name_or_path)


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Validate the dictionary of a recipe. Raises UserError naming `source`, the key and the mend."""
    header = data.get("recipe")
    kind = header.get("kind") if isinstance(header, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(f"recipe {source}: recipe.kind is {kind!r}; give one of {', '.join(_KINDS)}")
    text = json.dumps(data, default=str)  # JSON mode lets lists stand for tuples, and nothing else
    try:
        return _KINDS[kind].model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        value = "" if first["type"] == "missing" else f" (given: {reprlib.repr(first['input'])})"
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise UserError(f"recipe {source}: {place}: {_message(kind, first)}{value}{more}") from None


def _message(kind: str, error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        table: Any = _KINDS[kind]
        for part in error["loc"][:-1]:
            table = next(f.annotation for name, f in table.model_fields.items() if part in (name, f.alias))
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
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {name_or_path} is not valid TOML: {error}") from None


def _decode(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"recipe {path} is not valid TOML: it is not text in UTF-8") from None


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not section or not name or "." in name:
        raise UserError(f"--set {override!r} is not of the form section.key=value, as in train.images=2000")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = data.setdefault(section, {})
    if not isinstance(table, dict):
        raise UserError(f"--set {override!r}: {section!r} is not a table of the recipe")
    table[name] = value
