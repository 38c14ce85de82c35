"""Data sets as people keep them: whatever is unusual is read or counted under a reason, and ends nothing."""

import gzip
import io
import json
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from pyarrow import feather, ipc, parquet

from cogview3.checkpoints import clear_abandoned, whole_file, whole_folder
from cogview3.config import UserError
from cogview3.data.buckets import BucketBatches, Buckets, FittedImages
from cogview3.data.filters import Filters, Seen, difference_hash, thumbnail
from cogview3.data.formats import find_shards
from cogview3.data.images import decode
from cogview3.data.keep import write_keep
from cogview3.data.parallel import over_shards
from cogview3.data.shards import CaptionedImages
from cogview3.data.workers import WorkerSamples
from tests.data.conftest import encoded, keys, ordinary, parquet_bytes, picture, tar_bytes
from tests.processes import run_in_process

PNG = encoded(picture(0), "PNG")


def read(address: Path, **options: Any) -> tuple[dict[str, str], Counter[str]]:
    """Captions by key, and the reasons of what was left out."""
    reader = CaptionedImages([str(address)], epochs=1, buffer=0, broken_share=1.0, **options)
    captions = {sample.key: sample.caption for sample in reader}
    return captions, reader.report.broken + reader.report.filtered


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("one", {"one"}),
        (["one", "two"], {"one", "two"}),
        (["one", None, " "], {"one"}),
        ([1, {"a": "b"}], None),
        ({"en": "one"}, None),
        (5, None),
        (True, None),
        (float("nan"), set()),
        ([], set()),
        (None, set()),
    ],
)
@pytest.mark.parametrize("layout", ["json", "jsonl"])
def test_a_caption_is_a_text_or_a_list_of_texts(
    tmp_path: Path, layout: str, value: Any, captions: set[str] | None
) -> None:
    files = {f"{number}.png": PNG for number in range(20)}
    if layout == "json":
        files |= {f"{number}.json": json.dumps({"caption": value}).encode() for number in range(20)}
    else:
        rows = [json.dumps({"file_name": name, "text": value}) for name in files]
        files["metadata.jsonl"] = "\n".join(rows).encode()
    got, reasons = read(write(tmp_path, files))
    assert set(got.values()) == (captions or set())
    missing = "caption is no text" if captions is None else "missing caption"
    assert reasons == ({} if captions else {missing: 20})


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ("a cat".encode("utf-16"), "a cat"),
        ("a cat".encode("utf-16-le"), "a cat"),
        ("a cat".encode("utf-16-be"), "a cat"),
        ("a cat".encode("utf-32"), "a cat"),
        ("a cat\r\n".encode("utf-8-sig"), "a cat"),
        ("the cat’s".encode("cp1252"), None),
        (b"a\0b", None),
        (b"a\0bcdefghijklmnopqrst", None),
        ("我看见一只 cat 在沙发上".encode("utf-16-le"), "我看见一只 cat 在沙发上"),
    ],
)
def test_encodings_of_captions(tmp_path: Path, content: bytes, caption: str | None) -> None:
    got, reasons = read(write(tmp_path, {"a.png": PNG, "a.txt": content, "b.png": PNG, "b.txt": b"b"}))
    assert got == ({"a": caption} if caption else {}) | {"b": "b"}
    assert reasons == ({} if caption else {"undecodable text": 1})


TAR = tar_bytes([("a.png", PNG), ("a.txt", b"a")])
OTHER = tar_bytes([("b.png", PNG), ("b.txt", b"b")])


@pytest.mark.parametrize(
    ("content", "got", "reasons"),
    [
        (TAR + OTHER, "ab", []),
        (TAR + b"\0" * 700 * 512 + OTHER, "ab", []),
        (TAR + b"leftover", "a", ["bytes after the tar's end"]),
        (TAR + b"x" * 2000, "a", ["bytes after the tar's end"]),
        (gzip.compress(TAR, mtime=0), "", ["packed with gzip: unpack it first"]),
        (b"", "", ["cut tar"]),
        (b"\0" * 10240, "", ["empty tar"]),
    ],
    ids=["another tar", "a far one", "a word", "bytes", "packed", "nothing", "zeros"],
)
def test_what_follows_a_tar_and_what_is_none(tmp_path: Path, content: bytes, got: str, reasons: list[str]) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert read(tmp_path / "a.tar") == (dict(zip(got, got, strict=True)), Counter(reasons))


