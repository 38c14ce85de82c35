"""OpenAI's images API, asked by the official client."""

import base64
import io
import json
import threading
import time
from typing import Any

import httpx
import openai
import pytest
import torch
from PIL import Image

from cogview3 import CogView3Pipeline
from cogview3.prompts.expand import Expander, Request
from cogview3.serving.service import MOST_WARNINGS
from tests.serving.conftest import Served, Shouting, pixels, serving


def opened(b64: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    image.load()
    return image


def png(size: tuple[int, int] = (64, 64), mode: str = "RGB", color: Any = (200, 30, 60), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind)
    return file.getvalue()


def test_generate(served: Served) -> None:
    answer = served.client().images.generate(
        prompt="a red star", n=2, size="64x64", extra_body={"seed": 7, "guidance": 2.0, "negative_prompt": "circle"}
    )
    extra = answer.model_extra
    assert (answer.size, answer.output_format, answer.quality, extra["mode"]) == ("64x64", "png", "high", "2+2")
    assert [each.model_extra["seed"] for each in answer.data] == [7, 8]
    for each in answer.data:
        image, seed = opened(each.b64_json), each.model_extra["seed"]
        generator = [torch.Generator().manual_seed(seed)]
        own = served.pipe("a red star", "circle", guidance_scale=2.0, width=64, height=64, generator=generator).images[
            0
        ]
        assert (pixels(image) - pixels(own)).abs().max() <= 1
        assert image.text["prompt"] == "a red star"
        assert image.text["seed"] == str(seed)
        assert image.text["negative_prompt"] == "circle"
        assert each.revised_prompt is None
    assert answer.usage.output_tokens == 2 * 8 * 8
    assert answer.usage.input_tokens_details.text_tokens == 4  # a, red, star and the end
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_the_nearest_size_is_drawn_and_told_or_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = served.client().images.generate(prompt="star", size="1024x1024")
    assert answer.size == "128x128"
    assert opened(answer.data[0].b64_json).size == (128, 128)
    monkeypatch.setattr(served.service, "strict_sizes", True)
    with pytest.raises(openai.BadRequestError, match="128x128"):
        served.client().images.generate(prompt="star", size="1024x1024")


def test_prompts_are_expanded_where_there_is_an_expander_unless_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(prompt: str) -> Request:
        return Request(prompt, reason="why not" if "circle" in prompt else "")

    monkeypatch.setattr(served.service, "expander", Expander(Shouting(), prepare=prepare))

    def draw(prompt: str, **extra: Any) -> tuple[str | None, dict[str, str]]:
        answer = served.client().images.generate(prompt=prompt, extra_body={"seed": 1, **extra})
        return answer.data[0].revised_prompt, opened(answer.data[0].b64_json).text

    for told in ({}, {"expand": True}):
        revised, text = draw("a red star", **told)
        assert "a red star" in revised
        assert (text["prompt"], text["expanded_prompt"]) == ("a red star", revised)
    for prompt, told in (("a red star", {"expand": False}), ("circle", {})):
        revised, text = draw(prompt, **told)
        assert revised is None
        assert text["prompt"] == prompt
        assert "expanded_prompt" not in text
    with served.http() as http:
        info = http.post("/sdapi/v1/txt2img", json={"prompt": "a red star"}).json()["info"]
        assert "a red star" in json.loads(info)["expanded_prompt"]
    enlarged = served.client().images.edit(image=png((16, 16)), prompt="a red star", extra_body={"enlarge": 1})
    assert enlarged.data[0].revised_prompt is None


def test_what_pictures_will_not_show_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from cogview3.data.scenes.typed import problems

    monkeypatch.setattr(served.service, "problems", problems)

    def prepare(prompt: str) -> Request:
        return Request(prompt, reason="too odd" if "wibble" in prompt else "")

    monkeypatch.setattr(served.service, "expander", Expander(Shouting(), prepare=prepare))

    def told(prompt: str, **extra: Any) -> list[str]:
        return served.client().images.generate(prompt=prompt, extra_body=extra).model_extra["warnings"]

    assert told("a red star") == []
    (unknown,) = told("a red star and a wibble", expand=False)
    assert "'wibble'" in unknown
    assert told("a wibble")[1:] == ["not expanded: too odd"]
    assert "English" in told("ein roter Stern auf einem blauen Hintergrund", expand=False)[0]
    assert "9" in told("9 stars", expand=False)[0]
    assert len(told(" ".join(f"wibble{chr(97 + i)}" for i in range(20)), expand=False)) == MOST_WARNINGS
    events = list(served.client().images.generate(prompt="a wibble", stream=True, partial_images=1))
    assert all(event.model_extra["warnings"][1:] == ["not expanded: too odd"] for event in events)
    with served.http() as http:
        info = http.post("/sdapi/v1/txt2img", json={"prompt": "a wibble", "expand": False}).json()["info"]
        assert "'wibble'" in json.loads(info)["warnings"][0]


def test_expansion_without_an_expander_is_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="expand"):
        served.client().images.generate(prompt="star", extra_body={"expand": True})


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(served: Served, kind: str) -> None:
    sizes = []
    for quality in (5, 100):
        answer = served.client().images.generate(
            prompt="star", output_format=kind, output_compression=quality, extra_body={"seed": 1}
        )
        image = opened(answer.data[0].b64_json)
        assert image.format == kind.upper()
        sizes.append(len(answer.data[0].b64_json))
    assert sizes[0] < sizes[1]


