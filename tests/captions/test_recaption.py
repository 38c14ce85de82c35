"""Sidecars of whole sets, through cuts, kills and second runs."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image
from pyarrow import parquet

from cogview3.captions import engines, parts
from cogview3.captions.engines import local, make_engine
from cogview3.captions.recaption import Standing, Task, caption_shard, recaption
from cogview3.captions.rows import UNANSWERED, CannotGoOn, Row
from cogview3.config import UserError
from cogview3.data.formats import find_shards
from cogview3.data.sidecars import read_captions, read_notes
from tests.captions.light import LightJob
from tests.data.conftest import all_keys, encoded, ordinary, parquet_bytes, picture, tar_bytes, write_tars
from tests.processes import Context

ROOT = Path(__file__).parents[2]


def here(task: Task, shards: Any) -> Any:
    """An engine in this process."""
    writer = task.job.load(0)
    for number, shard in enumerate(shards):
        for message in caption_shard(shard, task, writer):
            yield number, message


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows by key; each key comes once."""
    found = [row for path in folder.glob("*.captions.parquet") for row in parquet.read_table(path).to_pylist()]
    assert len({row["key"] for row in found}) == len(found)
    return sorted(found, key=lambda row: row["key"])


def state_of(folder: Path) -> dict[str, Any]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix not in (".tar", ".parquet")]


def test_each_image_gets_a_row(tmp_path: Path) -> None:
    good = encoded(picture(1))
    files = [
        *ordinary("a"),
        ("b.jpg", good), ("b.txt", b"a cat \xff\x80"),
        ("c.txt", b"no picture"),
        ("d.jpg", good),
        *ordinary("e"), *ordinary("f"), *ordinary("a", 5),
    ]  # fmt: skip
    (tmp_path / "0.tar").write_bytes(tar_bytes(files))
    columns = {"key": [*"abcdef"], "keep": [True] * 4 + [False, True], "reason": [""] * 4 + ["duplicate", ""]}
    (tmp_path / "0.keep.parquet").write_bytes(parquet_bytes(columns))
    shards, job = find_shards([str(tmp_path)]), LightJob(tmp_path)
    result = recaption(shards, job, here)
    assert (result["images"], result["failed"], result["tokens"], result["given_up"]) == (5, 2, 15, {})
    found = {row["key"]: row for row in rows(tmp_path)}
    assert [(key, row["status"], row["error"]) for key, row in found.items()] == [
        ("a", "ok", ""), ("b", "failed", "undecodable text"), ("c", "failed", "missing image"), ("d", "ok", ""),
        ("f", "ok", ""),
    ]  # fmt: skip
    assert found["a"]["new"] == "A plain caption of a, which was old a."
    assert (found["a"]["model"], found["d"]["old"], found["b"]["new"]) == ("light", "", None)
    assert list(parquet.read_schema(tmp_path / "0.captions.parquet").names) == [
        "key", "old", "new", "model", "version", "status", "error",
    ]  # fmt: skip
    assert read_captions(shards[0]).keys() == {"a", "d", "f"}  # what readers of training data see
    notes = read_notes(str(tmp_path / "0.captions.parquet"))
    assert (notes["faults"], notes["filtered"]) == ({"same key twice": 1}, {"duplicate": 1})


def test_a_second_run_changes_nothing(tars: list[str], tmp_path: Path) -> None:
    job, told = LightJob(tmp_path), []
    first = recaption(find_shards(tars), job, here, progress=lambda standing: told.append(vars(standing).copy()))
    assert [row["key"] for row in rows(tmp_path / "tars")] == all_keys()
    assert told[-1] | {"seconds": 0} == vars(Standing(3, 3, 3.0, 15, 0, 75))
    shares = [each["share"] for each in told]
    assert shares == sorted(shares)
    assert len(set(shares)) > 6  # moves within shards too
    before = state_of(tmp_path / "tars")
    second = recaption(find_shards(tars), job, here)
    assert (first["finished_before"], second["finished_before"], second["images"]) == (0, 3, 0)
    assert state_of(tmp_path / "tars") == before
    assert job.log() == all_keys()


