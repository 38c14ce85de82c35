"""Re-captioning by an endpoint, and the command."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cogview3.captions.endpoint import MOST_IN_A_ROW, EndpointJob
from cogview3.captions.engines import local
from cogview3.captions.parts import Part
from cogview3.captions.recaption import Task, caption_shard, recaption
from cogview3.captions.rows import CannotGoOn, request
from cogview3.cli.app import app
from cogview3.config import UserError
from cogview3.data.entries import Entry
from cogview3.data.formats import find_shards
from tests.captions.light import LightJob
from tests.captions.test_recaption import here, rows, state_of
from tests.data.conftest import all_keys, write_tars
from tests.endpoints import KEY, Reply, serving

CAPTION = "Soft squares of many colors lie side by side, all of them in the same even light of day"


def asked(body: dict[str, Any]) -> str:
    """The key that a request is about; `ordinary` samples have the caption "old KEY"."""
    text = body["messages"][0]["content"][1]["text"]
    key = text.split()[3].rstrip(".")
    assert text == request(f"old {key}")
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    return key


def good(body: dict[str, Any], number: int) -> Reply:
    return Reply(text=f"{CAPTION}\n near {asked(body)}.")


def job(url: str, **options: Any) -> EndpointJob:
    return EndpointJob(url, "m", **{"timeout": 5, "tries": 1, "requests": 3} | options)


def test_rows_come_from_answers(tars: list[str], tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def answering(body: dict[str, Any], number: int) -> Reply:
        if number < 2:
            together.wait(30)
        return good(body, number)

    with serving(answering) as server:
        result = recaption(find_shards(tars), job(server.url, temperature=0.5, seed=9, max_new_tokens=90), here)
        again = recaption(find_shards(tars), job(server.url, temperature=0.5, seed=9, max_new_tokens=90), here)
    assert (result["images"], result["tokens"], again["images"], len(server.bodies)) == (15, 150, 0, 15)
    assert 1 < server.most_at_once <= 3
    found = rows(tmp_path / "tars")
    assert [row["new"] for row in found] == [f"{CAPTION} near {key}." for key in all_keys()]
    assert {row["model"] for row in found} == {"m"}
    body = server.bodies[0]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 9, 90)


def test_each_failure_has_its_status(tars: list[str], tmp_path: Path) -> None:
    replies = {
        "0000000": Reply("status", "too large", status=400),
        "0000001": Reply("status", "busy", status=503),
        "0000002": Reply(text=CAPTION, finish="length"),
        "0000003": Reply(text="", refusal="I cannot"),
        "0000004": Reply(text=" "),
    }
    with serving(lambda body, number: replies.get(asked(body)) or good(body, number)) as server:
        recaption(find_shards(tars[:1]), job(server.url), here)
        found = {row["key"]: (row["status"], row["error"].partition(": http")[0]) for row in rows(tmp_path / "tars")}
        assert found == {
            "0000000": ("failed", "refused"),
            "0000001": ("unanswered", rows(tmp_path / "tars")[1]["error"]),
            "0000002": ("cut", "no end after 10 tokens"),
            "0000003": ("failed", "the model refused"),
            "0000004": ("failed", "empty caption"),
        }
        replies.clear()
        assert recaption(find_shards(tars[:1]), job(server.url), here)["images"] == 1  # who did not answer
    assert rows(tmp_path / "tars")[1]["status"] == "ok"


def test_an_endpoint_that_is_gone_ends_the_job_and_keeps_what_came(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", (30,))

    def failing(body: dict[str, Any], number: int) -> Reply:
        return good(body, number) if asked(body) < "0000005" else Reply("status", "down", status=503)

    with serving(failing) as server, pytest.raises(CannotGoOn, match=f"{MOST_IN_A_ROW} pictures in a row"):
        recaption(find_shards(tars), job(server.url, requests=1), here)
    with serving(good) as server:
        assert recaption(find_shards(tars), job(server.url), here)["images"] == 25
    assert [row["status"] for row in rows(tmp_path / "tars")] == ["ok"] * 30


def test_a_wrong_key_ends_the_job(tars: list[str]) -> None:
    with (
        serving(lambda body, number: Reply("status", "no", status=401)) as server,
        pytest.raises(CannotGoOn, match="HTTP 401"),
    ):
        recaption(find_shards(tars), job(server.url), here)


def test_an_endpoint_that_refuses_the_first_pictures_ends_the_job_and_marks_none(tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", (4, 20))
    with (
        serving(lambda body, number: Reply("status", "no field temperature", status=400)) as server,
        pytest.raises(CannotGoOn, match=f"no field temperature.*the first {MOST_IN_A_ROW} pictures"),
    ):
        recaption(find_shards(tars), job(server.url, requests=1), here)
    assert len(server.bodies) == MOST_IN_A_ROW
    with serving(good) as server:
        assert recaption(find_shards(tars), job(server.url), here)["images"] == 24
    assert [row["status"] for row in rows(tmp_path / "tars")] == ["ok"] * 24


@pytest.mark.parametrize("reply", [Reply("status", "wrong key", 400), Reply("status", "down", 503)])
def test_a_job_without_any_answer_is_a_failure(reply: Reply, tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", (2, 1))
    with serving(lambda body, number: reply) as server, pytest.raises(CannotGoOn, match=r"wrong key|down"):
        recaption(find_shards(tars), job(server.url), here)
    with serving(good) as server:
        assert recaption(find_shards(tars), job(server.url), here)["images"] == 3


@pytest.mark.parametrize("finish", ["max_tokens", "stop", ""])
def test_texts_that_break_off_are_cut_whatever_the_endpoint_says(finish: str, tars: list[str], tmp_path: Path) -> None:
    text = "Soft squares of many colors lie side by side. All of them are in the same ev"
    with serving(lambda body, number: Reply(text=text, finish=finish)) as server:
        recaption(find_shards(tars[:1]), job(server.url), here)
    assert {row["status"] for row in rows(tmp_path / "tars")} == {"cut"}


def test_a_failure_of_our_own_keeps_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = write_tars(tmp_path / "tars", (5,))
    under_way = threading.Event()

    decode = Entry.decode

    def decode_or_fail(entry: Entry) -> Any:
        if entry.key == "0000001":
            assert under_way.wait(30)
            raise RuntimeError("no memory")
        return decode(entry)

    def answering(body: dict[str, Any], number: int) -> Reply:
        under_way.set()
        return replace(good(body, number), delay=0.3)

    monkeypatch.setattr(Entry, "decode", decode_or_fail)
    with serving(answering) as server:
        task = Task(job(server.url), job(server.url).settings)
        with pytest.raises(RuntimeError, match="no memory"):
            list(caption_shard(find_shards(tars)[0], task, job(server.url, requests=2).load(0)))
    part = Part(find_shards(tars)[0], task.settings)
    assert "0000000" in part.rows


def test_a_worker_with_a_budget_is_not_replaced(tars: list[str], tmp_path: Path) -> None:
    with pytest.raises(CannotGoOn, match="ended by SIGKILL, and with it the count of what it spent"):
        recaption(find_shards(tars), LightJob(tmp_path, once="0000003", has_budget=True), local)
    assert job("http://127.0.0.1:1/v1", limits=(5, None, None)).has_budget
    assert not job("http://127.0.0.1:1/v1").has_budget


def test_jobs_are_checked_before_they_run() -> None:
    with pytest.raises(UserError, match="endpoint nowhere"):
        job("nowhere")
    with pytest.raises(UserError, match="requests 0"):
        job("http://localhost:1/v1", requests=0)


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `cogview3 captions recaption`."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return lambda *options: CliRunner().invoke(app, ["captions", "recaption", *map(str, options)])


def test_the_command_with_its_report(run: Run, tars: list[str], tmp_path: Path) -> None:
    out = tmp_path / "report"
    with serving(good) as server:
        options = (tmp_path / "tars", "--endpoint", server.url, "--model", "m", "--batch", 4)
        result = run(*options, "--out", out, "--json")
        assert result.exit_code == 0, result.output
        before = state_of(tmp_path / "tars")
        text = run(*options)
        over = run(*options, "--overwrite", "--set", "top_p=0.5", "--max-requests", 4)
    facts = json.loads(result.stdout)
    assert (facts["images"], facts["given_up"], facts["pictures"], facts["out"]) == (15, {}, 15, str(out))
    assert facts["report"] == json.loads((out / "report.json").read_text())
    assert facts["report"]["rewritten_share"] == 1
    assert "3 shards, 3 of them finished before" in text.stdout
    assert "15 rewritten (100.0%)" in text.stdout
    assert over.exit_code == 1  # the budget is spent, and what came is kept
    assert "the budget of 4 requests is spent" in over.stderr
    assert {name: value for name, value in state_of(tmp_path / "tars").items() if name in before} == before
    assert KEY not in result.output + text.output + over.output


def test_wrong_options_are_told_first(run: Run, tars: list[str]) -> None:
    for options, message in (
        ((), "--model: give a model"),
        (("--model", "m", "--max-tokens", 5), "are for --endpoint"),
        (("--model", "m", "--endpoint", "http://localhost:1/v1", "--max-tokens", 5, "--workers", 2), "single worker"),
        (("--model", "nothing-here"), "no image-text-to-text model"),
    ):
        result = run(tars[0], *options)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_shard_that_is_given_up_is_a_failure(run: Run, tars: list[str], tmp_path: Path) -> None:
    Path(tars[1]).unlink()
    with serving(good) as server:
        result = run(f"{tmp_path}/tars/{{00000..00002}}.tar", "--endpoint", server.url, "--model", "m")
    assert result.exit_code == 1
    assert f"given up: {tars[1]}: missing tar" in result.stdout