def test_stream_with_partials(served: Served) -> None:
    arguments: dict[str, Any] = {"prompt": "star", "extra_body": {"seed": 3}}
    events = list(served.client().images.generate(**arguments, stream=True, partial_images=3))
    kinds = ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.type for event in events] == kinds
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert [opened(event.b64_json).size for event in events] == [(32, 32), (32, 32), (64, 64), (64, 64)]
    assert events[-1].usage.output_tokens == 64
    whole = served.client().images.generate(**arguments)
    last = pixels(opened(events[-1].b64_json)) - pixels(opened(whole.data[0].b64_json))
    assert last.abs().max() <= 1


def test_an_error_midway_ends_the_stream_in_openais_shape(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **arguments: Any) -> None:
        raise FloatingPointError("the relay overflowed")

    monkeypatch.setattr("cogview3.serving.painter.CogView3UpscalePipeline.__call__", fail)
    events = served.client().images.generate(prompt="star", stream=True, partial_images=1)
    assert next(events).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError, match="overflowed") as raised:
        next(events)
    assert raised.value.code == "drawing_failed"


def test_edits(served: Served) -> None:
    given = png()
    redrawn = served.client().images.edit(image=given, prompt="star", extra_body={"seed": 1, "strength": 0.5})
    image = Image.open(io.BytesIO(given))
    own = served.pipe(
        "star", image=image, strength=0.5, width=64, height=64, generator=[torch.Generator().manual_seed(1)]
    ).images[0]
    assert (pixels(opened(redrawn.data[0].b64_json)) - pixels(own)).abs().max() <= 1
    assert redrawn.usage.input_tokens_details.image_tokens == 64
    larger = served.client().images.edit(image=[png((24, 16))], prompt="star", extra_body={"enlarge": 2})
    assert larger.size == "96x64"
    assert opened(larger.data[0].b64_json).size == (96, 64)
    streamed = list(served.client().images.edit(image=given, prompt="star", stream=True, partial_images=1))
    assert [event.type for event in streamed] == ["image_edit.partial_image", "image_edit.completed"]
    with served.http() as http:
        bare = http.post("/v1/images/edits", files={"image": png((16, 16))}, data={"enlarge": "1"})
    assert bare.status_code == 200
    assert bare.json()["size"] == "32x32"


def test_edits_within_a_mask_keep_the_rest(served: Served) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    edited = served.client().images.edit(image=png(), mask=file.getvalue(), prompt="star", size="64x64")
    change = (pixels(opened(edited.data[0].b64_json)) - torch.tensor([200, 30, 60])[:, None, None]).abs()
    assert change[:, :, :32].max() <= 1
    assert change[:, :, 32:].max() > 10


