"""The objectives of latent enlarger and tiny decoder: imitate the VAE's two halves on latents of pictures.

The pictures are scenes, or come from shards.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from PIL import Image
from torch import Tensor

from cogview3.config import LightData, LightDecoderRecipe, LightRecipe
from cogview3.data.latents import MAX_LATENT_NOISE, decode, encode, handed_over_latents, to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.data.scenes.score import score, summarize
from cogview3.diffusion.relay import enlarge
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.prompts.text_models import load_network
from cogview3.references import weights_folder
from cogview3.training.objectives import Batch, SourcedTraining, grid, psnr, start_from, weighted
from cogview3.training.sources import Epochs, Source, autocast, make_source

_CHUNK = 4  # pictures of a validation worked on at once


class LightTraining(SourcedTraining):
    """Base of both: pictures through a frozen VAE. Subclasses say of what `kind` their network is."""

    kind: type[LatentEnlarger | LightDecoder]
    component: str
    trained: LatentEnlarger | LightDecoder
    source: Source | None

    def __init__(self, recipe: LightRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        torch.manual_seed(recipe.train.seed)
        self.trained = self.kind(width=recipe.model.width, num_blocks=recipe.model.blocks)
        folder = weights_folder(recipe.data.vae, "vae")
        vae: Any = load_network(AutoencoderKL, folder).float().requires_grad_(False)
        self._frozen = {"vae": vae.to(memory_format=torch.channels_last)}  # in a dictionary: neither trained nor saved
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        if isinstance(recipe.data, LightData):
            self.source, self._epochs = None, Epochs(recipe.data.pictures, recipe.train.seed)
        else:
            self.source = make_source(recipe, vae, folder)
        if recipe.recipe.start_from:
            start_from(self.trained, recipe.recipe.start_from, self.component)

    @property
    def vae(self) -> Any:
        """The `AutoencoderKL` that is imitated."""
        return self._frozen["vae"]

    def prepare(self, device: str) -> None:
        """Move the VAE to where it is used."""
        self.vae.to(device)

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Latents "z", (B, C, h, w), and what the VAE makes of them, "target"; of scenes once for each."""
        if self.source is not None:
            return self._read(self.source, first, indices)
        pairs = [self._pair(self._epochs.picture(index)) for index in indices]
        z, target = (torch.stack(part) for part in zip(*pairs, strict=True))
        return {"z": z.float(), "target": target.float()}

    @torch.no_grad()
    def _read(self, source: Source, first: int, indices: list[int]) -> Batch:
        """Samples of shards: `degraded_share` of the latents have noise of up to `MAX_LATENT_NOISE` added."""
        samples = source.take(first, indices)
        self._name(first, indices, samples.keys)
        z, share = samples.latents["z0"], self.recipe.data.degraded_share
        for place, seed in enumerate(samples.seeds):
            rng = np.random.default_rng(seed)
            if rng.random() < share:
                noise = rng.uniform(0, MAX_LATENT_NOISE) * rng.standard_normal(z.shape[1:], np.float32)
                z[place] += torch.from_numpy(noise)
        with autocast(self.recipe, self.vae.device):
            target = self._target(z.to(self.vae.device))
        return {"z": z, "target": target.float().cpu()}

    def _pair(self, number: int) -> tuple[Tensor, Tensor]:
        """Latents and target of a picture, kept in memory in float16."""
        if number not in self._made:  # one by one, so that it does not depend on the batch that asks first
            with autocast(self.recipe, self.vae.device):
                z = self._latents(number)
                target = self._target(z)
            self._made[number] = z[0].to("cpu", torch.float16), target[0].to("cpu", torch.float16)
        return self._made[number]

    @abstractmethod
    def _target(self, latents: Tensor) -> Tensor:
        """What the VAE makes of latents (B, C, h, w)."""

    def _latents(self, number: int) -> Tensor:
        """Scaled latents (1, C, size/8, size/8) of a picture, such as a base stage hands over, on the VAE's device."""
        data, seed = self.recipe.data, self.recipe.train.seed
        assert isinstance(data, LightData)
        scene, rng = sample_scene(np.random.default_rng([seed, number])), np.random.default_rng([seed, number, 11])
        large, degraded = rng.random(2) < (data.large_share, data.degraded_share)
        picture = render(scene, 2 * data.size if large else data.size)
        if large:
            top, left = rng.integers(data.size + 1, size=2)
            picture = picture[top : top + data.size, left : left + data.size]
        return handed_over_latents(self.vae, self._to_device([picture]), torch.tensor([degraded]), [rng])

    def _to_device(self, pictures: list[np.ndarray]) -> Tensor:
        return to_tensor(pictures).to(self.vae.device, memory_format=torch.channels_last)

    def _fixed_scenes(self) -> list[Scene]:
        rng = np.random.default_rng(self.recipe.validate_.seed)
        return [sample_scene(rng) for _ in range(self.recipe.validate_.images)]

    def _fixed_pictures(self, count: int, size: int) -> list[np.ndarray]:
        """The first pictures of the validation, uint8, (size, size, 3) each."""
        if self.source is not None:
            return list(self.source.shown(count, size)[1])
        return [render(scene, size) for scene in self._fixed_scenes()[:count]]

    def _parts(self, pictures: list[np.ndarray]) -> Iterator[Tensor]:
        """Pictures a few at a time, (B, 3, H, W), in [-1, 1]."""
        for first in range(0, len(pictures), _CHUNK):
            yield self._to_device(pictures[first : first + _CHUNK])

    def _figures(self) -> dict[str, float]:
        return {} if self.source is None else self.source.figures()

    def _error(self, batch: Batch) -> Tensor:
        error: Tensor = self.trained(batch["z"]).float() - batch["target"]
        return error

    def save(self, folder: Path) -> None:
        """Write the network, as the component that pipelines know it by."""
        self.trained.save_pretrained(folder / self.component)


