"""From the pictures of one shard to its tar of latents."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogview3.data import draws
from cogview3.data.addresses import name_of
from cogview3.data.buckets import Buckets, fit
from cogview3.data.encode import Encoding, own_notes
from cogview3.data.encoded import Encoded, Size, encoded_bytes, write_latents
from cogview3.data.entries import Entry, read_pictures
from cogview3.data.groups import Shard, all_groups
from cogview3.data.latents import posteriors, to_tensor
from cogview3.data.names import LATENTS
from cogview3.data.report import Report
from cogview3.data.tars import add_file, latents_of
from cogview3.prompts.encode import embed_text
from cogview3.prompts.text_models import load_network, load_text_encoder, load_tokenizer
from cogview3.references import weights_folder

_AT_ONCE = 8  # batches whose pictures are held, so that there are full ones of most buckets


def encode_shard(shard: Shard, encoding: Encoding, check: Callable[[], object] = lambda: None) -> Report:
    """Encode every usable sample of a shard, in its order; gives the counts. A keep sidecar is obeyed.

    `check` is called before the tar takes its place: another process may have put one of other options there meanwhile.
    Raises UserError as `groups.all_groups` does.
    """
    report = Report()
    fitted = _fitted(shard, encoding, report)
    with write_latents(latents_of(shard).address) as (tar, notes):
        while chunk := list(islice(fitted, _AT_ONCE * encoding.batch)):
            for item, encoded in zip(chunk, _encode(chunk, encoding), strict=True):
                entry = item.entry
                add_file(tar, f"{entry.key}.{LATENTS}", encoded_bytes(encoded, entry.old, entry.new or ""))
                metadata = dict(entry.metadata)
                if entry.others:  # a choice stays one
                    metadata["caption"] = list(entry.choices)
                elif entry.old:
                    add_file(tar, f"{entry.key}.txt", entry.old.encode())
                if metadata:
                    add_file(tar, f"{entry.key}.json", json.dumps(metadata, default=str).encode())
        notes.update(format=1, preprocessing=encoding.preprocessing.to_dict(), **own_notes(encoding))
        notes["report"] = report.to_dict()
        check()
    return report


@dataclass(frozen=True)
class _Item:
    """A sample in its bucket's size, uint8 (H, W, 3); `chance` is a seed of its own."""

    entry: Entry
    image: np.ndarray
    original: Size
    crop: Size
    chance: int


def _fitted(shard: Shard, encoding: Encoding, report: Report) -> Iterator[_Item]:
    settings, name = encoding.preprocessing, name_of(shard.address)
    buckets = Buckets(settings.size, settings.bucket_step, settings.bucket_ratio)
    for entry, picture in read_pictures(shard, all_groups(shard), report):
        across = down = 0.5
        if settings.crop == "random":
            across, down = (draws.chance(axis, encoding.seed, name, entry.key) for axis in ("across", "down"))
        image = picture.image
        target = buckets.sizes[buckets.assign(image.height, image.width)]
        fitted, crop = fit(image, target, across, down)
        chance = draws.number("faults", encoding.seed, name, entry.key)
        yield _Item(entry, np.asarray(fitted), (image.height, image.width), crop, chance)


def _encode(items: Sequence[_Item], encoding: Encoding) -> list[Encoded]:
    """Latents of samples, those of one size together, in the order given."""
    sizes: dict[Size, list[int]] = {}
    for number, item in enumerate(items):
        sizes.setdefault(item.image.shape[:2], []).append(number)
    made: dict[int, dict[str, np.ndarray]] = {}
    for same in sizes.values():
        for start in range(0, len(same), encoding.batch):
            batch = same[start : start + encoding.batch]
            made |= zip(batch, _posteriors([items[number] for number in batch], encoding), strict=True)
    texts = _texts(items, encoding)
    encoded = []
    for number, item in enumerate(items):
        own = {text: texts[text] for text in (item.entry.old, item.entry.new) if text in texts}
        parts, (height, width) = made[number], item.image.shape[:2]
        low = parts.get("low_mean"), parts.get("low_logvar")
        encoded.append(Encoded(parts["mean"], parts["logvar"], *low, item.original, item.crop, (height, width), own))
    return encoded


def _posteriors(items: Sequence[_Item], encoding: Encoding) -> list[dict[str, np.ndarray]]:
    vae = _vae(encoding)
    rngs = [np.random.default_rng([encoding.seed, item.chance]) for item in items]
    pictures = to_tensor([item.image for item in items]).to(vae.device, vae.dtype)
    parts = posteriors(vae, pictures, encoding.preprocessing.low, rngs)
    halves = {name: _half(values, "autoencoder") for name, values in parts.items()}
    return [{name: values[row] for name, values in halves.items()} for row in range(len(items))]


def _texts(items: Sequence[_Item], encoding: Encoding) -> dict[str, np.ndarray]:
    """Embeddings of all captions, by caption; empty where none are asked for."""
    if encoding.text is None:
        return {}
    tokenizer, encoder = _text_encoder(encoding)
    captions = list(dict.fromkeys(text for item in items for text in (item.entry.old, item.entry.new) if text))
    texts: dict[str, np.ndarray] = {}
    for start in range(0, len(captions), encoding.batch):
        batch = captions[start : start + encoding.batch]
        texts |= zip(batch, _half(embed_text(tokenizer, encoder, batch), "text encoder"), strict=True)
    return texts


def _half(values: torch.Tensor, who: str) -> np.ndarray:
    half = values.half()
    if not half.isfinite().all():
        raise FloatingPointError(f"the {who} gave numbers that float16 cannot hold; use --dtype float32")
    return half.cpu().numpy()


@lru_cache(maxsize=1)
def _vae(encoding: Encoding) -> AutoencoderKL:
    folder = weights_folder(encoding.vae, "vae")
    dtype = getattr(torch, encoding.precision)
    vae: AutoencoderKL = load_network(AutoencoderKL, folder, torch_dtype=dtype).to(_device(encoding))
    vae.requires_grad_(False)
    return vae


@lru_cache(maxsize=1)
def _text_encoder(encoding: Encoding) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    encoder = load_text_encoder(weights_folder(encoding.text, "text_encoder"))
    tokenizer = load_tokenizer(weights_folder(encoding.text, "tokenizer"))
    return tokenizer, encoder.to(_device(encoding), getattr(torch, encoding.precision))


def _device(encoding: Encoding) -> str:
    """The device of this process: workers are numbered from 1 as they are started."""
    number = multiprocessing.current_process()._identity
    return encoding.devices[(number[-1] - 1 if number else 0) % len(encoding.devices)]
