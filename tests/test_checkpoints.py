"""Run folders: whole or not at all, never over somebody else's files."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cogview3 import checkpoints
from cogview3.cli.errors import describe
from cogview3.config import UserError, load_recipe

Whole = Callable[[Path], Any]


def files_of(folder: Path) -> dict[str, str]:
    """Contents of all files below a folder, hidden ones too, by relative path."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


class Mishap(Exception):
    """Whatever goes wrong in a block."""


def write_half(whole: Whole, target: Path, error: type[BaseException]) -> None:
    with whole(target) as path:
        (path / "x" if path.is_dir() else path).write_text("half")
        raise error


@pytest.mark.parametrize("earlier", [None, "old"])
@pytest.mark.parametrize("error", [Mishap, KeyboardInterrupt])
def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path: Path, earlier: str | None, error: type) -> None:
    if earlier:
        (tmp_path / "a.txt").write_text(earlier)
    before = files_of(tmp_path)
    with pytest.raises(error):
        write_half(checkpoints.whole_file, tmp_path / "a.txt", error)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("earlier", [None, "old"])
@pytest.mark.parametrize("error", [Mishap, KeyboardInterrupt])
def test_a_folder_whose_writing_fails_stays_as_it_was(tmp_path: Path, earlier: str | None, error: type) -> None:
    if earlier:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text(earlier)
    before = files_of(tmp_path)
    with pytest.raises(error):
        write_half(checkpoints.whole_folder, tmp_path / "a", error)
    assert files_of(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == (1 if earlier else 0)


def test_files_and_folders_are_replaced_wholly(tmp_path: Path) -> None:
    checkpoints.write_text(tmp_path / "deep" / "a.txt", "one")
    checkpoints.write_text(tmp_path / "deep" / "a.txt", "two")
    for name in ("x", "y"):
        with checkpoints.whole_folder(tmp_path / "deep" / "b") as folder:
            (folder / name).write_text(name)
    assert files_of(tmp_path) == {"deep/a.txt": "two", "deep/b/y": "y"}
    assert (tmp_path / "deep" / "a.txt").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "deep" / "b").stat().st_mode & 0o777 == 0o755


def test_what_a_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "old").touch()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    with checkpoints.whole_folder(tmp_path / "link") as folder:
        assert folder.parent == tmp_path / "disk"  # where there is the room
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk" / "model").iterdir()] == ["new"]


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_folder_comes_back_if_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    replace, calls = os.replace, []

    def replace_but_once(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_but_once)
    with pytest.raises(OSError, match="Input/output"), checkpoints.whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("new")
    assert files_of(tmp_path) == {"a/x": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        Exception("No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
    ],
)
@pytest.mark.parametrize("whole", [checkpoints.whole_file, checkpoints.whole_folder])
def test_no_space_left_is_one_line_with_the_place_and_exit_code_1(
    tmp_path: Path, whole: Whole, error: Exception
) -> None:
    with pytest.raises(OSError, match="No space") as caught, whole(tmp_path / "a"):
        raise error
    known = describe(caught.value)
    assert known == (1, f"{tmp_path / 'a'}: No space left on device; free some space, or choose another path")
    assert list(tmp_path.iterdir()) == []


