"""Asking a chat endpoint: what is tried again, what is not, what it costs, and where the key goes."""

import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from cogview3.config import UserError
from cogview3.prompts import endpoint as module
from cogview3.prompts.addresses import chat_address, is_private
from cogview3.prompts.budget import Budget, Price, Usage
from cogview3.prompts.endpoint import (
    Endpoint,
    EndpointError,
    GaveUp,
    Refused,
    Retry,
    Spent,
    Stopped,
    Unusable,
)
from cogview3.prompts.replies import retry_after
from tests.endpoints import KEY, Reply, serving

AT_ONCE = Retry(tries=4, first=0.0, longest=0.0)
ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(replies: list[Reply], **options: Any) -> tuple[Any, Any, Endpoint]:
    """What an endpoint that gives these replies in turn, the last for ever, leads to."""
    with serving(lambda body, number: replies[min(number, len(replies) - 1)]) as server:
        endpoint = Endpoint(server.url, "m", **{"retry": AT_ONCE, "timeout": 5.0, **options})
        try:
            result = endpoint.chat(ASK)
        except EndpointError as error:
            result = error
    return result, server, endpoint


def test_an_endpoint_that_is_away_for_long_is_still_waited_for() -> None:
    """After a thousand tries the doubled wait is beyond any float."""
    endpoint = Endpoint("https://example.com/v1", "m", retry=Retry(tries=10_000, first=0.001, longest=0.0))
    endpoint._wait_before(9_999, module._Failure("away"))


PASSING = [
    Reply("status", '{"error": {"message": "slow down"}}', 429),
    Reply("status", "still at work on that", 409),
    Reply("status", "oops", 500),
    Reply("status", "<html>bad gateway</html>", 502),
    Reply("raw", "{garbage"),
    Reply("raw", '{"choices": []}'),
    Reply("raw", '{"error": {"code": 503, "message": "overloaded"}}'),
    Reply("close"),
    Reply("cut", "{"),
]


@pytest.mark.parametrize("failure", PASSING, ids=lambda reply: f"{reply.kind}-{reply.status}")
def test_failures_that_may_pass_are_tried_again(failure: Reply) -> None:
    answer, server, endpoint = ask([failure, failure, Reply(text="hi", usage=(7, 3))])
    assert (answer.text, answer.finish) == ("hi", "stop")
    assert answer.usage == Usage(3, 7, 3) == endpoint.budget.spent
    assert len(server.bodies) == 3
    assert server.paths == ["/v1/chat/completions"] * 3
    assert server.bodies[0] == {"model": "m", "messages": ASK, "stream": False}
    assert server.keys == [f"Bearer {KEY}"] * 3
    assert len(set(server.idempotency_keys)) == 1


