"""The kinds of recipes: the tables of each, and the checks between tables."""

from collections.abc import Collection
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo

from cogview3.config.data import (
    ExpanderData,
    LightData,
    LightShardData,
    PixelData,
    RecaptionerData,
    SceneData,
    ShardData,
    TextData,
    TextShardData,
    VaeData,
    VaeShardData,
)
from cogview3.config.models import (
    EnlargerModel,
    ExpanderModel,
    LightDecoderModel,
    Lora,
    PixelModel,
    RecaptionerModel,
    TextModel,
    UNetModel,
    VaeModel,
)
from cogview3.config.objectives import (
    BaseObjective,
    LightDecoderObjective,
    PairObjective,
    PixelObjective,
    RelayObjective,
    VaeObjective,
)
from cogview3.config.tables import Header, Kind, Optimizer, Table, Train, Validate


class BaseTables(Table):
    """The tables that every recipe has."""

    recipe: Header
    optimizer: Optimizer
    train: Train
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()

    @property
    def kind(self) -> Kind:
        """What the recipe trains."""
        return self.recipe.kind

    @property
    def name(self) -> str:
        """The recipe's name, its run's by default."""
        return self.recipe.name

    def to_dict(self) -> dict[str, Any]:
        """Every value, defaults included, as plain TOML types (None left out)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


SCENES, SHARDS = "<scenes>", "<shards>"
"""Tags of the two kinds of [data] where there are two; pydantic's errors have them in the path to a key."""


_OF_SHARDS = {"shards", "readers", "workers", "weights", "buckets", "bucket_step", "patch", "vae"}
"""Keys that mark [data] as that of shards, even if `shards` itself is missing."""


def _tag(data: Any) -> str:
    """The tag of [data]: of scenes where it gives their number, or has nothing that is of shards."""
    names = set(data if isinstance(data, dict) else getattr(type(data), "model_fields", ()))
    return SHARDS if "pictures" not in names and names & _OF_SHARDS else SCENES


_ByKeys = Discriminator(_tag)
VaePictures = Annotated[Annotated[VaeData, Tag(SCENES)] | Annotated[VaeShardData, Tag(SHARDS)], _ByKeys]
TextPictures = Annotated[Annotated[TextData, Tag(SCENES)] | Annotated[TextShardData, Tag(SHARDS)], _ByKeys]
RelayData = Annotated[Annotated[SceneData, Tag(SCENES)] | Annotated[ShardData, Tag(SHARDS)], _ByKeys]
LightPictures = Annotated[Annotated[LightData, Tag(SCENES)] | Annotated[LightShardData, Tag(SHARDS)], _ByKeys]


def _no_low_resolution(data: SceneData | ShardData) -> SceneData | ShardData:
    for name in ("reconstructed_share", "degraded_share"):
        if getattr(data, name):
            raise ValueError(f"{name} is for relay recipes; leave it out")
    return data


BaseData = Annotated[RelayData, AfterValidator(_no_low_resolution)]


def _no_start(header: Header) -> Header:
    if header.start_from is not None:
        raise ValueError(f"start_from is not for recipes of kind {header.kind}; leave it out")
    return header


def _check_pairs(objective: PairObjective | None, info: ValidationInfo) -> PairObjective | None:
    if objective is not None and isinstance(info.data.get("data"), TextData):
        raise ValueError("of scenes, an encoder learns their facts; leave [objective] out, or give data.shards")
    if objective is not None and not (objective.masked or objective.contrastive or objective.swapped):
        raise ValueError("masked, contrastive and swapped are all 0; give one of them a weight")
    return objective


def _check_patches(data: PixelData, info: ValidationInfo) -> PixelData:
    model = info.data.get("model")
    if model is not None and data.size % model.multiple:
        raise ValueError(f"size is {data.size}; give a multiple of {model.multiple}, for model.patch and its levels")
    return data


def _check_factor(objective: PixelObjective, info: ValidationInfo) -> PixelObjective:
    data = info.data.get("data")
    if data is not None and data.size % objective.factor:
        raise ValueError(f"factor {objective.factor} does not divide data.size {data.size}; give a divisor")
    return objective


