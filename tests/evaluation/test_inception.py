"""The Fréchet inception distance's network against its layers written down once more, name by name."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cogview3.config import UserError
from cogview3.evaluation.evaluate import evaluate
from cogview3.evaluation.metrics import Setting
from cogview3.evaluation.metrics.distances import _real_pictures
from cogview3.evaluation.scorers.inception import (
    InceptionV3,
    inception_features,
    load_inception,
    resize_as_tensorflow,
)
from cogview3.evaluation.scorers.weights import Weights


class Flat:
    """InceptionV3 of 2015 as functions of the published tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.t = tensors

    def c(self, x: Tensor, name: str, stride: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
        t = self.t
        y = F.conv2d(x, t[f"{name}.conv.weight"], None, stride, pad)
        mean, var = t[f"{name}.bn.running_mean"], t[f"{name}.bn.running_var"]
        scale = t[f"{name}.bn.weight"] / (var + 0.001).sqrt()
        return ((y - mean[:, None, None]) * scale[:, None, None] + t[f"{name}.bn.bias"][:, None, None]).clamp(min=0)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Mean over those of 3 x 3 pixels that are in the picture."""
        ones = torch.ones_like(x[:1, :1])
        weight = torch.ones(1, 1, 3, 3)
        total = F.conv2d(x.flatten(0, 1)[:, None], weight, padding=1).view_as(x)
        return total / F.conv2d(ones, weight, padding=1)

    def a(self, x: Tensor, m: str) -> Tensor:
        five = self.c(self.c(x, f"{m}.branch5x5_1"), f"{m}.branch5x5_2", pad=(2, 2))
        three = self.c(self.c(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", pad=(1, 1))
        three = self.c(three, f"{m}.branch3x3dbl_3", pad=(1, 1))
        return torch.cat([self.c(x, f"{m}.branch1x1"), five, three, self.c(self.pool(x), f"{m}.branch_pool")], 1)

    def b(self, x: Tensor, m: str) -> Tensor:
        three = self.c(self.c(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", pad=(1, 1))
        three = self.c(three, f"{m}.branch3x3dbl_3", 2)
        return torch.cat([self.c(x, f"{m}.branch3x3", 2), three, F.max_pool2d(x, 3, 2)], 1)

    def cc(self, x: Tensor, m: str) -> Tensor:
        row, column = (0, 3), (3, 0)
        seven = self.c(self.c(x, f"{m}.branch7x7_1"), f"{m}.branch7x7_2", pad=row)
        seven = self.c(seven, f"{m}.branch7x7_3", pad=column)
        double = self.c(x, f"{m}.branch7x7dbl_1")
        for number, pad in ((2, column), (3, row), (4, column), (5, row)):
            double = self.c(double, f"{m}.branch7x7dbl_{number}", pad=pad)
        return torch.cat([self.c(x, f"{m}.branch1x1"), seven, double, self.c(self.pool(x), f"{m}.branch_pool")], 1)

    def d(self, x: Tensor, m: str) -> Tensor:
        three = self.c(self.c(x, f"{m}.branch3x3_1"), f"{m}.branch3x3_2", 2)
        seven = self.c(self.c(x, f"{m}.branch7x7x3_1"), f"{m}.branch7x7x3_2", pad=(0, 3))
        seven = self.c(self.c(seven, f"{m}.branch7x7x3_3", pad=(3, 0)), f"{m}.branch7x7x3_4", 2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(self, x: Tensor, m: str, pooled: Tensor) -> Tensor:
        row, column = (0, 1), (1, 0)
        three = self.c(x, f"{m}.branch3x3_1")
        double = self.c(self.c(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", pad=(1, 1))
        parts = [self.c(x, f"{m}.branch1x1")]
        parts += [self.c(three, f"{m}.branch3x3_2a", pad=row), self.c(three, f"{m}.branch3x3_2b", pad=column)]
        parts += [self.c(double, f"{m}.branch3x3dbl_3a", pad=row), self.c(double, f"{m}.branch3x3dbl_3b", pad=column)]
        return torch.cat([*parts, self.c(pooled, f"{m}.branch_pool")], 1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.c(self.c(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.c(x, "Conv2d_2b_3x3", pad=(1, 1)), 3, 2)
        x = F.max_pool2d(self.c(self.c(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(x, m)
        x = self.b(x, "Mixed_6a")
        for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.cc(x, m)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", self.pool(x))
        x = self.e(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1))
        return x.flatten(2).mean(2)


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    torch.manual_seed(0)
    network = InceptionV3().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(1, 2)
            module.bias.normal_(0, 0.1)
        if isinstance(module, torch.nn.Conv2d):  # keeps the size of what goes through
            torch.nn.init.kaiming_normal_(module.weight)
    return network


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize, pixel by pixel."""
    high, wide = picture.shape[:2]
    out = np.zeros((side, side, picture.shape[2]))
    for row in range(side):
        for column in range(side):
            y, x = row * high / side, column * wide / side
            top, left = int(y), int(x)
            low, right = min(top + 1, high - 1), min(left + 1, wide - 1)
            up = picture[top, left] * (1 - (x - left)) + picture[top, right] * (x - left)
            down = picture[low, left] * (1 - (x - left)) + picture[low, right] * (x - left)
            out[row, column] = up * (1 - (y - top)) + down * (y - top)
    return out


def test_it_is_the_network_of_the_names(network: InceptionV3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogview3.evaluation.scorers.inception.SIDE", 107)
    pictures = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 50, 3), np.uint8)) for n in (1, 2)]
    found = inception_features(network, pictures)
    assert found.shape == (2, 2048)
    pixels = torch.stack([torch.from_numpy(resized(np.asarray(p, np.float64), 107)) for p in pictures]).permute(
        0, 3, 1, 2
    )
    expected = Flat(network.state_dict())(((pixels - 128) / 128).float())
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("size", "side"), [((5, 9), 7), ((8, 8), 8), ((31, 17), 12)])
def test_resizing_is_tensorflows(size: tuple[int, int], side: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.float64)
    found = resize_as_tensorflow(torch.from_numpy(picture).permute(2, 0, 1)[None], side)
    np.testing.assert_allclose(found[0].permute(1, 2, 0), resized(picture, side), atol=1e-3)