def test_pipes_and_endless_files_are_no_pictures(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "a.txt": b"a", "b.txt": b"b", "c.txt": b"c", "d.png": PNG})
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "d.txt")
    assert read(tmp_path) == ({"a": "a"}, {"not a file": 3})
    assert write_keep(find_shards([str(tmp_path)]), Filters())[0].broken == {"not a file": 3}
    os.mkfifo(tmp_path / "e.tar")
    assert read(tmp_path / "e.tar") == ({}, {"not a file": 1})


CSV = 'file_name;caption\r\na.png;one\r\nsub/b.png;"two; lines\nof it"\r\nc.png;\r\nnone.png;x\r\n'


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_metadata_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    files = {"a.png": PNG, "sub/b.png": PNG, "c.png": PNG, "d.png": PNG, "e.png": PNG, "e.txt": b"five"}
    rows = {
        "file_name": ["a.png", "sub/b.png", "c.png", "none.png"],
        "caption": ["one", "two; lines\nof it", None, "x"],
    }
    lines = [json.dumps({name: column[row] for name, column in rows.items()}) for row in range(4)]
    content = {"csv": CSV.encode(), "parquet": parquet_bytes(rows), "jsonl": "\n".join(lines).encode()}[kind]
    got, reasons = read(write(tmp_path, {**files, f"metadata.{kind}": content}))
    assert got == {"a": "one", "sub/b": "two; lines\nof it", "e": "five"}
    assert reasons == {"missing caption": 1, "unreadable file": 1, "in no metadata file": 1}