def test_no_proxy_comes_between_this_machine_and_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be sent the key in clear."""
    with serving(lambda body, number: Reply(text="hi")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        answer, server, _ = ask([Reply(text="directly")])
    assert answer.text == "directly"
    assert (len(server.bodies), proxy.bodies) == (1, [])


def test_hosts_that_cannot_be_are_told_as_such() -> None:
    with pytest.raises(Unusable, match=r"http://a\.\.b/v1/chat/completions: not an address"):
        Endpoint("http://a..b/v1", "m", retry=AT_ONCE).chat(ASK)


def test_each_question_has_an_idempotency_key_of_its_own() -> None:
    with serving(lambda body, number: Reply(text="hi")) as server:
        endpoint = Endpoint(server.url, "m", retry=AT_ONCE)
        endpoint.chat(ASK)
        endpoint.chat(ASK)
    assert None not in server.idempotency_keys
    assert len(set(server.idempotency_keys)) == 2


@pytest.mark.parametrize(
    ("failure", "words"),
    [(PASSING[0], "429 (slow down)"), (PASSING[2], "500 (oops)"), (PASSING[7], "no connection")],
)
def test_it_is_given_up_with_the_reason(failure: Reply, words: str) -> None:
    error, server, _ = ask([failure])
    assert type(error) is GaveUp
    assert words in str(error)
    assert "4 tries" in str(error)
    assert error.usage == Usage(4)
    assert len(server.bodies) == 4


@pytest.mark.parametrize("kind", ["silent", "drip", "trickle"])
def test_answers_that_take_too_long_are_tried_again(kind: str) -> None:
    answer, server, _ = ask([Reply(kind), Reply(text="at last")], timeout=0.3)
    assert answer.text == "at last"
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (Reply("status", '{"error": {"message": "bad picture"}}', 400), Refused, "HTTP 400 (bad picture)"),
        (Reply("status", '{"detail": "too large"}', 413), Refused, "too large"),
        (Reply("status", '{"error": "no such key"}', 401), Unusable, "no such key"),
        (Reply("status", '{"message": "unknown model"}', 404), Unusable, "unknown model"),
        (Reply("status", "", 302, {"Location": "http://127.0.0.1:1/"}), Unusable, "HTTP 302"),
        (
            Reply("status", '{"error": {"code": "insufficient_quota", "message": "no credit"}}', 429),
            Unusable,
            "no credit",
        ),
    ],
)
def test_other_refusals_are_final_and_name_the_endpoints_words(failure: Reply, kind: type, words: str) -> None:
    error, server, _ = ask([failure])
    assert type(error) is kind
    assert words in str(error)
    assert len(server.bodies) == 1


class Clock:
    """Time that passes by waiting alone."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, []

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return False

    def is_set(self) -> bool:
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_waits_double_with_chance_up_to_the_longest(clock: Clock) -> None:
    retry = Retry(tries=6, first=1.0, longest=5.0)
    error, _, _ = ask([Reply("status", "", 500)], retry=retry, stop=clock)
    assert type(error) is GaveUp
    assert len(clock.waits) == 5
    assert all(most / 2 <= wait <= most for wait, most in zip(clock.waits, (1, 2, 4, 5, 5), strict=True)), clock.waits
    assert len(set(clock.waits)) == 5


def test_the_endpoint_says_how_long_to_wait(clock: Clock) -> None:
    busy = Reply("status", "", 429, {"Retry-After": "37"})
    answer, _, _ = ask([busy, Reply(text="x")], retry=Retry(first=1.0), stop=clock)
    assert answer.text == "x"
    assert 37 <= clock.now <= 39


def test_others_wait_too(clock: Clock) -> None:
    replies = [Reply("status", "", 429, {"Retry-After": "50"}), Reply(text="x"), Reply(text="y")]
    with serving(lambda body, number: replies[number]) as server:
        endpoint = Endpoint(server.url, "m", retry=Retry(tries=1), stop=clock, timeout=5.0)
        with pytest.raises(GaveUp):
            endpoint.chat(ASK)
        endpoint.chat(ASK)
    assert clock.now >= 50


def test_too_long_is_not_waited_for(clock: Clock) -> None:
    error, server, _ = ask([Reply("status", "", 503, {"Retry-After": "7200"})], stop=clock)
    assert type(error) is GaveUp
    assert "7200 s" in str(error)
    assert (clock.waits, len(server.bodies)) == ([], 1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("12", 12.0), ("0.5", 0.5), ("", None), ("soon", None), ("-3", None), ("Fri, 32 Foo", None)]
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}) == seconds


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 97 < retry_after({"retry-after": later}) <= 100
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


def test_whoever_waits_can_be_stopped() -> None:
    stop = threading.Event()
    stop.set()
    error, server, _ = ask([Reply(text="x")], stop=stop)
    assert type(error) is Stopped
    assert server.bodies == []


# Schemas


