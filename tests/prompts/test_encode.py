"""Prompts to embeddings: fixed length, no mask, truncation reported."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import T5EncoderModel, T5Tokenizer

from cogview3.config import UserError
from cogview3.prompts.encode import check_prompt, embed_text, left_out, text_length, warn_of_cuts


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., T5Tokenizer]) -> T5Tokenizer:
    """Text length 12."""
    return make_tokenizer()


@pytest.fixture
def encoder(make_text_encoder: Callable[[], T5EncoderModel]) -> T5EncoderModel:
    """16 wide."""
    return make_text_encoder()


def test_every_prompt_is_padded_without_a_mask(tokenizer: T5Tokenizer, encoder: T5EncoderModel) -> None:
    """Padding is part of what T5 reads: the embedding is that of the padded tokens with nothing masked."""
    found = embed_text(tokenizer, encoder, ["a red star", ""])
    ids = tokenizer("a red star").input_ids
    padded = torch.tensor([ids + [0] * (12 - len(ids)), [1] + [0] * 11])
    everything = torch.ones(2, 12, dtype=torch.long)
    with torch.no_grad():
        expected = encoder(padded, attention_mask=everything).last_hidden_state
        masked = encoder(padded, attention_mask=(padded != 0).long()).last_hidden_state
    assert found.shape == (2, 12, 16)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, masked)


def test_a_batch_is_its_prompts(tokenizer: T5Tokenizer, encoder: T5EncoderModel) -> None:
    prompts = ["a red star", "blue circle left of a star"]
    batch = embed_text(tokenizer, encoder, prompts, device="cpu")
    singles = torch.cat([embed_text(tokenizer, encoder, [prompt]) for prompt in prompts])
    torch.testing.assert_close(batch, singles, rtol=1e-4, atol=1e-5)  # float32, other batch size


def test_truncation_is_reported_and_quotes_what_was_cut(
    tokenizer: T5Tokenizer, encoder: T5EncoderModel, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a red star left of a blue circle left of a red star"  # 13 words, a token each, and room for 11
    with caplog.at_level(logging.WARNING):
        warn_of_cuts(tokenizer, [long, "star", long])
    assert [record.getMessage() for record in caplog.records] == ["A prompt was cut to 12 tokens; left out: 'red star'"]
    found, kept = (
        embed_text(tokenizer, encoder, [text]) for text in (long, "a red star left of a blue circle left of a")
    )
    torch.testing.assert_close(found, kept, rtol=1e-4, atol=1e-5)


def test_what_fits_is_not_reported(
    tokenizer: T5Tokenizer, encoder: T5EncoderModel, caplog: pytest.LogCaptureFixture
) -> None:
    fitting = "a red star left of a blue circle left of a"
    assert left_out(tokenizer, fitting) == ""
    assert left_out(tokenizer, fitting + " star") == "star"
    with caplog.at_level(logging.WARNING):
        warn_of_cuts(tokenizer, [fitting, ""])
    assert not caplog.records


def test_enormous_prompts_are_cut(tokenizer: T5Tokenizer, encoder: T5EncoderModel) -> None:
    assert embed_text(tokenizer, encoder, ["a red star " * 20_000]).shape == (1, 12, 16)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "prompt is NoneType None: give a string or a list of strings"),
        (b"star", "prompt is bytes b'star'"),
        ({"star"}, "prompt is set"),
        ([], "prompt is an empty list: give at least one string"),
        (["star", 3], "prompt holds int 3: give strings only"),
    ],
)
def test_wrong_prompts_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_prompt("prompt", prompt)


def test_prompts_become_lists() -> None:
    assert check_prompt("prompt", "star") == ["star"]
    assert check_prompt("prompt", ("star", "")) == ["star", ""]


@pytest.mark.parametrize("length", [int(1e30), 1, 0])
def test_tokenizers_without_a_length_are_refused(make_tokenizer: Callable[..., T5Tokenizer], length: int) -> None:
    with pytest.raises(UserError, match=f"model_max_length is {length}: set it to the model's text length"):
        text_length(make_tokenizer(length))


def test_tokenizers_without_padding_are_refused(make_tokenizer: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make_tokenizer(12)
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="pad_token is None"):
        text_length(tokenizer)


def test_overflow_is_an_error(tokenizer: T5Tokenizer, encoder: T5EncoderModel) -> None:
    encoder.encoder.final_layer_norm.weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"text encoder .* in torch.float32: load it in bfloat16"):
        embed_text(tokenizer, encoder, ["star"])
