"""The text encoder's objective: predict every fact that a caption states.

A small decoder with one query a fact reads the encoder's output and names the fact's value, or "not stated". Beside
it, every word that names an object ("circle", or "red" where only one object is) must predict all stated of this
object: without that, an encoder long stays with a bag of words. Only the encoder is kept; its output then carries
which color, fill or place belongs to which object.
"""

import re
from collections.abc import Sequence
from dataclasses import astuple
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5Model

from cogview3.config import TextData, TextModel, TextRecipe
from cogview3.data.scenes import captions, wording
from cogview3.data.scenes import scene as world
from cogview3.data.scenes.scene import Facts, sample_scene
from cogview3.data.scenes.things import THINGS
from cogview3.prompts.tokenizer import build_tokenizer
from cogview3.training.objectives import Batch, start_from
from cogview3.training.objectives.language import LanguageTraining, known_tokenizer, t5_config

MAX_OBJECTS = len(world.COUNT_WEIGHTS)
_COUNTS = tuple(range(1, MAX_OBJECTS + 1))
_OBJECT_VALUES: tuple[tuple[Any, ...], ...] = (  # in the order of ObjectFacts
    *(world.SHAPES, world.COLORS, world.FILLS, (False, True)),
    *(tuple(world.SIZES), world.POSITIONS, tuple(THINGS)),
)
_PAIRS = tuple((i, j) for i in range(MAX_OBJECTS) for j in range(i + 1, MAX_OBJECTS))
_PAIR_VALUES = (*world.RELATIONS, world.BETWEEN, "end of")  # of first to second; one between others has two ends
_DENIABLE = (*world.SHAPES, *THINGS)
_SCENE_VALUES = (world.GROUNDS, world.TEXTURES, _COUNTS, world.DIFFERENT, _DENIABLE)
_SLOTS = _SCENE_VALUES + _OBJECT_VALUES * MAX_OBJECTS + (_PAIR_VALUES,) * len(_PAIRS)
_OFFSETS = tuple(np.cumsum([0] + [len(values) + 1 for values in _SLOTS]))  # each slot: "not stated", then its values
OBJECT_CLASSES = tuple(len(values) + 1 for values in _OBJECT_VALUES)
_SCENE_SLOTS, _OBJECT_SLOTS = len(_SCENE_VALUES), len(_OBJECT_VALUES) * MAX_OBJECTS
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", world.BETWEEN: "end of"}


def fact_labels(facts: Facts) -> tuple[list[int], list[list[int]]]:
    """Classes of the slots of scene and objects, and of relations: 0 for not stated, else 1 + the value's number.

    Of several facts that differ, or are denied, the first counts.

    Returns:
        (5 + 4 * 7) classes, and for each pair of objects the relation of the first to the second, (4, 4).
    """
    denied = [item.thing or item.shape for item in facts.denied]
    scene = facts.ground, facts.texture, facts.count, next(iter(facts.different), None), next(iter(denied), None)
    labels = [_label(known, value) for known, value in zip(_SCENE_VALUES, scene, strict=True)]
    for item in facts.objects:
        labels += [_label(known, value) for known, value in zip(_OBJECT_VALUES, astuple(item), strict=True)]
    labels += [0] * (_SCENE_SLOTS + _OBJECT_SLOTS - len(labels))
    relations = [[0] * MAX_OBJECTS for _ in range(MAX_OBJECTS)]
    for relation in reversed(facts.relations):
        for second in relation.objects[1:]:
            relations[relation.first][second] = _label(_PAIR_VALUES, relation.kind)
            relations[second][relation.first] = _label(_PAIR_VALUES, _OPPOSITE[relation.kind])
    return labels, relations


