"""[data]: what recipes train on, scenes of the built-in world or shards of your own pictures."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from cogview3.config.tables import Checked, Count, Positive, PositiveFloat, Share, Table


def _rest_of(other: str) -> AfterValidator:
    """A check that a share is at most what the share `other` leaves of 1."""

    def check(share: float, info: ValidationInfo) -> float:
        rest = 1 - info.data.get(other, 0.0)
        if share > rest + 1e-9:
            raise ValueError(f"more than {other} leaves; give at most {rest:g}")
        return share

    return AfterValidator(check)


def _part_of_size(parts: int) -> AfterValidator:
    """A check that a side is at most the part 1/`parts` of `size`."""

    def check(side: int, info: ValidationInfo) -> int:
        most = info.data.get("size", side * parts) // parts
        if side > most:
            raise ValueError(f"more than 1/{parts} of size {info.data['size']}; give at most {most}")
        return side

    return AfterValidator(check)


class VaeData(Table):
    """First crops of `crop` pixels around objects, from pictures of side `size` and half of it; then whole pictures."""

    size: Annotated[int, Field(ge=64, multiple_of=16)] = 256
    crop: Annotated[int, Field(ge=32, multiple_of=8), Checked, _part_of_size(2)] = 64
    half_share: Share = 0.35
    whole_from: Share = 0.6


class TextData(Table):
    """Shares of the three kinds of captions, and captions read to build the tokenizer."""

    brief_share: Share = 0.45
    alt_share: Annotated[Share, Checked, _rest_of("brief_share")] = 0.1
    tokenizer_captions: Positive = 8_000


class RecaptionerData(Table):
    """Pictures with alt-texts of random scenes.

    Attributes:
        captioned_share: share of a batch's pictures whose caption is learned; what is where is learned from all.
        resized_share: share of pictures drawn at twice the size and resized, as pictures of data sets are.
        empty_share: share of pictures without an alt-text.
        tokenizer_captions: captions read to build the tokenizer.
    """

    captioned_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    resized_share: Share = 0.5
    empty_share: Share = 0.03
    tokenizer_captions: Positive = 8_000


class ExpanderData(Table):
    """Brief prompts of random scenes, and captions read to build the tokenizer (unless `start_from` gives one)."""

    tokenizer_captions: Positive = 8_000


class PixelData(Table):
    """Scenes of the built-in world, a new one for each sample, as squares of `size` pixels."""

    size: Annotated[int, Field(ge=32, multiple_of=16)]


class _Latents(Table):
    """Entries that all data of base and relay stages have.

    Attributes:
        vae: a run, a model folder or a bundled model that holds the autoencoder.
        text: the same for the text encoder and its tokenizer.
        size: size of the pictures in pixels: the side of a square, or of the square whose area they have.
        text_dropout: share of the samples whose text is replaced by zeros.
        reconstructed_share: share of a relay's pictures whose z_L is made of a small picture that went through the VAE.
        degraded_share: share of a relay's pictures whose small picture was also disturbed; the others are clean.
    """

    vae: str
    text: str
    size: Annotated[int, Field(ge=64, multiple_of=16)]
    text_dropout: Share = 0.1
    reconstructed_share: Share = 0.0
    degraded_share: Annotated[Share, Checked, _rest_of("reconstructed_share")] = 0.0


class SceneData(_Latents):
    """Latents of `pictures` scenes of the built-in world, encoded once with the VAE and cached in `cache`."""

    pictures: Positive
    comprehensive_share: Share = 0.55
    cache: str = "runs/cache"


class PictureFilters(Table):
    """Which pictures to leave out; by default none. A picture without a score in its metadata is kept.

    The words UNLIKELY, UNSURE and NSFW count as NSFW scores of 0, 0.5 and 1.
    """

    block: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="Leave out pictures whose source link contains this, whatever the letter case; repeatable.",
    )
    min_side: Count = Field(default=0, description="Minimum length of the shorter side in pixels.")
    max_ratio: Annotated[float, Field(ge=1)] | None = Field(default=None, description="Maximum aspect ratio.")
    min_aesthetic: float | None = Field(default=None, description="Minimum aesthetic score.")
    max_nsfw: Share | None = Field(default=None, description="Maximum NSFW score, 0 to 1.")
    max_watermark: Share | None = Field(default=None, description="Maximum watermark score, 0 to 1.")
    min_caption: Count = Field(default=0, description="Minimum length of the old caption in characters.")
    max_caption: Count | None = Field(default=None, description="Maximum length of the old caption in characters.")

    @field_validator("max_caption")
    @classmethod
    def _not_below(cls, longest: int | None, info: ValidationInfo) -> int | None:
        if longest is not None and longest < info.data.get("min_caption", 0):
            raise ValueError("below min_caption, which leaves nothing; give more")
        return longest


class Filters(PictureFilters):
    """What `cogview3 data filter` leaves out: single samples, and pictures that resemble an earlier one of the set.

    Two pictures are duplicates if their perceptual hashes and their thumbnails agree.
    """

    duplicates: bool = Field(default=False, description="Leave out near-duplicates of earlier pictures.")
    distance: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0, description="Maximum number of differing bits, of 64, between perceptual hashes of duplicates."
    )

    @field_validator("distance")
    @classmethod
    def _of_duplicates(cls, distance: int, info: ValidationInfo) -> int:
        if distance and not info.data.get("duplicates", True):
            raise ValueError("needs --duplicates; give both")
        return distance


class _Shards(PictureFilters):
    """Pictures with captions in shards: tars, folders, tables (`data.formats.find_shards`).

    Attributes:
        shards: addresses.
        weights: one for each address: how often samples are drawn from it; by default shards are drawn in proportion
            to their size.
        validation: addresses of the validation's pictures; the shards themselves by default.
        buckets: train on sizes of many ratios with nearly the square's area; without, on squares alone.
        bucket_step: heights and widths of the buckets are multiples of this, in pixels.
        bucket_ratio: maximum ratio of a bucket's longer side to the shorter.
        crop: where pictures are cropped: at random, or at the center.
        new_share: probability of the new caption, where a picture has one.
        latents: whether to train from latents encoded ahead: "auto" if all shards have them, "require", "never".
        readers: number of parts into which reading is split, a multiple of the number of training processes; the order
            of the samples depends on it.
        workers: reading processes for each training process; 0 reads in the trainer itself. May be changed at any time.
        buffer: size of the shuffle buffer in samples, over all readers; 0 keeps the order of the shards.
        broken_share: maximum share of broken samples among the last `broken_window` of a reader.
        broken_window: see `broken_share`, which is checked once a reader has seen so many samples.
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


