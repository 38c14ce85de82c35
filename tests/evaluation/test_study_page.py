"""The study's page in a browser: by keyboard on a desktop, by touch on a phone, whatever is in the prompts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cogview3.evaluation.study import database
from cogview3.evaluation.study.build import Plan
from tests.browser import chromium, needs_browser
from tests.evaluation.study_worlds import Server, make_study

pytestmark = needs_browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server, list[str]]]:
    folder = tmp_path_factory.mktemp("page") / "study"
    links = make_study(folder, Plan(annotators=2, tasks=6, checks=0))
    server = Server(folder)
    yield folder, server, links
    server.kill()


def told(page, place: str, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(place)).to_have_text(text, timeout=60_000)


def test_keyboard_and_phone(served: tuple[Path, Server, list[str]], tmp_path: Path) -> None:
    folder, server, links = served
    shots = Path(os.environ.get("COGVIEW3_SCREENSHOTS", tmp_path))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(server.url + links[0])
        texts = []
        for number in range(6):
            told(page, "#count", f"{number} of 6")
            texts.append(page.inner_text("#prompt"))
            if number == 0:
                page.keyboard.press("4")  # both bad, and taken back
                page.keyboard.press("Backspace")
            page.keyboard.press("1")
            page.locator("#left").evaluate("image => image.decode()")
            page.screenshot(path=shots / f"desktop-{number}.png")
            page.keyboard.press("3")
            page.keyboard.press("Enter")
        told(page, "#message", "That was all. Thank you!")
        phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        touch = phone.new_page()
        touch.set_default_timeout(60_000)
        touch.goto(server.url + links[1])
        touch.wait_for_selector("#pair:not([hidden])")
        for side in ("#left", "#right"):
            touch.locator(side).evaluate("image => image.decode()")
        touch.tap("#alignment button:nth-of-type(2)")
        touch.screenshot(path=shots / "phone.png")
        outside = touch.evaluate(
            """[...document.querySelectorAll('fieldset')].filter(field => {
                const box = field.getBoundingClientRect();
                return [...field.children].some(each => {
                    const own = each.getBoundingClientRect();
                    return own.top < box.top || own.bottom > box.bottom || own.right > box.right;
                });
            }).map(field => field.id)"""
        )
        wide = touch.evaluate("document.documentElement.scrollWidth")
        small = touch.evaluate("Math.min(...[...document.querySelectorAll('button')].map(b => b.offsetHeight))")
        touch.tap("#aesthetics button:nth-of-type(4)")
        touch.tap("#submit")
        told(touch, "#count", "1 of 6")
        touch.reload()  # goes on where it was
        told(touch, "#count", "1 of 6")
    assert errors == []
    assert outside == []  # a question of two lines does not lie over its border
    assert wide <= 390
    assert small >= 44  # what a finger hits
    votes = database.votes(folder / database.DATABASE)
    assert [(v["alignment"], v["aesthetics"]) for v in votes if v["annotator"] == 0] == [("left", "tie")] * 6
    assert [(v["alignment"], v["aesthetics"]) for v in votes if v["annotator"] == 1] == [("right", "both bad")]
    stored = {text for text in texts if "script" in text}
    assert stored <= {"<script>alert(1)</script>"}
