"""InceptionV3 as the Fréchet inception distance uses it: TensorFlow's network of 2015 with 1,008 classes.

Its weights, `weights-inception-2015-12-05-6726825d.pth`, are torch-fidelity's and pytorch-fid's alike. Where it differs
from torchvision's: average pools leave their padding out, and the last block pools by the maximum.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from cogview3.evaluation.scorers.weights import Asset, fill, load_tensors

INCEPTION = Asset(
    "inception",
    "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0",
    "weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)
SIDE, WIDTH, CLASSES = 299, 2048, 1008


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = stride == 1 and not isinstance(kernel, int)
        padding = (sides[0] // 2, sides[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _same(channels: int, out: int, kernel: int) -> BasicConv2d:
    return BasicConv2d(channels, out, (kernel, kernel))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class InceptionA(nn.Module):
    """Branches of 1 x 1, 5 x 5 and two 3 x 3, and a pool: 224 channels and `pool` more."""

    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _same(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _same(channels, 48, 1), _same(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _same(channels, 64, 1), _same(64, 96, 3)
        self.branch3x3dbl_3 = _same(96, 96, 3)
        self.branch_pool = _same(channels, pool, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], 1)


class InceptionB(nn.Module):
    """Halves the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(channels, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _same(channels, 64, 1), _same(64, 96, 3)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, 2)

    @override
    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, 2)], 1)


class InceptionC(nn.Module):
    """Branches of 7 x 7 in rows and columns."""

    def __init__(self, middle: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _same(768, 192, 1)
        self.branch7x7_1 = _same(768, middle, 1)
        self.branch7x7_2 = BasicConv2d(middle, middle, row)
        self.branch7x7_3 = BasicConv2d(middle, 192, column)
        self.branch7x7dbl_1 = _same(768, middle, 1)
        self.branch7x7dbl_2 = BasicConv2d(middle, middle, column)
        self.branch7x7dbl_3 = BasicConv2d(middle, middle, row)
        self.branch7x7dbl_4 = BasicConv2d(middle, middle, column)
        self.branch7x7dbl_5 = BasicConv2d(middle, 192, row)
        self.branch_pool = _same(768, 192, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class InceptionD(nn.Module):
    """Halves the side."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _same(768, 192, 1), BasicConv2d(192, 320, 3, 2)
        self.branch7x7x3_1 = _same(768, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, 2)

    @override
    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], 1)


class InceptionE(nn.Module):
    """Branches that fork at their end; `maximum` is the last block's pool."""

    def __init__(self, channels: int, maximum: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.maximum = maximum
        self.branch1x1 = _same(channels, 320, 1)
        self.branch3x3_1 = _same(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = BasicConv2d(384, 384, row), BasicConv2d(384, 384, column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _same(channels, 448, 1), _same(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = BasicConv2d(384, 384, row), BasicConv2d(384, 384, column)
        self.branch_pool = _same(channels, 192, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


class InceptionV3(nn.Module):
    """Pictures to the 2,048 numbers before the classes; (B, 3, 299, 299) in [-1, 1] about."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = _same(32, 64, 3)
        self.Conv2d_3b_1x1 = _same(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (InceptionC(n) for n in (128, 160, 160, 192))
        self.Mixed_7a = InceptionD()
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280, maximum=False), InceptionE(2048, maximum=True)
        self.fc = nn.Linear(WIDTH, CLASSES)  # in the file, and not used

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


def resize_as_tensorflow(pictures: Tensor, side: int) -> Tensor:
    """Bilinear as TensorFlow 1 did: output pixel i looks at i * in / out, without half pixels or antialiasing.

    Args:
        pictures: (B, C, H, W).
        side: of the result.
    """
    for axis in (2, 3):
        length = pictures.shape[axis]
        where = torch.arange(side, dtype=torch.float32, device=pictures.device) * (length / side)
        low = where.floor().long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        share = (where - low).view([-1 if own == axis else 1 for own in range(4)]).to(pictures.dtype)
        near, far = pictures.index_select(axis, low), pictures.index_select(axis, high)
        pictures = near + (far - near) * share
    return pictures


def load_inception(path: Path, device: str) -> InceptionV3:
    """The network from the published file, for inference. Raises UserError where it does not fit."""
    network = InceptionV3()
    own = network.state_dict()
    tensors = load_tensors(path)
    counts = {name: own[name] for name in own if name.endswith("num_batches_tracked")}  # old files lack them
    fill(network, {**counts, **{name: each for name, each in tensors.items() if name not in counts}}, path)
    return network.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def inception_features(network: InceptionV3, pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 2048), float64 on the CPU, of RGB pictures of any sizes: 8 bits, 299 x 299, (x - 128) / 128."""
    device = next(network.parameters()).device
    ready = []
    for picture in pictures:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float()
        ready.append((resize_as_tensorflow(pixels, SIDE) - 128) / 128)
    features: Tensor = network(torch.cat(ready).to(device))
    return features.cpu().double()
