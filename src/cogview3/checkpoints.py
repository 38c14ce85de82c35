"""Run folders: written whole or not at all, resumed exactly, by one process at a time.

runs/<name>/recipe.toml                    the resolved recipe
runs/<name>/metrics.jsonl                  one JSON object a line
runs/<name>/skipped.jsonl                  batches that were skipped, or stopped the run
runs/<name>/samples/                       picture grids
runs/<name>/checkpoints/images-N/          state.json, model.safetensors, ema.safetensors, optimizer.pt;
                                           of sharded training state.json and tensors/, a file from each process
runs/<name>/weights/<component>/           averaged (EMA) weights of the newest checkpoint, ready for use
runs/<name>/.lock                          there and locked while a process works in the folder
"""

import errno
import functools
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cogview3.config import UserError, parse_recipe, parse_toml

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls an adapter's file."""

_CHECKPOINT = re.compile(r"images-(\d+)")
_MAY_CHANGE = frozenset(
    f"{table}.{key}"
    for table, keys in {
        "train": "accumulation precision checkpoint_activations compile shard on_spike spike_factor max_skips",
        "data": "workers latents broken_share broken_window",
        "recipe": "description",
    }.items()
    for key in keys.split()
)
"""Entries that may change in the middle of a run: how it is computed, when it stops by itself, what it is called."""
_LENGTH = "train.images"
"""May be raised in the middle of a run, or after its end."""
_LEFTOVERS = (".weights.*", ".recipe.toml.*", ".*.jsonl.*", "checkpoints/.images-*", "samples/.images-*")
"""What was being written when the run was killed."""
_FOLDERS, _FILES = ("checkpoints", "samples", "weights"), ("metrics.jsonl", "skipped.jsonl")
_LOCK = ".lock"
_PARTIAL = "partial-"  # in the names of what is being written
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends without an error.

    What is left of it after a kill, the next process that writes into the folder deletes.
    """
    with _temporary(path, folder=False) as temporary:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; it replaces `path` when the block ends well.

    Of a link, what it points to is replaced. What killed commands left of the same folder is deleted.
    """
    path = path.resolve()
    clear_abandoned(path.parent)
    with _temporary(path, folder=True) as temporary:
        yield temporary
        for item in (temporary, *temporary.rglob("*")):
            item.chmod(0o755 if item.is_dir() else 0o644)  # safetensors writes for the owner alone
        with alone_in(path.parent):
            _replace_folder(temporary, path)


@contextmanager
def _temporary(path: Path, folder: bool) -> Iterator[Path]:
    """An empty file or folder beside `path`, gone when the block ends; what cannot be written is told of `path`."""
    temporary: Path | None = None
    handle: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_once(path.parent.absolute())
        while temporary is None or not temporary.exists():  # before it is held, another process may clear it away
            if handle is not None:
                os.close(handle)
                handle = None
            # named before it is made, so that an interruption in between leaves nothing
            temporary = path.with_name(f".{path.name}.{_PARTIAL}{secrets.token_hex(4)}{'' if folder else path.suffix}")
            try:
                if folder:
                    temporary.mkdir(0o700)
                else:
                    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
            handle = _hold(temporary)
        yield temporary
    except Exception as error:
        raise_if_full(error, path)
        raise
    finally:
        if temporary is not None:
            _delete(temporary)
        if handle is not None:
            os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Have other processes that ask for the same folder here wait while the block runs; it should be short."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = _hold(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def clear_abandoned(folder: Path) -> None:
    """Delete what `whole_file` and `whole_folder` of killed processes left in a folder; others at work are let be."""
    for path in folder.glob(f".*.{_PARTIAL}{'[0-9a-f]' * 8}*") if fcntl else ():
        with suppress(OSError):  # gone; or locked, as it is being written
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _delete(path)
            finally:
                os.close(handle)


_clear_once = functools.cache(clear_abandoned)


def _delete(path: Path) -> None:
    """Delete a file or a folder, where that is possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _hold(path: Path) -> int | None:
    """A handle that marks a file or folder for as long as this process lives; None where there are no locks."""
    handle: int | None = None
    with suppress(OSError):  # gone, not to be read, or a file system without locks
        if fcntl is not None:
            handle = os.open(path, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _replace_folder(new: Path, path: Path) -> None:
    for abandoned in path.parent.glob(f".{path.name}.old.*") if fcntl else ():  # of a command that was killed here
        if path.exists():
            shutil.rmtree(abandoned, ignore_errors=True)
        else:
            os.replace(abandoned, path)
    if not path.exists():
        os.replace(new, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.replace(path, old)
        os.replace(new, path)
    except BaseException:
        if not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def raise_if_full(error: Exception, path: Path) -> None:
    """Raise the OSError that stands behind libraries' own errors where `path` cannot be written: no room, read-only.

    safetensors, tokenizers and shutil give its number in their text; torch says that its writer's position is wrong.
    """
    number = error.errno if isinstance(error, OSError) else None
    if match := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error)):
        number = int(match[1] or match[2])
    elif isinstance(error, RuntimeError) and "inline_container" in str(error):
        number = errno.ENOSPC
    if number in _NO_ROOM:
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have `path` named where a file that is written piece by piece has no room."""
    try:
        yield
    except Exception as error:
        raise_if_full(error, path)
        raise


def append_line(path: Path, text: str) -> None:
    """Add a line to a text file."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(images, folder) of a run's checkpoints, oldest first."""
    folders = (run / "checkpoints").glob("images-*")
    found = [(int(match[1]), folder) for folder in folders if (match := _CHECKPOINT.fullmatch(folder.name))]
    return sorted(found)


def checkpoint_name(images: int) -> str:
    """What the folder of a checkpoint is called."""
    return f"images-{images}"


