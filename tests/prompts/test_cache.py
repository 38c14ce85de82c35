"""Prompt cache: what is kept is what the encoder gave, and belongs to one encoder and number format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5EncoderModel, T5Tokenizer

from cogview3 import CogView3Pipeline
from cogview3.config import UserError
from cogview3.fingerprints import encoder_fingerprint
from cogview3.prompts.cache import PromptCache


class Encoder:
    """Gives every text numbers of its own, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.asked.append(texts)
        return torch.stack([torch.full((3, 2), float(sum(map(ord, text)))) for text in texts])


def test_only_new_prompts_are_encoded(tmp_path: Path) -> None:
    cache, encoder = PromptCache(tmp_path / "cache", "e", torch.float32), Encoder()
    assert not cache.has(["a"])
    first = cache.encode(["a", "b", "a"], encoder)
    again = PromptCache(tmp_path / "cache", "e", torch.float32)
    assert again.has(["b", "a"])
    second = again.encode(["b", "c", "a"], encoder)
    assert encoder.asked == [["a", "b"], ["c"]]
    assert [row[0, 0].item() for row in first] == [97, 98, 97]
    assert [row[0, 0].item() for row in second] == [98, 99, 97]


@pytest.mark.parametrize(("encoder", "dtype"), [("f", torch.float32), ("e", torch.bfloat16)])
def test_another_encoder_or_number_format_has_files_of_its_own(
    tmp_path: Path, encoder: str, dtype: torch.dtype
) -> None:
    PromptCache(tmp_path, "e", torch.float32).encode(["a"], Encoder())
    assert not PromptCache(tmp_path, encoder, dtype).has(["a"])


def test_a_damaged_file_is_told_with_the_mend(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, "e", torch.float32)
    cache.encode(["a"], Encoder())
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{file} is damaged .*delete it"):
        cache.encode(["a"], Encoder())


@pytest.fixture
def model(tmp_path: Path, make_tokenizer: Callable[[], T5Tokenizer], make_text_encoder: Callable[[], Any]) -> Path:
    make_tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    make_text_encoder().save_pretrained(tmp_path / "model" / "text_encoder")
    return tmp_path / "model"


def test_the_fingerprint_follows_every_file(model: Path) -> None:
    seen = [encoder_fingerprint(model)]
    assert encoder_fingerprint(model) == seen[0]
    encoder = T5EncoderModel.from_pretrained(model / "text_encoder")
    with torch.no_grad():
        encoder.encoder.block[0].layer[0].SelfAttention.q.weight[0, 0] += 1
    encoder.save_pretrained(model / "text_encoder")
    seen.append(encoder_fingerprint(model))
    configuration = model / "tokenizer" / "tokenizer_config.json"
    configuration.write_text(configuration.read_text().replace("12", "13"))
    seen.append(encoder_fingerprint(model))
    assert len(set(seen)) == 3


def test_large_files_are_sampled_from_the_beginning_to_the_end(model: Path) -> None:
    weights = model / "text_encoder" / "weights.bin"
    content = bytearray(3 * 2**20)
    seen = set()
    for place in (0, 100, len(content) - 1):
        content[place] ^= 1
        weights.write_bytes(content)
        seen.add(encoder_fingerprint(model))
    assert len(seen) == 3


def test_a_folder_without_a_text_encoder_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match=r"none holds no tokenizer"):
        encoder_fingerprint(model.parent / "none")


# In pipelines


def draw(components: dict[str, Any], cache: PromptCache | None, **changes: Any) -> torch.Tensor:
    pipe = CogView3Pipeline(**components)
    pipe.prompt_cache = cache
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "a red star", "num_inference_steps": 2, "relay_steps": 1, "output_type": "pt"}
    return pipe(**{**call, "generator": torch.Generator().manual_seed(0), **changes}).images


def test_known_prompts_are_drawn_without_a_text_encoder(components: dict[str, Any], tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, "e", torch.float32)
    expected = draw(components, None, negative_prompt="blue")
    assert torch.equal(draw(components, cache, negative_prompt="blue"), expected)
    without = {**components, "tokenizer": None, "text_encoder": None}
    assert torch.equal(draw(without, cache, negative_prompt="blue"), expected)
    with pytest.raises(UserError, match=rf"prompt cache {tmp_path} lacks a negative_prompt"):
        draw(without, cache, negative_prompt="star")


def test_cuts_are_reported_for_known_prompts_too(
    components: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PromptCache(tmp_path, "e", torch.float32)
    for _ in range(2):
        caplog.clear()
        draw(components, cache, prompt="a red star " * 9)
        assert len([record for record in caplog.records if "was cut to 12 tokens" in record.message]) == 1