def test_one_bad_line_costs_itself_alone(tmp_path: Path) -> None:
    lines = [
        b'{"file_name": "a.png", "text": "one"}',
        b'{"file_name": "b\\u0000.png", "text": "x"}',
        b'{"file_name": "a.jpg", "text": "two"}',
        b'{"file_name": "x.png", "y": ' + b"[" * 100_000,
        b'{"file_name": "\xff.png"}',
        b'{"file_name": 5}',
        b'{"file_name": "' + b"n" * 5000 + b'.png", "text": "x"}',
        b"[]",
    ]
    files = {"a.png": PNG, "a.jpg": encoded(picture(1)), "metadata.jsonl": b"\n".join(lines)}
    got, reasons = read(write(tmp_path, files))
    assert got == {"a": "one", "a.jpg": "two"}
    assert reasons == {"unreadable line of metadata.jsonl": 4, "unreadable file": 1, "not a file": 1}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems_and_characters_that_only_look_like_one(tmp_path: Path, end: str) -> None:
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"{n}\u2028\x85"}, ensure_ascii=False) for n in range(3)]
    got, reasons = read(
        write(tmp_path, {f"{n}.png": PNG for n in range(3)} | {"metadata.jsonl": end.join(lines).encode()})
    )
    assert (sorted(text[0] for text in got.values()), reasons) == (["0", "1", "2"], {})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.tsv", b"file_name\ttext\na.png\tone\n"),
        ("Metadata.JSONL", b'{"file_name": "a.png", "text": "one"}'),
        ("metadata.jsonl", b'{"image": "a.png", "text": "one"}'),
        ("metadata.csv", "\ufeffFilename;text\na.png;one\n".encode("utf-16")),  # two marks
    ],
)
def test_metadata_under_other_names(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(write(tmp_path, {"a.png": PNG, name: content})) == ({"a": "one"}, {})


def test_one_bad_cell_costs_its_row_alone(tmp_path: Path) -> None:
    rows = b"file_name,text\na.png,x\0y\nb.png,\xff\nc.png," + b"x" * 200_000 + b"\nd.png,four\n"
    got, reasons = read(write(tmp_path, {f"{key}.png": PNG for key in "abcd"} | {"metadata.csv": rows}))
    assert got == {"d": "four"}
    assert reasons == {"unreadable line of metadata.csv": 3, "in no metadata file": 3}


def test_what_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    files = {f"{key}.png": PNG for key in "abc"}
    files |= {"a.txt": b"x" * 70_000, "b.json": b'{"caption": "x"' + b" " * 2**24 + b"}", "c.txt": b"x" * 60_000}
    got, reasons = read(write(tmp_path, files))
    assert (list(got), reasons) == (["c"], {"caption too long": 1, "metadata too large": 1})


def test_pictures_of_subfolders_are_read_beside_tars(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": TAR, "sub/c.png": PNG, "sub/c.txt": b"c", "sub/b.tar": OTHER})
    assert read(tmp_path)[0] == {"a": "a", "b": "b", "sub/c": "c"}


def test_of_columns_of_one_name_the_first_counts(tmp_path: Path) -> None:
    columns = [pyarrow.array([PNG]), pyarrow.array([PNG]), pyarrow.array(["one"]), pyarrow.array(["two"])]
    table = pyarrow.Table.from_arrays(columns, names=["image", "image", "text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert read(tmp_path / name) == ({"000000000": "one"}, {})


@pytest.mark.parametrize("splits", ['["."]', '[""]', '[".."]', "[5]", "5", "{}", "[]", "[" * 100_000])
def test_splits_that_are_none(tmp_path: Path, splits: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(f'{{"splits": {splits}}}')
    with pytest.raises(UserError, match="split"):
        find_shards([str(tmp_path)])


def test_a_pipe_in_the_place_of_a_table_of_contents(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_dict.json"):
        (tmp_path / name.removesuffix(".json")).mkdir()
        os.mkfifo(tmp_path / name.removesuffix(".json") / name)
        with pytest.raises(UserError, match=name):
            find_shards([str(tmp_path / name.removesuffix(".json"))])


def test_rows_of_failed_downloads_are_left_out_and_columns_nobody_needs_not_read(tmp_path: Path) -> None:
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [None, pyarrow.py_buffer(np.array([0, 2, 3, 4], np.int32)), pyarrow.py_buffer(b"\xff\xfezz")],
    )
    columns = {
        "jpg": [PNG, None, PNG],
        "caption": ["one", "two", "three"],
        "status": ["success", "failed_to_download", "success"],
        "when": pyarrow.array([2**62, 1, 2], pyarrow.timestamp("us")),
        "more": bad,
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "00000.parquet")
    for _ in range(2):  # before and after `data filter`
        got, reasons = read(tmp_path)
        assert (list(got.values()), reasons) == (["one", "three"], {"failed download": 1})
        write_keep(find_shards([str(tmp_path)]), Filters())
    parquet.write_table(pyarrow.table({"caption": ["no pictures"]}), tmp_path / "00001.parquet")
    assert read(tmp_path)[1] == {"failed download": 1, "no column of pictures": 1}


def test_arrow_in_both_its_formats(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [PNG, PNG], "text": [["one", "uno"], ["two"]], "url": ["x", "y"]})
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    feather.write_feather(table, tmp_path / "b.feather")
    for name in ("a.arrow", "b.feather"):
        got, reasons = read(tmp_path / name)
        assert not reasons
        assert got["000000001"] == "two"
        assert got["000000000"] in ("one", "uno")


def test_saved_data_sets_are_what_their_state_says(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [PNG], "text": ["one"]})

    def save(path: Path, table: pyarrow.Table = table) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ipc.new_stream(path, table.schema) as file:
            file.write_table(table)

    for split in ("train", "test"):
        save(tmp_path / split / "data-00000-of-00001.arrow")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
        save(tmp_path / split / "cache-0123.arrow")
        save(tmp_path / split / "cache-4567.arrow", pyarrow.table({"indices": [0]}))
    assert len(read(tmp_path / "train")[0]) == 1
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"train, .*test"):
        find_shards([str(tmp_path)])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert len(find_shards([str(tmp_path)])) == 1
    save(tmp_path / "cached" / "x-train.arrow")
    save(tmp_path / "cached" / "cache-0123.arrow")
    assert len(find_shards([str(tmp_path / "cached")])) == 1


def test_img2datasets_files_are_read_and_a_query_is_no_pattern(tmp_path: Path) -> None:
    files = dict(ordinary("00000/000000001")) | {
        "00000.parquet": parquet_bytes({"url": ["x"]}),
        "00000_stats.json": b"{}",
    }
    assert list(read(write(tmp_path / "files", files))[0]) == ["00000/000000001"]
    (tmp_path / "a.tar").write_bytes(TAR)
    (found,) = find_shards([f"{tmp_path}/a.tar?download=1"])
    assert read(Path(found.address))[0] == {"a": "a"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.tar.gz").write_bytes(gzip.compress(TAR))
    with pytest.raises(UserError, match=r"x\.tar\.gz"):
        find_shards([str(tmp_path / "b")])


def test_a_missing_caption_is_no_verdict(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PNG, "b.png": PNG, "b.txt": b"b"})
    report, _ = write_keep(find_shards([str(tmp_path)]), Filters(min_caption=1))
    assert report.samples == 2
    assert read(tmp_path) == ({"b": "b"}, {"missing caption": 1})
    (tmp_path / "captions.parquet").write_bytes(parquet_bytes({"key": ["a"], "new": ["new"], "status": ["ok"]}))
    assert read(tmp_path)[0] == {"a": "new", "b": "b"}
    keep = {"key": ["a", "b"], "keep": [False, True], "reason": ["missing caption", ""]}  # as older versions wrote it
    (tmp_path / "keep.parquet").write_bytes(parquet_bytes(keep))
    assert read(tmp_path)[0] == {"a": "new", "b": "b"}


def test_colors_tell_duplicates_apart() -> None:
    seen = Seen(0)
    shape = np.asarray(picture(3, 64, 64).convert("L"))
    colored = [
        Image.fromarray((np.stack([shape] * 3, 2) // divisor).astype(np.uint8)) for divisor in ((1, 2, 4), (4, 2, 1))
    ]
    gray = [difference_hash(Image.new("RGB", (32, 32), color)) for color in ("red", "blue")]
    assert gray[0] == gray[1], "the hash alone takes them for the same"
    flat = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "white")]
    for image in (*colored, *flat):
        assert not seen.add(difference_hash(image), thumbnail(image))
    for image in (*colored, *flat):
        again = decode(encoded(image.resize((48, 48)), quality=90), "jpg").image
        assert seen.add(difference_hash(image), thumbnail(again))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_metadata_of_over_a_megabyte_costs_no_picture(kind: str) -> None:
    info, content, options = PngImagePlugin.PngInfo(), io.BytesIO(), {}
    if kind == "iCCP":
        options["icc_profile"] = bytes(1_500_000)
    else:
        (info.add_text if kind == "zTXt" else info.add_itxt)("workflow", "node " * 400_000, zip=True)
    Image.new("RGB", (32, 32), (1, 2, 3)).save(content, "PNG", pnginfo=info, **options)
    assert decode(content.getvalue(), "png").image.getpixel((5, 5)) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_costs_no_picture_and_turns_none(kind: str) -> None:
    garbage, none, sixth = b"Exif\0\0garbage", Image.Exif(), Image.Exif()
    none[0x0112], sixth[0x0112] = 0, 6
    image = picture(0, 16, 8)
    read = [
        decode(encoded(image, kind, exif=exif), kind.lower().replace("jpeg", "jpg")) for exif in (garbage, none, sixth)
    ]
    assert [each.image.size for each in read] == [(16, 8), (16, 8), (8, 16)]
    assert [each.corrected for each in read[1:]] == [(), ("turned",)]
    assert read[0].corrected == (() if kind == "JPEG" else ("unreadable EXIF",))


def test_profiles_that_cannot_be_used_are_counted() -> None:
    image = encoded(picture(0), "PNG", icc_profile=b"nonsense" * 20)
    found = decode(image, "png")
    assert found.corrected == ("unreadable color profile",)
    assert np.array_equal(np.asarray(found.image), np.asarray(picture(0)))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(encoded(picture(0), "PNG", icc_profile=srgb), "png").corrected == ()


def batches_of(folder: str, readers: int, part: int, parts: int) -> FittedImages:
    return FittedImages(CaptionedImages([folder], part=part, parts=parts), Buckets(16, 8, 1.0))


@pytest.mark.parametrize(("pictures", "readers"), [(7, 8), (1, 4), (3, 4)])
def test_fewer_pictures_than_readers_train(tmp_path: Path, pictures: int, readers: int) -> None:
    write(tmp_path, {name: content for number in range(pictures) for name, content in ordinary(f"{number}", number)})
    make = partial(batches_of, str(tmp_path), readers)
    batches = BucketBatches(WorkerSamples(make, 0, readers=readers), 4)
    seen: Counter[str] = Counter()
    indices: set[int] = set()
    for _ in range(30):
        batch = next(batches)
        seen.update(batch.keys)
        indices.update(batch.indices.tolist())
    assert len(seen) == pictures
    assert len(indices) == 120, "no sample has the crop and noise of another"
    state = json.loads(json.dumps(batches.state_dict()))
    other = BucketBatches(WorkerSamples(make, 0, readers=readers), 4)
    other.load_state_dict(state)
    assert [next(other).keys for _ in range(9)] == [next(batches).keys for _ in range(9)]


@pytest.mark.parametrize("what", ["picture", "caption"])
@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_what_is_taken_away_while_a_run_stands_still_does_not_end_it(tmp_path: Path, what: str, buffer: int) -> None:
    write(tmp_path, {name: content for number in range(10) for name, content in ordinary(f"{number}", number)})
    reader = CaptionedImages([str(tmp_path)], buffer=buffer)
    drawn = keys(reader, 2)
    state = json.loads(json.dumps(reader.state_dict()))
    gone = next(f"{number}" for number in range(10) if f"{number}" not in drawn)
    (tmp_path / f"{gone}.{'jpg' if what == 'picture' else 'txt'}").unlink()
    other = CaptionedImages([str(tmp_path)], buffer=buffer, broken_share=1.0)
    other.load_state_dict(state)
    rest = keys(other, 26)
    assert gone not in rest
    assert len(set(rest)) == 9


def test_nothing_left_to_do_is_no_fault() -> None:
    with over_shards(str, [], workers=3) as results:
        assert list(results) == []


@pytest.mark.spawned  # a copy has the mask of the server that it comes from
def test_interrupts_are_for_the_first_process_alone() -> None:
    blocked = partial(signal.pthread_sigmask, signal.SIG_BLOCK)
    with over_shards(blocked, [[], []], workers=2) as results:
        assert all(signal.SIGINT in each for each in results)
    assert signal.SIGINT not in blocked([])


def write_and_die(out: Path) -> None:
    with whole_folder(out / "out") as folder, whole_file(out / "a.tar") as file:
        (folder / "x").write_text("x")
        file.write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_deleted_and_what_another_writes_is_not(tmp_path: Path) -> None:
    run_in_process(write_and_die, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".out.settings").mkdir()  # somebody's own
    with whole_folder(tmp_path / "out") as folder, whole_file(tmp_path / "b.tar") as file:
        clear_abandoned(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([folder, file, tmp_path / ".out.settings"])
    assert {path.name for path in tmp_path.iterdir()} == {"out", "b.tar", ".out.settings"}


@pytest.mark.parametrize("name", ["https://x.org/b.png", "memory://b.png", "x::memory://b.png", "file:///etc/a.png"])
def test_an_address_in_the_place_of_a_name_costs_its_row_and_opens_nothing(tmp_path: Path, name: str) -> None:
    rows = [{"file_name": each, "text": "a"} for each in (name, "a.png")]
    write(tmp_path, {"a.png": PNG, "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    assert read(tmp_path) == ({"a": "a"}, {"unreadable file": 1})


def test_names_of_files_may_look_like_addresses(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"a::b.png": PNG, "a::b.txt": b"a"})) == ({"a::b": "a"}, {})


@pytest.mark.parametrize(
    ("held", "caption"),
    [
        ({"caption": None, "text": "a"}, "a"),
        ({"caption": " ", "prompt": "a"}, "a"),
        ({"caption": [], "TEXT": "a"}, "a"),
        ({"caption": "a\0"}, None),
    ],
)
def test_of_several_captions_in_metadata_the_first_that_says_something_counts(
    tmp_path: Path, held: dict[str, Any], caption: str | None
) -> None:
    got, reasons = read(write(tmp_path, {"a.png": PNG, "a.json": json.dumps(held).encode()}))
    assert (got, reasons) == (({"a": caption}, {}) if caption else ({}, {"undecodable text": 1}))


@pytest.mark.parametrize("name", ["captions.csv", "metadata.json", "sub/labels.jsonl", "Metadata.NDJSON"])
def test_lists_of_captions_that_are_not_read_are_named(tmp_path: Path, name: str) -> None:
    got, reasons = read(write(tmp_path, {"a.png": PNG, "a.txt": b"a", name: b"{}"}))
    assert got == {"a": "a"}
    assert [f"{Path(name).name} is not read" in reason for reason in reasons] == [True]


def test_a_json_of_a_picture_is_no_list_of_captions(tmp_path: Path) -> None:
    files = {"captions.png": PNG, "captions.json": b'{"caption": "a"}'}
    assert read(write(tmp_path, files)) == ({"captions": "a"}, {})


def invalid_text() -> pyarrow.Array:
    """Two texts, the first of which is no UTF-8."""
    offsets = np.array([0, 2, 3], np.int32).tobytes()
    return pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"\xff\xfez")]
    )


