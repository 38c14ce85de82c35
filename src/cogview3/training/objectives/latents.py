"""The training inputs of base, relay and their distillation: latents, noise, and embeddings of captions."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from cogview3.config import BaseRecipe, DistillRound, RelayRecipe, SceneData
from cogview3.diffusion import relay
from cogview3.prompts.encode import embed_text, warn_of_cuts
from cogview3.prompts.text_models import load_network, load_text_encoder, load_tokenizer
from cogview3.references import weights_folder
from cogview3.training.objectives import Batch, SourcedTraining
from cogview3.training.sources import Samples, Source, autocast, make_source, standard_normal


class LatentTraining(SourcedTraining):
    """Base of objectives on latents, with VAE and text encoder frozen. Subclasses set `trained`."""

    source: Source
    trained: Any  # a UNet, perhaps within a wrapper of LoRA or of sharding

    def __init__(self, recipe: BaseRecipe | RelayRecipe | DistillRound) -> None:
        super().__init__()
        self.recipe, self.is_relay = recipe, recipe.kind.endswith("relay")
        data = recipe.data
        folder = weights_folder(data.vae, "vae")
        text = load_text_encoder(weights_folder(data.text, "text_encoder"))
        narrow = recipe.train.precision == "bf16" and torch.cuda.is_available()  # T5-XXL: 10 GB instead of 19
        self._frozen: dict[str, Any] = {  # in a dictionary: not trained, averaged or saved with the UNet
            "vae": load_network(AutoencoderKL, folder).requires_grad_(False).float(),
            "text": text.bfloat16() if narrow else text.float(),  # CPUs compute float16, as shipped, slowly
        }
        self.tokenizer = load_tokenizer(weights_folder(data.text, "tokenizer"))
        self.source = make_source(recipe, self._frozen["vae"], folder)

    def prepare(self, device: str) -> None:
        """Move the frozen networks to the device, and encode what the source encodes ahead."""
        for module in self._frozen.values():
            module.to(device)
        if torch.device(device).type == "cpu":  # the fused attention's backward pass takes a third of a step there
            self.trained.set_attn_processor(AttnProcessor())
        self.source.prepare()

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Latents, noise and times (B, ...), sizes (B, 3, 2), and text embeddings (B, L, C), zero for the dropped."""
        samples = self.source.take(first, indices)
        self._name(first, indices, samples.keys)
        return self._noisy(samples)

    def _fixed_batch(self) -> Batch:
        """The whole validation set as one batch, on the network's device."""
        return {name: value.to(self.trained.device) for name, value in self._noisy(self.source.fixed).items()}

    def _noisy(self, samples: Samples) -> Batch:
        rngs = [np.random.default_rng(seed) for seed in samples.seeds]
        z0 = samples.latents["z0"]
        batch = {"z0": z0, "t": torch.tensor([int(rng.integers(self.times)) for rng in rngs])}
        noise = standard_normal(rngs, z0)
        offset = torch.tensor([rng.standard_normal() for rng in rngs], dtype=torch.float32)
        batch["noise"] = relay.add_offset_noise(noise, offset, self.offset_noise)
        if self.is_relay:
            batch["zL"] = samples.latents["zL"]
        batch["sizes"] = samples.sizes
        captions = samples.captions(rngs)
        kept = torch.tensor([rng.random() >= self.recipe.data.text_dropout for rng in rngs])
        text = self._texts(captions, samples.texts)
        batch["text"] = text * kept.view(-1, 1, 1).to(text.device)
        return batch | self._further(rngs)

    def _texts(self, captions: list[str], known: Any) -> Tensor:
        """Embeddings (B, L, C) of captions, of which some may be known."""
        known = known or [None] * len(captions)
        unknown = [place for place, text in enumerate(known) if text is None]
        made = iter(self._encoded([captions[place] for place in unknown]) if unknown else ())
        device = self._frozen["text"].device
        rows = [next(made) if text is None else torch.from_numpy(text).float().to(device) for text in known]
        return torch.stack(rows)

    def _encoded(self, texts: list[str]) -> Tensor:
        """Embeddings (B, L, C), float32; what does not fit is reported for the built-in world alone.

        They are computed in the recipe's precision, in which the encoder itself may be kept; the networks that read
        them are float32, and autocast narrows both alike.
        """
        if isinstance(self.recipe.data, SceneData):
            warn_of_cuts(self.tokenizer, texts)
        with autocast(self.recipe, self._frozen["text"].device):
            return embed_text(self.tokenizer, self._frozen["text"], texts).float()

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
