"""Drawing on Ray Serve: replicas of the model, one to a GPU, behind the one queue of this process.

The application stays what it is: API, page, keys, limits and fairness are here, and pictures are drawn wherever the
cluster has a replica. Replicas outlive this process where the cluster does.
"""

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from cogview3 import __version__
from cogview3.errors import UserError, one_line
from cogview3.serving.engine import Engine
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Closing, Drawn, Job, Order, Partial
from cogview3.serving.queue import Limits, Queue
from cogview3.serving.sizes import Sizes

if TYPE_CHECKING:
    from cogview3.serving.pipelines import Pipelines

PROGRESS_SECONDS = 0.5
"""After which a replica tells how far a picture is."""

TRIES = 3
"""Replicas that may be lost with a picture before it is given up."""

MORE_SECONDS, FEWER_SECONDS = 30.0, 600.0
"""That requests must wait until there is another replica, and that replicas must idle until there is one less."""

DEPLOYMENT = "painter"


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, `least` always and up to `most` when requests wait, and what each takes."""

    least: int = 1
    most: int = 1
    gpus: float = 0.0
    cpus: float = 1.0


class Replica:
    """A model in a process of its own, somewhere in the cluster: an `Engine` that Ray Serve calls.

    `mode` is loaded first, and `loopback` tells that the cluster is of one machine and has to stay there.
    """

    async def __init__(
        self, pipelines: "Pipelines", mode: str, relays: int, limits: Limits, identity: str, loopback: bool = False
    ) -> None:
        if loopback:
            _stay_on_loopback()
        self._engine = Engine(pipelines, limits, Metrics())
        self._about = await asyncio.to_thread(self._engine.load, mode, relays), identity
        self._engine.start()

    async def about(self) -> tuple[Sizes, str]:
        """The sizes that it draws, and its identity."""
        return self._about

    async def draw(self, order: Order, client: str) -> AsyncIterator[tuple[int, int] | Partial | Drawn | Exception]:
        """Draw a picture: steps done and in all now and then, unfinished pictures, and last the picture or its error.

        Whoever closes the generator cancels the picture.
        """
        (job,) = self._engine.submit([order], client)
        seen = 0
        try:
            while True:
                event: Partial | tuple[()] | None = ()
                with suppress(TimeoutError):
                    event = await asyncio.wait_for(job.events.get(), PROGRESS_SECONDS)
                if job.done > seen:
                    seen = job.done
                    yield job.done, job.steps
                if event is None:
                    break
                if event:
                    yield event
            try:
                yield await job.result
            except Exception as error:
                yield error
        finally:
            self._engine.cancel([job])


def deployment(
    pipelines: "Pipelines", mode: str, relays: int, limits: Limits, scale: Scale, identity: str, loopback: bool = False
) -> "Any":  # ray.serve.Application
    """The application of Ray Serve: replicas that take two batches each, so that the next waits where it is drawn."""
    from ray import serve

    made = serve.deployment(Replica).options(
        name=DEPLOYMENT,
        max_ongoing_requests=2 * limits.batch,
        autoscaling_config={
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": limits.batch,
            "upscale_delay_s": MORE_SECONDS,
            "downscale_delay_s": FEWER_SECONDS,
        },
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        graceful_shutdown_timeout_s=limits.seconds,  # a replica that is replaced finishes what it has begun
        graceful_shutdown_wait_loop_s=0.5,
        health_check_timeout_s=60,
        max_constructor_retry_count=2,
    )
    return made.bind(pipelines, mode, relays, limits, identity, loopback)


def _stay_on_loopback() -> None:
    """Have Ray Serve's server in this replica, which is begun after it, listen at 127.0.0.1 rather than everywhere."""
    from ray.serve._private import replica

    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))


