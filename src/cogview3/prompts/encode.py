"""Text to embeddings: T5, a fixed number of tokens, no attention mask.

As in the published release, prompts are padded to the full length and neither T5 nor the UNet is told which
tokens are padding. The unconditional branch of guidance is an all-zero embedding, not the encoding of "".
"""

import logging
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cogview3.config import UserError

logger = logging.getLogger(__name__)

MAX_TEXT_LENGTH = 4096
"""Longest believable `tokenizer.model_max_length`: a tokenizer without one reports 1e30."""


def check_prompt(name: str, prompt: str | Sequence[str]) -> list[str]:
    """A prompt or a list of prompts as a list; `name` is the argument's, for the error.

    Raises:
        UserError: neither a string nor a list of strings, an empty list, or surrogates, of which no
            text consists. Empty strings are allowed.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple):
        raise UserError(f"{name} is {type(prompt).__name__} {prompt!r}: give a string or a list of strings")
    if not prompts:
        raise UserError(f"{name} is an empty list: give at least one string")
    for text in prompts:
        if not isinstance(text, str):
            raise UserError(f"{name} holds {type(text).__name__} {text!r}: give strings only")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{name} holds {text[:60]!r}, which is not valid Unicode: read it as UTF-8")
    return list(prompts)


def text_length(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens that every prompt is padded or cut to (225 in the published models).

    Raises:
        UserError: the tokenizer has no usable `model_max_length`, or nothing to pad with.
    """
    if tokenizer.pad_token_id is None:
        raise UserError("tokenizer.pad_token is None: name one in its tokenizer_config.json, as T5 has <pad>")
    length = tokenizer.model_max_length
    if not isinstance(length, int) or not 1 < length <= MAX_TEXT_LENGTH:
        raise UserError(f"tokenizer.model_max_length is {length}: set it to the model's text length")
    return length


def left_out(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The end of the prompt that does not fit into `text_length` tokens; empty where all of it fits."""
    room = text_length(tokenizer) - tokenizer.num_special_tokens_to_add()
    tokens = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    rest = tokenizer.decode(tokens[room:], skip_special_tokens=True)
    assert isinstance(rest, str)  # a list only of a list of texts
    return rest


def warn_of_cuts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    """Report prompts that do not fit the text length, by a warning that quotes what is left out of each."""
    for prompt in dict.fromkeys(prompts):
        if rest := left_out(tokenizer, prompt):
            logger.warning("A prompt was cut to %d tokens; left out: %r", text_length(tokenizer), rest)


@torch.no_grad()
def embed_text(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    prompts: Sequence[str],
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Encode prompts; what does not fit is cut (`warn_of_cuts`).

    Args:
        tokenizer: of T5's kind, with `model_max_length` set to the text length L.
        text_encoder: a T5 encoder of width C.
        prompts: B strings, empty ones allowed.
        device: where the tokens go; the encoder's own device by default.

    Returns (B, L, C) in the encoder's dtype. Raises FloatingPointError where it overflowed, as T5 does in float16.
    """
    length = text_length(tokenizer)
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    embeddings: torch.Tensor = text_encoder(tokens.input_ids.to(device or text_encoder.device)).last_hidden_state
    if not embeddings.isfinite().all():
        raise FloatingPointError(
            f"the text encoder produced non-finite numbers in {embeddings.dtype}: load it in bfloat16 or float32"
        )
    return embeddings
