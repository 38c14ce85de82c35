"""Readers of pictures as a recipe's [data] has them; apart from training, so that their processes load no networks."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from cogview3.config import LightShardData, PictureFilters, ShardData, TextShardData, VaeShardData
from cogview3.data.buckets import Buckets, FittedImages
from cogview3.data.encoded import Preprocessing
from cogview3.data.filters import Filters
from cogview3.data.shards import CaptionedImages

ShardTables = VaeShardData | TextShardData | ShardData | LightShardData
"""[data] with shards."""


def read_part(data: ShardTables, seed: int, encoded: Preprocessing | None, part: int, parts: int) -> FittedImages:
    """The samples of one of `parts` readers."""
    weighted = dict(zip(data.shards, data.weights, strict=True)) if data.weights else data.shards
    split = {"part": part, "parts": parts, "buffer": -(-data.buffer // parts)}
    reader = captioned_images(data, weighted, seed, encoded=encoded, **split)
    buckets = Buckets(data.size, *bucket_settings(data))
    return FittedImages(reader, buckets, seed=seed, center=data.crop == "center")


def caption_reader(data: TextShardData, seed: int, count: int) -> Iterator[str]:
    """Captions of `count` pictures, or of all where there are fewer, read once."""
    reader = captioned_images(data, data.shards, seed, buffer=data.buffer, epochs=1)
    return (sample.caption for sample in islice(reader, count))


def captioned_images(data: ShardTables, addresses: Any, seed: int, **options: Any) -> CaptionedImages:
    """A reader of shards at `addresses`, with what [data] says of captions, filters and broken samples."""
    return CaptionedImages(
        addresses,
        seed=seed,
        new_share=data.new_share,
        filters=Filters(**{name: getattr(data, name) for name in PictureFilters.model_fields}),
        broken_share=data.broken_share,
        broken_window=data.broken_window,
        needs_caption=isinstance(data, ShardData | TextShardData),  # to the others, captions are of no use
        **options,
    )


def bucket_settings(data: ShardTables) -> tuple[int, float]:
    """Step and largest ratio of the buckets."""
    return (data.bucket_step, data.bucket_ratio) if data.buckets else (data.size, 1.0)
