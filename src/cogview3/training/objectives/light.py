"""The objectives of latent enlarger and light decoder: to do what the VAE's halves do, on latents of scenes."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from cogview3 import checkpoints
from cogview3.config import EnlargerRecipe, LightDecoderRecipe, LightRecipe
from cogview3.data.latents import decode, encode, handed_over_latents, to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.data.scenes.score import score, summarize
from cogview3.diffusion.relay import enlarge
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.training.objectives import Batch, Objective, start_from

_CHUNK = 4  # pictures of a validation worked on at once


class LightTraining(Objective):
    """Base of both: scenes through a frozen VAE. Subclasses set `trained`."""

    trained: LatentEnlarger | LightDecoder

    def __init__(self, recipe: LightRecipe, trained: LatentEnlarger | LightDecoder, component: str) -> None:
        super().__init__()
        self.recipe, self.trained, self.component = recipe, trained, component
        folder = checkpoints.weights_folder(recipe.data.vae, "vae")
        vae = AutoencoderKL.from_pretrained(folder).float().eval().requires_grad_(False)
        self._frozen = {"vae": vae.to(memory_format=torch.channels_last)}  # in a dictionary: neither trained nor saved
        self._epoch, self._order = -1, np.empty(0, np.int64)  # which pictures' order is at hand
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        if recipe.recipe.start_from:
            start_from(self.trained, recipe.recipe.start_from, component)

    @property
    def vae(self) -> AutoencoderKL:
        """The network that is imitated."""
        return self._frozen["vae"]

    def prepare(self, device: str) -> None:
        """Move the VAE to where it is used."""
        self.vae.to(device)

    def _precision(self) -> AbstractContextManager:
        return torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16")

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Latents "z", (B, C, h, w), and what the VAE makes of them, "target", once for each picture."""
        pairs = [self._pair(self._number(index)) for index in indices]
        z, target = (torch.stack(part) for part in zip(*pairs, strict=True))
        return {"z": z.float(), "target": target.float()}

    def _pair(self, number: int) -> tuple[Tensor, Tensor]:
        """Latents and target of a picture, kept in memory in float16."""
        if number not in self._made:  # one by one, so that it does not depend on the batch that asks first
            with self._precision():
                z = self._latents(number)
                self._made[number] = tuple(part[0].to("cpu", torch.float16) for part in (z, self._target(z)))
        return self._made[number]

    @abstractmethod
    def _target(self, latents: Tensor) -> Tensor:
        """What the VAE makes of latents (B, C, h, w)."""

    def _number(self, index: int) -> int:
        """The picture that sample `index` is of: each epoch has all of them, in an order of its own."""
        epoch, place = divmod(index, self.recipe.data.pictures)
        if self._epoch != epoch:
            rng = np.random.default_rng([self.recipe.train.seed, epoch, 7])
            self._epoch, self._order = epoch, rng.permutation(self.recipe.data.pictures)
        return int(self._order[place])

    def _latents(self, number: int) -> Tensor:
        """Scaled latents (1, C, size/8, size/8) of a picture, such as a base stage hands over, on the VAE's device."""
        data, seed = self.recipe.data, self.recipe.train.seed
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

    def save(self, folder: Path) -> None:
        """Write the network, as the component that pipelines know it by."""
        self.trained.save_pretrained(folder / self.component)


