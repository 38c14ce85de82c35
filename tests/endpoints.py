"""A chat endpoint on loopback that answers as it is told to, in threads of its own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-Very-Secret-Key-0123456789"


@dataclass
class Reply:
    """What a request is answered with.

    `kind`: "answer" (a completion with `text`), "status" (an error), "raw" (`text` as the body), "close" (nothing),
    "cut" (a body that ends early), "drip" (a body that goes on and on), "trickle" (headers that do), "silent" (nothing,
    until the client leaves).
    """

    kind: str = "answer"
    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    usage: tuple[int, int] | None = (100, 10)
    finish: str = "stop"
    refusal: str | None = None
    delay: float = 0.0


@dataclass
class Server:
    """Address and log of a running endpoint."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    idempotency_keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    answered: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0


Answering = Callable[[dict[str, Any], int], Reply]
"""Maps a request's body and number, from 0 on, to its reply."""


@contextmanager
def serving(answering: Answering) -> Iterator[Server]:
    """A server on a free port of loopback, until the block ends."""
    lock, state = threading.Lock(), {"now": 0}
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.keys.append(self.headers.get("Authorization"))
                server.idempotency_keys.append(self.headers.get("Idempotency-Key"))
                server.paths.append(self.path)
                state["now"] += 1
                server.most_at_once = max(server.most_at_once, state["now"])
            try:
                reply = answering(body, number)
                over.wait(10 if reply.kind == "silent" else reply.delay)
            finally:
                with lock:
                    state["now"] -= 1  # before the client can know and ask again
            try:
                self.reply(reply, body)
            except OSError:
                self.close_connection = True

        def reply(self, reply: Reply, body: dict[str, Any]) -> None:
            if reply.kind in ("close", "silent"):
                self.close_connection = True
                return
            content = reply.text.encode()
            if reply.kind == "trickle":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                self.drip()
                return
            if reply.kind == "answer":
                message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
                data: dict[str, Any] = {"choices": [{"message": message, "finish_reason": reply.finish}]}
                if reply.usage is not None:
                    data["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), reply.usage, strict=True))
                content = json.dumps(data).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + (1000 if reply.kind in ("cut", "drip") else 0)))
            self.end_headers()
            self.wfile.write(content)
            if reply.kind == "drip":
                self.drip()
            if reply.kind == "cut":
                self.close_connection = True
            elif reply.kind == "answer":
                with lock:
                    server.answered.append(body)

        def drip(self) -> None:
            self.close_connection = True
            while not over.is_set():
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.01)

        def log_message(self, *arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        http.shutdown()
        http.server_close()
        thread.join()
