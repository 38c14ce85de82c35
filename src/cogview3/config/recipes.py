"""The kinds of recipes: which tables each has."""

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo

from cogview3.config.distill import Distill, DistillRelay, DistillTrain
from cogview3.config.pictures import PairObjective, TextShardData, VaeShardData
from cogview3.config.pixel import PixelData, PixelHeader, PixelModel, PixelObjective
from cogview3.config.tables import (
    BaseObjective,
    EnlargerModel,
    ExpanderData,
    ExpanderModel,
    LightData,
    LightDecoderModel,
    LightDecoderObjective,
    LightShardData,
    Lora,
    Optimizer,
    RecaptionerData,
    RecaptionerModel,
    RelayObjective,
    SceneData,
    ShardData,
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


class RecaptionerHeader(_Header):
    """Table [recipe] of a small recaptioner."""

    kind: Literal["recaptioner"]


class ExpanderHeader(_Header):
    """Table [recipe] of a small prompt expander; `start_from` gives encoder and tokenizer, as of a text encoder."""

    kind: Literal["expander"]
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


def _own_data_tag(data: Any) -> str:
    """Without shards, it is of scenes."""
    shards = isinstance(data, VaeShardData | TextShardData) or (isinstance(data, dict) and "shards" in data)
    return "shards" if shards else "scenes"


def _vae_data_tag(data: Any) -> str:
    return f"<vae {_own_data_tag(data)}>"


def _text_data_tag(data: Any) -> str:
    return f"<text {_own_data_tag(data)}>"


VaePictures = Annotated[
    Annotated[VaeData, Tag("<vae scenes>")] | Annotated[VaeShardData, Tag("<vae shards>")],
    Discriminator(_vae_data_tag),
]
TextPictures = Annotated[
    Annotated[TextData, Tag("<text scenes>")] | Annotated[TextShardData, Tag("<text shards>")],
    Discriminator(_text_data_tag),
]


def _check_pairs(objective: PairObjective | None, info: ValidationInfo) -> PairObjective | None:
    if objective is not None and isinstance(info.data.get("data"), TextData):
        raise ValueError("of scenes, an encoder learns their facts; leave [objective] out, or give data.shards")
    if objective is not None and not objective.masked and not objective.contrastive:
        raise ValueError("masked and contrastive are both 0; give one of them a weight")
    return objective


class VaeRecipe(_Recipe):
    """How to train the autoencoder."""

    recipe: VaeHeader
    model: VaeModel
    data: VaePictures = VaeData()
    objective: VaeObjective = VaeObjective()


class TextRecipe(_Recipe):
    """How to train the text encoder."""

    recipe: TextHeader
    model: TextModel = TextModel()
    data: TextPictures = TextData()
    objective: Annotated[PairObjective | None, AfterValidator(_check_pairs)] = None


class RecaptionerRecipe(_Recipe):
    """How to train a small recaptioner."""

    recipe: RecaptionerHeader
    model: RecaptionerModel = RecaptionerModel()
    data: RecaptionerData = RecaptionerData()


class ExpanderRecipe(_Recipe):
    """How to train a small prompt expander."""

    recipe: ExpanderHeader
    model: ExpanderModel = ExpanderModel()
    data: ExpanderData = ExpanderData()


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


class PixelRecipe(_Recipe):
    """How to train diffusion in pixels, plain or as a relay."""

    recipe: PixelHeader
    model: PixelModel
    data: Annotated[PixelData, AfterValidator(_check_patches)]
    objective: Annotated[PixelObjective, AfterValidator(_check_factor)] = PixelObjective()


DATA_TABLES: dict[str, type[Table]] = {
    "<vae scenes>": VaeData,
    "<vae shards>": VaeShardData,
    "<text scenes>": TextData,
    "<text shards>": TextShardData,
    "<scenes>": SceneData,
    "<shards>": ShardData,
    "<light scenes>": LightData,
    "<light shards>": LightShardData,
}
"""The kinds of [data] that stages and light parts have, by the tags that stand for them in pydantic's errors."""


def _data_tag(data: Any) -> str:
    """Scenes have `pictures`, a number of them."""
    scenes = isinstance(data, SceneData | LightData) or (isinstance(data, dict) and "pictures" in data)
    return "<scenes>" if scenes else "<shards>"


def _light_data_tag(data: Any) -> str:
    return f"<light {_data_tag(data)[1:]}"


def _no_low_resolution(data: SceneData | ShardData) -> SceneData | ShardData:
    for name in ("reconstructed_share", "degraded_share"):
        if getattr(data, name):
            raise ValueError(f"{name} is for relay recipes; leave it out")
    return data


RelayData = Annotated[
    Annotated[SceneData, Tag("<scenes>")] | Annotated[ShardData, Tag("<shards>")], Discriminator(_data_tag)
]
BaseData = Annotated[RelayData, AfterValidator(_no_low_resolution)]
LightPictures = Annotated[
    Annotated[LightData, Tag("<light scenes>")] | Annotated[LightShardData, Tag("<light shards>")],
    Discriminator(_light_data_tag),
]


def _check_lora(lora: Lora | None, info: ValidationInfo) -> Lora | None:
    header, train = info.data.get("recipe"), info.data.get("train")
    if lora is not None and header is not None and header.start_from is None:
        raise ValueError("adapters need a network to adapt; give recipe.start_from")
    if lora is not None and train is not None and train.shard:
        raise ValueError("adapters are small enough for every process; leave train.shard out")
    return lora


AdapterTable = Annotated[Lora | None, AfterValidator(_check_lora)]


class BaseRecipe(_Recipe):
    """How to train a base UNet."""

    recipe: BaseHeader
    model: UNetModel
    data: BaseData
    objective: BaseObjective = BaseObjective()
    lora: AdapterTable = None


class RelayRecipe(_Recipe):
    """How to train a relay UNet."""

    recipe: RelayHeader
    model: UNetModel
    data: RelayData
    objective: RelayObjective = RelayObjective()
    lora: AdapterTable = None


class EnlargerHeader(_Header):
    """Table [recipe] of a latent enlarger; `start_from` is a run or model folder that has one."""

    kind: Literal["enlarger"]
    start_from: str | None = None


class LightDecoderHeader(_Header):
    """Table [recipe] of a light decoder; `start_from` as for an enlarger."""

    kind: Literal["light_decoder"]
    start_from: str | None = None


class EnlargerRecipe(_Recipe):
    """How to train a latent enlarger."""

    recipe: EnlargerHeader
    model: EnlargerModel = EnlargerModel()
    data: LightPictures


class LightDecoderRecipe(_Recipe):
    """How to train a light decoder."""

    recipe: LightDecoderHeader
    model: LightDecoderModel = LightDecoderModel()
    data: LightPictures
    objective: LightDecoderObjective = LightDecoderObjective()


class DistillBaseHeader(_Header):
    """Table [recipe] of a base stage's distillation.

    `start_from`: what the first round's student begins as, in the place of a copy of its teacher: a run of distill, one
    of its rounds, or a model's mode as MODEL@MODE.
    """

    kind: Literal["distill_base"]
    start_from: str | None = None


class DistillRelayHeader(_Header):
    """Table [recipe] of a relay stage's distillation; `start_from` as for a base stage."""

    kind: Literal["distill_relay"]
    start_from: str | None = None


def _check_paths(distill: Distill, info: ValidationInfo) -> Distill:
    """Paths are drawn, and learned from, in whole batches."""
    train = info.data.get("train")
    if distill.paths and train is not None:
        if distill.paths % train.batch:
            raise ValueError(f"paths is {distill.paths}, no multiple of train.batch {train.batch}")
        for images in train.images if isinstance(train, DistillTrain) else (train.images,):
            if images % train.batch:
                raise ValueError(
                    f"with paths, train.images must be a multiple of train.batch {train.batch}, not {images}"
                )
    return distill


def _check_images(distill: Distill, info: ValidationInfo) -> Distill:
    given, rounds = len(info.data["train"].images) if "train" in info.data else 1, len(distill.steps) - 1
    if given not in (1, rounds):
        raise ValueError(f"steps has {rounds} rounds, but train.images has {given}; give one number, or one for each")
    return _check_paths(distill, info)


class DistillBaseRound(_Recipe):
    """One round of a base stage's distillation, made by `DistillBaseRecipe.round`: `distill.steps` are two."""

    recipe: DistillBaseHeader
    data: BaseData
    distill: Annotated[Distill, AfterValidator(_check_paths)]


class DistillRelayRound(_Recipe):
    """One round of a relay stage's distillation, made by `DistillRelayRecipe.round`: `distill.steps` are two."""

    recipe: DistillRelayHeader
    data: RelayData
    distill: Annotated[DistillRelay, AfterValidator(_check_paths)]


class _Rounds(_Recipe):
    """What both distillations share: as many rounds as `distill.steps` has pairs of neighbors."""

    train: DistillTrain

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.distill.steps) - 1  # type: ignore[attr-defined]

    def round(self, number: int, teacher: str) -> "DistillRound":
        """The recipe of round `number`, counted from 1, with its own teacher."""
        tables = self.to_dict()
        steps = tables["distill"]["steps"][number - 1 : number + 1]
        images = tables["train"]["images"]
        tables["recipe"]["name"] += f"-round-{steps[1]}"
        tables["distill"] |= {"teacher": teacher, "steps": steps}
        tables["distill"].pop("fine_tune_images", None)
        if number > 1:  # from then on the student begins as its teacher, the last round's
            tables["recipe"].pop("start_from", None)
        tables["train"]["images"] = images[number - 1] if len(images) > 1 else images[0]
        kind = DistillBaseRound if self.kind == "distill_base" else DistillRelayRound
        return kind.model_validate_json(json.dumps(tables))  # in JSON, lists stand for tuples