def test_masks_of_another_size_are_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="32x32") as raised:
        served.client().images.edit(image=png(), mask=png((32, 32), "RGBA", (0, 0, 0, 0)), prompt="star")
    assert raised.value.param == "mask"


UPLOADS = {
    "no picture": b"hello",
    "empty": b"",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "gif": png(kind="GIF"),
    "bomb": png((9000, 9000), "1", 0),
    "1x1": png((1, 1)),
    "cut off": png((64, 64))[:-30],
}


@pytest.mark.parametrize("name", UPLOADS)
def test_bad_uploads_are_refused(served: Served, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        served.client().images.edit(image=("a.png", UPLOADS[name]), prompt="star")
    kind = "unsupported_file_mimetype" if name in ("no picture", "svg", "gif") else "invalid_image"
    assert (raised.value.param, raised.value.code) == ("image", kind)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"prompt": ""}, "prompt"),
    "blank prompt": ({"prompt": " \n"}, "prompt"),
    "no prompt": ({"prompt": None}, "prompt"),
    "huge prompt": ({"prompt": "a" * 32_001}, "prompt"),
    "surrogate": ({"prompt": "\ud800"}, "prompt"),
    "n 0": ({"n": 0}, "n"),
    "n 11": ({"n": 11}, "n"),
    "n text": ({"n": "2"}, "n"),
    "n true": ({"n": True}, "n"),
    "size words": ({"size": "large"}, "size"),
    "size zero": ({"size": "0x64"}, "size"),
    "seed negative": ({"seed": -1}, "seed"),
    "seed huge": ({"seed": 2**64}, "seed"),
    "seed text": ({"seed": "7"}, "seed"),
    "seed half": ({"seed": 0.5}, "seed"),
    "size number": ({"size": 64}, "size"),
    "size huge": ({"size": "100000x64"}, "size"),
    "prompt number": ({"prompt": 7}, "prompt"),
    "expand text": ({"expand": "yes"}, "expand"),
    "mode": ({"mode": "1+1"}, "mode"),
    "gif": ({"output_format": "gif"}, "output_format"),
    "svg": ({"output_format": "svg"}, "output_format"),
    "unknown field": ({"prompts": "star"}, "prompts"),
}


@pytest.mark.parametrize(("changes", "param"), WRONG.values(), ids=WRONG.keys())
def test_wrong_fields_are_named(served: Served, changes: dict[str, Any], param: str) -> None:
    body = json.dumps({"prompt": "star"} | changes)
    with served.http() as http:
        answer = http.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_distilled_modes_refuse_what_they_cannot_do(served: Served) -> None:
    for field in ({"steps": 5}, {"negative_prompt": "star"}):
        with pytest.raises(openai.BadRequestError, match="quick"):
            served.client().images.generate(prompt="star", extra_body={"mode": "quick", **field})


def test_script_tags_and_control_characters_are_words_like_others(served: Served) -> None:
    prompt = "<script>alert(1)</script>\x00\x07 star"
    answer = served.client().images.generate(prompt=prompt)
    text = opened(answer.data[0].b64_json).text["prompt"]
    assert text == "<script>alert(1)</script>   star"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": "a"'])
def test_broken_bodies(served: Served, body: bytes) -> None:
    with served.http() as http:
        answer = http.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_bodies_that_are_too_large(served: Served) -> None:
    with served.http() as http:
        told = http.post("/v1/images/generations", json={"prompt": "a" * 2**20})
        untold = http.post(
            "/v1/images/generations",
            content=iter([b'{"prompt": "'] + [b"a" * 2**16] * 20),
            headers={"Content-Type": "application/json"},
        )
    assert told.status_code == untold.status_code == 413
    assert told.json()["error"]["code"] == untold.json()["error"]["code"] == "too_large"