def test_a_cut_tar_loses_nothing(tars: list[str], tmp_path: Path) -> None:
    whole = Path(tars[0]).read_bytes()
    Path(tars[0]).write_bytes(whole[: len(whole) // 2])
    job = LightJob(tmp_path)
    result = recaption(find_shards(tars), job, here)
    cut = rows(tmp_path / "tars")
    assert 0 < len([row for row in cut if row["key"].startswith("0000")]) < 5
    assert read_notes(tars[0].replace(".tar", ".captions.parquet"))["faults"] == {"cut tar": 1}
    assert result["given_up"] == {}
    assert recaption(find_shards(tars), job, here)["finished_before"] == 3  # nothing new to be had
    Path(tars[0]).write_bytes(whole)
    assert recaption(find_shards(tars), job, here)["finished_before"] == 2
    assert sorted(job.log()) == all_keys()  # each once
    (tmp_path / "other").mkdir()
    uncut = write_tars(tmp_path / "other", (5, 4, 6))
    recaption(find_shards(uncut), job, here)
    assert rows(tmp_path / "tars") == rows(tmp_path / "other")


def test_other_pictures_of_the_same_keys_do_not_keep_the_captions(tmp_path: Path) -> None:
    """Without captions of their own, nothing else tells that they are others."""
    tar, job = tmp_path / "0.tar", LightJob(tmp_path)

    def write(colors: Sequence[str]) -> None:
        pictures = [encoded(Image.new("RGB", (64, 64), color)) for color in colors]
        tar.write_bytes(tar_bytes([(f"{number}.jpg", picture) for number, picture in enumerate(pictures)]))

    write(["red"])
    recaption(find_shards([str(tar)]), job, here)
    write(["blue"] * 20)
    assert recaption(find_shards([str(tar)]), job, here)["images"] == 20
    assert job.log().count("0") == 2


def test_a_missing_tar_is_given_up_and_taken_up_when_it_is_there(tars: list[str], tmp_path: Path) -> None:
    content = Path(tars[1]).read_bytes()
    Path(tars[1]).unlink()
    shards, job = find_shards([f"{tmp_path}/tars/{{00000..00002}}.tar"]), LightJob(tmp_path)
    assert recaption(shards, job, here)["given_up"] == {tars[1]: "missing tar"}
    assert not Path(tars[1].replace(".tar", ".captions.parquet")).exists()
    Path(tars[1]).write_bytes(content)
    assert recaption(shards, job, here)["given_up"] == {}
    assert sorted(job.log()) == all_keys()


@pytest.mark.parametrize("torn", [b"", b'{"key": "0000004", "old'])
def test_a_begun_shard_goes_on_after_its_last_batch(tmp_path: Path, torn: bytes) -> None:
    tars, job = write_tars(tmp_path / "tars", (9,)), LightJob(tmp_path)
    task = Task(job, job.settings)
    messages = caption_shard(find_shards(tars)[0], task, job.load(0))
    assert [next(messages).images for _ in range(3)] == [0, 2, 2]
    messages.close()  # as if killed
    part = tmp_path / "tars" / "00000.captions.part.jsonl"
    assert part.read_bytes().count(b"\n") == 5  # settings, four rows
    part.write_bytes(part.read_bytes() + torn)
    recaption(find_shards(tars), job, here)
    assert job.log() == all_keys((9,))
    assert [row["key"] for row in rows(tmp_path / "tars")] == all_keys((9,))
    assert leftovers(tmp_path / "tars") == []


def test_of_a_key_the_last_row_counts(tmp_path: Path) -> None:
    """One that was not answered at first, and then was."""
    (shard,) = find_shards(write_tars(tmp_path / "tars", (1,)))
    part = parts.Part(shard, {})
    part.add([Row("0000000", "old", None, UNANSWERED, "busy")])
    part.add([Row("0000000", "old", "new")])
    assert parts.Part(shard, {}).rows["0000000"].new == "new"


def test_parts_at_addresses_that_take_whole_files_alone(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    (content,) = (Path(path).read_bytes() for path in write_tars(tmp_path, (7,)))
    memory.pipe_file("/set/00000.tar", content)
    try:
        shards, job = find_shards(["memory://set/00000.tar"]), LightJob(tmp_path)
        messages = caption_shard(shards[0], Task(job, job.settings), job.load(0))
        assert [next(messages).images for _ in range(3)] == [0, 2, 2]
        messages.close()
        assert len(memory.ls("/set/00000.captions.part.jsonl")) == 2
        assert recaption(shards, job, here)["images"] == 3
        assert job.log() == all_keys((7,))
        assert len(read_captions(shards[0])) == 7
        assert [name.rpartition("/")[2] for name in memory.ls("/set", detail=False)] == [
            "00000.captions.parquet", "00000.tar",
        ]  # fmt: skip
    finally:
        memory.rm("/set", recursive=True)


def test_names_and_texts_that_no_file_can_hold_are_mended(tmp_path: Path) -> None:
    """A tar of names in Latin-1, a caption cut within an emoji."""
    content = tar_bytes([("caf_.jpg", encoded(picture(1))), ("caf_.json", b'{"caption": "a cat \\ud83d"}')])
    header = content.replace(b"caf_.jp", b"caf\xe9.jp").replace(b"caf_.js", b"caf\xe9.js")
    header = bytearray(header)
    place = 0
    for block in range(0, len(header), 512):  # headers carry a sum of their bytes
        if header[block : block + 3] == b"caf":
            header[block + 148 : block + 156] = b" " * 8
            header[block + 148 : block + 156] = b"%06o\0 " % sum(header[block : block + 512])
            place += 1
    assert place == 2
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "00000.tar").write_bytes(header)
    recaption(find_shards([str(tmp_path / "tars")]), LightJob(tmp_path), here)
    (row,) = rows(tmp_path / "tars")
    assert row["key"].startswith("caf\ufffd")
    assert row["old"].startswith("a cat ")
    assert row["status"] == "ok"


def test_folders_of_pictures(tmp_path: Path) -> None:
    for key in "abdefgh":
        for name, content in ordinary(key):
            (tmp_path / name).write_bytes(content)
    shards, job, shares = find_shards([str(tmp_path)]), LightJob(tmp_path), []
    recaption(shards, job, here, progress=lambda standing: shares.append(standing.share))
    assert shares == sorted(shares)
    assert any(0 < share < 1 for share in shares)
    assert recaption(find_shards([str(tmp_path)]), job, here)["finished_before"] == 1
    (tmp_path / "c.jpg").write_bytes(encoded(picture(3)))
    assert recaption(find_shards([str(tmp_path)]), job, here)["images"] == 1
    assert job.log() == [*"abdefgh", "c"]


def test_tables(tmp_path: Path) -> None:
    rows_of = {"image": [encoded(picture(number)) for number in range(3)], "text": ["one", "two", "three"]}
    (tmp_path / "set.parquet").write_bytes(parquet_bytes(rows_of))
    shards, job = find_shards([str(tmp_path / "set.parquet")]), LightJob(tmp_path)
    assert recaption(shards, job, here)["images"] == 3
    assert recaption(shards, job, here)["finished_before"] == 1
    assert [row["old"] for row in rows(tmp_path)] == ["one", "two", "three"]


def test_other_settings_are_refused_unless_they_may_overwrite(tars: list[str], tmp_path: Path) -> None:
    shards, plain, spicy = find_shards(tars), LightJob(tmp_path), LightJob(tmp_path, flavor="spicy")
    messages = caption_shard(shards[0], Task(plain, plain.settings), plain.load(0))
    next(messages), next(messages)
    messages.close()
    with pytest.raises(UserError, match=r"flavor \(plain there, spicy here\)"):
        recaption(shards, spicy, here)
    recaption(shards, plain, here)
    with pytest.raises(UserError, match=r"with other settings: flavor \(plain there, spicy here\).*--overwrite"):
        recaption(shards, spicy, here)
    recaption(shards, spicy, here, overwrite=True)
    assert {row["new"][:7] for row in rows(tmp_path / "tars")} == {"A spicy"}
    assert len({row["version"] for row in rows(tmp_path / "tars")}) == 1
    Path(tars[0].replace(".tar", ".captions.parquet")).write_bytes(parquet_bytes({"key": ["x"]}))
    with pytest.raises(UserError, match=Path(tars[0]).stem + r"\.captions\.parquet was made with other settings"):
        recaption(shards, spicy, here)


def test_damaged_parts_are_told(tars: list[str], tmp_path: Path) -> None:
    Path(tars[0].replace(".tar", ".captions.part.jsonl")).write_text("nonsense\n")
    with pytest.raises(UserError, match=r"part\.jsonl is damaged; delete it"):
        recaption(find_shards(tars), LightJob(tmp_path), here)


def test_failures_are_tried_again_where_asked_and_silence_always(tars: list[str], tmp_path: Path) -> None:
    (tmp_path / "ill").touch()
    shards, job = find_shards(tars), LightJob(tmp_path, failing="0000001", silent="0001002")
    assert recaption(shards, job, here)["failed"] == 2
    (tmp_path / "ill").unlink()
    assert recaption(shards, job, here)["images"] == 1
    assert [row["key"] for row in rows(tmp_path / "tars") if row["status"] != "ok"] == ["0000001"]
    assert recaption(shards, job, here, again=True)["images"] == 1
    assert {row["status"] for row in rows(tmp_path / "tars")} == {"ok"}
    assert sorted(job.log()) == sorted([*all_keys(), "0000001", "0001002"])


def test_another_process_is_waited_for_no_longer_than_patience(
    tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PATIENCE", 0.0)
    shards = find_shards(tars)
    with parts.claimed(shards[1]), pytest.raises(UserError, match=r"00001\.tar: another run writes"):
        recaption(shards, LightJob(tmp_path), here)
    assert recaption(shards, LightJob(tmp_path), here)["given_up"] == {}


def test_a_killed_worker_is_replaced(tars: list[str], tmp_path: Path) -> None:
    job = LightJob(tmp_path, once="0000003")
    result = recaption(find_shards(tars), job, partial(local, workers=2))
    assert (result["images"], result["given_up"]) == (15, {})
    assert sorted(job.log())[:1] == ["0000000"]
    assert set(job.log()) == set(all_keys())
    assert job.log().count("0000000") == 1  # its batch was on the disk; that of the kill is done again
    assert [row["key"] for row in rows(tmp_path / "tars")] == all_keys()
    assert leftovers(tmp_path / "tars") == []


def test_a_shard_that_kills_its_workers_is_given_up(tars: list[str], tmp_path: Path) -> None:
    job = LightJob(tmp_path, always="0000003", broken="0001002")
    result = recaption(find_shards(tars), job, partial(local, tries=2))
    assert result["given_up"] == {
        tars[0]: "the worker was ended by SIGKILL; tried 2 times",
        tars[1]: "RuntimeError: the device is on fire; tried 2 times",
    }
    assert [row["key"] for row in rows(tmp_path / "tars")] == all_keys((0, 0, 6))
    cured = recaption(find_shards(tars), LightJob(tmp_path), here)
    assert (cured["finished_before"], cured["images"]) == (1, 5 + 4 - 4)  # two whole batches were kept
    assert [row["key"] for row in rows(tmp_path / "tars")] == all_keys()


def test_a_model_that_cannot_be_loaded_ends_the_job(tars: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this model cannot be loaded"):
        recaption(find_shards(tars), LightJob(tmp_path, loads=False), local)
    job = LightJob(tmp_path, loads="CUDA out of memory")
    (tmp_path / "loads").unlink()
    with pytest.raises(CannotGoOn, match=r"cannot be loaded \(RuntimeError: CUDA out of memory\); fix that"):
        recaption(find_shards(tars), job, local)
    assert (tmp_path / "loads").read_text() == "0\n"  # not for every shard anew


def hold_in_the_second_shard(folder: Path) -> None:
    recaption(find_shards([str(folder / "tars")]), LightJob(folder, hold="0001002"), local)


def test_a_killed_job_leaves_no_worker_and_goes_on(tars: list[str], tmp_path: Path) -> None:
    process = Context().Process(target=hold_in_the_second_shard, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    job = LightJob(tmp_path)
    result = recaption(find_shards(tars), job, here)  # waits for the shard until the worker has left
    assert (result["finished_before"], result["images"]) == (1, 2 + 6)
    assert sorted(job.log()) == all_keys()  # the worker wrote no more
    assert [row["key"] for row in rows(tmp_path / "tars")] == all_keys()
    assert leftovers(tmp_path / "tars") == []


def test_engines_are_checked() -> None:
    with pytest.raises(UserError, match="engine cloud: give local or ray"):
        make_engine("cloud", None)
    with pytest.raises(UserError, match="workers 0"):
        make_engine("local", 0)
    assert make_engine("local", None, gpus=3).keywords["workers"] == 3
    assert make_engine("local", None).keywords == {"workers": 1, "tries": engines.TRIES}


def test_ray_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"cogview3\[ray\]"):
        make_engine("ray", None)


def test_pictures_that_a_filter_found_without_caption_get_one(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes([*ordinary("a"), ("b.jpg", encoded(picture(1)))]))
    columns = {"key": ["a", "b"], "keep": [True, False], "reason": ["", "missing caption"]}
    (tmp_path / "0.keep.parquet").write_bytes(parquet_bytes(columns))
    recaption(find_shards([str(tmp_path)]), LightJob(tmp_path), here)
    assert [(row["key"], row["status"]) for row in rows(tmp_path)] == [("a", "ok"), ("b", "ok")]
