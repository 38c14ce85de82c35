"""Make the atlas of drawn things from the npm package @lobehub/fluent-emoji-3d.

    npm pack @lobehub/fluent-emoji-3d && tar xzf lobehub-fluent-emoji-3d-*.tgz
    python scripts/make_things.py package/assets

Each drawing is cut to what it shows, its longer side brought to a tile's, and centered in the tile.
"""

import sys
from pathlib import Path

from PIL import Image

from cogview3.data.scenes.things import COLUMNS, THINGS, TILE

VISIBLE = 24  # coverage, of 255, from which a pixel counts as drawn
QUALITY = 90


def tile(folder: Path, code: str) -> Image.Image:
    """One drawing, RGBA, TILE x TILE."""
    path = next(path for path in (folder / f"{code}.webp", folder / f"{code}-fe0f.webp") if path.is_file())
    image = Image.open(path, formats=["WEBP"]).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda value: 255 * (value > VISIBLE)).getbbox())
    width, height = (max(round(side * TILE / max(image.size)), 1) for side in image.size)
    image = image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (TILE, TILE))
    square.paste(image, ((TILE - width) // 2, (TILE - height) // 2))
    return square


def main() -> None:
    """Write the atlas beside the module that reads it."""
    folder = Path(sys.argv[1])
    atlas = Image.new("RGBA", (COLUMNS * TILE, -(-len(THINGS) // COLUMNS) * TILE))
    for index, thing in enumerate(THINGS.values()):
        row, column = divmod(index, COLUMNS)
        atlas.paste(tile(folder, thing.code), (column * TILE, row * TILE))
    target = Path(__file__).parent.parent / "src/cogview3/data/scenes/atlas/things.webp"
    atlas.save(target, quality=QUALITY, method=6)
    print(f"{target}: {len(THINGS)} things, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
