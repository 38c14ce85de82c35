"""Recipes of distillation, and of one of its rounds."""

import json
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from cogview3.config.recipes import BaseData, BaseTables, RelayData
from cogview3.config.tables import Checked, Kind, NotNegative, Positive, PositiveFloat, Table, Train


class DistillTrain(Train):
    """Length and bookkeeping of a distillation's rounds; `images` of each round, or one number for all."""

    images: Annotated[tuple[Positive, ...], Field(min_length=1)]  # type: ignore[assignment]  # one of each round

    @field_validator("images", mode="before")
    @classmethod
    def _one_for_all(cls, images: Any) -> Any:
        return tuple(images) if isinstance(images, list) else (images,)


class Distill(Table):
    """A teacher, and the numbers of sampling steps that it is distilled to, round by round.

    Attributes:
        teacher: a run, a model folder or a bundled model.
        steps: the teacher's, then the student's after each round; each divides the one before it.
        guidance_range: range of each sample's guidance w, drawn uniformly in log w.
        guidance_power: p of the weight 1 / (1 + |w - 1|^p) of a sample's error; a higher p gives large w less weight.
        guidance: w of the pictures and figures of the validation.
        guidance_width: width of w's embedding, `time_cond_proj_dim`, if the teacher does not take w yet.
        offset_noise: strength of one extra normal number per sample, added to all its noise; samplers add none.
        paths: number of the teacher's own samplings, a multiple of `train.batch`, that the student learns from before
            new ones are drawn; few are learned by heart. 0: from noisy data, as in the paper.
        visits: how often each state of a path is learned.
    """

    teacher: str
    steps: Annotated[tuple[Positive, ...], Field(min_length=2)]
    guidance_range: tuple[PositiveFloat, PositiveFloat] = (1.0, 8.0)
    guidance_power: NotNegative = 1.0
    guidance: Annotated[NotNegative, Checked] = 4.0
    guidance_width: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    offset_noise: NotNegative = 0.0
    paths: Annotated[int, Field(ge=0)] = 0
    visits: Positive = 2

    @field_validator("steps")
    @classmethod
    def _divide(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        for before, after in pairwise(steps):
            if after >= before or before % after:
                raise ValueError(
                    f"{after} is not a smaller divisor of {before}; halve, as in [8, 4, 2], or divide by more"
                )
        return steps

    @field_validator("guidance_range")
    @classmethod
    def _ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] > limits[1]:
            raise ValueError("the lowest guidance comes first, as in [1.0, 8.0]")
        return limits

    @field_validator("guidance")
    @classmethod
    def _within(cls, guidance: float, info: ValidationInfo) -> float:
        low, high = info.data.get("guidance_range", (guidance, guidance))
        if not low <= guidance <= high:
            raise ValueError(f"outside guidance_range; give {low:g} to {high:g}")
        return guidance


class DistillRelay(Distill):
    """A relay's distillation. Entries that are left out come from the teacher's scheduler.

    Attributes:
        relay_start: T_r. One that differs from the teacher's needs `fine_tune_images`.
        blur_estimate: z_0^t inside the sampler's steps, of teacher and student.
        fine_tune_images: train the teacher on this many images with T_r = `relay_start` before the first round.
    """

    relay_start: Annotated[int, Field(ge=1, le=1000)] | None = None
    blur_estimate: Literal["recompute", "carry"] | None = None
    fine_tune_images: Annotated[int, Field(ge=0), Checked] = 0

    @field_validator("fine_tune_images")
    @classmethod
    def _needs_a_start(cls, images: int, info: ValidationInfo) -> int:
        if images and info.data.get("relay_start", 0) is None:
            raise ValueError(
                "fine-tuning is for a relay_start that differs from the teacher's; give one, or leave this out"
            )
        return images


def _check_lengths(distill: Distill, info: ValidationInfo) -> Distill:
    """One length for all rounds, or one for each; paths are drawn, and learned from, in whole batches."""
    train = info.data.get("train")
    if train is None:
        return distill
    lengths = train.images if isinstance(train, DistillTrain) else (train.images,)
    rounds = len(distill.steps) - 1
    if len(lengths) not in (1, rounds):
        raise ValueError(
            f"steps has {rounds} rounds, but train.images has {len(lengths)}; give one number, or one for each"
        )
    if distill.paths % train.batch:
        raise ValueError(f"paths is {distill.paths}, not a multiple of train.batch {train.batch}")
    for images in lengths if distill.paths else ():
        if images % train.batch:
            raise ValueError(f"with paths, train.images must be a multiple of train.batch {train.batch}, not {images}")
    return distill


class DistillBaseRound(BaseTables):
    """One round of a base stage's distillation, made by `DistillBaseRecipe.round`: `distill.steps` are two."""

    data: BaseData
    distill: Annotated[Distill, AfterValidator(_check_lengths)]


class DistillRelayRound(BaseTables):
    """One round of a relay stage's distillation, made by `DistillRelayRecipe.round`: `distill.steps` are two."""

    data: RelayData
    distill: Annotated[DistillRelay, AfterValidator(_check_lengths)]


DistillRound = DistillBaseRound | DistillRelayRound


class _Rounds(BaseTables):
    """What both distillations share: one round for each pair of neighbors in `distill.steps`."""

    train: DistillTrain
    distill: Distill

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.distill.steps) - 1

    def round(self, number: int, teacher: str) -> DistillRound:
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
        kind = DistillBaseRound if self.kind is Kind.distill_base else DistillRelayRound
        return kind.model_validate_json(json.dumps(tables))  # in JSON, lists stand for tuples


class DistillBaseRecipe(_Rounds):
    """How to distill a base stage."""

    data: BaseData
    distill: Annotated[Distill, AfterValidator(_check_lengths)]


class DistillRelayRecipe(_Rounds):
    """How to distill a relay stage."""

    data: RelayData
    distill: Annotated[DistillRelay, AfterValidator(_check_lengths)]


DistillRecipe = DistillBaseRecipe | DistillRelayRecipe
