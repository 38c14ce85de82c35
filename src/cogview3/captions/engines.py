"""Where tasks run: in processes of this machine, or in actors of a Ray cluster. Both run the same function.

A worker that crashes is restarted and its shard taken up again; a shard whose workers crashed too often is given up.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from cogview3.captions.recaption import Engine, GivenUp, Message, Task, Told, caption_shard
from cogview3.captions.rows import CannotGoOn, Writer
from cogview3.config import UserError
from cogview3.data.groups import Shard
from cogview3.data.parallel import begin_worker, interrupts_held
from cogview3.errors import one_line

TRIES = 3
"""Workers that may crash at a shard before it is given up."""


def make_engine(name: str, workers: int | None, tries: int = TRIES, gpus: int = 0) -> Engine:
    """The engine "local" or "ray" with so many workers, by default one a GPU, or one CPU of the cluster on Ray.

    `gpus` are those that local workers may use; for "ray", whether each actor takes one of the cluster's. Raises
    UserError for another name, a number below 1, or where Ray is not installed.
    """
    for what, value in (("workers", workers), ("tries", tries)):
        if value is not None and value < 1:
            raise UserError(f"{what} {value}: give 1 or more")
    if name == "local":
        return partial(local, workers=workers or max(1, gpus), tries=tries)
    if name == "ray":
        _import_ray()
        return partial(on_ray, workers=workers, tries=tries, gpu=gpus > 0)
    raise UserError(f"engine {name}: give local or ray")


class _Attempts:
    """Shards that wait, and how often each one's worker crashed."""

    def __init__(self, task: Task, shards: Sequence[Shard], tries: int) -> None:
        self._shards, self._tries = shards, tries
        self._has_budget = task.job.has_budget
        self.waiting = deque(range(len(shards)))
        self._crashes: Counter[int] = Counter()

    def next(self) -> tuple[int, Shard]:
        number = self.waiting.popleft()
        return number, self._shards[number]

    def crashed(self, number: int, reason: str) -> Iterator[tuple[int, Message]]:
        """Let a shard be tried again, or give it up. Raises CannotGoOn where what was spent is lost with the worker."""
        if self._has_budget:
            raise CannotGoOn(f"{reason}, and with it the count of what it spent; run again with what is left to spend")
        self._crashes[number] += 1
        if self._crashes[number] < self._tries:
            self.waiting.appendleft(number)
        else:
            yield number, GivenUp(f"{reason}; tried {self._tries} times")


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    place: int
    shard: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Broke:
    """What ended a worker, as far as it could tell; `hopeless` where others would fare no better."""

    reason: str
    hopeless: type[Exception] | None = None