def test_a_schema_is_sent_where_it_is_taken() -> None:
    with serving(lambda body, number: Reply(text="{}")) as server:
        endpoint = Endpoint(server.url, "m", extra={"temperature": 0})
        assert endpoint.takes_schema is None
        endpoint.chat(ASK, {"type": "object"})
    assert endpoint.takes_schema is True
    form = server.bodies[0]["response_format"]
    assert form["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert server.bodies[0]["temperature"] == 0


def test_a_schema_is_left_out_where_it_is_not() -> None:
    def answering(body: dict[str, Any], number: int) -> Reply:
        return Reply("status", "no response_format", 400) if "response_format" in body else Reply(text="{}")

    with serving(answering) as server:
        endpoint = Endpoint(server.url, "m")
        assert endpoint.chat(ASK, {"type": "object"}).usage.requests == 2
        assert endpoint.chat(ASK, {"type": "object"}).usage.requests == 1
    assert endpoint.takes_schema is False
    assert ["response_format" in body for body in server.bodies] == [True, False, False]


def test_a_refusal_of_the_content_stays_one() -> None:
    with serving(lambda body, number: Reply(text="{}") if number == 0 else Reply("status", "no", 400)) as server:
        endpoint = Endpoint(server.url, "m")
        endpoint.chat(ASK, {})
        with pytest.raises(Refused):
            endpoint.chat(ASK, {})
        assert len(server.bodies) == 2
        fresh = Endpoint(server.url, "m")
        with pytest.raises(Refused) as caught:
            fresh.chat(ASK, {})
    assert caught.value.usage.requests == 2
    assert fresh.takes_schema is None


SCHEMA_REFUSED = [
    (500, "body.response_format.type: Input should be 'text'", 1),
    (500, "Internal Server Error", 2),  # who knows: it may have been chance
    (503, "no grammar for this json_schema", 1),
    (501, "not implemented", 1),
    (404, "No endpoints found that can handle the requested parameters.", 1),
    (405, "", 1),
    (422, "extra field", 1),
]


@pytest.mark.parametrize(("status", "said", "asked"), SCHEMA_REFUSED)
def test_a_schema_is_left_out_however_it_is_refused(status: int, said: str, asked: int) -> None:
    def answering(body: dict[str, Any], number: int) -> Reply:
        return Reply("status", said, status) if "response_format" in body else Reply(text="{}")

    with serving(answering) as server:
        endpoint = Endpoint(server.url, "m", retry=AT_ONCE)
        assert endpoint.chat(ASK, {}).usage.requests == asked + 1
        assert endpoint.chat(ASK, {}).usage.requests == 1
    assert endpoint.takes_schema is False


@pytest.mark.parametrize(("status", "kind", "asked"), [(401, Unusable, 1), (404, Unusable, 2), (503, GaveUp, 4)])
def test_not_every_failure_is_the_schemas(status: int, kind: type, asked: int) -> None:
    with serving(lambda body, number: Reply("status", "no", status)) as server:
        endpoint = Endpoint(server.url, "m", retry=AT_ONCE)
        with pytest.raises(kind):
            endpoint.chat(ASK, {})
    assert (len(server.bodies), endpoint.takes_schema) == (asked, None)


def test_an_answer_that_streams_all_the_same_is_read() -> None:
    events = [
        {"choices": [{"delta": {"content": text}, "finish_reason": end}]} for text, end in (("a", None), ("b", "stop"))
    ]
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    answer, server, _ = ask([Reply("raw", stream, headers={"Content-Type": "text/event-stream"})])
    assert (answer.text, answer.finish, len(server.bodies)) == ("ab", "stop", 1)
    assert server.bodies[0]["stream"] is False


# Budgets


def test_content_in_parts_and_refusals_are_read() -> None:
    parts = {"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}
    answer, _, _ = ask([Reply("raw", json.dumps({"choices": [parts]}))])
    assert (answer.text, answer.finish, answer.usage) == ("ab", "", Usage(1))
    answer, _, _ = ask([Reply(refusal="no", finish="content_filter")])
    assert (answer.refusal, answer.finish) == ("no", "content_filter")


@pytest.mark.parametrize(
    ("limits", "asked", "words"),
    [
        ({"requests": 3}, 3, "3 requests"),
        ({"tokens": 330}, 3, "330 tokens"),  # 110 each
        ({"tokens": 340}, 3, "340 tokens"),
        ({"money": 0.001, "price": Price(2.0, 30.0)}, 2, "0.001 money"),  # 200e-6 + 300e-6 each
        ({"requests": 0}, 0, "0 requests"),
    ],
)
def test_a_budget_stops(limits: dict[str, Any], asked: int, words: str) -> None:
    with serving(lambda body, number: Reply(text="x")) as server:
        endpoint = Endpoint(server.url, "m", budget=Budget(**limits))
        for _ in range(asked):
            endpoint.chat(ASK)
        with pytest.raises(Spent, match=words):
            endpoint.chat(ASK)
    assert len(server.bodies) == asked
    assert endpoint.budget.spent.tokens == 110 * asked


def in_threads(work: Callable[[], None], count: int) -> None:
    """Do work so many times at once."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_threads_keep_to_a_budget() -> None:
    outcomes: list[str] = []
    with serving(lambda body, number: Reply(text="x", delay=0.02)) as server:
        endpoint = Endpoint(server.url, "m", budget=Budget(tokens=110 * 10 + 50))

        def work() -> None:
            for _ in range(5):
                try:
                    outcomes.append(endpoint.chat(ASK).text)
                except Spent:
                    outcomes.append("spent")

        in_threads(work, 8)
    assert outcomes.count("x") == 10 == len(server.bodies)
    assert server.most_at_once > 1


def test_a_budget_needs_the_endpoints_counts() -> None:
    with serving(lambda body, number: Reply(text="x", usage=None)) as server:
        endpoint = Endpoint(server.url, "m", budget=Budget(tokens=1000))
        endpoint.chat(ASK)
        with pytest.raises(Spent, match="budget in tokens"):
            endpoint.chat(ASK)
        free = Endpoint(server.url, "m", budget=Budget(requests=2))
        assert [free.chat(ASK).usage for _ in range(2)] == [Usage(1)] * 2


def test_what_was_spent_before_counts() -> None:
    budget = Budget(tokens=1000, price=Price(1, 1))
    budget.add(Usage(1, 400, 500, 0.1))
    budget.add(Usage(1, 50, 50, 0.1))
    assert budget.spent == Usage(2, 450, 550, 0.2)
    assert "1000 tokens is spent" in budget.reserve()


def test_after_a_resumption_the_first_request_goes_alone() -> None:
    """What requests cost on average before, failed ones included, says little of what the next ones will cost."""
    budget = Budget(tokens=213_000)
    budget.add(Usage(1000, 190_000, 10_000))
    with serving(lambda body, number: Reply(text="x", usage=(1900, 100), delay=0.05)) as server:
        endpoint = Endpoint(server.url, "m", budget=budget)
        outcomes: list[str] = []

        def work() -> None:
            try:
                outcomes.append(endpoint.chat(ASK).text)
            except Spent:
                outcomes.append("spent")

        in_threads(work, 16)
    assert outcomes.count("x") == 6
    assert endpoint.budget.spent.tokens == 200_000 + 6 * 2000


def test_answers_that_cannot_be_encoded_or_counted_are_mended() -> None:
    broken = '{"choices": [{"message": {"content": "a star \\ud83d."}}], "usage": {"prompt_tokens": 1e999}}'
    with serving(lambda body, number: Reply("raw", broken)) as server:
        answer = Endpoint(server.url, "m").chat(ASK)
    assert (answer.text, answer.usage) == ("a star ?.", Usage(1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Budget(requests=-1), "-1 requests"),
        (lambda: Budget(money=3.0), "needs a price"),
        (lambda: Price(-1, 0), "price"),
        (lambda: Retry(tries=0), "tries 0"),
        (lambda: Retry(first=-1.0), "first -1"),
        (lambda: Endpoint("ftp://a", "m"), "ftp://a"),
        (lambda: Endpoint("localhost:8000", "m"), "localhost:8000"),
        (lambda: Endpoint("http://[::1/v1", "m"), "not an address"),
        (lambda: Endpoint("http://localhost:80a0/v1", "m"), "80a0/v1: not an address"),
        (lambda: Endpoint("http://a", ""), "not named"),
        (lambda: Endpoint("http://a", "m", timeout=0), "timeout 0"),
        (lambda: Endpoint("http://a", "m", extra={"stream": True}), "stream"),
        (lambda: Endpoint("http://a", "m", key_env="NO_SUCH_KEY"), "key_env NO_SUCH_KEY"),
    ],
)
def test_bad_settings(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://a/v1", "http://a/v1/chat/completions"),
        ("http://a/v1/", "http://a/v1/chat/completions"),
        ("https://a/x/chat/completions?api-version=1", "https://a/x/chat/completions?api-version=1"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert chat_address(given) == address
    assert "api-version" not in Endpoint(given, "m").shown


# The key


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


def test_the_key_is_nowhere(everything_logged: pytest.LogCaptureFixture) -> None:
    echo = Reply("status", f'{{"error": {{"message": "Incorrect key: {KEY}"}}}}', 401)
    error, _, endpoint = ask([echo])
    assert "Incorrect key: [key]" in str(error)
    answer, _, _ = ask([Reply(text=f"you are {KEY}", refusal=f"{KEY}?")])
    assert (answer.text, answer.refusal) == ("you are [key]", "[key]?")
    gave_up, server, _ = ask([Reply("status", f"Bearer {KEY}", 500)])
    assert server.keys[0] == f"Bearer {KEY}"
    for shown in (repr(endpoint), str(vars(endpoint)), repr(error), repr(gave_up), everything_logged.text):
        assert KEY not in shown
    with pytest.raises(TypeError):
        pickle.dumps(endpoint)


def test_addresses_with_passwords_are_refused_without_showing_them() -> None:
    for address in (
        f"https://user:{KEY}@a/v1",
        f"user:{KEY}@a/v1",
        f"ftp://a/v1?key={KEY}",
        f"ftp://a/v1#{KEY}",
        f"http://user:{KEY}@a/v1?next=http://b/",
        f"http://user:{KEY}@a?u=x://y@z",
        f"http://user:{KEY}/more@a/v1",
        f"http://user:1?{KEY}@a/v1",
        f"http:///user:{KEY}@a/v1",
        f"http:\\\\user:{KEY}@a/v1",
    ):
        with pytest.raises(UserError) as caught:
            Endpoint(address, "m")
        assert KEY not in str(caught.value)


def test_keys_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "two words")
    with pytest.raises(UserError, match="MY_KEY holds no key") as caught:
        Endpoint("http://a", "m", key_env="MY_KEY")
    assert "two words" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    error, server, _ = ask([Reply("status", "", 401)])
    assert server.keys == [None]
    assert "set OPENAI_API_KEY" in str(error)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://api.example.org/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://api.example.org/v1", False),
        ("http://localhost.example.org/v1", False),
        ("http://10.0.0.2/v1", False),
    ],
)
def test_what_can_be_read_on_its_way(url: str, private: bool) -> None:
    assert is_private(url) is private


def test_the_default_key_goes_over_no_open_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogview3.prompts.endpoint.is_private", lambda url: False)
    error, server, _ = ask([Reply("status", "", 401)])
    assert server.keys == [None]
    assert "OPENAI_API_KEY goes over https alone unless it is named" in str(error)
    _, server, _ = ask([Reply(text="yes")], key_env="OPENAI_API_KEY")
    assert server.keys == [f"Bearer {KEY}"]


def test_the_library_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    with pytest.raises(UserError, match=r"cogview3\[captions\]"):
        Endpoint("http://a", "m")
