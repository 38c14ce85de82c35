"""bfloat16 only where the hardware has it: what is asked of torch, and what the loop and the data make of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from cogview3.data import latents
from cogview3.precision import computes_bfloat16
from cogview3.training import loop
from cogview3.training.loop import train
from cogview3.training.objectives.text import TextTraining
from tests.training.conftest import tiny_recipe


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx2": True, "avx512_f": False, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert computes_bfloat16("cpu") is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # macOS: no kernels for it
    assert not computes_bfloat16("cpu")


@pytest.mark.parametrize("supported", [True, False])
def test_older_torch_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert torch.ops.mkldnn._is_mkldnn_bf16_supported() in (True, False)  # torch has it
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert computes_bfloat16("cpu") is supported


def test_a_gpu_that_imitates_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or True)
    assert computes_bfloat16(torch.device("cuda", 0))
    assert asked == [{"including_emulation": False}]
    assert not computes_bfloat16("mps")


@pytest.mark.parametrize(("asked", "fast", "used"), [("auto", True, "bf16"), ("auto", False, "no"), ("no", True, "no")])
def test_auto_is_what_the_device_computes_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, asked: str, fast: bool, used: str
) -> None:
    monkeypatch.setattr(loop, "computes_bfloat16", lambda device: fast)
    kinds: set[torch.dtype] = set()

    class Watched(TextTraining):
        def forward(self, batch: Any) -> Any:
            kinds.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().forward(batch)

    recipe = tiny_recipe("text", tmp_path, train__precision=asked, train__images=4)
    train(recipe, tmp_path / "run", device="cpu", objective=Watched)
    assert torch.bfloat16 in kinds if used == "bf16" else kinds == {torch.float32}
    assert f'precision = "{asked}"' in (tmp_path / "run" / "recipe.toml").read_text()
    state = json.loads((tmp_path / "run" / "checkpoints" / "images-4" / "state.json").read_text())
    assert state["precision"] == used
    assert "bfloat16" not in capsys.readouterr().err


def test_bf16_where_it_is_imitated_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(loop, "computes_bfloat16", lambda device: False)
    train(tiny_recipe("text", tmp_path, train__precision="bf16", train__images=4), tmp_path / "run", device="cpu")
    assert "this device has no instructions for bfloat16" in capsys.readouterr().err


def test_a_run_may_go_on_in_another_precision(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    train(tiny_recipe("text", tmp_path, train__precision="bf16", train__images=6), run, device="cpu")
    capsys.readouterr()
    AcceleratorState._reset_state(reset_partial_state=True)  # as in another process
    train(tiny_recipe("text", tmp_path, train__precision="no", train__images=6), run, device="cpu")
    assert "resuming with precision bf16 -> no" in capsys.readouterr().err
    assert 'precision = "no"' in (run / "recipe.toml").read_text()


@pytest.mark.parametrize("fast", [True, False])
def test_pictures_are_encoded_in_what_is_fast(make_vae: Any, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    vae, kind = make_vae(), latents.SceneLatents(64, 2, 3)
    monkeypatch.setattr(latents, "computes_bfloat16", lambda device: fast)
    pictures = latents.to_tensor([latents.drawing.render(kind.scene(index), 64) for index in range(2)])
    exact = latents.encode(vae, pictures)
    given = latents.encode_scene_batch(vae, kind, range(2))["z0"]
    worst = (given - exact).abs().max()
    assert worst > 1e-3 if fast else worst < 1e-5  # eight bits; float32's sums in another order
