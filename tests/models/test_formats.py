"""Number formats and tensors that published files may hold, and those that they may not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cogview3.config import UserError
from cogview3.models.component_folders import write_component
from cogview3.models.release import load_unet
from cogview3.models.release_files import read_tensors
from tests.models.published import PREFIX, tiny_tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ordinary_formats_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.ones(2, dtype=dtype)}, tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors")["a"].dtype == dtype


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(2).to(torch.float8_e4m3fn), "'a' is float8_e4m3fn: give weights in float16, bfloat16"),
        (torch.ones(2, device="meta"), r"'a' has a shape but no numbers \(meta\)"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, tensor: torch.Tensor, words: str) -> None:
    torch.save({"module": {"a": tensor}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=words):
        read_tensors(tmp_path / "a.pt")


def test_two_names_for_one_tensor_are_written_apart(tmp_path: Path) -> None:
    tensors = tiny_tensors(0)
    names = [f"{PREFIX}middle_block.1.norm.weight", f"{PREFIX}middle_block.1.norm.bias"]
    tensors[names[1]] = tensors[names[0]]
    torch.save({"module": tensors}, tmp_path / "unet.pt")
    unet = load_unet(tmp_path / "unet.pt")
    write_component(unet, tmp_path / "unet")
    (file,) = (tmp_path / "unet").glob("*.safetensors")
    written = load_file(file)
    expected = tensors[names[0]]
    for name in ("weight", "bias"):
        assert torch.equal(written[f"mid_block.attentions.0.norm.{name}"], expected)
