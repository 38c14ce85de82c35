"""Samples of pictures in shards: read and fitted into buckets by workers, encoded here or ahead.

Everything random about a sample is drawn from (seed, `Sample.index`), so it is the same however reading is split.
"""

import sys
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from cogview3.config import (
    BaseRecipe,
    DistillRound,
    Kind,
    LightRecipe,
    LightShardData,
    RelayRecipe,
    ShardData,
    TextRecipe,
    UserError,
    VaeRecipe,
)
from cogview3.data.buckets import Batch, BucketBatches, Buckets, FittedImages
from cogview3.data.encoded import Preprocessing, check_latents, vae_fingerprint
from cogview3.data.formats import find_shards
from cogview3.data.latents import posteriors, reconstruct, scaled
from cogview3.data.recipe_readers import ShardTables, bucket_settings, captioned_images, read_part
from cogview3.data.report import Report, listed
from cogview3.data.tars import have_latents, latents_of
from cogview3.data.workers import WorkerSamples
from cogview3.fingerprints import encoder_fingerprint
from cogview3.prompts.encode import left_out, text_length
from cogview3.prompts.text_models import load_tokenizer
from cogview3.references import weights_folder
from cogview3.training import parallel
from cogview3.training.sources import Samples, Source, autocast

FEWEST_DECIBELS = 24.0
"""PSNR below which a run on an autoencoder's latents is warned of."""

ShardRecipe = VaeRecipe | TextRecipe | BaseRecipe | RelayRecipe | DistillRound | LightRecipe
_CHUNK_PIXELS = 2**22  # encoded at once
_JUDGED = 32  # pictures by which an autoencoder is judged