@torch.no_grad()
def matched_labels(logits: Tensor, labels: Tensor, relations: Tensor) -> Tensor:
    """Labels of all slots, the objects in that order in which `logits` tell them best.

    A caption's objects have no order of their own, so each sample's are matched one to one with the decoder's four
    groups of slots, by the least cross entropy.

    Args:
        logits: (B, slots, values), those of other slots' values masked.
        labels: (B, 33), relations: (B, 4, 4), as `fact_labels` gives them.

    Returns:
        (B, slots), classes as in `fact_labels`.
    """
    rows = len(labels)
    offsets = torch.tensor(_OFFSETS[:-1], device=labels.device)
    objects = labels[:, _SCENE_SLOTS:].view(rows, MAX_OBJECTS, -1)
    told = logits.log_softmax(-1)[:, _SCENE_SLOTS : _SCENE_SLOTS + _OBJECT_SLOTS]
    told = told.view(rows, MAX_OBJECTS, objects.shape[-1], -1)
    wanted = objects[:, None] + offsets[_SCENE_SLOTS : _SCENE_SLOTS + _OBJECT_SLOTS].view(MAX_OBJECTS, 1, -1)
    costs = -told.unsqueeze(2).expand(-1, -1, MAX_OBJECTS, -1, -1).gather(-1, wanted.unsqueeze(-1)).sum((-1, -2))
    order = torch.tensor(np.stack([linear_sum_assignment(cost)[1] for cost in costs.cpu().numpy()]))
    order = order.to(labels.device)
    row = torch.arange(rows, device=labels.device)[:, None]
    first, second = (order[:, [pair[side] for pair in _PAIRS]] for side in (0, 1))
    parts = labels[:, :_SCENE_SLOTS], objects[row, order].flatten(1), relations[row, first, second]
    return torch.cat(parts, 1)


def _label(known: tuple[Any, ...], value: object) -> int:
    return 0 if value is None else 1 + known.index(value)


def naming_words() -> dict[tuple[str, ...], tuple[str, str]]:
    """Words that name an object by its shape, color or thing: their tokens -> (name of the fact, value).

    Plurals are among them, as is the last word of a color or shape ("background" of none); what has two meanings not.
    """
    found: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    tables = (("shape", wording.NOUNS), ("color", wording.COLORS), ("thing", wording.THING_NOUNS))
    for kind, table in tables:
        for value, phrases in table.items():
            for text in phrases.texts:
                forms = [text] if kind == "color" else [text, wording.plural(text)]
                for words in (tuple(re.findall(r"\w+|[^\w\s]", form)) for form in forms):
                    found.setdefault(words if kind == "thing" else words[-1:], set()).add((kind, value))
    return {words: meanings.pop() for words, meanings in found.items() if len(meanings) == 1}


def named_objects(
    pieces: list[str], facts: Facts, words: dict[tuple[str, ...], tuple[str, str]], places: Sequence[int] | None = None
) -> list[int]:
    """For each token of a caption the object that it names, -1 where it names none or several.

    The longest name counts ("teddy bear" is no bear), at its last token. Of several objects of which the same is stated
    ("three green triangles") it names the first, by `places` if given: each object's place in the text.
    """
    tokens = [piece.removeprefix("▁") for piece in pieces]
    named, place = [-1] * len(tokens), 0
    longest = max(map(len, words))
    while place < len(tokens):
        length = next((n for n in range(longest, 0, -1) if tuple(tokens[place : place + n]) in words), 0)
        if length:
            kind, value = words[tuple(tokens[place : place + length])]
            fitting = [i for i, item in enumerate(facts.objects) if getattr(item, kind) == value]
            if len({facts.objects[i] for i in fitting}) == 1:
                named[place + length - 1] = min(fitting, key=places.__getitem__ if places else None)
        place += length or 1
    return named