def save_checkpoint(run: Path, images: int, keep: int, write: Callable[[Path], None]) -> Path:
    """Write checkpoint `images` with `write(folder)`, whole or not at all, and drop all but the newest `keep`."""
    target = run / "checkpoints" / checkpoint_name(images)
    with whole_folder(target) as folder:
        write(folder)
    for _, old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


@contextmanager
def open_run(run: Path, recipe: dict[str, Any], restart: bool = False) -> Iterator[Path | None]:
    """Begin or continue a run folder, kept from other processes while the block runs; give its newest checkpoint.

    That is None where there is none. `restart` moves an earlier run aside. Raises UserError as `check_run` does, and
    where another process works in the folder.
    """
    import tomli_w

    if restart and run.is_dir():
        with held(run):
            pass
        names = (run.with_name(f"{run.name}.old-{number}") for number in count(1))
        run.rename(next(name for name in names if not name.exists()))
    check_run(run, recipe)
    with held(run):
        text, stored = tomli_w.dumps(recipe), run / "recipe.toml"
        if not stored.exists() or stored.read_text("utf-8") != text:
            write_text(stored, text)
        for path in (path for pattern in _LEFTOVERS for path in run.glob(pattern)):
            _delete(path)
        found = checkpoints(run)
        yield found[-1][1] if found else None


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Lock a folder, made where it is missing; the system lets go of it too if the process is killed.

    Raises UserError where another process holds it.
    """
    lock = FileLock(run / _LOCK, timeout=0)
    try:
        with naming(run):
            run.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        raise UserError(f"{run}: another process works there; wait for it to end, or use --out") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files
            (run / _LOCK).unlink(missing_ok=True)
        lock.release()


def check_run(run: Path, recipe: dict[str, Any]) -> None:
    """Check that `recipe` can begin or continue in the folder `run`, which need not exist; writes nothing.

    Raises UserError where it is a file, no run, or a run of another recipe (naming the keys that differ). Entries that
    only say how the run is computed, as `train.accumulation`, may differ, and `train.images` may be larger.
    """
    stored = run / "recipe.toml"
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; give a folder for the run with --out")
    if run.is_symlink() and not run.exists():
        raise UserError(f"{run} is a broken link; fix it, or give another folder with --out")
    if stored.is_file():
        _require_same(run, _read_recipe(stored), recipe)
    elif run.is_dir() and any(path.name != _LOCK for path in run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run; give another folder with --out")
    for path in (run / name for name in (*_FOLDERS, *_FILES)):
        if (path.exists() or path.is_symlink()) and not (path.is_dir() if path.name in _FOLDERS else path.is_file()):
            kind = "folder" if path.name in _FOLDERS else "file"
            raise UserError(f"{path} is no {kind}, or a broken link; fix it, or give another run with --out")


def length_of(run: Path) -> int | None:
    """`train.images` of the recipe that a run folder holds; None where there is no run, or one of several rounds."""
    stored = run / "recipe.toml"
    images = _flatten(_read_recipe(stored)).get(_LENGTH) if stored.is_file() else None
    return images if isinstance(images, int) else None


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text("utf-8"), str(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); move the run aside with --restart") from None


def set_entry(run: Path, table: str, key: str, value: str) -> None:
    """Change one entry of the recipe that a run folder holds; without one nothing is done."""
    import tomli_w

    stored = run / "recipe.toml"
    if not stored.is_file():
        return
    recipe = _read_recipe(stored)
    if _flatten(recipe).get(f"{table}.{key}", value) != value:
        recipe[table][key] = value
        write_text(stored, tomli_w.dumps(recipe))


def _require_same(run: Path, stored: dict[str, Any], recipe: dict[str, Any]) -> None:
    with suppress(UserError):  # a run of an earlier version lacks the entries that came later: their defaults hold
        stored, recipe = (parse_recipe(one, str(run)).to_dict() for one in (stored, recipe))
    old, new = _flatten(stored), _flatten(recipe)
    keys = (old.keys() | new.keys()) - _MAY_CHANGE
    different = sorted(key for key in keys if old.get(key) != new.get(key))
    before, now = old.get(_LENGTH), new.get(_LENGTH)
    if isinstance(before, int) and isinstance(now, int) and now > before:
        different.remove(_LENGTH)
    if different:
        shown = differences(old, new, different[:5])
        raise UserError(f"{run} holds a run of another recipe: {shown}; use --out, or --restart to move it aside")


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """What differs between stored settings and those of now, in words: "size (64 there, 32 here)"; "" for nothing.

    `names` are those to look at; all by default.
    """
    names = sorted(theirs.keys() | ours.keys()) if names is None else names
    shown = [name for name in names if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} ({theirs.get(name)} there, {ours.get(name)} here)" for name in shown)


def _flatten(tables: dict[str, Any]) -> dict[str, Any]:
    known = {table: entries for table, entries in tables.items() if isinstance(entries, dict)}
    return {f"{table}.{key}": value for table, entries in known.items() for key, value in entries.items()}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint. Raises UserError where it is missing or damaged."""
    return read_json(checkpoint / "state.json", "delete this checkpoint to resume from the one before")


def regular(path: Path) -> Path:
    """The path, if it is a file's; OSError for what is none, or might never end, such as a pipe."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "no file", str(path))
    return path


def read_json(path: Path, fix: str, most: int = 2**22) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises UserError, which ends with `fix`: it cannot be read, has more than `most` bytes, or is no JSON object.
    """
    try:
        if regular(path).stat().st_size > most:
            raise ValueError(f"more than {most} bytes are not read")
        held = json.loads(path.read_bytes())
        if not isinstance(held, dict):
            raise ValueError(f"it holds a {type(held).__name__} and no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {fix} ({' '.join(str(error).split())[:100]})") from None
    return held
