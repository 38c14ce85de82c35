"""Seeded mutants of tokenizers, configurations, indices, weights, recipes and run files: a UserError each, or use."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from cogview3 import CogView3Pipeline, checkpoints
from cogview3.config import UserError, load_recipe
from cogview3.prompts.encode import embed_text
from cogview3.prompts.text_models import check_vocabulary, load_network, load_text_encoder, load_tokenizer
from cogview3.prompts.tokenizer import build_tokenizer
from tests.hostile import json_mutant, mutant, within


def use_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer("a red ring, and three more", truncation=True, max_length=12)


def use_text_encoder(folder: Path) -> None:
    encoder = load_text_encoder(folder)
    if encoder.config.vocab_size > 300:
        embed_text(load_tokenizer(folder.parent / "tokenizer"), encoder, ["a red ring"])


def use_vae(folder: Path) -> None:
    load_network(AutoencoderKL, folder)


def use_unet(folder: Path) -> None:
    load_network(UNet2DConditionModel, folder)


def use_pipeline(folder: Path) -> None:
    CogView3Pipeline.from_pretrained(folder)


def use_recipe(folder: Path) -> None:
    load_recipe(str(folder / "r.toml"))


def use_run(folder: Path) -> None:
    recipe = load_recipe("scenes/vae").to_dict()
    checkpoints.read_state(folder)
    checkpoints.check_run(folder, recipe)
    checkpoints.length_of(folder)


@pytest.fixture
def sound(
    tmp_path: Path,
    make_vae: Callable[..., AutoencoderKL],
    make_unet: Callable[..., UNet2DConditionModel],
    make_text_encoder: Callable[[], torch.nn.Module],
    components: dict[str, Any],
) -> dict[str, Callable[[Path], None]]:
    """Folders that are sound, and how each is used."""
    tokenizer = build_tokenizer(["a red ring", "a blue star"], 400, 16)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    make_text_encoder().save_pretrained(tmp_path / "text_encoder")
    make_vae().save_pretrained(tmp_path / "vae")
    make_unet().save_pretrained(tmp_path / "unet")
    CogView3Pipeline(**components).save_pretrained(tmp_path / "pipeline")
    recipe = load_recipe("scenes/vae")
    for name, file in (("recipe", "r.toml"), ("run", "recipe.toml")):
        (tmp_path / name).mkdir()
        with checkpoints.open_run(tmp_path / name, recipe.to_dict()):
            pass
        (tmp_path / name / "recipe.toml").rename(tmp_path / name / file)
    (tmp_path / "run" / "state.json").write_text('{"images": 3, "log": {"count": 1, "sums": {"loss": 0.5}}}')
    return {
        "tokenizer": use_tokenizer,
        "text_encoder": use_text_encoder,
        "vae": use_vae,
        "unet": use_unet,
        "pipeline": use_pipeline,
        "recipe": use_recipe,
        "run": use_run,
    }


def damage(path: Path, content: bytes, rng: random.Random) -> bytes:
    if path.suffix == ".json":
        return json_mutant(content, rng)
    if path.suffix == ".safetensors" and rng.random() < 0.7:
        length = int.from_bytes(content[:8], "little")
        header = json_mutant(content[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    return mutant(content, rng)


@pytest.mark.parametrize("count", [84, pytest.param(900, marks=pytest.mark.slow)])
def test_mutants_of_what_models_and_runs_are_read_from(
    sound: dict[str, Callable[[Path], None]], tmp_path: Path, count: int
) -> None:
    rng, kinds, refused = random.Random(count), list(sound), 0
    with within(120 + count):
        for number in range(count):
            kind = kinds[number % len(kinds)]
            path = rng.choice(sorted(path for path in (tmp_path / kind).rglob("*") if path.is_file()))
            content = path.read_bytes()
            path.write_bytes(damage(path, content, rng))
            try:
                sound[kind](tmp_path / kind)
            except (UserError, FloatingPointError):
                refused += 1
            finally:
                path.write_bytes(content)
    assert count / 4 < refused < count


def test_what_the_fuzzer_starts_from_is_sound(sound: dict[str, Callable[[Path], None]], tmp_path: Path) -> None:
    for kind, use in sound.items():
        use(tmp_path / kind)


def padding(strategy: Any, multiple: int | None = None) -> dict[str, Any]:
    names = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    return {"padding": {"strategy": strategy, "pad_to_multiple_of": multiple, **names}}


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}


@pytest.mark.parametrize(
    "entries",
    [
        padding({"Fixed": 10**12}),
        padding("BatchLongest", 10**12),
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 40}},
        {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 40}},
    ],
    ids=["padding", "multiple", "normalizer", "decoder"],
)
def test_tokenizers_that_would_fill_the_memory(sound: object, tmp_path: Path, entries: dict[str, Any]) -> None:
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer")


@pytest.mark.parametrize("kind", ["vae", "unet"])
def test_networks_that_lack_tensors_are_refused(
    sound: dict[str, Callable[[Path], None]], tmp_path: Path, kind: str
) -> None:
    (path,) = (tmp_path / kind).glob("*.safetensors")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=f"{tmp_path / kind}.*tensors are missing"):
        sound[kind](tmp_path / kind)


@pytest.mark.parametrize(
    ("part", "entries"),
    [
        ("unet", {"mid_block_type": None}),
        ("vae", {"use_quant_conv": False}),
        ("text_encoder", {"num_layers": 1}),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_configurations_with_no_place_for_some_weights_are_refused(
    sound: dict[str, Callable[[Path], None]], tmp_path: Path, part: str, entries: dict[str, Any], whole: bool
) -> None:
    folder = tmp_path / "pipeline" / part if whole else tmp_path / part
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(UserError, match=rf"{folder}.*config\.json has no place for"):
        sound["pipeline" if whole else part](tmp_path / ("pipeline" if whole else part))


def test_more_labels_than_memory_holds_are_refused(sound: object, tmp_path: Path) -> None:
    path = tmp_path / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_labels": 10**9}))
    with pytest.raises(UserError, match=rf"{path}: num_labels 1000000000"):
        use_text_encoder(tmp_path / "text_encoder")


@pytest.mark.parametrize(
    "entries",
    [
        {"model": {"type": "BPE", "vocab": {}, "merges": []}},
        {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
    ],
    ids=["vocabulary", "template"],
)
def test_tokenizers_without_a_token_for_any_text_are_refused(
    sound: object, tmp_path: Path, entries: dict[str, Any]
) -> None:
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(UserError, match=rf"{tmp_path / 'tokenizer'}.*no token for anything"):
        load_tokenizer(tmp_path / "tokenizer")


def test_tokens_that_only_a_template_names_are_checked_too(sound: object, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer" / "tokenizer.json"
    ends = {"type": "RobertaProcessing", "sep": ["a", 10**6], "cls": ["b", 10**6]}
    ends |= {"trim_offsets": True, "add_prefix_space": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": ends}))
    encoder = load_text_encoder(tmp_path / "text_encoder")
    with pytest.raises(UserError, match="up to number 1000000"):
        check_vocabulary(load_tokenizer(tmp_path / "tokenizer"), encoder, "here")