class PictureSource:
    """Pictures and captions of `recipe.data.shards` as they are, fitted into buckets, and the position in them."""

    def __init__(self, recipe: ShardRecipe, encoded: Preprocessing | None = None) -> None:
        data = recipe.data
        assert isinstance(data, ShardTables)
        self._recipe, self._data, self._encoded = recipe, data, encoded
        self._seed = recipe.train.seed
        self.rank, self.world = _place()
        make = partial(read_part, data, self._seed, self._encoded)
        self._samples = WorkerSamples(make, data.workers, readers=data.readers, rank=self.rank, world=self.world)
        self._batches = BucketBatches(self._samples, recipe.train.batch)
        self._tokenizer: PreTrainedTokenizerBase | None = None  # tiny autoencoders read no captions
        if isinstance(data, ShardData):
            self._tokenizer = load_tokenizer(weights_folder(data.text, "tokenizer"))
        self._told, self._cut = 0, 0  # captions, and those beyond the text length
        self._gathered = Report(), 0, 0
        make(0, data.readers)  # wrong addresses and settings are told now, not by a worker
        if data.validation:
            find_shards(data.validation)

    def pictures(self, count: int) -> Batch:
        """The next batch, of `count` pictures."""
        return self._batches.take(count)

    @cached_property
    def fixed_pictures(self) -> Batch:
        """Squares from the middle of pictures, of the validation's own seed."""
        data, seed, count = self._data, self._recipe.validate_.seed, self._recipe.validate_.images
        reader = captioned_images(data, data.validation or data.shards, seed)
        squares = Buckets(data.size, data.size, 1.0)
        return BucketBatches(FittedImages(reader, squares, center=True), count).take(count)

    @property
    def fixed_images(self) -> Tensor:
        """Those of `fixed_pictures`, (B, 3, H, H), uint8."""
        images = self.fixed_pictures.images
        assert images is not None, "validation reads pictures, not latents"
        return images

    def gather(self) -> None:
        """Add up the counts of all processes; all of them call this."""
        gathered = parallel.gathered((self._samples.report.to_dict(), self._told, self._cut))
        self._gathered = Report(), sum(each[1] for each in gathered), sum(each[2] for each in gathered)
        for report, _, _ in gathered:
            self._gathered[0].add(Report.from_dict(report))

    def figures(self) -> dict[str, float]:
        """Counts of samples by what became of them, as `gather` found them; the reasons go to the terminal.

        "data_captions_cut" is the share of captions that were longer than the text encoder reads.
        """
        report, told, captions_cut = self._gathered
        broken, filtered, corrected = (counts.total() for counts in (report.broken, report.filtered, report.corrected))
        if self.rank == 0 and (broken or filtered or corrected):
            print(
                f"data: {report.samples} samples used; broken: {listed(report.broken)}; left out: "
                f"{listed(report.filtered)}; corrected: {listed(report.corrected)}",
                file=sys.stderr,
            )
        cut = captions_cut / max(1, told)
        if self.rank == 0 and cut > 0 and self._tokenizer is not None:
            length = text_length(self._tokenizer)
            print(f"data: {cut:.1%} of the captions are truncated to {length} tokens", file=sys.stderr)
        counts: dict[str, float] = {"data_used": report.samples, "data_broken": broken, "data_left_out": filtered}
        return counts if self._tokenizer is None else counts | {"data_captions_cut": cut}

    # Position

    def state(self) -> dict[str, Any]:
        """This process' position in the data, as JSON."""
        own = self._batches.state_dict() | {"captions": [self._told, self._cut]}
        split = {"world": self.world, "accumulation": self._recipe.train.accumulation}
        return {**split, "encoded": self._encoded is not None, "processes": {str(self.rank): own}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly, after a run of as many processes.

        After one of others, every reader resumes where it was, and the pictures that waited for a full batch are shared
        out again: none is lost or comes twice, but batches are composed differently.

        Raises UserError where positions of some of those processes are missing, or they are of other settings, or
        where latents are read now and were not before, or the other way round.
        """
        if not state:
            print("the checkpoint has no position in the data: reading starts over", file=sys.stderr)
            return
        encoded = self._encoded is not None
        if state.get("encoded", encoded) != encoded:
            was, other = ("latents", "require") if state["encoded"] else ("pictures", "never")
            raise UserError(
                f"the run was started on {was}; resume with --set data.latents={other}"
                + (" and the latents where they were" if state["encoded"] else "")
            )
        accumulation = self._recipe.train.accumulation
        if self.rank == 0 and self._data.buckets and state.get("accumulation", accumulation) != accumulation:
            print(
                f"train.accumulation was {state['accumulation']}, here it is {accumulation}: each part of a batch has "
                "one size, so batches are composed differently",
                file=sys.stderr,
            )
        processes = state["processes"]
        counts = {rank: process.get("captions", (0, 0)) for rank, process in processes.items()}
        if state["world"] == self.world:
            self._told, self._cut = counts[str(self.rank)]
            self._batches.load_state_dict(processes[str(self.rank)])
            return
        if self.rank == 0:
            self._told, self._cut = map(sum, zip(*counts.values(), strict=True))
            print(
                f"the checkpoint is of {state['world']} processes, here are {self.world}: every picture's turn, crop "
                "and noise stay the same, but batches are composed differently",
                file=sys.stderr,
            )
        readers = {part: at for item in processes.values() for part, at in item["source"]["readers"].items()}
        waiting = [place for _, item in sorted(processes.items()) for place in item["waiting"]]
        merged = {"source": {"readers": readers, "turn": 0}, "waiting": waiting[self.rank :: self.world]}
        self._batches.load_state_dict({**processes["0"], **merged})


class ShardSource(PictureSource, Source):
    """Latents and captions of `recipe.data.shards`, made by the autoencoder `vae`, which lies in `folder`."""

    def __init__(
        self, recipe: BaseRecipe | RelayRecipe | DistillRound | LightRecipe, vae: AutoencoderKL, folder: Path
    ) -> None:
        data = recipe.data
        assert isinstance(data, ShardData | LightShardData)
        self._vae, self._reference = vae, data.vae
        self._low: tuple[float, float] | None = None
        if recipe.kind in (Kind.relay, Kind.distill_relay) and isinstance(data, ShardData):
            self._low = data.reconstructed_share, data.degraded_share
        super().__init__(recipe, self._find_latents(data, folder) if isinstance(data, ShardData) else None)

    def _find_latents(self, data: ShardData, folder: Path) -> Preprocessing | None:
        """How the latents that are to be read must have been made; None where pictures are read."""
        if data.latents == "never":
            return None
        shards = find_shards(data.shards)
        there = have_latents(shards)
        if not all(there):
            without = shards[there.index(False)].address
            if data.latents == "require":
                raise UserError(
                    f"{without}: no latents ({sum(there)} of {len(there)} shards have some); make them with cogview3 "
                    "data encode, or set data.latents=auto"
                )
            if any(there):
                print(
                    f"{sum(there)} of {len(there)} shards have latents, {without} has none: all pictures are encoded "
                    "while training",
                    file=sys.stderr,
                )
            return None
        text = encoder_fingerprint(weights_folder(data.text, "text_encoder").parent)
        wanted = Preprocessing(vae_fingerprint(folder), text, data.size, *bucket_settings(data), data.crop, self._low)
        check_latents(latents_of(shards[0]), wanted)  # the others are checked when their turn comes
        return wanted

    def prepare(self) -> None:
        """Tell how well the autoencoder gives the validation's pictures back: what is lost there, no UNet can learn."""
        if self.rank:
            return
        pictures = self.fixed_images[:_JUDGED].float() / 127.5 - 1
        chunks = pictures.split(max(1, _CHUNK_PIXELS // (self._data.size**2)))
        again = torch.cat([reconstruct(self._vae, chunk).float().cpu() for chunk in chunks])
        psnr = -10 * ((pictures - again).square().mean() / 4).log10().item()
        message = f"data.vae {self._reference!r} reconstructs the pictures at {psnr:.1f} dB (PSNR)"
        if psnr < FEWEST_DECIBELS:
            message += (
                f", below {FEWEST_DECIBELS:g}: what it loses cannot be learned; train one on these pictures first "
                "(cogview3 train scenes/own_vae) and give it as data.vae"
            )
        print(message, file=sys.stderr, flush=True)

    def take(self, first: int, indices: list[int]) -> Samples:
        """The next samples, as many as `indices`; which ones follows from those before, not from their numbers."""
        batch = self._batches.take(len(indices))
        if self._tokenizer is not None:
            self._told += len(batch.captions)
            self._cut += sum(bool(left_out(self._tokenizer, caption)) for caption in batch.captions)
        return self._taken(batch, self._seed)

    def _taken(self, batch: Batch, seed: int) -> Samples:
        """The samples of a batch: latents are the posterior's means, as of scenes and of x_L."""
        indices = batch.indices.tolist()
        if batch.encoded:
            names = ("mean",) if self._low is None else ("mean", "low_mean")
            arrays = {name: np.stack([getattr(item, name) for item in batch.encoded]) for name in names}
            parts = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
        else:
            parts = self._encode(batch.pixels(), [np.random.default_rng([seed, index, 9]) for index in indices])
        latents = {"z0": scaled(self._vae, parts["mean"])}
        if self._low is not None:
            latents["zL"] = scaled(self._vae, parts["low_mean"])
        texts = [item.texts.get(told) for item, told in zip(batch.encoded, batch.captions, strict=False)]
        return Samples(
            latents,
            torch.stack([batch.original, batch.crop, batch.target], 1),
            [[seed, index, 3] for index in indices],
            lambda rngs: batch.captions,
            texts if any(text is not None for text in texts) else (),
            batch.keys,
        )

    def _encode(self, pictures: Tensor, rngs: list[np.random.Generator]) -> dict[str, Tensor]:
        """Posteriors of pictures (B, 3, H, W) in [-1, 1], float32, on the CPU."""
        device = torch.device(self._vae.device)
        count = max(1, _CHUNK_PIXELS // (pictures.shape[2] * pictures.shape[3]))
        parts = []
        with autocast(self._recipe, device):
            for start in range(0, len(pictures), count):
                chunk = pictures[start : start + count].to(device)
                parts.append(posteriors(self._vae, chunk, self._low, rngs[start : start + count]))
        return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}

    # Validation

    @cached_property
    @override
    def fixed(self) -> Samples:
        return self._taken(self.fixed_pictures, self._recipe.validate_.seed)

    @override
    def shown(self, count: int, size: int) -> tuple[list[str], np.ndarray]:
        pictures = self.fixed_images[:count].permute(0, 2, 3, 1).numpy()
        small = [Image.fromarray(picture).resize((size, size), Image.Resampling.BOX) for picture in pictures]
        return self.fixed_pictures.captions[:count], np.stack([np.asarray(picture) for picture in small])


def _place() -> tuple[int, int]:
    """Rank and number of the processes that train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
