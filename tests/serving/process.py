"""The command in a process of its own."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx


def patient(url: str) -> httpx.Client:
    """A client for many threads that waits as long as it takes."""
    return httpx.Client(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None))


class Process:
    """`cogview3 serve`, of `scenes@4+1` unless told, with one thread for the mathematics.

    Attributes:
        url: where it is.
        pid: its number.
        log: what it says.
    """

    def __init__(self, folder: Path, *model: str) -> None:
        self.log = log = folder / "log"
        options = ["--port", "0", "--threads", "1", "--no-page"]
        command = [sys.executable, "-m", "cogview3", "serve", *(model or ("scenes", "--fast")), *options]
        with log.open("w") as errors:
            self._process = subprocess.Popen(command, stderr=errors, env={**os.environ, "XDG_CACHE_HOME": str(folder)})
        while "ready" not in (text := log.read_text()):
            assert self._process.poll() is None, text
            time.sleep(0.2)
        self.pid = self._process.pid
        self.url = re.findall(r"http://\S+", text)[-1]
        with patient(self.url) as client:
            while True:
                try:
                    client.get("/ready")
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def processor_seconds(self) -> float:
        """Of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, how: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        return self._process.wait()
