"""The text encoder's objective on captions and your own pictures: no facts of scenes are needed.

Three losses: of hidden words, told from the rest of the caption (Devlin et al. 2019, arXiv 1810.04805); of which
picture of the batch a caption belongs to (Radford et al. 2021, arXiv 2103.00020); and of which is a picture's caption,
it or the same with two words swapped (after Yuksekgonul et al. 2023, arXiv 2210.01936). The first teaches what words go
together, the second what they look like, the third that their order counts: without it, "a cat left of a dog" need not
differ from "a dog left of a cat". Only the encoder is kept.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogview3.config import PairObjective, TextModel, TextRecipe, TextShardData, UserError
from cogview3.data import buckets
from cogview3.data.recipe_readers import caption_reader
from cogview3.prompts.text_models import load_text_encoder, load_tokenizer
from cogview3.prompts.tokenizer import build_tokenizer
from cogview3.references import weights_folder
from cogview3.training.objectives import Batch, SourcedTraining, weighted
from cogview3.training.objectives.language import LanguageTraining, t5_config
from cogview3.training.sources.shards import PictureSource

_WIDTHS = (32, 64, 96, 128)  # of the pictures' network, each level at half the size of the one before


class PairReader(nn.Module):
    """T5 encoder, with what reads its output in training alone.

    Attributes:
        t5: the encoder.
        words: from the output at a word to logits of the vocabulary.
        texts, pictures: into the space where captions and pictures are compared.
    """

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.t5 = T5EncoderModel(t5_config(model))
        self.words = nn.Linear(model.d_model, model.vocab_size)
        self.texts = nn.Linear(model.d_model, _WIDTHS[-1])
        levels: list[nn.Module] = []
        for given, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            levels += [nn.Conv2d(given, width, 4, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        self.pictures = nn.Sequential(*levels, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, _WIDTHS[-1]))

    def encode(self, tokens: Tensor) -> Tensor:
        """The encoder's output (B, L, C) of tokens (B, L), padding read along as in drawing."""
        output: Tensor = self.t5(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        return output

    def read(self, tokens: Tensor, padding: int) -> Tensor:
        """Captions (B, L) in the space where both are compared: unit vectors (B, D)."""
        kept = (tokens != padding).unsqueeze(-1).float()
        return functional.normalize(self.texts((self.encode(tokens).float() * kept).sum(1) / kept.sum(1)), dim=1)

    def look(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, H) in that space: unit vectors (B, D)."""
        return functional.normalize(self.pictures(pictures).float(), dim=1)


def swap(tokens: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Tokens (L,) with two of the first `count` swapped, drawn by lot; as they are where there is one at most."""
    swapped = tokens.clone()
    if count > 1:
        one, other = rng.choice(count, 2, replace=False).tolist()
        swapped[one], swapped[other] = tokens[other], tokens[one]
    return swapped


@torch.no_grad()
def take_over(encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerBase, reference: str) -> None:
    """Start from the weights of another encoder, which has other words.

    Words that both know keep their embedding; a new one starts as the mean of the pieces in which the other reads it.

    Raises:
        UserError: `reference` has no encoder, or one of other widths.
    """
    start = load_text_encoder(weights_folder(reference, "text_encoder"))
    known = load_tokenizer(weights_folder(reference, "tokenizer"))
    state, words = start.state_dict(), known.get_vocab()
    table, embeddings = start.get_input_embeddings().weight, encoder.get_input_embeddings().weight.clone()
    if table.shape[1] == embeddings.shape[1]:
        for word, number in tokenizer.get_vocab().items():
            own = [words[word]] if word in words else known(word.lstrip("▁"), add_special_tokens=False).input_ids
            if own:
                embeddings[number] = table[own].mean(0)
        state |= {name: embeddings for name in ("shared.weight", "encoder.embed_tokens.weight") if name in state}
    try:
        encoder.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"recipe.start_from {reference!r} has other shapes than [model]; make them equal") from None


