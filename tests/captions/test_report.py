"""Figures of sidecars, and the page."""

import base64
import io
import json
import random
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cogview3.captions import report
from cogview3.captions.recaption import recaption
from cogview3.captions.report import PICTURES, describe, summarize, write_page
from cogview3.data.formats import find_shards
from tests.captions.light import LightJob
from tests.captions.test_recaption import here
from tests.data.conftest import encoded, ordinary, parquet_bytes, tar_bytes, write_tars


def sidecar(path: Path, rows: list[tuple[str, str | None, str | None, str, str]]) -> None:
    names = ("key", "old", "new", "status", "error")
    columns = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    path.write_bytes(parquet_bytes(columns | {"model": ["m"] * len(rows), "version": ["1"] * len(rows)}))


def test_figures(tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(ordinary("a")))
    same = "a plain old caption"
    sidecar(tmp_path / "0.captions.parquet", [
        ("a", "one two", "The image shows " + "word " * 15, "ok", ""),
        ("b", same, same, "ok", ""),
        ("c", "x", None, "failed", "truncated image"),
        ("d", "x", "endless", "cut", "no end after 5 tokens"),
        ("e", None, "word " * 20, "ok", ""),
    ])  # fmt: skip
    figures, shown = summarize(find_shards([str(tmp_path)]))
    assert (figures["shards"], figures["captioned_shards"], figures["images"]) == (2, 1, 5)
    assert (figures["rewritten"], figures["rewritten_share"]) == (2, 0.4)
    assert figures["words"]["old"] == {"min": 2, "25 %": 2.5, "50 %": 3, "75 %": 3.5, "max": 4}
    assert (figures["words"]["new"]["min"], figures["words"]["new"]["max"]) == (4, 20)
    assert figures["statuses"] == {"ok": 3, "failed": 1, "cut": 1}
    assert figures["failures"] == {"truncated image": 1, "no end after 5 tokens": 1}
    assert figures["rules"]["new"]["opening"] == 1
    assert figures["rules"]["new"]["too short"] == 1
    assert figures["models"] == {"m 1": 5}
    assert {each.key for each in shown} == {"a", "b", "e"}
    assert "5 images of 1 shards of 2: 2 rewritten (40.0%)" in describe(figures)
    assert json.loads(json.dumps(figures)) == figures


def test_quartiles_are_those_of_the_standard_library() -> None:
    rng = random.Random(0)
    for count in (1, 2, 3, 4, 5, 17, 200):
        values = [rng.randint(3, 40) for _ in range(count)]
        expected = statistics.quantiles(values, n=4, method="inclusive") if count > 1 else values * 3
        found = list(report._spread(Counter(values)).values())
        assert found == pytest.approx([min(values), *expected, max(values)])


def test_nothing_to_report(tmp_path: Path) -> None:
    figures, shown = summarize(find_shards(write_tars(tmp_path, (1,))))
    assert (figures["images"], figures["rewritten_share"], figures["words"]["new"], shown) == (0, 0.0, {}, [])
    assert "words after: none" in describe(figures)


def test_the_page_shows_pictures_with_both_captions(tmp_path: Path) -> None:
    tars = [tmp_path / f"{number}.tar" for number in range(2)]
    for number, tar in enumerate(tars):
        color = ((200, 20, 20), (20, 20, 200))[number]
        picture = encoded(Image.new("RGB", (640, 400), color))
        files = [
            file
            for index in range(20)
            for file in ((f"{number}{index:02}.jpg", picture), (f"{number}{index:02}.txt", b"<b>old</b> & odd"))
        ]
        tar.write_bytes(tar_bytes(files))
    shards = find_shards([str(tmp_path)])
    recaption(shards, LightJob(tmp_path), here)
    figures, shown = summarize(shards)
    assert len(shown) == PICTURES
    assert summarize(shards)[1] == shown  # the same ones each time
    assert write_page(tmp_path / "page.html", figures, shown) == PICTURES
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<article>") == PICTURES
    assert "<b>old" not in page
    assert "A plain caption of 0" in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == PICTURES
    assert not re.search(r"(?:href|url\(|https?:)", page)  # needs nothing else
    for each, source in zip(shown, sources, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert image.size == (320, 200)
            assert (image.getpixel((9, 9))[0] > 128) == (each.key[0] == "0")  # the picture is the caption's
    tars[0].write_bytes(tar_bytes(ordinary("other")))
    left = write_page(tmp_path / "page.html", figures, shown)
    assert left == sum(each.key[0] == "1" for each in shown)
