"""Published prompt sets are told by their content, and keep their categories."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from cogview3.config import UserError
from cogview3.evaluation.prompt_sets import load_prompts
from tests.evaluation.published import published

DRAWBENCH = {
    "Colors": 25,
    "Conflicting": 10,
    "Counting": 19,
    "DALL-E": 20,
    "Descriptions": 20,
    "Gary Marcus et al. ": 10,
    "Misspellings": 10,
    "Positional": 20,
    "Rare Words": 7,
    "Reddit": 38,
    "Text": 21,
}
GENEVAL = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}


def made_partiprompts() -> str:
    rows = ["Prompt\tCategory\tChallenge\tNote"]
    for number in range(1632):
        rows.append(f'a "{number}\tCategory {number % 12}\tChallenge {number % 11}\t')
    return "\n".join(rows) + "\n"


def made_geneval() -> str:
    lines = []
    for task, count in GENEVAL.items():
        for number in range(count):
            include = [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}]
            lines.append(json.dumps({"tag": task, "include": include, "prompt": f"{task} {number}"}))
    return "\n".join(lines) + "\n"


def test_partiprompts(tmp_path: Path) -> None:
    file = published("PartiPrompts.tsv") or tmp_path / "anything.txt"
    if not file.exists():
        file.write_text(made_partiprompts(), "utf-8")
    prompts = load_prompts(str(file))
    assert len(prompts) == len({prompt.text for prompt in prompts}) == 1632
    assert len({prompt.tags["category"] for prompt in prompts}) == 12
    assert len({prompt.tags["challenge"] for prompt in prompts}) == 11
    assert any('"' in prompt.text for prompt in prompts)


@pytest.mark.parametrize("header", ["Prompts,Category", "Prompt,Category"])
def test_drawbench(tmp_path: Path, header: str) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    for category, count in DRAWBENCH.items():
        writer.writerows([f"a cat, number {number} of {category}", category] for number in range(count))
    file = tmp_path / "drawbench"
    file.write_text(f"\ufeff{header}\r\n{table.getvalue()}", "utf-8")
    prompts = load_prompts(str(file))
    assert Counter(prompt.tags["category"] for prompt in prompts) == {k.strip(): n for k, n in DRAWBENCH.items()}
    assert prompts[0].text == "a cat, number 0 of Colors"


def test_geneval(tmp_path: Path) -> None:
    file = published("geneval_metadata.jsonl") or tmp_path / "made.txt"
    if not file.exists():
        file.write_text(made_geneval(), "utf-8")
    prompts = load_prompts(str(file))
    assert Counter(prompt.tags["task"] for prompt in prompts) == GENEVAL
    assert all(prompt.geneval["include"] for prompt in prompts)
    assert any(item.get("position") for prompt in prompts for item in prompt.geneval["include"])


def test_hpsv2_by_style(tmp_path: Path) -> None:
    styles = ("anime", "concept-art", "paintings", "photo")
    for style in styles:
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} {number}" for number in range(800)]))
    prompts = load_prompts(str(tmp_path))
    assert Counter(prompt.tags["category"] for prompt in prompts) == dict.fromkeys(styles, 800)
    (one,) = load_prompts(str(tmp_path / "photo.json"), 1)
    assert (one.text, one.tags) == ("photo 0", {"category": "photo"})


def test_a_list_of_objects_with_prompts(tmp_path: Path) -> None:
    file = tmp_path / "benchmark-prompts.json"
    file.write_text(json.dumps([{"id": "1", "prompt": "a red ring"}, {"id": "2", "prompt": "two"}]))
    assert [prompt.text for prompt in load_prompts(str(file))] == ["a red ring", "two"]


def coco(pictures: int) -> dict:
    images = [{"id": 7 * n, "file_name": f"{7 * n:012d}.jpg"} for n in range(pictures)]
    notes = [
        {"id": 5 * n + k, "image_id": 7 * n, "caption": f"c {n} {k}\n"} for n in range(pictures) for k in (3, 1, 2)
    ]
    return {"images": images, "annotations": notes, "info": {}}


def test_coco_has_one_caption_a_picture_and_a_fixed_choice_of_5000(tmp_path: Path) -> None:
    few, many = tmp_path / "few.json", tmp_path / "many.json"
    few.write_text(json.dumps(coco(5)))
    prompts = load_prompts(str(few))
    assert [prompt.text for prompt in prompts] == [f"c {n} 1" for n in range(5)]  # the lowest number's
    assert prompts[3].reference == tmp_path / "000000000021.jpg"
    many.write_text(json.dumps(coco(5200)))
    chosen = load_prompts(str(many))
    assert len({prompt.text for prompt in chosen}) == 5000
    shuffled = coco(5200)
    shuffled["images"].reverse()
    shuffled["annotations"].reverse()
    many.write_text(json.dumps(shuffled))
    assert load_prompts(str(many)) == chosen


def test_lines_that_look_like_other_kinds_are_prompts(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    lines = ["[a red ring], oil", "{curly}", "a, b", "שלום", "<script>alert(1)</script> 🎈"]
    file.write_text("\n".join(lines), "utf-8")
    assert [prompt.text for prompt in load_prompts(str(file))] == lines


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c", "\x1e"])
def test_marks_that_python_takes_for_line_ends_stand_within_prompts(tmp_path: Path, mark: str) -> None:
    text = f"a red{mark}ring"
    contents = {"a.jsonl": json.dumps({"text": text}, ensure_ascii=False), "a.tsv": f"Prompt\tCategory\n{text}\tx"}
    for name, content in (contents | {"a.csv": f"Prompts,Category\n{text},x", "a.txt": text}).items():
        (tmp_path / name).write_text(content, "utf-8")
        assert [prompt.text for prompt in load_prompts(str(tmp_path / name))] == [text]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, 2]", "of no known kind"),
        ("a.json", '["a", ""]', "of no known kind"),
        ("a.json", "[", "damaged JSON"),
        ("a.json", '{"images": [{}], "annotations": []}', "no file of COCO captions"),
        ("a.tsv", "Prompt\tCategory\n\tx\n", "line 2: has no prompt"),
        ("a.txt", '{"tag": "none", "include": [], "prompt": "a"}', "tag 'none'"),
        ("a.txt", '{"tag": "position", "include": [{"class": "dog"}], "prompt": "a"}', "'count' is missing"),
        (
            "a.txt",
            '{"tag": "position", "include": [{"class": "dog", "count": 1, "position": ["above", 0]}], "prompt": "a"}',
            "earlier thing",
        ),
        ("a.json", "[]", "holds no prompts"),
        ("a.json", "[" * 100_000, "damaged JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: .*recursion"),
        ("a.tsv", f"Prompt\tCategory\n{'x' * 140_000}\ty\n", "no table of prompts"),
        ("a.csv", f"Prompts,{'x' * 140_000}\na,b\n", "no table of prompts"),
    ],
)
def test_damaged_sets_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_prompts(str(tmp_path / name))


def test_a_folder_without_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path} holds no \.json files"):
        load_prompts(str(tmp_path))
