"""The text encoder's objective: from a caption, tell every fact that it states.

A small decoder with one query a fact reads the encoder's output and names the fact's value, or "not stated". Only the
encoder is kept: its output then carries which color, fill or place belongs to which object.
"""

from dataclasses import astuple, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config, T5EncoderModel, T5Model

from cogview3.config import TextModel, TextRecipe
from cogview3.data.scenes import captions
from cogview3.data.scenes.scene import (
    COLORS,
    COUNT_WEIGHTS,
    FILLS,
    GROUNDS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Facts,
    ObjectFacts,
    sample_scene,
)
from cogview3.prompts.tokenizer import train_tokenizer
from cogview3.training.objectives import Batch, Objective

MAX_OBJECTS = len(COUNT_WEIGHTS)
_COUNTS = tuple(range(1, MAX_OBJECTS + 1))
_OBJECT_VALUES = (
    SHAPES,
    COLORS,
    FILLS,
    (False, True),
    tuple(SIZES),
    POSITIONS,
)  # in the order of ObjectFacts
_PAIRS = tuple((i, j) for i in range(MAX_OBJECTS) for j in range(i + 1, MAX_OBJECTS))
_SLOTS = (GROUNDS, TEXTURES, _COUNTS) + _OBJECT_VALUES * MAX_OBJECTS + (RELATIONS,) * len(_PAIRS)
_OFFSETS = tuple(np.cumsum([0] + [len(values) + 1 for values in _SLOTS]))  # each slot: "not stated", then its values


def fact_labels(facts: Facts) -> list[int]:
    """One class a slot: 0 for not stated, else 1 + the value's number.

    Objects stand in an order that the caption alone determines (sorted by what is stated of them), so that the order
    in which a text mentions them does not matter.
    """
    order = sorted(range(len(facts.objects)), key=lambda index: _labels(facts.objects[index]))
    place = {index: rank for rank, index in enumerate(order)}
    labels = [_label(GROUNDS, facts.ground), _label(TEXTURES, facts.texture), _label(_COUNTS, facts.count)]
    for index in order:
        labels += _labels(facts.objects[index])
    labels += [0] * len(_OBJECT_VALUES) * (MAX_OBJECTS - len(order))
    stated = {(place[item.first], place[item.second]): item.kind for item in reversed(facts.relations)}
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for i, j in _PAIRS:
        kind = stated.get((i, j)) or opposite.get(stated.get((j, i), ""))
        labels.append(_label(RELATIONS, kind))
    return labels


def _labels(item: ObjectFacts) -> list[int]:
    values = astuple(item)
    assert len(values) == len(_OBJECT_VALUES) == len(fields(ObjectFacts))
    return [_label(known, value) for known, value in zip(_OBJECT_VALUES, values, strict=True)]


def _label(known: tuple, value: object) -> int:
    return 0 if value is None else 1 + known.index(value)


class FactReader(nn.Module):
    """T5 encoder and decoder with one learned query for each slot of `fact_labels`."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.t5 = T5Model(t5_config(model))
        self.queries = nn.Parameter(torch.randn(len(_SLOTS), model.d_model))
        self.values = nn.Linear(model.d_model, int(_OFFSETS[-1]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to logits (B, slots, values), those of other slots' values masked."""
        encoded = self.t5.encoder(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        queries = self.queries.expand(len(tokens), -1, -1)
        decoded = self.t5.decoder(inputs_embeds=queries, encoder_hidden_states=encoded, use_cache=False)
        logits = self.values(decoded.last_hidden_state).float()
        return logits.masked_fill(~_slot_mask().to(logits.device), -1e4)


def _slot_mask() -> Tensor:
    mask = torch.zeros(len(_SLOTS), int(_OFFSETS[-1]), dtype=torch.bool)
    for slot, (start, end) in enumerate(pairwise(_OFFSETS)):
        mask[slot, start:end] = True
    return mask


def t5_config(model: TextModel) -> T5Config:
    """T5 v1.1's block (gated GELU) at the recipe's widths, without dropout."""
    return T5Config(
        vocab_size=model.vocab_size,
        d_model=model.d_model,
        d_kv=model.d_kv,
        d_ff=model.d_ff,
        num_heads=model.num_heads,
        num_layers=model.num_layers,
        num_decoder_layers=model.num_decoder_layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )


class TextTraining(Objective):
    """Train the text encoder on captions of random scenes (all three kinds)."""

    def __init__(self, recipe: TextRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        seed = recipe.train.seed
        texts = (self._caption(seed + 1, index).text for index in range(recipe.data.tokenizer_captions))
        self.tokenizer = train_tokenizer(texts, recipe.model.vocab_size, recipe.model.max_length)
        torch.manual_seed(seed)
        self.trained = FactReader(recipe.model)

    def _caption(self, seed: int, index: int) -> captions.Caption:
        rng = np.random.default_rng([seed, index])
        scene, data, kind = sample_scene(rng), self.recipe.data, rng.random()
        if kind < data.alt_share:
            return captions.alt_text(scene, rng)
        return (
            captions.brief(scene, rng)
            if kind < data.alt_share + data.brief_share
            else captions.comprehensive(scene, rng)
        )

    def _batch(self, seed: int, indices: list[int]) -> Batch:
        chosen = [self._caption(seed, index) for index in indices]
        length = self.recipe.model.max_length
        tokens = self.tokenizer(
            [item.text for item in chosen],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        return {
            "tokens": tokens.input_ids,
            "labels": torch.tensor([fact_labels(item.facts) for item in chosen]),
        }

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Tokens (B, L) and labels (B, slots)."""
        return self._batch(self.recipe.train.seed, indices)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy over the slots."""
        logits = self.trained(batch["tokens"])
        targets = batch["labels"] + torch.tensor(_OFFSETS[:-1], device=logits.device)
        return {"loss": functional.cross_entropy(logits.flatten(0, 1), targets.flatten())}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Shares of stated facts, and of whole captions, told right; captions that do not fit the length."""
        batch = self._batch(self.recipe.validate_.seed, list(range(self.recipe.validate_.images)))
        device = self.trained.queries.device
        told = self.trained(batch["tokens"].to(device)).argmax(-1).cpu() - torch.tensor(_OFFSETS[:-1])
        right, stated = told == batch["labels"], batch["labels"] > 0
        full = (batch["tokens"] != self.tokenizer.pad_token_id).all(1)
        return {
            "facts_right": right[stated].float().mean().item(),
            "captions_right": right.all(1).float().mean().item(),
            "captions_full_length": full.float().mean().item(),
        }

    def samples(self) -> None:
        """Nothing to see."""
        return None

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/`."""
        encoder = T5EncoderModel(t5_config(self.recipe.model))
        state = {key: value for key, value in self.trained.t5.state_dict().items() if not key.startswith("decoder.")}
        encoder.load_state_dict(state)
        encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
