"""Pictures to requests, and answers to triplets."""

import base64
import io
import json

import pytest
from PIL import Image

from cogview3.captions import instruction
from cogview3.captions.instruction import Invalid, data_url, read_answer

GOOD = {"queries": [{"question": "What is it?", "answer": "A cat."}, {"question": "Where?", "answer": "Here."}],
        "result": "A cat lies here."}  # fmt: skip
TEXT = json.dumps(GOOD)


def test_pictures_are_brought_down_to_jpegs() -> None:
    def content_of(image: Image.Image) -> bytes:
        kind, content = data_url(image, 256).split(",")
        assert kind == "data:image/jpeg;base64"
        return base64.b64decode(content)

    with Image.open(io.BytesIO(content_of(Image.new("RGB", (1000, 400), (200, 30, 30))))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 102))
        assert abs(image.getpixel((128, 50))[0] - 200) < 6  # JPEG is not exact
    with Image.open(io.BytesIO(content_of(Image.new("L", (30, 20))))) as small:
        assert small.size == (30, 20)


def test_a_request_holds_instruction_picture_and_old_caption() -> None:
    system, user = instruction.conversation(Image.new("RGB", (8, 8)), "old words", 64)
    assert system == {"role": "system", "content": instruction.INSTRUCTION}
    assert user["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert user["content"][1]["text"].endswith("old words")


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{TEXT}\n```",
        f"Here you are: {TEXT} I hope that helps {{you}}.",
        f'<think>{{"result": 1}}</think>{TEXT}',
        TEXT.replace("]", ",]").replace('here."}', 'here.",}'),
        TEXT.replace("A cat lies", "A cat\nlies").replace("A cat\nlies", "A cat \nlies"),
        json.dumps({**GOOD, "confidence": 1}),
        json.dumps({**GOOD, "queries": [{**query, "id": 1} for query in GOOD["queries"]]}),
        f"{{}} {TEXT}",
        f'Perhaps {{"queries": [], "result": "a draft"}}, no. {TEXT}',
        f'Perhaps {TEXT.replace("A cat", "A dog")}. No: {TEXT} {{"result": "x"}}',
    ],
)
def test_repairs(text: str) -> None:
    told, repaired = read_answer(text)
    assert repaired
    assert " ".join(told.result.split()) == GOOD["result"]
    assert [query.model_dump() for query in told.queries] == GOOD["queries"]


def test_a_good_answer_needs_none() -> None:
    told, repaired = read_answer(f"  {TEXT}\n")
    assert not repaired
    assert told.model_dump() == GOOD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no whole JSON object"),
        ("I cannot see any picture.", "no whole JSON object"),
        (TEXT[:-5], "no whole JSON object"),
        ("[1, 2]", "no whole JSON object"),
        (json.dumps({"queries": GOOD["queries"]}), "result"),
        (json.dumps({**GOOD, "result": "  "}), "result"),
        (json.dumps({**GOOD, "queries": GOOD["queries"][:1]}), "queries"),
        (json.dumps({**GOOD, "queries": "none"}), "queries"),
        (json.dumps({**GOOD, "queries": [1, 2]}), "queries.0"),
        (json.dumps({**GOOD, "result": ["a"]}), "result"),
    ],
)
def test_answers_without_use(text: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        read_answer(text)


def test_the_schema_and_the_model_agree() -> None:
    assert set(instruction.SCHEMA["required"]) == set(instruction.Told.model_fields)
    items = instruction.SCHEMA["properties"]["queries"]["items"]
    assert set(items["required"]) == set(items["properties"]) == set(instruction.Query.model_fields)
