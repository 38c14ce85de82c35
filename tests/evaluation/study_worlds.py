"""Simulated studies: votes by Davidson's model, and a folder with pictures to judge."""

import itertools
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.study.build import Plan, build
from cogview3.evaluation.study.server import make_app
from tests.processes import Context

NAMES = ("base", "relay", "student")


def davidson_votes(
    strengths: Sequence[float], nu: float, annotators: int, tasks: int, prompts: int, seed: int
) -> list[dict[str, Any]]:
    """Votes of annotators who follow Davidson's model exactly; nu as evalica has it."""
    rng = np.random.default_rng(seed)
    names = [f"m{number}" for number in range(len(strengths))]
    pairs = list(itertools.combinations(range(len(strengths)), 2))
    votes = []
    for annotator in range(annotators):
        for number in range(tasks):
            first, second = rng.permutation(pairs[number % len(pairs)])
            chances = np.array([strengths[first], strengths[second], 0.0])
            chances[2] = 2 * nu * np.sqrt(strengths[first] * strengths[second])
            answers = [("left", "right", "tie")[rng.choice(3, p=chances / chances.sum())] for _ in range(2)]
            votes.append(
                {
                    "annotator": annotator,
                    "prompt": int(rng.integers(prompts)),
                    "left_system": names[first],
                    "right_system": names[second],
                    "expected": "",
                    "alignment": answers[0],
                    "aesthetics": answers[1],
                    "seconds": 5.0,
                }
            )
    return votes


def make_study(folder: Path, plan: Plan, prompts: int = 8) -> list[str]:
    """A study of three systems; their links' paths."""
    rng = np.random.default_rng(0)
    texts = ["a red star", "<script>alert(1)</script>", "שלום עולם, חתול אדום", "🎈 two balloons", "a & b"]
    texts += [f"prompt {number}" for number in range(prompts - len(texts))]
    told = PngInfo()
    told.add_text("model", "secret name of the system")
    sources = {name: folder.with_name(f"{folder.name}-{name}") for name in NAMES}
    for source in sources.values():
        source.mkdir(parents=True)
        for index in range(prompts):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1)
            Image.fromarray(pixels).save(source / f"{index:05d}.png", pnginfo=told)
    return build(folder, sources, [Prompt(text) for text in texts[:prompts]], plan)["links"]


class Server:
    """What `cogview3 study serve` serves, in a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = Context().Process(target=serve, args=(self.folder, self.port))
        self.process.start()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                httpx.get(self.url + "/static/study.css", timeout=2)
                return
            except httpx.TransportError:
                time.sleep(0.02)
        raise TimeoutError(self.url)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def serve(folder: Path, port: int) -> None:
    uvicorn.run(make_app(folder), host="127.0.0.1", port=port, log_level="error")
