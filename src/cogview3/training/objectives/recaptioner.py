"""The small recaptioner's objective: from a picture and its noisy alt-text, the comprehensive caption.

Its classes are those of large ones (LLaVA: a vision encoder's patches stand before the text of a causal language
model), so that the same commands run it. The vision encoder is a FocalNet (Yang et al. 2022), whose convolutions learn
shapes and fills from fewer pictures than attention does. Written captions alone would still teach it slowly; beside
them every patch, of each level, must tell which object covers it and all facts about this object. These heads are not
kept.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    FocalNetConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
)

from cogview3.captions.inputs import IGNORED
from cogview3.captions.rows import request
from cogview3.config import RecaptionerModel, RecaptionerRecipe
from cogview3.data.scenes import captions
from cogview3.data.scenes import scene as world
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.data.scenes.things import THINGS
from cogview3.evaluation.written import recaption_figures
from cogview3.prompts.tokenizer import build_tokenizer
from cogview3.training.objectives import Batch
from cogview3.training.objectives.language import LanguageTraining

IMAGE = "<image>"
MAX_NEW_TOKENS = 96  # a caption of four objects has 72
MAX_TEXT = 144  # tokens of request and caption; longer alt-texts are left out in training

PATCH_WEIGHT = 5.0  # of what a level's patches tell, against the caption's tokens

_NUMBERS = len(world.COUNT_WEIGHTS)
_PATCH_CLASSES = (  # number of the object that covers a patch (0: none), its facts, the scene's
    *(_NUMBERS + 1, len(world.SHAPES), len(world.COLORS), len(world.FILLS), 2),
    *(len(world.SIZES), len(world.POSITIONS), len(THINGS)),
    *(len(world.GROUNDS), len(world.TEXTURES), _NUMBERS),
)


def patch_labels(scene: Scene, side: int) -> np.ndarray:
    """Class of each of side x side patches in each of eleven respects, (11, side * side), IGNORED where there is none.

    In the order of the head: number of the object whose square holds the patch's center, counted from 1 in reading
    order, 0 for none; its shape, color, fill, outline, size, position and thing; ground, texture and number of objects.
    """
    labels = np.full((len(_PATCH_CLASSES), side, side), IGNORED)
    labels[0] = 0
    labels[-3:] = np.reshape(
        [world.GROUNDS.index(scene.ground), world.TEXTURES.index(scene.texture), len(scene.objects) - 1], (3, 1, 1)
    )
    centers = (np.arange(side) + 0.5) / side
    for number, item in enumerate(scene.objects, 1):
        half = world.SIZES[item.size] / 2
        inside = np.ix_(abs(centers - item.y) < half, abs(centers - item.x) < half)
        facts = (
            *(_class(world.SHAPES, item.shape), _class(world.COLORS, item.color), _class(world.FILLS, item.fill)),
            *(_class((False, True), item.outline), _class(tuple(world.SIZES), item.size)),
            *(_class(world.POSITIONS, item.position), _class(tuple(THINGS), item.thing)),
        )
        for respect, value in enumerate((number, *facts)):
            labels[respect][inside] = value
    return labels.reshape(len(_PATCH_CLASSES), -1)


def _class(values: Sequence[object], value: object) -> int:
    return IGNORED if value is None else values.index(value)


def llava_config(model: RecaptionerModel, tokenizer: PreTrainedTokenizerBase) -> LlavaConfig:
    """Configuration at the recipe's widths: all patches of the vision encoder's last level go into the text."""
    levels = len(model.vision_depths)
    for_llava: dict[str, Any] = {"hidden_size": model.vision_width * 2 ** (levels - 1)}  # the name it asks for
    vision = FocalNetConfig(
        image_size=model.image_size,
        embed_dim=model.vision_width,
        hidden_sizes=[model.vision_width * 2**level for level in range(levels)],
        depths=list(model.vision_depths),
        focal_levels=[2] * levels,
        focal_windows=[model.vision_window] * levels,
        mlp_ratio=3.0,
        drop_path_rate=0.0,
        use_conv_embed=True,  # patches overlap: of 7 pixels, every 4
        **for_llava,
    )
    text = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.text_width,
        intermediate_size=2 * model.text_width,
        num_hidden_layers=model.text_layers,
        num_attention_heads=model.text_width // model.head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=int(tokenizer.convert_tokens_to_ids(IMAGE)),  # type: ignore[arg-type]  # of one token
        image_seq_length=(model.image_size // model.coarsest_patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )


class Recaptioner(nn.Module):
    """LLaVA, and the heads that tell from each patch what covers it: one after each level of the vision encoder."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.llava = LlavaForConditionalGeneration(config)
        self.llava.model.vision_tower.layernorm.requires_grad_(False)  # of no use for what LLaVA takes
        _initialize(self.llava.model.vision_tower)
        vision = config.vision_config
        assert isinstance(vision, FocalNetConfig)
        first, levels = vision.embed_dim, len(vision.depths)
        widths = [first * 2 ** min(level + 1, levels - 1) for level in range(levels)]  # a level ends by coarsening
        self.patch_heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(_PATCH_CLASSES))) for width in widths
        )

    def forward(self, pictures: Tensor, tokens: Tensor, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the patches tell, and how the texts of some of the pictures go on.

        Args:
            pictures: (B, 3, S, S) in [-1, 1].
            tokens: (B, L), the picture's places included.
            rows: (B,) bool, C of them true: those whose text is read.

        Returns:
            Logits of the patches (B, P, 115) after each level, and of each next token (C, L, vocabulary).
        """
        model = self.llava.model
        levels = model.vision_tower(pictures, output_hidden_states=True).hidden_states[1:]
        embeddings = model.get_input_embeddings()(tokens[rows])
        projected = model.multi_modal_projector(levels[-1][rows]).to(embeddings.dtype)
        places = (tokens[rows] == self.llava.config.image_token_id).unsqueeze(-1)
        # a text of padding alone has no place for its picture
        embeddings = embeddings.masked_scatter(places, projected) if places.any() else embeddings + 0 * projected.sum()
        hidden = model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        told = [head(patches).float() for head, patches in zip(self.patch_heads, levels, strict=True)]
        return told, self.llava.lm_head(hidden).float()


def _initialize(vision: nn.Module) -> None:
    """Begin with weights that keep a signal's size (He et al. 2015).

    The library's, of standard deviation 0.02 everywhere, let almost nothing through depthwise filters of 3 x 3.
    """
    for module in vision.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


class RecaptionerTraining(LanguageTraining):
    """Train to write `captions.plain` of a scene from its picture and an alt-text, which is sometimes wrong."""

    trained: Recaptioner

    def __init__(self, recipe: RecaptionerRecipe) -> None:
        super().__init__()
        self.recipe, model = recipe, recipe.model
        self.tokenizer = self._new_tokenizer()
        torch.manual_seed(recipe.train.seed)
        self.trained = Recaptioner(llava_config(model, self.tokenizer))
        sides = [model.image_size // 2 ** (level + 3) for level in range(len(model.vision_depths))]
        self.side = model.image_size // model.coarsest_patch
        self.sides = [max(side, self.side) for side in sides]  # of the grids of patches after each level
        self.processor = new_processor(model, self.tokenizer)

    def _new_tokenizer(self) -> PreTrainedTokenizerBase:
        """Of words of requests and captions, with a token for the picture; ends no text by itself."""

        def texts() -> Iterator[str]:
            for index in range(self.recipe.data.tokenizer_captions):
                scene, old = self._sample(self.recipe.train.seed + 1, index)
                yield f"{request(old.text)} {captions.plain(scene).text}"

        tokenizer = build_tokenizer(texts(), self.recipe.model.vocab_size - 1, 1024, ends_texts=False)
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        return tokenizer

    def _sample(self, seed: int, index: int, combinations: str = "seen") -> tuple[Scene, captions.Caption]:
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, combinations)
        return scene, captions.alt_text(scene, rng)

    def _pictures(self, scenes: list[Scene], resized: list[bool]) -> Tensor:
        """(B, 3, S, S) in [-1, 1], as the processor makes them of pictures of this or of twice the size."""
        size = self.recipe.model.image_size
        pictures = [render(scene, 2 * size if twice else size) for scene, twice in zip(scenes, resized, strict=True)]
        images = self.processor.image_processor
        values: Tensor = images([Image.fromarray(picture) for picture in pictures], return_tensors="pt").pixel_values
        return values

    def _labeled(self, scene: Scene, old: str) -> tuple[list[int], list[int]]:
        """Tokens of picture, request, caption and end; and the labels, IGNORED before the caption."""
        caption = [*self.tokenizer(captions.plain(scene).text).input_ids, self.tokenizer.eos_token_id]
        asked = self.tokenizer(request(old)).input_ids
        if len(asked) + len(caption) > MAX_TEXT:
            asked = self.tokenizer(request("")).input_ids
        prompt = [self.tokenizer.convert_tokens_to_ids(IMAGE)] * self.side**2 + asked
        return prompt + caption, [IGNORED] * len(prompt) + caption

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Pictures (B, 3, S, S), labels of their patches (B, 11, P) by level, tokens of texts and their labels (B, L).

        Of pictures whose caption is not learned, all tokens are padding.
        """
        data, seed = self.recipe.data, self.recipe.train.seed
        samples = [self._sample(seed, index) for index in indices]
        chances = [np.random.default_rng([seed, index, 1]).random(2) for index in indices]
        tokens = torch.full((len(indices), self.side**2 + MAX_TEXT), self.tokenizer.pad_token_id)
        labels = torch.full_like(tokens, IGNORED)
        for row, (index, (scene, old), chance) in enumerate(zip(indices, samples, chances, strict=True)):
            share = data.captioned_share
            if int((index + 1) * share) > int(index * share):
                told, wanted = self._labeled(scene, "" if chance[0] < data.empty_share else old.text)
                tokens[row, : len(told)], labels[row, : len(told)] = torch.tensor(told), torch.tensor(wanted)
        scenes = [scene for scene, _ in samples]
        return {
            "pictures": self._pictures(scenes, [bool(chance[1] < data.resized_share) for chance in chances]),
            "tokens": tokens,
            "labels": labels,
            **{
                f"patches_{side}": torch.from_numpy(np.stack([patch_labels(scene, side) for scene in scenes]))
                for side in sorted(set(self.sides))
            },
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the captions' tokens, and of what patches tell: "patches" is the last level's."""
        filled = batch["tokens"] != self.tokenizer.pad_token_id
        rows, length = filled.any(1), max(2, int(filled.any(0).sum()))
        if not rows.any():  # one that is read for nothing, so that all weights have a gradient, if of 0
            rows = torch.arange(len(rows), device=rows.device) == 0
        labels = batch["labels"][rows, :length]
        told, logits = self.trained(batch["pictures"], batch["tokens"][:, :length], rows)
        wanted = labels[:, 1:].flatten()
        caption = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum"
        ) / max(1, int((wanted != IGNORED).sum()))  # a small batch, or a part of one, may hold no caption
        levels = [_patch_loss(each, batch[f"patches_{side}"]) for each, side in zip(told, self.sides, strict=True)]
        return {"loss": caption + PATCH_WEIGHT * sum(levels), "caption": caption, "patches": levels[-1]}

    @torch.no_grad()
    def write(self, pictures: Tensor, olds: list[str], chunk: int = 64) -> list[str]:
        """Greedy captions of pictures (B, 3, S, S) in [-1, 1] with their alt-texts."""
        written: list[str] = []
        device = self.trained.llava.device
        for start in range(0, len(olds), chunk):
            prompts = [IMAGE * self.side**2 + request(old) for old in olds[start : start + chunk]]
            inputs = self.tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
            writer: Any = self.trained.llava
            tokens = writer.generate(
                **inputs.to(device),
                pixel_values=pictures[start : start + chunk].to(device),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
            written += self.tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        return written

    def validate(self) -> dict[str, float]:
        """How true greedy captions are, on scenes of `validate.seed`; every second one with a held-out combination."""
        settings = self.recipe.validate_
        kinds = [("seen", "held-out")[index % 2] for index in range(settings.images)]
        samples = [self._sample(settings.seed, index, kind) for index, kind in enumerate(kinds)]
        pictures = self._pictures([scene for scene, _ in samples], [index % 4 < 2 for index in range(len(samples))])
        written = self.write(pictures, [old.text for _, old in samples])
        return recaption_figures([scene for scene, _ in samples], [old for _, old in samples], written)

    def save(self, folder: Path) -> None:
        """Write `recaptioner/`: a folder of transformers, with model and processor."""
        self.trained.llava.generation_config.max_new_tokens = MAX_NEW_TOKENS
        self.trained.llava.save_pretrained(folder / "recaptioner")
        self.processor.save_pretrained(folder / "recaptioner")


def _patch_loss(told: Tensor, labels: Tensor) -> Tensor:
    """Mean over eleven respects of the cross entropy of logits (B, P, 115) with labels (B, 11, P)."""
    parts = told.split(_PATCH_CLASSES, -1)
    each = []
    for respect, part in enumerate(parts):
        wanted = labels[:, respect].flatten()
        loss = functional.cross_entropy(part.flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum")
        each.append(loss / max(1, int((wanted != IGNORED).sum())))  # a small batch may show no thing, or no shape
    return torch.stack(each).mean()


def new_processor(model: RecaptionerModel, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """What makes inputs of pictures and texts, with a chat template that adds nothing to the text."""
    size = {"height": model.image_size, "width": model.image_size}
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size=size),
        tokenizer=tokenizer,
        patch_size=model.coarsest_patch,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=(
            "{% for message in messages if message.role == 'user' %}{% for part in message.content %}"
            "{% if part.type == 'image' %}" + IMAGE + "{% else %}{{ part.text }}{% endif %}"
            "{% endfor %}{% endfor %}"
        ),
    )
