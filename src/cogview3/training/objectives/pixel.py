"""The objective of diffusion in pixels: EDM's, on pictures that are blurred patch by patch for a relay."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import UNet2DModel
from PIL import Image
from torch import Tensor

from cogview3.config import PixelRecipe
from cogview3.data.latents import to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import sample_scene
from cogview3.diffusion import pixel_relay
from cogview3.generation.pixel_relay import PixelRelayPipeline, PixelRelayScheduler
from cogview3.models.pixel_unet import TIME_SCALE, build_pixel_unet, on_patches
from cogview3.training.objectives import Batch, Objective, by_bands, grid
from cogview3.training.sources import standard_normal

_SHOWN = 6  # pictures in a grid
_SHOWN_STEPS = 20


class PixelTraining(Objective):
    """Train a UNet on scenes, pictures in [-1, 1]: mean of w(sigma) ||D - x_0||^2 over EDM's noise levels below L."""

    trained: UNet2DModel

    def __init__(self, recipe: PixelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        torch.manual_seed(recipe.train.seed)
        self.trained = build_pixel_unet(recipe.model, recipe.data.size)

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Pictures "x0" and noisy ones "x", (B, 3, H, W) in [-1, 1] but for the noise, and their "sigma", (B,)."""
        uniform = torch.tensor([np.random.default_rng([self.recipe.train.seed, i, 2]).random() for i in indices])
        return self._samples(self.recipe.train.seed, indices, uniform)

    def _samples(self, seed: int, indices: list[int], uniform: Tensor) -> Batch:
        """As `batch`, at the noise levels of given quantiles; in float32, before any autocast."""
        x0, objective = self._pictures(seed, indices), self.recipe.objective
        rngs = [np.random.default_rng([seed, index, 1]) for index in indices]
        white, other = standard_normal(rngs, x0), standard_normal(rngs, x0)
        noise = pixel_relay.relay_noise(white, other, objective.factor, objective.block_share)
        sigma = pixel_relay.training_sigma(uniform.float(), objective.length)
        strength = pixel_relay.blur_strength(pixel_relay.time_of(sigma, objective.length), objective.max_blur)
        alpha = pixel_relay.damping(strength, objective.factor, objective.floor)
        return {"x0": x0, "x": pixel_relay.forward(x0, sigma, alpha, noise), "sigma": sigma}

    def _pictures(self, seed: int, indices: list[int]) -> Tensor:
        scenes = [sample_scene(np.random.default_rng([seed, index])) for index in indices]
        return to_tensor([render(scene, self.recipe.data.size) for scene in scenes])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean of the weighted errors."""
        return {"loss": self._errors(batch).mean()}

    def _errors(self, batch: Batch) -> Tensor:
        """Weighted mean square error of each sample's D, (B,)."""
        patch = self.recipe.model.patch
        prediction = pixel_relay.denoise(
            lambda scaled, c_noise: on_patches(self.trained, scaled, TIME_SCALE * c_noise, patch).float(),
            batch["x"],
            batch["sigma"],
        )
        return pixel_relay.loss(batch["x0"], prediction, batch["sigma"])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on a fixed set: in all, and by quarters of the noise levels from the lowest."""
        errors, count = [], self.recipe.validate_.images
        for part in torch.arange(count).split(16):
            uniform = (part + 0.5) / count  # evenly, and always alike
            batch = self._samples(self.recipe.validate_.seed, part.tolist(), uniform)
            errors.append(self._errors({name: value.to(self.trained.device) for name, value in batch.items()}).cpu())
        return by_bands(torch.cat(errors), (torch.arange(count) + 0.5) / count)

    def samples(self) -> Image.Image:
        """Drawn from noise; of a relay small pictures, enlarged, above what it makes of them and what they were of."""
        count, factor = min(_SHOWN, self.recipe.validate_.images), self.recipe.objective.factor
        pipe = PixelRelayPipeline(self.trained, self.scheduler())
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(self.recipe.validate_.seed)
        options: dict[str, Any] = {"num_inference_steps": _SHOWN_STEPS, "generator": generator, "output_type": "pt"}
        rows: list[Any]
        if factor == 1:
            rows = [pipe(batch_size=count, **options).images]
        else:
            true = self._pictures(self.recipe.validate_.seed, list(range(count)))
            small = pixel_relay.shrink(true, factor)
            drawn: Any = pipe(image=(small + 1) / 2, **options).images
            rows = [(pixel_relay.enlarge(small, factor) + 1) / 2, drawn, (true + 1) / 2]
        return grid(*(to_uint8(2 * row.cpu() - 1) for row in rows))

    def scheduler(self) -> PixelRelayScheduler:
        """The scheduler that samples what this recipe trains."""
        return PixelRelayScheduler(**self.recipe.objective.model_dump())

    def save(self, folder: Path) -> None:
        """Write a `PixelRelayPipeline` without a base: `unet/` and `scheduler/` beside its index."""
        PixelRelayPipeline(self.trained, self.scheduler()).save_pretrained(folder)
