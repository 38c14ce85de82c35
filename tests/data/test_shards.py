"""Reading shards: everything that can be wrong with them, order, splitting, resumption, captions."""

import io
import json
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from cogview3.config import UserError
from cogview3.data import formats
from cogview3.data.filters import Filters
from cogview3.data.formats import find_shards
from cogview3.data.report import Report, Tolerance
from cogview3.data.shards import CaptionedImages
from tests.data.conftest import encoded, ordinary, parquet_bytes, picture, tar_bytes, write_tars


def keys(reader: CaptionedImages, count: int | None = None) -> list[str]:
    return [sample.key for sample in islice(reader, count)]


def all_keys(sizes: tuple[int, ...] = (5, 4, 6)) -> list[str]:
    return [f"{number:04}{index:03}" for number, size in enumerate(sizes) for index in range(size)]


def bomb() -> bytes:
    """A PNG of a few bytes that says that it has 20000 x 20000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    return encoded(picture(1), kind, save_all=True, append_images=[picture(2), picture(3)])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(4, 24, 16), exif=exif)


WHOLE = encoded(picture(0, 64, 64))
TEXT = ("txt", b"a caption")
HOSTILE: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "truncated": ([("jpg", WHOLE[: len(WHOLE) // 2]), TEXT], "truncated image"),
    "no-picture": ([TEXT], "missing image"),
    "no-caption": ([("jpg", WHOLE)], "missing caption"),
    "blank": ([("jpg", WHOLE), ("txt", b" \n")], "missing caption"),
    "gif": ([("gif", animation("GIF")), TEXT], "animated image"),
    "webp": ([("webp", animation("WEBP")), TEXT], "animated image"),
    "dot": ([("png", encoded(picture(0, 1, 1), "PNG")), TEXT], "tiny image"),
    "page": ([("jpg", b"<html>not found</html>"), TEXT], "not an image"),
    "empty": ([("jpg", b""), TEXT], "not an image"),
    "latin": ([("jpg", WHOLE), ("txt", "Straße".encode("latin-1"))], "undecodable text"),
    "json": ([("jpg", WHOLE), TEXT, ("json", b"{broken")], "unreadable metadata"),
    "list": ([("jpg", WHOLE), TEXT, ("json", b"[1]")], "unreadable metadata"),
    "bomb": ([("png", bomb()), TEXT], "too many pixels"),
}
MENDED: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "cmyk": ([("jpg", encoded(picture(0).convert("CMYK"))), TEXT], "CMYK"),
    "suffix": ([("jpg", encoded(picture(0), "PNG")), TEXT], "wrong suffix"),
    "glass": ([("png", encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 0)), "PNG")), TEXT], "transparent"),
    "deep": ([("png", encoded(Image.fromarray(np.full((16, 16), 65535 // 2, np.uint16)), "PNG")), TEXT], "16 bits"),
    "turned": ([("jpg", turned()), TEXT], "turned"),
    "two": ([("jpg", WHOLE), ("png", encoded(picture(1), "PNG")), TEXT], "second image left out"),
    "inside": ([("jpg", WHOLE), ("json", b'{"caption": "told"}')], "caption from metadata"),
}


def hostile_files() -> list[tuple[str, bytes]]:
    files = ordinary("first")
    for key, (parts, _) in {**HOSTILE, **MENDED}.items():
        files += [(f"{key}.{suffix}", content) for suffix, content in parts]
    return [*files, *ordinary("first", 9), *ordinary("last"), *ordinary("last")]


def expected(cases: dict[str, tuple[Any, str]]) -> Counter[str]:
    return Counter(reason for _, reason in cases.values())


def test_everything_wrong_is_counted_by_reason(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(hostile_files()))
    reader = CaptionedImages([str(tmp_path / "a.tar")], epochs=1, buffer=0)
    samples = {sample.key: sample for sample in reader}
    assert list(samples) == ["first", *MENDED, "last"]
    assert reader.report.samples == len(MENDED) + 2
    assert reader.report.broken == expected(HOSTILE) + Counter({"same key twice": 2})
    assert reader.report.mended == expected(MENDED)
    assert {sample.image.mode for sample in samples.values()} == {"RGB"}
    assert np.all(np.asarray(samples["glass"].image) == 255)  # nothing of the red that does not show
    assert np.all(np.asarray(samples["deep"].image) == 127)
    assert samples["turned"].image.size == (16, 24)
    assert samples["inside"].caption == "told"
    first = Image.open(io.BytesIO(ordinary("first")[0][1]))  # of the two with this key, the one that comes first
    assert np.array_equal(np.asarray(samples["first"].image), np.asarray(first))


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


def test_too_many_broken_samples_stop_the_run(tmp_path: Path) -> None:
    def files(broken: int) -> list[tuple[str, bytes]]:
        made = [ordinary(f"{number:03}") for number in range(100)]
        for number in range(broken):
            made[number * 7] = made[number * 7][:1]  # its picture alone
        return [file for sample in made for file in sample]

    for broken in (10, 11):
        (tmp_path / f"{broken}.tar").write_bytes(tar_bytes(files(broken)))
    options = {"epochs": 1, "buffer": 0, "broken_window": 100}
    reader = CaptionedImages([str(tmp_path / "10.tar")], **options)
    assert len(keys(reader)) == 90
    reader = CaptionedImages([str(tmp_path / "11.tar")], **options)
    with pytest.raises(UserError, match=r"11 of the last 100 samples are broken, more than 10%: missing caption 11"):
        keys(reader)
    assert len(keys(CaptionedImages([str(tmp_path / "11.tar")], **options, broken_share=0.11))) == 89


def test_the_count_of_broken_samples_slides() -> None:
    report, tolerance = Report(), Tolerance(0.1, 20)
    for number in range(200):
        tolerance.see(number % 10 == 0, report)
    tolerance.see(True, report)  # the oldest was broken too
    with pytest.raises(UserError, match="3 of the last 20"):
        tolerance.see(True, report)


def test_a_set_without_a_usable_sample_ends_instead_of_going_round(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.txt", b"x"), ("b.jpg", b"x"), ("b.txt", b"x")]))
    with pytest.raises(UserError, match=r"no usable sample in 3 epochs.*missing image 3, not an image 3"):
        next(CaptionedImages([str(tmp_path / "a.tar")]))


def test_an_epoch_is_a_permutation_and_depends_on_the_seed_alone(tars: list[str]) -> None:
    orders = {
        (seed, buffer): keys(CaptionedImages(tars, epochs=3, seed=seed, buffer=buffer))
        for seed in (0, 1)
        for buffer in (1, 4, 100)
    }
    for order in orders.values():
        epochs = [order[start : start + 15] for start in (0, 15, 30)]
        assert all(sorted(epoch) == all_keys() for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
    assert len({tuple(order) for order in orders.values()}) == 6
    assert orders[1, 4] == keys(CaptionedImages(tars, epochs=3, seed=1, buffer=4))
    # with a buffer for all, no place is bound to a shard: over many seeds each key comes first about equally often
    firsts = Counter(key for seed in range(300) for key in keys(CaptionedImages(tars, seed=seed, buffer=100), 1))
    assert len(firsts) == 15
    assert sum((count - 20) ** 2 / 20 for count in firsts.values()) < 42.6  # chi square, 14 degrees: 1e-4


def test_order_zero_is_the_order_of_the_shards(tars: list[str]) -> None:
    assert keys(CaptionedImages(tars, epochs=2, buffer=0)) == all_keys() * 2


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_readers_share_every_epoch_without_overlap(tars: list[str], parts: int) -> None:
    shares = [list(CaptionedImages(tars, epochs=2, part=part, parts=parts, buffer=3)) for part in range(parts)]
    for epoch in range(2):
        share = [[sample.key for sample in share if sample.place.epoch == epoch] for share in shares]
        assert sorted(key for part in share for key in part) == all_keys()
        assert parts < 7 or max(map(len, share)) <= 4  # seven readers of three tars: none has a tar to itself
    indices = {sample.index for share in shares for sample in share}
    assert indices == {sample.index for sample in CaptionedImages(tars, epochs=2)}
    assert len(indices) == 30


def resumed(make: Callable[[], CaptionedImages], before: int, after: int) -> tuple[list[Any], list[Any]]:
    """What follows after `before` samples: in the same reader, and in another that takes up the position."""
    reader = make()
    keys(reader, before)
    state = json.loads(json.dumps(reader.state_dict()))
    other = make()
    other.load_state_dict(state)
    lists = [[(s.key, s.caption, s.index, s.place) for s in islice(each, after)] for each in (reader, other)]
    assert reader.report == other.report
    assert reader.state_dict() == other.state_dict()
    return lists[0], lists[1]


@pytest.mark.parametrize("before", [0, 1, 4, 5, 9, 14, 15, 16, 33])
@pytest.mark.parametrize("buffer", [0, 1, 6, 100])
def test_a_saved_position_is_taken_up_exactly(tars: list[str], tmp_path: Path, before: int, buffer: int) -> None:
    files = [*ordinary("a"), ("b.jpg", b"x"), ("b.txt", b"x"), *ordinary("c"), *ordinary("a", 2), *ordinary("d")]
    (tmp_path / "hostile.tar").write_bytes(tar_bytes(files)[:-10240])
    addresses = [*tars, str(tmp_path / "hostile.tar")]
    went_on, took_up = resumed(lambda: CaptionedImages(addresses, seed=5, buffer=buffer, part=1, parts=2), before, 20)
    assert went_on == took_up
    assert len(went_on) == 20


@pytest.mark.parametrize("before", [0, 3, 11, 40])
def test_a_position_between_sources_mixed_by_weight_is_taken_up(tars: list[str], before: int) -> None:
    mix = {tars[0]: 3.0, tars[1]: 1.0, tars[2]: 0.5}
    went_on, took_up = resumed(lambda: CaptionedImages(mix, seed=2, buffer=3), before, 25)
    assert went_on == took_up


def test_positions_of_other_readers_are_refused(tars: list[str]) -> None:
    state = CaptionedImages(tars, seed=1).state_dict()
    with pytest.raises(UserError, match=r"seed \(1 there, 2 here\)"):
        CaptionedImages(tars, seed=2).load_state_dict(state)
    with pytest.raises(UserError, match="shards"):
        CaptionedImages(tars[:2], seed=1).load_state_dict(state)
    with pytest.raises(UserError, match="parts"):
        CaptionedImages(tars, seed=1, parts=2).load_state_dict(state)


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    paths = write_tars(tmp_path, (2, 30))
    drawn = keys(CaptionedImages({paths[0]: 3, paths[1]: 1}, buffer=2), 800)
    first = sum(key.startswith("0000") for key in drawn)
    assert abs(first - 600) < 4 * (800 * 0.75 * 0.25) ** 0.5
    counts = Counter(drawn)
    assert {counts["0000000"] - counts["0000001"]} <= {-1, 0, 1}  # each source goes through its epochs


def captions_sidecar(path: str, rows: dict[str, tuple[str | None, str]]) -> None:
    columns = {
        "key": list(rows),
        "old": [None for _ in rows],
        "new": [new for new, _ in rows.values()],
        "status": [status for _, status in rows.values()],
        "model": ["m" for _ in rows],
    }
    Path(path.replace(".tar", ".captions.parquet")).write_bytes(parquet_bytes(columns))


def test_new_captions_come_with_their_share(tmp_path: Path) -> None:
    paths = write_tars(tmp_path, (10, 10))
    for number, path in enumerate(paths):
        names = all_keys((10, 10))[10 * number :][:10]
        captions_sidecar(path, {key: (f"new {key}", "ok") for key in names})
    samples = list(CaptionedImages(paths, epochs=60, seed=3))
    assert all(sample.caption in (f"old {sample.key}", f"new {sample.key}") for sample in samples)
    old = sum(sample.caption.startswith("old") for sample in samples)
    assert abs(old - 60) < 4 * (1200 * 0.95 * 0.05) ** 0.5
    chosen = {sample.index: sample.caption for sample in samples}
    shares = [CaptionedImages(paths, epochs=60, seed=3, part=part, parts=3, buffer=2) for part in range(3)]
    assert {sample.index: sample.caption for share in shares for sample in share} == chosen
    assert {s.index: s.caption for s in CaptionedImages(paths, epochs=60, seed=4)} != chosen
    for share, word in ((0.0, "old"), (1.0, "new")):
        assert {s.caption[:3] for s in CaptionedImages(paths, epochs=2, new_share=share)} == {word}


def test_new_captions_count_where_they_are_good(tars: list[str]) -> None:
    names = all_keys()[:5]
    rows = dict(zip(names, [("fine", "ok"), ("cut", "truncated"), (None, "ok"), (" ", "ok")], strict=False))
    captions_sidecar(tars[0], rows)
    reader = CaptionedImages(tars[:1], epochs=1, buffer=0, new_share=1.0)
    assert [sample.caption for sample in reader] == ["fine", *(f"old {key}" for key in names[1:])]
    assert reader.report.mended == {"no new caption": 4}


def test_a_new_caption_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([ordinary("a")[0], ordinary("b")[0]]))
    captions_sidecar(str(tmp_path / "a.tar"), {"a": ("told", "ok")})
    reader = CaptionedImages([str(tmp_path / "a.tar")], epochs=1, new_share=0.0)
    assert [(sample.key, sample.caption, sample.old) for sample in reader] == [("a", "told", "")]
    assert reader.report.broken == {"missing caption": 1}


def test_damaged_sidecars_are_refused(tars: list[str]) -> None:
    sidecar = Path(tars[1].replace(".tar", ".captions.parquet"))
    for content in (b"PAR1 no more", parquet_bytes({"key": ["a"], "new": ["b"]})):
        sidecar.write_bytes(content)
        with pytest.raises(UserError, match=r"00001\.captions\.parquet: damaged.*make it again"):
            keys(CaptionedImages(tars, epochs=1))


def test_keep_sidecars_are_obeyed(tars: list[str]) -> None:
    names = all_keys()[:5]
    rows = {"key": names[:4], "keep": [True, False, True, False], "reason": ["", "ugly", "", ""]}
    Path(tars[0].replace(".tar", ".keep.parquet")).write_bytes(parquet_bytes(rows))
    reader = CaptionedImages(tars, epochs=1)
    assert sorted(keys(reader)) == [names[0], names[2], *all_keys()[5:]]
    assert reader.report.filtered == {"ugly": 1, "left out": 1}
    assert reader.report.broken == {"not in the keep sidecar": 1}


def test_filters_work_on_the_fly_and_are_not_faults(tmp_path: Path) -> None:
    files = []
    for number in range(20):
        files += ordinary(f"{number:02}", number, url=f"http://{'bad' if number % 4 else 'good'}.org/{number}")
    files += [("wide.jpg", encoded(picture(1, 64, 16))), ("wide.txt", b"wide")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    filters = Filters(block=("BAD.org",), max_ratio=3.0)
    reader = CaptionedImages([str(tmp_path / "a.tar")], epochs=1, buffer=0, filters=filters, broken_window=5)
    assert keys(reader) == ["00", "04", "08", "12", "16"]
    assert reader.report.filtered == {"blocked link": 15, "long image": 1}
    with pytest.raises(UserError, match="data filter"):
        CaptionedImages([str(tmp_path / "a.tar")], filters=Filters(duplicates=True))


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


def test_folders_with_metadata(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_bytes(WHOLE)
    (tmp_path / "b.jpg").write_bytes(WHOLE)
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
    real = formats.open_address
    monkeypatch.setattr(formats, "open_address", lambda address: opened.append(address) or real(address))
    reader = CaptionedImages([str(tmp_path / "{00000..09999}.tar")], buffer=0)
    assert opened == []
    assert keys(reader, 3) == all_keys((3,))
    assert len(opened) == 1


def test_names_are_expanded(tars: list[str], tmp_path: Path) -> None:
    folder = Path(tars[0]).parent
    (folder / "00001.latents.tar").write_bytes(b"")
    for address in ("*.tar", "0000[0-2].tar", "{00000,00001,00002}.tar", "0000?.tar", ""):
        assert [shard.address for shard in find_shards([str(folder / address)])] == tars, address
    assert len(find_shards([*tars, str(folder / "*.tar")])) == 3  # each but once


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed -1"),
        ({"buffer": -1}, "buffer -1"),
        ({"epochs": 0}, "epochs 0"),
        ({"new_share": 1.5}, "new_share 1.5"),
        ({"part": 2, "parts": 2}, "part 2"),
        ({"broken_share": 2.0}, "broken share 2"),
        ({"broken_window": 0}, "broken window 0"),
    ],
)
def test_bad_values_are_refused(tars: list[str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CaptionedImages(tars, **options)


def test_bad_weights_are_refused(tars: list[str]) -> None:
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="weight"):
            CaptionedImages({tars[0]: weight})
    with pytest.raises(UserError, match="epochs"):
        CaptionedImages({tars[0]: 1.0}, epochs=1)
    with pytest.raises(UserError, match="no shards"):
        CaptionedImages([])


def test_a_sample_is_read_again_by_its_place(tars: list[str]) -> None:
    reader = CaptionedImages(tars, epochs=1)
    for sample in list(reader):
        again = reader.read(sample.place)
        assert (again.key, again.caption, again.index) == (sample.key, sample.caption, sample.index)
        assert again.image.tobytes() == sample.image.tobytes()
    Path(tars[0]).write_bytes(tar_bytes([]))
    with pytest.raises(UserError, match="was changed"):
        reader.read((0, 0, 0, 0))
