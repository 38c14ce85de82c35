"""int8 weights against torch's own quantization and a dequantization in NumPy; other layouts are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file
from safetensors.torch import save_file

from cogview3.config import UserError
from cogview3.models.int8 import INT8_FILE, dequantize, load_unet, quantize, save_int8


@pytest.fixture
def stored(make_unet: Callable[..., UNet2DConditionModel], tmp_path: Path) -> tuple[UNet2DConditionModel, Path]:
    unet = make_unet(4, time_cond_proj_dim=8)
    save_int8(unet, tmp_path / "unet")
    return unet, tmp_path / "unet"


def test_quantizing_is_torchs_per_channel() -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(1)) * torch.arange(6).view(-1, 1, 1, 1)
    values, scale = quantize(weight)
    zeros = torch.zeros(6, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -127, 127)
    torch.testing.assert_close(dequantize(values, scale), expected, rtol=0, atol=1e-6)
    assert values[1:].flatten(1).abs().amax(1).tolist() == [127] * 5
    assert (values[0] == 0).all()  # a channel of zeros


def test_weights_are_read_back_as_numpy_dequantizes_them(stored: tuple[UNet2DConditionModel, Path]) -> None:
    unet, folder = stored
    file = load_file(folder / INT8_FILE)
    again = load_unet(folder)
    assert not again.training
    for name, value in again.state_dict().items():
        scale = file.get(f"{name}.int8_scale")
        held = file[name].astype(np.float32)
        expected = held if scale is None else held * scale.reshape(-1, *[1] * (held.ndim - 1))
        np.testing.assert_array_equal(value.numpy(), expected)
        # half a step of the channel's, or float16's eleven bits
        error = np.abs(expected - unet.state_dict()[name].numpy())
        bound = 2.0**-11 * np.abs(held) if scale is None else scale.reshape(-1, *[1] * (held.ndim - 1)) / 2 * 1.001
        assert (error <= bound + 1e-7).all(), name
    assert load_unet(folder, torch.bfloat16).dtype == torch.bfloat16
    floats = sum(value.nbytes for name, value in unet.state_dict().items()) / 2
    assert sum(value.nbytes for value in file.values()) < 0.65 * floats  # of so narrow a network's, norms are much


def change(folder: Path, act: Callable[[dict[str, torch.Tensor]], None], **metadata: str) -> None:
    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / INT8_FILE).items()}
    act(tensors)
    layout = {"layout": "int8, one scale an output channel", "version": "1", **metadata}
    save_file(tensors, folder / INT8_FILE, metadata=layout)


NAME = "conv_in.weight"


@pytest.mark.parametrize(
    ("act", "metadata", "words"),
    [
        (lambda tensors: None, {"version": "2"}, "'version': '2'"),
        (lambda tensors: tensors.pop(f"{NAME}.int8_scale"), {}, rf"lacks {NAME}.int8_scale"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), {}, "besides other"),
        (lambda tensors: tensors.update({NAME: tensors[NAME].half()}), {}, rf"{NAME} is torch.float16"),
        (lambda tensors: tensors.update({NAME: tensors[NAME][:, :1].contiguous()}), {}, rf"{NAME} is \[8, 1, 3, 3\]"),
        (lambda tensors: tensors[f"{NAME}.int8_scale"].fill_(float("nan")), {}, NAME),
        (lambda tensors: tensors[f"{NAME}.int8_scale"].neg_(), {}, NAME),
        (lambda tensors: tensors.update({f"{NAME}.int8_scale": torch.ones(1)}), {}, r"float32 \[1\]"),
        (lambda tensors: tensors[NAME].fill_(-128), {}, NAME),
        (lambda tensors: tensors.update({"conv_in.bias": torch.zeros(8)}), {}, "conv_in.bias is torch.float32"),
    ],
)
def test_other_layouts_are_refused(
    stored: tuple[UNet2DConditionModel, Path], act: Callable, metadata: dict[str, str], words: str
) -> None:
    change(stored[1], act, **metadata)
    with pytest.raises(UserError, match=words) as caught:
        load_unet(stored[1])
    assert INT8_FILE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_and_other_networks_are_refused(stored: tuple[UNet2DConditionModel, Path]) -> None:
    unet, folder = stored
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 24}))
    with pytest.raises(UserError, match=r"is \[16, 16\], not \[16, 24\]"):
        load_unet(folder)
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / INT8_FILE
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=INT8_FILE):
        load_unet(folder)
    unet.save_pretrained(folder)
    with pytest.raises(UserError, match=f"{INT8_FILE} and diffusion_pytorch_model"):
        load_unet(folder)
