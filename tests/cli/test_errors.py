"""Exit codes: 0, 1 failure, 2 bad input, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM; one line each, nothing half-written."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from cogview3.cli import errors
from cogview3.cli.errors import ReportingGroup, Terminated, describe
from cogview3.cli.options import report
from cogview3.cli.progress import counter
from cogview3.config import UserError
from cogview3.data.scenes import write
from cogview3.data.scenes.scene import Scene
from tests.processes import run_command


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (UserError("size 7: give 8"), 2, "size 7: give 8"),
        (ValueError("two\nlines"), 2, "two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), 2, "a.txt: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), 2, "b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "free some space"),
        (OSError(errno.EIO, "Input/output error", "c"), 1, "c: Input/output error"),
        (OSError("endpoint did not answer"), 1, "endpoint did not answer"),
        (MemoryError(), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (RuntimeError("Symlink loop from '/a/b'"), 2, "/a/b"),
        (FloatingPointError("the relay stage overflowed"), 1, "the relay stage overflowed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
    ],
)
def test_foreseeable_failures_have_a_code_and_a_line(error: BaseException, code: int, word: str) -> None:
    assert (known := describe(error)) is not None
    assert known[0] == code
    assert word in known[1]
    assert "\n" not in known[1]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), AssertionError()])
def test_our_own_bugs_keep_their_traceback(error: Exception) -> None:
    assert describe(error) is None


def test_of_invalid_settings_the_first_is_named() -> None:
    class Settings(BaseModel):
        steps: int

    with pytest.raises(ValidationError) as caught:
        Settings(steps="many")
    assert describe(caught.value) == (
        2, "steps 'many': Input should be a valid integer, unable to parse string as an integer"
    )  # fmt: skip


def failing_app(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=ReportingGroup)

    @app.callback()
    def root(debug: bool = False) -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    return app


def test_debug_shows_the_traceback_instead() -> None:
    error = UserError("bad")
    plain = CliRunner().invoke(failing_app(error), ["fail"])
    assert (plain.exit_code, plain.stderr) == (2, "error: bad\n")
    debugged = CliRunner().invoke(failing_app(error), ["--debug", "fail"])
    assert debugged.exception is error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_handlers_of_signals_are_put_back(number: int) -> None:
    before = signal.getsignal(number)
    CliRunner().invoke(failing_app(UserError("bad")), ["fail"])
    assert signal.getsignal(number) is before


def test_a_terminal_that_closes_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            seen: list[object] = []
            patch.setattr(errors, "describe", lambda error: seen.append(signal.getsignal(signal.SIGHUP)) or (2, "bad"))
            CliRunner().invoke(failing_app(UserError("bad")), ["fail"])
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_exit_code_tells_where_no_word_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(typer, "echo", refuse)
    assert CliRunner().invoke(failing_app(UserError("bad")), ["fail"]).exit_code == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
def test_a_report_that_cannot_be_written_is_no_matter_of_the_place_of_the_work(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*words: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(typer, "echo", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        report({}, "done", False)
    assert describe(caught.value) == (1, f"standard output: {os.strerror(number)}")


def signal_at_the_third_picture(number: int) -> None:
    render, drawn = write.render, []

    def render_and_signal(scene: Scene, size: int) -> np.ndarray:
        drawn.append(scene)
        if len(drawn) == 3:
            os.kill(os.getpid(), number)
        return render(scene, size)

    write.render = render_and_signal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_in_the_middle_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "scenes", "--count", "1000", "--size", "32", "--out", "made"]
    done = run_command(*arguments, before=partial(signal_at_the_third_picture, number))
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert "at 2 of 1000 scenes" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def interrupted_after(count: float, stop: KeyboardInterrupt, resumes: bool) -> None:
    with counter("shards", 5, resumes=resumes) as tell:
        tell(count, "a note")
        raise stop


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_what_was_finished_is_told(stop: type[KeyboardInterrupt]) -> None:
    with pytest.raises(stop, match="3 of 5 shards finished"):
        interrupted_after(3.4, stop(), True)
    with pytest.raises(stop, match="at 3 of 5 shards"):
        interrupted_after(3.4, stop(), False)
    with pytest.raises(stop, match=r"^7 triplets$"):
        interrupted_after(3, stop("7 triplets"), True)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))


def test_a_full_disk_is_a_failure_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for the full disk: both end a write in the middle by an OSError."""
    monkeypatch.chdir(tmp_path)
    done = run_command("data", "scenes", "--count", "9", "--size", "128", "--out", "made", before=limit_files)
    assert done.returncode == 1, done.stderr
    assert "free some space" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_and_version_import_nothing_heavy() -> None:
    code = """
import json, sys
from typer.testing import CliRunner
from cogview3.cli.app import app
codes = [CliRunner().invoke(app, arguments).exit_code for arguments in json.loads(sys.argv[1])]
print(json.dumps([codes, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
    commands = [[], ["generate"], ["upscale"], ["info"], ["train"], ["export"], ["evaluate"]]
    commands += [["data"], ["data", "scenes"], ["bench"], ["bench", "inference"]]
    calls = [[*command, "--help"] for command in commands] + [["--version"]]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout)
    assert codes == [0] * len(calls)
    assert not {"torch", "diffusers", "transformers", "accelerate", "numpy", "scipy"} & set(modules)