def naming_loss(told: Tensor, named: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of what words tell of the objects that they name.

    Args:
        told: (B, L, classes), logits of each of an object's seven facts at each token, as OBJECT_CLASSES splits them.
        named: (B, L), as `named_objects` gives them, -1 at padding.
        labels: (B, 33), as `fact_labels` gives them.
    """
    row, place = (named >= 0).nonzero(as_tuple=True)
    objects = labels[:, _SCENE_SLOTS:].view(len(labels), MAX_OBJECTS, -1)
    wanted = objects[row, named[row, place]]
    parts = told[row, place].split(OBJECT_CLASSES, -1)
    each = [functional.cross_entropy(part, wanted[:, i], reduction="sum") for i, part in enumerate(parts)]
    return reduce(torch.add, each) / (len(parts) * max(1, len(row)))  # a small batch may name nothing


class FactReader(nn.Module):
    """T5 encoder and decoder with one learned query for each slot of `fact_labels`."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.t5 = T5Model(t5_config(model))
        self.queries = nn.Parameter(torch.randn(len(_SLOTS), model.d_model))
        self.values = nn.Linear(model.d_model, int(_OFFSETS[-1]))
        self.word_values = nn.Linear(model.d_model, sum(OBJECT_CLASSES))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of tokens (B, L): of slots (B, slots, values), others' values masked, and of words (B, L, classes)."""
        encoded = self.t5.encoder(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        queries = self.queries.expand(len(tokens), -1, -1)
        decoded = self.t5.decoder(inputs_embeds=queries, encoder_hidden_states=encoded, use_cache=False)
        logits = self.values(decoded.last_hidden_state).float()
        return logits.masked_fill(~_slot_mask().to(logits.device), -1e4), self.word_values(encoded).float()


def _slot_mask() -> Tensor:
    mask = torch.zeros(len(_SLOTS), int(_OFFSETS[-1]), dtype=torch.bool)
    for slot, (start, end) in enumerate(pairwise(_OFFSETS)):
        mask[slot, start:end] = True
    return mask


class TextTraining(LanguageTraining):
    """Train the text encoder on captions of random scenes (all three kinds)."""

    trained: FactReader

    def __init__(self, recipe: TextRecipe) -> None:
        super().__init__()
        assert isinstance(recipe.data, TextData)
        self.recipe, self._data = recipe, recipe.data
        self._words = naming_words()
        torch.manual_seed(recipe.train.seed)
        self.trained = FactReader(recipe.model)
        self.tokenizer = self._start(recipe.recipe.start_from) if recipe.recipe.start_from else self._new_tokenizer()

    def _new_tokenizer(self) -> PreTrainedTokenizerBase:
        model, seed = self.recipe.model, self.recipe.train.seed + 1
        texts = (self._caption(seed, index).text for index in range(self._data.tokenizer_captions))
        return build_tokenizer(texts, model.vocab_size, model.max_length)

    def _start(self, reference: str) -> PreTrainedTokenizerBase:
        encoder = T5EncoderModel(t5_config(self.recipe.model))
        start_from(encoder, reference, "text_encoder")
        self.trained.t5.load_state_dict(encoder.state_dict(), strict=False)  # the decoder starts untrained
        return known_tokenizer(reference, "tokenizer", self.recipe.model)

    def _caption(self, seed: int, index: int) -> captions.Caption:
        rng = np.random.default_rng([seed, index])
        scene, data, kind = sample_scene(rng), self._data, rng.random()
        if kind < data.alt_share:
            return captions.alt_text(scene, rng)
        brief = kind < data.alt_share + data.brief_share
        return (captions.brief if brief else captions.comprehensive)(scene, rng)

    def _batch(self, seed: int, indices: list[int]) -> Batch:
        chosen = [self._caption(seed, index) for index in indices]
        tokens = self._tokens([item.text for item in chosen])
        labels, relations = zip(*(fact_labels(item.facts) for item in chosen), strict=True)
        pieces = [list(self.tokenizer.convert_ids_to_tokens(row)) for row in tokens.tolist()]
        named = [named_objects(row, item.facts, self._words) for row, item in zip(pieces, chosen, strict=True)]
        numbers = {"labels": labels, "relations": relations, "named": named}
        return {"tokens": tokens, **{name: torch.tensor(values) for name, values in numbers.items()}}

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Tokens and the objects that they name (B, L), labels (B, 33) and relations (B, 4, 4)."""
        return self._batch(self.recipe.train.seed, indices)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the slots, and of what naming words tell of their objects."""
        logits, words = self.trained(batch["tokens"])
        labels = matched_labels(logits, batch["labels"], batch["relations"])
        targets = labels + torch.tensor(_OFFSETS[:-1], device=logits.device)
        slots = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        naming = naming_loss(words, batch["named"], batch["labels"])
        return {"loss": slots + naming, "slots": slots, "naming": naming}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Shares of stated facts, and of whole captions, told right; captions that do not fit the length."""
        batch = self._batch(self.recipe.validate_.seed, list(range(self.recipe.validate_.images)))
        batch = {name: value.to(self.trained.queries.device) for name, value in batch.items()}
        logits, _ = self.trained(batch["tokens"])
        labels = matched_labels(logits, batch["labels"], batch["relations"])
        told = logits.argmax(-1) - torch.tensor(_OFFSETS[:-1], device=logits.device)
        right, stated = told == labels, labels > 0
        full = (batch["tokens"] != self.tokenizer.pad_token_id).all(1)
        return {
            "facts_right": right[stated].float().mean().item(),
            "captions_right": right.all(1).float().mean().item(),
            "captions_full_length": full.float().mean().item(),
        }

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/`."""
        encoder = T5EncoderModel(t5_config(self.recipe.model))
        state = {key: value for key, value in self.trained.t5.state_dict().items() if not key.startswith("decoder.")}
        encoder.load_state_dict(state)
        encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
