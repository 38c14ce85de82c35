"""Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): a CLIP ViT-H/14 tuned on people's choices."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from typing_extensions import override

from cogview3.config import UserError
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.base import Scorer
from cogview3.evaluation.scorers.clip import Clip
from cogview3.evaluation.scorers.preprocess import normalized, pad_square
from cogview3.evaluation.scorers.weights import (
    CLIP_H14,
    Asset,
    Weights,
    fill,
    load_tensors,
    load_tokenizer,
    sha256,
    unfilled,
)

GROUP = 80
"""Pictures of a style that the benchmark averages together; its spread is that of these means."""

_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SINGLE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' own spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")


def h14_config() -> CLIPConfig:
    """open_clip's ViT-H-14 as transformers writes it: GELU, not the quick one of OpenAI's models."""
    shared = {"hidden_act": "gelu", "projection_dim": 1024}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    return CLIPConfig(
        text_config={**shared, **text, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
        vision_config={**shared, **vision, "image_size": 224, "patch_size": 14},
        projection_dim=1024,
    )


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names and shapes as `CLIPModel`'s: query, key and value apart, projections transposed."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _SINGLE:
            found[_SINGLE[name]] = tensor
        elif name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        elif name == "visual.proj":
            found["visual_projection.weight"] = tensor.T.contiguous()
        elif name.endswith(("attn.in_proj_weight", "attn.in_proj_bias")):
            prefix, kind = _layer(name.replace("in_proj_", "in_proj.")), name.rpartition("_")[2]
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{prefix}.self_attn.{part}_proj.{kind}"] = value
        elif (match := _BLOCK.fullmatch(name)) and match[3] in _LAYERS:
            found[f"{_layer(name)}.{_LAYERS[match[3]]}.{match[4]}"] = tensor
        elif name != "attn_mask":  # a buffer of old files
            found[name] = tensor  # unknown: strict loading names it
    return found


def _layer(name: str) -> str:
    match = _BLOCK.fullmatch(name)
    if not match:
        return name
    return f"{'vision' if match[1] else 'text'}_model.encoder.layers.{match[2]}"


class _Hps(Scorer):
    """Cosine of the embeddings, without the logit scale; about 0.28, printed by the benchmark times 100."""

    protocol = "cosine, no logit scale; longest side to 224, bicubic, black to a square; 77 tokens; mean"
    others: ClassVar[Mapping[str, str]] = {}

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    @classmethod
    def load(cls, weights: Weights, config: CLIPConfig | None = None) -> Self:
        """The scorer; `config` is for other sizes than the published one."""
        path = weights.find(cls.assets[0])
        for start, version in cls.others.items():
            if sha256(path).startswith(start):
                raise UserError(
                    f"{path} holds {version}, and scores of the versions do not compare: use --metrics {version}"
                )
        model = unfilled(lambda: CLIPModel(config or h14_config()))
        fill(model, from_open_clip(load_tensors(path, "state_dict")), path)
        return cls(Clip(model.to(weights.device), load_tokenizer(CLIPTokenizer, weights.find(CLIP_H14))))

    @override
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        pixels = normalized([pad_square(picture.convert("RGB"), self.clip.size) for picture in pictures])
        return (self.clip.pictures(pixels) * self.clip.texts([prompt.text for prompt in prompts])).sum(1).tolist()

    @classmethod
    def summarize(cls, prompts: Sequence[Prompt], values: Sequence[float]) -> dict[str, Any]:
        """The benchmark's spread of each style: of the means of 80 pictures."""
        styles: dict[str, list[float]] = {}
        for prompt, value in zip(prompts, values, strict=True):
            styles.setdefault(prompt.tags.get("category", "all"), []).append(value)
        whole = {name: np.array(found[: len(found) // GROUP * GROUP]) for name, found in styles.items()}
        spread = {name: float(found.reshape(-1, GROUP).mean(1).std()) for name, found in whole.items() if len(found)}
        return {"spread_of_80": spread} if spread else {}


class Hps20(_Hps):
    """Version 2.0: the paper's tables fit it."""

    name = "hpsv2"
    version = "HPS v2.0"
    assets = (Asset("hpsv2", "xswu/HPSv2", "HPS_v2_compressed.pt", sha256="07cb0d20"), CLIP_H14)
    others: ClassVar[Mapping[str, str]] = {"c57a38fb": "hpsv2.1"}


class Hps21(_Hps):
    """Version 2.1, of other data; its scores do not compare with 2.0's."""

    name = "hpsv2.1"
    version = "HPS v2.1"
    assets = (Asset("hpsv2.1", "xswu/HPSv2", "HPS_v2.1_compressed.pt", sha256="c57a38fb"), CLIP_H14)
    others: ClassVar[Mapping[str, str]] = {"07cb0d20": "hpsv2"}