class PairTraining(SourcedTraining, LanguageTraining):
    """Train a text encoder on captions with pictures out of shards, its tokenizer made of the captions."""

    trained: PairReader
    source: PictureSource

    def __init__(self, recipe: TextRecipe) -> None:
        super().__init__()
        self.recipe, self.weights = recipe, recipe.objective or PairObjective()
        self.source = PictureSource(recipe)
        torch.manual_seed(recipe.train.seed)
        self.trained = PairReader(recipe.model)
        self.tokenizer = self._new_tokenizer()
        if start := recipe.recipe.start_from:
            take_over(self.trained.t5, self.tokenizer, start)

    def _new_tokenizer(self) -> PreTrainedTokenizerBase:
        model, data = self.recipe.model, self.recipe.data
        assert isinstance(data, TextShardData)
        texts = caption_reader(data, self.recipe.train.seed + 1, data.tokenizer_captions)
        return build_tokenizer(texts, model.vocab_size, model.max_length)

    def batch(self, first: int, indices: list[int]) -> Batch:
        """As `_batch`, of the next pictures."""
        taken = self.source.pictures(len(indices))
        self._name(first, indices, taken.keys)
        return self._batch(taken, self.recipe.train.seed)

    def _batch(self, taken: buckets.Batch, seed: int) -> Batch:
        """Tokens, which are to be hidden, tokens with two swapped (B, L); pictures (B, 3, H, H) in [-1, 1]."""
        tokens = self._tokens(taken.captions)
        indices = taken.indices.tolist()
        chances = np.stack([np.random.default_rng([seed, index, 2]).random(tokens.shape[1]) for index in indices])
        words = (tokens != self.tokenizer.pad_token_id) & (tokens != self.tokenizer.eos_token_id)
        hidden = words & torch.from_numpy(chances < self.weights.masked_share)
        swapped = torch.stack(
            [
                swap(line, int(count), np.random.default_rng([seed, index, 3]))
                for line, count, index in zip(tokens, words.sum(1), indices, strict=True)
            ]
        )
        assert taken.images is not None, "captions are compared with pictures, not latents"
        pictures = taken.images.float() / 127.5 - 1
        return {"tokens": tokens, "hidden": hidden, "swapped": swapped, "pictures": pictures}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, weighted; one whose weight is 0 is not computed."""
        losses: dict[str, Tensor] = {}
        if self.weights.masked:
            losses["masked"] = functional.cross_entropy(*self._guessed(batch), reduction="sum")
            losses["masked"] = losses["masked"] / batch["hidden"].sum().clamp(min=1)
        if self.weights.contrastive or self.weights.swapped:
            texts = self.trained.read(batch["tokens"], self.tokenizer.pad_token_id)
            seen = self.trained.look(batch["pictures"])
        if self.weights.contrastive:
            losses["contrastive"] = self._contrast(batch["tokens"], texts, seen)
        if self.weights.swapped:
            losses["swapped"] = self._order(batch, texts, seen)
        return {"loss": weighted(losses, self.weights), **losses}

    def _guessed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the hidden words (N, V), and the words themselves (N,)."""
        hidden, tokens = batch["hidden"], batch["tokens"]
        encoded = self.trained.encode(tokens.masked_fill(hidden, self.tokenizer.unk_token_id))
        return self.trained.words(encoded[hidden]).float(), tokens[hidden]

    def _contrast(self, tokens: Tensor, texts: Tensor, seen: Tensor) -> Tensor:
        """Mean cross entropy of both directions; equal captions share their pictures."""
        logits = texts @ seen.T / self.weights.temperature
        same = (tokens[:, None] == tokens[None]).all(2).float()
        targets = same / same.sum(1, keepdim=True)
        return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2

    def _order(self, batch: Batch, texts: Tensor, seen: Tensor) -> Tensor:
        """Mean cross entropy of choosing each picture's caption, not the swapped one; alike ones count nothing."""
        swapped = self.trained.read(batch["swapped"], self.tokenizer.pad_token_id)
        right, wrong = ((each * seen).sum(1) for each in (texts, swapped))
        differ = (batch["tokens"] != batch["swapped"]).any(1).float()
        losses = functional.softplus((wrong - right) / self.weights.temperature)
        return (losses * differ).sum() / differ.sum().clamp(min=1)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures on fixed pictures.

        Shares of hidden words told right, of captions that find their picture among all, and of captions that fill the
        length or do not fit it.
        """
        batch = self._batch(self.source.fixed_pictures, self.recipe.validate_.seed)
        batch = {name: value.to(self.trained.words.weight.device) for name, value in batch.items()}
        tokens, padding = batch["tokens"], self.tokenizer.pad_token_id
        logits, words = self._guessed(batch)
        found = (self.trained.read(tokens, padding) @ self.trained.look(batch["pictures"]).T).argmax(1)
        figures = {
            "words_right": (logits.argmax(1) == words).float().mean().item() if len(words) else 0.0,
            "pictures_found": (tokens[found] == tokens).all(1).float().mean().item(),
            "captions_full_length": (tokens != padding).all(1).float().mean().item(),
        }
        return figures | self.source.figures()

    def save(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/`."""
        self.trained.t5.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
