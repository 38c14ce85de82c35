"""The page of pictures side by side in a browser, whatever is in the prompts."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from cogview3.evaluation.evaluate import evaluate
from tests.browser import chromium, needs_browser

TEXTS = ["a red star", "<script>alert(1)</script><img src=x onerror=alert(2)>", "שלום עולם, חתול אדום", "🎈 & two"]


def write_pictures(folder: Path, seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for index in range(len(TEXTS)):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
        Image.fromarray(pixels).save(folder / f"{index:05d}.png")


@needs_browser
def test_pictures_stand_beside_their_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n", "utf-8")
    folders = [tmp_path / "one", tmp_path / "other"]
    for seed, folder in enumerate(folders):
        write_pictures(folder, seed, 64)
    (folders[1] / "00002.png").unlink()
    evaluate([], str(prompts), metrics=["frechet"], images=folders, out=tmp_path / "out")
    shots = Path(os.environ.get("COGVIEW3_SCREENSHOTS", tmp_path))
    told: list[str] = []
    with chromium() as browser:
        for name, (width, height) in {"desktop": (1280, 900), "phone": (390, 844)}.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.on("pageerror", lambda error: told.append(str(error)))
            page.on("dialog", lambda dialog: told.append(dialog.message))
            page.goto((tmp_path / "out" / "index.html").as_uri())
            shown = page.locator("td.text").all_inner_texts()
            page.locator("img").evaluate_all("images => Promise.all(images.map(image => image.decode()))")
            sides = page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
            failed = page.locator("td.failed").all_inner_texts()
            wide = page.evaluate("document.documentElement.scrollWidth")
            page.screenshot(path=shots / f"evaluation-{name}.png")
            assert shown == TEXTS
            assert sides == [64] * 7
            assert failed == ["no picture: missing"]
            assert wide <= width
    assert told == []
