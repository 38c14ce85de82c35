"""Small published files, where they lie beside the checkout; tests make their like where they do not."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def published(name: str) -> Path | None:
    """A published file by name, None where there is none."""
    places = (ROOT / "shared" / "data" / name, ROOT.parent / "shared" / "data" / name)
    return next((place for place in places if place.is_file()), None)