def local(task: Task, shards: Sequence[Shard], workers: int = 1, tries: int = TRIES) -> Iterator[tuple[int, Message]]:
    """Do the tasks in processes of their own, a shard at a time each."""
    attempts = _Attempts(task, shards, tries)
    count = min(workers, len(shards))
    threads = max(1, (os.cpu_count() or 1) // count)
    running: list[_Worker] = []
    try:
        running += [_start(task, place, threads) for place in range(count)]
        while True:
            for worker in running:
                if worker.shard is None and attempts.waiting:
                    worker.shard, shard = attempts.next()
                    with suppress(OSError):  # it crashed; that its pipe is closed will be seen below
                        worker.pipe.send(shard)
            busy = {worker.pipe: worker for worker in running if worker.shard is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker = busy[pipe]
                number = worker.shard
                message = _receive(worker)
                if isinstance(message, _Broke):
                    if message.hopeless:
                        raise message.hopeless(message.reason)
                    worker.reason = message.reason
                elif message is None:
                    running.remove(worker)
                    yield from attempts.crashed(number, _ending(worker))
                    if attempts.waiting:
                        running.append(_start(task, worker.place, threads))
                else:
                    if not isinstance(message, Told):
                        worker.shard = None
                    yield number, message
    finally:
        for worker in running:
            worker.pipe.close()  # an idle one then ends by itself
            if worker.shard is not None:
                worker.process.terminate()
        for worker in running:
            worker.process.join(10)
            worker.process.kill()
            worker.process.join()


def _start(task: Task, place: int, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(task, place, threads, theirs), daemon=True)
    with interrupts_held():
        process.start()
    theirs.close()
    return _Worker(process, ours, place)


def _receive(worker: _Worker) -> Message | _Broke | None:
    """The next message; None where the worker is no more."""
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        worker.pipe.close()
        return None


def _ending(worker: _Worker) -> str:
    code = worker.process.exitcode
    if worker.reason:
        return worker.reason
    return f"the worker was ended by {signal.Signals(-code).name}" if code < 0 else f"the worker ended with {code}"


def _serve(task: Task, place: int, threads: int, pipe: Connection) -> None:
    """Of a worker process: load, then do shards until the pipe is closed."""
    begin_worker()
    if "torch" in sys.modules and "OMP_NUM_THREADS" not in os.environ:
        sys.modules["torch"].set_num_threads(threads)
    try:
        writer = _load(task, place)
        while True:
            for message in caption_shard(pipe.recv(), task, writer):
                pipe.send(message)
    except (EOFError, BrokenPipeError):
        return
    except (UserError, CannotGoOn) as error:
        pipe.send(_Broke(str(error), UserError if isinstance(error, UserError) else CannotGoOn))
    except Exception as error:
        pipe.send(_Broke(one_line(error, typed=True)))


def _load(task: Task, place: int) -> Writer:
    """The task's writer. Raises UserError or CannotGoOn, whatever is wrong: other shards would fare no better."""
    try:
        return task.job.load(place)
    except (UserError, CannotGoOn):
        raise
    except Exception as error:
        raise CannotGoOn(
            f"the model cannot be loaded ({one_line(error, typed=True)}); fix that, then run again"
        ) from error


class _Actor:
    """Of a Ray worker: loads with its first shard."""

    def __init__(self, task: Task, place: int) -> None:
        self._task, self._place = task, place
        self._writer: Writer | None = None

    def caption(self, shard: Shard) -> Iterator[Message]:
        """Caption one shard in this worker; see `caption_shard`."""
        if self._writer is None:
            self._writer = _load(self._task, self._place)
        yield from caption_shard(shard, self._task, self._writer)


def on_ray(
    task: Task, shards: Sequence[Shard], workers: int | None = None, tries: int = TRIES, gpu: bool = False
) -> Iterator[tuple[int, Message]]:
    """Do the tasks in actors of the Ray cluster of RAY_ADDRESS, else of one started here for the time being.

    Raises UserError where actors are to have GPUs and the cluster has none.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        start_ray(ray)
    attempts = _Attempts(task, shards, tries)
    running: dict[Any, tuple[Any, int, int]] = {}  # stream of messages -> actor, its place, shard
    actors: list[Any] = []
    try:
        resource = "GPU" if gpu else "CPU"
        if gpu and not ray.cluster_resources().get(resource):
            raise UserError("the Ray cluster has no GPU; give --device cpu, or start it with GPUs")
        free = int(ray.available_resources().get(resource, 0))
        kind = ray.remote(**({"num_gpus": 1} if gpu else {"num_cpus": 1}), max_restarts=0)(_Actor)

        def begin(actor: Any, place: int) -> None:
            if actor is None:
                actors.append(actor := kind.remote(task, 0 if gpu else place))  # an actor sees its own GPU alone
            number, shard = attempts.next()
            running[actor.caption.options(num_returns="streaming").remote(shard)] = (actor, place, number)

        for place in range(min(workers or max(1, free), len(shards))):
            begin(None, place)
        while running:
            (stream, *_), _ = ray.wait(list(running), num_returns=1)
            actor, place, number = running[stream]
            try:
                message = ray.get(next(stream))
            except StopIteration:
                del running[stream]
            except ray.exceptions.RayError as error:
                del running[stream]
                yield from attempts.crashed(number, _told_by_ray(ray, error))
                ray.kill(actor)
                actor = None
            else:
                yield number, message
                continue
            if attempts.waiting:
                begin(actor, place)
            elif actor is not None:
                ray.kill(actor)  # there may be others, with a shard, that wait for its place
    finally:
        for actor in actors:
            ray.kill(actor)
        if started:
            ray.shutdown()


def start_ray(ray: Any, **options: Any) -> None:
    """Connect to the cluster of RAY_ADDRESS; without it start one that this machine alone can reach.

    By default all of its processes would listen on every interface. `options` are of `ray.init`. SIGTERM ends this
    process as before, rather than by Ray's own handler.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    fixed = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    if not os.environ.get("RAY_ADDRESS"):
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what Ray calls listening beyond loopback, on any system
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # where it was imported before
        options["_node_ip_address"] = "127.0.0.1"
    try:
        ray.init(**fixed, **options)
    except Exception as error:  # a plain one where its processes do not come up in time
        raise ConnectionError(f"Ray did not start: {one_line(error)}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def cluster_gpus() -> int:
    """GPUs of the Ray cluster of RAY_ADDRESS. Raises UserError where Ray is not installed."""
    ray = _import_ray()
    ray.init(log_to_driver=False, configure_logging=False)
    try:
        return int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


def _told_by_ray(ray: Any, error: Exception) -> str:
    """Why an actor failed. Raises what others would meet as well."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError | CannotGoOn):
        raise type(cause)(str(cause)) from None
    if isinstance(error, ray.exceptions.RayActorError):
        return "the worker died"
    return one_line(cause or error, typed=True)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError('the engine ray needs Ray; install it with pip install "cogview3[ray]"') from None
    return ray
