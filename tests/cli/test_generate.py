"""`generate` and `upscale` on a tiny random model."""

import json
import os
import shutil
import struct
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from transformers import T5EncoderModel
from typer.testing import Result

import cogview3
from cogview3 import CogView3Pipeline, references
from cogview3.cli import drawing, upscale
from cogview3.cli.errors import Terminated
from cogview3.cli.expand import ExpanderOptions, wants_expansion
from cogview3.cli.typed import MAX_FILE, gather_prompts
from cogview3.config import UserError
from cogview3.models.light import LightDecoder
from tests.cli.conftest import error_line

Run = Callable[..., Result]


def pixels(path: Path | str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_pictures_of_several_prompts(run: Run, tiny_model: Path) -> None:
    result = run(
        "generate", "a red star", "blue", "--model", tiny_model, "--count", 2, "--batch", 3, "--seed", 5, "--grid",
        "-o", "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    names = ["a-red-star-5", "a-red-star-6", "blue-7", "blue-8", "grid-5"]
    assert facts["files"] == [f"out/{name}.png" for name in names]
    assert facts["prompts"] == ["a red star"] * 2 + ["blue"] * 2
    assert facts["seeds"] == [5, 6, 7, 8]
    assert (facts["mode"], facts["steps"], facts["relay_steps"]) == ("2+2", 2, 2)
    assert facts["seconds"] > 0
    with Image.open("out/blue-8.png") as image:
        assert image.size == (64, 64)
        pipe = cogview3.CogView3Pipeline.from_pretrained(tiny_model)
        written = {"model": "tiny", "mode": "2+2", "steps": "2", "relays": "1", "relay_steps": "2"}
        written |= {"guidance": str(pipe.mode.guidance), "relay_guidance": str(pipe.mode.relay_guidance_scale)}
        written |= {"prompt": "blue", "seed": "8", "version": cogview3.__version__}
        assert image.text == written
    with Image.open("out/grid-5.png") as sheet, Image.open("out/blue-7.png") as image:
        assert sheet.size == (128, 128)
        assert sheet.crop((0, 64, 64, 128)).tobytes() == image.tobytes()


def test_what_a_picture_was_drawn_with_stands_in_it(run: Run, tiny_model: Path) -> None:
    command = ["generate", "a", "--model", tiny_model, "--seed", 0, "--guidance", 0, "-o"]
    assert run(*command, "a.png", "--relay-guidance", 1.5, "--tile-size", 64).exit_code == 0
    assert run(*command, "b.png", "--relays", 0).exit_code == 0
    assert run("upscale", "b.png", "--model", tiny_model, "--free-colors", "-o", "c.png").exit_code == 0
    names = ("guidance", "relays", "relay_steps", "relay_guidance", "tile_size", "keep_colors")
    found = []
    for name in "abc":
        with Image.open(f"{name}.png") as image:
            found.append([image.text.get(key) for key in names])
    assert found == [
        ["0.0", "1", "2", "1.5", "64", None],
        ["0.0", "0", None, None, None, None],
        [None, "1", "2", None, None, "False"],
    ]
    assert run("upscale", "b.png", "--model", tiny_model, "-o", "d.png").exit_code == 0
    with Image.open("d.png") as image:
        assert image.text["keep_colors"] == "True"  # by default, without a prompt


def test_a_prompt_may_be_called_as_the_sheet(run: Run, tiny_model: Path) -> None:
    result = run("generate", "grid", "--model", tiny_model, "--seed", 5, "--grid", "-o", "out", "--json")
    assert json.loads(result.stdout)["files"] == ["out/grid-5.png", "out/grid-5_all.png"]


def test_no_picture_is_lost_without_a_word(run: Run, tiny_model: Path) -> None:
    command = ["generate", "red", "--model", tiny_model, "--seed", 5]
    assert run(*command).stdout.splitlines()[0] == "red-5.png"
    first = Path("red-5.png").read_bytes()
    assert run(*command).stdout.splitlines()[0] == "red-5.png"
    other = run(*command, "--guidance", 1)
    assert other.stdout.splitlines()[0] == "red-5-2.png"
    assert Path("red-5.png").read_bytes() == first
    assert "red-5.png" not in other.stderr
    named = run(*command, "--guidance", 1, "-o", "red-5.png")
    assert "red-5.png held another picture, which is replaced" in named.stderr
    assert Path("red-5.png").read_bytes() == Path("red-5-2.png").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
def test_what_was_finished_is_named(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    draw, calls = CogView3Pipeline.__call__, []

    def stop_at_the_third(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        if len(calls) == 3:
            raise error
        return draw(*arguments, **options)

    monkeypatch.setattr(CogView3Pipeline, "__call__", stop_at_the_third)
    result = run("generate", "red", "--model", tiny_model, "--seed", 1, "--count", 5, "--batch", 1)
    assert result.exit_code == {KeyboardInterrupt: 130, Terminated: 143}[error]
    assert "2 of 5 pictures are finished: red-1.png to red-2.png" in error_line(result)


def test_prompts_of_single_words_are_told_apart_from_one_that_was_not_quoted(run: Run, tiny_model: Path) -> None:
    words = ["a", "red", "star"]
    told = run("generate", *words, "--model", tiny_model, "--seed", 1, "--relays", 0).stderr
    assert "3 prompts of one word each" in told
    assert "'a red star'" in told
    assert "quote" not in run("generate", "a red star", "--model", tiny_model, "--seed", 1, "--relays", 0).stderr


def test_pictures_do_not_pile_up(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many pictures only those are held that are being drawn, and are opened that are being enlarged."""
    held: list[weakref.ref] = []
    alive: list[int] = []
    save = drawing.save_png

    def note(image: Image.Image, *given: object) -> None:
        held.append(weakref.ref(image))
        alive.append(sum(ref() is not None for ref in held))
        save(image, *given)

    monkeypatch.setattr(drawing, "save_png", note)
    command = ["--model", tiny_model, "-o", "out"]
    assert run("generate", "a", "--count", 4, "--batch", 1, "--relays", 0, *command).exit_code == 0
    assert max(alive) <= 2  # the picture and, until its name is given anew, the one before
    opened: list[weakref.ref] = []
    open_ = upscale.open_picture
    monkeypatch.setattr(upscale, "open_picture", lambda path: opened.append(weakref.ref(p := open_(path))) or p)
    monkeypatch.setattr(drawing, "save_png", lambda *given: alive.append(sum(ref() is not None for ref in opened)))
    alive.clear()
    files = sorted(Path("out").iterdir())
    assert run("upscale", *files, *command).exit_code == 0
    assert len(opened) == 2 * len(files) == 8
    assert max(alive) <= 1


def test_a_picture_to_begin_with_may_have_any_name(run: Run, tiny_model: Path) -> None:
    name = os.fsdecode(b"p\xff.png")  # as Latin-1 writes a y with dots
    Image.linear_gradient("L").save(name)
    result = run("generate", "a", "--model", tiny_model, "--image", name, "-o", "a.png")
    assert result.exit_code == 0, result.output
    with Image.open("a.png") as image:
        assert image.text["image"] == "p?.png"


def test_a_picture_of_a_batch_comes_out_alike_alone(run: Run, tiny_model: Path) -> None:
    assert run("generate", "a", "--model", tiny_model, "--count", 2, "--seed", 8, "-o", "both").exit_code == 0
    result = run("generate", "a", "--model", tiny_model, "--seed", 9, "-o", "alone.png")
    assert result.stdout.splitlines()[0] == "alone.png"
    assert "seed 9" in result.stdout
    together, alone = pixels("both/a-9.png"), pixels("alone.png")
    # sums in another order move float32 by 1e-6 or so: now and then over the edge of one of 256 values
    assert max(abs(a - b) for a, b in zip(together, alone, strict=True)) <= 1
    assert pixels("both/a-8.png") != alone


def test_settings_reach_the_pipeline(run: Run, tiny_model: Path) -> None:
    assert run("generate", "a", "--model", tiny_model, "--seed", 0, "-o", "plain.png").exit_code == 0
    for number, option in enumerate(
        [
            ("--steps", 3),
            ("--relay-steps", 3),
            ("--guidance", 1.5),
            ("--relay-guidance", 1.5),
            ("--negative", "blue"),
            ("--fast",),
        ]
    ):
        result = run("generate", "a", "--model", tiny_model, "--seed", 0, "-o", f"{number}.png", *option)
        assert result.exit_code == 0, result.output
        assert pixels(f"{number}.png") != pixels("plain.png"), option
    for option, size in ({("--relays", 0): (32, 32), ("--size", "64x96"): (64, 96)}).items():
        assert run("generate", "a", "--model", tiny_model, "-o", "other.png", *option).exit_code == 0
        with Image.open("other.png") as image:
            assert image.size == size


def test_a_picture_to_begin_with(run: Run, tiny_model: Path) -> None:
    Image.linear_gradient("L").save("given.png")
    drawn = {}
    for strength in (None, "0.5", "1"):
        option = () if strength is None else ("--strength", strength)
        result = run(
            "generate", "a", "--model", tiny_model, "--seed", 0, "--image", "given.png", *option, "-o", "a.png"
        )
        assert result.exit_code == 0, result.output
        with Image.open("a.png") as image:
            assert image.text["image"] == "given.png"
            assert float(image.text["strength"]) == float(strength or 0.6)
        drawn[strength] = pixels("a.png")
    assert drawn["0.5"] != drawn["1"]
    assert run("generate", "a", "--model", tiny_model, "--strength", "0.5").exit_code == 2
    assert run("generate", "a", "--model", tiny_model, "--image", "none.png").exit_code == 2


def test_adapters_change_the_pictures_as_much_as_their_scale_says(
    run: Run, tiny_model: Path, make_unet: Callable[..., UNet2DConditionModel]
) -> None:
    unet = make_unet()
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    CogView3Pipeline.save_lora_weights("run/weights", unet_lora_layers=get_peft_model_state_dict(unet))
    command = ["generate", "a", "--model", tiny_model, "--seed", 0, "-o"]
    for name, options in {"plain": [], "none": ["--lora", "run:0"], "full": ["--lora", "run"]}.items():
        result = run(*command, f"{name}.png", *options)
        assert result.exit_code == 0, result.output
    assert pixels("none.png") == pixels("plain.png") != pixels("full.png")
    with Image.open("full.png") as image:
        assert image.text["lora"] == "run"
    assert "--lora nowhere:0.5: no such file" in error_line(run(*command, "x.png", "--lora", "nowhere:0.5"))


def test_known_prompts_need_no_text_encoder(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("generate", "a", "--model", tiny_model, "--seed", 0, "--prompt-cache", "cache", "-o")
    loaded = []
    original = T5EncoderModel.from_pretrained
    monkeypatch.setattr(
        T5EncoderModel, "from_pretrained", lambda *args, **options: loaded.append(1) or original(*args, **options)
    )
    for number, name in enumerate(("first.png", "second.png")):
        result = run(*command, name)
        assert result.exit_code == 0, result.output
        assert len(loaded) == 1, number
    assert pixels("first.png") == pixels("second.png")
    assert len(list(Path("cache").iterdir())) == 1
    assert run("generate", "a", "--model", "owner/name", "--prompt-cache", "cache").exit_code == 2
    assert run("generate", "a", "--model", tiny_model, "--prompt-cache", "first.png").exit_code == 2


def test_prompts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffein Stern\r\n\r\n  红 \n".encode())
    assert gather_prompts(["first"], file) == ["first", "ein Stern", "红"]


@pytest.mark.parametrize(
    ("prompts", "content", "reason"),
    [
        ([], None, "no prompt"),
        (["a", " \n"], None, "prompt 2 is empty"),
        (["\udcff"], None, "prompt 1 is not valid UTF-8"),
        ([], b"\n \n", "no prompts in it"),
        ([], b"\xff\xfe", "not UTF-8"),
        ([], "a red circle".encode("utf-16-le"), "NUL characters"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, prompts: list[str], content: bytes | None, reason: str) -> None:
    file = None
    if content is not None:
        file = tmp_path / "prompts.txt"
        file.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        gather_prompts(prompts, file)


def test_a_file_too_large_for_prompts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    with file.open("wb") as opened:
        opened.truncate(MAX_FILE + 1)
    with pytest.raises(UserError, match=f"{MAX_FILE + 1} .*{MAX_FILE}"):
        gather_prompts([], file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no prompt"]),
        ([""], ["prompt 1 is empty"]),
        (["a", "--file", "none.txt"], ["none.txt", "No such file"]),
        (["a", "--count", "0"], ["--count", "0"]),
        (["a", "b", "--count", "500001"], ["--count 500001", "1000002"]),
        (["a", "--steps", "0"], ["--steps", "0"]),
        (["a", "--steps", "-1"], ["--steps", "-1"]),
        (["a", "--steps", "1001"], ["--steps", "1001"]),
        (["a", "--relay-steps", "0"], ["--relay-steps", "0"]),
        (["a", "--relays", "9"], ["--relays", "9"]),
        (["a", "--seed", "-1"], ["--seed", "-1"]),
        (["a", "--guidance", "nan"], ["--guidance", "nan"]),
        (["a", "--negative", "\udcff"], ["--negative is not valid UTF-8"]),
        (["a", "--relay-guidance", "inf"], ["--relay-guidance", "inf"]),
        (["a", "--size", "big"], ["--size", "big"]),
        (["a", "--fast", "--mode", "8+2"], ["--fast", "8+2"]),
        (["a", "--device", "abacus"], ["--device", "abacus"]),
        (["a", "--dtype", "int3"], ["--dtype", "int3"]),
        (["a", "-o", "x.jpg"], ["x.jpg", "PNG"]),
        (["a", "-o", "none/x.png"], ["none", "does not exist"]),
        (["a", "-o", "none/x"], ["none", "does not exist"]),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    def loaded(*given: object, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(cogview3.CogView3Pipeline, "from_pretrained", loaded)
    result = run("generate", *arguments)
    assert result.exit_code == 2, result.output
    line = error_line(result)
    assert all(word in line for word in words), line
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tile-size", "100"], ["tile_size 100", "128"]),
        (["--size", "100x128"], ["width", "100"]),
        (["--size", "99999x16"], ["99999"]),
        (["--mode", "8+2"], ["8+2", "2+2, 4+1"]),
        (["--fast", "--steps", "3"], ["3", "4+1"]),
        (["--fast", "--guidance", "13"], ["13", "4+1"]),
    ],
)
def test_what_only_the_model_knows_is_refused_too(
    run: Run, tiny_model: Path, arguments: list[str], words: list[str]
) -> None:
    result = run("generate", "a", "--model", tiny_model, *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("arguments", [["--mode", "8+2"], ["--offload", "model", "--device", "cpu"]])
def test_no_expander_is_asked_before_the_options_are_checked(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def opened(*given: object, **options: object) -> None:
        raise AssertionError("the expander was opened")

    monkeypatch.setattr("cogview3.cli.generate.open_expander", opened)
    result = run("generate", "a", "--expand", "--model", tiny_model, *arguments)
    assert result.exit_code == 2, result.output
    assert arguments[1] in error_line(result)


def test_prompts_are_expanded_where_the_model_has_an_expander_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "expander").mkdir()
    (tmp_path / "with" / "model_index.json").write_text("{}")
    nothing, named = ExpanderOptions(), ExpanderOptions(expander="./a-t5")
    assert wants_expansion(None, str(tmp_path / "with"), nothing)
    assert not wants_expansion(False, str(tmp_path / "with"), nothing)
    assert not wants_expansion(None, str(tiny_model), nothing)
    assert wants_expansion(True, str(tiny_model), nothing)
    assert wants_expansion(None, str(tiny_model), named)
    with pytest.raises(UserError, match="--expander"):
        wants_expansion(False, str(tiny_model), named)


def test_model_folders_that_are_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for name in ("none", "empty", "file", "foreign"):
        result = run("generate", "a", "--model", name)
        assert result.exit_code == 2, result.output
        assert name in error_line(result)


def test_a_long_prompt_is_cut_with_a_warning(run: Run, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run("generate", "a red star " * 2000, "--model", tiny_model, "--relays", 0, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "left out" in caplog.text
    assert max(len(path.name) for path in Path().iterdir()) < 80


def test_words_unknown_to_the_bundled_model_are_named(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "bundled" / "scenes")
    monkeypatch.setattr(references, "BUNDLED", tmp_path / "bundled")
    prompt = "a red cirlce left of a zebrafish"
    for model, warned in ((tiny_model, False), ("scenes", True)):
        result = run("generate", prompt, "--model", model, "--relays", 0, "--steps", 1, "-o", "a.png")
        assert result.exit_code == 0, result.output
        assert ("'cirlce'; similar words: circle" in result.stderr) is warned
        assert (repr(prompt) in result.stderr) is warned
        assert ("'zebrafish'" in result.stderr) is warned
        assert "'red'" not in result.stderr


def test_enlarging(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    Image.new("L", (37, 20), 99).save(tmp_path / "a.png")
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "b.webp")
    result = run(
        "upscale", "a.png", "b.webp", "--model", tiny_model, "--prompt", "red", "--seed", 3, "-o", "out", "--json"
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["files"] == ["out/a-2x.png", "out/b-2x.png"]
    assert facts["seeds"] == [3, 4]
    with Image.open("out/a-2x.png") as image:
        assert image.size == (74, 40)
        assert image.text["prompt"] == "red"
        assert image.text["seed"] == "3"
    assert run("upscale", "b.webp", "--model", tiny_model, "--relays", 2, "-o", "four.png").exit_code == 0
    with Image.open("four.png") as image:
        assert image.size == (64, 64)


def test_pictures_that_are_still_to_be_enlarged_are_not_written_over(run: Run, tmp_path: Path) -> None:
    for name in ("a", "a-2x"):
        Image.new("RGB", (8, 8), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    before = (tmp_path / "a-2x.png").read_bytes()
    result = run("upscale", "a.png", "./a-2x.png", "--model", "none")
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in ("a.png", "a-2x.png", "--out"))
    assert (tmp_path / "a-2x.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.png"], ["none.png", "No such file"]),
        (["text.png"], ["text.png", "not a picture"]),
        (["a.png", "--relays", "0"], ["--relays", "0"]),
        (["a.png", "--guidance", "nan"], ["--guidance", "nan"]),
        (["a.png", "--prompt", ""], ["--prompt is empty"]),
        (["a.png", "--negative", " "], ["--negative is empty"]),
        (["a.png", "--prompt", "\udcff"], ["--prompt is not valid UTF-8"]),
        (["a.png", "-o", "x.jpg"], ["x.jpg", "PNG"]),
    ],
)
def test_bad_pictures_are_refused_before_the_model_is_loaded(
    run: Run, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("hello")
    result = run("upscale", *arguments, "--model", "none")
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr


def test_light_parts_and_sampler(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    refused = run("generate", "blue", "--model", tiny_model, "--light")
    assert refused.exit_code == 2
    assert "no tiny autoencoder" in error_line(refused)
    pipe = cogview3.CogView3Pipeline.from_pretrained(tiny_model)
    pipe.register_modules(light_decoder=LightDecoder(width=8, num_blocks=1))
    pipe.save_pretrained(tmp_path / "light")
    plain = run("generate", "blue", "--model", "light", "--seed", 1, "--json")
    light = run("generate", "blue", "--model", "light", "--seed", 1, "--light", "--sampler", "dpm++", "--json")
    assert light.exit_code == 0, light.output
    facts, others = json.loads(light.stdout), json.loads(plain.stdout)
    assert (facts["light"], facts["sampler"]) == (True, "dpm++")
    assert (others["light"], others["sampler"]) == (None, None)
    with Image.open(facts["files"][0]) as image:
        assert (image.text["light"], image.text["sampler"]) == ("True", "dpm++")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    enlarged = run("upscale", "a.png", "--model", "light", "--light", "--json")
    assert json.loads(enlarged.stdout)["light"] is True
    assert run("generate", "blue", "--model", "light", "--sampler", "heun").exit_code == 2


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims a size, as a hostile file may."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, b"IDAT")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upscale", "one.png"], ["image is 1x1", "at least 4 pixels"]),
        (["upscale", "one.png", "--guidance", "9"], ["--guidance 9 needs a --prompt"]),
        (["generate", "a", "--relays", "0", "--relay-steps", "3"], ["--relay-steps 3 is for a relay"]),
        (["generate", "a", "--relays", "0", "--relay-guidance", "5"], ["--relay-guidance 5 is for a relay"]),
        (["upscale", "huge.png"], ["huge.png: give at most 67 million pixels", "900000000 pixels"]),
        (["upscale", "large.png"], ["large.png is 9000x9000: give at most 67 million pixels"]),
        (["upscale", "long.png"], ["image is 9000x8", "at most 4096"]),
        (["generate", "red", "--image", "huge.png"], ["give at most 67 million pixels"]),
        (["generate", "red", "--fast", "--steps", "50"], ["steps is 50", "distilled for 4"]),
        (["generate", "red", "--fast", "--guidance", "20"], ["guidance is 20", "distilled for 1 to 12"]),
        (["generate", "red", "--fast", "--negative", "blue"], ["no negative branch"]),
        (["generate", "red", "--size", "100x64"], ["width 100 is not a multiple of 16", "nearest is 96"]),
        (["generate", "red", "--offload", "model", "--device", "cpu"], ["--offload model", "leave it out"]),
        (["generate", "red", "--quantize", "fp8", "--device", "cpu"], ["--quantize fp8", "use int8"]),
    ],
)
def test_hostile_sizes_and_settings_are_refused(
    run: Run, tiny_model: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    Image.new("RGB", (9000, 8)).save(tmp_path / "long.png")
    (tmp_path / "huge.png").write_bytes(png_header(30_000, 30_000))
    (tmp_path / "large.png").write_bytes(png_header(9000, 9000))
    result = run(*arguments, "--model", tiny_model)
    assert result.exit_code == 2, result.output
    assert all(word in error_line(result) for word in words), result.stderr


def test_too_little_gpu_memory_is_told_before_anything_is_loaded(
    run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**20, 2**30))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    result = run("generate", "red", "--model", tiny_model, "--device", "cuda")
    assert result.exit_code == 1, result.output
    assert "GiB of GPU memory are needed and 0.0 are free: no mode fits" in error_line(result)


def test_memory_and_speed_options(run: Run, tiny_model: Path) -> None:
    options = ["--quantize", "int8", "--drop-text-encoder", "--vae-slicing", "--vae-tiling"]
    result = run("generate", "red", "--model", tiny_model, "--seed", 1, "-o", "a.png", *options)
    assert result.exit_code == 0, result.output
    with Image.open("a.png") as image:
        assert image.size == (64, 64)
