"""The tokenizer of our own: known words are one token, nothing is lost, and transformers loads it back."""

import json
import math
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cogview3.config import UserError
from cogview3.prompts.tokenizer import build_tokenizer

TEXTS = ["A large red star, left of a blue ring.", "a small red star on a white ground", "a red ring"]
KNOWN = ("a", "large", "red", "star", "left", "of", "blue", "ring", "small", "on", "white", "ground")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(TEXTS, vocab_size=512, max_length=12)


def test_each_known_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("a large red star") == ["▁a", "▁large", "▁red", "▁star"]
    assert all(len(tokenizer.tokenize(word)) == 1 for word in KNOWN)
    assert tokenizer.tokenize("Red STAR,") == ["▁red", "▁star", "▁,"]


def test_special_tokens_are_those_of_t5(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    ids = tokenizer("red star", padding="max_length").input_ids
    assert ids[2:] == [1] + [0] * 9
    assert tokenizer("").input_ids == [1]


@pytest.mark.parametrize("text", ["crimson", "x7", "größe", "日本", "🙂", "naïve café", "a\N{COMBINING RING ABOVE}"])
def test_what_is_unknown_survives_as_characters_and_bytes(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    composed = {"a\N{COMBINING RING ABOVE}": "å"}.get(text, text)
    assert tokenizer.decode(ids) == composed


def test_a_long_prompt_is_cut_and_keeps_its_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("red " * 50, truncation=True).input_ids
    assert len(ids) == tokenizer.model_max_length == 12
    assert ids[-1] == tokenizer.eos_token_id
    assert len(set(ids[:-1])) == 1


def test_words_are_scored_by_frequency_and_the_rarest_left_out() -> None:
    texts = ["red " * 6 + "blue " * 3 + "green"]
    room = build_tokenizer(texts, vocab_size=3 + 37 + 256 + 2, max_length=8)
    assert room.tokenize("red blue") == ["▁red", "▁blue"]
    assert room.tokenize("green") == ["▁", *"green"]
    scores = dict(json.loads(room.backend_tokenizer.to_str())["model"]["vocab"])
    assert scores["▁red"] == pytest.approx(math.log(6 / 10))
    assert scores["▁blue"] == pytest.approx(math.log(3 / 10))


def test_the_vocabulary_depends_on_counts_alone() -> None:
    one = build_tokenizer(TEXTS, 310, 8).get_vocab()
    other = build_tokenizer(TEXTS[::-1], 310, 8).get_vocab()
    assert one == other
    assert sorted(one.values()) == list(range(len(one)))
    assert len(one) <= 310


def test_a_vocabulary_without_room_for_words_is_refused() -> None:
    with pytest.raises(UserError, match="a vocabulary of 296 has no room for words; give more than 296"):
        build_tokenizer(TEXTS, 296, 8)


def test_saved_and_loaded_it_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "crimson 日本", ""]
    options = {"padding": "max_length", "truncation": True}
    assert loaded(texts, **options).input_ids == tokenizer(texts, **options).input_ids
    assert loaded.model_max_length == 12
    assert loaded.decode(loaded("größe").input_ids, skip_special_tokens=True) == "größe"
