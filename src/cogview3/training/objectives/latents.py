"""What base, relay and their distillation train on: latents of scenes, their noise, and their captions' embeddings."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from cogview3 import checkpoints
from cogview3.config import BaseRecipe, DistillRound, RelayRecipe
from cogview3.data.latents import SceneLatents, cached_latents, encode_scene_batch
from cogview3.data.scenes import captions
from cogview3.diffusion import relay
from cogview3.prompts.encode import encode_text
from cogview3.training.objectives import Batch, Objective


class LatentTraining(Objective):
    """Base of objectives on cached latents, with VAE and text encoder frozen. Subclasses set `trained`."""

    def __init__(self, recipe: BaseRecipe | RelayRecipe | DistillRound) -> None:
        super().__init__()
        self.recipe, self.is_relay = recipe, recipe.kind.endswith("relay")
        data = recipe.data
        self._vae_folder = checkpoints.weights_folder(data.vae, "vae")
        self._frozen = {  # in a dictionary, so that they are not trained, averaged or saved with the UNet
            "vae": AutoencoderKL.from_pretrained(self._vae_folder).eval().requires_grad_(False),
            "text": T5EncoderModel.from_pretrained(checkpoints.weights_folder(data.text, "text_encoder")).eval(),
        }
        for module in self._frozen.values():
            module.float()  # shipped weights are float16, which CPUs compute slowly; autocast narrows where asked
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoints.weights_folder(data.text, "tokenizer"))
        self.latents: dict[str, Tensor] = {}
        self._fixed_latents: dict[str, Tensor] = {}
        self._epoch, self._order = -1, np.empty(0, np.int64)  # which pictures' order is at hand
        kind = {"size": data.size, "low": (data.reconstructed_share, data.degraded_share) if self.is_relay else None}
        self.kind = SceneLatents(pictures=data.pictures, seed=recipe.train.seed, **kind)
        self.fixed = SceneLatents(pictures=recipe.validate_.images, seed=recipe.validate_.seed, **kind)

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

    def _fixed_batch(self) -> Batch:
        """The whole validation set as one batch, on the network's device."""
        indices = list(range(self.fixed.pictures))
        batch = self._noisy(self.fixed, self._fixed_latents, indices, indices, self.fixed.seed)
        return {name: value.to(self.trained.device) for name, value in batch.items()}

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
        batch["noise"] = relay.add_offset_noise(noise, offset, self.offset_noise)
        if self.is_relay:
            batch["zL"] = latents["zL"]
        texts = [self._caption(kind, picture, rng) for picture, rng in zip(pictures, rngs, strict=True)]
        kept = torch.tensor([rng.random() >= self.recipe.data.text_dropout for rng in rngs])
        text = self._encoded(texts)
        batch["text"] = text * kept.view(-1, 1, 1).to(text.device)
        return batch | self._further(rngs)

    def _encoded(self, texts: list[str]) -> Tensor:
        """Embeddings (B, L, C) in the recipe's precision."""
        with self._precision():
            return encode_text(self.tokenizer, self._frozen["text"], texts)

    def _precision(self) -> AbstractContextManager:
        """Autocast as the recipe says, for where the loop has none."""
        device = self._frozen["text"].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.recipe.train.precision == "bf16")

    @property
    @abstractmethod
    def times(self) -> int:
        """Number of times that a sample's `t` is drawn from, 0 to one less."""

    @property
    @abstractmethod
    def offset_noise(self) -> float:
        """Strength of the one more normal number that is added to all of a sample's noise."""

    def _further(self, rngs: list[np.random.Generator]) -> Batch:
        """What a subclass draws beside, after all else, with the generator of each sample."""
        return {}

    def _caption(self, kind: SceneLatents, picture: int, rng: np.random.Generator) -> str:
        scene = kind.scene(picture)
        write = captions.comprehensive if rng.random() < self.recipe.data.comprehensive_share else captions.brief
        return write(scene, rng).text
