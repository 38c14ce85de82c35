"""[data] and [objective] of autoencoder and text encoder where they learn from pictures with captions of one's own."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from cogview3.config.tables import (
    AboveZero,
    Checked,
    NotNegative,
    Positive,
    Share,
    Table,
    _Shards,
)


class _WholePictures(Table):
    """Sizes of an autoencoder's pictures, as in `VaeData`; `patch` is the side of what is cut out of them at first.

    Attributes:
        size: of the whole pictures, in pixels: the side of the square whose area they get.
        patch: side of the parts that are cut out at random in the first part of the run.
        half_share: share of the parts that are cut from a picture of half the size.
        whole_from: share of the run from which on the pictures are whole.
    """

    size: Annotated[int, Field(ge=64, multiple_of=16)] = 256
    patch: Annotated[int, Field(ge=32, multiple_of=8), Checked] = 64
    half_share: Share = 0.35
    whole_from: Share = 0.6

    @field_validator("patch")
    @classmethod
    def _fits(cls, patch: int, info: ValidationInfo) -> int:
        if patch > info.data.get("size", patch * 4) // 4:
            raise ValueError(f"more than a quarter of size {info.data['size']}; give at most {info.data['size'] // 4}")
        return patch


class VaeShardData(_Shards, _WholePictures):
    """Pictures in shards, for an autoencoder; captions are not needed and not read."""

    latents: Literal["never"] = "never"


class _CaptionPictures(Table):
    """Side of the squares that captions are compared with, and captions read to build the tokenizer."""

    size: Annotated[int, Field(ge=64, multiple_of=32)] = 64
    tokenizer_captions: Positive = 8_000


class TextShardData(_Shards, _CaptionPictures):
    """Pictures with captions in shards, for a text encoder."""

    latents: Literal["never"] = "never"
    buckets: Literal[False] = False


class PairObjective(Table):
    """What a text encoder learns from captions and pictures.

    Attributes:
        masked: weight of telling words that are hidden from the caption.
        contrastive: weight of telling which of a batch's pictures a caption belongs to, and the other way round.
        masked_share: of the words, those hidden.
        temperature: that the likeness of caption and picture, -1 to 1, is divided by.
    """

    masked: NotNegative = 1.0
    contrastive: NotNegative = 1.0
    masked_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    temperature: AboveZero = 0.07
