"""The page in a browser."""

import io
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from cogview3 import CogView3Pipeline
from tests.serving.conftest import Served, serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    # gradio leaves an uploaded picture's file to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def paged(kept: dict[str, Any], pipe: CogView3Pipeline) -> Served:
    if "paged" not in kept:
        kept["paged"] = kept["stack"].enter_context(serving(pipe, page=True))
    return kept["paged"]


@pytest.fixture
def page(browser: Any, paged: Served) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page, outside = context.new_page(), []
    page.on("request", lambda request: outside.append(request.url))
    page.goto(paged.url)
    expect(page.locator("#draw")).to_be_visible(timeout=60_000)
    yield page
    context.close()
    allowed = (paged.url, "data:", "blob:")
    assert [url for url in outside if not url.startswith(allowed)] == []


def write(page: Page, prompt: str) -> None:
    page.locator("#prompt textarea").fill(prompt)


def test_draw_enlarge_and_read_the_settings_back(page: Page, paged: Served) -> None:
    write(page, "a red star")
    page.get_by_role("button", name="Describe in full").click()
    expect(page.locator("#expanded textarea")).to_have_value(
        "This is a picture of a red star, which is seen from the front and lit from the left.", timeout=20_000
    )
    page.locator("#expanded textarea").fill("a blue star")
    page.get_by_label("Seed").fill("11")
    page.keyboard.press("Tab")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_contain_text("Drawn: 64x64", timeout=30_000)
    expect(page.locator("#settings")).to_contain_text("a blue star")
    source = page.locator("#picture img").first.get_attribute("src")
    data = page.request.get(source).body()
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.text["seed"] == "11"
    assert image.text["expanded_prompt"] == "a blue star"

    page.locator("#enlarge").click()
    expect(page.locator("#status")).to_contain_text("Drawn: 128x128", timeout=30_000)
    expect(page.locator("#gallery img")).to_have_count(2)

    page.reload()
    expect(page.locator("#draw")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Begin from a picture").click()
    page.locator("#given input[type=file]").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": data})
    expect(page.locator("#prompt textarea")).to_have_value("a red star", timeout=20_000)
    expect(page.locator("#expanded textarea")).to_have_value("a blue star")
    expect(page.get_by_label("Seed")).to_have_value("11")


def test_stop_ends_a_picture_within_a_step(page: Page, paged: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = paged.service.modes
    monkeypatch.setitem(modes, "2+2", modes["2+2"].model_copy(update={"steps": 1000}))
    write(page, "star")
    page.locator("#prompt textarea").press("Shift+Enter")
    expect(page.locator("#status")).to_contain_text("Drawing", timeout=20_000)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stop", timeout=20_000)
    while paged.service.engine.running:
        page.wait_for_timeout(20)


def test_an_empty_prompt_is_told(page: Page) -> None:
    page.locator("#draw").click()
    expect(page.get_by_text("prompt is missing").first).to_be_visible(timeout=20_000)


def test_the_page_fits_a_phone(browser: Any, paged: Served) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(paged.url)
    expect(page.locator("#draw")).to_be_visible(timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
