"""The interface of evaluated systems, and the simplest one: a folder of pictures. Loads no networks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from typing_extensions import override

from cogview3.config import UserError
from cogview3.data.images import SUFFIXES, decode, open_image, pictures_below
from cogview3.data.report import Broken
from cogview3.evaluation.prompt import Prompt

if TYPE_CHECKING:
    import torch
    from diffusers.models import AutoencoderKL

Pictures = list[tuple[np.ndarray, np.ndarray | None]]
"""Of each prompt the picture and perhaps the base picture that it was made of, (H, W, 3) uint8."""


class System(ABC):
    """One thing that turns prompts into pictures, under its name in tables."""

    name: str

    @abstractmethod
    def how(self) -> dict[str, Any]:
        """The settings that hold, known before anything is loaded."""

    @abstractmethod
    def draw(
        self, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, device: str, dtype: "torch.dtype"
    ) -> tuple[Pictures, float]:
        """The pictures of these prompts and the seconds that they took."""

    def vae(self, device: str, dtype: "torch.dtype") -> "AutoencoderKL | None":
        """Its VAE, where scenes are to be reconstructed by it."""
        return None

    def size(self) -> tuple[int, int] | None:
        """Width and height of its pictures, None where that is not known before they are drawn."""
        return None


class UndrawnError(Exception):
    """A picture that could not be had, with the reason."""


class Folder(System):
    """Pictures that some other system drew: number i of the prompts is the file named i, from 0 on.

    `00012.png` or `12.jpg`; in HPSv2's manner `anime/00012.jpg`, counted within the style; in GenEval's
    `00003/samples/0000.png`, several a prompt; or, where no name is a number, the files in order if there are as many.

    Of `per_prompt` pictures of each prompt, one comes after the other.
    """

    def __init__(self, folder: Path, prompts: Sequence[Prompt], per_prompt: int = 1) -> None:
        if not folder.is_dir():
            raise UserError(f"--images {folder}: is no folder; give one with a picture for each prompt")
        self.name, self.folder = folder.resolve().name, folder
        found = pictures_below(folder)
        if not found:
            raise UserError(f"--images {folder}: holds no pictures ({', '.join(SUFFIXES)}); give another folder")
        self.files = _assign(folder, found, prompts, per_prompt)
        if not any(self.files):
            raise UserError(
                f"--images {folder}: {found[0].name} and the other {len(found) - 1} are not named by the prompts' "
                f"numbers, and there are {len(prompts)} prompts: name them 00000.png, 00001.png, ..."
            )

    @override
    def how(self) -> dict[str, Any]:
        return {"kind": "images", "folder": str(self.folder)}

    @override
    def draw(
        self, prompts: Sequence[Prompt], indices: Sequence[int], seed: int, device: str, dtype: "torch.dtype | None"
    ) -> tuple[Pictures, float]:
        return [(self._open(index), None) for index in indices], 0.0

    def _open(self, index: int) -> np.ndarray:
        file = self.files[index]
        if file is None:
            raise UndrawnError("missing")
        try:
            return np.asarray(decode(file.read_bytes(), file.suffix.lower().lstrip(".")).image)
        except (Broken, OSError) as error:
            raise UndrawnError(f"{file.name}: {error}") from None

    @override
    def size(self) -> tuple[int, int] | None:
        """The one size of all pictures that can be read. Raises UserError where there are several."""
        first: tuple[Path, tuple[int, int]] | None = None
        for file in filter(None, self.files):
            try:
                with open_image(file) as image:
                    size = image.size
            except (OSError, ValueError, Image.DecompressionBombError):
                continue  # counted as failed when it is read
            if first and size != first[1]:
                raise UserError(
                    f"{file} is {size[0]} x {size[1]} pixels and {first[0].name} {first[1][0]} x {first[1][1]}, but "
                    "Fréchet distances are of pictures of one size; resize them, or leave the metric out"
                )
            first = first or (file, size)
        return first and first[1]


def _assign(folder: Path, found: Sequence[Path], prompts: Sequence[Prompt], per_prompt: int) -> list[Path | None]:
    by_name = {str(path.relative_to(folder).with_suffix("")): path for path in found}
    by_number: dict[tuple[str, ...], Path] = {}
    for name, path in by_name.items():
        *parents, last = Path(name).parts
        if last.isdigit():
            parents = [str(int(part)) if part.isdigit() else part for part in parents]
            by_number[(*parents, str(int(last)))] = path
    files: list[Path | None] = []
    seen: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        number, sample = divmod(place, per_prompt)
        style = prompt.tags.get("category", "")
        within = seen.setdefault(style, 0)
        seen[style] += 1
        names = [(str(place),), (str(number), "samples", str(sample)), (style, str(within))]
        files.append(next((by_number[name] for name in names if name in by_number), None))
    if not any(files) and len(found) == len(prompts):
        return list(found)
    return files
