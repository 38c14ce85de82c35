"""Latents ahead of training: what the tars hold, that they are whole, and whose they are."""

import errno
import io
import json
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from typer.testing import CliRunner

from cogview3.cli.app import app
from cogview3.config import UserError
from cogview3.data import addresses, encoded, encoder
from cogview3.data.buckets import fit
from cogview3.data.encode import Encoding, encode_shards
from cogview3.data.encoded import (
    Encoded,
    Preprocessing,
    encoded_bytes,
    latent_notes,
    read_encoded,
    vae_fingerprint,
)
from cogview3.data.encoder import encode_shard
from cogview3.data.formats import find_shards
from cogview3.data.report import Broken
from cogview3.data.shards import CaptionedImages
from cogview3.data.tars import LatentShard, have_latents, latents_of
from tests.data.conftest import all_keys, ordinary, parquet_bytes, picture, tar_bytes, write_tars
from tests.data.conftest import encoded as picture_file
from tests.processes import run_command

SIZES = (5, 4)


@pytest.fixture
def model(
    make_vae: Callable[..., AutoencoderKL],
    make_text_encoder: Callable[[], torch.nn.Module],
    make_tokenizer: Callable[..., object],
    tmp_path: Path,
) -> Path:
    """A model folder with a VAE and a text encoder."""
    make_vae().save_pretrained(tmp_path / "model" / "vae")
    make_text_encoder().save_pretrained(tmp_path / "model" / "text_encoder")
    make_tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    return tmp_path / "model"


@pytest.fixture
def tars(tmp_path: Path) -> list[str]:
    return write_tars(tmp_path / "tars", SIZES)


def encoding(model: Path, **changes: object) -> Encoding:
    settings = {"size": 64, "bucket_step": 32, "bucket_ratio": 2.0, "crop": "center", "low": None, **changes}
    return Encoding(str(model), Preprocessing(vae_fingerprint(model / "vae"), None, **settings), batch=2)


def contents(address: str) -> dict[str, bytes]:
    with tarfile.open(address) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_the_tar_holds_what_the_encoder_says(model: Path, tars: list[str]) -> None:
    report, told = encode_shards(find_shards(tars), encoding(model, low=(0.0, 0.0)))
    assert (report.samples, told["shards"], told["finished_before"], told["images"]) == (9, 2, 0, 9)
    assert told["images_per_second"] > 0
    vae = AutoencoderKL.from_pretrained(model / "vae")
    files = contents(tars[0].replace(".tar", ".latents.tar"))
    keys = all_keys(SIZES)[:5]
    assert list(files) == [
        "__latents__.json",
        *(f"{key}.{end}" for key in keys for end in ("safetensors", "txt", "json")),
    ]
    for number, key in enumerate(keys):
        assert files[f"{key}.txt"] == f"old {key}".encode()
        assert json.loads(files[f"{key}.json"]) == {"key": key}
        image = np.asarray(fit(stored(picture(number)), (64, 64))[0], np.float32)
        x0 = torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None]
        half = torch.nn.functional.interpolate(x0, scale_factor=0.5, mode="bilinear", align_corners=False)
        x_low = torch.nn.functional.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        made = read_encoded(files[f"{key}.safetensors"])
        assert (made.original, made.crop, made.target) == ((16, 16), (0, 0), (64, 64))
        with torch.no_grad():
            for given, (mean, logvar) in (
                (x0, (made.mean, made.logvar)),
                (x_low, (made.low_mean, made.low_logvar)),
            ):
                expected = vae.encode(given).latent_dist
                # float16 keeps eleven bits of numbers of a few units
                torch.testing.assert_close(torch.from_numpy(mean).float(), expected.mean[0], atol=2e-3, rtol=1e-3)
                torch.testing.assert_close(torch.from_numpy(logvar).float(), expected.logvar[0], atol=2e-3, rtol=1e-3)


def stored(image: object) -> object:
    """A picture as it comes back out of its JPEG."""
    from cogview3.data.images import decode

    return decode(picture_file(image), "jpg").image


