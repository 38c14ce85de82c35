"""The check of scorers against published figures: honest where weights are missing, and where they are others."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cogview3.cli.app import app
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.scorers.hps import Hps20
from cogview3.evaluation.scorers.weights import Weights
from cogview3.evaluation.self_check import Anchor, self_check
from tests.evaluation.networks import OpenClip, clip_config, write_clip_tokenizer

FILES = ("hpsv2_demo_image.jpg", *(f"imagereward_{number}.webp" for number in range(1, 5)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(FILES):
        Image.new("RGB", (40, 30), (50 * number, 90, 20)).save(folder / name)
    return folder


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Random weights of HPS v2, tiny."""
    torch.manual_seed(0)
    torch.save({"state_dict": OpenClip().state_dict()}, tmp_path / "hps.pt")
    write_clip_tokenizer(tmp_path / "words")
    monkeypatch.setattr("cogview3.evaluation.scorers.hps.h14_config", clip_config)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    return {"hpsv2": str(tmp_path / "hps.pt"), "clip-h14": str(tmp_path / "words")}


def run(pictures: Path, given: dict[str, str]) -> tuple[int, str, str]:
    weights = [f"--weights={name}={path}" for name, path in given.items()]
    done = CliRunner().invoke(app, ["evaluate", "--self-check", f"--images={pictures}", "--json", *weights])
    return done.exit_code, done.stdout, done.stderr


def test_what_is_missing_is_named(pictures: Path, given: dict[str, str]) -> None:
    code, _, told = run(pictures, {})
    assert code == 2
    for name in ("HPS_v2_compressed.pt from xswu/HPSv2", "ImageReward.pt from THUDM/ImageReward"):
        assert name in told


def test_other_weights_differ_and_the_rest_is_skipped(pictures: Path, given: dict[str, str]) -> None:
    code, out, _ = run(pictures, given)
    assert code == 1
    hps, reward = json.loads(out)["anchors"]
    assert hps["agrees"] is False
    assert hps["found"] != hps["expected"]
    assert (reward["agrees"], reward["found"]) == (None, None)
    assert "ImageReward.pt" in reward["reason"]


def test_figures_that_are_reproduced_agree(pictures: Path, given: dict[str, str]) -> None:
    weights = Weights(given, local=True)
    with Image.open(pictures / FILES[0]) as image:
        picture = image.convert("RGB")
    found = Hps20.load(weights, clip_config()).score([picture], [Prompt("a cat")])
    near, far = (Anchor("hpsv2", FILES[:1], "a cat", (found[0] + off,), "") for off in (5e-4, 5e-3))
    assert [row["agrees"] for row in self_check(pictures, weights, [near, far])] == [True, False]
    (row,) = self_check(pictures, weights, [near])
    assert row["found"] == pytest.approx(found)
