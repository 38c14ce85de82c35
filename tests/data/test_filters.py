"""Filters one by one, likenesses, and keep sidecars."""

import errno
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError

from cogview3.config import UserError
from cogview3.data import addresses, keep
from cogview3.data.filters import Filters, Seen, difference_hash, judge_size, judge_text, thumbnail
from cogview3.data.formats import find_shards
from cogview3.data.keep import write_keep
from cogview3.data.shards import CaptionedImages
from tests.data.conftest import encoded, ordinary, picture, tar_bytes, write_tars


@pytest.mark.parametrize(
    ("settings", "metadata", "caption", "reason"),
    [
        ({"block": ("spam", "ads.")}, {"url": "https://x.org/SPAM/1.jpg"}, "", "blocked link"),
        ({"block": ("SPAM",)}, {"URL": "https://spam.org"}, "", "blocked link"),
        ({"block": ("spam",)}, {"url": "https://x.org/ham"}, "spam", None),
        ({"block": ("spam",)}, {}, "", None),
        ({"min_aesthetic": 5.0}, {"AESTHETIC_SCORE": 4.99}, "", "low aesthetic score"),
        ({"min_aesthetic": 5.0}, {"aesthetic": "5.0"}, "", None),
        ({"min_aesthetic": 5.0}, {"aesthetic": None, "aesthetic_score": 1}, "", "low aesthetic score"),
        ({"min_aesthetic": 5.0}, {"aesthetic": float("nan")}, "", None),
        ({"min_aesthetic": 5.0}, {"other": 1}, "", None),
        ({"max_nsfw": 0.3}, {"punsafe": 0.31}, "", "high nsfw score"),
        ({"max_nsfw": 0.3}, {"punsafe": 0.3}, "", None),
        ({"max_nsfw": 0.3}, {"NSFW": "UNSURE"}, "", "high nsfw score"),
        ({"max_nsfw": 0.3}, {"NSFW": "UNLIKELY"}, "", None),
        ({"max_watermark": 0.5}, {"pwatermark": 0.9}, "", "high watermark score"),
        ({"max_watermark": 0.5}, {"pwatermark": 0.1}, "", None),
        ({"min_caption": 3}, {}, "ab", "short caption"),
        ({"min_caption": 3}, {}, "abc", None),
        ({"max_caption": 3}, {}, "abcd", "long caption"),
        ({"max_caption": 3}, {}, "abc", None),
        ({}, {"url": "x", "punsafe": 1, "pwatermark": 1, "aesthetic": 0}, "", None),
    ],
)
def test_metadata_and_captions(
    settings: dict[str, Any], metadata: dict[str, Any], caption: str, reason: str | None
) -> None:
    assert judge_text(Filters(**settings), metadata, caption) == reason


@pytest.mark.parametrize(
    ("settings", "size", "reason"),
    [
        ({"min_side": 256}, (255, 900), "small image"),
        ({"min_side": 256}, (900, 255), "small image"),
        ({"min_side": 256}, (256, 256), None),
        ({"max_ratio": 2.0}, (401, 200), "long image"),
        ({"max_ratio": 2.0}, (200, 401), "long image"),
        ({"max_ratio": 2.0}, (400, 200), None),
        ({}, (8, 8000), None),
    ],
)
def test_sizes(settings: dict[str, Any], size: tuple[int, int], reason: str | None) -> None:
    assert judge_size(Filters(**settings), *size) == reason