class EnlargerTraining(LightTraining):
    """Mean square error of z_L = E(up(D(z))), the posterior's mode of the decoded, bilinearly enlarged picture."""

    def __init__(self, recipe: EnlargerRecipe) -> None:
        torch.manual_seed(recipe.train.seed)
        super().__init__(
            recipe, LatentEnlarger(width=recipe.model.width, num_blocks=recipe.model.blocks), "latent_enlarger"
        )

    def _target(self, latents: Tensor) -> Tensor:
        return enlarged_latents(self.vae, latents)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean square error of z_L."""
        error = self.trained(batch["z"]).float() - batch["target"]
        return {"loss": error.square().mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """How near z_L is on whole scenes without faults, at `size` and at twice that.

        "error_S": root mean square error over the root mean square of z_L, where z is that of a picture of side S.
        "psnr_S": in dB, of its decoding to the decoding of the true z_L (pictures in [0, 1], pooled error).
        """
        figures = {}
        for size in (self.recipe.data.size, 2 * self.recipe.data.size):
            sums = torch.zeros(3, dtype=torch.float64)
            scenes = self._fixed_scenes() if size == self.recipe.data.size else self._fixed_scenes()[:_CHUNK]
            for first in range(0, len(scenes), _CHUNK):
                z = encode(self.vae, self._to_device([render(scene, size) for scene in scenes[first : first + _CHUNK]]))
                true, found = enlarged_latents(self.vae, z), self.trained(z)
                errors = found - true, true, decode(self.vae, found) - decode(self.vae, true)
                sums += torch.tensor([each.double().square().sum() for each in errors])
            figures[f"error_{size}"] = (sums[0] / sums[1]).sqrt().item()
            figures[f"psnr_{size}"] = psnr(sums[2] / (len(scenes) * 3 * (2 * size) ** 2))
        return figures

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Enlarged by the VAE, above enlarged by the network; both decoded by the VAE."""
        size = self.recipe.data.size
        z = encode(self.vae, self._to_device([render(scene, size) for scene in self._fixed_scenes()[:6]]))
        rows = [decode(self.vae, latents) for latents in (enlarged_latents(self.vae, z), self.trained(z))]
        return Image.fromarray(np.vstack([np.hstack(to_uint8(row)) for row in rows]))


class LightDecoderTraining(LightTraining):
    """L1, squared error and edges against the VAE's decoding."""

    def __init__(self, recipe: LightDecoderRecipe) -> None:
        torch.manual_seed(recipe.train.seed)
        super().__init__(
            recipe, LightDecoder(width=recipe.model.width, num_blocks=recipe.model.blocks), "light_decoder"
        )

    def _target(self, latents: Tensor) -> Tensor:
        return decode(self.vae, latents)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted sum of the recipe's terms."""
        weights = self.recipe.objective
        error = self.trained(batch["z"]).float() - batch["target"]
        terms = {
            "l1": error.abs().mean(),
            "mse": error.square().mean(),
            "edge": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        }
        return {"loss": sum(getattr(weights, name) * term for name, term in terms.items()), **terms}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """On whole renders of twice `size`: nearness to the VAE, and what either loses.

        "psnr_to_vae": in dB, to the VAE's decoding. "psnr", "psnr_vae": of this network and of the VAE, to the
        picture. "facts", "facts_vae": share of the scenes' facts that are read in either's picture.
        """
        scenes, size = self._fixed_scenes(), 2 * self.recipe.data.size
        sums, scores = torch.zeros(3, dtype=torch.float64), ([], [])
        for first in range(0, len(scenes), _CHUNK):
            part = scenes[first : first + _CHUNK]
            true = self._to_device([render(scene, size) for scene in part])
            z = encode(self.vae, true)
            vae, own = decode(self.vae, z), self.trained(z).clamp(-1, 1)
            sums += torch.tensor([(a - b).double().square().sum() for a, b in ((own, vae), (own, true), (vae, true))])
            for kept, pictures in zip(scores, (own, vae), strict=True):
                kept += [score(scene.facts(), picture) for scene, picture in zip(part, to_uint8(pictures), strict=True)]
        psnrs = [psnr(total / (len(scenes) * 3 * size**2)) for total in sums]
        shares = [summarize(kept)["share"] for kept in scores]
        return dict(zip(("psnr_to_vae", "psnr", "psnr_vae", "facts", "facts_vae"), psnrs + shares, strict=True))

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Renders, what the VAE makes of them, and what the network makes of them, in three rows."""
        pictures = [render(scene, 2 * self.recipe.data.size) for scene in self._fixed_scenes()[:6]]
        z = encode(self.vae, self._to_device(pictures))
        rows = [pictures, to_uint8(decode(self.vae, z)), to_uint8(self.trained(z))]
        return Image.fromarray(np.vstack([np.hstack(row) for row in rows]))


def enlarged_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """z_L = E(up(D(z))): scaled latents (B, C, h, w) decoded, enlarged bilinearly and encoded, (B, C, 2h, 2w)."""
    return encode(vae, enlarge(decode(vae, latents).float()))


def psnr(error: Tensor) -> float:
    """PSNR in dB of a mean square error of pictures in [-1, 1]."""
    return -10 * (error / 4).log10().item()