class DistillBaseRecipe(_Rounds):
    """How to distill a base stage."""

    recipe: DistillBaseHeader
    data: BaseData
    distill: Annotated[Distill, AfterValidator(_check_images)]


class DistillRelayRecipe(_Rounds):
    """How to distill a relay stage."""

    recipe: DistillRelayHeader
    data: RelayData
    distill: Annotated[DistillRelay, AfterValidator(_check_images)]


DistillRound = DistillBaseRound | DistillRelayRound
DistillRecipe = DistillBaseRecipe | DistillRelayRecipe
CaptionRecipe = RecaptionerRecipe | ExpanderRecipe
LightRecipe = EnlargerRecipe | LightDecoderRecipe
Recipe = (
    VaeRecipe
    | TextRecipe
    | CaptionRecipe
    | PixelRecipe
    | BaseRecipe
    | RelayRecipe
    | LightRecipe
    | DistillRound
    | DistillRecipe
)
KINDS: dict[str, type[_Recipe]] = {
    "vae": VaeRecipe,
    "text": TextRecipe,
    "recaptioner": RecaptionerRecipe,
    "expander": ExpanderRecipe,
    "base": BaseRecipe,
    "relay": RelayRecipe,
    "pixel": PixelRecipe,
    "enlarger": EnlargerRecipe,
    "light_decoder": LightDecoderRecipe,
    "distill_base": DistillBaseRecipe,
    "distill_relay": DistillRelayRecipe,
}

_SCENES_AND_SHARDS: dict[str, tuple[type[Table], type[Table]]] = {
    "vae": (VaeData, VaeShardData),
    "text": (TextData, TextShardData),
    **dict.fromkeys(("base", "relay", "distill_base", "distill_relay"), (SceneData, ShardData)),
    **dict.fromkeys(("enlarger", "light_decoder"), (LightData, LightShardData)),
}


def without_scenes(recipe: dict[str, Any], given: Collection[str]) -> None:
    """Take out of a recipe's [data] what is of scenes alone, where `given` names data.shards; changed in place.

    `given`: the entries set beside the recipe, as "data.size": they stay, and are refused where they do not fit.
    """
    header = recipe.get("recipe")
    tables = _SCENES_AND_SHARDS.get(str(header.get("kind"))) if isinstance(header, dict) else None
    if tables is None or "data.shards" not in given:
        return
    scenes, shards = (table.model_fields for table in tables)
    for name in list(recipe["data"]):
        shared = name in shards and name in scenes and shards[name].annotation == scenes[name].annotation
        if name in scenes and not shared and f"data.{name}" not in given:
            del recipe["data"][name]
