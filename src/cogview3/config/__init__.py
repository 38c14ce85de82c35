"""Recipes: one frozen, validated TOML file a run.

A recipe holds the tables recipe, model, data, objective, distill, optimizer, train and validate. Which tables there
are, and which keys a table knows, depends on `recipe.kind`; unknown keys, wrong types and missing values are refused
before any work starts. Lengths count images, so that the batch size may change without moving schedules.
"""

from cogview3.config.load import OutOfMemory, UserError, load_recipe, parse_recipe, recipe_names
from cogview3.config.recipes import (
    BaseRecipe,
    DistillBaseRecipe,
    DistillBaseRound,
    DistillRecipe,
    DistillRelayRecipe,
    DistillRelayRound,
    DistillRound,
    Recipe,
    RelayRecipe,
    TextRecipe,
    VaeRecipe,
)
from cogview3.config.tables import (
    BaseObjective,
    Distill,
    DistillRelay,
    LatentData,
    Optimizer,
    RelayObjective,
    Share,
    Table,
    TextData,
    TextModel,
    Train,
    UNetModel,
    VaeData,
    VaeModel,
    VaeObjective,
    Validate,
)

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
    "LatentData",
    "Optimizer",
    "OutOfMemory",
    "Recipe",
    "RelayObjective",
    "RelayRecipe",
    "Share",
    "Table",
    "TextData",
    "TextModel",
    "TextRecipe",
    "Train",
    "UNetModel",
    "UserError",
    "VaeData",
    "VaeModel",
    "VaeObjective",
    "VaeRecipe",
    "Validate",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
]
