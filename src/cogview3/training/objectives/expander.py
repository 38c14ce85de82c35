"""The small expander's objective: from a brief prompt, a comprehensive caption of a scene that fits it.

A T5 as large ones are. What the prompt leaves open is filled in as random scenes have it, each fact once. Objects are
told in the prompt's order, so that what the prompt says of them is nearly copied.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from cogview3 import checkpoints
from cogview3.config import ExpanderModel, ExpanderRecipe, UserError
from cogview3.data.scenes import captions
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.evaluation.written import expansion_figures
from cogview3.prompts.tokenizer import build_tokenizer, vocabulary_hash, writes_text
from cogview3.training.objectives import Batch, Objective, start_from
from cogview3.training.objectives.text import t5_config

IGNORED = -100  # label of padding


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


class ExpanderTraining(Objective):
    """Train to write `captions.plain` of a scene from a brief caption of it."""

    def __init__(self, recipe: ExpanderRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        reference = recipe.recipe.start_from
        self.tokenizer = self._known_tokenizer(reference) if reference else self._new_tokenizer()
        torch.manual_seed(recipe.train.seed)
        self.trained = T5ForConditionalGeneration(expander_config(recipe.model, self.tokenizer))
        if reference:
            self._start(reference)

    def _new_tokenizer(self) -> PreTrainedTokenizerBase:
        model, seed = self.recipe.model, self.recipe.train.seed + 1
        pairs = (self._sample(seed, index) for index in range(self.recipe.data.tokenizer_captions))
        texts = (f"{prompt.text} {captions.plain(scene).text}" for scene, prompt in pairs)
        return build_tokenizer(texts, model.vocab_size, model.max_length)

    def _known_tokenizer(self, reference: str) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(checkpoints.weights_folder(reference, "tokenizer"))
        if tokenizer.model_max_length != self.recipe.model.max_length:
            raise UserError(
                f"recipe.start_from {reference!r} reads {tokenizer.model_max_length} tokens; "
                f"set model.max_length to that, not to {self.recipe.model.max_length}"
            )
        return writes_text(tokenizer)

    def _start(self, reference: str) -> None:
        """Take over a text encoder's weights; the decoder begins anew."""
        encoder = T5EncoderModel(t5_config(self.recipe.model))
        start_from(encoder, reference, "text_encoder")
        self.trained.load_state_dict(encoder.state_dict(), strict=False)

    def prepare(self, device: str) -> None:
        """On CPUs the fused attention's backward pass is slow for heads as small as these; write it out there."""
        if torch.device(device).type == "cpu":
            self.trained.set_attn_implementation("eager")

    def fingerprint(self) -> str:
        """Hash of the vocabulary, whose order follows from the captions' wording."""
        return vocabulary_hash(self.tokenizer)

    def _sample(self, seed: int, index: int, triples: str = "seen") -> tuple[Scene, captions.Caption]:
        """A scene in the order of its prompt, and the prompt."""
        rng = np.random.default_rng([seed, index])
        scene = sample_scene(rng, triples)
        prompt = captions.brief(scene, rng)
        return told_scene(scene, prompt.told), prompt

    def _tokens(self, texts: list[str]) -> Tensor:
        length = self.recipe.model.max_length
        return self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    def batch(self, first: int, indices: list[int]) -> Batch:
        """Tokens of prompts and of captions, (B, L) each, padded."""
        samples = [self._sample(self.recipe.train.seed, index) for index in indices]
        prompts, wanted = [prompt.text for _, prompt in samples], [captions.plain(scene).text for scene, _ in samples]
        return {"prompts": self._tokens(prompts), "captions": self._tokens(wanted)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the captions' tokens."""
        prompts, wanted = (self._cut(batch[name]) for name in ("prompts", "captions"))
        pad = self.tokenizer.pad_token_id
        labels = wanted.masked_fill(wanted == pad, IGNORED)
        return {"loss": self.trained(input_ids=prompts, attention_mask=(prompts != pad).long(), labels=labels).loss}

    def _cut(self, tokens: Tensor) -> Tensor:
        """Without the columns that are padding in every row."""
        return tokens[:, : int((tokens != self.tokenizer.pad_token_id).any(0).sum())]

    @torch.no_grad()
    def write(self, prompts: list[str], chunk: int = 128) -> list[str]:
        """Greedy expansions."""
        written: list[str] = []
        for start in range(0, len(prompts), chunk):
            tokens = self._cut(self._tokens(prompts[start : start + chunk])).to(self.trained.device)
            mask = (tokens != self.tokenizer.pad_token_id).long()
            told = self.trained.generate(
                input_ids=tokens, attention_mask=mask, max_new_tokens=self.recipe.model.max_length, do_sample=False
            )
            written += self.tokenizer.batch_decode(told, skip_special_tokens=True)
        return written

    def validate(self) -> dict[str, float]:
        """How faithful greedy expansions are, on prompts of `validate.seed`; every second with a held-out triple."""
        settings = self.recipe.validate_
        kinds = [("seen", "held-out")[index % 2] for index in range(settings.images)]
        prompts = [self._sample(settings.seed, index, kind)[1] for index, kind in enumerate(kinds)]
        written = self.write([prompt.text for prompt in prompts])
        figures = expansion_figures([prompt.facts for prompt in prompts], written)
        for offset, name in enumerate(("seen", "held_out")):
            if part := prompts[offset::2]:
                figures[name] = expansion_figures([p.facts for p in part], written[offset::2])["prompts_kept"]
        return figures

    def samples(self) -> None:
        """Nothing to see."""

    def save(self, folder: Path) -> None:
        """Write `expander/`: a folder of transformers, with model and tokenizer."""
        self.trained.generation_config.max_new_tokens = self.recipe.model.max_length
        self.trained.save_pretrained(folder / "expander")
        self.tokenizer.save_pretrained(folder / "expander")
