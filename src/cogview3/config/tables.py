"""The tables that recipes are made of: which keys there are, and what they may hold."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


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


class RecaptionerModel(Table):
    """LLaVA: SigLIP's vision transformer on pictures of `image_size`, and a causal language model of Llama's kind."""

    image_size: Annotated[int, Field(ge=32)] = 128
    patch_size: Annotated[Positive, Checked] = 16
    head_dim: Positive = 32
    vision_width: Annotated[Positive, Checked] = 192
    vision_layers: Positive = 5
    text_width: Annotated[Positive, Checked] = 192
    text_layers: Positive = 3
    vocab_size: Annotated[int, Field(ge=512)] = 1024

    @field_validator("patch_size")
    @classmethod
    def _divides(cls, number: int, info: ValidationInfo) -> int:
        if info.data.get("image_size", number) % number:
            raise ValueError(f"does not divide image_size {info.data['image_size']}; give a divisor")
        return number

    @field_validator("vision_width", "text_width")
    @classmethod
    def _of_heads(cls, width: int, info: ValidationInfo) -> int:
        head = info.data.get("head_dim", width)
        if width % head:
            raise ValueError(f"not a multiple of head_dim {head}; give one")
        return width


class RecaptionerData(Table):
    """Pictures with alt-texts of random scenes.

    Attributes:
        captioned_share: of a batch's pictures, those for which the caption is learned too; from all, what is where.
        resized_share: pictures drawn at twice the size and resized, as pictures of data sets are.
        empty_share: pictures without an alt-text.
        tokenizer_captions: captions read to build the tokenizer.
    """

    captioned_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    resized_share: Share = 0.5
    empty_share: Share = 0.03
    tokenizer_captions: Positive = 8_000


class ExpanderModel(Table):
    """T5 with gated GELU, as `TextModel`; `max_length` holds for prompts and for what is written."""

    d_model: Positive = 128
    d_kv: Positive = 32
    d_ff: Positive = 320
    num_heads: Positive = 4
    num_layers: Positive = 4
    num_decoder_layers: Positive = 3
    vocab_size: Annotated[int, Field(ge=512)] = 1024
    max_length: Annotated[int, Field(ge=16)] = 96


class ExpanderData(Table):
    """Brief prompts of random scenes, and captions read to build the tokenizer (unless `start_from` gives one)."""

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


class DistillTrain(Train):
    """Length and bookkeeping of a distillation's rounds; `images` of each round, or one number for all."""

    images: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @field_validator("images", mode="before")
    @classmethod
    def _one_for_all(cls, images: Any) -> Any:
        return tuple(images) if isinstance(images, list) else (images,)


class Distill(Table):
    """A teacher, and the numbers of sampling steps that it is brought down to, round by round.

    Attributes:
        teacher: a run, a model folder or a bundled model.
        steps: the teacher's, then the student's after each round; each divides the one before it.
        guidance_range: from where the guidance w of each sample is drawn.
        guidance: w of the pictures and figures of the validation.
        guidance_width: width of w's embedding, `time_cond_proj_dim`, where the teacher does not take w yet.
        offset_noise: strength of one more normal number a sample, added to all its noise; samplers add none.
    """

    teacher: str
    steps: Annotated[tuple[Positive, ...], Field(min_length=2)]
    guidance_range: tuple[NotNegative, NotNegative] = (1.0, 12.0)
    guidance: Annotated[NotNegative, Checked] = 4.0
    guidance_width: Annotated[int, Field(ge=4, multiple_of=2)] = 64
    offset_noise: NotNegative = 0.0

    @field_validator("steps")
    @classmethod
    def _divide(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        for before, after in pairwise(steps):
            if after >= before or before % after:
                raise ValueError(
                    f"{after} is no smaller divisor of {before}; halve, as in [8, 4, 2], or divide by more"
                )
        return steps

    @field_validator("guidance_range")
    @classmethod
    def _ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] > limits[1]:
            raise ValueError("the lowest guidance comes first, as in [1.0, 12.0]")
        return limits

    @field_validator("guidance")
    @classmethod
    def _within(cls, guidance: float, info: ValidationInfo) -> float:
        low, high = info.data.get("guidance_range", (guidance, guidance))
        if not low <= guidance <= high:
            raise ValueError(f"outside guidance_range; give {low:g} to {high:g}")
        return guidance


class DistillRelay(Distill):
    """A relay's distillation. What is left out is as the teacher's scheduler has it.

    Attributes:
        relay_start: T_r. Another one than the teacher's needs `fine_tune_images`.
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
            raise ValueError("fine-tuning is for another relay_start than the teacher's; give it, or leave this out")
        return images
