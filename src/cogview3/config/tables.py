"""The tables that recipes are made of: which keys there are, and what they may hold."""

from typing import Annotated, Literal

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
AboveZero = Annotated[float, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
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
    """Length and bookkeeping of a run; all lengths in images.

    Attributes:
        batch: samples of one step of the optimizer, of all processes together.
        accumulation: parts, one after the other, that each process cuts its share of a batch into.
        precision: "bf16" computes in bfloat16, by autocast, "no" in float32; "auto" is bf16 on devices that have
            instructions for it. Weights, moments and averages are float32 in any case.
        checkpoint_activations: compute activations anew in the backward pass instead of keeping them.
        compile: torch.compile the network.
        shard: spread weights, gradients, optimizer and averages over the processes (FSDP2) instead of copying them.
        on_spike: what a loss or gradient that is no finite number, or a spike of the loss, does: "stop" the run, or
            "skip" the batch. Either is written to skipped.jsonl.
        spike_factor: a loss of more than this many times the median of the last 100 steps is a spike; none without.
        max_skips: batches skipped in a row that stop the run.
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


def _of_the_rest(share: float, other: str, info: ValidationInfo) -> float:
    """A share of what another one leaves of 1."""
    rest = 1 - info.data.get(other, 0.0)
    if share > rest + 1e-9:
        raise ValueError(f"more than {other} leaves; give at most {rest:g}")
    return share


class TextData(Table):
    """Shares of the three kinds of captions, and captions read to build the tokenizer."""

    brief_share: Share = 0.45
    alt_share: Annotated[Share, Checked] = 0.1
    tokenizer_captions: Positive = 8_000

    @field_validator("alt_share")
    @classmethod
    def _fits(cls, share: float, info: ValidationInfo) -> float:
        return _of_the_rest(share, "brief_share", info)


class RecaptionerModel(Table):
    """LLaVA: a FocalNet on pictures of `image_size`, and a causal language model of Llama's kind.

    Attributes:
        vision_width: of the first level, whose patches have 4 pixels; each level after it halves their number and
            doubles the width.
        vision_depths: layers of each level. The last level's patches go into the text.
        vision_window: side in patches of the smallest neighborhood that is mixed; odd.
    """

    vision_width: Positive = 48
    vision_depths: Annotated[list[Positive], Field(min_length=1)] = [2, 2, 4]
    vision_window: Annotated[Positive, Checked] = 3
    image_size: Annotated[int, Field(ge=32), Checked] = 128
    head_dim: Positive = 24
    text_width: Annotated[Positive, Checked] = 192
    text_layers: Positive = 3
    vocab_size: Annotated[int, Field(ge=512)] = 1024

    @property
    def coarsest_patch(self) -> int:
        """Side in pixels of the last level's patches."""
        return _coarsest_patch(self.vision_depths)

    @field_validator("vision_window")
    @classmethod
    def _is_odd(cls, number: int) -> int:
        if number % 2 == 0:
            raise ValueError("even; give an odd number of patches")
        return number

    @field_validator("image_size")
    @classmethod
    def _divides(cls, number: int, info: ValidationInfo) -> int:
        patch = _coarsest_patch(info.data.get("vision_depths", [1]))
        if number % patch:
            raise ValueError(f"not a multiple of {patch}, the last level's patches; give one")
        return number

    @field_validator("text_width")
    @classmethod
    def _of_heads(cls, width: int, info: ValidationInfo) -> int:
        head = info.data.get("head_dim", width)
        if width % head:
            raise ValueError(f"not a multiple of head_dim {head}; give one")
        return width


def _coarsest_patch(depths: list[int]) -> int:
    return 4 * 2 ** (len(depths) - 1)


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


class ExpanderModel(TextModel):
    """A whole T5: its decoder writes, so it is larger and kept. `max_length` is of prompts and of what it writes."""

    num_decoder_layers: Positive = 3


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


class _Latents(Table):
    """What all data of base and relay stages have.

    Attributes:
        vae: a run, a model folder or a bundled model: where the autoencoder lies.
        text: likewise the text encoder and its tokenizer.
        size: of the pictures, in pixels: the side of a square, or of the square whose area they have.
        text_dropout: share of the samples whose text is replaced by zeros.
        reconstructed_share: share of a relay's pictures whose z_L is made of a small picture that went through the VAE.
        degraded_share: of those whose small picture was blurred and disturbed as well; that of the others is clean.
    """

    vae: str
    text: str
    size: Annotated[int, Field(ge=64, multiple_of=16)]
    text_dropout: Share = 0.1
    reconstructed_share: Share = 0.0
    degraded_share: Annotated[Share, Checked] = 0.0

    @field_validator("degraded_share")
    @classmethod
    def _fits(cls, share: float, info: ValidationInfo) -> float:
        return _of_the_rest(share, "reconstructed_share", info)


class SceneData(_Latents):
    """Latents of `pictures` scenes of the built-in world, encoded once with the VAE and cached in `cache`."""

    pictures: Positive
    comprehensive_share: Share = 0.55
    cache: str = "runs/cache"


class PictureFilters(Table):
    """Which pictures to leave out; the defaults leave out nothing. A score that the metadata lacks leaves nothing out.

    Attributes:
        block: parts of source links, compared without regard to case.
        min_side: of the picture's smaller side, in pixels.
        max_ratio: of the larger side to the smaller, 1 or more.
        min_aesthetic: of the aesthetic score.
        max_nsfw: of the probability that the picture is unsafe; the words UNLIKELY, UNSURE and NSFW count 0, 0.5, 1.
        max_watermark: of the probability of a watermark.
        min_caption, max_caption: of the old caption's length, in characters.
    """

    block: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    min_side: Count = 0
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    min_aesthetic: float | None = None
    max_nsfw: Share | None = None
    max_watermark: Share | None = None
    min_caption: Count = 0
    max_caption: Count | None = None

    @field_validator("max_caption")
    @classmethod
    def _not_below(cls, longest: int | None, info: ValidationInfo) -> int | None:
        if longest is not None and longest < info.data.get("min_caption", 0):
            raise ValueError("below min_caption, which leaves nothing; give more")
        return longest


class _Shards(PictureFilters):
    """Pictures with captions in shards: tars, folders, tables (`data.formats.find_shards`).

    Attributes:
        shards: addresses.
        weights: of each address, to draw every sample from a source with that probability; by default all shards are
            read in their natural proportion.
        validation: addresses of the pictures that the validation is of; the shards themselves by default.
        buckets: train on sizes of many ratios and nearly the square's area; without, on squares alone.
        bucket_step: what heights and widths of the buckets are multiples of, in pixels.
        bucket_ratio: of a bucket's larger side to the smaller, at most.
        crop: where what is over is cut off: at random, or on both sides alike.
        new_share: probability of the new caption, where a picture has one.
        latents: whether to train from latents encoded ahead: "auto" if all shards have them, "require", "never".
        readers: the parts into which reading is split; the order of the samples depends on it. A multiple of the
            number of processes that train.
        workers: processes that read for each of these; 0 reads in the trainer itself. May be changed at any time.
        buffer: samples among which the next is drawn, all readers together; 0 keeps the order of the shards.
        broken_share: the largest share of broken samples among the last `broken_window` of a reader.
        broken_window: see there; it is judged once a reader has seen so many.
    """

    shards: Annotated[tuple[str, ...], Field(min_length=1)]
    weights: Annotated[tuple[PositiveFloat, ...], Checked] = ()
    validation: tuple[str, ...] = ()
    buckets: bool = True
    bucket_step: Annotated[int, Field(ge=32, multiple_of=32), Checked] = 64
    bucket_ratio: Annotated[float, Field(ge=1)] = 2.0
    crop: Literal["random", "center"] = "random"
    new_share: Share = 0.95
    latents: Literal["auto", "require", "never"] = "auto"
    readers: Positive = 8
    workers: Count = 2
    buffer: Count = 1000
    broken_share: Share = 0.1
    broken_window: Positive = 1000

    @field_validator("weights")
    @classmethod
    def _one_each(cls, weights: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        shards = info.data.get("shards", ())
        if weights and (len(weights) != len(shards) or len(set(shards)) < len(shards)):
            raise ValueError(f"give one for each of the {len(set(shards))} different entries of shards, or none")
        return weights

    @field_validator("bucket_step")
    @classmethod
    def _divides(cls, step: int, info: ValidationInfo) -> int:
        if info.data.get("size", step) % step:
            raise ValueError(f"does not divide size {info.data['size']}; give a common divisor, a multiple of 32")
        return step


class ShardData(_Shards, _Latents):
    """Pictures with captions in shards, for base and relay stages."""


class BaseObjective(Table):
    """Plain diffusion on all 1000 steps; with `min_snr`, weighted by Min-SNR with that gamma (5 in its paper)."""

    prediction: Prediction = "v_prediction"
    offset_noise: NotNegative = 0.05
    min_snr: PositiveFloat | None = None


class RelayObjective(Table):
    """Latent relay diffusion (equations 4 to 7), t uniform in 0..relay_start - 1; `min_snr` as for a base stage."""

    prediction: Prediction = "v_prediction"
    relay_start: Annotated[int, Field(ge=1, le=1000)] = 500
    blur: Literal["linear", "sigma", "sin4"] = "linear"
    offset_noise: NotNegative = 0.05
    min_snr: PositiveFloat | None = None


class Lora(Table):
    """Adapters of low rank, trained on the frozen network of `recipe.start_from`.

    Attributes:
        rank: of the adapters.
        alpha: the adapters' output is multiplied by alpha / rank; alpha is the rank by default.
        targets: ends of the names of the layers that get an adapter.
        dropout: share of an adapter's inputs that is left out in training.
    """

    rank: Positive = 16
    alpha: PositiveFloat | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class EnlargerModel(Table):
    """`LatentEnlarger`: channels and residual blocks at the resolution of the latents that it is given."""

    width: Annotated[int, Field(gt=0, multiple_of=2)] = 64
    blocks: Positive = 3


class LightDecoderModel(Table):
    """`LightDecoder`: channels and residual blocks at the latents' resolution."""

    width: Annotated[int, Field(gt=0, multiple_of=4)] = 64
    blocks: Positive = 4


class _LightPictures(Table):
    """What all data of light parts have.

    Attributes:
        vae: a run, a model folder or a bundled model: where the autoencoder lies that is imitated.
        size: of the pictures, in pixels: the side of a square, or of the square whose area they have.
        degraded_share: share of the pictures whose latents have a base stage's faults.
    """

    vae: str
    size: Annotated[int, Field(ge=64, multiple_of=16)] = 128
    degraded_share: Share = 0.4


class LightData(_LightPictures):
    """Scenes of side `size`, `large_share` of them cut from renders of twice the side; `pictures` of them."""

    pictures: Positive
    large_share: Share = 0.25


class LightShardData(_Shards, _LightPictures):
    """Pictures in shards, encoded as they come; nothing is read of latents that were encoded ahead."""

    latents: Literal["never"] = "never"


class LightDecoderObjective(Table):
    """Weights of L1, squared error and edge (finite differences) terms, against the VAE's decoding."""

    l1: NotNegative = 1.0
    mse: NotNegative = 2.0
    edge: NotNegative = 0.5
