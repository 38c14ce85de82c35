"""Scorers against independent networks with the same random weights, and against what their authors state."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cogview3.config import UserError
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers import SCORERS
from cogview3.evaluation.scorers.aesthetic import Aesthetic, LinearHead
from cogview3.evaluation.scorers.clip import ClipScore, PickScore
from cogview3.evaluation.scorers.hps import Hps20, Hps21, from_open_clip, h14_config
from cogview3.evaluation.scorers.image_reward import ImageReward, blip_config
from cogview3.evaluation.scorers.preprocess import CLIP_MEAN, CLIP_STD, crop_center, normalized, pad_square
from cogview3.evaluation.scorers.weights import Asset, Weights, fill, load_tensors
from tests.evaluation.networks import JOINT, SIDE, BlipReward, OpenClip, clip_config, write_clip, write_clip_tokenizer
from tests.evaluation.published import published

PROMPTS = [Prompt("a red star"), Prompt("a blue cat on a star"), Prompt("of")]
SIZES = [(40, 28), (28, 40), (61, 33)]


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (high, wide, 3), np.uint8)) for wide, high in SIZES]


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip")
    return tmp_path / "clip"


def cosines(folder: Path, pictures: list[Image.Image]) -> torch.Tensor:
    """CLIP's own forward pass, on transformers' own picture processor."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    pixels = torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures])
    tokens = CLIPTokenizer.from_pretrained(folder)(
        [prompt.text for prompt in PROMPTS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(pixel_values=pixels, **tokens)
    return (out.image_embeds * out.text_embeds).sum(1)


@pytest.mark.parametrize("size", [(224, 224), (640, 480), (333, 777), (225, 1024), (100, 130)])
def test_crops_are_those_of_transformers(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    expected = CLIPImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalized([crop_center(picture, 224)]), expected, rtol=0, atol=1e-6)


def test_hps_pads_with_black_and_keeps_everything() -> None:
    picture = Image.new("RGB", (100, 50), "white")
    square = np.asarray(pad_square(picture, 28))
    assert square.shape == (28, 28, 3)
    assert (square[7:21] == 255).all()
    assert (square[:7] == 0).all()
    assert (square[21:] == 0).all()
    pixels = normalized([pad_square(picture, 28)])
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-m / s for m, s in zip(CLIP_MEAN, CLIP_STD, strict=True)])


def test_clip_score_is_a_hundred_cosines(clip_folder: Path, pictures: list[Image.Image]) -> None:
    scorer = ClipScore.load(Weights({"clip-l14": str(clip_folder)}))
    expected = (100 * cosines(clip_folder, pictures)).clamp(min=0)
    assert scorer.score(pictures, PROMPTS) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


def test_pick_score_has_the_logit_scale(clip_folder: Path, pictures: list[Image.Image]) -> None:
    scorer = PickScore.load(Weights({"pickscore": str(clip_folder), "clip-h14": str(clip_folder)}))
    expected = scorer.clip.model.logit_scale.exp() * cosines(clip_folder, pictures)
    assert scorer.score(pictures, PROMPTS) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    assert scorer.clip.model.logit_scale.exp() > 10


def test_aesthetic_is_its_affine_map(clip_folder: Path, pictures: list[Image.Image], tmp_path: Path) -> None:
    """Five layers without activation are one affine map of the embedding, whose length is 1."""
    torch.manual_seed(1)
    head, file = LinearHead(JOINT), tmp_path / "head.pth"
    torch.save(head.state_dict(), file)
    scorer = Aesthetic.load(Weights({"clip-l14": str(clip_folder), "aesthetic": str(file)}))
    layers = [(x.weight.double(), x.bias.double()) for x in head.layers if isinstance(x, torch.nn.Linear)]
    weight, bias = torch.eye(JOINT, dtype=torch.float64), torch.zeros(JOINT, dtype=torch.float64)
    for w, b in layers:
        weight, bias = w @ weight, w @ bias + b
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    expected = []
    for picture in pictures:
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        vision = scorer.clip.model.vision_model(pixel_values=pixels).pooler_output
        embedding = (vision @ scorer.clip.model.visual_projection.weight.T).double()[0]
        expected.append((weight @ (embedding / embedding.norm()) + bias).item())
    assert scorer.score(pictures, PROMPTS) == pytest.approx(expected, rel=1e-4)


def test_the_published_aesthetic_head(tmp_path: Path) -> None:
    """Its affine map has a known norm and bias; without the file, one of its shapes is read strictly."""
    file = published("sac+logos+ava1-l14-linearMSE.pth")
    head = LinearHead(768)
    if file is None:
        file = tmp_path / "head.pth"
        torch.save(head.state_dict(), file)
        expected = [head(torch.zeros(1, 768)).item()] * 2
    else:
        expected = [17.9956, 5.2366]
    fill(head, load_tensors(file), file)
    bias = head(torch.zeros(1, 768))
    slope = head(torch.eye(768)) - bias
    assert bias.item() == pytest.approx(expected[1], abs=1e-4)
    if expected[0] != expected[1]:
        assert slope.norm().item() == pytest.approx(expected[0], abs=1e-3)


