"""The instruction to a strong model for each picture, and the parser of its answer."""

import base64
import hashlib
import io
import json
import re
from typing import Annotated, Any

from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from cogview3.captions.rules import MAX_WORDS
from cogview3.prompts.answers import is_refusal, lacks_end, plain, without_thoughts

INSTRUCTION = f"""\
You see a picture and the caption it was found with. The caption comes from a web page: parts of it may be right and \
valuable, others wrong, garbled or about something else. Work in two steps.

First, question the picture. Write five to eight questions about it and answer each from what is to be seen. The first \
question asks for a description of the picture. The others ask, as far as it applies, which objects, people and \
animals there are and how many of each; where they are and how they stand to each other; colors, materials and \
textures; actions and expressions; setting, light and viewpoint; style and medium; mood; and writing, which the answer \
repeats letter by letter in its own language, in double quotes.

Then write the result: one English paragraph of 50 to 140 words, and never more than {MAX_WORDS}, that merges the \
answers with what the caption rightly adds.
- From the caption, keep names of people, places, works, products and styles that the picture does not contradict. \
Leave out links, advertising, prices, file names, garbled text, and everything that the picture shows to be wrong.
- Begin with the content itself, not with words such as "the image shows", "this picture" or "a photo of".
- State what you see as fact. Leave out what you would have to guess, and all words of doubt: perhaps, possibly, \
seems, appears, might, likely.
- Quote visible writing in double quotes, in its own language.
- No line breaks, no lists, no markup, nothing about this task.

Answer with a JSON object and nothing else: \
{{"queries": [{{"question": "...", "answer": "..."}}, ...], "result": "..."}}"""

VERSION = hashlib.sha256(INSTRUCTION.encode()).hexdigest()[:12]
"""Of the instruction; answers to different ones are not mixed."""

MIN_QUERIES = 2
"""A description, and at least one question more."""


def _spoken(text: str) -> str:
    bare = without_thoughts(text)
    if bare is None:
        raise ValueError("a thought without an end")
    return bare


def _caption(text: str) -> str:
    bare = plain(text) or ""
    if is_refusal(bare):
        raise ValueError("a refusal")
    if lacks_end(bare, ""):
        raise ValueError("cut off")
    return bare


_Text = Annotated[str, AfterValidator(_spoken), StringConstraints(strip_whitespace=True, min_length=1)]
_Caption = Annotated[str, AfterValidator(_caption), StringConstraints(min_length=1)]


class Query(BaseModel):
    """A question about the picture, and its answer."""

    model_config = ConfigDict(extra="forbid")

    question: _Text
    answer: _Text


class Told(BaseModel):
    """A complete answer of a model."""

    model_config = ConfigDict(extra="forbid")

    queries: Annotated[list[Query], Field(min_length=MIN_QUERIES)]
    result: _Caption


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "queries": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
                "required": ["question", "answer"],
                "additionalProperties": False,
            },
        },
        "result": {"type": "string"},
    },
    "required": ["queries", "result"],
    "additionalProperties": False,
}
"""`Told` in the part of JSON schema that strict structured outputs allow: no lengths, no references."""


class Invalid(ValueError):
    """An answer that cannot be used; the message is the reason."""


def data_url(image: Image.Image, side: int) -> str:
    """A picture as a JPEG data URL, its larger side brought down to `side` pixels at most."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def shown(image: Image.Image, side: int, text: str) -> dict[str, Any]:
    """A user's message of a picture, as by `data_url`, and a text."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image, side)}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def conversation(image: Image.Image, old: str, side: int) -> list[dict[str, Any]]:
    """The messages that ask about one picture with its old caption, "" where it has none."""
    found = f"The caption it was found with: {old}" if old else "It was found without a caption."
    return [{"role": "system", "content": INSTRUCTION}, shown(image, side, found)]


def asked_again(messages: list[dict[str, Any]], answer: str, fault: str) -> list[dict[str, Any]]:
    """The conversation after an answer that could not be used."""
    again = f"That could not be used: {fault}. Answer again with the JSON object alone."
    return [*messages, {"role": "assistant", "content": answer or "{}"}, {"role": "user", "content": again}]


def read_answer(text: str) -> tuple[Told, bool]:
    """An answer, checked against the schema, and whether it had to be repaired.

    Repaired: a fence of ``` around it, thoughts or other text before or after it, commas before a closing bracket,
    raw line breaks inside of strings, unknown fields.

    Raises:
        Invalid: no JSON object in it, or one that lacks something; the message names what.
    """
    text = text.strip()
    try:
        return Told.model_validate(json.loads(text)), False
    except (ValueError, RecursionError):
        pass
    found = _object(text)
    if found is None:
        raise Invalid("no whole JSON object in it")
    if isinstance(found.get("queries"), list):
        found["queries"] = [_known(query, Query) if isinstance(query, dict) else query for query in found["queries"]]
    try:
        return Told.model_validate(_known(found, Told)), True
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


def _known(given: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in kind.model_fields}


def _object(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text that has the fields of an answer, or else one of them: drafts come before it."""
    text = without_thoughts(text) or ""
    decoder = json.JSONDecoder(strict=False)
    for attempt in (text, re.sub(r",(\s*[}\]])", r"\1", text)):
        held: list[dict[str, Any]] = []
        end = 0
        for start in re.finditer(r"\{", attempt):
            if start.start() < end:
                continue
            try:
                found, after = decoder.raw_decode(attempt, start.start())
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and ("result" in found or "queries" in found):
                held.append(found)
                end = after
        if held:
            return next((each for each in reversed(held) if "result" in each and "queries" in each), held[-1])
    return None