def _check_lora(lora: Lora | None, info: ValidationInfo) -> Lora | None:
    header, train = info.data.get("recipe"), info.data.get("train")
    if lora is not None and header is not None and header.start_from is None:
        raise ValueError("adapters need a network to adapt; give recipe.start_from")
    if lora is not None and train is not None and train.shard:
        raise ValueError("adapters are small enough for every process; leave train.shard out")
    return lora


FreshHeader = Annotated[Header, AfterValidator(_no_start)]
AdapterTable = Annotated[Lora | None, AfterValidator(_check_lora)]


class VaeRecipe(BaseTables):
    """How to train the autoencoder."""

    model: VaeModel
    data: VaePictures = VaeData()
    objective: VaeObjective = VaeObjective()


class TextRecipe(BaseTables):
    """How to train the text encoder."""

    model: TextModel = TextModel()
    data: TextPictures = TextData()
    objective: Annotated[PairObjective | None, AfterValidator(_check_pairs)] = None


class RecaptionerRecipe(BaseTables):
    """How to train a small recaptioner."""

    recipe: FreshHeader
    model: RecaptionerModel = RecaptionerModel()
    data: RecaptionerData = RecaptionerData()


class ExpanderRecipe(BaseTables):
    """How to train a small prompt expander."""

    model: ExpanderModel = ExpanderModel()
    data: ExpanderData = ExpanderData()


class PixelRecipe(BaseTables):
    """How to train diffusion in pixels, plain or as a relay."""

    recipe: FreshHeader
    model: PixelModel
    data: Annotated[PixelData, AfterValidator(_check_patches)]
    objective: Annotated[PixelObjective, AfterValidator(_check_factor)] = PixelObjective()


class BaseRecipe(BaseTables):
    """How to train a base UNet."""

    model: UNetModel
    data: BaseData
    objective: BaseObjective = BaseObjective()
    lora: AdapterTable = None


class RelayRecipe(BaseTables):
    """How to train a relay UNet."""

    model: UNetModel
    data: RelayData
    objective: RelayObjective = RelayObjective()
    lora: AdapterTable = None


class EnlargerRecipe(BaseTables):
    """How to train a latent enlarger."""

    model: EnlargerModel = EnlargerModel()
    data: LightPictures


class LightDecoderRecipe(BaseTables):
    """How to train a tiny decoder."""

    model: LightDecoderModel = LightDecoderModel()
    data: LightPictures
    objective: LightDecoderObjective = LightDecoderObjective()


LightRecipe = EnlargerRecipe | LightDecoderRecipe

TrainRecipe = (
    VaeRecipe
    | TextRecipe
    | RecaptionerRecipe
    | ExpanderRecipe
    | BaseRecipe
    | RelayRecipe
    | PixelRecipe
    | EnlargerRecipe
    | LightDecoderRecipe
)
"""What `cogview3 train` runs."""

TRAIN_KINDS: dict[str, type[TrainRecipe]] = {
    Kind.vae: VaeRecipe,
    Kind.text: TextRecipe,
    Kind.recaptioner: RecaptionerRecipe,
    Kind.expander: ExpanderRecipe,
    Kind.base: BaseRecipe,
    Kind.relay: RelayRecipe,
    Kind.pixel: PixelRecipe,
    Kind.enlarger: EnlargerRecipe,
    Kind.light_decoder: LightDecoderRecipe,
}


def data_tables(recipe: type[BaseTables]) -> dict[str, type[Table]]:
    """The kinds of [data] that a kind of recipe has, by their tags; empty where there is one alone."""
    kinds = get_args(recipe.model_fields["data"].annotation)
    return {tag.tag: table for table, tag in map(get_args, kinds)}


def drop_scene_entries(recipe: type[BaseTables], data: dict[str, Any], given: Collection[str]) -> None:
    """Remove entries that are for scenes only from a [data] to which shards were added; changed in place.

    `given`: names set on the command line, which stay, and are refused if they do not fit.
    """
    tables = data_tables(recipe)
    if not tables:
        return
    scenes, shards = tables[SCENES].model_fields, tables[SHARDS].model_fields
    for name in scenes.keys() & data.keys() - set(given):
        if name not in shards or shards[name].annotation != scenes[name].annotation:
            del data[name]