class Cluster(Queue):
    """Hands what is queued to replicas, the next to whoever has room.

    Of `pipelines` only names are read here; the `batch` and `threads` of `limits` are those of each replica.
    """

    def __init__(self, pipelines: "Pipelines", limits: Limits, metrics: Metrics, scale: Scale) -> None:
        super().__init__(limits, metrics)
        self._pipelines, self._scale = pipelines, scale
        self._at_work: dict[Job, asyncio.Task[None]] = {}
        self._handle: Any = None
        self._own = False

    @override
    def load(self, mode: str, relays: int) -> Sizes:
        """Connect to the cluster of RAY_ADDRESS, or start one here, and have replicas in it.

        Replicas of the same model and settings that run there are taken over; others of the same name are replaced, a
        few at a time, while the rest of them draw on.
        """
        ray = import_ray()
        from ray import serve

        from cogview3.captions.engines import start_ray

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        name = "cogview3-" + re.sub(r"[^\w-]", "-", self._pipelines.name)
        identity = identity_of(self._pipelines, mode, relays, self.limits, self._scale)
        self._own = not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")
        if not ray.is_initialized():
            start_ray(ray)
        self._check_room(ray)
        serve.start(proxy_location="Disabled")
        running = serve.status().applications.get(name)
        if running is not None and running.status == "RUNNING":
            self._handle = serve.get_deployment_handle(DEPLOYMENT, name)
            sizes: Sizes
            sizes, other = self._handle.about.remote().result()
            if other == identity:
                return sizes
        loopback = {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
        application = deployment(self._pipelines, mode, relays, self.limits, self._scale, identity, loopback)
        try:
            self._handle = serve.run(application, name=name, route_prefix=None)
        except RuntimeError as error:
            raise UserError(f"--engine ray: the replicas did not start: {one_line(error)}") from None
        sizes, _ = self._handle.about.remote().result()
        return sizes

    def _check_room(self, ray: Any) -> None:
        """Refuse to wait for what the cluster lacks. Raises UserError."""
        there = ray.cluster_resources()
        for kind, each in (("GPU", self._scale.gpus), ("CPU", self._scale.cpus)):
            if each * self._scale.least > there.get(kind, 0):
                raise UserError(
                    f"--min-replicas {self._scale.least}: needs {each * self._scale.least:g} {kind}, and the Ray "
                    f"cluster has {there.get(kind, 0):g}; give fewer"
                )

    @property
    @override
    def running(self) -> int:
        return len(self._at_work)

    @override
    async def close(self) -> None:
        await super().close()
        if self._own:  # the cluster was started here
            import ray

            await asyncio.to_thread(ray.shutdown)

    def _stop(self, job: Job) -> None:
        if job in self._at_work:
            self._at_work[job].cancel()

    async def _run(self) -> None:
        """Hand out jobs; no more than all replicas could take, so that who is next is decided here."""
        most = 2 * self.limits.batch * self._scale.most
        while self._fresh or self._at_work or not self._closing:
            while self._fresh and len(self._at_work) < most:
                (job,) = self._fresh.take(1)
                self._at_work[job] = asyncio.create_task(self._follow(job))
            self._wake.clear()
            await self._wake.wait()

    async def _follow(self, job: Job) -> None:
        try:
            self._finish(job, await self._drawn(job))
        except Exception as error:
            self._finish(job, error)
        finally:
            del self._at_work[job]
            self._wake.set()

    async def _drawn(self, job: Job) -> Drawn | Exception:
        """A job's picture or error; drawn again, by the same seed, where its replica is lost."""
        from ray.exceptions import RayActorError

        shown, lost = 0, None
        for _ in range(TRIES):
            stream = self._handle.options(stream=True).draw.remote(job.order, job.client)
            try:
                async for event in stream:
                    if isinstance(event, Drawn):
                        return event
                    if isinstance(event, Closing):
                        break  # a replica that is being replaced
                    if isinstance(event, Exception):
                        return event
                    if isinstance(event, tuple):
                        job.done, job.steps = event
                    elif event.index >= shown:
                        shown = event.index + 1
                        job.events.put_nowait(event)
            except RayActorError as error:
                lost = error
            finally:
                stream.cancel()
        return RuntimeError(f"{TRIES} replicas were lost with this picture: {lost}")


def identity_of(pipelines: "Pipelines", mode: str, relays: int, limits: Limits, scale: Scale) -> str:
    """Of a model's files and of all that replicas are made with: another one means other replicas."""
    from cogview3.references import find

    folder = Path(find(pipelines.model).source)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    settings = (pipelines.model, pipelines.placed, mode, relays, asdict(limits), asdict(scale))
    return hashlib.sha256(repr((__version__, settings, listed)).encode()).hexdigest()


def import_ray() -> Any:
    """Ray with Ray Serve. Raises UserError where it is not installed."""
    try:
        import ray
        import ray.serve
    except ImportError:
        raise UserError('--engine ray needs Ray Serve; install it with pip install "cogview3[serve-ray]"') from None
    return ray
