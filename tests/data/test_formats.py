"""Where shards lie and how they are walked: tars cut and damaged, folders, addresses."""

import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from cogview3.config import UserError
from cogview3.data import addresses
from cogview3.data.formats import find_shards
from cogview3.data.shards import CaptionedImages
from tests.data.conftest import (
    all_keys,
    encoded,
    keys,
    ordinary,
    parquet_bytes,
    picture,
    resumed,
    tar_bytes,
    write_tars,
)


def test_what_is_sound_agrees_with_webdataset(tars: list[str]) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    theirs = []
    for path in tars:
        with open(path, "rb") as file:
            theirs += group_by_keys({**entry, "__url__": path} for entry in tar_file_iterator(file))
    ours = list(CaptionedImages(tars, epochs=1, buffer=0))
    assert len(ours) == 15
    for sample, other in zip(ours, theirs, strict=True):
        assert (sample.shard, sample.key) == (other["__url__"], other["__key__"])
        assert sample.caption == other["txt"].decode()
        assert sample.metadata == json.loads(other["json"])
        assert np.array_equal(np.asarray(sample.image), np.asarray(Image.open(io.BytesIO(other["jpg"]))))


def test_a_cut_tar_gives_what_is_before_the_cut(tmp_path: Path) -> None:
    whole = tar_bytes([file for key in "abcd" for file in ordinary(key)])
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        start = tar.getmember("d.jpg").offset
        end = tar.getmember("d.json").offset_data + 512
    # without the next header, nobody knows whether a sample was complete
    cuts = {start + 700: "abc", start + 100: "ab", start: "ab", 0: "", end: "abc", end + 512: "abcd"}
    for cut, left in cuts.items():
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        for order in (0, 7):
            reader = CaptionedImages([str(tmp_path / "a.tar")], epochs=1, buffer=order)
            assert sorted(keys(reader)) == list(left), cut
            assert reader.report.broken == Counter({} if left == "abcd" else {"cut tar": 1}), cut


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    content = bytearray(tar_bytes([file for key in "abcd" for file in ordinary(key)]))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        content[tar.getmember("d.jpg").offset + 150] ^= 255  # in the checksum
    (tmp_path / "a.tar").write_bytes(content)
    reader = CaptionedImages([str(tmp_path / "a.tar")], epochs=1, buffer=0)
    assert keys(reader) == ["a", "b"]
    assert reader.report.broken == {"damaged tar": 1}


def test_a_tar_that_is_gone_counts_once(tars: list[str]) -> None:
    Path(tars[1]).unlink()
    address = tars[0].replace("00000", "{00000..00002}")
    readers = [CaptionedImages([address], epochs=1, parts=5, part=part) for part in range(5)]
    got = sorted(key for reader in readers for key in keys(reader))
    assert got == [key for key in all_keys() if not key.startswith("0001")]
    assert sum((reader.report.broken for reader in readers), Counter()) == {"missing tar": 1}


def test_folders_are_read_like_tars(tmp_path: Path) -> None:
    for name, content in [*ordinary("a"), *ordinary("b", 2), ("c.png", b"x"), ("c.txt", b"x"), ("notes.md", b"x")]:
        (tmp_path / name).write_bytes(content)
    reader = CaptionedImages([str(tmp_path)], epochs=1, buffer=0)
    assert [(sample.key, sample.caption) for sample in reader] == [("a", "old a"), ("b", "old b")]
    assert reader.report.broken == {"not an image": 1}
    shares = [sorted(keys(CaptionedImages([str(tmp_path)], epochs=1, part=part, parts=2))) for part in range(2)]
    assert sorted(shares[0] + shares[1]) == ["a", "b"]
    went_on, took_up = resumed(lambda: CaptionedImages([str(tmp_path)], buffer=2), 5, 9)
    assert went_on == took_up


