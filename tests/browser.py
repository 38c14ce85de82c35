"""A browser for tests of pages; they are skipped where there is none (`.ci/run` installs it)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PLAYWRIGHT = find_spec("playwright") is not None
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or not _PLAYWRIGHT,
    reason="needs a browser: apt-get install chromium" if _PLAYWRIGHT else "needs playwright: pip install playwright",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's, closed at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
