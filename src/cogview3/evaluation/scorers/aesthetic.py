"""LAION's aesthetic predictor: a head on CLIP's picture embeddings."""

from collections.abc import Sequence
from typing import Self

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.base import Scorer
from cogview3.evaluation.scorers.clip import Clip
from cogview3.evaluation.scorers.preprocess import crop_center, normalized
from cogview3.evaluation.scorers.weights import CLIP_L14, Asset, Weights, fill, load_tensors


class LinearHead(nn.Module):
    """Five linear layers, 1024, 128, 64, 16 and 1 wide, with dropout and no activation between them, as published."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = {0: (width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
        layers = [nn.Linear(*widths[place]) if place in widths else nn.Dropout() for place in range(8)]
        self.layers = nn.Sequential(*layers)
        self.eval()

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) to (B,)."""
        ratings: Tensor = self.layers(features)
        return ratings.squeeze(1)


class Aesthetic(Scorer):
    """The paper's "Aes": how people would rate a picture, from 1 to 10; the prompt does not matter."""

    name = "aesthetic"
    protocol = "five linear layers on the normalized projected CLIP ViT-L/14 embedding, float32; bicubic, center crop"
    version = "improved-aesthetic-predictor sac+logos+ava1-l14-linearMSE"
    assets = (
        CLIP_L14,
        Asset(
            "aesthetic",
            "https://github.com/christophschuhmann/improved-aesthetic-predictor",
            "sac+logos+ava1-l14-linearMSE.pth",
            sha256="21dd590f",
        ),
    )

    def __init__(self, clip: Clip, head: LinearHead) -> None:
        self.clip, self.head = clip, head

    @classmethod
    @override
    def load(cls, weights: Weights) -> Self:
        path = weights.find(cls.assets[1])
        clip = Clip.load(weights, CLIP_L14)
        head = LinearHead(clip.model.config.projection_dim)
        fill(head, load_tensors(path), path)
        return cls(clip, head.to(weights.device))

    @torch.inference_mode()
    @override
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        pixels = normalized([crop_center(picture, self.clip.size) for picture in pictures])
        ratings: list[float] = self.head(self.clip.pictures(pixels)).tolist()
        return ratings
