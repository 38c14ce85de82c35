"""Folders of text models as others may write them: code is not run, damage is one line."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cogview3.config import UserError
from cogview3.errors import as_user_error
from cogview3.prompts.text_models import check_folder, check_vocabulary, load_text_encoder, load_tokenizer
from cogview3.prompts.tokenizer import build_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_tokenizer(["a red ring"], 400, 16).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_sound_tokenizer_is_read_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=cut)
    load_tokenizer(folder).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text())["truncation"]["max_length"] == 5


@pytest.mark.parametrize(
    "damage",
    [
        {"model": {"type": "Unigram", "unk_id": 10**6, "vocab": [["a", 0.0]], "byte_fallback": False}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [], "byte_fallback": False}},
        {"model": {"type": "WordPiece", "vocab": {}}},
        {"model": "Unigram"},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}},
        {"added_tokens": [{"id": "one"}]},
    ],
    ids=str,
)
def test_damaged_tokenizers(damage: dict[str, Any], folder: Path) -> None:
    edit(folder / "tokenizer.json", **damage)
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "[", "[]", "1", "null", "\x00", "{" * 10_000, '{"a":' + "[" * 100_000])
def test_files_that_are_no_json_object(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"_attn_implementation": "someone/kernels"},
        {"attn_implementation": "flash_attention_2"},
        {"text_config": {"_attn_implementation": {"decoder": "someone/kernels:f"}}},
        {"_experts_implementation": "someone/kernels"},
        {"num_layers": 10**9},
        {"vision_config": {"num_hidden_layers": 10**5}},
        {"d_model": 10**30},
        {"d_model": 1e300},
        {"x": "y" * 2**22},
    ],
    ids=lambda entries: str(entries)[:60],
)
def test_configurations_that_no_network_has(entries: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "_attn_implementation": "sdpa", **entries}))
    with pytest.raises(UserError, match=r"config\.json"):
        check_folder(tmp_path)


INDICES = ["model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.fp16.json"]


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize(
    "file",
    ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "/dev/zero", "weights.bin", "config.json",
     ".safetensors", "..", "", "a\0.safetensors", None, 5, ["a.safetensors"]],
    ids=repr,
)  # fmt: skip
def test_an_index_names_safetensors_of_its_own_folder_only(name: str, file: object, tmp_path: Path) -> None:
    shards = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (tmp_path / name).write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": shards}))
    check_folder(tmp_path)
    (tmp_path / name).write_text(json.dumps({"metadata": {}, "weight_map": {**shards, "shared.weight": file}}))
    with pytest.raises(UserError, match=r"shared\.weight") as caught:
        check_folder(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "held", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "a"}, {"weight_map": None}]
)
def test_an_index_without_tensors(held: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / INDICES[0]).write_text(json.dumps({"metadata": {}, **held}))
    with pytest.raises(UserError, match=re.escape(INDICES[0])):
        check_folder(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
@pytest.mark.parametrize("name", ["model-2-of-2.safetensors", "config.json", INDICES[0]])
def test_what_is_no_file_is_not_waited_for(kind: str, name: str, tmp_path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "endless":
        (tmp_path / name).symlink_to("/dev/zero")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=re.escape(name)):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [{}, {"d_model": "64"}, {"num_heads": 0}, {"dtype": "evil"}, {"feed_forward_proj": 5}, {"dense_act_fn": "none"},
     {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
     {"quantization_config": {"quant_method": "none such"}}],
    ids=str,
)  # fmt: skip
def test_damaged_text_encoders(entries: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", **entries}))
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize("answer", ["y", ""])
def test_code_of_a_folder_is_neither_run_nor_asked_about(
    answer: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*words: object) -> str:
        raise AssertionError("asked at the terminal")

    monkeypatch.setattr("builtins.input", ask)
    (folder / "evil.py").write_text(f"open({str(folder / 'RAN')!r}, 'w')\nclass T: pass\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.T"}}))
    with pytest.raises(UserError):
        load_tokenizer(folder)
    assert not (folder / "RAN").exists()


def test_tokens_without_an_embedding_are_refused(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)

    class Model(torch.nn.Module):
        def get_input_embeddings(self) -> torch.nn.Module:
            return torch.nn.Embedding(5, 2)

    with pytest.raises(UserError, match="knows 5"):
        check_vocabulary(tokenizer, Model(), "there")


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), type("PanicException", (BaseException,), {})("x")]
)
def test_whatever_libraries_raise_is_one_line(error: BaseException) -> None:
    with pytest.raises(UserError, match="there: copy"), as_user_error("there"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_not_the_folders_fault_passes(error: type[BaseException]) -> None:
    with pytest.raises(error), as_user_error("there"):
        raise error
