"""Recipes: one frozen, validated TOML file a run.

A recipe holds the tables recipe, model, data, objective, lora, distill, optimizer, train and validate. Which tables
there are, and which keys a table knows, depends on `recipe.kind`; unknown keys, wrong types and missing values are
refused before any work starts. Lengths count images, so that the batch size may change without moving schedules.
"""

from cogview3.config.data import (
    Filters,
    LightData,
    LightShardData,
    PictureFilters,
    SceneData,
    ShardData,
    TextData,
    TextShardData,
    VaeData,
    VaeShardData,
)
from cogview3.config.distill import (
    Distill,
    DistillBaseRecipe,
    DistillBaseRound,
    DistillRecipe,
    DistillRelay,
    DistillRelayRecipe,
    DistillRelayRound,
    DistillRound,
)
from cogview3.config.finetune import FinetuneSettings
from cogview3.config.load import (
    Recipe,
    TrainRecipe,
    distillation_of,
    load_recipe,
    parse_recipe,
    parse_toml,
    recipe_names,
)
from cogview3.config.models import ExpanderModel, Lora, PixelModel, RecaptionerModel, TextModel, UNetModel, VaeModel
from cogview3.config.objectives import BaseObjective, PairObjective, RelayObjective, VaeObjective
from cogview3.config.recipes import (
    BaseRecipe,
    EnlargerRecipe,
    ExpanderRecipe,
    LightDecoderRecipe,
    LightRecipe,
    PixelRecipe,
    RecaptionerRecipe,
    RelayRecipe,
    TextRecipe,
    VaeRecipe,
)
from cogview3.config.tables import Kind, Optimizer, Share, Table, Train, Validate
from cogview3.errors import OutOfMemory, UserError

__all__ = [
    "BaseObjective",
    "BaseRecipe",
    "Distill",
    "DistillBaseRecipe",
    "DistillBaseRound",
    "DistillRecipe",
    "DistillRelay",
    "DistillRelayRecipe",
    "DistillRelayRound",
    "DistillRound",
    "EnlargerRecipe",
    "ExpanderModel",
    "ExpanderRecipe",
    "Filters",
    "FinetuneSettings",
    "Kind",
    "LightData",
    "LightDecoderRecipe",
    "LightRecipe",
    "LightShardData",
    "Lora",
    "Optimizer",
    "OutOfMemory",
    "PairObjective",
    "PictureFilters",
    "PixelModel",
    "PixelRecipe",
    "RecaptionerModel",
    "RecaptionerRecipe",
    "Recipe",
    "RelayObjective",
    "RelayRecipe",
    "SceneData",
    "ShardData",
    "Share",
    "Table",
    "TextData",
    "TextModel",
    "TextRecipe",
    "TextShardData",
    "Train",
    "TrainRecipe",
    "UNetModel",
    "UserError",
    "VaeData",
    "VaeModel",
    "VaeObjective",
    "VaeRecipe",
    "VaeShardData",
    "Validate",
    "distillation_of",
    "load_recipe",
    "parse_recipe",
    "parse_toml",
    "recipe_names",
]
