"""The scorers' networks once more, by torch's own layers under the names of the published files; tiny, random."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

TEXT, VISION, JOINT, LENGTH, SIDE, PATCH = 32, 48, 24, 20, 28, 14
WORDS = ["a", "red", "star", "cat", "blue", "of", "on"]


def clip_config(activation: str = "gelu") -> CLIPConfig:
    shared = {"hidden_act": activation, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": JOINT}
    text = {"vocab_size": 80, "hidden_size": TEXT, "intermediate_size": 64, "max_position_embeddings": LENGTH}
    vision = {"hidden_size": VISION, "intermediate_size": 96, "image_size": SIDE, "patch_size": PATCH}
    return CLIPConfig(
        text_config={**shared, **text, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
        vision_config={**shared, **vision},
        projection_dim=JOINT,
    )


def write_clip(folder: Path, activation: str = "gelu") -> CLIPModel:
    """A tiny CLIP model folder with a tokenizer."""
    torch.manual_seed(0)
    model = CLIPModel(clip_config(activation)).eval()
    model.save_pretrained(folder)
    write_clip_tokenizer(folder)
    return model


def write_clip_tokenizer(folder: Path) -> None:
    """Letters and whole words; the end mark has the highest number, as in CLIP."""
    folder.mkdir(exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz,.\"?'0123")]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))


class Block(nn.Module):
    """open_clip's residual block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Blocks(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, hidden) for _ in range(2)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class OpenClipVision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(VISION))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // PATCH) ** 2 + 1, VISION) * 0.1)
        self.proj = nn.Parameter(torch.randn(VISION, JOINT) * 0.1)
        self.conv1 = nn.Conv2d(3, VISION, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(VISION), nn.LayerNorm(VISION)
        self.transformer = Blocks(VISION, 96)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """A CLIP model under open_clip's names."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = OpenClipVision()
        self.token_embedding = nn.Embedding(80, TEXT)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, TEXT) * 0.1)
        self.transformer = Blocks(TEXT, 64)
        self.ln_final = nn.LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.randn(TEXT, JOINT) * 0.1)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def texts(self, tokens: Tensor) -> Tensor:
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding, mask)
        return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection


class BlipVision(nn.Module):
    """BLIP's picture encoder under ImageReward's names: timm's blocks, epsilon 1e-6."""

    def __init__(self, width: int, side: int, patch: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.1)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList([TimmBlock(width) for _ in range(2)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TimmBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(part) for part in self.attn["qkv"](self.norm1(x)).chunk(3, -1))
        x = x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


class BertLayer(nn.Module):
    """Self attention, attention to the picture, two linear layers, each followed by its norm; BERT's names."""

    def __init__(self, width: int, seen: int) -> None:
        super().__init__()
        self.attention, self.crossattention = _attention(width, width), _attention(width, seen)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 2 * width)})
        self.output = _output(2 * width, width)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        x = _attend(self.attention, x, x, mask)
        x = _attend(self.crossattention, x, seen, None)
        y = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](y))


def _attention(width: int, seen: int) -> nn.ModuleDict:
    parts = {"query": nn.Linear(width, width), "key": nn.Linear(seen, width), "value": nn.Linear(seen, width)}
    return nn.ModuleDict({"self": nn.ModuleDict(parts), "output": _output(width, width)})


def _output(inner: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})


def _attend(part: nn.ModuleDict, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
    own = part["self"]
    q, k, v = _heads(own["query"](x)), _heads(own["key"](seen)), _heads(own["value"](seen))
    y = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None].bool())
    return part["output"]["LayerNorm"](x + part["output"]["dense"](y.transpose(1, 2).flatten(2)))


class BlipReward(nn.Module):
    """ImageReward's feature under its file's names, without "blip." and the head."""

    def __init__(self, vocabulary: int, width: int, seen: int, side: int, patch: int) -> None:
        super().__init__()
        self.visual_encoder = BlipVision(seen, side, patch)
        words = {"word_embeddings": nn.Embedding(vocabulary, width), "position_embeddings": nn.Embedding(40, width)}
        layers = nn.ModuleDict({"layer": nn.ModuleList([BertLayer(width, seen) for _ in range(2)])})
        embeddings = nn.ModuleDict({**words, "LayerNorm": nn.LayerNorm(width, eps=1e-12)})
        self.text_encoder = nn.ModuleDict({"embeddings": embeddings, "encoder": layers})
        self.vision_proj, self.text_proj = nn.Linear(seen, 8), nn.Linear(width, 8)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        own = self.text_encoder["embeddings"]
        x = own["word_embeddings"](tokens) + own["position_embeddings"].weight[: tokens.shape[1]]
        x, seen = own["LayerNorm"](x), self.visual_encoder(pixels)
        for layer in self.text_encoder["encoder"]["layer"]:
            x = layer(x, seen, mask)
        return x[:, 0]
