"""Many clients at once; odd connections; the real model for two minutes (slow)."""

import base64
import io
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from cogview3 import CogView3Pipeline
from tests.serving.conftest import Served, pixels, serving

PROMPTS = ["a red star", "a blue circle left of a star", "star", "circle"]


def ask(url: str, prompt: str, seed: int) -> tuple[int, torch.Tensor | None]:
    answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": prompt, "seed": seed}, timeout=600)
    if answer.status_code != 200:
        return answer.status_code, None
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return 200, pixels(Image.open(io.BytesIO(data)).convert("RGB"))


def test_fifty_clients_at_once_each_get_their_own_picture(served: Served) -> None:
    wanted = [(PROMPTS[i % 4], i % 3) for i in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda each: ask(served.url, *each), wanted))
    own = {}
    for prompt, seed in set(wanted):
        generator = [torch.Generator().manual_seed(seed)]
        own[prompt, seed] = pixels(served.pipe(prompt, width=64, height=64, generator=generator).images[0])
    for each, (status, picture) in zip(wanted, answers, strict=True):
        assert status == 200
        assert (picture - own[each]).abs().max() <= 1


def test_idle_and_broken_connections_do_no_harm(pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogview3.serving.server.HEADER_SECONDS", 0.2)
    monkeypatch.setattr("cogview3.serving.server.MOST_CONNECTIONS", 40)
    monkeypatch.setattr("cogview3.serving.app.BODY_SECONDS", 0.2)
    with serving(pipe) as served:
        port = int(served.url.rpartition(":")[2])
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        for each in idle:
            each.settimeout(10)
            assert read_end(each) == b""  # closed by the server: at once, or when its patience ends
            each.close()
        head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            slow.sendall(head + b"Content-Length: 50\r\n\r\n{")
            assert b" 408 " in slow.recv(100)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as cut:
            cut.sendall(head + b"Content-Length: 50\r\n\r\n{")
        assert ask(served.url, "star", 1)[0] == 200


def read_end(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except ConnectionResetError:
        return b""


@pytest.mark.slow
def test_two_minutes_of_fifty_clients(tmp_path: Path) -> None:
    """No error but 429, right pictures, flat memory, throughput beside the bare pipeline's; kill -9 and restart."""
    process, url = start(tmp_path)
    try:
        wanted = [(f"a large {color} circle", seed) for color in ("red", "blue") for seed in range(4)]
        end, counts, samples = time.monotonic() + 120, Counter(), []

        def work(number: int) -> None:
            while time.monotonic() < end:
                status, picture = ask(url, *wanted[number % 8])
                counts[status] += 1
                if status == 200 and number < 8:
                    samples.append((wanted[number], picture))
                samples_of_memory.append(memory(process.pid))

        samples_of_memory: list[int] = []
        begun = time.monotonic()
        with ThreadPoolExecutor(50) as pool:
            list(pool.map(work, range(50)))
        rate = counts[200] / (time.monotonic() - begun)
        assert set(counts) <= {200, 429}
        half = len(samples_of_memory) // 2
        assert max(samples_of_memory[half:]) <= 1.05 * max(samples_of_memory[:half])
        process.send_signal(signal.SIGKILL)
        process.wait()
        process, url = start(tmp_path)
        assert ask(url, *wanted[0])[0] == 200
    finally:
        process.terminate()
        assert process.wait(120) in (0, 143, -signal.SIGTERM)
    torch.set_num_threads(1)
    bare = CogView3Pipeline.from_pretrained("scenes", mode="4+1")
    bare.set_progress_bar_config(disable=True)
    begun = time.perf_counter()
    for _ in range(5):
        own = bare([wanted[i][0] for i in range(4)], generator=[torch.Generator().manual_seed(i) for i in range(4)])
    bare_rate = 20 / (time.perf_counter() - begun)
    print(f"served {counts}, {rate:.3f} pictures a second; the bare pipeline in batches of 4 {bare_rate:.3f}")
    expected = {wanted[i]: pixels(own.images[i]) for i in range(4)}
    for each, picture in samples:
        if each in expected:
            assert (picture - expected[each]).abs().max() <= 1
    assert rate >= 0.9 * bare_rate


def start(folder: Path) -> tuple[subprocess.Popen, str]:
    """A service of `scenes@4+1` in a process of its own."""
    errors = (folder / "log").open("w+")
    command = [sys.executable, "-m", "cogview3", "serve", "--fast", "--port", "0", "--threads", "1", "--no-page"]
    process = subprocess.Popen(command, stderr=errors, env={**os.environ, "XDG_CACHE_HOME": str(folder)})
    while "ready" not in (text := (folder / "log").read_text()):
        assert process.poll() is None, text
        time.sleep(0.2)
    url = re.findall(r"http://\S+", text)[-1]
    while True:
        try:
            httpx.get(f"{url}/ready")
            return process, url
        except httpx.ConnectError:
            time.sleep(0.1)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


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
