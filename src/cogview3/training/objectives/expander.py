"""The small expander's objective: from a brief prompt, a comprehensive caption of a scene that fits it.

A T5 as large ones are. What the prompt leaves open is filled in as people expect it (`arranged.py`), each fact once.
Objects are told in the prompt's order, so that what the prompt says of them is nearly copied. Captions alone teach that
slowly: a third object long repeats the second, and places long ignore relations. So, as in the text encoder's training
(`text.py`), every word of the prompt that names an object must tell what is stated of it, which one it is in the
prompt's order, and how it stands to the others; and every word of the caption the same of the object that it is about.
These heads are not kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel, T5ForConditionalGeneration

from cogview3.config import ExpanderModel, ExpanderRecipe, UserError
from cogview3.data.scenes import captions
from cogview3.data.scenes.arranged import arranged
from cogview3.data.scenes.scene import BETWEEN, Facts, Scene, sample_scene
from cogview3.evaluation.written import expansion_figures
from cogview3.prompts.tokenizer import build_tokenizer, writes_text
from cogview3.references import weights_folder
from cogview3.training.objectives import Batch, start_from
from cogview3.training.objectives.language import LanguageTraining, known_tokenizer, t5_config
from cogview3.training.objectives.text import (
    MAX_OBJECTS,
    OBJECT_CLASSES,
    fact_labels,
    named_objects,
    naming_loss,
    naming_words,
)

IGNORED = -100  # label of padding
_AXES = ("left of", "right of"), ("above", "below"), (BETWEEN, "end of")


def expander_config(model: ExpanderModel, tokenizer: PreTrainedTokenizerBase) -> T5Config:
    """The text encoder's T5 at the recipe's widths, with a decoder that shares its embeddings."""
    config = t5_config(model)
    config.tie_word_embeddings = True
    config.pad_token_id = config.decoder_start_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    return config


def told_scene(scene: Scene, told: tuple[int, ...]) -> Scene:
    """The scene of the objects that a prompt tells, in its order."""
    return replace(scene, objects=tuple(scene.objects[index] for index in told))


def relation_labels(facts: Facts, places: Sequence[int]) -> list[list[list[int]]]:
    """How each object stands to the object at each place of the prompt's order, (4, 4, 3).

    Args:
        facts: the prompt's.
        places: of its objects in the prompt's order, by their number in the facts.

    Returns:
        Across, 0 for not stated, 1 left of it and 2 right of it; down, 1 above it and 2 below it; 1 between it and
        another, 2 an end that another is between. IGNORED where no object has that place, or this one.
    """
    labels = [[[IGNORED] * len(_AXES) for _ in range(MAX_OBJECTS)] for _ in range(MAX_OBJECTS)]
    for one, other in permutations(range(len(places)), 2):
        labels[one][places[other]] = [0] * len(_AXES)
    for relation in facts.relations:
        for axis, kinds in enumerate(_AXES):
            if relation.kind in kinds:
                value = 1 + kinds.index(relation.kind)
                for second in relation.objects[1:]:
                    labels[relation.first][places[second]][axis] = value
                    labels[second][places[relation.first]][axis] = 3 - value
    return labels


def relation_loss(told: Tensor, objects: Tensor, relations: Tensor) -> Tensor:
    """Cross entropy of what words tell of their object's relations, summed over relations and averaged over words.

    Args:
        told: (B, L, 36), logits.
        objects: (B, L), the object that each word is about, -1 for none.
        relations: (B, 4, 4, 3), as `relation_labels` gives them.
    """
    row, place = (objects >= 0).nonzero(as_tuple=True)
    wanted = relations[row, objects[row, place]].flatten()
    logits = told[row, place].reshape(len(wanted), 3)
    return functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum") / max(1, len(row))


class Heads(nn.Module):
    """What words tell of the object that they name or are about: its facts, its place in order, its relations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = nn.Linear(width, sum(OBJECT_CLASSES))
        self.order = nn.Linear(width, MAX_OBJECTS)
        self.relations = nn.Linear(width, MAX_OBJECTS * len(_AXES) * 3)

    def loss(self, hidden: Tensor, objects: Tensor, batch: Batch) -> Tensor:
        """The three cross entropies together; of hidden states (B, L, width) and objects (B, L), -1 for none."""
        row, place = (objects >= 0).nonzero(as_tuple=True)
        order = self.order(hidden).float()[row, place]
        ordering = functional.cross_entropy(order, batch["order"][row, objects[row, place]], reduction="sum")
        return (
            naming_loss(self.values(hidden).float(), objects, batch["labels"])
            + ordering / max(1, len(row))
            + relation_loss(self.relations(hidden).float(), objects, batch["relations"])
        )


