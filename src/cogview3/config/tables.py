"""The base of all tables of recipes, the kinds of values, and [recipe], [optimizer], [train] and [validate]."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Table(BaseModel):
    """A table of a recipe: frozen, unknown keys refused, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Prediction = Literal["epsilon", "v_prediction", "sample"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Checked = Field(validate_default=True)


class Kind(StrEnum):
    """What a recipe trains."""

    vae = "vae"
    text = "text"
    recaptioner = "recaptioner"
    expander = "expander"
    base = "base"
    relay = "relay"
    pixel = "pixel"
    enlarger = "enlarger"
    light_decoder = "light_decoder"
    distill_base = "distill_base"
    distill_relay = "distill_relay"


class Header(Table):
    """Table [recipe].

    Attributes:
        name: of the run's folder: lower-case letters, digits, dots, hyphens and underscores.
        kind: what is trained.
        description: for readers.
        start_from: the source of the first weights: a run, a model folder or a bundled model that holds such a network;
            for a text encoder and an expander also of the tokenizer. For a distillation, the student that the first
            round starts from instead of the teacher's copy: a distilled run, one of its rounds, or MODEL@MODE.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    kind: Kind
    description: str = ""
    start_from: str | None = None


class Optimizer(Table):
    """AdamW with a linear warm-up and a decay, both counted in images."""

    learning_rate: PositiveFloat
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: NotNegative = 0.01
    clip: PositiveFloat = 1.0
    warmup_images: Count = 0
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    ema_decay: Share = 0.999


class Train(Table):
    """Length and bookkeeping of a run; all lengths in images.

    Attributes:
        batch: samples of one optimizer step, over all processes.
        accumulation: number of parts into which each process splits its share of a batch, one after the other.
        precision: "bf16" computes in bfloat16, by autocast, "no" in float32; "auto" is bf16 on devices that have
            instructions for it. Weights, moments and averages are float32 in any case.
        checkpoint_activations: recompute activations in the backward pass instead of keeping them.
        compile: torch.compile the network.
        shard: spread weights, gradients, optimizer and averages over the processes (FSDP2) instead of copying them.
        on_spike: what happens at a spike of the loss, or at a loss or gradient that is not finite: "stop" the run, or
            "skip" the batch. Either is written to skipped.jsonl.
        spike_factor: a loss above this multiple of the median of the last 100 steps is a spike; by default none is.
        max_skips: number of batches skipped in a row that stops the run.
    """

    images: Positive
    batch: Positive
    accumulation: Positive = 1
    seed: Seed = 0
    precision: Literal["auto", "no", "bf16"] = "auto"
    checkpoint_activations: bool = False
    compile: bool = False
    shard: bool = False
    on_spike: Literal["stop", "skip"] = "stop"
    spike_factor: Annotated[float, Field(gt=1)] | None = None
    max_skips: Positive = 10
    log_images: Positive = 2_000
    checkpoint_images: Positive = 20_000
    keep_checkpoints: Positive = 2


class Validate(Table):
    """A fixed validation set, drawn from a seed of its own."""

    images: Positive = 64
    every_images: Positive = 20_000
    seed: Seed = 1_000_003
