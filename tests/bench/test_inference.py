"""The benchmark's sums and counts on tiny networks. How long anything takes is not tested."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from cogview3 import CogView3Pipeline
from cogview3.bench import inference
from cogview3.bench.inference import Settings, cold_start, describe, drawers, random_pipeline, run
from cogview3.config import UserError
from cogview3.training.measure import count_flops

FEW = Settings(steps=3, relay_steps=2, guidance=4.0)


@pytest.fixture
def pipe(components: dict[str, Any]) -> CogView3Pipeline:
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def model(saved_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved_model, tmp_path / "tiny")
    sampling = {"format": 1, "default": "1+1", "modes": {"1+1": {"steps": 1, "relay_steps": 1}}}
    (tmp_path / "tiny" / "sampling.json").write_text(json.dumps(sampling))
    return tmp_path / "tiny"


def test_a_report_holds_together(model: Path) -> None:
    result = run(model=str(model), repeats=2, batches=(1, 2), settings=FEW, cold=False)
    assert (result["model"], result["weights"], result["size"]) == (str(model), "as saved", [64, 64])
    assert result["settings"] == {"steps": 3, "relay_steps": 2, "guidance": 4.0}
    assert [row["batch"] for row in result["batches"]] == [1, 2]
    for row in result["batches"]:
        assert len(row["runs"]["relay"]) == len(row["runs"]["single"]) == 2
        for kind in ("relay", "single"):
            assert row[f"{kind}_seconds"] == pytest.approx(sum(row["runs"][kind]) / 2)  # the median of two
        assert row["ratio"] == row["relay_seconds"] / row["single_seconds"]
        assert sum(row["parts"].values()) == pytest.approx(1)
        assert all(0 < share < 1 for share in row["parts"].values())
        assert list(row["parts"]) == ["text", "base", "decode_encode", "relay", "final_decode", "other"]
    assert result["warm_seconds"] == result["batches"][0]["relay_seconds"]
    assert result["flops"]["ratio"] == result["flops"]["relay"] / result["flops"]["single"]
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in result["versions"]["torch"]
    assert result["hardware"]["torch_threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = describe(result)
    assert "batch 2: 3+2 steps" in text
    assert "cold start" not in text


def test_both_runs_draw_what_is_compared(pipe: CogView3Pipeline) -> None:
    relay, single = drawers(pipe, FEW)
    seen: dict[str, list[tuple[int, ...]]] = {"unet": [], "relay_unet": []}
    for name, shapes in seen.items():
        getattr(pipe, name).register_forward_pre_hook(lambda _, args, shapes=shapes: shapes.append(args[0].shape[:3]))
    relay(2)
    assert seen == {"unet": [(4, 4, 4)] * 3, "relay_unet": [(4, 4, 8)] * 2}  # both branches of guidance
    seen["unet"].clear()
    seen["relay_unet"].clear()
    pictures = single(2).images
    assert seen == {"unet": [(4, 4, 8)] * 3, "relay_unet": []}
    assert [picture.size for picture in pictures] == [(64, 64)] * 2


def count_by_hand(pipe: CogView3Pipeline, draw: Callable[[int], Any]) -> int:
    """Operations from the shapes that go through every layer, a multiplication and an addition each."""
    counts: list[int] = []

    def linear(layer: nn.Linear, args: tuple, output: Tensor) -> None:
        counts.append(2 * output.numel() * layer.in_features)

    def convolution(layer: nn.Conv2d, args: tuple, output: Tensor) -> None:
        counts.append(2 * output.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1])

    def attention(layer: Attention, args: tuple, options: dict, output: Tensor) -> None:
        hidden = args[0].flatten(2).mT if args[0].ndim == 4 else args[0]
        context = options.get("encoder_hidden_states")
        context = hidden if context is None else context  # a branch without text has no cross attention
        counts.append(2 * 2 * len(context) * hidden.shape[1] * context.shape[1] * layer.inner_dim)

    def text_attention(layer: T5Attention, args: tuple, output: Any) -> None:
        batch, tokens = args[0].shape[:2]
        counts.append(2 * 2 * batch * tokens * tokens * layer.inner_dim)

    for component in (pipe.text_encoder, pipe.unet, pipe.relay_unet, pipe.vae):
        for layer in component.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(linear)
            elif isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(convolution)
            elif isinstance(layer, Attention):
                layer.register_forward_hook(attention, with_kwargs=True)
            elif isinstance(layer, T5Attention):
                layer.register_forward_hook(text_attention)
    draw(1)
    return sum(counts)


@pytest.mark.parametrize("kind", [0, 1])
def test_flops_are_those_counted_by_hand(pipe: CogView3Pipeline, kind: int) -> None:
    draw = drawers(pipe, Settings(steps=2, relay_steps=1, guidance=4.0))[kind]
    assert count_flops(lambda: draw(1)) == count_by_hand(pipe, draw)


def test_flops_grow_by_the_same_with_every_step(pipe: CogView3Pipeline) -> None:
    drawn = [drawers(pipe, Settings(steps=steps, relay_steps=1))[0] for steps in (1, 2, 3)]
    counts = [count_flops(lambda draw=draw: draw(1)) for draw in drawn]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_networks_are_left_as_they_were(pipe: CogView3Pipeline) -> None:
    relay, _ = drawers(pipe, Settings(1, 1, 4.0))
    inference.shares_by_part(pipe, relay, 1)
    for component, method in [(pipe.vae, "decode"), (pipe.vae, "encode"), (pipe.unet, "forward")]:
        assert method not in vars(component)


def test_a_cold_start_is_what_generate_takes_over_its_imports(
    pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def process_seconds(arguments: list[str]) -> float:
        started.append(arguments)
        if "generate" not in arguments:
            return 2.0
        folder = Path(arguments[arguments.index("--model") + 1])
        assert (folder / "relay_unet" / "config.json").is_file()  # saved for the occasion
        return 4.0 + len(started)

    monkeypatch.setattr(inference, "_process_seconds", process_seconds)
    result = cold_start(pipe, None, 2, "cpu")
    assert ["generate" in arguments for arguments in started] == [True, False] * 2
    assert result == {"generate_seconds": 6.0, "import_seconds": 2.0, "over_import_seconds": 4.0}


@pytest.mark.slow
def test_a_cold_start_draws_in_a_fresh_process(model: Path, pipe: CogView3Pipeline) -> None:
    result = cold_start(pipe, str(model), 1, "cpu")
    assert result["over_import_seconds"] == result["generate_seconds"] - result["import_seconds"]
    assert result["import_seconds"] > 0


def test_a_process_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1: no room$"):
        inference._process_seconds(["print(1); raise SystemExit('first\\nno room')"])


def test_random_networks_have_the_recipes_sizes() -> None:
    pipe = random_pipeline()
    assert pipe.unet.config.sample_size * 2 == pipe.relay_unet.config.sample_size == 32
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.d_model
    assert len(pipe.tokenizer) <= pipe.text_encoder.config.vocab_size
    with torch.no_grad():
        assert pipe.encode_prompt("a red star")[0].isfinite().all()


def test_weights_that_are_not_bundled_are_drawn_at_random(
    pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "bundled_models", list)
    monkeypatch.setattr(inference, "random_pipeline", lambda: pipe)
    result = run(repeats=1, batches=(2,), settings=Settings(1, 1), cold=False)
    assert (result["model"], result["weights"]) == ("scenes", "random, of the same sizes")
    assert result["warm_seconds"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "give 1 or more"),
        ({"batches": ()}, "give 1 or more"),
        ({"batches": (1, 0)}, "give 1 or more"),
        ({"model": "nowhere"}, "no model 'nowhere'"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**changes)


def test_a_model_without_a_relay_is_refused(components: dict[str, Any], tmp_path: Path) -> None:
    parts = components | {"relay_unet": None, "relay_scheduler": None}
    CogView3Pipeline(**parts).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="base has no relay"):
        run(model=str(tmp_path / "base"))
