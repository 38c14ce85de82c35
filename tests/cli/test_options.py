"""What stands behind the shared options."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cogview3.cli import options
from cogview3.config import UserError


@pytest.mark.parametrize(
    ("text", "size"), [(None, (None, None)), ("256x512", (256, 512)), ("8X8", (8, 8)), ("1024×64", (1024, 64))]
)
def test_sizes_are_width_by_height(text: str | None, size: tuple) -> None:
    assert options.parse_size(text) == size


@pytest.mark.parametrize("text", ["256", "x", "256x", "-8x8", "0x8", "8x0", "8.5x8", "256x256x3", "", "999999x8"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="256x256"):
        options.parse_size(text)


def test_fast_is_a_mode() -> None:
    assert options.pick_mode(None, fast=False) is None
    assert options.pick_mode("8+2", fast=False) == "8+2"
    assert options.pick_mode(None, fast=True) == options.pick_mode("4+1", fast=True) == "4+1"
    with pytest.raises(UserError, match=r"8\+2"):
        options.pick_mode("8+2", fast=True)


def test_seeds_given_are_kept_and_others_differ() -> None:
    assert options.pick_seed(0) == 0
    drawn = {options.pick_seed(None) for _ in range(8)}
    assert len(drawn) > 1  # equal with a chance of 2^-217
    assert all(0 <= seed < 2**31 for seed in drawn)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_must_be_finite(value: float) -> None:
    with pytest.raises(UserError, match="--guidance"):
        options.check_finite("--guidance", value)
    options.check_finite("--guidance", None)
    options.check_finite("--guidance", 7.5)


def test_devices_that_are_missing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert options.pick_device("auto") == options.pick_device("cpu") == "cpu"
    for device in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"--device {device}: not available"):
            options.pick_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert options.pick_device("auto") == "cuda"


def test_number_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert options.pick_dtype("auto", "cpu") is torch.float32
    assert options.pick_dtype("auto", "cuda") is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert options.pick_dtype("auto", "cuda") is torch.float32  # older than Ampere
    assert options.pick_dtype("bfloat16", "cuda") is torch.bfloat16
    assert options.pick_dtype("float16", "cpu") is torch.float16


def test_folders_are_checked_for_writing(tmp_path: Path) -> None:
    options.check_writable(tmp_path)
    options.check_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for folder, reason in {"a/b": "does not exist", "file": "is not a folder", "file/new": "is not a folder"}.items():
        with pytest.raises(UserError, match=reason):
            options.check_writable(tmp_path / folder)


def test_folders_without_permission_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may write anywhere, so the refusal comes from the system call's place."""

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(options, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"Permission denied.*another folder"):
        options.check_writable(tmp_path)


def test_a_full_disk_is_told_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{dir}/tmpx")

    monkeypatch.setattr(options, "TemporaryFile", refuse)
    with pytest.raises(OSError, match="No space") as caught:
        options.check_writable(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_json_keeps_stdout_for_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    with options.clean_stdout(as_json=True):
        print("noise of a library")
    options.report({"path": Path("a"), "text": "é"}, "unused", as_json=True)
    captured = capsys.readouterr()
    assert captured.err == "noise of a library\n"
    assert json.loads(captured.out) == {"path": "a", "text": "é"}
    with options.clean_stdout(as_json=False):
        print("for people", file=sys.stdout)
    options.report({}, "outcome", as_json=False)
    assert capsys.readouterr().out == "for people\noutcome\n"


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_leave_their_processor_unless_told_otherwise(given: dict[str, str], count: str | None) -> None:
    """In a process of its own, before torch is loaded."""
    code = "import os, sys; from cogview3.cli import _wait_briefly; _wait_briefly(); assert 'torch' not in sys.modules;"
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(count)


def test_outcomes_are_lines_and_no_dictionaries() -> None:
    text = options.lines({"run": "runs/a", "loss": None, "validation": {"psnr": 24.5, "loss": 0.1}})
    assert text.splitlines() == ["run: runs/a", "loss: none", "validation/psnr: 24.5", "validation/loss: 0.1"]