class _LightPictures(Table):
    """Entries that all data of tiny autoencoders have.

    Attributes:
        vae: a run, a model folder or a bundled model that holds the autoencoder to imitate.
        size: size of the pictures in pixels: the side of a square, or of the square whose area they have.
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
    """Pictures in shards, encoded as they come; latents that were encoded ahead are not read."""

    latents: Literal["never"] = "never"


class _WholePictures(Table):
    """Sizes of an autoencoder's pictures, as in `VaeData`.

    Attributes:
        size: size of the whole pictures in pixels: the side of the square whose area they get.
        patch: side of the parts that are cut out at random in the first part of the run.
        half_share: share of the parts that are cut from a picture of half the size.
        whole_from: share of the run from which on the pictures are whole.
    """

    size: Annotated[int, Field(ge=64, multiple_of=16)] = 256
    patch: Annotated[int, Field(ge=32, multiple_of=8), Checked, _part_of_size(4)] = 64
    half_share: Share = 0.35
    whole_from: Share = 0.6


class VaeShardData(_Shards, _WholePictures):
    """Pictures in shards, for an autoencoder; captions are not needed and not read."""

    latents: Literal["never"] = "never"


class TextShardData(_Shards):
    """Pictures with captions in shards, for a text encoder; `size` is the side of the squares that it learns from."""

    size: Annotated[int, Field(ge=64, multiple_of=32)] = 64
    tokenizer_captions: Positive = 8_000
    latents: Literal["never"] = "never"
    buckets: Literal[False] = False
