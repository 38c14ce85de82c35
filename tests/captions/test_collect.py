"""Collecting triplets from an endpoint that fails in every way, through kills and budgets."""

import hashlib
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from cogview3.captions.journal import JOURNAL, Journal, Name, parts, read_triplets
from cogview3.captions.pairs import read_pairs
from cogview3.captions.triplets import collect
from cogview3.cli.app import app
from cogview3.config import UserError
from cogview3.data.formats import find_shards
from cogview3.prompts.budget import Usage
from cogview3.prompts.endpoint import Endpoint
from tests.data.conftest import encoded, ordinary, parquet_bytes, picture, tar_bytes, write_tars
from tests.endpoints import KEY, Reply, serving
from tests.processes import start_command

Run = Callable[..., Result]


def told(key: str) -> dict[str, Any]:
    caption = f"A picture {key} of many colors in soft squares, and the light in it is even from side to side."
    return {
        "queries": [{"question": "What is it?", "answer": f"It is {key}."}, {"question": "Color?", "answer": "Many."}],
        "result": caption,
    }


def asked_key(body: dict[str, Any]) -> str:
    """The key of the sample that a request is about: `ordinary` samples have the caption "old KEY"."""
    text = body["messages"][1]["content"][1]["text"]
    return re.search(r"old (\w+)", text)[1]


def good(body: dict[str, Any], number: int = 0) -> Reply:
    return Reply(text=json.dumps(told(asked_key(body))))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `cogview3 captions collect` on the shards in "shards" into "out", without waiting between tries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(url: str, *options: Any, shards: str = "shards", out: str = "out") -> Result:
        fixed = ["--endpoint", url, "--model", "m", "-o", out, "--first-wait", 0, "--timeout", 5, "--json"]
        return CliRunner().invoke(app, ["captions", "collect", shards, *map(str, [*fixed, *options])])

    return run