class Expander(nn.Module):
    """T5, and the heads of words of prompts and of captions."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.t5 = T5ForConditionalGeneration(config)
        self.named, self.written = Heads(config.d_model), Heads(config.d_model)

    def forward(self, prompts: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The captions' cross entropy, and hidden states.

        Args:
            prompts: (B, L), mask: (B, L), 1 where there is a token.
            labels: (B, M), the captions, IGNORED at padding.

        Returns:
            The loss, the encoder's hidden states (B, L, width), the decoder's (B, M, width).
        """
        told = self.t5(input_ids=prompts, attention_mask=mask, labels=labels, output_hidden_states=True)
        return told.loss, told.encoder_last_hidden_state, told.decoder_hidden_states[-1]


class ExpanderTraining(LanguageTraining):
    """Train to write `captions.plain` of a scene from a brief caption of it."""

    trained: Expander

    def __init__(self, recipe: ExpanderRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        reference = recipe.recipe.start_from
        if reference:
            component = "expander" if _has_expander(reference) else "tokenizer"
            self.tokenizer = writes_text(known_tokenizer(reference, component, recipe.model))
        else:
            self.tokenizer = self._new_tokenizer()
        torch.manual_seed(recipe.train.seed)
        self.trained = Expander(expander_config(recipe.model, self.tokenizer))
        self._words = naming_words()
        if reference:
            self._start(reference)

    def _new_tokenizer(self) -> PreTrainedTokenizerBase:
        model, seed = self.recipe.model, self.recipe.train.seed + 1
        pairs = (self._sample(seed, index) for index in range(self.recipe.data.tokenizer_captions))
        texts = (f"{prompt.text} {captions.plain(scene).text}" for scene, prompt in pairs)
        return build_tokenizer(texts, model.vocab_size, model.max_length)

    def _start(self, reference: str) -> None:
        """Take over an expander's weights, else a text encoder's; then the decoder starts untrained."""
        if _has_expander(reference):
            start_from(self.trained.t5, reference, "expander")
            return
        encoder = T5EncoderModel(t5_config(self.recipe.model))
        start_from(encoder, reference, "text_encoder")
        self.trained.t5.load_state_dict(encoder.state_dict(), strict=False)

    def _sample(self, seed: int, index: int, combinations: str = "seen") -> tuple[Scene, captions.Caption]:
        """A scene in the order of its prompt, and the prompt."""
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, combinations)
        prompt = captions.brief(scene, rng)
        numbers = [sorted(prompt.told).index(index) for index in prompt.told]
        return arranged(told_scene(scene, prompt.told), prompt.facts, numbers), prompt

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Tokens of prompts and captions (B, L), the objects that they name or are about (B, L), and facts.

        Objects are numbered as in the facts: "labels" (B, 33), "order" (B, 4), each object's place in the prompt, and
        "relations" (B, 4, 4, 3).
        """
        samples = [self._sample(self.recipe.train.seed, index) for index in indices]
        prompts = self._tokens([prompt.text for _, prompt in samples])
        written = [captions.plain(scene) for scene, _ in samples]
        named, about, order, relations = [], [], [], []
        for row, caption, (_, prompt) in zip(prompts.tolist(), written, samples, strict=True):
            numbers = [sorted(prompt.told).index(index) for index in prompt.told]
            places = [numbers.index(number) for number in range(len(numbers))]
            pieces = list(self.tokenizer.convert_ids_to_tokens(row))
            named.append(named_objects(pieces, prompt.facts, self._words, places))
            about.append([numbers[place] if place >= 0 else -1 for place in self._places(caption)])
            order.append(places + [IGNORED] * (MAX_OBJECTS - len(places)))
            relations.append(relation_labels(prompt.facts, places))
        return {
            "prompts": prompts,
            "captions": self._tokens([caption.text for caption in written]),
            "named": torch.tensor(named),
            "about": torch.tensor(about),
            "labels": torch.tensor([fact_labels(prompt.facts)[0] for _, prompt in samples]),
            "order": torch.tensor(order),
            "relations": torch.tensor(relations),
        }

    def _places(self, caption: captions.Caption) -> list[int]:
        """For each token of a plain caption which of the objects that it tells, in order, it is about; -1 for none."""
        length = self.recipe.model.max_length
        encoded = self.tokenizer(caption.text, max_length=length, truncation=True, return_offsets_mapping=True)
        places = [
            next((place for place, (start, end) in enumerate(caption.spans) if begin < end and start < stop), -1)
            for begin, stop in encoded.offset_mapping
        ]
        return places + [-1] * (length - len(places))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the captions' tokens, and of what words tell of their objects."""
        prompts, wanted = (self._cut(batch[name]) for name in ("prompts", "captions"))
        pad = self.tokenizer.pad_token_id
        labels = wanted.masked_fill(wanted == pad, IGNORED)
        caption, read, written = self.trained(prompts, (prompts != pad).long(), labels)
        naming = self.trained.named.loss(read, batch["named"][:, : prompts.shape[1]], batch)
        writing = self.trained.written.loss(written, batch["about"][:, : wanted.shape[1]], batch)
        return {"loss": caption + naming + writing, "caption": caption, "naming": naming, "writing": writing}

    def _cut(self, tokens: Tensor) -> Tensor:
        """Without the columns that are padding in every row."""
        return tokens[:, : int((tokens != self.tokenizer.pad_token_id).any(0).sum())]

    @torch.no_grad()
    def write(self, prompts: list[str], chunk: int = 128) -> list[str]:
        """Greedy expansions."""
        written: list[str] = []
        for start in range(0, len(prompts), chunk):
            tokens = self._cut(self._tokens(prompts[start : start + chunk])).to(self.trained.t5.device)
            mask = (tokens != self.tokenizer.pad_token_id).long()
            writer: Any = self.trained.t5
            told = writer.generate(
                input_ids=tokens, attention_mask=mask, max_new_tokens=self.recipe.model.max_length, do_sample=False
            )
            written += self.tokenizer.batch_decode(told, skip_special_tokens=True)
        return written

    def validate(self) -> dict[str, float]:
        """How faithful greedy expansions are, on prompts of `validate.seed`; every second a held-out combination."""
        settings = self.recipe.validate_
        kinds = [("seen", "held-out")[index % 2] for index in range(settings.images)]
        prompts = [self._sample(settings.seed, index, kind)[1] for index, kind in enumerate(kinds)]
        written = self.write([prompt.text for prompt in prompts])
        figures = expansion_figures([prompt.facts for prompt in prompts], written)
        for offset, name in enumerate(("seen", "held_out")):
            if part := prompts[offset::2]:
                figures[name] = expansion_figures([p.facts for p in part], written[offset::2])["prompts_kept"]
        return figures

    def save(self, folder: Path) -> None:
        """Write `expander/`: a folder of transformers, with model and tokenizer."""
        self.trained.t5.generation_config.max_new_tokens = self.recipe.model.max_length
        self.trained.t5.save_pretrained(folder / "expander")
        self.tokenizer.save_pretrained(folder / "expander")


def _has_expander(reference: str) -> bool:
    try:
        weights_folder(reference, "expander")
    except UserError:
        return False
    return True
