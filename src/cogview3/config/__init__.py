"""Recipes: one frozen, validated TOML file a run.

A recipe holds the tables recipe, model, data, objective, lora, distill, optimizer, train and validate. Which tables
there are, and which keys a table knows, depends on `recipe.kind`; unknown keys, wrong types and missing values are
refused before any work starts. Lengths count images, so that the batch size may change without moving schedules.
"""

from cogview3.config.data import Filters as Filters
from cogview3.config.data import LightData as LightData
from cogview3.config.data import LightShardData as LightShardData
from cogview3.config.data import PictureFilters as PictureFilters
from cogview3.config.data import SceneData as SceneData
from cogview3.config.data import ShardData as ShardData
from cogview3.config.data import TextData as TextData
from cogview3.config.data import TextShardData as TextShardData
from cogview3.config.data import VaeData as VaeData
from cogview3.config.data import VaeShardData as VaeShardData
from cogview3.config.distill import Distill as Distill
from cogview3.config.distill import DistillBaseRecipe as DistillBaseRecipe
from cogview3.config.distill import DistillBaseRound as DistillBaseRound
from cogview3.config.distill import DistillRecipe as DistillRecipe
from cogview3.config.distill import DistillRelay as DistillRelay
from cogview3.config.distill import DistillRelayRecipe as DistillRelayRecipe
from cogview3.config.distill import DistillRelayRound as DistillRelayRound
from cogview3.config.distill import DistillRound as DistillRound
from cogview3.config.finetune import FinetuneSettings as FinetuneSettings
from cogview3.config.load import Recipe as Recipe
from cogview3.config.load import RunRecipe as RunRecipe
from cogview3.config.load import distillation_of as distillation_of
from cogview3.config.load import load_recipe as load_recipe
from cogview3.config.load import parse_recipe as parse_recipe
from cogview3.config.load import parse_toml as parse_toml
from cogview3.config.load import recipe_names as recipe_names
from cogview3.config.models import ExpanderModel as ExpanderModel
from cogview3.config.models import Lora as Lora
from cogview3.config.models import PixelModel as PixelModel
from cogview3.config.models import RecaptionerModel as RecaptionerModel
from cogview3.config.models import TextModel as TextModel
from cogview3.config.models import UNetModel as UNetModel
from cogview3.config.models import VaeModel as VaeModel
from cogview3.config.objectives import BaseObjective as BaseObjective
from cogview3.config.objectives import PairObjective as PairObjective
from cogview3.config.objectives import RelayObjective as RelayObjective
from cogview3.config.objectives import VaeObjective as VaeObjective
from cogview3.config.recipes import BaseRecipe as BaseRecipe
from cogview3.config.recipes import EnlargerRecipe as EnlargerRecipe
from cogview3.config.recipes import ExpanderRecipe as ExpanderRecipe
from cogview3.config.recipes import LightDecoderRecipe as LightDecoderRecipe
from cogview3.config.recipes import LightRecipe as LightRecipe
from cogview3.config.recipes import PixelRecipe as PixelRecipe
from cogview3.config.recipes import RecaptionerRecipe as RecaptionerRecipe
from cogview3.config.recipes import RelayRecipe as RelayRecipe
from cogview3.config.recipes import TextRecipe as TextRecipe
from cogview3.config.recipes import TrainRecipe as TrainRecipe
from cogview3.config.recipes import VaeRecipe as VaeRecipe
from cogview3.config.tables import Kind as Kind
from cogview3.config.tables import Optimizer as Optimizer
from cogview3.config.tables import Share as Share
from cogview3.config.tables import Table as Table
from cogview3.config.tables import Train as Train
from cogview3.config.tables import Validate as Validate
from cogview3.errors import OutOfMemory as OutOfMemory
from cogview3.errors import UserError as UserError
