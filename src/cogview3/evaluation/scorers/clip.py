"""CLIP's embeddings of pictures and texts, CLIP score and PickScore."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from typing_extensions import override

from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.base import Scorer
from cogview3.evaluation.scorers.preprocess import crop_center, normalized
from cogview3.evaluation.scorers.weights import CLIP_H14, CLIP_L14, Asset, Weights, load_pretrained, load_tokenizer


class Clip:
    """A CLIP model in float32 and its tokenizer."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.size = int(model.config.vision_config.image_size)
        self.length = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, weights: Weights, asset: Asset, tokenizer: Asset | None = None) -> Self:
        """Model and tokenizer from an asset's folder, or the tokenizer from another's; loaded once."""

        def load() -> Self:
            folder = weights.find(asset)
            words = load_tokenizer(CLIPTokenizer, weights.find(tokenizer) if tokenizer else folder)
            return cls(load_pretrained(CLIPModel, folder, weights.device), words)

        return weights.once((asset.name, cls), load)

    @torch.inference_mode()
    def pictures(self, pixels: Tensor) -> Tensor:
        """Projected embeddings (B, D) of length 1 of normalized pictures (B, 3, H, W)."""
        return _unit(self.model.get_image_features(pixel_values=pixels.to(self.model.device)).pooler_output)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Projected embeddings (B, D) of length 1; longer texts are cut, their end mark kept."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.model.device)
        found = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return _unit(found)

    def cosines(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Cosines (B,) of each picture, cropped in CLIP's way, with its text."""
        pixels = normalized([crop_center(picture, self.size) for picture in pictures])
        return (self.pictures(pixels) * self.texts(texts)).sum(1)


def _unit(vectors: Tensor) -> Tensor:
    norms = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, 1)


class _Cosine(Scorer):
    """A multiple of the cosine of a picture's and its prompt's embeddings."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @classmethod
    @override
    def load(cls, weights: Weights) -> Self:
        return cls(Clip.load(weights, *cls.assets))

    @override
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        found = self._scaled(self.clip.cosines(pictures, [prompt.text for prompt in prompts]))
        scores: list[float] = found.tolist()
        return scores

    @abstractmethod
    def _scaled(self, cosines: Tensor) -> Tensor: ...


class ClipScore(_Cosine):
    """Hessel et al. 2021 (arXiv 2104.08718) as torchmetrics scales it: max(100 cos, 0)."""

    name = "clip"
    protocol = "max(100 cos, 0) of CLIP's projected embeddings; bicubic, center crop; 77 tokens; mean"
    version = "ViT-L/14 (openai), or the model given as clip-l14"
    assets = (CLIP_L14,)

    @override
    def _scaled(self, cosines: Tensor) -> Tensor:
        return (100 * cosines).clamp(min=0)


class PickScore(_Cosine):
    """Kirstain et al. 2023 (arXiv 2305.01569): exp(logit scale) cos of a CLIP ViT-H/14 tuned on choices."""

    name = "pickscore"
    protocol = "exp(logit_scale) cos; bicubic, center crop; 77 tokens; mean"
    version = "PickScore_v1"
    assets = (Asset("pickscore", "yuvalkirstain/PickScore_v1"), CLIP_H14)

    @override
    def _scaled(self, cosines: Tensor) -> Tensor:
        return self.clip.model.logit_scale.exp() * cosines
