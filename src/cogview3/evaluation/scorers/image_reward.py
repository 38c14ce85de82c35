"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP's text encoder looks at the picture; a head rates the pair."""

import re
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from PIL import Image
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval
from typing_extensions import override

from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.aesthetic import LinearHead
from cogview3.evaluation.scorers.base import Scorer
from cogview3.evaluation.scorers.preprocess import crop_center, normalized
from cogview3.evaluation.scorers.weights import Asset, Weights, fill, load_tensors, load_tokenizer, unfilled

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the head's output on the authors' data: rewards have mean 0 and deviation 1 there."""

LENGTH = 35
"""Tokens of a prompt, in full always."""

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def blip_config() -> BlipConfig:
    """BLIP large: ViT-L/16 at 224, BERT-base with cross attention; the picture's layer norms have epsilon 1e-6."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return BlipConfig(
        vision_config={**vision, "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
        text_config={**text, "vocab_size": 30524, "encoder_hidden_size": 1024, "is_decoder": True},
        image_text_hidden_size=256,
    )


def from_image_reward(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names as those of transformers' BLIP; what belongs to the head, "mlp.", is left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = name.removeprefix("blip.")
        if own.startswith("visual_encoder."):
            found[f"vision_model.{_vision_name(own.removeprefix('visual_encoder.'))}"] = tensor
        elif not name.startswith("mlp.") and not own.endswith("embeddings.position_ids"):
            found[own] = tensor
    return found


def _vision_name(name: str) -> str:
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name):
        return f"encoder.layers.{match[1]}.{_BLOCK.get(match[2], match[2])}.{match[3]}"
    stem, dot, kind = name.rpartition(".")
    return f"{_VISION[stem]}.{kind}" if dot and stem in _VISION else _VISION.get(name, name)


class ImageReward(Scorer):
    """How people would rate a picture of the prompt, in deviations from the mean of the authors' pictures."""

    name = "imagereward"
    protocol = "(head - 0.1672) / 1.0333 of BLIP's first token; bicubic, center crop; 35 tokens; mean"
    version = "ImageReward-v1.0"
    assets = (
        Asset("imagereward", "THUDM/ImageReward", "ImageReward.pt", sha256="d71dc8d4"),
        Asset("bert", "google-bert/bert-base-uncased", patterns=("tokenizer*", "vocab.txt", "config.json")),
    )

    def __init__(self, blip: BlipForImageTextRetrieval, head: LinearHead, tokenizer: BertTokenizer) -> None:
        self.blip, self.head, self.tokenizer = blip, head, tokenizer
        self.size = int(blip.config.vision_config.image_size)

    @classmethod
    def load(cls, weights: Weights, config: BlipConfig | None = None) -> Self:
        """The scorer; `config` is for other sizes than the published one."""
        path = weights.find(cls.assets[0])
        tokenizer = load_tokenizer(BertTokenizer, weights.find(cls.assets[1]))
        tensors = load_tensors(path)
        blip = unfilled(lambda: BlipForImageTextRetrieval(config or blip_config()))
        unused = {
            name: torch.zeros(tensor.shape)
            for name, tensor in blip.state_dict().items()
            if name.startswith("itm_head.")
        }
        fill(blip, from_image_reward(tensors) | unused, path)
        head = LinearHead(blip.config.text_config.hidden_size)
        fill(head, {name.removeprefix("mlp."): each for name, each in tensors.items() if name.startswith("mlp.")}, path)
        return cls(blip.to(weights.device), head.to(weights.device), tokenizer)

    @torch.inference_mode()
    @override
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        pixels = normalized([crop_center(picture, self.size) for picture in pictures]).to(self.blip.device)
        texts = [prompt.text for prompt in prompts]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        found = self.blip(
            input_ids=tokens["input_ids"].to(self.blip.device),
            attention_mask=tokens["attention_mask"].to(self.blip.device),
            pixel_values=pixels,
        ).question_embeds[:, 0]
        rewards: list[float] = ((self.head(found) - MEAN) / DEVIATION).tolist()
        return rewards
