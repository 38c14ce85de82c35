"""What objectives of text models share: their own tokenizer, attention that is fast on CPUs, no sample pictures."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Config
from typing_extensions import override

from cogview3.config import TextModel, UserError
from cogview3.prompts.text_models import load_tokenizer
from cogview3.prompts.tokenizer import vocabulary_hash
from cogview3.references import weights_folder
from cogview3.training.objectives import Objective


class LanguageTraining(Objective):
    """Base of such objectives. Subclasses set `recipe`, `trained` and `tokenizer`."""

    recipe: Any
    tokenizer: PreTrainedTokenizerBase

    def prepare(self, device: str) -> None:
        """On CPUs the fused attention's backward pass is slow for heads as small as these; write it out there."""
        if torch.device(device).type == "cpu":
            network = next(part for part in self.trained.modules() if isinstance(part, PreTrainedModel))
            network.set_attn_implementation("eager")

    def fingerprint(self) -> str:
        """Hash of the vocabulary, whose order follows from the captions' wording."""
        return vocabulary_hash(self.tokenizer)

    def _tokens(self, texts: list[str]) -> Tensor:
        """Tokens of texts, padded or cut to `model.max_length`, (B, L)."""
        length = self.recipe.model.max_length
        tokens: Tensor = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return tokens

    @override
    def samples(self) -> None:
        return


def t5_config(model: TextModel) -> T5Config:
    """T5 v1.1's block (gated GELU) at the recipe's widths, without dropout."""
    sizes = model.model_dump(exclude={"max_length"})
    return T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0)


def known_tokenizer(reference: str, component: str, model: TextModel) -> PreTrainedTokenizerBase:
    """The tokenizer of `recipe.start_from`. Raises UserError where it has none, or one for another text length."""
    tokenizer = load_tokenizer(weights_folder(reference, component))
    if tokenizer.model_max_length != model.max_length:
        raise UserError(
            f"recipe.start_from {reference!r} reads {tokenizer.model_max_length} tokens; "
            f"set model.max_length to that, not to {model.max_length}"
        )
    return tokenizer