class EnlargerTraining(LightTraining):
    """Mean square error of z_L = E(up(D(z))), the posterior's mode of the decoded, bilinearly enlarged picture."""

    kind, component = LatentEnlarger, "latent_enlarger"

    def _target(self, latents: Tensor) -> Tensor:
        return enlarged_latents(self.vae, latents)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean square error of z_L."""
        return {"loss": self._error(batch).square().mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """How near z_L is on whole pictures without faults, at `size` and, of scenes, at twice that.

        "error_S": root mean square error over the root mean square of z_L, where z is that of a picture of side S.
        "psnr_S": in dB, of its decoding to the decoding of the true z_L (pictures in [0, 1], pooled error).
        """
        own, count, figures = self.recipe.data.size, self.recipe.validate_.images, {}
        for size in (own, 2 * own) if self.source is None else (own,):
            sums, pixels = torch.zeros(3, dtype=torch.float64), 0
            for part in self._parts(self._fixed_pictures(count if size == own else _CHUNK, size)):
                z = encode(self.vae, part)
                true, found = enlarged_latents(self.vae, z), self.trained(z)
                errors = found - true, true, decode(self.vae, found) - decode(self.vae, true)
                sums += torch.tensor([each.cpu().double().square().sum() for each in errors])
                pixels += 4 * part.numel()
            figures[f"error_{size}"] = (sums[0] / sums[1]).sqrt().item()
            figures[f"psnr_{size}"] = psnr(sums[2] / pixels)
        return figures | self._figures()

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Enlarged by the VAE, above enlarged by the network; both decoded by the VAE."""
        shown = min(6, self.recipe.validate_.images)
        z = encode(self.vae, self._to_device(self._fixed_pictures(shown, self.recipe.data.size)))
        rows = [decode(self.vae, latents) for latents in (enlarged_latents(self.vae, z), self.trained(z))]
        return grid(*map(to_uint8, rows))


class LightDecoderTraining(LightTraining):
    """L1, squared error and edges against the VAE's decoding."""

    kind, component = LightDecoder, "light_decoder"
    recipe: LightDecoderRecipe

    def _target(self, latents: Tensor) -> Tensor:
        return decode(self.vae, latents)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted sum of the recipe's terms."""
        error = self._error(batch)
        terms = {
            "l1": error.abs().mean(),
            "mse": error.square().mean(),
            "edge": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        }
        return {"loss": weighted(terms, self.recipe.objective), **terms}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """On whole pictures, scenes of twice `size`: nearness to the VAE, and what either loses.

        "psnr_to_vae": in dB, to the VAE's decoding. "psnr", "psnr_vae": of this network and of the VAE, to the
        picture. "facts", "facts_vae": share of the scenes' facts that are read in either's picture.
        """
        drawn: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        sums, numbers = torch.zeros(3, dtype=torch.float64), 0
        for true in self._parts(self._fixed_pictures(self.recipe.validate_.images, self._side)):
            z = encode(self.vae, true)
            vae, own = decode(self.vae, z), self.trained(z).clamp(-1, 1)
            sums += torch.tensor(
                [(a - b).cpu().double().square().sum() for a, b in ((own, vae), (own, true), (vae, true))]
            )
            numbers += true.numel()
            for kept, pictures in zip(drawn, (own, vae), strict=True):
                kept += list(to_uint8(pictures))
        figures = dict(zip(("psnr_to_vae", "psnr", "psnr_vae"), map(psnr, sums / numbers), strict=True))
        if self.source is None:
            facts = [scene.facts() for scene in self._fixed_scenes()]
            for name, pictures in zip(("facts", "facts_vae"), drawn, strict=True):
                figures[name] = summarize(list(map(score, facts, pictures)))["share"]
        return figures | self._figures()

    @property
    def _side(self) -> int:
        return self.recipe.data.size * (2 if self.source is None else 1)

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Pictures, what the VAE makes of them, and what the network makes of them, in three rows."""
        pictures = self._fixed_pictures(min(6, self.recipe.validate_.images), self._side)
        z = encode(self.vae, self._to_device(pictures))
        return grid(pictures, to_uint8(decode(self.vae, z)), to_uint8(self.trained(z)))


def enlarged_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """z_L = E(up(D(z))): scaled latents (B, C, h, w) decoded, enlarged bilinearly and encoded, (B, C, 2h, 2w)."""
    return encode(vae, enlarge(decode(vae, latents).float()))