@pytest.mark.parametrize("end", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", ["text", "list", "dictionary"])
def test_a_caption_that_is_no_text_costs_its_row_alone(tmp_path: Path, kind: str, end: str) -> None:
    captions: Any = invalid_text()
    if kind == "list":
        captions = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2], pyarrow.int32()), captions)
    elif kind == "dictionary":
        indices = pyarrow.array([0, 1], pyarrow.int32())
        captions = pyarrow.DictionaryArray.from_arrays(indices, captions, safe=False)
    path = save_table(tmp_path / f"t.{end}", {"image": [PNG, PNG], "caption": captions})
    assert read(path) == ({"000000001": "z"}, {"undecodable text": 1})


@pytest.mark.parametrize("end", ["parquet", "arrow"])
def test_the_path_beside_a_pictures_bytes_may_be_anything(tmp_path: Path, end: str) -> None:
    pictures = pyarrow.StructArray.from_arrays([pyarrow.array([PNG, PNG]), invalid_text()], ["bytes", "path"])
    path = save_table(tmp_path / f"t.{end}", {"image": pictures, "caption": ["a", "b"]})
    assert read(path) == ({"000000000": "a", "000000001": "b"}, {})


def save_table(path: Path, columns: dict[str, Any]) -> Path:
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    return path


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["b.tar", "b.parquet", "b.arrow", "b.png"])
def test_pointers_of_git_lfs_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: POINTER, "b.txt": b"b"})
    got, reasons = read(tmp_path if name == "b.png" else tmp_path / name)
    assert got == {}
    assert ["git lfs pull" in reason for reason in reasons] == [True]


@pytest.mark.parametrize("magic", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x04\x22\x4d\x18", b"]\0\0\x80"])
def test_archives_of_other_kinds_that_are_named_tar(tmp_path: Path, magic: bytes) -> None:
    _, reasons = read(write(tmp_path, {"a.tar": magic + bytes(2000)}) / "a.tar")
    assert ["unpack it first" in reason for reason in reasons] == [True]