@pytest.mark.parametrize("kind", [Hps20, Hps21])
def test_hps_is_open_clips_network(kind: type, tmp_path: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(2)
    network, file = OpenClip().eval(), tmp_path / "hps.pt"
    torch.save({"state_dict": {name: each.half() for name, each in network.state_dict().items()}, "epoch": 3}, file)
    network.load_state_dict({name: each.half().float() for name, each in network.state_dict().items()})
    write_clip_tokenizer(tmp_path / "words")
    weights = Weights({kind.assets[0].name: str(file), "clip-h14": str(tmp_path / "words")})
    scorer = kind.load(weights, clip_config())
    tokens = CLIPTokenizer.from_pretrained(tmp_path / "words")
    ids = [tokens(prompt.text)["input_ids"] for prompt in PROMPTS]
    padded = torch.tensor([row + [0] * (20 - len(row)) for row in ids])  # the original pads with 0
    with torch.no_grad():
        seen = network.visual(normalized([pad_square(picture, SIDE) for picture in pictures]))
        expected = torch.cosine_similarity(seen, network.texts(padded))
    assert scorer.score(pictures, PROMPTS) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    assert kind.how(weights)["weights"][0]["published"] is False


def test_hps_of_the_other_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is called one version and holds the other has been published."""
    file = tmp_path / "HPS_v2_1.pt"
    file.write_bytes(b"x")
    monkeypatch.setattr("cogview3.evaluation.scorers.hps.sha256", lambda path: "07cb0d20ff")
    with pytest.raises(UserError, match=r"HPS_v2_1.*hpsv2"):
        Hps21.load(Weights({"hpsv2.1": str(file), "clip-h14": str(tmp_path)}))


def test_image_reward_is_its_own_network(tmp_path: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(3)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "star", "blue", "cat", "on", "of"]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(vocab=str(tmp_path / "words" / "vocab.txt")).save_pretrained(tmp_path / "words")
    network, head = BlipReward(30, 32, 48, 32, 16).eval(), LinearHead(32)
    tensors = {f"blip.{name}": each for name, each in network.state_dict().items()}
    tensors |= {f"mlp.{name}": each for name, each in head.state_dict().items()}
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(tensors, tmp_path / "reward.pt")
    config = BlipConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
            "hidden_act": "gelu",
            "layer_norm_eps": blip_config().vision_config.layer_norm_eps,
        },
        text_config={
            "vocab_size": 30,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 40,
            "encoder_hidden_size": 48,
            "is_decoder": True,
        },
        image_text_hidden_size=8,
    )
    weights = Weights({"imagereward": str(tmp_path / "reward.pt"), "bert": str(tmp_path / "words")})
    scorer = ImageReward.load(weights, config)
    tokens = [[2, *(words.index(word) for word in prompt.text.split()), 3] for prompt in PROMPTS]
    ids = torch.tensor([row + [0] * (35 - len(row)) for row in tokens])
    with torch.no_grad():
        pixels = normalized([crop_center(picture, 32) for picture in pictures])
        feature = network(pixels, ids, ids.ne(0))
        expected = (head(feature) - 0.16717362830052426) / 1.0333394966054072
    assert scorer.score(pictures, PROMPTS) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


def test_published_shapes() -> None:
    """The published files' sizes: 986 million numbers of HPS v2, 446 million of ImageReward."""
    from transformers import BlipForImageTextRetrieval, CLIPModel

    with torch.device("meta"):
        hps, blip = CLIPModel(h14_config()), BlipForImageTextRetrieval(blip_config())
    assert sum(p.numel() for p in hps.parameters()) == pytest.approx(1_972_484_501 / 2, rel=1e-3)  # float16
    used = sum(p.numel() for name, p in blip.named_parameters() if not name.startswith("itm_head"))
    assert used == pytest.approx(1_786_880_927 / 4, rel=1e-2)  # float32, with the head of 0.9 million
    assert hps.config.text_config.hidden_act == hps.config.vision_config.hidden_act == "gelu"


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    head = LinearHead(8)
    tensors = head.state_dict()
    with pytest.raises(UserError, match=r"layers\.7\.bias is missing"):
        fill(head, {name: each for name, each in tensors.items() if name != "layers.7.bias"}, tmp_path)
    with pytest.raises(UserError, match="more is unknown"):
        fill(head, {**tensors, "more": torch.ones(1)}, tmp_path)
    with pytest.raises(UserError, match=r"\(2,\), not \(1,\)"):
        fill(head, {**tensors, "layers.7.bias": torch.ones(2)}, tmp_path)
    assert from_open_clip({"odd.name": torch.ones(1)}).keys() == {"odd.name"}  # strict loading then names it


def test_a_pickle_of_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt.*more than tensors"):
        load_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_missing_weights_say_which_file_and_from_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    asset: Asset = SCORERS[name].assets[0]
    with pytest.raises(UserError) as caught:
        Weights(local=True).find(asset)
    assert asset.source in str(caught.value)
    assert f"--weights {asset.name}=PATH" in str(caught.value)
    with pytest.raises(UserError, match=f"--weights {asset.name}={tmp_path / 'nothing'}"):
        Weights({asset.name: str(tmp_path / "nothing")}).find(asset)
