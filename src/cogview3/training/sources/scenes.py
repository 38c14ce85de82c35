"""Samples of the built-in world: scenes encoded once, with new captions at every visit."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor
from typing_extensions import override

from cogview3.config import BaseRecipe, DistillRound, Kind, RelayRecipe, SceneData
from cogview3.data.latents import SceneLatents, cached_latents, encode_scene_batch
from cogview3.data.scenes import captions
from cogview3.data.scenes.render import render
from cogview3.data.scenes.score import score, summarize
from cogview3.training.sources import Epochs, Samples, Source


class SceneSource(Source):
    """Scenes of the recipe's seed; those of the validation have a seed of their own."""

    def __init__(self, recipe: BaseRecipe | RelayRecipe | DistillRound, vae: AutoencoderKL, folder: Path) -> None:
        self._vae, self._folder = vae, folder
        data, relay = recipe.data, recipe.kind in (Kind.relay, Kind.distill_relay)
        assert isinstance(data, SceneData)
        self._data = data
        kind: dict[str, Any] = {"size": data.size}
        kind["low"] = (data.reconstructed_share, data.degraded_share) if relay else None
        self.kind = SceneLatents(pictures=data.pictures, seed=recipe.train.seed, **kind)
        self.validation = SceneLatents(pictures=recipe.validate_.images, seed=recipe.validate_.seed, **kind)
        self.latents: dict[str, Tensor] = {}
        self._epochs = Epochs(data.pictures, recipe.train.seed)

    def prepare(self) -> None:
        """Encode the scenes, or read their latents from the cache."""
        self.latents = cached_latents(self._vae, self._folder, self.kind, Path(self._data.cache))

    def take(self, first: int, indices: list[int]) -> Samples:
        """As `Source.take`; sample i is the i-th in a sequence of permutations of all pictures."""
        picked = [self._epochs.picture(index) for index in indices]
        latents = {name: values[picked].float() for name, values in self.latents.items()}
        return self._samples(self.kind, latents, indices, picked)

    @cached_property
    @override
    def fixed(self) -> Samples:
        indices = list(range(self.validation.pictures))
        latents = encode_scene_batch(self._vae, self.validation, range(self.validation.pictures))
        return self._samples(self.validation, latents, indices, indices)

    def _samples(
        self, kind: SceneLatents, latents: dict[str, Tensor], indices: list[int], pictures: list[int]
    ) -> Samples:
        def write(rngs: list[np.random.Generator]) -> list[str]:
            return [self._caption(kind, picture, rng) for picture, rng in zip(pictures, rngs, strict=True)]

        sizes = torch.tensor([[kind.size] * 2, [0, 0], [kind.size] * 2]).expand(len(indices), 3, 2)
        seeds = [[kind.seed, index, 3] for index in indices]
        return Samples(latents, sizes, seeds, write, keys=[f"scene {picture}" for picture in pictures])

    def _caption(self, kind: SceneLatents, picture: int, rng: np.random.Generator) -> str:
        scene = kind.scene(picture)
        comprehensive = rng.random() < self._data.comprehensive_share
        return (captions.comprehensive if comprehensive else captions.brief)(scene, rng).text

    @override
    def shown(self, count: int, size: int) -> tuple[list[str], np.ndarray]:
        pictures = [render(self.validation.scene(index), size) for index in range(count)]
        return [told.text for told in self._told(count)], np.stack(pictures)

    @override
    def facts(self, pictures: np.ndarray) -> float:
        pairs = zip(self._told(len(pictures)), pictures, strict=True)
        return float(summarize([score(told.facts, picture) for told, picture in pairs])["share"])

    @override
    def fills(self, pictures: np.ndarray) -> dict[str, float]:
        right: dict[str, list[bool]] = {}
        for told, picture in zip(self._told(len(pictures)), pictures, strict=True):
            for fact in score(told.facts, picture).facts:
                if fact.kind == "fill" and fact.index is not None:
                    right.setdefault(str(told.facts.objects[fact.index].fill), []).append(fact.right)
        return {fill: sum(each) / len(each) for fill, each in sorted(right.items())}

    def _told(self, count: int) -> list[captions.Caption]:
        rngs = [np.random.default_rng([self.validation.seed, index, 5]) for index in range(count)]
        return [captions.comprehensive(self.validation.scene(index), rng) for index, rng in enumerate(rngs)]