def test_what_the_libraries_say_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel keeps as it keeps that of a disk, stands for the full disk."""
    resource = pytest.importorskip("resource")
    tensors = {"a": torch.zeros(9000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (save_file, torch.save):
        try:
            with pytest.raises(OSError, match=r"File too large|No space left") as caught:  # noqa: PT012
                resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
                with checkpoints.whole_file(tmp_path / "a") as path:
                    write(tensors, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, (2, "Permission denied")),
        (errno.EROFS, (1, "Read-only file system; choose another path")),
        (errno.ENOSPC, (1, "No space left on device; free some space, or choose another path")),
    ],
)
def test_what_was_to_be_written_is_named_where_not_even_its_beginning_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: tuple[int, str]
) -> None:
    def refuse(path: Path, *arguments: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        patch.setattr(os, "mkdir", refuse)
        for whole in (checkpoints.whole_file, checkpoints.whole_folder):
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                write_half(whole, tmp_path / "a", Mishap)
            assert describe(caught.value) == (told[0], f"{tmp_path / 'a'}: {told[1]}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_grows_line_by_line_is_named_where_there_is_no_room(tmp_path: Path) -> None:
    checkpoints.append_line(tmp_path / "a", "x")
    checkpoints.append_line(tmp_path / "a", "y")
    assert (tmp_path / "a").read_text() == "x\ny\n"
    with pytest.raises(OSError, match="No space") as caught, checkpoints.naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")


def test_writers_of_the_same_folder_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def replace_slowly(source: Path, target: Path) -> None:
        replace(source, target)
        time.sleep(0.01)

    def write(name: str) -> None:
        for _ in range(4):
            with checkpoints.whole_folder(tmp_path / "a") as folder:
                (folder / name).write_text(name)

    monkeypatch.setattr(os, "replace", replace_slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "xy"))
    assert files_of(tmp_path) in ({"a/x": "x"}, {"a/y": "y"})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("whole", [checkpoints.whole_file, checkpoints.whole_folder])
def test_what_another_process_cleared_away_before_it_was_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Whole
) -> None:
    hold, cleared = checkpoints._hold, []

    def clear_first(path: Path) -> int | None:
        if not cleared:
            cleared.append(path)
            checkpoints.clear_abandoned(tmp_path)
        return hold(path)

    monkeypatch.setattr(checkpoints, "_hold", clear_first)
    with whole(tmp_path / "a") as path:
        (path / "x" if path.is_dir() else path).write_text("new")
    assert cleared
    assert files_of(tmp_path) in ({"a": "new"}, {"a/x": "new"})


def test_the_next_process_that_writes_into_a_folder_deletes_what_killed_ones_left(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".a.partial-notes.txt", "partial-0123abcd.png", ".b.png")]
    left = [tmp_path / ".x-3.png.partial-0123abcd.png", tmp_path / ".y.partial-89efabcd"]
    for path in (*mine, left[0]):
        path.touch()
    left[1].mkdir()
    checkpoints.write_text(tmp_path / "z.txt", "")
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "z.txt"])


def test_what_a_kill_between_two_renames_left_is_put_back_or_away(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f".a.old.{number}").mkdir()
        (tmp_path / f".a.old.{number}" / "x").write_text("old")
    with checkpoints.whole_folder(tmp_path / "a") as folder:
        (folder / "y").write_text("new")
    assert files_of(tmp_path) == {"a/y": "new"}


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for images in (2, 10, 9):
        checkpoints.save_checkpoint(tmp_path, images, 2, lambda folder: (folder / "x").write_text("x"))
    (tmp_path / "checkpoints" / "images-7.old").mkdir()
    assert [images for images, _ in checkpoints.checkpoints(tmp_path)] == [9, 10]
    assert checkpoints.checkpoints(tmp_path)[1][1] == tmp_path / "checkpoints" / "images-10"


@pytest.fixture
def recipe() -> dict[str, Any]:
    return load_recipe("scenes/vae").to_dict()


def opened(run: Path, recipe: dict[str, Any], restart: bool = False) -> Path | None:
    """Open a run folder and let go of it at once."""
    with checkpoints.open_run(run, recipe, restart) as newest:
        return newest


def test_a_run_is_begun_and_continued(tmp_path: Path, recipe: dict[str, Any]) -> None:
    run = tmp_path / "runs" / "vae"
    assert opened(run, recipe) is None
    assert load_recipe(str(run / "recipe.toml")).to_dict() == recipe
    assert opened(run, recipe) is None
    newest = checkpoints.save_checkpoint(run, 4, 1, lambda folder: (folder / "x").write_text("x"))
    assert opened(run, recipe) == newest


def test_another_recipe_is_refused_by_the_keys_that_differ(tmp_path: Path, recipe: dict[str, Any]) -> None:
    opened(tmp_path / "run", recipe)
    before = files_of(tmp_path)
    other = load_recipe("scenes/vae", ["train.seed=5", "optimizer.learning_rate=1"]).to_dict()
    with pytest.raises(UserError, match=r"optimizer.learning_rate \(0.001 there, 1.0 here\), train.seed \(0 there, 5"):
        opened(tmp_path / "run", other)
    assert files_of(tmp_path) == before


def test_folders_that_hold_no_run_and_files_are_refused(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=r"mine is not empty and holds no run; .*--out"):
        opened(tmp_path / "mine", recipe)
    for restart in (False, True):
        with pytest.raises(UserError, match=r"thesis.txt is a file; .*--out"):
            opened(tmp_path / "mine" / "thesis.txt", recipe, restart)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("left", [[], [".lock"]])
def test_an_empty_folder_is_taken(tmp_path: Path, recipe: dict[str, Any], left: list[str]) -> None:
    for name in left:  # of a process that was killed as it began
        (tmp_path / name).touch()
    opened(tmp_path, recipe)
    assert (tmp_path / "recipe.toml").is_file()


def test_a_damaged_recipe_in_a_run_is_reported(tmp_path: Path, recipe: dict[str, Any]) -> None:
    for content in (b"[recipe", b"\xff\xfe"):
        (tmp_path / "recipe.toml").write_bytes(content)
        with pytest.raises(UserError, match=r"recipe.toml is damaged .*--restart"):
            opened(tmp_path, recipe)


@pytest.mark.parametrize("text", ["train = 5\n", "[[train]]\nimages = 5\n", "a = " + "[" * 500 + "]" * 500])
def test_a_recipe_of_other_types_in_a_run_is_another_one(tmp_path: Path, recipe: dict[str, Any], text: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UserError, match="--restart"):
        checkpoints.check_run(tmp_path, recipe)
    if "[" not in text:
        assert checkpoints.length_of(tmp_path) is None


def test_restart_moves_earlier_runs_aside(tmp_path: Path, recipe: dict[str, Any]) -> None:
    for number in range(3):
        assert opened(tmp_path / "run", recipe, restart=True) is None
        (tmp_path / "run" / "mark").write_text(str(number))
    marks = {path: content for path, content in files_of(tmp_path).items() if path.endswith("mark")}
    assert marks == {"run/mark": "2", "run.old-1/mark": "0", "run.old-2/mark": "1"}


_HOLD = """
import json, sys
from pathlib import Path
from cogview3 import checkpoints
with checkpoints.open_run(Path(sys.argv[1]), json.loads(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_is_of_one_process_at_a_time_and_of_none_once_that_is_killed(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", _HOLD, str(run), json.dumps(recipe)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        written = run / ".weights.1"
        written.mkdir()
        before = files_of(tmp_path)
        for restart in (False, True):
            with pytest.raises(UserError, match=r"run: another process works there; wait for it to end, or use --out"):
                opened(run, recipe, restart)
        assert files_of(tmp_path) == before
        assert written.is_dir()
        other.kill()
    opened(run, recipe)
    assert not written.exists()
    with checkpoints.open_run(run, recipe), pytest.raises(UserError, match=f"{run}: another process"):
        opened(run, recipe)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"[" * 10**5, b" " * 2**23, pickle.dumps({"images": 3})])
def test_a_damaged_state_is_reported(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"{tmp_path}/state\.json is damaged: delete this checkpoint"):
        checkpoints.read_state(tmp_path)
