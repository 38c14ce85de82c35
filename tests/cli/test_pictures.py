"""Names and places of pictures, and what is written into them."""

import struct
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from cogview3 import __version__
from cogview3.cli import drawing
from cogview3.cli.drawing import Gallery
from cogview3.cli.pictures import contact_sheet, free_place, grid_file, open_picture, plan_files, save_png, slug
from cogview3.config import UserError
from cogview3.generation.inputs import to_pixels
from cogview3.serving.pictures import read_mask


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A large RED circle, left of…", "a-large-red-circle-left-of"),
        ("../../etc/passwd", "etc-passwd"),
        ("红色的圆", "红色的圆"),
        ("!?", "picture"),
        ("under_score", "under-score"),
        ("word " * 40, ("word-" * 10)[:48].rstrip("-")),
    ],
)
def test_slugs(text: str, name: str) -> None:
    assert slug(text) == name


def test_names_in_a_folder(tmp_path: Path) -> None:
    assert plan_files(tmp_path, ["a", "b", "a"]) == [tmp_path / name for name in ("a-1.png", "b.png", "a-2.png")]
    assert plan_files(tmp_path / "new", ["a"]) == [tmp_path / "new" / "a.png"]
    assert grid_file(tmp_path, 7) == tmp_path / "grid-7.png"


def test_names_of_a_great_many_pictures_are_not_compared_each_with_each() -> None:
    names = plan_files(Path("x.png"), ["a"] * 100_000)
    assert (names[0], names[-1]) == (Path("x-000001.png"), Path("x-100000.png"))


def test_a_picture_drawn_otherwise_keeps_its_place(tmp_path: Path) -> None:
    image, place = Image.new("RGB", (4, 2)), tmp_path / "a-7.png"
    first, second = {"prompt": "a", "steps": 50, "mode": None}, {"prompt": "a", "steps": 4}
    assert free_place(place, first) == place
    save_png(image, place, first)
    assert free_place(place, first) == place  # the very same one may be drawn again
    assert free_place(place, second) == tmp_path / "a-7-2.png"
    save_png(image, tmp_path / "a-7-2.png", second)
    assert free_place(place, second) == tmp_path / "a-7-2.png"
    assert free_place(place, second | {"steps": 5}) == tmp_path / "a-7-3.png"
    for content in (b"", b"no picture"):
        place.write_bytes(content)
        assert free_place(place, first) == tmp_path / "a-7-3.png"


def test_names_beside_a_file(tmp_path: Path) -> None:
    assert plan_files(tmp_path / "x.png", ["a"]) == [tmp_path / "x.png"]
    several = plan_files(tmp_path / "x.png", [str(number) for number in range(10)])
    assert several == [tmp_path / f"x-{number:02}.png" for number in range(1, 11)]
    assert grid_file(tmp_path / "x.png", 7) == tmp_path / "x-grid.png"


def test_the_current_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan_files(None, ["a"]) == [Path("a.png")]
    assert grid_file(None, 7) == Path("grid-7.png")


@pytest.mark.parametrize(
    ("out", "reason"), [("x.jpg", "PNG"), ("none/x.png", "does not exist"), ("none/x", "does not")]
)
def test_places_that_will_not_do(tmp_path: Path, out: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        plan_files(tmp_path / out, ["a"])


def test_facts_stand_in_the_file(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    save_png(image, tmp_path / "new" / "a.png", {"prompt": "ein roter Stern ★", "seed": 5, "mode": None})
    with Image.open(tmp_path / "new" / "a.png") as written:
        assert written.text == {"prompt": "ein roter Stern ★", "seed": "5", "version": __version__}
        assert written.tobytes() == image.tobytes()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    class Broken(Image.Image):
        def save(self, *arguments: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_png(Broken(), path, {})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("columns", "size"), [(None, (4, 4)), (3, (6, 2)), (1, (2, 6))])
def test_sheets_go_row_by_row(columns: int | None, size: tuple[int, int]) -> None:
    colors = [(10, 0, 0), (0, 20, 0), (0, 0, 30)]
    sheet = contact_sheet([Image.new("RGB", (2, 2), color) for color in colors], columns)
    assert sheet.size == size
    across = size[0] // 2
    corners = [(index % across * 2, index // across * 2) for index in range(3)]
    assert [sheet.getpixel(corner) for corner in corners] == colors


def test_pictures_are_opened_upright_in_rgb(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (3, 2), (9, 8, 7, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by a quarter
    picture.save(tmp_path / "a.png", exif=exif)
    opened = open_picture(tmp_path / "a.png")
    assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (2, 3), (9, 8, 7))


@pytest.mark.parametrize(
    ("kind", "white"),
    [
        (np.uint16, 65535),
        (np.int32, 65535),
        (np.int32, 2**31 - 1),
        (np.uint32, 2**32 - 1),
        (np.float32, 1),
        (np.float32, 255),
    ],
)
def test_pictures_of_many_bits_keep_their_grays(tmp_path: Path, kind: type, white: int) -> None:
    grays = np.linspace(0, white, 6).reshape(2, 3).astype(kind)
    Image.fromarray(grays).save(tmp_path / "a.tiff")
    expected = [[[gray] * 3 for gray in row] for row in ((0, 51, 102), (153, 204, 255))]
    assert np.asarray(open_picture(tmp_path / "a.tiff")).tolist() == expected
    with Image.open(tmp_path / "a.tiff") as image:
        given = (to_pixels(image) + 1) / 2 * 255
    assert given.round().int()[0].permute(1, 2, 0).tolist() == expected


def test_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (9, 8, 7, 0)).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    with Image.open(tmp_path / "a.png") as image:
        assert to_pixels(image).eq(1).all()


def test_a_picture_whose_exif_is_damaged_is_taken_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*")
    assert open_picture(tmp_path / "a.jpg").size == (3, 2)


@pytest.mark.parametrize("error", [struct.error("unpack requires 4 bytes"), KeyError(3), zlib.error("-3"), TypeError()])
def test_whatever_decoders_raise_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImageFile, "load", Mock(side_effect=error))
    with pytest.raises(UserError, match=r"a\.png: not a picture that can be read"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="mask: not a picture that can be read"):
        read_mask((tmp_path / "a.png").read_bytes(), (3, 2))


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.bmp")
    (tmp_path / "b.bmp").write_bytes((tmp_path / "b.bmp").read_bytes()[:500])
    for name in ("a.png", "b.bmp"):
        with pytest.raises(UserError, match=name):
            open_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.png")


def test_commands_that_draw_into_the_same_folder_lose_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_slowly(path: Path, facts: Mapping[str, object]) -> Path:
        found = free_place(path, facts)
        time.sleep(0.02)
        return found

    def draw(steps: int) -> None:
        Gallery([tmp_path / "a-7.png"], tmp_path).add(Image.new("RGB", (4, 2)), {"steps": steps})

    monkeypatch.setattr(drawing, "free_place", find_slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(draw, (4, 50)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-7-2.png", "a-7.png"]
