"""Keys and limits, and the service with them."""

from pathlib import Path

import hypothesis.strategies as st
import openai
import pytest
from hypothesis import given
from typer.testing import CliRunner

from cogview3 import CogView3Pipeline
from cogview3.cli.app import app
from cogview3.errors import UserError
from cogview3.serving.keys import Bucket, Key, Keys, digest_of, new_key, read_keys
from tests.serving.conftest import serving


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 4)), max_size=40))
def test_no_minute_gives_more_than_the_bucket_and_its_refill(asked: list[tuple[float, int]]) -> None:
    now, taken = 0.0, 0
    bucket = Bucket(6, lambda: now)
    for pause, count in asked:
        now += pause
        wait = bucket.take(count)
        taken += count * (wait == 0)
        assert taken <= 6 + now * 6 / 60 + 1e-6
        if wait:
            now += wait + 1e-6
            assert bucket.take(count) == 0
            taken += count


def test_files_hold_hashes_and_the_environment_may_hold_keys(tmp_path: Path) -> None:
    secret, line = new_key("ann")
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{line}:30\n\n", "utf-8-sig")  # as Notepad saves it
    keys = Keys(read_keys(path, "bob:a-long-enough-secret, "))
    assert keys.name(secret) == "ann"
    assert keys.name("a-long-enough-secret") == "bob"
    assert keys.name("another") is None
    assert secret not in path.read_text()
    assert keys.wait("ann", 1) == 0


@pytest.mark.parametrize("text", ["ann", "ann:secret-in-plain-text", "ann:sha256:12", "a b:sha256:" + 64 * "0"])
def test_wrong_entries_are_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(UserError, match="entry 1") as raised:
        read_keys(path, None)
    assert "plain-text" not in str(raised.value)


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(UserError, match="ann"):
        Keys([Key("ann", digest_of("a")), Key("ann", digest_of("b"))])


def test_the_service_asks_for_keys_and_keeps_their_limits(pipe: CogView3Pipeline) -> None:
    keys = Keys([Key("ann", digest_of("right"), 2), Key("bob", digest_of("other"))])
    with serving(pipe, keys=keys) as served, served.http() as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}):
            for path in ("/v1/models", "/metrics", "/sdapi/v1/options"):
                answer = http.get(path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert http.get("/health").status_code == 200
        assert http.get("/sdapi/v1/options", auth=("any", "right")).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            served.client().images.generate(prompt="star")
        ann = served.client(api_key="right")
        ann.images.generate(prompt="star", n=2)
        with pytest.raises(openai.RateLimitError) as raised:
            ann.images.generate(prompt="star")
        assert 1 <= int(raised.value.response.headers["retry-after"]) <= 31
        served.client(api_key="other").images.generate(prompt="star", n=3)


def test_new_keys_are_printed_with_their_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--new-key", "ann"])
    secret, line = done.stdout.split()
    (tmp_path / "keys").write_text(line)
    assert Keys(read_keys(tmp_path / "keys", None)).name(secret) == "ann"
    assert CliRunner().invoke(app, ["serve", "--new-key", "a b"]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--mode", "3+3"], "3+3"),
        (["./nowhere"], "nowhere"),
        (["--host", "203.0.113.1", "--port", "0"], "203.0.113.1"),
        (["--keys", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_told_before_anything_is_loaded(arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 2
    assert named in done.stderr.strip().splitlines()[-1]
