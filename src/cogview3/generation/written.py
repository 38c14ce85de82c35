"""Settings as text inside PNG files, written and read back."""

from collections.abc import Mapping

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from cogview3 import __version__

MOST_TEXT = 100_000
"""Characters of one text that are read back."""


def text_chunks(facts: Mapping[str, object]) -> PngInfo:
    """Text chunks that hold `facts` (but None) and our version."""
    chunks = PngInfo()
    for key, value in {**facts, "version": __version__}.items():
        if value is not None:
            text = str(value).encode("utf-8", "replace").decode()  # names of files may hold other bytes
            chunks.add_itxt(key, text)
    return chunks


def read_settings(image: Image) -> dict[str, str]:
    """The texts that `text_chunks` put into a PNG file, by name; none of other pictures, and none that are odd."""
    image.load()  # texts may stand behind the pixels
    texts = getattr(image, "text", {})
    return {str(key): str(value) for key, value in texts.items() if len(value) <= MOST_TEXT}