def facts(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def rows(out: str = "out") -> dict[str, dict[str, Any]]:
    table = read_triplets(out).to_pylist()
    assert len({(row["shard"], row["key"]) for row in table}) == len(table)
    return {row["key"]: row for row in table}


def test_triplets(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (3, 2))
    with serving(good) as server:
        result = facts(run(server.url, "--price", "2,10", "--side", 64))
    assert (result["triplets"], result["new"], result["spent"]["requests"]) == (5, 5, 5)
    assert result["spent"] == {
        "requests": 5, "prompt_tokens": 500, "completion_tokens": 50, "money": 500 * 2e-6 + 50 * 10e-6,
    }  # fmt: skip
    assert result["schema"] is True
    assert result["rules"] == {}
    assert result["words"] == {"old": 2, "new": 20}
    row = rows()["0001001"]
    assert row == {
        "image": hashlib.sha256(encoded(picture(1001))).hexdigest(),
        "shard": str(tmp_path / "shards" / "00001.tar"),
        "key": "0001001",
        "old": "old 0001001",
        "queries": told("0001001")["queries"],
        "new": told("0001001")["result"],
        "model": "m",
        "usage": {"requests": 1, "prompt_tokens": 100, "completion_tokens": 10, "money": 0.0003},
    }
    assert [path.name for path in sorted(tmp_path.glob("out/part*"))] == ["part-00000.parquet"]
    assert (tmp_path / "out" / "aside.jsonl").read_text() == ""
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_nothing_is_asked_twice(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (4,))
    with serving(good) as server:
        assert facts(run(server.url, "--count", 3))["new"] == 3
        assert facts(run(server.url))["new"] == 1
        again = facts(run(server.url))
        assert (again["new"], again["triplets"], again["spent"]["requests"]) == (0, 4, 4)
        assert len(server.bodies) == 4
        assert facts(run(server.url, "--every", 2, out="other"))["new"] == 2
    assert set(rows("other")) == {"0000000", "0000002"}
    assert len(list((tmp_path / "out").glob("part-*"))) == 2


def test_an_image_under_two_names_is_asked_about_once(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (3,))
    other = ordinary("a", 2) + ordinary("b", 5) + ordinary("c", 5)  # 2 is in the first shard too, 5 is new
    (tmp_path / "shards" / "00001.tar").write_bytes(tar_bytes(other))
    with serving(good) as server:
        result = facts(run(server.url))
        again = facts(run(server.url))
    assert (result["triplets"], result["repeated"], len(server.bodies)) == (4, 2, 4)
    assert (again["new"], again["repeated"], again["moved"]) == (0, 2, 0)
    assert set(rows()) == {"0000000", "0000001", "0000002", "b"}


def test_an_image_with_another_content_under_its_name_is_asked_about(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (2,))
    with serving(good) as server:
        facts(run(server.url))
        (tmp_path / "shards" / "00000.tar").write_bytes(tar_bytes(ordinary("0000000", 0) + ordinary("0000001", 7)))
        result = facts(run(server.url))
    assert (result["new"], result["triplets"]) == (1, 3)


def test_a_shard_written_anew_keeps_each_caption_with_its_image(run: Run, tmp_path: Path) -> None:
    """Keys run anew after a picture was taken out: known images are found under their new keys, none is mixed up."""
    write_tars(tmp_path / "shards", (3,))
    with serving(good) as server:
        facts(run(server.url))
        (tmp_path / "shards" / "00000.tar").write_bytes(tar_bytes(ordinary("0000000", 1) + ordinary("0000001", 2)))
        result = facts(run(server.url))
    assert (result["new"], result["moved"]) == (0, 2)
    found = read_pairs([str(tmp_path / "out")])
    assert [(pair.key, pair.new) for pair in found.pairs] == [
        ("0000000", told("0000001")["result"]), ("0000001", told("0000002")["result"]),
    ]  # fmt: skip
    (tmp_path / "shards" / "00000.tar").write_bytes(tar_bytes(ordinary("0000000", 1) + ordinary("0000001", 9)))
    changed = read_pairs([str(tmp_path / "out")])
    assert [pair.key for pair in changed.pairs] == ["0000000"]
    assert changed.report.broken == {"another picture under its key": 1}


def test_an_endpoint_that_refuses_the_first_images_ends_the_run_and_puts_none_aside(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (15,))
    with serving(lambda body, number: Reply("status", "no images here", status=400)) as server:
        failed = run(server.url, "--concurrency", 1)
    assert failed.exit_code == 1
    assert "no images here" in failed.stderr
    assert "the first 10 images" in failed.stderr
    with serving(lambda body, number: Reply("status", "bad", 400) if number < 4 else good(body)) as server:
        result = facts(run(server.url, "--concurrency", 1))  # two images, each with and without a schema
    assert (result["new"], result["aside"].popitem()[1]) == (13, 2)


@pytest.mark.parametrize("part_rows", [1, 1000])
def test_moved_data_are_known_and_found(tmp_path: Path, part_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path / "shards", (3,))

    def collected(server: Any, folder: str) -> dict[str, Any]:
        endpoint = Endpoint(server.url, "m")
        return collect(find_shards([str(tmp_path / folder)]), endpoint, tmp_path / "out", part_rows=part_rows)

    with serving(good) as server:
        collected(server, "shards")
        (tmp_path / "shards").rename(tmp_path / "elsewhere")
        if part_rows == 1:  # a crash between noting and rewriting loses nothing
            with monkeypatch.context() as patched:
                patched.setattr(Journal, "write_part", lambda journal: None)
                collected(server, "elsewhere")
            assert b'"moved"' in (tmp_path / "out" / JOURNAL).read_bytes()
        result = collected(server, "elsewhere")
    assert (result["new"], result["triplets"], len(server.bodies)) == (0, 3, 3)
    assert result["moved"] == (0 if part_rows == 1 else 3)
    shard = str(tmp_path / "elsewhere" / "00000.tar")
    assert {(row["shard"], key) for key, row in rows(str(tmp_path / "out")).items()} == {
        (shard, f"000000{number}") for number in range(3)
    }
    assert len(read_pairs([str(tmp_path / "out")]).pairs) == 3
    assert b'"moved"' not in (tmp_path / "out" / JOURNAL).read_bytes()


FAILURES = [
    Reply("status", "busy", 429, {"Retry-After": "0"}),
    Reply("status", f"your key is {KEY}", 500),
    Reply("raw", "{garbage"),
    Reply("close"),
    Reply("cut", "{"),
]
SLOW = {"0001000": Reply("silent"), "0001001": Reply("drip")}


def test_every_failure_in_any_order_ends_in_the_right_set(run: Run, tmp_path: Path) -> None:
    """Each image fails in three ways before it is answered, out of order; then two are no JSON, one has a fence."""
    write_tars(tmp_path / "shards", (8, 6))
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def answering(body: dict[str, Any], number: int) -> Reply:
        key = asked_key(body)
        with lock:
            seen[key] += 1
            time_ = seen[key]
        if time_ == 2 and key in SLOW:
            return SLOW[key]
        if time_ <= 3:
            return FAILURES[(int(key[-1]) * 2 + time_ * 3) % len(FAILURES)]
        if key == "0000001" and time_ == 4:
            return Reply(text="I see a picture.")
        if key == "0000002" and time_ <= 5:
            return Reply(text='{"queries": [')
        if key == "0000003":
            return Reply(text=f"Sure!\n```json\n{json.dumps(told(key))}\n```")
        if key == "0000004":
            return Reply(text="never any JSON")
        if key == "0000005":
            return Reply(refusal="I will not.")
        if key == "0000006":
            return Reply(text="{", finish="length")
        return good(body)

    with serving(answering) as server:
        result = facts(run(server.url, "--timeout", 2, "--concurrency", 6, "--price", "1,1"))
    aside = {
        "unusable answer: no whole JSON object in it": 1,
        "the model refused": 1,
        "unusable answer: cut off at the token limit": 1,
    }
    assert (result["triplets"], result["aside"], result["in_doubt"]) == (11, aside, 0)
    assert result["asked_again"] == 1 + 2 + 2 + 2
    assert result["repaired"] == 1
    answers = 11 + 1 + 2 + 3 + 1 + 3  # good ones, and useless ones that were paid for all the same
    assert result["spent"]["requests"] == len(server.bodies) >= 14 * 3 + answers  # more where this machine is slow
    assert result["spent"]["prompt_tokens"] == answers * 100
    assert result["spent"]["money"] == pytest.approx(answers * 110e-6)
    found = rows()
    assert all(found[key]["new"] == told(key)["result"] for key in found)
    assert sum(row["usage"]["requests"] for row in found.values()) >= 11 * 4 + 1 + 2
    assert server.most_at_once > 1
    listed = [json.loads(line) for line in (tmp_path / "out" / "aside.jsonl").read_text().splitlines()]
    assert [row["key"] for row in listed] == ["0000004", "0000005", "0000006"]
    for path in (tmp_path / "out").iterdir():
        assert KEY.encode() not in path.read_bytes()
    with serving(good) as server:
        assert facts(run(server.url))["new"] == 0
        again = facts(run(server.url, "--again"))
    assert (again["new"], again["aside"], len(server.bodies)) == (3, {}, 3)


def start(log: Path, url: str) -> Any:
    """The same command in a process of its own."""
    options = ["-o", "out", "--concurrency", "3", "--first-wait", "0", "--json"]
    return start_command(log, "captions", "collect", "shards", "--endpoint", url, "--model", "m", *options)


@pytest.mark.slow
def test_killed_runs_pay_for_no_image_twice(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (12, 12))
    enough, held = threading.Event(), 10

    def answering(body: dict[str, Any], number: int) -> Reply:
        if number >= held + 2:
            enough.set()  # three are under way
        return good(body) if number < held else Reply("silent")

    with serving(answering) as server:
        process = start(tmp_path / "log", server.url)
        assert enough.wait(60)
        process.kill()
        process.join()
        output = (tmp_path / "log").read_bytes()
        before = Counter(map(asked_key, server.bodies))
    assert process.exitcode == -signal.SIGKILL
    assert KEY.encode() not in output
    assert before.total() == 13
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"event": "done", "sha')  # cut by a crash
    with serving(good) as server:
        result = facts(run(server.url))
        after = Counter(map(asked_key, server.bodies))
    assert max((before + after).values()) == 1
    assert (result["triplets"], result["in_doubt"], result["new"]) == (21, 3, 11)
    assert result["spent"]["prompt_tokens"] == 21 * 100
    assert len(rows()) == 21
    listed = [json.loads(line) for line in (tmp_path / "out" / "aside.jsonl").read_text().splitlines()]
    assert len(listed) == 3
    assert all("in doubt" in row["reason"] for row in listed)
    with serving(good) as server:
        assert facts(run(server.url, "--again"))["triplets"] == 24
        assert sorted(map(asked_key, server.bodies)) == sorted(row["key"] for row in listed)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_interrupted_runs_wait_for_what_is_paid(run: Run, tmp_path: Path, number: int, code: int) -> None:
    write_tars(tmp_path / "shards", (12,))
    started, go = threading.Event(), threading.Event()

    def answering(body: dict[str, Any], index: int) -> Reply:
        if index >= 2:
            started.set()
        go.wait(20)
        return good(body)

    with serving(answering) as server:
        process, log = start(tmp_path / "log", server.url), tmp_path / "log"
        assert started.wait(60)
        os.kill(process.pid, number)
        while "Waiting" not in log.read_text() and process.is_alive():
            time.sleep(0.01)
        go.set()
        process.join()
        assert len(server.bodies) == 3
    assert (process.exitcode, log.read_text().count("3 triplets in out, 3 of them new")) == (code, 1)
    assert len(rows()) == 3
    with serving(good) as server:
        result = facts(run(server.url))
        assert len(server.bodies) == 9
    assert (result["triplets"], result["in_doubt"]) == (12, 0)


def test_budgets_stop_and_count_all_runs(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (9,))
    with serving(good) as server:
        first = facts(run(server.url, "--max-tokens", 500))
        assert (first["triplets"], "500 tokens" in first["stopped"]) == (4, True)
        second = facts(run(server.url, "--max-tokens", 500))
        assert (second["triplets"], second["new"]) == (4, 0)
        third = facts(run(server.url, "--max-requests", 6))
        assert (third["triplets"], "6 requests" in third["stopped"]) == (6, True)
        last = facts(run(server.url, "--max-money", 1, "--price", "1,1"))
        assert (last["triplets"], last["stopped"], len(server.bodies)) == (9, None, 9)


@pytest.mark.parametrize(
    ("reply", "words", "asked"),
    [
        (Reply("status", '{"error": "bad key"}', 401), ["HTTP 401", "bad key"], 1),
        (Reply("status", "down", 503), ["HTTP 503", "2 tries"], 2 * 10),
    ],
)
def test_an_endpoint_that_is_of_no_use_ends_the_run(
    run: Run, tmp_path: Path, reply: Reply, words: list[str], asked: int
) -> None:
    write_tars(tmp_path / "shards", (30,))
    with serving(lambda body, number: reply) as server:
        result = run(server.url, "--concurrency", 1, "--tries", 2)
    assert result.exit_code == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert len(server.bodies) == asked
    with serving(good) as server:  # nothing is given up for it
        assert facts(run(server.url))["triplets"] == 30


def test_some_unanswered_images_are_left_to_the_next_run(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (3,))
    bad = {"0000001": Reply("status", "", 500), "0000002": Reply("status", '{"detail": "not this one"}', 400)}
    with serving(lambda body, number: bad.get(asked_key(body)) or good(body)) as server:
        result = facts(run(server.url, "--concurrency", 1, "--tries", 2))
    assert list(result["unanswered"].values()) == [1]
    assert "HTTP 500" in next(iter(result["unanswered"]))
    assert any("not this one" in reason for reason in result["aside"])
    with serving(good) as server:
        assert facts(run(server.url))["triplets"] == 2
    with serving(lambda body, number: Reply("status", "", 500)) as server:
        alone = run(server.url, "--tries", 2, out="other")
    assert (alone.exit_code, "HTTP 500" in alone.stderr) == (1, True)


def test_servers_without_schemas(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (3,))

    def answering(body: dict[str, Any], number: int) -> Reply:
        return Reply("status", "what is response_format?", 422) if "response_format" in body else good(body)

    with serving(answering) as server:
        result = facts(run(server.url, "--concurrency", 1))
    assert (result["triplets"], result["schema"], result["spent"]["requests"]) == (3, False, 4)


def test_broken_and_filtered_samples_and_rules_are_counted(run: Run, tmp_path: Path) -> None:
    files = [*ordinary("a"), *ordinary("b"), ("c.jpg", b"junk"), ("c.txt", b"old c"), ("d.jpg", encoded(picture(1)))]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").write_bytes(tar_bytes(files))
    keep = {
        "key": list("abcd"),
        "keep": [True, False, True, False],
        "reason": ["", "small image", "", "missing caption"],
    }
    (tmp_path / "shards" / "0.keep.parquet").write_bytes(parquet_bytes(keep))
    bad = {**told("a"), "result": "The image shows perhaps something."}
    with serving(lambda body, number: Reply(text=json.dumps(bad))) as server:
        url = server.url
        result = facts(run(url))
    assert result["broken"] == {"not an image": 1}
    assert result["filtered"] == {"small image": 1}
    assert result["rules"] == {"opening": 2, "hedging": 2, "too short": 2}
    assert len(server.bodies) == 2
    assert {key: row["old"] for key, row in rows().items()} == {"a": "old a", "d": ""}  # one without any caption too
    asked = [body["messages"][1]["content"][1]["text"] for body in server.bodies]
    assert sorted(text.rpartition(" ")[2] for text in asked) == ["a", "caption."]
    text = CliRunner().invoke(app, ["captions", "collect", "shards", "--endpoint", url, "--model", "m", "-o", "out"])
    assert text.exit_code == 0
    assert "2 triplets in out, 0 of them new" in text.stdout
    assert "rules broken: opening 2, hedging 2, too short 2" in text.stdout


def test_an_endpoint_that_refuses_all_there_is_ends_with_a_failure(run: Run, tmp_path: Path) -> None:
    """Fewer images than show it: a wrong key or model may come as a refusal of each."""
    write_tars(tmp_path / "shards", (3,))
    with serving(lambda body, number: Reply("status", "API key not valid", 400)) as server:
        failed = run(server.url)
    assert (failed.exit_code, "API key not valid" in failed.stderr) == (1, True)
    assert (tmp_path / "out" / "aside.jsonl").read_text() == ""
    with serving(good) as server:
        assert facts(run(server.url))["new"] == 3


def test_counts_beyond_belief_ruin_nothing(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (2,))
    with serving(lambda body, number: replace(good(body), usage=(10**30, 1))) as server:
        assert facts(run(server.url))["spent"]["prompt_tokens"] == 0
        journal = tmp_path / "out" / JOURNAL
        absurd = {"requests": 1, "prompt_tokens": 10**30, "completion_tokens": 0, "money": 0}
        journal.write_bytes(journal.read_bytes() + json.dumps({"event": "spent", "usage": absurd}).encode() + b"\n")
        again = facts(run(server.url))
    assert (again["triplets"], again["spent"]["requests"], again["spent"]["prompt_tokens"]) == (2, 3, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--price", "1"], ["--price 1"]),
        (["--max-money", "3"], ["needs a price"]),
        (["--set", "x"], ["--set 'x'"]),
        (["--key-env", "NO_SUCH"], ["--key-env NO_SUCH"]),
        (["--timeout", "0"], ["--timeout 0"]),
        (["--price", "1,-2"], ["--price 1,-2"]),
        (["--set", "stream=true"], ["--set stream"]),
        (["--concurrency", "0"], ["--concurrency"]),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, options: list[str], words: list[str]) -> None:
    write_tars(tmp_path / "shards", (1,))
    result = run("http://127.0.0.1:9/v1", *options)
    assert result.exit_code == 2, result.output
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else_are_refused(run: Run, tmp_path: Path) -> None:
    write_tars(tmp_path / "shards", (1,))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with serving(good) as server:
        assert run(server.url, out="full").exit_code == 2
        assert facts(run(server.url))["triplets"] == 1
        other = run(server.url, "--side", 100)
        assert (other.exit_code, "side 768" in other.stderr) == (2, True)
        with Journal(tmp_path / "out", {}):
            assert "another process works there" in run(server.url).stderr
    assert len(server.bodies) == 1


# The journal


ROW = {"old": "o", "queries": [], "new": "n", "model": "m", "usage": Usage(1, 2, 3).to_dict()}


def name(key: str, shard: str = "s") -> Name:
    return Name.of(key.encode(), shard, key)


def row(key: str) -> dict[str, Any]:
    return {**asdict(name(key)), **ROW}


def test_parts_are_written_when_full_and_leave_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {}, part_rows=2) as journal:
        for number in range(5):
            journal.note("asked", name(str(number)))
            journal.finish(name(str(number)), row(str(number)), Usage(1, 2, 3))
        assert [path.name for path in parts(tmp_path / "j")] == ["part-00000.parquet", "part-00001.parquet"]
        assert len((tmp_path / "j" / JOURNAL).read_bytes().splitlines()) == 4  # header, sum, asked, done
    with Journal(tmp_path / "j", {}) as journal:
        assert set(journal.done) == {name(str(number)) for number in range(5)}
        assert journal.spent == Usage(5, 10, 15)
        journal.write_part()
    assert [row["key"] for row in read_triplets(tmp_path / "j").to_pylist()] == ["0", "1", "2", "3", "4"]


