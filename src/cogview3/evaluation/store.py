"""Pictures on disk as they are drawn: a stopped run resumes where it was."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.data.images import open_image
from cogview3.errors import as_user_error
from cogview3.evaluation.prompt import Prompt

_HOW = "how.json"
_AGAIN = "delete it to draw the picture again"


class Store:
    """One system's pictures of a set of prompts.

    `00000.png`, `00000-base.png` where there is a base picture, and `00000.json`, which is written last: prompt, seed,
    and seconds or why there is no picture.

    Raises:
        UserError: the folder holds pictures of other settings, prompts or seeds.
    """

    def __init__(self, folder: Path, prompts: Sequence[Prompt], seed: int, how: Mapping[str, Any]) -> None:
        self.folder, self.prompts, self.seed, self.how = folder, prompts, seed, dict(how)
        stored = _read(folder / _HOW)
        if stored is not None and (differing := checkpoints.differences(stored, self.how)):
            raise UserError(f"{folder} holds pictures of other settings: {differing}; give another --out")
        self.records: dict[int, dict[str, Any]] = {}
        self.reload()

    def clear(self) -> None:
        """Forget all pictures, those of an earlier run too."""
        for index in self.records:
            self._path(index, ".json").unlink(missing_ok=True)
        self.records = {}

    def begin(self) -> None:
        """Write the settings."""
        if not (self.folder / _HOW).exists():
            checkpoints.write_text(self.folder / _HOW, json.dumps(self.how, indent=2, default=str) + "\n")

    def reload(self) -> int:
        """Read the records that came since; the number of all."""
        for index, prompt in enumerate(self.prompts):
            if index in self.records:
                continue
            record = _read(self._path(index, ".json"))
            if record is None:
                continue
            if not isinstance(record.get("seconds", 0), int | float):
                raise UserError(f"{self._path(index, '.json')} is damaged: {_AGAIN} (its seconds are no number)")
            if record.get("text") != prompt.text or record.get("seed") != self.seed:
                raise UserError(
                    f"{self.folder} holds a picture of {record.get('text')!r}, seed {record.get('seed')}, and asked is "
                    f"{prompt.text!r}, seed {self.seed}: give another --out"
                )
            self.records[index] = record
        return len(self.records)

    def missing(self) -> list[int]:
        """Places of the pictures that are not there; what failed is tried again."""
        return [index for index in range(len(self.prompts)) if "seconds" not in self.records.get(index, {})]

    def there(self) -> list[int]:
        """Places of the pictures that are there."""
        return sorted(index for index, record in self.records.items() if "seconds" in record)

    def failed(self) -> dict[int, str]:
        """Why each other picture is not there."""
        return {index: self.records.get(index, {}).get("error", "not drawn") for index in self.missing()}

    def save(self, index: int, picture: np.ndarray, base: np.ndarray | None, seconds: float) -> None:
        """Keep a picture, (H, W, 3) uint8."""
        for suffix, pixels in ((".png", picture), ("-base.png", base)):
            if pixels is not None:
                with checkpoints.whole_file(self._path(index, suffix)) as temporary:
                    Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
        self._record(index, {"seconds": seconds})

    def fail(self, index: int, reason: str) -> None:
        """Keep why there is no picture."""
        self._record(index, {"error": reason})

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A picture and its base picture, (H, W, 3) uint8. Raises UserError where the file is damaged."""
        base = self._path(index, "-base.png")
        return _open(self.picture(index)), _open(base) if base.exists() else None

    def picture(self, index: int) -> Path:
        """The file of a picture."""
        return self._path(index, ".png")

    def _record(self, index: int, outcome: dict[str, Any]) -> None:
        record = {"text": self.prompts[index].text, "seed": self.seed} | outcome
        checkpoints.write_text(self._path(index, ".json"), json.dumps(record, ensure_ascii=False) + "\n")
        self.records[index] = record

    def _path(self, index: int, suffix: str) -> Path:
        return self.folder / f"{index:05d}{suffix}"


def claim(path: Path, run: Mapping[str, Any]) -> None:
    """Note in a file whose results its folder holds. Raises UserError where it holds another run's."""
    if not path.exists():
        checkpoints.write_text(path, json.dumps(run, indent=2) + "\n")
        return
    stored = checkpoints.read_json(path, "give another --out")
    if differing := checkpoints.differences(stored, run, run):
        raise UserError(f"{path.parent} holds the results of another run: {differing}; give another --out")


def _read(path: Path) -> dict[str, Any] | None:
    return checkpoints.read_json(path, _AGAIN) if path.exists() else None


def _open(path: Path) -> np.ndarray:
    fix = f"delete {path.with_name(path.name[:5] + '.json').name} to draw it again"
    with as_user_error(f"{path} is damaged", fix), open_image(path) as image:
        return np.asarray(image.convert("RGB"))