FAMILIES: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    # names; captions by key; reasons of the others
    "versions and dates": (
        ["v1.5.png", "v1.5.txt", "shot at 10.30.15.png", "shot at 10.30.15.txt", "2020.01.02.png", "2020.01.03.txt"],
        {"v1.5": "v1.5.txt", "shot at 10.30.15": "shot at 10.30.15.txt"},
        ["missing caption", "missing image"],
    ),
    "parts by dots": (["x.image.png", "x.caption.txt"], {"x": "x.caption.txt"}, []),
    "other parts": (
        ["s0.input.png", "s0.outputs.txt", "s1.txt", "s1.input.png"],
        {"s0": "s0.outputs.txt", "s1": "s1.txt"},
        [],
    ),
    "one has none": (["x.png", "x.caption.txt"], {"x": "x.caption.txt"}, []),
    "masks": (["a.png", "a.mask.png", "a.txt", "a.notes.txt"], {"a": "a.txt"}, ["second picture of a name"]),
    "no order": (["b.txt", "a.png", "b.png", "a.txt"], {"a": "a.txt", "b": "b.txt"}, []),
    "case": (
        ["IMG_1.PNG", "IMG_1.TXT", "b.png", "b.PNG", "b.txt"],
        {"IMG_1": "IMG_1.TXT", "b": "b.txt"},
        ["same key twice"],
    ),
    "two formats": (["a.png", "a.webp", "a.txt"], {"a": "a.txt"}, []),
    "accents": (["e\u0301.png", "\u00e9.txt"], {"\u00e9": "\u00e9.txt"}, []),
    "underscores": (["__a.png", "__a.txt", "_b.png", "_b.txt"], {"__a": "__a.txt", "_b": "_b.txt"}, []),
    "kohya": (["a.png", "a.caption"], {"a": "a.caption"}, []),
    "below": (["10_cats/a.png", "10_cats/a.txt", "dogs/a.png"], {"10_cats/a": "10_cats/a.txt"}, ["missing caption"]),
    "other formats": (
        ["a.jfif", "a.txt", "b.tif", "b.txt", "c.avif", "c.txt", "d.heic", "d.txt", "e.svg", "f.psd", "f.png", "f.txt"],
        {"a": "a.txt", "b": "b.txt", "c": "c.txt", "f": "f.txt"},
        ["format not read: heic", "format not read: svg"],
    ),
    "litter": ([".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "a.png", "a.txt", "notes.md"], {"a": "a.txt"}, []),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["folder", "tar"])
@pytest.mark.parametrize(("names", "captions", "reasons"), FAMILIES.values(), ids=FAMILIES)
def test_names_tell_which_files_are_a_sample(
    tmp_path: Path, layout: str, names: list[str], captions: dict[str, str], reasons: list[str]
) -> None:
    kinds = {"jfif": "JPEG", "tif": "TIFF", "avif": "AVIF", "webp": "WEBP"}
    files = []
    for number, name in enumerate(names):
        end = name.rpartition(".")[2].lower()
        text = end in ("txt", "caption")
        files.append((name, name.encode() if text else encoded(picture(number), kinds.get(end, "PNG"))))
    address = tmp_path / ("set" if layout == "folder" else "set.tar")
    if layout == "tar":
        address.write_bytes(tar_bytes(files))
    for name, content in files if layout == "folder" else ():
        (address / name).parent.mkdir(parents=True, exist_ok=True)
        (address / name).write_bytes(content)
    reader = CaptionedImages([str(address)], epochs=1, buffer=0)
    assert {sample.key: sample.caption for sample in reader} == captions
    assert sorted((reader.report.broken + reader.report.filtered).elements()) == sorted(reasons)
    for shard in find_shards([str(address)]):
        for group in shard.groups():
            assert group.fault or shard.at(group.offset) == replace(group, number=shard.at(group.offset).number)


def test_folders_with_metadata(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_bytes(encoded(picture(0)))
    (tmp_path / "b.jpg").write_bytes(encoded(picture(1)))
    lines = [
        {"file_name": "sub/a.jpg", "text": "first", "url": "u"},
        {"file_name": "b.jpg", "text": "second"},
        {"file_name": "gone.jpg", "text": "third"},
        {"file_name": "../out.jpg", "text": "fourth"},
        {"file_name": "b.jpg", "text": "again"},
        {"text": "fifth"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n{broken\n"
    (tmp_path / "metadata.jsonl").write_text(text)
    reader = CaptionedImages([str(tmp_path)], epochs=1, buffer=0)
    got = [(sample.key, sample.caption, sample.metadata) for sample in reader]
    assert got == [("sub/a", "first", {"url": "u"}), ("b", "second", {})]
    assert reader.report.broken == {
        "unreadable file": 1,
        "file outside of the folder": 1,
        "same key twice": 1,
        "unreadable line of metadata.jsonl": 2,
    }


def test_addresses_of_fsspec_work(tars: list[str]) -> None:
    memory = fsspec.filesystem("memory")
    for path in tars:
        memory.pipe_file(f"/shards/{Path(path).name}", Path(path).read_bytes())
    keep = parquet_bytes({"key": all_keys()[:5], "keep": [False] * 5, "reason": ["ugly"] * 5})
    memory.pipe_file("/shards/00000.keep.parquet", keep)
    try:
        for address in ("memory://shards/*.tar", "memory://shards/{00000..00002}.tar", "memory://shards"):
            went_on, took_up = resumed(lambda address=address: CaptionedImages([address], epochs=2, buffer=3), 4, 50)
            assert went_on == took_up
            assert len(went_on) == 16
        went_on, _ = resumed(lambda: CaptionedImages([f"file://{tars[1]}"], epochs=1), 0, 50)
        assert len(went_on) == 4
    finally:
        memory.rm("/shards", recursive=True)


def test_ten_thousand_shards_are_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path, (4,))
    (tmp_path / "00000.tar").rename(tmp_path / "09999.tar")
    write_tars(tmp_path, (4,))
    opened = []
    real = addresses.open_address
    monkeypatch.setattr(addresses, "open_address", lambda address: opened.append(address) or real(address))
    reader = CaptionedImages([str(tmp_path / "{00000..09999}.tar")], buffer=0)
    assert opened == []
    assert keys(reader, 3) == all_keys((3,))
    assert len([address for address in opened if address.endswith(".tar")]) == 1


def test_names_are_expanded(tars: list[str], tmp_path: Path) -> None:
    folder = Path(tars[0]).parent
    (folder / "00001.latents.tar").write_bytes(b"")
    for address in ("*.tar", "0000[0-2].tar", "{00000,00001,00002}.tar", "0000?.tar", ""):
        assert [shard.address for shard in find_shards([str(folder / address)])] == tars, address
    assert len(find_shards([*tars, str(folder / "*.tar")])) == 3  # each but once
    marked = tmp_path / "set [2023] {a,b}"
    shutil.copytree(folder, marked)
    for address in (marked, marked / "00000.tar"):
        shards = find_shards([str(address)])
        assert all(Path(shard.address).parent == marked for shard in shards)
        assert find_shards([shards[0].address])[0].address == shards[0].address


def test_what_a_killed_command_leaves_is_no_shard(tars: list[str], tmp_path: Path) -> None:
    hidden = tmp_path / ".hidden"
    Path(tars[0]).parent.rename(hidden)  # a hidden folder that is named is another matter
    expected = [str(hidden / Path(path).name) for path in tars]
    (hidden / ".00000.latents.tar.x1y2.tar").write_bytes(Path(expected[0]).read_bytes())
    (hidden / ".new").mkdir()
    (hidden / ".new" / "00009.tar").write_bytes(b"")
    for address in ("*.tar", "*", "**/*.tar", "[!x]*.tar", ""):
        assert [shard.address for shard in find_shards([str(hidden / address)])] == expected, address
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("a.parquet", ".a.parquet.x1y2.parquet", "._a.png"):
        (tables / name).write_bytes(b"")
    for address in ("*", "*.parquet", ""):
        assert [shard.address for shard in find_shards([str(tables / address)])] == [str(tables / "a.parquet")]


@pytest.mark.parametrize(
    "address", ["00001.latents.tar", "*.latents.tar", "{00000..00002}.latents.tar", "{00000,00001.latents,00002}.tar"]
)
def test_latents_are_no_shards(tars: list[str], address: str) -> None:
    folder = Path(tars[0]).parent
    for path in tars:
        Path(path.replace(".tar", ".latents.tar")).write_bytes(b"")
    with pytest.raises(UserError, match=r"0000[01]\.latents\.tar: latents, .*; give the shards themselves"):
        find_shards([str(folder / address)])
    (folder / "a.parquet").write_bytes(b"")
    assert [shard.address for shard in find_shards([str(folder / "*")])] == tars
    for path in tars:
        Path(path).unlink()
    assert [shard.address for shard in find_shards([str(folder / "*")])] == [str(folder / "a.parquet")]


def test_a_foreign_safetensors_file_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_bytes([("a.safetensors", b"x"), *ordinary("a"), ("b.safetensors", b"x"), ("b.txt", b"x")])
    )
    reader = CaptionedImages([str(tmp_path / "a.tar")], epochs=1, buffer=0)
    assert [(sample.key, sample.image is None) for sample in reader] == [("a", False)]
    assert (reader.report.broken, reader.report.corrected) == ({"missing image": 1}, {})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"x")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.safetensors", "text": "x"}))
    reader = CaptionedImages([str(folder)], epochs=1)
    assert keys(reader) == []
    assert reader.report.broken == {"missing image": 1}


@pytest.mark.parametrize("size", [-5, -(2**60), 2**62, 2**80])
def test_a_size_that_cannot_be_is_damage(tmp_path: Path, size: int) -> None:
    """Such a place cannot be gone to, which is no fault of the disk."""
    files = tar_bytes([*ordinary("a"), *ordinary("b")])
    header = bytearray(tarfile.TarInfo("c.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with tarfile.open(fileobj=io.BytesIO(files)) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    (tmp_path / "a.tar").write_bytes(files[:end] + header + bytes(2048))
    groups = list(find_shards([str(tmp_path / "a.tar")])[0].groups())
    assert (groups[-1].fault, groups[-1].error) == ("damaged tar", "")
    assert [group.key for group in groups if not group.fault] == ["a"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("none.tar", "not found"),
        ("none*.tar", "nothing matches"),
        ("{00000..00009}.tar", "not found"),
        ("file.zip", "neither"),
        ("nothing://a/b.tar", "nothing"),
        ("00000}.tar", "00000}"),
    ],
)
def test_addresses_with_nothing_behind_them_are_refused(tars: list[str], address: str, words: str) -> None:
    folder = Path(tars[0]).parent
    (folder / "file.zip").touch()
    with pytest.raises(UserError, match=words):
        find_shards([address if "://" in address else str(folder / address)])


@pytest.mark.parametrize("address", ["", " "])
def test_an_empty_address_is_not_the_root_of_all_files(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(addresses, "url_to_fs", lambda address: pytest.fail("files were looked for"))
    with pytest.raises(UserError, match=f"address {address!r} is empty: give a path"):
        find_shards([address])
