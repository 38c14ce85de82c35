"""The bundled model under load, in a process of its own: minutes. `pytest -m slow -s` prints the figures."""

import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch

from cogview3 import CogView3Pipeline
from tests.serving.conftest import pixels
from tests.serving.process import Process, patient
from tests.serving.test_load import PROMPTS, ask

pytestmark = pytest.mark.slow

BATCH, CLIENTS, SECONDS = 4, 50, 120
WANTED = [(f"a large {color} circle", seed) for color in ("red", "blue") for seed in range(BATCH)]


@pytest.fixture
def process(start: Callable[..., Process]) -> Process:
    return start()


def test_two_minutes_of_fifty_clients(process: Process) -> None:
    """No error but 429, every picture right, throughput beside the bare pipeline's."""
    bare = CogView3Pipeline.from_pretrained("scenes", mode="4+1")
    bare.set_progress_bar_config(disable=True)
    expected, before = draw(bare, 2)
    counts: Counter[int] = Counter()
    end, used = time.monotonic() + SECONDS, process.processor_seconds()

    def work(number: int) -> None:
        while time.monotonic() < end:
            each = WANTED[(number + counts[200]) % len(WANTED)]
            status, picture = ask(client, *each)
            counts[status] += 1
            if status == 200:
                assert (picture - expected[each]).abs().max() <= 1

    begun = time.monotonic()
    with patient(process.url) as client, ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))
    seconds, used = time.monotonic() - begun, process.processor_seconds() - used
    _, after = draw(bare, 2)
    alone = [sum(pair) / 2 for pair in zip(before, after, strict=True)]
    print(
        f"\n{CLIENTS} clients, {seconds:.0f} s: answers {dict(counts)}; "
        f"pictures a second, served to bare {counts[200] / seconds / alone[0]:.2f}; "
        f"pictures a second of processor time, served to bare {counts[200] / used / alone[1]:.2f}"
    )
    assert set(counts) <= {200, 429}
    assert counts[200] / used >= 0.9 * alone[1]


def draw(bare: CogView3Pipeline, rounds: int) -> tuple[dict, tuple[float, float]]:
    """All pictures wanted, by the bare pipeline in batches; how many a second, and a second of processor time."""
    drawn = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begun, used = time.monotonic(), time.process_time()
    for _ in range(rounds):
        for first in range(0, len(WANTED), BATCH):
            part = WANTED[first : first + BATCH]
            generators = [torch.Generator().manual_seed(seed) for _, seed in part]
            images = bare([prompt for prompt, _ in part], generator=generators).images
            drawn |= {each: pixels(image) for each, image in zip(part, images, strict=True)}
    torch.set_num_threads(threads)
    count = rounds * len(WANTED)
    return drawn, (count / (time.monotonic() - begun), count / (time.process_time() - used))


def test_memory_is_flat_over_five_hundred_requests(folder: Path, start: Callable[..., Process]) -> None:
    sizes, process = [], start(str(folder))
    with patient(process.url) as client:
        for number in range(500):
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "size": ("64x64", "128x128")[number % 2]}
            assert client.post("/v1/images/generations", json=body).status_code == 200
            sizes.append(process.memory())
    parts = [max(sizes[first : first + 100]) / 2**20 for first in range(0, 500, 100)]
    print("\nresident MiB, most in each hundred requests:", *(f"{part:.0f}" for part in parts))
    assert parts[-1] <= 1.05 * parts[1]


def test_the_first_partial_comes_early(process: Process) -> None:
    shares = []
    client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="unused", timeout=600)
    with client:
        for _ in range(6):
            begun = time.monotonic()
            events = client.images.generate(
                prompt="a large red circle", stream=True, partial_images=1, extra_body={"expand": False}
            )
            first, last = [time.monotonic() - begun for _ in events]
            shares.append(first / last)
    print("\nfirst partial over whole time:", *(f"{share:.2f}" for share in shares))
    assert statistics.median(shares[1:]) <= 0.3


def test_killed_and_started_again(process: Process, start: Callable[..., Process]) -> None:
    with patient(process.url) as client, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, client, *each) for each in WANTED[:4]]
        while not client.get("/v1/images/progress").json()["data"]:
            pass
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        assert all(each.exception() for each in asked)
    with patient(start().url) as client:
        assert ask(client, *WANTED[0])[0] == 200
