"""The objective of base and relay: denoise latents of scenes, told by their captions.

Base: z_t = z_0 + sigma_t eps on all times. Relay (equations 4 to 7): z_t is centered on the blurred latents
(1 - f_t) z_0 + f_t z_L, times below T_r. Both: mean square of the network's output against what makes D = z_0.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from cogview3 import checkpoints
from cogview3.config import BaseRecipe, RelayRecipe, UNetModel
from cogview3.data.latents import SceneLatents, cached_latents, encode_scene_batch
from cogview3.data.scenes import captions
from cogview3.data.scenes.render import render
from cogview3.diffusion import relay, schedule
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler, base_scheduler
from cogview3.generation.upscale import CogView3UpscalePipeline
from cogview3.models.unet import size_conditions, unet_config
from cogview3.prompts.encode import encode_text
from cogview3.training.objectives import Batch, Objective, start_from

STEPS = 1000  # noise levels of the schedule
_NOISE_BANDS = 4  # bands of t that the validation loss is told for


class DiffusionTraining(Objective):
    """Train a base or relay UNet on cached latents, the text encoder frozen."""

    def __init__(self, recipe: BaseRecipe | RelayRecipe) -> None:
        super().__init__()
        self.recipe, self.is_relay = recipe, recipe.kind == "relay"
        data = recipe.data
        self._vae_folder = checkpoints.weights_folder(data.vae, "vae")
        self._frozen = {  # in a dictionary, so that they are not trained, averaged or saved with the UNet
            "vae": AutoencoderKL.from_pretrained(self._vae_folder).eval().requires_grad_(False),
            "text": T5EncoderModel.from_pretrained(checkpoints.weights_folder(data.text, "text_encoder")).eval(),
        }
        for module in self._frozen.values():
            module.float()  # shipped weights are float16, which CPUs compute slowly; autocast narrows where asked
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoints.weights_folder(data.text, "tokenizer"))
        width = self._frozen["text"].config.d_model
        torch.manual_seed(recipe.train.seed)
        self.trained = build_unet(recipe.model, width, data.size // 8)
        if recipe.recipe.start_from:
            start_from(self.trained, recipe.recipe.start_from, "unet", "relay_unet")
        self.sigmas = schedule.make_sigmas(STEPS)
        self.latents: dict[str, Tensor] = {}
        self._fixed_latents: dict[str, Tensor] = {}
        self._epoch, self._order = -1, np.empty(0, np.int64)  # which pictures' order is at hand
        kind = {"size": data.size, "low": (data.reconstructed_share, data.degraded_share) if self.is_relay else None}
        self.kind = SceneLatents(pictures=data.pictures, seed=recipe.train.seed, **kind)
        self.fixed = SceneLatents(pictures=recipe.validate_.images, seed=recipe.validate_.seed, **kind)

    @property
    def times(self) -> int:
        """Noise levels trained on: all, or those below T_r."""
        return self.recipe.objective.relay_start if self.is_relay else STEPS

    def prepare(self, device: str) -> None:
        """Encode the scenes, or read their latents from the cache."""
        for module in self._frozen.values():
            module.to(device)
        if torch.device(device).type == "cpu":  # the fused attention's backward pass takes a third of a step there
            self.trained.set_attn_processor(AttnProcessor())
        data = self.recipe.data
        self.latents = cached_latents(self._frozen["vae"], self._vae_folder, self.kind, Path(data.cache))
        self._fixed_latents = encode_scene_batch(self._frozen["vae"], self.fixed, range(self.fixed.pictures))

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Latents, noise and times (B, ...), and text embeddings (B, L, C), zero for the dropped ones."""
        picked = [self._picture(index) for index in indices]
        latents = {name: values[picked].float() for name, values in self.latents.items()}
        return self._noisy(self.kind, latents, indices, picked, self.recipe.train.seed)

    def _picture(self, index: int) -> int:
        epoch, place = divmod(index, self.recipe.data.pictures)
        if self._epoch != epoch:
            rng = np.random.default_rng([self.recipe.train.seed, epoch, 7])
            self._epoch, self._order = epoch, rng.permutation(self.recipe.data.pictures)
        return int(self._order[place])

    def _noisy(
        self,
        kind: SceneLatents,
        latents: dict[str, Tensor],
        indices: list[int],
        pictures: list[int],
        seed: int,
    ) -> Batch:
        rngs = [np.random.default_rng([seed, index, 3]) for index in indices]
        shape = latents["z0"].shape[1:]
        batch = {"z0": latents["z0"], "t": torch.tensor([int(rng.integers(self.times)) for rng in rngs])}
        noise = torch.from_numpy(np.stack([rng.standard_normal(shape, np.float32) for rng in rngs]))
        offset = torch.tensor([rng.standard_normal() for rng in rngs], dtype=torch.float32)
        batch["noise"] = relay.add_offset_noise(noise, offset, self.recipe.objective.offset_noise)
        if self.is_relay:
            batch["zL"] = latents["zL"]
        texts = [self._caption(kind, picture, rng) for picture, rng in zip(pictures, rngs, strict=True)]
        kept = torch.tensor([rng.random() >= self.recipe.data.text_dropout for rng in rngs])
        encoder = self._frozen["text"]
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16"):
            text = encode_text(self.tokenizer, encoder, texts)
        batch["text"] = text * kept.view(-1, 1, 1).to(text.device)
        return batch

    def _caption(self, kind: SceneLatents, picture: int, rng: np.random.Generator) -> str:
        scene = kind.scene(picture)
        write = captions.comprehensive if rng.random() < self.recipe.data.comprehensive_share else captions.brief
        return write(scene, rng).text

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Mean square error of the network's output."""
        return {"loss": self._errors(batch).mean()}

    def _errors(self, batch: Batch) -> Tensor:
        """Mean square error of each sample's network output, (B,)."""
        prediction, z0, t = self.recipe.objective.prediction, batch["z0"], batch["t"]
        sigma = self.sigmas.to(z0.device)[t].float()
        if self.is_relay:
            blur = self.recipe.objective.blur
            f = relay.blur_fraction(t, self.times, blur, self.sigmas.to(z0.device)).float()
            z_t = relay.forward(z0, batch["zL"], sigma, f, batch["noise"])
            target = relay.relay_target(z0, z_t, sigma, prediction)
        else:
            z_t = z0 + schedule.expand_to(sigma, z0) * batch["noise"]
            target = schedule.target_from_x0(z0, z_t, sigma, prediction)
        size, width = self.recipe.data.size, self.recipe.model.size_embedding
        conditions = size_conditions((size, size), (0, 0), (size, size), width).to(z0).expand(len(t), -1)
        given = schedule.scale_model_input(z_t, sigma)
        output = self.trained(given, t, batch["text"], class_labels=conditions).sample
        return (output.float() - target).square().mean((1, 2, 3))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss on a fixed set: in all, and by quarters of the noise levels from the lowest."""
        indices = list(range(self.fixed.pictures))
        batch = self._noisy(self.fixed, self._fixed_latents, indices, indices, self.fixed.seed)
        batch = {name: value.to(self.trained.device) for name, value in batch.items()}
        errors = torch.cat([self._errors({n: v[i : i + 32] for n, v in batch.items()}) for i in indices[::32]])
        band = batch["t"] * _NOISE_BANDS // self.times
        figures = {"loss": errors.mean().item()}
        for number in range(_NOISE_BANDS):
            if (band == number).any():
                figures[f"loss_{number + 1}_of_{_NOISE_BANDS}"] = errors[band == number].mean().item()
        return figures

    def samples(self) -> Image.Image:
        """Pictures of fixed captions: the base's; for the relay the small ones above the finished ones."""
        rngs = [np.random.default_rng([self.fixed.seed, index, 5]) for index in range(6)]
        scenes = [self.fixed.scene(index) for index in range(6)]
        texts = [captions.comprehensive(scene, rng).text for scene, rng in zip(scenes, rngs, strict=True)]
        generator = torch.Generator().manual_seed(self.fixed.seed)
        parts = {
            "tokenizer": self.tokenizer,
            "text_encoder": self._frozen["text"],
            "vae": self._frozen["vae"],
        }
        options = {"generator": generator, "guidance_scale": 3.0, "output_type": "np"}
        size = self.recipe.data.size
        if self.is_relay:
            pipe = CogView3UpscalePipeline(**parts, relay_unet=self.trained, relay_scheduler=self.relay_scheduler())
            pipe.set_progress_bar_config(disable=True)
            small = [Image.fromarray(render(scene, size // 2)) for scene in scenes]
            drawn = pipe(small, prompt=texts, num_inference_steps=10, **options).images
            rows = [[np.array(item.resize((size, size), Image.Resampling.BILINEAR)) for item in small]]
        else:
            pipe = CogView3Pipeline(
                **parts, unet=self.trained, scheduler=base_scheduler(self.recipe.objective.prediction)
            )
            pipe.set_progress_bar_config(disable=True)
            drawn = pipe(texts, num_inference_steps=25, num_relays=0, **options).images
            rows = [[render(scene, size) for scene in scenes]]
        rows.append([(picture * 255).round().astype(np.uint8) for picture in drawn])
        return Image.fromarray(np.vstack([np.hstack(row) for row in rows]))

    def relay_scheduler(self) -> RelayScheduler:
        """The scheduler that samples what this recipe trains."""
        objective = self.recipe.objective
        return RelayScheduler(
            relay_start=objective.relay_start, prediction_type=objective.prediction, blur=objective.blur
        )

    def save(self, folder: Path) -> None:
        """Write the UNet and the scheduler that fits it, as `unet/` and `scheduler/` or `relay_...`."""
        prefix = "relay_" if self.is_relay else ""
        self.trained.save_pretrained(folder / f"{prefix}unet")
        scheduler = self.relay_scheduler() if self.is_relay else base_scheduler(self.recipe.objective.prediction)
        scheduler.save_pretrained(folder / f"{prefix}scheduler")


def build_unet(model: UNetModel, text_width: int, sample_size: int) -> UNet2DConditionModel:
    """A UNet of the system's shape at the recipe's widths, for latents of side `sample_size`."""
    channels = tuple(model.block_out_channels)
    return UNet2DConditionModel(
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
