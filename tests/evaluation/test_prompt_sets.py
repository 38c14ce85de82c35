"""Sets of prompts are fixed, known in full, and apart from what is trained on."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cogview3.config import UserError
from cogview3.data.scenes.reader import read
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import SEEN, sample_scene
from cogview3.data.scenes.score import check_stated, score
from cogview3.evaluation.prompt_sets import load_prompts

BUILT_IN = ("scenes-heldout", "scenes-brief")


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_set_is_fixed_and_a_larger_one_begins_with_it(name: str) -> None:
    few, more = load_prompts(name, 7), load_prompts(name, 20)
    assert more[:7] == few
    assert len({prompt.text for prompt in more}) == 20


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_second_prompt_has_a_triple_that_training_never_shows(name: str) -> None:
    prompts = load_prompts(name, 40)
    assert [prompt.held_out for prompt in prompts] == [False, True] * 20
    for prompt in prompts:
        held_out = [item.is_held_out(prompt.scene.ground) for item in prompt.scene.objects]
        assert any(held_out) == prompt.held_out


@pytest.mark.parametrize("name", BUILT_IN)
def test_facts_hold_in_the_render_of_the_scene(name: str) -> None:
    scores = [score(prompt.facts, render(prompt.scene, 256)) for prompt in load_prompts(name, 40)]
    wrong = sum(item.total - item.right for item in scores)
    assert wrong <= 0.02 * sum(item.total for item in scores)  # the reader is right in 0.99 of the facts


def test_comprehensive_prompts_state_every_object_and_brief_ones_less() -> None:
    full, brief = (load_prompts(name, 40) for name in BUILT_IN)
    assert [prompt.scene for prompt in full] == [prompt.scene for prompt in brief]
    for prompt in full:
        assert prompt.facts.objects == prompt.objects == prompt.scene.facts().objects
    nothing = read(np.full((64, 64, 3), 248, np.uint8))
    stated = [sum(score(prompt.facts, nothing).total for prompt in prompts) for prompts in (full, brief)]
    assert stated[1] < 0.8 * stated[0]
    assert np.mean([len(prompt.text) for prompt in brief]) < 0.6 * np.mean([len(prompt.text) for prompt in full])


def test_no_scene_is_one_that_training_draws() -> None:
    prompts = {prompt.scene for prompt in load_prompts("scenes-heldout", 60)}
    trained = {sample_scene(np.random.default_rng([seed, index])) for seed, index in product(range(3), range(60))}
    assert not prompts & trained


def test_without_a_count_a_set_has_500() -> None:
    assert len(load_prompts("scenes-heldout")) == 500


def test_written_prompts_state_facts_of_the_world() -> None:
    people, tune = load_prompts("scenes-people"), load_prompts("scenes-tune")
    assert len(people) == len({prompt.text for prompt in people}) == 200
    written = [prompt for prompt in tune if prompt.scene is None]
    assert (len(tune), len(written)) == (300, 60)
    assert not {prompt.text for prompt in people} & {prompt.text for prompt in tune}
    for prompt in people + written:
        check_stated(prompt.facts, prompt.text)
        assert 1 <= len(prompt.objects) <= 4
        assert prompt.facts.count in (None, len(prompt.objects))
    with pytest.raises(UserError, match="200"):
        load_prompts("scenes-people", 201)


def test_what_chooses_models_shares_no_scene_with_the_tests() -> None:
    tune = load_prompts("scenes-tune", 40)
    assert load_prompts("scenes-tune", 15) == tune[:15]
    assert not {p.scene for p in tune} & {p.scene for p in load_prompts("scenes-heldout", 60)}
    drawn = [prompt for prompt in tune if prompt.scene is not None]
    assert len(drawn) == 32
    assert {prompt.held_out for prompt in drawn} == {False, True}


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("\ufeffa red star\n\n  zwei blaue Kreise, größer \n", encoding="utf-8")
    prompts = load_prompts(str(file))
    assert [prompt.text for prompt in prompts] == ["a red star", "zwei blaue Kreise, größer"]
    assert all(prompt.facts is None and not prompt.held_out for prompt in prompts)
    assert load_prompts(str(file), 1) == prompts[:1]


def test_a_jsonl_file_may_state_facts_or_hold_the_scene(tmp_path: Path) -> None:
    original = load_prompts("scenes-heldout", 2)[1]
    facts, scene = original.facts.to_dict(), original.scene.to_dict()
    entries = [
        {"text": "plain"},
        {"text": "with facts", "facts": facts},
        {"text": "with both", "facts": facts, "scene": scene},
        {"text": "with a scene", "scene": scene},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    plain, stated, both, scene_only = load_prompts(str(file))
    assert (plain.facts, plain.scene, plain.objects) == (None, None, ())
    assert stated.facts == both.facts == original.facts
    assert both.scene == scene_only.scene == original.scene
    assert scene_only.facts == original.scene.facts()
    assert stated.held_out
    assert both.held_out


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("scenes", 5, "scenes-heldout, scenes-brief"),
        ("drawbench", 5, "give its name"),
        ("PartiPrompts", None, "not bundled"),
        ("scenes-heldout", 0, "give 1 or more"),
        ("scenes-heldout", -3, "give 1 or more"),
    ],
)
def test_unknown_names_and_counts_are_refused(name: str, count: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_prompts(name, count)


@pytest.mark.parametrize(
    ("file_name", "content", "message"),
    [
        ("a.txt", b"", "holds no prompts"),
        ("a.txt", b" \n\n", "holds no prompts"),
        ("a.txt", b"one\ntwo", "holds 2 prompts, fewer than 3"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"tex": "b"}\n', "line 2: 'text' is missing"),
        ("a.jsonl", b"[1]\n", "line 1"),
        ("a.jsonl", b"{", "line 1"),
        ("a.jsonl", b'{"text": ""}', "empty"),
        ("a.jsonl", b'{"text": "a", "facts": {"objects": [{"form": 1}], "relations": []}}', "line 1"),
        (
            "a.jsonl",
            b'{"text": "a", "scene": {"ground": "pink", "texture": "plain", "objects": []}}',
            "line 1: ground 'pink' is unknown; give one of white, gray, black, yellow, blue, green$",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, file_name: str, content: bytes, message: str) -> None:
    file = tmp_path / file_name
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_prompts(str(file), 3)


@pytest.mark.parametrize("triple", SEEN[:3])
def test_stated_triples_alone_decide_where_there_is_no_scene(tmp_path: Path, triple: tuple[str, str, str]) -> None:
    stated = dict(zip(("shape", "color", "fill"), triple, strict=True))
    empty = {"ground": None, "texture": None, "count": None, "relations": []}
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"text": "a", "facts": empty | {"objects": [stated]}}))
    assert not load_prompts(str(file))[0].held_out
