"""The page in a browser."""

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Page, expect

from cogview3 import CogView3Pipeline
from cogview3.data.scenes.typed import problems
from cogview3.prompts.expand import Expander
from cogview3.serving.keys import Key, Keys, digest_of
from tests.browser import chromium, needs_browser
from tests.serving.conftest import Served, Shouting, serving

pytestmark = [
    needs_browser,
    # gradio leaves an uploaded picture's file to the garbage collector
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def paged(kept: dict[str, Any], pipe: CogView3Pipeline) -> Served:
    if "paged" not in kept:
        kept["paged"] = kept["stack"].enter_context(serving(pipe, page=True, expander=Expander(Shouting())))
        kept["paged"].service.problems = problems
    return kept["paged"]


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """One for all pages, so that what they share is loaded once."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context: Any, paged: Served) -> Iterator[Page]:
    page, outside = context.new_page(), []
    page.on("request", lambda request: outside.append(request.url))
    page.goto(paged.url)
    expect(page.locator("#draw")).to_be_visible(timeout=60_000)
    yield page
    page.close()
    allowed = (paged.url, "data:", "blob:")
    assert [url for url in outside if not url.startswith(allowed)] == []


def write(page: Page, prompt: str) -> None:
    page.locator("#prompt textarea").fill(prompt)


def shown_file(page: Page) -> bytes:
    return page.request.get(page.locator("#picture img").first.get_attribute("src")).body()


def choose(page: Page, data: bytes) -> None:
    page.get_by_role("button", name="Begin with a picture").click()
    page.locator("#given input[type=file]").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": data})


def text_of(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return dict(image.text)


def test_draw_enlarge_and_read_the_settings_back(page: Page) -> None:
    write(page, "a red star")
    expect(page.locator("#warnings")).to_have_count(0)
    page.get_by_label("Seed").fill("11")
    page.keyboard.press("Tab")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_contain_text("Drawn: 64x64", timeout=60_000)
    written = "This is a picture of a red star, which is seen from the front and lit from the left."
    expect(page.locator("#expanded textarea")).to_have_value(written)
    expect(page.locator("#compared")).to_be_visible()
    data = shown_file(page)
    assert (text_of(data)["seed"], text_of(data)["expanded_prompt"]) == ("11", written)

    page.locator("#enlarge").click()
    expect(page.locator("#status")).to_contain_text("Drawn: 128x128", timeout=60_000)
    expect(page.locator("#gallery img")).to_have_count(2)

    page.reload()
    expect(page.locator("#draw")).to_be_visible(timeout=60_000)
    choose(page, data)
    expect(page.locator("#prompt textarea")).to_have_value("a red star", timeout=60_000)
    expect(page.locator("#expanded textarea")).to_have_value(written)
    expect(page.get_by_label("Seed")).to_have_value("11")
    page.locator("#enlarge-given").click()
    expect(page.locator("#status")).to_contain_text("Drawn: 128x128", timeout=60_000)


def draw(page: Page) -> dict[str, str]:
    """Draw, and read what the new picture tells."""
    before = page.locator("#gallery img").count()
    page.locator("#draw").click()
    expect(page.locator("#gallery img")).to_have_count(before + 1, timeout=60_000)
    return text_of(shown_file(page))


def test_a_description_belongs_to_its_prompt_until_it_is_edited(page: Page) -> None:
    description = page.locator("#expanded textarea")
    write(page, "a red star")
    page.locator("#describe").click()
    expect(description).to_have_value(re.compile("a red star"), timeout=60_000)
    write(page, "a circle")
    assert "a circle" in draw(page)["expanded_prompt"]
    description.fill("a blue star")
    assert draw(page)["expanded_prompt"] == "a blue star"
    page.locator("#auto input").uncheck()
    write(page, "a circle and a <b>wibble</b>")
    text = draw(page)
    assert text["prompt"] == "a circle and a <b>wibble</b>"
    assert "expanded_prompt" not in text
    expect(page.locator("#warnings")).to_contain_text("'wibble'")


def test_what_is_painted_over_is_drawn_anew_and_the_rest_is_kept(page: Page) -> None:
    given = Image.effect_noise((64, 64), 60).convert("RGB")
    file = io.BytesIO()
    given.save(file, "PNG")
    choose(page, file.getvalue())
    canvas = page.locator("#mask canvas").first
    expect(canvas).to_be_visible(timeout=60_000)
    page.wait_for_function("document.querySelector('#mask canvas').getBoundingClientRect().height > 20")
    canvas.hover()  # scrolls to it, and waits until it no longer moves
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 4, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    write(page, "a red star")
    page.locator("#redraw").click()
    expect(page.locator("#status")).to_contain_text("Drawn: 64x64", timeout=60_000)
    with Image.open(io.BytesIO(shown_file(page))) as drawn:
        changed = ImageChops.difference(drawn.convert("RGB"), given).point(lambda value: 255 * (value > 1))
    left, top, right, bottom = changed.getbbox()
    assert min(left, top) > 0
    assert max(right, bottom) < 64


def test_stop_ends_a_picture_within_a_step(page: Page, paged: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = paged.service.modes
    monkeypatch.setitem(modes, "2+2", modes["2+2"].model_copy(update={"steps": 1000}))
    write(page, "star")
    page.locator("#prompt textarea").press("Enter")
    expect(page.locator("#status")).to_contain_text("Drawing", timeout=60_000)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stop", timeout=60_000)
    while paged.service.engine.running:
        page.wait_for_timeout(20)


def test_an_empty_prompt_is_told(page: Page) -> None:
    page.locator("#draw").click()
    expect(page.get_by_text("prompt is missing").first).to_be_visible(timeout=60_000)


def test_the_keys_name_and_the_key_open_the_page(browser: Any, pipe: CogView3Pipeline) -> None:
    keys = Keys([Key("ann", digest_of("right"), 1)])
    with serving(pipe, page=True, keys=keys) as served:
        context = browser.new_context()
        page = context.new_page()
        page.goto(served.url)
        for secret in ("wrong", "right"):
            expect(page.get_by_label("username")).to_be_visible(timeout=60_000)
            expect(page.locator("#draw")).to_have_count(0)
            page.get_by_label("username").fill("ann")
            page.get_by_label("password").fill(secret)
            page.get_by_role("button", name="Login").click()
            if secret == "wrong":  # what is filled in before the answer would be cleared
                expect(page.get_by_text("Incorrect Credentials")).to_be_visible(timeout=60_000)
        expect(page.locator("#draw")).to_be_visible(timeout=60_000)
        write(page, "star")
        page.locator("#draw").click()
        expect(page.locator("#status")).to_contain_text("Drawn", timeout=60_000)
        page.locator("#draw").click()  # the key's own limit holds here, too
        expect(page.get_by_text("limit of pictures").first).to_be_visible(timeout=60_000)
        context.close()


def test_the_page_fits_a_phone(context: Any, page: Page) -> None:
    """As a context of a phone's would show it, which would load everything anew."""
    phone = context.new_cdp_session(page)
    phone.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    phone.send(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    page.reload()
    expect(page.locator("#draw")).to_be_visible(timeout=60_000)
    assert page.evaluate("[screen.width, document.documentElement.scrollWidth <= 390]") == [390, True]
