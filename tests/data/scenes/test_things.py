"""Drawn things: their names, drawings, places in scenes, and the reader against renders of known things."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from cogview3.config import UserError
from cogview3.data.scenes import render as drawing
from cogview3.data.scenes import scene as world
from cogview3.data.scenes import things
from cogview3.data.scenes.reader import read
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import GROUNDS, SIZES, Facts, ObjectFacts, Scene, SceneObject, sample_scene
from cogview3.data.scenes.score import score
from cogview3.data.scenes.thing_reader import likeness
from cogview3.data.scenes.things import THINGS, is_held_out_ground, premultiplied


def alone(thing, ground="gray", texture="plain", size="medium", x=0.5, y=0.5):
    return Scene(ground, texture, (SceneObject(None, None, None, None, size, x, y, thing),))


@pytest.fixture
def many_things(monkeypatch):
    monkeypatch.setattr(world, "THING_SHARE", 0.6)


def test_no_two_things_share_a_name():
    names = [name for thing in THINGS.values() for name in thing.names]
    assert len(names) == len(set(names))
    assert 60 <= len(THINGS) <= 120
    assert all(len(thing.names) == len(thing.plurals) >= 2 for thing in THINGS.values())


def test_a_fifth_of_the_pairs_with_grounds_is_held_out_and_every_thing_is_seen():
    pairs = [(thing, ground, is_held_out_ground(thing, ground)) for thing in THINGS for ground in GROUNDS]
    share = np.mean([held_out for *_, held_out in pairs])
    assert abs(share - 52 / 256) < 3 * np.sqrt(0.2 * 0.8 / len(pairs))  # bytes divisible by 5
    assert {thing for thing, _, held_out in pairs if not held_out} == set(THINGS)


def test_a_drawing_fills_its_tile_and_nothing_of_it_is_cut():
    for name in THINGS:
        cover = np.asarray(things.drawing(name).getchannel("A")) > 24
        height, width = np.ptp(np.nonzero(cover)[0]) + 1, np.ptp(np.nonzero(cover)[1]) + 1
        assert max(height, width) >= things.TILE - 4


def test_a_thing_is_its_drawing_over_the_ground():
    scene = alone("fox", "blue", size="large")
    picture = render(scene, 256).astype(float)
    side = 2 * round(SIZES["large"] * 128)
    corner = 128 - side // 2
    small = np.asarray(things.drawing("fox").convert("RGBa").resize((side, side), Image.Resampling.LANCZOS), float)
    ground = np.array(drawing.GROUND_COLORS["blue"][0], float)
    expected = small[..., :3] + (1 - small[..., 3:] / 255) * ground
    inside = picture[corner : corner + side, corner : corner + side]
    assert np.abs(inside - expected.clip(0, 255)).max() <= 3  # 256ths, rounded twice, and colors cut at their cover
    outside = picture.copy()
    outside[corner : corner + side, corner : corner + side] = ground
    assert (outside == ground).all()


@pytest.mark.parametrize("side", [38, 97, 512])
def test_premultiplied_colors_stay_within_their_cover(side):
    layers = premultiplied("panda", side)
    assert layers.shape == (side, side, 4)
    assert layers.min() >= 0
    assert layers.max() <= 1


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_no_pixel_wraps_round(size):
    for name in THINGS:  # a sum over 255 would show as a speck on black that the white drawing lacks
        picture = render(alone(name, "black", size="small"), size).astype(int)
        on_white = render(alone(name, "white", size="small"), size).astype(int)
        assert (on_white - picture >= -2).all()


def test_groups_are_of_one_kind(many_things):
    scenes = [sample_scene(np.random.default_rng([3, index]), count=3) for index in range(300)]
    alike = [len({item.thing or item.shape for item in scene.objects}) < 3 for scene in scenes]
    by_chance = 0.03  # three of 72 kinds
    assert world.GROUP_SHARE - 0.1 < np.mean(alike) < world.GROUP_SHARE + by_chance + 0.1
    assert not [scene for scene in scenes if scene.is_held_out]


def test_things_survive_json(many_things):
    for index in range(60):
        scene = sample_scene(np.random.default_rng(index), ("seen", "held-out")[index % 2])
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
        assert Facts.from_dict(json.loads(json.dumps(scene.facts().to_dict()))) == scene.facts()


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"thing": "wombat"}, "wombat"), ({"shape": "circle"}, "shape"), ({"thing": None}, "shape")],
)
def test_what_is_neither_a_shape_nor_a_thing_is_refused(changes, word):
    scene = alone("fox").to_dict()
    scene["objects"] = [scene["objects"][0] | changes]
    with pytest.raises(UserError, match=word):
        Scene.from_dict(scene)


def soft(picture, index):
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.0)), float)
    noise = np.random.default_rng(index).normal(0, 6, blurred.shape)
    return (blurred + noise).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("count", [25, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "draw",
    [
        lambda scene, _: render(scene, 256),
        lambda scene, _: render(scene, 128),
        lambda scene, index: soft(render(scene, 256), index),
    ],
    ids=["clean", "half size", "blurred and noisy"],
)
def test_things_and_shapes_beside_them_are_read(draw, many_things, count):
    rngs = [np.random.default_rng([11, index]) for index in range(count)]
    scenes = [sample_scene(rng, ("seen", "held-out")[index % 2]) for index, rng in enumerate(rngs)]
    scores = [score(scene.facts(), draw(scene, index)) for index, scene in enumerate(scenes)]
    facts = [fact for one in scores for fact in one.facts]
    of_things = [fact.right for fact in facts if fact.kind == "thing"]
    assert len(of_things) > count
    assert np.mean(of_things) >= 0.99
    assert np.mean([fact.right for fact in facts]) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("texture", world.TEXTURES)
@pytest.mark.parametrize("ground", GROUNDS)
def test_every_thing_is_told_from_all_others_on_every_ground(ground, texture):
    wrong = [
        (thing, size)
        for thing in THINGS
        for size in SIZES
        if [item.thing for item in read(render(alone(thing, ground, texture, size), 256)).facts.objects] != [thing]
    ]
    assert len(wrong) <= 0.01 * len(THINGS) * len(SIZES), wrong


def test_another_thing_or_none_is_wrong():
    stated = Facts(objects=(ObjectFacts(thing="fox"),))
    assert score(stated, render(alone("fox"), 256)).whole
    assert not score(stated, render(alone("cat"), 256)).whole
    assert not score(stated, render(replace(alone("fox"), objects=()), 256)).whole


def test_likeness_is_one_of_equal_and_none_of_other_pictures():
    support = np.ones((16, 16), bool)
    one, other = np.zeros((2, 16, 16, 3))
    one[4:12, 4:12], other[4:12, 4:12, 0] = (9, -9, 0), 9
    assert likeness(one, one, support) == pytest.approx(1)
    assert likeness(one, -one, support) == pytest.approx(-1)
    assert likeness(one, other, support) == pytest.approx(2 * 81 / (2 * 81 + 81))  # 2 <a, b> / (|a|^2 + |b|^2)


@pytest.mark.parametrize("content", [None, b"RIFF", b""], ids=["missing", "cut", "empty"])
def test_a_damaged_atlas_is_named(content, tmp_path, monkeypatch):
    (tmp_path / "atlas").mkdir()
    if content is not None:
        (tmp_path / "atlas" / "things.webp").write_bytes(content)
    monkeypatch.setattr(things, "files", lambda package: tmp_path)
    things._atlas.cache_clear()
    with pytest.raises(UserError, match=r"things\.webp"):
        things._atlas()
    things._atlas.cache_clear()


def test_an_atlas_of_another_size_is_named(tmp_path, monkeypatch):
    (tmp_path / "atlas").mkdir()
    Image.new("RGBA", (64, 64)).save(tmp_path / "atlas" / "things.webp")
    monkeypatch.setattr(things, "files", lambda package: tmp_path)
    things._atlas.cache_clear()
    with pytest.raises(UserError, match="64"):
        things._atlas()
    things._atlas.cache_clear()
