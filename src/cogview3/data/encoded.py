"""Pictures that were encoded ahead: the samples of a `00000.latents.tar`, and the tar's description of itself.

The tar stands for the shard that it was made of: its samples have the same keys and hold, in the same order, `key.txt`
and `key.json` as the shard has them and `key.safetensors` instead of the picture. Its first file, `__latents__.json`,
notes the autoencoder and the preprocessing.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from cogview3.checkpoints import differences, read_json
from cogview3.config import UserError
from cogview3.data import addresses
from cogview3.data.addresses import NotAFileError, whole_at
from cogview3.data.report import Broken, Report
from cogview3.data.sidecars import parse_notes
from cogview3.data.tars import NOTES, LatentShard, add_file

Size = tuple[int, int]
"""Height and width in pixels, or top and left."""

_ROOM = 2**15  # bytes for the notes, which are complete only when all else is written
_PARTS = ("mean", "logvar", "low_mean", "low_logvar")


@dataclass(frozen=True)
class Encoded:
    """The latents of a picture, float16, unscaled, as its autoencoder's encoder gives them."""

    mean: np.ndarray  # of the posterior, (C, H/8, W/8)
    logvar: np.ndarray  # likewise
    low_mean: np.ndarray | None  # of the picture that a relay stage starts from; None where it was encoded without
    low_logvar: np.ndarray | None
    original: Size  # height and width of the picture as stored
    crop: Size  # top and left
    target: Size  # H and W
    texts: Mapping[str, np.ndarray] = field(default_factory=dict)  # embeddings (L, D) by caption, of those encoded
    corrected: tuple[str, ...] = ()


def read_encoded(data: bytes) -> Encoded:
    """A sample's latents from its file. Raises Broken "damaged latents"."""
    try:
        tensors = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        captions = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        height, width, top, left, *target = tensors["size"].tolist()
        parts = [tensors.get(name) for name in _PARTS]
        if any(part is not None and [8 * side for side in part.shape[1:]] != target for part in parts):
            raise Broken("damaged latents")
        texts = {caption: tensors[f"text_{which}"] for which, caption in captions.items()}
        sizes = ((height, width), (top, left), (target[0], target[1]))
        return Encoded(tensors["mean"], tensors["logvar"], parts[2], parts[3], *sizes, texts)
    except (SafetensorError, ValueError, LookupError, AttributeError, TypeError, RecursionError, OverflowError):
        raise Broken("damaged latents") from None


def encoded_bytes(encoded: Encoded, old: str = "", new: str = "") -> bytes:
    """The inverse of `read_encoded`; `old` and `new` are the captions that `texts` may hold embeddings of."""
    tensors = {name: part for name in _PARTS if (part := getattr(encoded, name)) is not None}
    tensors["size"] = np.array([*encoded.original, *encoded.crop, *encoded.target], np.int64)
    captions = {which: text for which, text in (("old", old), ("new", new)) if text in encoded.texts}
    tensors |= {f"text_{which}": encoded.texts[text] for which, text in captions.items()}
    return safetensors.numpy.save({name: np.ascontiguousarray(part) for name, part in tensors.items()}, captions)


def latent_notes(shard: LatentShard) -> dict[str, Any] | None:
    """What a tar of latents says of itself; None where there is none. Raises UserError for a damaged one."""
    try:
        with addresses.open_address(shard.address) as file:
            head = file.read(512 + _ROOM)
        member = tarfile.TarInfo.frombuf(head[:512], "utf-8", "strict")
        if member.name != NOTES or not 0 <= member.size <= _ROOM:
            raise ValueError(f"it does not begin with {NOTES}")
        return {"report": Report().to_dict(), **parse_notes(head[512 : 512 + member.size])}
    except FileNotFoundError:
        return None
    except (tarfile.TarError, ValueError, NotAFileError) as error:
        raise UserError(f"{shard.address}: damaged ({error}); encode it again with --overwrite") from None


@dataclass(frozen=True)
class Preprocessing:
    """What latents depend on beside the picture."""

    vae: str  # hash of the autoencoder (`vae_fingerprint`)
    text: str | None  # hash (`encoder_fingerprint`) of the text encoder whose embeddings lie beside; None without
    size: int  # this and the next three: as in a recipe's [data]; without buckets, step is size and ratio 1
    bucket_step: int = 64
    bucket_ratio: float = 2.0
    crop: str = "random"
    low: tuple[float, float] | None = None  # reconstructed_share and degraded_share of a relay's small pictures

    def to_dict(self) -> dict[str, Any]:
        """In plain types, as in the notes of a tar."""
        values = {name: value for name, value in vars(self).items() if name != "low"}
        low = {} if self.low is None else {"reconstructed_share": self.low[0], "degraded_share": self.low[1]}
        return {**values, "relay": self.low is not None, **low}


def check_latents(shard: LatentShard, wanted: Preprocessing) -> None:
    """Refuse latents that cannot be trained from. Raises UserError where they are missing, or naming what differs.

    They may hold small pictures that nobody wants, and need not hold embeddings.
    """
    notes = latent_notes(shard)
    if notes is None:
        raise UserError(f"{shard.address}: not found; make it with cogview3 data encode, or set data.latents=never")
    optional = ["relay", "reconstructed_share", "degraded_share"] if wanted.low is None else []
    if notes.get("preprocessing", {}).get("text") is None:
        optional.append("text")
    if shown := different(notes, wanted, optional):
        raise UserError(
            f"{shard.address} was encoded with other options: {shown}; encode again with "
            "--overwrite, change the recipe, or set data.latents=never"
        )


def different(notes: Mapping[str, Any], wanted: Preprocessing, optional: Sequence[str] = ()) -> str:
    """What in the notes of latents is not as wanted, but for the optional, in words; empty where all is."""
    theirs, ours = notes.get("preprocessing", {}), wanted.to_dict()
    return differences(theirs, ours, [name for name in {**ours, **theirs} if name not in optional])


def vae_fingerprint(folder: Path) -> str:
    """Hash of an autoencoder's weights and configuration. Raises UserError where there are none."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder}: no .safetensors file; save the autoencoder with save_pretrained")
    config = read_json(folder / "config.json", "copy or export it again")
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for path in weights:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def write_latents(address: str) -> Iterator[tuple[tarfile.TarFile, dict[str, Any]]]:
    """Write a tar of latents whole or not at all: the open tar, and its notes, which count as the block leaves them."""
    notes: dict[str, Any] = {}
    with whole_at(address) as path:
        with tarfile.open(path, "w") as tar:
            add_file(tar, NOTES, b" " * _ROOM)
            yield tar, notes
        content = json.dumps(notes, ensure_ascii=False).encode()
        if len(content) > _ROOM:
            raise ValueError(f"{address}: notes of {len(content)} bytes, more than {_ROOM}")
        with path.open("r+b") as file:
            file.seek(512)
            file.write(content.ljust(_ROOM))
