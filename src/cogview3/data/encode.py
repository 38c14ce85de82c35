"""Encoding pictures ahead of training: a tar of latents beside each shard.

Nothing heavy is imported here: `encoder` brings the networks, where a shard is left to encode.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cogview3.checkpoints import differences
from cogview3.config import UserError
from cogview3.data.encoded import Preprocessing, different, latent_notes
from cogview3.data.groups import Shard
from cogview3.data.parallel import over_shards
from cogview3.data.report import Report
from cogview3.data.sidecars import clear_abandoned
from cogview3.data.tars import latents_of


@dataclass(frozen=True)
class Encoding:
    """How to encode."""

    vae: str  # a run, a model folder or a bundled model
    preprocessing: Preprocessing  # what becomes of a picture before
    text: str | None = None  # where the text encoder lies whose embeddings of captions are to be kept
    devices: tuple[str, ...] = ("cpu",)  # of torch; worker n takes the n-th, counted around
    batch: int = 16  # pictures encoded at once
    precision: str = "float32"  # name of the encoders' number format; latents and embeddings are kept in float16
    seed: int = 0  # of random crops, and of the faults of a relay's small pictures


def encode_shards(
    shards: Sequence[Shard],
    encoding: Encoding,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Report, dict[str, Any]]:
    """Write a tar of latents beside each shard that has none.

    Tars appear whole, so an interrupted call resumes with the first shard that has none. `progress` is given the number
    of finished shards. Returns the counts over all shards, and figures of this call.

    Raises UserError for a tar made otherwise, naming what differs; for a damaged one; for workers below 1; and for a
    shard, or a file of it, that is missing or cannot be read, for which nothing is written.
    """
    report, todo = Report(), []
    clear_abandoned([latents_of(shard).address for shard in shards])
    for shard in shards:
        notes = _finished(shard, encoding, overwrite)
        if notes is None:
            todo.append(shard)
        else:
            report.add(Report.from_dict(notes["report"]))
    finished, before, start = len(shards) - len(todo), report.samples, time.perf_counter()
    with over_shards(partial(_encode, encoding=encoding, overwrite=overwrite), todo, workers) as reports:
        for number, made in enumerate(reports, 1):
            report.add(made)
            progress(finished + number)
    seconds, images = time.perf_counter() - start, report.samples - before
    rate = images / seconds if images else 0.0
    counts = {"shards": len(shards), "finished_before": finished, "images": images}
    return report, {**counts, "seconds": round(seconds, 2), "images_per_second": round(rate, 2)}


def _finished(shard: Shard, encoding: Encoding, overwrite: bool) -> dict[str, Any] | None:
    """What a shard's tar of latents notes; None where it is still to be made. Raises UserError as `encode_shards`."""
    notes = None if overwrite else latent_notes(latents_of(shard))
    if notes is None:
        return None
    own = own_notes(encoding)
    if shown := ", ".join(filter(None, [different(notes, encoding.preprocessing), differences(notes, own, own)])):
        address = latents_of(shard).address
        raise UserError(f"{address} was encoded with other options: {shown}; give the same ones, or --overwrite")
    return notes


def own_notes(encoding: Encoding) -> dict[str, Any]:
    """What is noted of an encoding beside its preprocessing, as it shows in the latents too."""
    return {"seed": encoding.seed, "dtype": encoding.precision}


def _encode(shard: Shard, encoding: Encoding, overwrite: bool) -> Report:
    from cogview3.data.encoder import encode_shard

    return encode_shard(shard, encoding, partial(_finished, shard, encoding, overwrite))
