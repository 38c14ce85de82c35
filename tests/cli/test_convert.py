"""`convert`: published files to a model that draws, and back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file
from typer.testing import Result

from cogview3 import CogView3Pipeline
from cogview3.generation import conversion
from cogview3.models.release import load_unet, load_vae, save_vae
from tests.cli.conftest import error_line
from tests.models.published import tiny_tensors, write_release

Run = Callable[..., Result]

STATES = "1/mp_rank_00_model_states.pt"
PLACES = ("base", "relay", "base-distill-4step", "relay-distill-1step")
DISTILLED = {
    "relay_start": 200,
    "guidance": 7.5,
    "guidance_range": [1.0, 12.0],
    "blur_estimate": "recompute",
    "distilled": True,
}


@pytest.fixture(scope="session")
def release_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `release` is written, once a session."""
    return tmp_path_factory.mktemp("published") / "files"


@pytest.fixture
def release(release_folder: Path, make_tokenizer: Callable[..., Any], make_text_encoder: Callable[[], Any]) -> Path:
    """The published files at toy width, the 4+1 networks included. Not to be changed."""
    if not release_folder.exists():
        for seed, place in enumerate(PLACES):
            write_release(release_folder / place, tiny_tensors(seed, distilled=seed > 1, blocks=1))
        torch.manual_seed(0)
        structure = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "scaling_factor": 0.13025}
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        save_vae(AutoencoderKL(**structure, **kinds), release_folder / "sdxl_vae.safetensors")
        make_tokenizer(512).save_pretrained(release_folder / "t5")
        make_text_encoder().bfloat16().save_pretrained(release_folder / "t5")
    return release_folder


def options(release: Path, *more: Any, **changes: Any) -> list[Any]:
    files = {"unet": "base", "relay-unet": "relay", "vae": "sdxl_vae.safetensors", "text-encoder": "t5"}
    given = [part for name, file in (files | changes).items() for part in (f"--{name}", release / file)]
    return [*given, *more]


def fast(release: Path, name: str = "4+1") -> list[str]:
    return ["--mode", f"{name}={release / PLACES[2]},{release / PLACES[3]}"]


@pytest.fixture
def converted(release_folder: Path, release: Path, run: Run) -> Path:
    """The model of these files, with the mode 4+1. Not to be changed."""
    out = release_folder.with_name("model")
    if not out.exists():
        result = run("convert", *options(release, *fast(release)), "-o", out)
        assert result.exit_code == 0, result.output
        assert result.stdout == f"model written to {out}: {size_of(out) / 1e6:.1f} MB\n"
        assert "writing modes/4+1/relay_unet" in result.stderr
    return out


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.parent != folder)


def test_a_converted_model_draws(run: Run, converted: Path) -> None:
    drawn = {}
    for name, mode in {"plain": ["--steps", 3, "--relay-steps", 2], "fast": ["--mode", "4+1"]}.items():
        result = run(
            "generate", "a red star", "--model", converted, "--size", "64x64", "--seed", 1, "-o", f"{name}.png",
            "--json", *mode,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout)
        with Image.open(f"{name}.png") as image:
            assert image.size == (64, 64)
            drawn[name] = facts["mode"], facts["steps"], facts["relay_steps"], image.tobytes()
    assert drawn["plain"][:3] == ("50+12", 3, 2)
    assert drawn["fast"][:3] == ("4+1", 4, 1)
    assert drawn["plain"][3] != drawn["fast"][3]
    assert len(set(drawn["fast"][3])) > 10


def test_distilled_modes_keep_to_their_steps(run: Run, converted: Path) -> None:
    for wrong in (["--steps", 5], ["--guidance", 13]):
        result = run("generate", "a", "--model", converted, "--mode", "4+1", *wrong)
        assert result.exit_code == 2
        assert "distilled for" in error_line(result)


