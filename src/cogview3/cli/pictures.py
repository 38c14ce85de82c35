"""Paths, names and metadata of pictures that commands write."""

import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cogview3.cli import options
from cogview3.config import UserError
from cogview3.errors import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 8192 * 8192
"""Maximum pixels of an input picture: as many as the largest drawn one has."""

MAX_SHEET = 1000
"""Maximum number of pictures on a contact sheet."""


def slug(text: str) -> str:
    """A short file name for a text: letters, digits and hyphens, 48 characters at most."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:48].strip("-") or "picture"


def plan_files(out: Path | None, names: Sequence[str]) -> list[Path]:
    """One path for each picture, checked to be writable before any is drawn.

    Args:
        out: a `.png` file, numbered from 1 if there are several pictures; or a folder, created if its parent
            exists; None is the current folder.
        names: what the pictures are called inside a folder, without suffix; equal names are numbered.

    Raises:
        UserError: another suffix than .png, a missing parent, or no permission.
    """
    out = Path() if out is None else out
    if out.is_dir() or not out.suffix:
        options.check_writable(out)
        return [out / f"{name}.png" for name in _numbered(names)]
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: pictures are PNG files; give a name ending in .png, or a folder")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    options.check_writable(out.parent)
    return [out.with_stem(stem) for stem in _numbered([out.stem] * len(names))]


def grid_file(out: Path | None, seed: int, pictures: Collection[Path] = ()) -> Path:
    """Where the contact sheet goes: beside the file that `--out` names, or into its folder; never one of `pictures`."""
    if out is not None and out.suffix and not out.is_dir():
        return out.with_stem(f"{out.stem}-grid")
    sheet = (out or Path()) / f"grid-{seed}.png"
    return sheet.with_stem(f"{sheet.stem}_all") if sheet in pictures else sheet  # no picture's name has a _


def _numbered(names: Sequence[str]) -> list[str]:
    """Equal names get -1, -2, ... in order; names that stand alone are kept."""
    width, total = len(str(len(names))), Counter(names)
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if total[name] == 1 else f"{name}-{seen[name]:0{width}}")
    return result


def free_place(path: Path, facts: Mapping[str, object]) -> Path:
    """`path`, or a numbered name if it holds a picture that was drawn with other settings."""
    places = (path.with_stem(f"{path.stem}-{number}") if number > 1 else path for number in itertools.count(1))
    return next(place for place in places if not place.exists() or _holds(place, facts))


def _holds(path: Path, facts: Mapping[str, object]) -> bool:
    """Whether a file is a picture that was drawn with these `facts`."""
    from PIL import Image

    from cogview3.generation.written import read_settings

    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = read_settings(image)
    except (OSError, SyntaxError, ValueError):
        return False
    found.pop("version", None)
    return found == {key: str(value) for key, value in facts.items() if value is not None}


def open_picture(path: Path) -> "Image":
    """A picture from a file, upright and in RGB, laid on white where it is transparent.

    Raises UserError where the file is none or is damaged.
    """
    from PIL import Image

    from cogview3.data.images import open_image, to_rgb, upright

    fix = f"give at most {MAX_PIXELS // 10**6} million pixels"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its size is checked here
            image = open_image(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path} is {image.width}x{image.height}: {fix}")
            image.load()
            return to_rgb(upright(image)[0])[0]
    except (FileNotFoundError, PermissionError, IsADirectoryError, UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {fix} ({error})") from None
    except Exception as error:  # decoders raise nearly anything for damaged data
        raise UserError(f"{path}: not a picture that can be read ({one_line(error)})") from None


def save_png(image: "Image", path: Path, facts: Mapping[str, object]) -> None:
    """Write a picture with `facts` (but None) and our version in its text chunks, whole or not at all."""
    from cogview3.checkpoints import whole_file
    from cogview3.generation.written import text_chunks

    with whole_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text_chunks(facts))


def contact_sheet(images: Sequence["Image"], columns: int | None = None) -> "Image":
    """Pictures of one size side by side, row by row; about square unless `columns` is given."""
    from PIL import Image

    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
