"""GenEval's Mask2Former and VQAScore's LLaVA: the published classes, tiny and random, against other computations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from cogview3.evaluation.evaluate import evaluate
from cogview3.evaluation.metrics import Setting
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers import geneval
from cogview3.evaluation.scorers.geneval import GenEval
from cogview3.evaluation.scorers.vqa import QUESTION, VqaScore
from cogview3.evaluation.scorers.weights import Weights
from tests.evaluation.networks import write_clip

CLASSES = {0: "dog", 1: "tvmonitor", 2: "cat"}


@pytest.fixture
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((384, 384))


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """A Mask2Former on a Swin of a few numbers, and CLIP."""
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=[f"stage{n}" for n in range(1, 5)],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        id2label=CLASSES,
    )
    network = Mask2FormerForUniversalSegmentation(config)
    torch.nn.init.normal_(network.class_predictor.weight, std=0.5)
    network.save_pretrained(tmp_path / "mask2former")
    write_clip(tmp_path / "clip")
    return Weights({"mask2former": str(tmp_path / "mask2former"), "clip-l14": str(tmp_path / "clip")})


def test_things_are_those_of_transformers(
    weights: Weights, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own picture processor, before and after the network; at 384 x 384, where that one judges masks."""
    monkeypatch.setattr(geneval, "SHORTEST", 64)
    scorer = GenEval.load(weights)
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 1333}, size_divisor=32)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(geneval._pixels(picture), pixels, rtol=1e-4, atol=0.01)  # theirs rounds to 8 bits
    with torch.no_grad():
        out = scorer.detector(pixel_values=geneval._pixels(picture))
    (expected,) = processor.post_process_instance_segmentation(
        out, threshold=0.0, overlap_mask_area_threshold=0.0, target_sizes=[(384, 384)], return_binary_maps=True
    )
    found = scorer.detect(picture)
    names = {number: {"tvmonitor": "tv"}.get(name, name) for number, name in CLASSES.items()}
    theirs = sorted((names[each["label_id"]], each["score"]) for each in expected["segments_info"])
    ours = sorted((name, each.confidence) for name, things in found.items() for each in things)
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], rel=1e-4, abs=5e-7)
    assert [score for _, score in ours] == pytest.approx(double(out, names), rel=1e-5)
    assert sum(each.mask.sum() for things in found.values() for each in things) == sum(
        int(mask.sum()) for mask in expected["segmentation"]
    )


def double(out: Any, names: dict[int, str]) -> list[float]:
    """Confidences at 384 x 384 in float64, where theirs are rounded to 6 decimals, in the order of names and values."""
    masks = torch.nn.functional.interpolate(out.masks_queries_logits.double(), (384, 384), mode="bilinear")[0]
    sure = torch.stack([mask[mask > 0].sigmoid().mean() for mask in masks])
    shares = out.class_queries_logits[0].double().softmax(-1)[:, :-1]
    flat = (sure[:, None] * shares).flatten().tolist()
    kept = shares.flatten().topk(len(shares)).indices.tolist()
    return [value for _, value in sorted((names[place % shares.shape[1]], flat[place]) for place in kept)]


def test_geneval_runs_on_its_prompts(weights: Weights, picture: Image.Image, tmp_path: Path) -> None:
    records = [
        {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
        {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"},
    ]
    prompts, pictures = tmp_path / "evaluation_metadata.jsonl", tmp_path / "pictures"
    prompts.write_text("\n".join(map(json.dumps, records)) + "\n")
    pictures.mkdir()
    for number in range(2):
        picture.resize((96, 64)).save(pictures / f"{number}.png")
    entry = evaluate(
        images=[pictures], prompts=str(prompts), metrics=["geneval"], setting=Setting(weights)
    )["models"]["pictures"]["geneval"]  # fmt: skip
    assert entry["tasks"] == 2
    assert entry["overall"] in (0.0, 0.5, 1.0)
    assert entry["pictures"] == 2


WORDS = [
    "<unk>",
    "<image>",
    "Yes",
    "No",
    "USER:",
    "ASSISTANT:",
    "a",
    "red",
    "star",
    *QUESTION.replace('"{}"', " ").split(),
]
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    words = list(dict.fromkeys(WORDS))
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
        ),
        image_token_index=words.index("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.add_special_tokens(["<image>"])  # several in a row stand without spaces
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>")
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def test_vqascore_is_the_probability_of_yes(llava: Path, picture: Image.Image) -> None:
    """The network part by part: vision, projection, language model, softmax over the last position."""
    scorer = VqaScore.load(Weights({"vqa": str(llava)}))
    (found,) = scorer.score([picture], [Prompt("a red star")])
    model = scorer.model.model
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)(picture, return_tensors="pt")
    words = list(dict.fromkeys(WORDS))
    asked = f"USER: <image> {QUESTION.format('a red star')} ASSISTANT:".split()
    ids = torch.tensor([[words.index(word) if word in words else 0 for word in asked]])
    with torch.no_grad():
        seen = model.vision_tower(**pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        seen = model.multi_modal_projector(seen)
        told = model.language_model.embed_tokens(ids)
        place = asked.index("<image>")
        embedded = torch.cat([told[:, :place], seen, told[:, place + 1 :]], 1)
        hidden = model.language_model(inputs_embeds=embedded).last_hidden_state
        expected = scorer.model.lm_head(hidden)[0, -1].softmax(0)[words.index("Yes")]
    assert seen.shape[1] == 4
    assert found == pytest.approx(expected.item(), rel=1e-4)
    other = scorer.score([picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], [Prompt("a red star")])[0]
    assert abs(other - found) > 1e-6  # the picture is looked at