def test_the_model_holds_what_the_files_hold(release: Path, converted: Path) -> None:
    for mode, places in {"50+12": PLACES[:2], "4+1": PLACES[2:]}.items():
        pipe = CogView3Pipeline.from_pretrained(converted, mode=mode)
        for unet, place in zip((pipe.unet, pipe.relay_unet), places, strict=True):
            expected = load_unet(release / place).state_dict()
            assert expected.keys() == unet.state_dict().keys()
            assert all(torch.equal(expected[name].float(), each) for name, each in unet.state_dict().items())
        assert pipe.relay_scheduler.config.relay_start == {"50+12": 500, "4+1": 200}[mode]
    vae = load_vae(release / "sdxl_vae.safetensors").state_dict()
    assert all(torch.equal(vae[name], each) for name, each in pipe.vae.state_dict().items())
    assert pipe.vae.config.scaling_factor == 0.13025
    encoder = load_file(release / "t5" / "model.safetensors")
    state = pipe.text_encoder.state_dict()
    assert all(torch.equal(each.float(), state[name]) for name, each in encoder.items())
    assert pipe.tokenizer.model_max_length == 225
    assert (pipe.unet.config.sample_size, pipe.relay_unet.config.sample_size) == (64, 128)
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    assert pipe.scheduler.config.timestep_spacing == "leading"


def test_modes_are_the_releases(run: Run, release: Path, converted: Path) -> None:
    table = json.loads((converted / "sampling.json").read_text())
    plain = {"steps": 50, "relay_steps": 12, "relay_start": 500, "guidance": 7.5, "blur_estimate": "recompute"}
    assert (table["format"], table["default"]) == (1, "50+12")
    assert table["modes"] == {
        "50+12": {**plain, "distilled": False},
        "4+1": DISTILLED
        | {"steps": 4, "relay_steps": 1, "unet": "modes/4+1/unet", "relay_unet": "modes/4+1/relay_unet"},
    }
    result = run("convert", *options(release, *fast(release, "8+2"), *fast(release, "8+1")), "-o", "m", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["modes"] == ["50+12", "8+2", "8+1"]
    assert facts["bytes"] == size_of(Path("m")) == sum(facts["components"].values())
    modes = json.loads(Path("m/sampling.json").read_text())["modes"]
    assert [modes[name]["relay_start"] for name in ("8+2", "8+1")] == [500, 200]
    assert [modes["8+2"]["steps"], modes["8+2"]["relay_steps"]] == [8, 2]


def test_number_formats(run: Run, release: Path, converted: Path) -> None:
    def formats(folder: Path) -> dict[str, set[torch.dtype]]:
        files = {path.parent.name: path for path in folder.rglob("*.safetensors")}
        return {name: {tensor.dtype for tensor in load_file(path).values()} for name, path in files.items()}

    half, brain, single = {torch.float16}, {torch.bfloat16}, {torch.float32}
    assert formats(converted) == {"unet": half, "relay_unet": half, "vae": single, "text_encoder": brain}
    for dtype, found in {"float16": half, "bfloat16": brain}.items():
        assert run("convert", *options(release), "-o", dtype, "--dtype", dtype).exit_code == 0
        assert formats(Path(dtype)) == dict.fromkeys(("unet", "relay_unet", "vae", "text_encoder"), found)


def test_back_to_the_releases_files(run: Run, release: Path, converted: Path) -> None:
    result = run("convert", "--to", "release", converted, "-o", "back", "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["components"]) == {"unet", "relay_unet", "modes", "sdxl_vae.safetensors"}
    places = dict(zip(("unet", "relay_unet", "modes/4+1/unet", "modes/4+1/relay_unet"), PLACES, strict=True))
    for ours, theirs in places.items():
        found, expected = (
            torch.load(path / STATES, weights_only=True)["module"] for path in (Path("back") / ours, release / theirs)
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], each) for name, each in expected.items())
    found, expected = (load_file(path / "sdxl_vae.safetensors") for path in (Path("back"), release))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], each) for name, each in expected.items())

    # and forth again, the text encoder from the model folder
    again = options(Path("back"), vae="sdxl_vae.safetensors", unet="unet", **{"relay-unet": "relay_unet"})
    again[again.index("--text-encoder") + 1] = converted
    assert run("convert", *again, "-o", "forth").exit_code == 0
    for file in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json", "text_encoder/model.safetensors"):
        assert Path("forth", file).read_bytes() == (converted / file).read_bytes()

    # an earlier conversion is replaced, in another number format
    assert run("convert", "--to", "release", "forth", "-o", "back", "--dtype", "bfloat16").exit_code == 0
    assert not Path("back/modes").exists()
    tensors = torch.load(Path("back/unet") / STATES, weights_only=True)["module"]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unet": "none"}, ("none does not exist", "give a UNet's folder")),
        ({"unet": "t5"}, ("t5 has no file 'latest'", "give the folder")),
        ({"unet": PLACES[2]}, ("base-distill-4step is distilled", "--mode")),
        ({"vae": "t5/model.safetensors"}, ("model.safetensors has not the release's structure",)),
        ({"vae": "t5"}, ("t5 is a folder", "give the weights' file")),
        ({"text-encoder": "none"}, ("--text-encoder", "none is no folder", "give a transformers folder")),
        ({"text-encoder": "base"}, ("base has no tokenizer",)),
    ],
)
def test_wrong_files_are_refused_before_anything_is_written(
    run: Run, tmp_path: Path, release: Path, changes: dict[str, str], words: tuple[str, ...]
) -> None:
    result = run("convert", *options(release, **changes), "-o", "model")
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        (["4+1=a"], "write NAME=BASE,RELAY"),
        (["3+1=a,b"], "--mode 3+1: the release has no networks distilled for such steps; write one of 4+1, 8+2"),
        (["fast=a,b"], "write one of 4+1"),
        (["50+12=a,b"], "write one of 4+1"),
        (["4+1=a,b", "4+1=c,d"], "--mode 4+1 is given twice"),
        (["4+1=a,b"], "a does not exist"),
    ],
)
def test_wrong_modes_are_refused(run: Run, tmp_path: Path, release: Path, modes: list[str], words: str) -> None:
    given = [part for mode in modes for part in ("--mode", mode)]
    result = run("convert", *options(release, *given), "-o", "model")
    assert result.exit_code == 2, result.output
    assert words in error_line(result)
    assert list(tmp_path.iterdir()) == []