def test_a_file_without_counts_of_batches_loads(network: InceptionV3, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {name: each for name, each in network.state_dict().items() if not name.endswith("tracked")}
    monkeypatch.setattr("cogview3.evaluation.scorers.inception.load_tensors", lambda path: tensors)
    loaded = load_inception(Path("a.pth"), "cpu")
    assert torch.equal(loaded.fc.weight, network.fc.weight)
    del tensors["fc.bias"]
    with pytest.raises(UserError, match=r"fc\.bias is missing"):
        load_inception(Path("a.pth"), "cpu")


def test_fid_of_two_folders(network: InceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End to end, with the floor beside it: features by the layers written down, the distance by a matrix root."""
    monkeypatch.setattr("cogview3.evaluation.scorers.inception.SIDE", 75)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    rng = np.random.default_rng(0)
    sets = {
        "drawn": rng.integers(0, 256, (4, 40, 50, 3), np.uint8),
        "real": rng.integers(0, 256, (6, 30, 30, 3), np.uint8),
    }
    for name, pictures in sets.items():
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("a\nb\nc\nd\n")
    setting = Setting(Weights({"inception": str(tmp_path / "inception.pth")}), tmp_path / "real")
    given = {"images": [tmp_path / "drawn"], "prompts": str(tmp_path / "prompts.txt"), "metrics": ["fid"]}
    entry = evaluate(**given, setting=setting)["models"]["drawn"]["fid"]
    flat, features = Flat(network.state_dict()), {}
    for name, pictures in sets.items():
        pixels = np.stack([resized(picture.astype(np.float64), 75) for picture in pictures[:4]])
        values = flat(torch.from_numpy((pixels - 128) / 128).permute(0, 3, 1, 2).float()).double()
        features[name] = values.numpy()
    own, real = features["drawn"], features["real"]
    assert entry["distance"] == pytest.approx(independent_distance(own, real), rel=1e-4)
    assert entry["floor"]["distance"] == pytest.approx(independent_distance(real[:2], real[2:]), rel=1e-4)
    assert (entry["pictures"], entry["floor"]["pictures"]) == (4, 2)
    np.savez(tmp_path / "real.npz", mu=real.mean(0), sigma=np.cov(real, rowvar=False))
    counted = evaluate(**given, setting=Setting(setting.weights, tmp_path / "real.npz"))["models"]["drawn"]["fid"]
    assert counted["distance"] == pytest.approx(entry["distance"], rel=1e-3)


def test_damaged_statistics_are_named(tmp_path: Path) -> None:
    path = tmp_path / "real.npz"
    np.savez_compressed(path, mu=np.arange(2048.0), sigma=np.zeros((4, 4)))
    whole = path.read_bytes()
    for damaged in (b"", whole[:1000], whole[:200] + b"\xff" * 200 + whole[400:], b"PK\3\4" + b"\0" * 99):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"real\.npz is damaged"):
            _real_pictures([], path)


def independent_distance(own: np.ndarray, real: np.ndarray) -> float:
    """By the eigenvalues of the small matrix X Y^T Y X^T, whose roots' sum is the root's trace."""
    x, y = (each - each.mean(0) for each in (own, real))
    product = x @ y.T / np.sqrt((len(x) - 1) * (len(y) - 1))
    root = np.sqrt(np.linalg.eigvalsh(product @ product.T).clip(min=0)).sum()
    traces = (x**2).sum() / (len(x) - 1) + (y**2).sum() / (len(y) - 1)
    return float(((own.mean(0) - real.mean(0)) ** 2).sum() + traces - 2 * root)
