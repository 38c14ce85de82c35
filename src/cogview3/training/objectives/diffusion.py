"""The objective of base and relay: denoise latents of pictures, given their captions.

Base: z_t = z_0 + sigma_t eps on all times. Relay (equations 4 to 7): z_t is centered on the blurred latents
(1 - f_t) z_0 + f_t z_L, times below T_r. Both: mean square of the network's output against what makes D = z_0.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import UNet2DConditionModel
from PIL import Image
from torch import Tensor
from typing_extensions import override

from cogview3 import checkpoints
from cogview3.config import BaseRecipe, RelayObjective, RelayRecipe, SceneData, UNetModel, UserError
from cogview3.diffusion import relay, schedule
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler, base_scheduler
from cogview3.generation.upscale import CogView3UpscalePipeline
from cogview3.models.unet import size_conditions, unet_config
from cogview3.training.objectives import Batch, by_bands, grid, lora, start_from
from cogview3.training.objectives.latents import LatentTraining

STEPS = 1000  # noise levels of the schedule
_SHOWN = 6  # pictures in a grid
_DRAWN = 32  # pictures drawn at once
BASE_STEPS, RELAY_STEPS = 25, 10  # of what is drawn for grids and figures
_GUIDANCE = 3.0  # of what is drawn for grids and figures


class DiffusionTraining(LatentTraining):
    """Train a base or relay UNet on latents, the text encoder frozen."""

    recipe: BaseRecipe | RelayRecipe

    def __init__(self, recipe: BaseRecipe | RelayRecipe) -> None:
        super().__init__(recipe)
        torch.manual_seed(recipe.train.seed)
        self.trained = build_unet(recipe.model, self._frozen["text"].config.d_model, recipe.data.size // 8)
        if recipe.recipe.start_from:
            order = ("relay_unet", "unet") if self.is_relay else ("unet", "relay_unet")
            self._compare(start_from(self.trained, recipe.recipe.start_from, *order))
        if recipe.lora is not None:
            lora.add_adapter(self.trained, recipe.lora, recipe.train.precision == "bf16")
            self.depends_on = "network of recipe.start_from"
        self.sigmas, self.f = self._levels()

    def _levels(self) -> tuple[Tensor, Tensor | None]:
        """sigma_t at all 1000 times, and f_t of a relay at its own; float32, as some devices have no float64."""
        sigmas, times = schedule.make_sigmas(STEPS), torch.arange(self.times)
        objective = self.recipe.objective
        f = None
        if isinstance(objective, RelayObjective):
            f = relay.blur_fraction(times, self.times, objective.blur, sigmas)
        return sigmas.float(), None if f is None else f.float()

    def _compare(self, start: Path) -> None:
        """Tell where [objective] is another one than the start was trained for; an adapter must be for the same."""
        config = start.parent / ("relay_scheduler" if self.is_relay else "scheduler") / "scheduler_config.json"
        if start.name != ("relay_unet" if self.is_relay else "unet") or not config.is_file():
            return
        held, given = checkpoints.read_json(config, "copy or export it again"), self.recipe.recipe.start_from
        objective = self.recipe.objective
        wanted: dict[str, tuple[str, Any]] = {"prediction": ("prediction_type", objective.prediction)}
        if isinstance(objective, RelayObjective):
            wanted |= {"relay_start": ("relay_start", objective.relay_start), "blur": ("blur", objective.blur)}
        for key, (name, value) in wanted.items():
            if held.get(name, value) != value:
                message = f"objective.{key} is {value}, but recipe.start_from {given!r} was trained with {held[name]}"
                if self.recipe.lora is not None:
                    raise UserError(f"{message}; an adapter must be for the same: --set objective.{key}={held[name]}")
                print(f"{message}: the network has to relearn it", file=sys.stderr)

    @property
    def times(self) -> int:
        """Noise levels trained on: all, or those below T_r."""
        objective = self.recipe.objective
        return objective.relay_start if isinstance(objective, RelayObjective) else STEPS

    @property
    @override
    def offset_noise(self) -> float:
        return self.recipe.objective.offset_noise

    def fingerprint(self) -> str:
        """Of the frozen network under an adapter."""
        return lora.frozen_fingerprint(self.trained) if self.recipe.lora is not None else ""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean square error of the network's output, weighted by Min-SNR where the recipe says so."""
        errors, gamma = self._errors(batch), self.recipe.objective.min_snr
        if gamma is not None:
            sigma = self.sigmas.to(errors.device)[batch["t"]]
            errors = schedule.min_snr_weight(sigma, gamma, self.recipe.objective.prediction) * errors
        return {"loss": errors.mean()}

    def _errors(self, batch: Batch) -> Tensor:
        """Mean square error of each sample's network output, (B,)."""
        prediction, z0, t = self.recipe.objective.prediction, batch["z0"], batch["t"]
        sigma = self.sigmas.to(z0.device)[t]
        if self.f is not None:
            f = self.f.to(z0.device)[t]
            z_t = relay.forward(z0, batch["zL"], sigma, f, batch["noise"])
            target = relay.relay_target(z0, z_t, sigma, prediction)
        else:
            z_t = z0 + schedule.expand_to(sigma, z0) * batch["noise"]
            target = schedule.target_from_x0(z0, z_t, sigma, prediction)
        original, crop, target_size = batch["sizes"].unbind(1)
        conditions = size_conditions(original, crop, target_size, self.recipe.model.size_embedding).to(z0)
        given = schedule.scale_model_input(z_t, sigma)
        output: Tensor = self.trained(given, t, batch["text"], class_labels=conditions).sample
        return (output.float() - target).square().mean((1, 2, 3))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on a fixed set: in all, and by quarters of the noise levels from the lowest.

        Of a relay of scenes also the shares of fills that are right, by kind ("fills_dotted"), in pictures that it
        makes of true small ones.
        """
        batch = self._fixed_batch()
        starts = range(0, len(batch["t"]), 32)
        errors = torch.cat([self._errors({n: v[i : i + 32] for n, v in batch.items()}) for i in starts])
        return by_bands(errors, batch["t"].double() / self.times) | self._fills() | self.source.figures()

    def _fills(self) -> dict[str, float]:
        if not self.is_relay or not isinstance(self.recipe.data, SceneData):
            return {}
        texts, small = self.source.shown(self.recipe.validate_.images, self.recipe.data.size // 2)
        starts = range(0, len(texts), _DRAWN)
        drawn = np.concatenate([self._finished(texts[i : i + _DRAWN], small[i : i + _DRAWN]) for i in starts])
        return {f"fills_{fill}": share for fill, share in self.source.fills(drawn).items()}

    def _finished(self, texts: list[str], small: np.ndarray) -> np.ndarray:
        """Small pictures (B, H, W, 3), uint8, finished by the relay at twice the side."""
        pipe = CogView3UpscalePipeline(
            tokenizer=self.tokenizer,
            text_encoder=self._frozen["text"],
            vae=self._frozen["vae"],
            relay_unet=self.trained,
            relay_scheduler=self.relay_scheduler(),
        )
        return self._draw(pipe, image=[Image.fromarray(picture) for picture in small], prompt=texts, steps=RELAY_STEPS)

    def samples(self) -> Image.Image:
        """Pictures of fixed captions: the base's; for the relay the small ones above the finished ones."""
        size, validate = self.recipe.data.size, self.recipe.validate_
        count = min(_SHOWN, validate.images)
        texts, pictures = self.source.shown(count, size // 2 if self.is_relay else size)
        if self.is_relay:
            small = [Image.fromarray(picture) for picture in pictures]
            rows = [[np.asarray(item.resize((size, size), Image.Resampling.BILINEAR)) for item in small]]
            rows.append(list(self._finished(texts, pictures)))
        else:
            rows = [list(pictures), list(self._drawn(texts))]
        return grid(*rows)

    def _drawn(self, texts: list[str]) -> np.ndarray:
        """The base's pictures of captions, (B, H, W, 3), uint8."""
        pipe = CogView3Pipeline(
            tokenizer=self.tokenizer,
            text_encoder=self._frozen["text"],
            vae=self._frozen["vae"],
            unet=self.trained,
            scheduler=base_scheduler(self.recipe.objective.prediction),
        )
        return self._draw(pipe, prompt=texts, num_relays=0, steps=BASE_STEPS)

    def _draw(self, pipe: Any, steps: int, **options: Any) -> np.ndarray:
        """Pictures, uint8, (B, H, W, 3), of noise that is always the same."""
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(self.recipe.validate_.seed)
        options |= {"num_inference_steps": steps, "guidance_scale": _GUIDANCE}
        return (
            (np.asarray(pipe(generator=generator, output_type="np", **options).images) * 255).round().astype(np.uint8)
        )

    def relay_scheduler(self) -> RelayScheduler:
        """The scheduler that samples what this recipe trains."""
        objective = self.recipe.objective
        assert isinstance(objective, RelayObjective)
        return RelayScheduler(
            relay_start=objective.relay_start, prediction_type=objective.prediction, blur=objective.blur
        )

    def save(self, folder: Path) -> None:
        """Write the UNet and the scheduler that fits it, as `unet/` and `scheduler/` or `relay_...`; or the adapter."""
        prefix = "relay_" if self.is_relay else ""
        if self.recipe.lora is not None:
            lora.save_adapter(self.trained, f"{prefix}unet", folder)
            return
        self.trained.save_pretrained(folder / f"{prefix}unet")
        scheduler = self.relay_scheduler() if self.is_relay else base_scheduler(self.recipe.objective.prediction)
        scheduler.save_pretrained(folder / f"{prefix}scheduler")


def build_unet(model: UNetModel, text_width: int, sample_size: int) -> UNet2DConditionModel:
    """A UNet of the system's shape at the recipe's widths, for latents of side `sample_size`."""
    channels = tuple(model.block_out_channels)
    unet: UNet2DConditionModel = UNet2DConditionModel(
        **unet_config(
            "scenes",
            sample_size=sample_size,
            block_out_channels=channels,
            layers_per_block=model.layers_per_block,
            transformer_layers_per_block=tuple(model.transformer_layers_per_block),
            attention_head_dim=tuple(max(1, width // model.head_dim) for width in channels),
            norm_num_groups=model.norm_num_groups,
            cross_attention_dim=text_width,
            projection_class_embeddings_input_dim=6 * model.size_embedding,
        )
    )
    return unet
