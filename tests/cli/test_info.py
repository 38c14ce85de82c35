"""`info` against the loaded model."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from tests.cli.conftest import error_line

Run = Callable[..., Result]


def test_sizes_are_those_of_the_loaded_model(run: Run, tiny_model: Path) -> None:
    result = run("info", tiny_model, "--memory", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    pipe = CogView3Pipeline.from_pretrained(tiny_model)
    counts = {
        name: sum(tensor.numel() for tensor in getattr(pipe, name).parameters())
        for name in ("text_encoder", "vae", "unet", "relay_unet")
    }
    measured = {name: part["parameters"] for name, part in facts["components"].items() if "/" not in name}
    assert measured == counts
    assert facts["components"]["unet"]["bytes"] == sum(
        file.stat().st_size for file in (tiny_model / "unet").glob("*.safetensors")
    )
    assert facts["memory"] == {"float32": 4 * sum(counts.values()), "bfloat16": 2 * sum(counts.values())}
    assert (facts["side"], facts["base_side"], facts["prompt_tokens"]) == (64, 32, 12)
    assert facts["class"] == "CogView3Pipeline"
    needs = facts["peaks"]["float32"]
    assert list(needs) == ["none", "drop-text-encoder", "model", "sequential"]
    assert needs["none"] > facts["memory"]["float32"] > facts["memory"]["bfloat16"]
    assert facts["peaks"]["int8"]["none"] < facts["peaks"]["bfloat16"]["none"] < needs["none"]


def test_modes_count_their_own_networks(run: Run, tiny_model: Path) -> None:
    facts = json.loads(run("info", tiny_model, "--json").stdout)
    assert facts["default_mode"] == "2+2"
    assert facts["modes"]["4+1"]["distilled"] is True
    own = CogView3Pipeline.from_pretrained(tiny_model, mode="4+1")
    held = sum(
        tensor.numel()
        for module in (own.text_encoder, own.vae, own.unet, own.relay_unet)
        for tensor in module.parameters()
    )
    assert facts["modes"]["4+1"]["memory"]["float32"] == 4 * held
    assert facts["modes"]["2+2"]["memory"] == facts["memory"]


def test_the_text_names_modes_and_card(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "README.md").write_text("# Card\n")
    text = run("info", copy).stdout
    assert str(copy / "README.md") in text
    assert "size     64x64, base 32x32" in text
    assert "4+1      distilled, base steps 4, relay steps 1" in text
    (copy / "sampling.json").unlink()
    assert "modes    none" in run("info", copy).stdout


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"model_index.json": None}, ["model_index.json"]),
        ({"model_index.json": "{"}, ["model_index.json"]),
        ({"sampling.json": "{}"}, ["sampling.json"]),
        ({"unet/config.json": "["}, ["unet", "config.json"]),
        ({"vae/diffusion_pytorch_model.safetensors": "short"}, ["diffusion_pytorch_model.safetensors", "damaged"]),
        ({"modes/4+1/unet/diffusion_pytorch_model.safetensors": "short"}, ["modes/4+1/unet", "is damaged"]),
    ],
)
def test_damaged_folders(
    run: Run, tiny_model: Path, tmp_path: Path, damage: dict[str, str | None], words: list[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "copy")
    for name, content in damage.items():
        path = tmp_path / "copy" / name
        path.unlink() if content is None else path.write_text(content)
    result = run("info", "copy")
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr


def test_missing_networks_of_a_mode_are_named(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "modes" / "4+1" / "relay_unet")
    result = run("info", "copy")
    assert result.exit_code == 2, result.output
    assert "copy/modes/4+1/relay_unet is missing or empty" in error_line(result)


def test_an_upscalers_folder_is_described(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    CogView3UpscalePipeline.from_pretrained(tiny_model).save_pretrained(tmp_path / "upscaler")
    result = run("info", "upscaler", "--memory", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["class"], facts["side"], facts["base_side"]) == ("CogView3UpscalePipeline", 32, None)
    assert "unet" not in facts["components"]
    assert facts["peaks"]["float32"]["none"] > facts["memory"]["float32"] > 0
    assert "sequential" not in facts["peaks"]["int8"]
    assert "only enlarges; memory is given for 32x32" in run("info", "upscaler", "--memory").stdout


@pytest.mark.parametrize(
    ("latents", "sides", "line"),
    [
        ([2, 6], [[32, 96], [16, 48]], "size     96x32, base 48x16"),
        pytest.param(None, [None, None], "size     as asked for", marks=pytest.mark.slow),
    ],
)
def test_other_sides_than_squares_and_none(
    run: Run, tiny_model: Path, tmp_path: Path, latents: list[int] | None, sides: list, line: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    for path in copy.rglob("unet/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": latents}))
    result = run("info", "copy", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [facts["side"], facts["base_side"]] == sides
    assert "peaks" not in facts
    again = run("info", "copy", "--memory", "--json")
    assert bool(json.loads(again.stdout)["peaks"]) == (latents is not None)
    assert line in run("info", "copy").stdout
    drawn = run("generate", "a", "--model", "copy", "-o", "a.png")
    if latents is None:
        assert drawn.exit_code == 2
        assert "height is unset and the UNet has no sample_size" in error_line(drawn)
    else:
        assert drawn.exit_code == 0, drawn.output
        with Image.open("a.png") as image:
            assert image.size == (96, 32)


def test_a_model_without_a_tokenizer(run: Run, tiny_model: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(tiny_model)
    pipe.register_modules(tokenizer=None)
    pipe.save_pretrained("bare")
    facts = json.loads(run("info", "bare", "--json").stdout)
    assert facts["prompt_tokens"] is None
    assert "prompts  no tokenizer" in run("info", "bare").stdout


def test_nothing_heavy_is_loaded(tiny_model: Path) -> None:
    code = f"import sys\nfrom cogview3.cli.app import app\napp(['info', {str(tiny_model)!r}], standalone_mode=False)\n"
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers"} & set(done.stdout.splitlines()[-1].split())


def test_models_that_are_not_here(run: Run) -> None:
    for name in ("none", "owner/name"):
        result = run("info", name)
        assert result.exit_code == 2, result.output
        assert name in error_line(result)


def test_a_mode_that_is_not_there_is_refused(run: Callable[..., Result], tiny_model: Path) -> None:
    assert "no mode 'nope'" in error_line(run("info", f"{tiny_model}@nope"))
    assert run("info", f"{tiny_model}@4+1").exit_code == 0