def test_undistilled_networks_are_no_modes(run: Run, release: Path) -> None:
    result = run("convert", *options(release, "--mode", f"4+1={release / 'base'},{release / PLACES[3]}"), "-o", "model")
    assert result.exit_code == 2
    assert "base is not distilled, but modes/4+1/unet must be" in error_line(result)


def test_text_encoders_that_do_not_fit_are_refused(
    run: Run, tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> None:
        arguments = options(release)
        arguments[arguments.index("--text-encoder") + 1] = text
        result = run("convert", *arguments, "-o", "model")
        assert result.exit_code == 2, result.output
        assert all(word in error_line(result) for word in words), result.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"t5"}

    text = tmp_path / "t5"
    text.mkdir()
    for file in (release / "t5").iterdir():
        (text / file.name).write_bytes(file.read_bytes())
    config = json.loads((text / "config.json").read_text())
    (text / "config.json").write_text(json.dumps(config | {"d_model": 24}))
    refused("takes text 16 wide, but --text-encoder gives 24")
    (text / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused("holds a bert model: give T5's encoder")
    (text / "config.json").write_text("{")
    refused("holds no T5 encoder that can be loaded")
    (text / "config.json").unlink()
    refused("holds no T5 encoder that can be loaded")
    (text / "config.json").write_text(json.dumps(config))
    weights = text / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused("holds no T5 encoder that can be loaded", "download it again")
    weights.unlink()
    torch.save({}, text / "pytorch_model.bin")  # not even with weights_only: safetensors alone
    refused("holds no T5 encoder that can be loaded", "as safetensors")
    (text / "tokenizer.json").rename(text / "spiece.model")
    refused("holds no T5 encoder that can be loaded")
    monkeypatch.setattr(conversion, "is_sentencepiece_available", lambda: False)
    refused("spiece.model cannot be read: install sentencepiece and protobuf")


def test_the_published_tokenizer_is_read(run: Run, tmp_path: Path, release: Path) -> None:
    """T5's own format: a SentencePiece model instead of tokenizer.json."""
    text = tmp_path / "t5"
    text.mkdir()
    for name in ("config.json", "model.safetensors"):
        (text / name).write_bytes((release / "t5" / name).read_bytes())
    (text / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    sentences = ["a red star", "a blue circle left of a star", "the green ring above a red heart"] * 20
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    with (text / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=file, vocab_size=28, minloglevel=2, **special
        )
    result = run("convert", *options(release, **{"text-encoder": text}), "-o", "model")
    assert result.exit_code == 0, result.output
    tokenizer = CogView3Pipeline.from_pretrained("./model").tokenizer
    assert tokenizer.model_max_length == 225
    expected = sentencepiece.SentencePieceProcessor(model_file=str(text / "spiece.model")).encode("a red heart")
    assert tokenizer("a red heart").input_ids == [*expected, 1]


@pytest.mark.parametrize(
    ("value", "more", "words"),
    [
        (torch.nan, [], "holds numbers that are not finite"),
        (1e5, ["--dtype", "float16"], "holds a number too large for float16: choose --dtype"),
    ],
)
def test_the_text_encoders_numbers_are_checked(
    run: Run, tmp_path: Path, release: Path, make_text_encoder: Callable[[], Any], value: float, more: list[str],
    words: str,
) -> None:  # fmt: skip
    shutil.copytree(release / "t5", tmp_path / "t5")
    encoder = make_text_encoder().bfloat16()
    encoder.encoder.final_layer_norm.weight.data[1] = value
    encoder.save_pretrained(tmp_path / "t5")
    result = run("convert", *options(release, **{"text-encoder": tmp_path / "t5"}), "-o", "model", *more)
    assert result.exit_code == 2, result.output
    assert f"text_encoder: encoder.final_layer_norm.weight {words}" in error_line(result)
    assert not (tmp_path / "model").exists()


def test_an_autoencoder_of_other_channels_is_refused(run: Run, tmp_path: Path, release: Path) -> None:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    structure = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "latent_channels": 8}
    save_vae(AutoencoderKL(**structure, **kinds, scaling_factor=0.13025), tmp_path / "vae.safetensors")
    result = run("convert", *options(release, vae=tmp_path / "vae.safetensors"), "-o", "model")
    assert result.exit_code == 2, result.output
    assert "takes 4 and gives 4 channels, but --vae has 8" in error_line(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--unet, --relay-unet, --vae, --text-encoder missing"),
        (["--unet", "a", "--vae", "b"], "--relay-unet, --text-encoder missing"),
        (["scenes"], "scenes: a model is only converted with --to release"),
        (["--to", "release"], "--to release needs a model folder"),
        (["--to", "release", "scenes", "--vae", "b"], "--to release takes a model folder only; leave out --vae"),
        (["--to", "release", "none"], "no model 'none'"),
        (["--to", "release", "owner/name"], "owner/name"),
        (["--to", "onnx", "scenes"], "onnx"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_wrong_usage(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run("convert", *arguments, "-o", "out")
    assert result.exit_code == 2, result.output
    assert words in error_line(result)
    assert list(tmp_path.iterdir()) == []


def test_models_that_the_releases_files_cannot_hold_are_refused(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    result = run("convert", "--to", "release", tiny_model, "-o", "back")
    assert result.exit_code == 2
    assert "sdxl_vae.safetensors has not the release's structure: its widths" in error_line(result)
    CogView3Pipeline.from_pretrained(tiny_model).save_pretrained("other")
    path = Path("other/scheduler/scheduler_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    result = run("convert", "--to", "release", "other", "-o", "back")
    assert "its scheduler has prediction_type 'v_prediction', and the release's networks epsilon" in error_line(result)
    assert {item.name for item in tmp_path.iterdir()} == {"other"}


def test_foreign_folders_are_left_alone(run: Run, tmp_path: Path, release: Path, converted: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for arguments in (options(release), ["--to", "release", converted]):
        result = run("convert", *arguments, "-o", "mine")
        assert result.exit_code == 2
        assert "mine is not empty and holds no " in error_line(result)
    result = run("convert", *options(release), "-o", "none/model")
    assert "create it first" in error_line(result)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_an_earlier_model_stays_if_writing_fails(
    run: Run, tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("earlier")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cogview3.generation.conversion.write_sampling", fail)
        result = run("convert", *options(release), "-o", "model")
    assert result.exit_code == 1
    assert "No space left on device" in error_line(result)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "model_index.json"]
    assert run("convert", *options(release), "-o", "model").exit_code == 0
    assert Path("model/unet/config.json").is_file()


def test_distilled_networks_in_each_others_place_are_known_by_their_guidance(
    monkeypatch: pytest.MonkeyPatch, release: Path, run: Run
) -> None:
    """The release's bases embed guidance 512 wide, its relays 256; here all do so 8 wide."""
    for widths in ({"unet": 8, "relay_unet": 256}, {"unet": 512, "relay_unet": 8}):
        monkeypatch.setattr(conversion, "_GUIDANCE_WIDTHS", widths)
        result = run("convert", *options(release), *fast(release), "-o", "model")
        assert result.exit_code == 2
        assert "embeds guidance 8 wide" in error_line(result)
        assert "swap base and relay of --mode 4+1" in error_line(result)