def test_a_crash_between_a_part_and_the_journal_doubles_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {}) as journal:
        journal.note("asked", name("a"))
        journal.finish(name("a"), row("a"), Usage(1, 2, 3))
        before = (tmp_path / "j" / JOURNAL).read_bytes()
        journal.write_part()
    (tmp_path / "j" / JOURNAL).write_bytes(before)
    with Journal(tmp_path / "j", {}) as journal:
        journal.write_part()
        assert journal.spent == Usage(1, 2, 3)
    assert len(read_triplets(tmp_path / "j")) == 1


def test_triplets_of_the_format_without_hashes_are_read(tmp_path: Path) -> None:
    """By `finetune`, which knows their images by shard and key alone."""
    parquet.write_table(pyarrow.Table.from_pylist([{"shard": "s", "key": "a", **ROW}]), tmp_path / "part-00000.parquet")
    (told,) = read_triplets(tmp_path).to_pylist()
    assert (told["key"], told["new"], told["image"]) == ("a", "n", None)


def test_damage_is_told(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {}) as journal:
        journal.note("aside", name("a"), Usage(1), reason="why")
    path = tmp_path / "j" / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'{"event": "aside"', b'{"event": aside"'))
    with pytest.raises(UserError, match=r"line 3 is damaged"), Journal(tmp_path / "j", {}):
        pass
    path.write_bytes(whole.replace(b'"format": 2', b'"format": 9'))
    with pytest.raises(UserError, match=r"format 9"), Journal(tmp_path / "j", {}):
        pass
    path.write_bytes(whole)
    parquet.write_table(pyarrow.table({"shard": ["s"], "key": ["a"]}), tmp_path / "j" / "part-00000.parquet")
    with pytest.raises(UserError, match=r"part-00000.parquet: damaged"), Journal(tmp_path / "j", {}):
        pass
    (tmp_path / "j" / "part-00000.parquet").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"part-00000.parquet: damaged"), Journal(tmp_path / "j", {}):
        pass
    with pytest.raises(UserError, match="damaged"):
        read_triplets(tmp_path / "j")
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}: no triplets"):
        read_triplets(tmp_path)
    with pytest.raises(UserError, match="part_rows 0"):
        Journal(tmp_path / "k", {}, part_rows=0)


def test_parts_have_the_columns_that_others_read(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", {}) as journal:
        journal.finish(name("a"), row("a"), Usage(1))
        journal.write_part()
        schema = parquet.read_schema(tmp_path / "j" / "part-00000.parquet")
    assert schema.names == ["image", "shard", "key", "old", "queries", "new", "model", "usage"]
    assert str(schema.field("queries").type) == "list<element: struct<question: string, answer: string>>"
