"""Reading shards: everything that can be wrong with them, order, splitting, resumption, captions."""

import io
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cogview3.config import UserError
from cogview3.data.filters import Filters
from cogview3.data.report import Report, Tolerance
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
    assert reader.report.corrected == expected(MENDED)
    assert {sample.image.mode for sample in samples.values()} == {"RGB"}
    assert np.all(np.asarray(samples["glass"].image) == 255)  # nothing of the red that does not show
    assert np.all(np.asarray(samples["deep"].image) == 127)
    assert samples["turned"].image.size == (16, 24)
    assert samples["inside"].caption == "told"
    first = Image.open(io.BytesIO(ordinary("first")[0][1]))  # of the two with this key, the one that comes first
    assert np.array_equal(np.asarray(samples["first"].image), np.asarray(first))


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


def test_the_window_is_that_of_the_samples_as_they_are_read(tmp_path: Path) -> None:
    """Broken captions are known at once, good samples may lie in the buffer for long: 9 in 100 are no flood.

    Broken pictures are found as samples leave the buffer, in an order of chance.
    """
    for name, damage, share in (
        ("captions", lambda files: files[:1], 0.09),
        ("pictures", lambda files: [(files[0][0], b"x"), files[1]], 0.2),
    ):
        made = [ordinary(f"{number:03}") for number in range(200)]
        for number in range(16):
            made[number * 12 + 3] = damage(made[number * 12 + 3])
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes([file for sample in made for file in sample]))
        options = {"epochs": 2, "broken_window": 100, "buffer": 90}
        reader = CaptionedImages([str(tmp_path / f"{name}.tar")], **options, broken_share=share)
        assert len(keys(reader)) == 2 * 184
        assert reader.report.broken.total() == 2 * 16
        with pytest.raises(UserError, match=r"of the last 100 samples are broken, more than 6%"):
            keys(CaptionedImages([str(tmp_path / f"{name}.tar")], **options, broken_share=0.06))


def test_a_sample_counted_as_good_may_turn_out_otherwise() -> None:
    report, tolerance = Report(), Tolerance(0.5, 4)
    for broken in (False, True, False, False):
        tolerance.see(broken, report)
    tolerance.turn(False, report)
    assert tolerance.state_dict() == "010"
    tolerance.turn(True, report)
    assert tolerance.state_dict() == "011"
    tolerance.see(False, report)
    with pytest.raises(UserError, match="3 of the last 4"):
        tolerance.turn(True, report)
    tolerance.load_state_dict("11")  # the one in question has left the window
    tolerance.turn(False, report)
    assert tolerance.state_dict() == "11"
    tolerance.turn(True, report)
    assert tolerance.state_dict() == "111"


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


def test_a_reader_whose_part_holds_nothing_usable_reads_everything(tmp_path: Path) -> None:
    sizes = (3, 2, 4, 1)
    paths = write_tars(tmp_path, sizes)
    for number in (1, 2):
        Path(paths[number]).write_bytes(tar_bytes([ordinary(key)[0] for key in "ab"]))  # no captions
    good = [*all_keys(sizes)[:3], all_keys(sizes)[-1]]
    reader = CaptionedImages(paths, seed=3, part=1, parts=4, buffer=0)  # in order, so that the part is the second tar
    assert keys(reader, 12) == good * 3


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
    assert reader.report.corrected == {"no new caption": 4}


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
    with pytest.raises(UserError, match=r"filters\.duplicates"):
        CaptionedImages([str(tmp_path / "a.tar")], filters=Filters(duplicates=True))


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
    with pytest.raises(UserError, match=Path(tars[0]).name):
        reader.read((0, 0, 0, 0))


def test_pictures_without_captions_are_there_when_resumed(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(picture(number)))

    def make() -> CaptionedImages:
        return CaptionedImages([str(tmp_path)], needs_caption=False)

    first, other = resumed(make, 2, 10)
    assert first == other