def test_models(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@2+2", "tiny@quick"]
    assert client.models.retrieve("tiny@quick").owned_by == "cogview3"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as raised:
        client.images.generate(prompt="star", model="other")
    assert raised.value.code == "model_not_found"
    assert client.images.generate(prompt="star", model="tiny@quick").model_extra["mode"] == "quick"
    assert client.images.generate(prompt="star", model="gpt-image-2").model_extra["model"] == "tiny"


def test_qualities_pick_modes(served: Served) -> None:
    modes = {}
    for quality in ("low", "medium", "high", "auto"):
        answer = served.client().images.generate(prompt="star", quality=quality)
        modes[quality] = answer.model_extra["mode"]
    assert modes == {"low": "quick", "medium": "quick", "high": "2+2", "auto": "2+2"}


def test_the_client_retries_when_the_queue_is_full(pipe: CogView3Pipeline) -> None:
    with serving(pipe, waiting=1, batch=1) as served, served.http() as http:
        refused = http.post("/v1/images/generations", json={"prompt": "star", "n": 2})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            served.client(max_retries=1).images.generate(prompt="star", n=2)
        answers = [
            line
            for line in http.get("/metrics").text.splitlines()
            if line.startswith('cogview3_requests_total{path="/v1/images/generations",status="429"}')
        ]
        assert answers[0].endswith(" 3.0")  # one, and one that was tried again


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_picture(served: Served, stream: bool) -> None:
    body = {"prompt": "star", "steps": 1000, "stream": stream, "partial_images": 3}
    engine = served.service.engine
    with served.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/images/generations", json=body, timeout=0.7)
    deadline = time.monotonic() + 20
    while engine.running or engine.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with served.http() as http:
        assert 'outcome="canceled"' in http.get("/metrics").text


def test_progress_and_cancel(served: Served) -> None:
    failed = []

    def ask() -> None:
        with pytest.raises(openai.APIStatusError) as raised:
            served.client().images.generate(
                prompt="star", extra_headers={"x-request-id": "mine"}, extra_body={"steps": 1000}
            )
        failed.append(raised.value.status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    with served.http() as http:
        while not (data := http.get("/v1/images/progress").json()["data"]) or not data[0]["progress"]:
            time.sleep(0.01)
        assert data[0]["id"] == "mine"
        assert 0 < data[0]["progress"] < 1
        assert http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 1
        assert http.post("/v1/images/cancel", json={"id": "other"}).json()["canceled"] is False
        assert http.post("/v1/images/cancel", json={"id": "mine"}).json() == {"id": "mine", "canceled": True}
        thread.join()
        assert failed == [499]
        assert http.get("/v1/images/progress").json()["data"] == []


def test_time_limit(pipe: CogView3Pipeline) -> None:
    with serving(pipe, seconds=0.3) as served:
        with pytest.raises(openai.InternalServerError) as raised:
            served.client(max_retries=2).images.generate(prompt="star", extra_body={"steps": 1000})
        assert raised.value.status_code == 504
        assert raised.value.code == "timeout"


def test_open_web_uis_way(served: Served) -> None:
    with served.http() as http:
        assert http.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": "tiny@2+2"}
        titles = [model["title"] for model in http.get("/sdapi/v1/sd-models").json()]
        assert titles == ["tiny@2+2", "tiny@quick"]
        http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "tiny@quick"})
        asked = {"prompt": "star", "negative_prompt": "circle", "width": 64, "height": 64, "steps": 50, "batch_size": 2}
        answer = http.post("/sdapi/v1/txt2img", json=asked | {"sampler_name": "Euler", "cfg_scale": 7})
        assert answer.status_code == 200
        assert [opened(each).size for each in answer.json()["images"]] == [(64, 64)] * 2
        info = json.loads(answer.json()["info"])
        assert (info["mode"], info["steps"], info["negative_prompt"]) == ("quick", 2, None)
        assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other"}).status_code == 404
        generations = {"model": "tiny", "prompt": "star", "n": 1, "size": "512x512", "response_format": "b64_json"}
        assert http.post("/v1/images/generations", json=generations).json()["size"] == "128x128"


def test_probes(pipe: CogView3Pipeline) -> None:
    with serving(pipe) as served, served.http() as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/ready").status_code == 200
        served.service.engine.stop_taking()
        assert http.get("/ready").status_code == 503
        refused = http.post("/v1/images/generations", json={"prompt": "star"})
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "server_error"
        missing = http.get("/v1/nothing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        assert http.get("/v1/images/generations").status_code == 405
