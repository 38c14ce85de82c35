"""The reader against scenes that are known because they were drawn from known facts."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from cogview3.config import UserError
from cogview3.data.scenes.reader import Reading, read
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import GROUNDS, SIZES, TEXTURES, ObjectFacts, Scene, SceneObject, sample_scene

KINDS = tuple(ObjectFacts.__dataclass_fields__)


def as_picture(values):
    return np.clip(values, 0, 255).round().astype(np.uint8)


def blurred(picture, sigma):
    return as_picture(gaussian_filter(picture.astype(float), (sigma, sigma, 0)))


def noisy(picture, deviation):
    return as_picture(picture + np.random.default_rng(picture.sum()).normal(0, deviation, picture.shape))


def enlarged(picture):
    return np.array(Image.fromarray(picture).resize((256, 256), Image.Resampling.BILINEAR))


CONDITIONS = {
    "clean": lambda scene: render(scene, 256),
    "mild blur": lambda scene: blurred(render(scene, 256), 1),
    "mild noise": lambda scene: noisy(render(scene, 256), 8),
    "soft": lambda scene: noisy(blurred(render(scene, 256), 1.8), 8),
    "half size": lambda scene: render(scene, 128),
    "enlarged": lambda scene: enlarged(render(scene, 128)),
    "double size": lambda scene: render(scene, 512),
}


def shares_right(scenes, draw):
    """Share of facts read right by kind. Both sides list objects in reading order; another count fails them all."""
    right, total = Counter(), Counter()
    for scene in scenes:
        stated, found = scene.facts(), read(draw(scene)).facts
        total.update(["ground", "texture", "count"])
        right.update(kind for kind in ("ground", "texture", "count") if getattr(stated, kind) == getattr(found, kind))
        for index, kind in itertools.product(range(stated.count), KINDS):
            total[kind] += 1
            same_count = stated.count == found.count
            right[kind] += same_count and getattr(stated.objects[index], kind) == getattr(found.objects[index], kind)
    return {kind: right[kind] / total[kind] for kind in total}


@pytest.mark.parametrize(
    ("condition", "number", "bar", "triples"),
    [
        ("clean", 20, 0.99, "held-out"),
        ("mild blur", 15, 0.98, "seen"),
        ("mild noise", 15, 0.98, "held-out"),
        *(
            pytest.param(*case, triples, marks=pytest.mark.slow)
            for case in (("clean", 100, 0.99), ("mild blur", 60, 0.98), ("mild noise", 60, 0.98))
            for triples in ("seen", "held-out")
        ),
    ],
)
def test_facts_are_read_right(condition, number, bar, triples):
    rng = np.random.default_rng(21)
    scenes = [sample_scene(rng, triples) for _ in range(number)]
    shares = shares_right(scenes, CONDITIONS[condition])
    assert min(shares.values()) >= bar, shares


@pytest.mark.parametrize(
    ("condition", "number"),
    [
        ("soft", 20),
        ("half size", 20),
        pytest.param("soft", 40, marks=pytest.mark.slow),
        pytest.param("half size", 40, marks=pytest.mark.slow),
        pytest.param("enlarged", 40, marks=pytest.mark.slow),
        pytest.param("double size", 10, marks=pytest.mark.slow),
    ],
)
def test_reading_survives_softness_and_other_sizes(condition, number):
    rng = np.random.default_rng(22)
    scenes = [sample_scene(rng) for _ in range(number)]
    shares = shares_right(scenes, CONDITIONS[condition])
    robust = {kind: share for kind, share in shares.items() if kind not in ("fill", "outline")}
    # a single one of about 40 objects may go wrong, and two of 80
    assert min(robust.values()) >= 0.975, shares


def test_relations_of_a_clean_picture_are_its_own():
    rng = np.random.default_rng(23)
    for _ in range(10):
        scene = sample_scene(rng, count=4)
        assert read(render(scene, 256)).facts == scene.facts()


def test_centers_are_measured():
    rng = np.random.default_rng(24)
    for _ in range(20):
        scene = sample_scene(rng)
        reading = read(render(scene, 256))
        for item, center in zip(scene.objects, reading.centers, strict=True):
            # shapes are matched on a grid of two pixels, drawn on one of one: 2.5 pixels along each axis
            assert np.abs(np.subtract(center, (item.x, item.y))).max() <= 2.5 / 256


@pytest.mark.parametrize(("ground", "texture"), list(itertools.product(GROUNDS, TEXTURES)))
def test_empty_grounds_hold_nothing(ground, texture):
    reading = read(noisy(render(Scene(ground, texture, ()), 256), 8))
    assert (reading.facts.ground, reading.facts.texture, reading.facts.count) == (ground, texture, 0)


def item(x, y, shape="circle", size="medium", color="red"):
    return SceneObject(shape, color, "plain", False, size, x, y)


@pytest.mark.parametrize("shape", ["circle", "diamond", "star"])
def test_touching_objects_stay_two(shape):
    half = SIZES["medium"] / 2
    scene = Scene("white", "plain", (item(0.5 - half, 0.3, shape), item(0.5 + half, 0.3, shape)))
    found = read(render(scene, 256)).facts
    assert [each.shape for each in found.objects] == [shape, shape]
    assert [each.size for each in found.objects] == ["medium", "medium"]


def test_small_specks_are_no_objects_and_blobs_are():
    picture = render(Scene("white", "plain", (item(0.27, 0.27),)), 256)
    picture[180:192, 180:192] = (222, 42, 42)
    assert read(picture).facts.count == 1
    picture[170:200, 170:200] = (222, 42, 42)
    assert read(picture).facts.count == 2


def test_a_ring_keeps_its_hole_and_a_scratched_circle_gets_none():
    ring, circle = (Scene("gray", "plain", (item(0.5, 0.5, shape, "small"),)) for shape in ("ring", "circle"))
    assert read(render(ring, 256)).facts.objects[0].shape == "ring"
    scratched = render(circle, 256)
    scratched[122:134, 122:134] = (158, 158, 164)
    assert read(scratched).facts.objects[0].shape == "circle"


@pytest.mark.parametrize("main", ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"])
def test_every_color_is_told_apart_on_every_ground(main):
    for ground in GROUNDS:
        scene = Scene(ground, "plain", (replace(item(0.5, 0.5, "ring", "small", main), fill="striped"),))
        if main != ground:
            assert read(blurred(render(scene, 256), 1)).facts == scene.facts()


def garbage():
    rng = np.random.default_rng(25)
    slope = np.linspace(0, 255, 256)
    return {
        "noise": rng.integers(0, 256, (256, 256, 3), dtype=np.uint8),
        "soft noise": blurred(rng.integers(0, 256, (256, 256, 3)), 6) // 2 + rng.integers(0, 128, 3, dtype=np.uint8),
        "gradient": as_picture(
            np.stack([np.tile(slope, (256, 1)), np.tile(slope, (256, 1)).T, np.full((256, 256), 90)], -1)
        ),
        "checks": as_picture(np.indices((256, 256)).sum(0)[..., None] % 2 * np.full(3, 255.0)),
        "odd size": rng.integers(0, 256, (101, 101, 3), dtype=np.uint8),
        "outline color": np.full((64, 64, 3), (16, 16, 20), np.uint8),
    }


@pytest.mark.parametrize("name", list(garbage()))
def test_garbage_gets_a_reading(name):
    reading = read(garbage()[name])
    assert isinstance(reading, Reading)
    assert reading.facts.count == len(reading.facts.objects) == len(reading.centers)


@pytest.mark.parametrize(
    "color", [(0, 0, 0), (255, 255, 255), (255, 0, 255), (128, 128, 128), (0, 255, 0), (90, 60, 30)]
)
def test_one_color_holds_at_most_one_object(color):
    assert read(np.full((256, 256, 3), color, np.uint8)).facts.count <= 1


def test_pil_pictures_of_any_mode_are_read_alike():
    scene = sample_scene(np.random.default_rng(26))
    picture = render(scene, 256)
    image = Image.fromarray(picture)
    assert read(image) == read(image.convert("RGBA")) == read(picture)
    assert isinstance(read(image.convert("L")), Reading)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((256, 128, 3), np.uint8), "128x256"),
        (np.zeros((63, 63, 3), np.uint8), "63x63"),
        (np.zeros((256, 256), np.uint8), r"\(256, 256\)"),
        (np.zeros((256, 256, 4), np.uint8), r"\(256, 256, 4\)"),
        (np.zeros((256, 256, 3), np.float32), "float32"),
        (Image.new("RGB", (100, 64)), "100x64"),
        ("picture.png", "picture.png"),
        (None, "None"),
    ],
)
def test_what_is_no_square_picture_is_refused(picture, message):
    with pytest.raises(UserError, match=message):
        read(picture)