@pytest.mark.parametrize(
    "settings",
    [{"max_ratio": 0.5}, {"max_nsfw": 2.0}, {"min_side": -1}, {"block": ("",)}, {"min_caption": 5, "max_caption": 4},
     {"distance": 17}, {"unknown": 1}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Filters(**settings)


def test_the_hash_is_what_its_name_says() -> None:
    small = np.random.default_rng(0).integers(0, 256, (8, 9), np.uint8)
    bits = "".join(str(int(small[row, column] < small[row, column + 1])) for row in range(8) for column in range(8))
    assert f"{difference_hash(Image.fromarray(small)):064b}" == bits
    assert difference_hash(Image.new("RGB", (100, 30), "red")) == 0


def test_the_hash_survives_scaling_and_compression_and_tells_pictures_apart() -> None:
    hashes = []
    for seed in range(40):
        image = picture(seed, 200, 160)
        hashes.append(difference_hash(image))
        smaller = image.resize((120, 96), Image.Resampling.LANCZOS)
        darker = image.point(lambda value: int(value * 0.8))
        for other in (smaller, darker):
            assert (hashes[-1] ^ difference_hash(other)).bit_count() <= 4
    apart = [(a ^ b).bit_count() for a in hashes for b in hashes if a != b]
    assert len(set(hashes)) == 40
    assert min(apart) > 4


@pytest.mark.parametrize("distance", [0, 1, 3, 5])
def test_likenesses_are_those_of_a_comparison_with_every_earlier_one(distance: int) -> None:
    rng = np.random.default_rng(distance)
    centers = [int(value) for value in rng.integers(0, 2**63, 20)]
    values = []
    for _ in range(600):
        value = centers[rng.integers(20)]
        for bit in rng.choice(64, rng.integers(0, 7), replace=False):
            value ^= 1 << int(bit)
        values.append(value)
    kept: list[int] = []
    seen = Seen(distance)
    answers = [seen.add(value) for value in values]
    for value, answer in zip(values, answers, strict=True):
        like = any((value ^ other).bit_count() <= distance for other in kept)
        assert answer == like
        kept += [] if like else [value]
    assert 20 < answers.count(True) < 600


def rows(path: str) -> dict[str, list[Any]]:
    return pyarrow.parquet.read_table(path.replace(".tar", ".keep.parquet")).to_pydict()


def make_set(folder: Path) -> list[str]:
    """Three tars; pictures 0001001 and 0002000 are like 0000002, 0001000 is broken, 0000000 has a bad link."""
    paths = write_tars(folder, (3, 0, 0))
    first = [*ordinary("0000000", 0, url="spam"), *ordinary("0000001", 1), *ordinary("0000002", 2)]
    second = [("0001000.jpg", b"x"), ("0001000.txt", b"x"), *ordinary("0001001", 2), *ordinary("0001002", 3)]
    decoded = Image.open(io.BytesIO(first[6][1]))  # the same pixels in another file
    third = [("0002000.png", encoded(decoded, "PNG")), ("0002000.txt", b"x"), *ordinary("0002001", 4)]
    for path, files in zip(paths, (first, second, third), strict=True):
        Path(path).write_bytes(tar_bytes(files))
    return paths


FILTERS = Filters(block=("spam",), duplicates=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_keep_sidecars_say_what_to_keep(tmp_path: Path, workers: int) -> None:
    paths = make_set(tmp_path)
    done: list[int] = []
    report, before = write_keep(find_shards(paths), FILTERS, workers=workers, progress=done.append)
    assert (before, done) == (0, [1, 2, 3])
    assert report.samples == 4
    assert report.broken == {"not an image": 1}
    assert report.filtered == {"blocked link": 1, "duplicate": 2}
    assert [rows(path)["reason"] for path in paths] == [
        ["blocked link", "", ""],
        ["not an image", "duplicate", ""],
        ["duplicate", ""],
    ]
    for path in paths:
        assert rows(path)["keep"] == [not reason for reason in rows(path)["reason"]]
    reader = CaptionedImages(paths, epochs=1)
    assert sorted(sample.key for sample in reader) == ["0000001", "0000002", "0001002", "0002001"]
    assert reader.report.broken == {}
    assert sum(reader.report.filtered.values()) == 4


def test_a_row_without_a_key_is_no_samples(tmp_path: Path) -> None:
    path = make_set(tmp_path)[0]
    columns = {"key": ["0000000", None, "0000001", "0000002"], "keep": [False, False, True, True]}
    table = pyarrow.table(columns | {"reason": ["blocked link", "x", "", None]})
    pyarrow.parquet.write_table(table, path.replace(".tar", ".keep.parquet"))
    reader = CaptionedImages([path], epochs=1)
    assert sorted(sample.key for sample in reader) == ["0000001", "0000002"]
    assert (reader.report.filtered, reader.report.broken) == ({"blocked link": 1}, {})


def test_finished_shards_are_not_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_set(tmp_path)
    shards = find_shards(paths)
    whole, _ = write_keep(shards, FILTERS)
    expected = [rows(path) for path in paths]
    Path(paths[1].replace(".tar", ".keep.parquet")).unlink()
    judged = []
    real = keep.judge
    monkeypatch.setattr(keep, "judge", lambda shard, filters: judged.append(shard.address) or real(shard, filters))
    again, before = write_keep(shards, FILTERS)
    assert (judged, before) == ([paths[1]], 2)
    assert again == whole
    assert [rows(path) for path in paths] == expected


def test_of_sets_judged_apart_the_first_of_alike_pictures_is_kept_too(tmp_path: Path) -> None:
    paths = make_set(tmp_path)
    whole, _ = write_keep(find_shards(paths), FILTERS)
    expected = [rows(path) for path in paths]
    for path in paths:
        Path(path.replace(".tar", ".keep.parquet")).unlink()
    for path in reversed(paths):
        write_keep(find_shards([path]), FILTERS)
    assert [rows(path) for path in paths] != expected
    assert write_keep(find_shards(paths), FILTERS) == (whole, 3)
    assert [rows(path) for path in paths] == expected
    assert write_keep(find_shards(paths[1:]), FILTERS)[0].samples == 3  # without the first, what is like it stays
    assert rows(paths[1])["reason"] == ["not an image", "", ""]


def test_sidecars_of_other_filters_are_refused_or_replaced(tmp_path: Path) -> None:
    paths = make_set(tmp_path)
    shards = find_shards(paths)
    write_keep(shards[:1], FILTERS)
    with pytest.raises(
        UserError, match=r"00000\.keep\.parquet was made with other filters: min_side \(0 there, 9 here"
    ):
        write_keep(shards, Filters(block=("spam",), duplicates=True, min_side=9))
    assert not Path(paths[1].replace(".tar", ".keep.parquet")).exists()
    _, before = write_keep(shards, Filters(), overwrite=True)
    assert before == 0
    assert rows(paths[0])["reason"] == ["", "", ""]


def test_of_two_filters_at_once_the_later_one_replaces_nothing(tmp_path: Path) -> None:
    shards = find_shards(make_set(tmp_path))

    def overtaken(done: int) -> None:
        if done == 1:
            write_keep(shards[1:], Filters())

    with pytest.raises(UserError, match=r"00001\.keep\.parquet was made with other filters"):
        write_keep(shards, FILTERS, progress=overtaken)


def test_an_interruption_leaves_whole_sidecars_alone(tmp_path: Path) -> None:
    paths = make_set(tmp_path)

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_keep(find_shards(paths), FILTERS, progress=stop)
    names = sorted(path.name for path in tmp_path.glob("*.parquet"))
    assert names == ["00000.keep.parquet", "00001.keep.parquet"]
    report, before = write_keep(find_shards(paths), FILTERS)
    assert before == 2
    assert report.filtered == Counter({"blocked link": 1, "duplicate": 2})


def failing(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """The disk fails at the second half of a file."""
    real = addresses.open_address

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell() + len(buffer) > Path(path).stat().st_size // 2:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

        def readall(self) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def opened(address: str, name: str = "") -> Any:
        failed = (f"{address}/{name}" if name else address) == path
        return io.BufferedReader(Failing(path), 512) if failed else real(address, name)

    monkeypatch.setattr(addresses, "open_address", opened)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tar_that_is_missing_gets_no_sidecar(tmp_path: Path, workers: int) -> None:
    paths = make_set(tmp_path)
    shards = find_shards([str(tmp_path / "{00000..00002}.tar")])
    content = Path(paths[1]).read_bytes()
    Path(paths[1]).unlink()
    with pytest.raises(UserError, match=r"00001\.tar: missing tar \(No such file.*run the command again"):
        write_keep(shards, FILTERS, workers=workers)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["00000.keep.parquet"]
    Path(paths[1]).write_bytes(content)
    report, before = write_keep(shards, FILTERS)
    assert (before, report.samples, report.broken) == (1, 4, {"not an image": 1})


def test_a_tar_that_cannot_be_read_gets_no_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_set(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, paths[1])
        with pytest.raises(UserError, match=r"00001\.tar: unreadable tar \(Input/output error\); nothing was written"):
            write_keep(find_shards(paths), FILTERS)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["00000.keep.parquet"]
    with tarfile.open(paths[1]) as tar:
        cut = tar.getmembers()[-1].offset
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:cut])  # a cut one is what it is
    report, before = write_keep(find_shards(paths), FILTERS)
    assert (before, report.broken) == (1, {"not an image": 1, "cut tar": 1})
    assert write_keep(find_shards(paths), FILTERS) == (report, 3)


@pytest.mark.parametrize("told", [False, True])
def test_a_folder_with_a_file_that_cannot_be_read_gets_no_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    for name, content in [*ordinary("a"), *ordinary("b", 1)]:
        (tmp_path / name).write_bytes(content)
    if told:
        lines = [json.dumps({"file_name": name, "text": "x"}) for name in ("a.jpg", "b.jpg", "gone.jpg")]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with monkeypatch.context() as patch:
        failing(patch, str(tmp_path / "b.jpg"))
        with pytest.raises(UserError, match=rf"{tmp_path}: b unreadable file \(Input/output error\)"):
            write_keep(find_shards([str(tmp_path)]), FILTERS)
    assert not (tmp_path / "keep.parquet").exists()
    report, before = write_keep(find_shards([str(tmp_path)]), FILTERS)
    # what metadata.jsonl names and the folder does not have is a fault of the set
    assert (before, report.samples, report.broken) == (0, 2, {"unreadable file": 1} if told else {})


def test_a_folder_that_is_gone_gets_no_sidecar(tmp_path: Path) -> None:
    for name, content in ordinary("a"):
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_bytes(content)
    shards = find_shards([str(tmp_path / "x")])
    (tmp_path / "x").rename(tmp_path / "y")
    with pytest.raises(UserError, match=r"x: .*\(No such file.*run the command again"):
        write_keep(shards, FILTERS)
    assert not (tmp_path / "x").exists()


def test_sidecars_are_written_at_addresses_and_in_folders(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/kept/00000.tar", tar_bytes([*ordinary("a"), *ordinary("b", 1, url="spam")]))
    for name, content in [*ordinary("a"), *ordinary("b", 1, url="spam")]:
        (tmp_path / name).write_bytes(content)
    try:
        for address in ("memory://kept/00000.tar", str(tmp_path)):
            write_keep(find_shards([address]), FILTERS)
            reader = CaptionedImages([address], epochs=1)
            assert [sample.key for sample in reader] == ["a"]
            assert reader.report.filtered == {"blocked link": 1}
        assert (tmp_path / "keep.parquet").is_file()
    finally:
        memory.rm("/kept", recursive=True)


@pytest.mark.parametrize("quality", [95, 60])
@pytest.mark.parametrize("size", [64, 96, 128])
def test_thumbnails_tell_small_changes_from_compression(size: int, quality: int) -> None:
    drawing = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((24, 24, 104, 104), "orange")
    pen.rectangle((40, 48, 56, 64), "black")
    other = drawing.copy()
    ImageDraw.Draw(other).rectangle((58, 76, 70, 84), "brown")  # a mouth
    seen, same = Seen(), difference_hash(drawing)
    assert not seen.add(same, thumbnail(drawing))
    again = Image.open(io.BytesIO(encoded(drawing.resize((size, size)), quality=quality)))
    assert seen.add(same, thumbnail(again))
    assert not seen.add(same, thumbnail(other))
