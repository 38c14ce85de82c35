"""The autoencoder's objective: L1, squared error, edges and a small KL term, on scenes or your own pictures."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cogview3.config import VaeData, VaeModel, VaeRecipe, VaeShardData
from cogview3.data.latents import reconstruct, to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.training.objectives import Batch, Objective, SourcedTraining, grid, psnr, start_from, weighted
from cogview3.training.sources.shards import PictureSource


class VaeTraining(Objective):
    """Train AutoencoderKL on crops and whole pictures of scenes, pictures in [-1, 1]."""

    trained: AutoencoderKL

    def __init__(self, recipe: VaeRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        torch.manual_seed(recipe.train.seed)
        self.trained = build_vae(recipe.model)
        if recipe.recipe.start_from:
            start_from(self.trained, recipe.recipe.start_from, "vae")

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Pictures (B, 3, H, W) in [-1, 1]: crops around objects, in the last part (`data.whole_from`) whole pictures.

        Whole pictures alternate between `data.size` and half of it, as many as a batch of crops has pixels.
        """
        data, train = self._scenes, self.recipe.train
        if first < data.whole_from * train.images:
            pictures = [self._crop(index) for index in indices]
        else:
            size = data.size if first // train.batch % 3 == 0 else data.size // 2
            count = max(1, round(len(indices) * data.crop**2 / size**2))
            pictures = [render(self._scene(index), size) for index in indices[:count]]
        noise_seed = np.random.SeedSequence([train.seed, indices[0]]).generate_state(1)[0]
        return {"pictures": to_tensor(pictures), "noise_seed": torch.tensor(int(noise_seed))}

    @property
    def _scenes(self) -> VaeData:
        assert isinstance(self.recipe.data, VaeData)
        return self.recipe.data

    def _scene(self, index: int) -> Scene:
        return sample_scene(np.random.default_rng([self.recipe.train.seed, index]))

    def _crop(self, index: int) -> np.ndarray:
        data = self._scenes
        rng = np.random.default_rng([self.recipe.train.seed, index, 1])
        scene = self._scene(index)
        size = data.size // 2 if rng.random() < data.half_share else data.size
        item = scene.objects[rng.integers(len(scene.objects))]
        corner = np.array([item.x, item.y]) * size + rng.uniform(-data.crop, data.crop, 2) - data.crop / 2
        left, top = np.clip(corner.round().astype(int), 0, size - data.crop)
        return render(scene, size)[top : top + data.crop, left : left + data.crop]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted sum of the recipe's terms, with the posterior sampled."""
        pictures, weights = batch["pictures"], self.recipe.objective
        generator = torch.Generator().manual_seed(int(batch["noise_seed"]))
        posterior = self.trained.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
        decoded = self.trained.decode(posterior.mean + posterior.std * noise).sample.float()
        error = decoded - pictures
        terms = {
            "l1": error.abs().mean(),
            "mse": error.square().mean(),
            "edge": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
            "kl": posterior.kl().float().mean() / posterior.mean[0].numel(),
        }
        return {"loss": weighted(terms, weights), **terms}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR in dB of the reconstructions (posterior's mode, pictures in [0, 1], pooled error), at both sizes."""
        figures = {}
        for size in (self.recipe.data.size // 2, self.recipe.data.size):
            pictures = to_tensor(self._validation_pictures(size)).to(self.trained.device)
            errors = [(reconstruct(self.trained, part) - part).square().mean() for part in pictures.split(4)]
            figures[f"psnr_{size}"] = psnr(torch.stack(errors).mean())
        return figures

    def _validation_pictures(self, size: int) -> list[np.ndarray]:
        rng = np.random.default_rng(self.recipe.validate_.seed)
        return [render(sample_scene(rng), size) for _ in range(self.recipe.validate_.images)]

    @torch.no_grad()
    def samples(self) -> Image.Image:
        """Renders above their reconstructions."""
        pictures = self._validation_pictures(self.recipe.data.size)[:6]
        decoded = reconstruct(self.trained, to_tensor(pictures).to(self.trained.device))
        return grid(pictures, to_uint8(decoded))

    def save(self, folder: Path) -> None:
        """Write `vae/`, its latents rescaled as `normalize_latents` says."""
        copy = build_vae(self.recipe.model)
        copy.load_state_dict(self.trained.state_dict())
        normalize_latents(copy, self._statistics_batches())
        copy.register_to_config(scaling_factor=1.0, shift_factor=0.0)
        copy.save_pretrained(folder / "vae")

    def _statistics_batches(self) -> list[Tensor]:
        rng = np.random.default_rng(self.recipe.validate_.seed + 1)
        count = self.recipe.objective.statistics_images // 16
        return [
            to_tensor([render(sample_scene(rng), self.recipe.data.size // 2) for _ in range(16)]) for _ in range(count)
        ]


class OwnVaeTraining(SourcedTraining, VaeTraining):
    """Train AutoencoderKL on parts of pictures, then on whole ones; the loss is that of scenes."""

    depends_on = "set of pictures"
    source: PictureSource

    def __init__(self, recipe: VaeRecipe) -> None:
        super().__init__(recipe)
        self.source = PictureSource(recipe)

    @property
    def _shards(self) -> VaeShardData:
        assert isinstance(self.recipe.data, VaeShardData)
        return self.recipe.data

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Pictures (B, 3, H, W) in [-1, 1]: parts cut out at random, from `data.whole_from` on whole pictures.

        Whole ones alternate between their size and half of it, as many as a batch of parts has pixels.
        """
        data, train = self._shards, self.recipe.train
        taken = self.source.pictures(len(indices))
        self._name(first, indices, taken.keys)
        assert taken.images is not None, "an autoencoder reads pictures, not latents"
        pictures = taken.images.float() / 127.5 - 1
        rngs = [np.random.default_rng([train.seed, index, 1]) for index in taken.indices.tolist()]
        if first < data.whole_from * train.images:
            parts = [self._part(picture, rng) for picture, rng in zip(pictures, rngs, strict=True)]
            pictures = torch.stack(parts)
        else:
            if first // train.batch % 3:
                pictures = _half(pictures)
            count = round(len(indices) * data.patch**2 / (pictures.shape[2] * pictures.shape[3]))
            pictures = pictures[: max(1, count)]
        return {"pictures": pictures, "noise_seed": torch.tensor(int(rngs[0].integers(2**32)))}

    def _part(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """A square of side `data.patch` of a picture (3, H, W), or of it at half its size."""
        side = self._shards.patch
        if rng.random() < self.recipe.data.half_share:
            picture = _half(picture[None])[0]
        top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[1:])
        return picture[:, top : top + side, left : left + side]

    def validate(self) -> dict[str, float]:
        """As of scenes, and what became of the data."""
        return super().validate() | self.source.figures()

    def _validation_pictures(self, size: int) -> list[np.ndarray]:
        return list(_at(self.source.fixed_images, size).permute(0, 2, 3, 1).numpy())

    @cached_property
    def _statistics(self) -> Tensor:
        """Pictures at half the size, uint8 (N, 3, H, W), by which the latents are normalized."""
        validate = self.recipe.validate_.model_copy(
            update={"images": self.recipe.objective.statistics_images, "seed": self.recipe.validate_.seed + 1}
        )
        others = PictureSource(self.recipe.model_copy(update={"validate_": validate}))
        return _at(others.fixed_images, self.recipe.data.size // 2)

    def _statistics_batches(self) -> list[Tensor]:
        return [to_tensor(list(part.permute(0, 2, 3, 1).numpy())) for part in self._statistics.split(16)]


def build_vae(model: VaeModel) -> AutoencoderKL:
    """AutoencoderKL without attention: what it learns on crops then holds for pictures of any size."""
    levels = len(model.block_out_channels)
    vae: AutoencoderKL = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(model.block_out_channels),
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
        sample_size=model.sample_size,
        mid_block_add_attention=False,
    )
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    return vae


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, batches: list[Tensor]) -> None:
    """Give every latent channel mean 0 and standard deviation 1 over `batches` of pictures (B, 3, H, W) in [-1, 1].

    Those of the posterior's samples: a channel that the KL divergence has emptied, whose means hardly differ, is not
    magnified to be learned. The affine map goes into the two 1 x 1 convolutions on either side of the latents, so
    reconstructions stay as they are and `scaling_factor` becomes 1.
    """
    posteriors = [vae.encode(batch).latent_dist for batch in batches]
    means, variances = (
        torch.cat([part.movedim(1, -1).flatten(0, -2) for part in parts])
        for parts in ([each.mean for each in posteriors], [each.var for each in posteriors])
    )
    mean, std = means.mean(0), (means.var(0) + variances.mean(0)).sqrt()
    into: Any = vae.quant_conv
    out: Any = vae.post_quant_conv
    channels = mean.numel()
    out.bias += (out.weight[..., 0, 0] @ mean).flatten()
    out.weight *= std.view(1, -1, 1, 1)
    into.weight[:channels] /= std.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()


def _half(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) at half their size, means of 2 x 2 pixels."""
    return functional.avg_pool2d(pictures, 2)


def _at(pictures: Tensor, size: int) -> Tensor:
    """uint8 pictures (B, 3, H, H) at a size that divides theirs."""
    return functional.avg_pool2d(pictures.float(), pictures.shape[-1] // size).round().to(torch.uint8)