def test_embeddings_of_both_captions_lie_beside(model: Path, tars: list[str], components: dict) -> None:
    key = all_keys(SIZES)[1]
    rows = {"key": [key], "new": ["a red star"], "status": ["ok"]}
    Path(tars[0].replace(".tar", ".captions.parquet")).write_bytes(parquet_bytes(rows))
    read = encoding(model)
    encode_shard(find_shards(tars)[0], replace(read, text=str(model)))
    files = contents(tars[0].replace(".tar", ".latents.tar"))
    texts = read_encoded(files[f"{key}.safetensors"]).texts
    assert set(texts) == {f"old {key}", "a red star"}
    tokens = components["tokenizer"]("a red star", padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = components["text_encoder"](tokens).last_hidden_state[0]
    torch.testing.assert_close(torch.from_numpy(texts["a red star"]).float(), expected, atol=2e-3, rtol=1e-3)
    assert set(read_encoded(files[f"{all_keys(SIZES)[0]}.safetensors"]).texts) == {f"old {all_keys(SIZES)[0]}"}


def test_random_crops_differ_by_picture_and_come_again(model: Path, tmp_path: Path) -> None:
    files = []
    for number in range(12):
        wide = picture_file(picture(number, 200, 64))
        files += [(f"{number:02}.jpg", wide), (f"{number:02}.txt", b"wide")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    shard = find_shards([str(tmp_path / "a.tar")])[0]
    tars = []
    for _ in range(2):
        encode_shards([shard], encoding(model, crop="random", bucket_ratio=1.0), overwrite=True)
        tars.append(contents(latents_of(shard).address))
        Path(latents_of(shard).address).unlink()
    assert tars[0] == tars[1]
    made = [read_encoded(data) for name, data in tars[0].items() if name.endswith("safetensors")]
    assert all(item.target == (64, 64) and item.crop[0] == 0 for item in made)
    lefts = [item.crop[1] for item in made]
    assert len(set(lefts)) > 8
    assert max(lefts) <= 200 - 64


def test_finished_shards_are_left_and_others_refused_or_replaced(model: Path, tars: list[str]) -> None:
    shards = find_shards(tars)
    encode_shards(shards, encoding(model))
    first = Path(tars[0].replace(".tar", ".latents.tar")).read_bytes()
    Path(tars[1].replace(".tar", ".latents.tar")).unlink()
    assert have_latents(shards) == [True, False]
    seen: list[int] = []
    report, told = encode_shards(shards, encoding(model), progress=seen.append)
    assert (report.samples, told["finished_before"], told["images"], seen) == (9, 1, 4, [2])
    assert Path(tars[0].replace(".tar", ".latents.tar")).read_bytes() == first
    with pytest.raises(
        UserError, match=r"00000.latents.tar was encoded with other options: size \(64 there, 32 here\)"
    ):
        encode_shards(shards, encoding(model, size=32))
    assert encode_shards(shards, encoding(model, size=32), overwrite=True)[1]["finished_before"] == 0
    other = replace(
        encoding(model, size=32), preprocessing=replace(encoding(model, size=32).preprocessing, vae="other")
    )
    with pytest.raises(UserError, match=r"vae \([0-9a-f]{16} there, other here\)"):
        encode_shards(shards, other)
    Path(tars[0].replace(".tar", ".latents.tar")).write_bytes(first[:300])
    with pytest.raises(UserError, match=r"00000.latents.tar: damaged"):
        encode_shards(shards, encoding(model))
    assert find_shards([str(Path(tars[0]).parent)]) == shards, "latents are no shards of their own"


def test_of_two_encodings_at_once_the_later_one_replaces_nothing(
    model: Path, tars: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, shards = encoder.encode_shard, find_shards(tars[:1])

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(encoder, "encode_shard", encode)
        encode_shards(shards, encoding(model, size=32))
        return encode(*arguments)

    monkeypatch.setattr(encoder, "encode_shard", overtaken)
    with pytest.raises(UserError, match=r"00000.latents.tar was .* other options: size \(32 there, 64 here\)"):
        encode_shards(shards, encoding(model))
    assert latent_notes(latents_of(shards[0]))["preprocessing"]["size"] == 32
    assert not list(Path(tars[0]).parent.glob(".*"))
    monkeypatch.setattr(encoder, "encode_shard", overtaken)
    encode_shards(shards, encoding(model), overwrite=True)
    assert latent_notes(latents_of(shards[0]))["preprocessing"]["size"] == 64


def test_another_vae_has_another_fingerprint(model: Path, make_vae: Callable[..., AutoencoderKL]) -> None:
    before, same = vae_fingerprint(model / "vae"), make_vae()
    same.save_pretrained(model / "again" / "vae")
    assert vae_fingerprint(model / "again" / "vae") == before
    same.register_to_config(scaling_factor=0.7)
    same.save_pretrained(model / "scaled" / "vae")
    with torch.no_grad():
        same.register_to_config(scaling_factor=0.5)
        same.quant_conv.bias += 1e-3
    same.save_pretrained(model / "moved" / "vae")
    prints = {vae_fingerprint(model / name / "vae") for name in ("scaled", "moved")} | {before}
    assert len(prints) == 3
    with pytest.raises(UserError, match=rf"{model}: no \.safetensors file"):
        vae_fingerprint(model)


def test_broken_pictures_are_counted_and_a_keep_sidecar_is_obeyed(model: Path, tmp_path: Path) -> None:
    files = [
        *ordinary("a"),
        ("b.jpg", b"\xff\xd8\xff"),
        ("b.txt", b"x"),
        *ordinary("c"),
        ("d.jpg", ordinary("d")[0][1]),
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    keep = {"key": ["a", "b", "c", "d"], "keep": [True, True, False, True], "reason": ["", "", "ugly", ""]}
    (tmp_path / "a.keep.parquet").write_bytes(parquet_bytes(keep))
    shards = find_shards([str(tmp_path / "a.tar")])
    for _ in range(2):  # made, and told of when it is there
        report, _ = encode_shards(shards, encoding(model))
        assert (report.samples, report.filtered) == (1, {"ugly": 1})
        assert report.broken.total() == 2
        assert report.broken["missing caption"] == 1
    reader = CaptionedImages([str(tmp_path / "a.tar")], epochs=1, encoded=encoding(model).preprocessing)
    assert [(sample.key, sample.image) for sample in reader] == [("a", None)]
    assert reader.report.broken.total() == 0


def test_what_is_interrupted_leaves_nothing(model: Path, tars: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*arguments: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)

    real = encoder._posteriors
    monkeypatch.setattr(encoder, "_posteriors", fail)
    before = sorted(path.name for path in Path(tars[0]).parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        encode_shards(find_shards(tars), encoding(model))
    assert sorted(path.name for path in Path(tars[0]).parent.iterdir()) == before


def kill_in_the_second_shard() -> None:
    real, calls = encoder._posteriors, []

    def kill(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:  # of three batches in the first shard
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    encoder._posteriors = kill


def test_the_same_command_goes_on_after_a_kill(model: Path, tars: list[str], tmp_path: Path) -> None:
    others = write_tars(tmp_path / "others", SIZES)
    options = ["--vae", str(model), "--size", "64", "--batch", "2", "--device", "cpu", "--json"]
    command = ["data", "encode", str(Path(tars[0]).parent), *options]
    killed = run_command(*command, before=kill_in_the_second_shard)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = {path.name for path in Path(tars[0]).parent.iterdir()} - {"00000.tar", "00001.tar", "00000.latents.tar"}
    assert [name.startswith(".00001.latents.tar.") for name in names] == [True]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["shards"], told["finished_before"], told["encoded"], told["images"]) == (2, 1, 9, 4)
    assert CliRunner().invoke(app, ["data", "encode", *others, *options]).exit_code == 0
    for path, other in zip(tars, others, strict=True):
        made, expected = (Path(each.replace(".tar", ".latents.tar")).read_bytes() for each in (path, other))
        assert made == expected


def test_a_shard_that_cannot_be_read_gets_no_latents(
    model: Path, tars: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tars = [*tars, *write_tars(Path(tars[0]).parent / "more", (3,))]
    shards = find_shards(tars)
    content = Path(tars[1]).read_bytes()
    Path(tars[1]).unlink()
    with pytest.raises(UserError, match=r"00001\.tar: missing tar \(No such file.*run the command again"):
        encode_shards(shards, encoding(model))
    assert have_latents(shards) == [True, False, False]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        cut = tar.getmembers()[-1].offset
    Path(tars[1]).write_bytes(content[:cut])  # a cut one is what it is
    report, told = encode_shards(shards[:2], encoding(model))
    assert (told["finished_before"], report.samples, report.broken) == (1, 8, {"cut tar": 1})

    real = addresses.open_address

    def refuse(address: str) -> object:
        if not address.endswith("more/00000.tar"):
            return real(address)
        raise PermissionError(errno.EACCES, "Permission denied", address)

    monkeypatch.setattr(addresses, "open_address", refuse)
    with pytest.raises(UserError, match=r"more/00000\.tar: unreadable tar \(Permission denied\); nothing was written"):
        encode_shards(shards, encoding(model))
    assert have_latents(shards) == [True, True, False]


def test_overwriting_does_not_look_at_what_is_there(model: Path, tars: list[str]) -> None:
    shards = find_shards(tars)
    encode_shards(shards, encoding(model))
    made = [Path(path.replace(".tar", ".latents.tar")) for path in tars]
    expected = [path.read_bytes() for path in made]
    made[0].write_bytes(expected[0][:300])
    with tarfile.open(made[1], "w") as tar:  # sound, of the same options, and empty
        notes = json.dumps(read_notes_of(expected[1])).encode()
        member = tarfile.TarInfo("__latents__.json")
        member.size = len(notes)
        tar.addfile(member, io.BytesIO(notes))
    with pytest.raises(UserError, match=r"00000\.latents\.tar: damaged .*--overwrite"):
        encode_shards(shards, encoding(model))
    report, told = encode_shards(shards, encoding(model), overwrite=True)
    assert (report.samples, told["finished_before"], told["images"]) == (9, 0, 9)
    assert [path.read_bytes() for path in made] == expected


def read_notes_of(content: bytes) -> dict[str, object]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return json.loads(tar.extractfile("__latents__.json").read())


def test_another_seed_or_dtype_is_refused(model: Path, tars: list[str]) -> None:
    shards = find_shards(tars[:1])
    encode_shards(shards, encoding(model))
    notes = latent_notes(latents_of(shards[0]))
    assert (notes["seed"], notes["dtype"]) == (0, "float32")
    other = replace(encoding(model), seed=3, precision="bfloat16")
    with pytest.raises(
        UserError, match=r"with other options: seed \(0 there, 3 here\), dtype \(float32 there, bfloat16 here\);"
    ):
        encode_shards(shards, other)


def test_commands_refuse_latents_as_shards(model: Path, tars: list[str]) -> None:
    encode_shards(find_shards(tars), encoding(model))
    latents = str(Path(tars[0]).parent / "*.latents.tar")
    for command in (["stats"], ["filter", "--duplicates"], ["encode", "--vae", str(model), "--size", "64"]):
        refused = CliRunner().invoke(app, ["data", *command, latents])
        assert refused.exit_code == 2, refused.output
        assert "00000.latents.tar: latents, not a shard; give the shards" in refused.output
    assert not list(Path(tars[0]).parent.glob("*.latents.keep.parquet"))


def test_folders_and_remote_addresses_have_theirs_beside(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, content in ordinary("a"):
        (folder / name).write_bytes(content)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/encode/00000.tar", tar_bytes(ordinary("a")))
    for address, place in ((str(folder), f"{folder}/latents.tar"), ("memory://encode/00000.tar", None)):
        shards = find_shards([address])
        assert have_latents(shards) == [False]
        encode_shards(shards, encoding(model))
        assert have_latents(shards) == [True]
        assert place is None or latents_of(shards[0]).address == place
        assert find_shards([address]) == shards
        sample = next(CaptionedImages([address], encoded=encoding(model).preprocessing))
        assert (sample.key, sample.caption, sample.encoded.target) == ("a", "old a", (64, 64))
    fs.rm("/encode", recursive=True)


def some(**changes: object) -> Encoded:
    values = np.zeros((4, 2, 3), np.float16)
    return Encoded(values, values + 1, None, None, (9, 9), (0, 1), (16, 24), **changes)


def test_files_that_are_no_latents_are_broken() -> None:
    good = encoded_bytes(some(texts={"x": np.ones((2, 5), np.float16)}), "x", "y")
    again = read_encoded(good)
    assert again.texts.keys() == {"x"}
    assert (again.mean.shape, again.low_mean) == ((4, 2, 3), None)
    shrunk = encoded_bytes(replace(some(), target=(8, 8)))
    for data in (b"", good[:-4], b"x" * 99, shrunk):
        with pytest.raises(Broken, match="damaged latents"):
            read_encoded(data)


def test_other_implementations_read_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(encoded_bytes(some()))
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert sorted(file.keys()) == ["logvar", "mean", "size"]
        assert file.get_tensor("size").tolist() == [9, 9, 0, 1, 16, 24]


def test_notes_are_read_without_the_rest(tmp_path: Path) -> None:
    assert latent_notes(LatentShard(str(tmp_path / "none.latents.tar"))) is None
    (tmp_path / "b.latents.tar").write_bytes(tar_bytes([("a.txt", b"x")]))
    with pytest.raises(UserError, match=r"it does not begin with __latents__\.json"):
        latent_notes(LatentShard(str(tmp_path / "b.latents.tar")))
    address = str(tmp_path / "c.latents.tar")
    with pytest.raises(ValueError, match=r"notes of 500\d\d bytes"), encoded.write_latents(address) as (_, notes):
        notes["long"] = "x" * 50000
    assert not Path(address).exists()


def test_numbers_that_float16_cannot_hold_are_told() -> None:
    with pytest.raises(FloatingPointError, match=r"autoencoder .*--dtype float32"):
        encoder._half(torch.tensor([1e6]), "autoencoder")


def test_workers_are_spread_over_devices(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = replace(encoding(model), devices=("cuda:0", "cuda:1"))
    found = []
    for identity in ((), (1,), (2,), (3,)):
        monkeypatch.setattr(
            multiprocessing, "current_process", lambda identity=identity: SimpleNamespace(_identity=identity)
        )
        found.append(encoder._device(spread))
    assert found == ["cuda:0", "cuda:0", "cuda:1", "cuda:0"]


def test_the_command(model: Path, tars: list[str]) -> None:
    command = ["data", "encode", *tars, "--vae", str(model), "--text", str(model), "--size", "64", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--relay", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["encoded"], told["images"], told["finished_before"], told["broken"]) == (9, 9, 0, {})
    shown = CliRunner().invoke(app, [*command, "--relay"])
    assert "2 of them finished before" in shown.output
    notes = latent_notes(latents_of(find_shards(tars)[0]))["preprocessing"]
    assert (notes["size"], notes["bucket_step"], notes["crop"], notes["relay"]) == (64, 64, "random", True)
    for more, words in (
        ([], "relay (True there, False here)"),
        (["--squares", "--relay", "--dtype", "float16"], "--dtype float16"),
        (["--degraded-share", "0.5"], "are for --relay"),
        (["--relay", "--degraded-share", "0.5", "--reconstructed-share", "0.6"], "give at most 0.4"),
        (["--relay", "--bucket-step", "48"], "--bucket-step 48"),
        (["--size", "96"], "--bucket-step 64"),
        (["--size", "100"], "--size 100"),
        (["--size", "80", "--bucket-step", "40"], "--bucket-step 40"),
    ):
        refused = CliRunner().invoke(app, [*command, *more])
        assert refused.exit_code == 2, refused.output
        assert words in " ".join(refused.output.split())
