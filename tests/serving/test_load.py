"""Many clients at once; odd connections; the real model for two minutes (slow)."""

import base64
import io
import os
import re
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from cogview3 import CogView3Pipeline
from cogview3.serving.server import MOST_CONNECTIONS, bind
from tests.serving import conftest
from tests.serving.conftest import Served, pixels, serving
from tests.serving.process import patient

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
PROMPTS = ["a red star", "a blue circle left of a star", "star", "circle"]


def ask(client: httpx.Client, prompt: str, seed: int) -> tuple[int, torch.Tensor | None]:
    answer = client.post("/v1/images/generations", json={"prompt": prompt, "seed": seed, "expand": False})
    if answer.status_code != 200:
        return answer.status_code, None
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return 200, pixels(Image.open(io.BytesIO(data)).convert("RGB"))


def test_fifty_clients_at_once_each_get_their_own_picture(served: Served) -> None:
    wanted = [(PROMPTS[i % 4], i % 3) for i in range(50)]
    with patient(served.url) as client, ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda each: ask(client, *each), wanted))
    own = {}
    for prompt, seed in set(wanted):
        generator = [torch.Generator().manual_seed(seed)]
        own[prompt, seed] = pixels(served.pipe(prompt, width=64, height=64, generator=generator).images[0])
    assert (own["star", 2] - own["circle", 0]).abs().max() > 1
    for each, (status, picture) in zip(wanted, answers, strict=True):
        assert status == 200
        assert (picture - own[each]).abs().max() <= 1


HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=60)


def test_idle_connections_are_closed(pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogview3.serving.server.HEADER_SECONDS", 0.2)
    with serving(pipe) as served, connect(served) as silent, connect(served) as slow:
        slow.sendall(HEAD)
        assert read_end(silent) == read_end(slow) == b""


def test_of_many_connections_the_oldest_idle_ones_give_way(
    pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cogview3.serving.server.MOST_CONNECTIONS", 10)
    monkeypatch.setattr("cogview3.serving.server.HEADER_SECONDS", 600)
    with serving(pipe) as served, ExitStack() as stack:
        idle = [stack.enter_context(connect(served)) for _ in range(30)]
        with patient(served.url) as client:
            assert ask(client, "star", 1)[0] == 200  # there is room for who asks for something
        assert [read_end(each) for each in idle[:20]] == [b""] * 20


def test_slow_and_broken_bodies_do_no_harm(pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(pipe) as served:
        with connect(served) as cut:
            cut.sendall(HEAD + b"Content-Length: 50\r\n\r\n{")
        with monkeypatch.context() as patch, connect(served) as slow:
            patch.setattr("cogview3.serving.app.BODY_SECONDS", 0.2)
            patch.setattr("cogview3.serving.app.BODY_RATE", 2**40)
            slow.sendall(HEAD + b"Content-Length: 50\r\n\r\n{")
            assert b" 408 " in slow.recv(100)
        with patient(served.url) as client:
            assert ask(client, "star", 1)[0] == 200


def test_a_client_that_does_not_read_is_given_up(pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(host: str, port: int) -> socket.socket:
        listener = bind(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    monkeypatch.setattr(conftest, "bind", small)
    monkeypatch.setattr("cogview3.serving.server.SEND_SECONDS", 0)
    body = b'{"prompt": "star", "n": 4, "size": "128x128"}'
    with serving(pipe) as served, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        deaf.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        with suppress(ConnectionResetError):
            while part := deaf.recv(4096):
                answer += part
        length = re.search(rb"content-length: (\d+)", answer)
        assert length
        assert len(answer) < int(length[1])
        with patient(served.url) as client:
            assert client.get("/health").status_code == 200


@pytest.mark.slow
def test_ten_thousand_idle_connections(pipe: CogView3Pipeline) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(30_000, FILES[1]), FILES[1]))
    try:
        with serving(pipe) as served, ExitStack() as stack:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(10_000):
                stack.enter_context(connect(served))
            with patient(served.url) as client:
                assert ask(client, "star", 1)[0] == 200
            assert len(os.listdir("/proc/self/fd")) - before <= 10_000 + MOST_CONNECTIONS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, FILES)


def read_end(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""


def test_the_service_is_of_this_machine_alone_unless_told(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cogview3.cli.serve import _tell_address
    from cogview3.serving.keys import Key, Keys

    keyed: Any = Keys([Key("ann", "sha256:" + "0" * 64)])
    for host, keys, warned in (
        ("127.0.0.1", Keys(), False),
        ("::1", Keys(), False),
        ("localhost", Keys(), False),
        ("0.0.0.0", Keys(), True),
        ("0.0.0.0", keyed, False),
    ):
        _tell_address(host, 8000, keys, "scenes", "4+1")
        assert ("warning" in capsys.readouterr().err) == warned
