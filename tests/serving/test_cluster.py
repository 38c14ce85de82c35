"""Replicas on Ray Serve: the queue before them in this process; and a real cluster of this machine (slow)."""

import asyncio
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cogview3 import CogView3Pipeline
from cogview3.models.modes import Mode, Sampling, write_sampling
from cogview3.serving.cluster import DEPLOYMENT, Cluster, Replica, Scale, deployment, identity_of
from cogview3.serving.metrics import Metrics
from cogview3.serving.orders import Canceled, Partial
from cogview3.serving.pipelines import Pipelines
from cogview3.serving.queue import Limits
from tests.serving.conftest import order, pixels, run
from tests.serving.process import Process, patient
from tests.serving.test_load import ask

ray = pytest.importorskip("ray")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of pydantic, as Ray Serve is imported
    serve = pytest.importorskip("ray.serve")
ROOT = Path(__file__).parents[2]


class Stream:
    """What a call of a replica gives, without Ray: its generator, which may break."""

    def __init__(self, events: AsyncIterator[Any], lost_after: int | None) -> None:
        self._events, self._left = events, lost_after

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Any:
        if self._left == 0:
            raise ray.exceptions.ActorDiedError
        if self._left is not None:
            self._left -= 1
        return await anext(self._events)

    def cancel(self) -> None:
        self._closing = asyncio.create_task(self._events.aclose())


class Handle:
    """A deployment's handle, without Ray.

    Attributes:
        losses: for each call to come, after how many events its replica is lost.
        calls: so far.
    """

    def __init__(self, replica: Replica) -> None:
        self.losses: list[int | None] = []
        self.calls = 0
        self._replica = replica
        self.draw = self

    def options(self, stream: bool) -> "Handle":
        return self

    def remote(self, *given: Any) -> Stream:
        self.calls += 1
        return Stream(self._replica.draw(*given), self.losses.pop(0) if self.losses else None)


@asynccontextmanager
async def clustered(pipe: CogView3Pipeline, **limits: Any) -> AsyncIterator[tuple[Cluster, Handle]]:
    """A cluster of one replica in this process."""
    limits_of = Limits(**{"threads": 1, **limits})
    replica = Replica.__new__(Replica)
    await replica.__init__({"2+2": pipe}, "2+2", 2, limits_of, "same")  # type: ignore[misc]
    cluster: Any = Cluster({"2+2": pipe}, limits_of, Metrics(), Scale())  # type: ignore[arg-type]
    cluster._handle = Handle(replica)
    cluster.start()
    try:
        yield cluster, cluster._handle
    finally:
        await cluster.close()
        await replica._engine.close()


def assert_same(image: Image.Image, expected: torch.Tensor) -> None:
    assert (pixels(image) - expected).abs().max() <= 1


def test_pictures_partials_and_errors_come_from_replicas(pipe: CogView3Pipeline, alone: Callable[..., Any]) -> None:
    expected = alone("star", 1)

    async def serve() -> None:
        async with clustered(pipe) as (cluster, _):
            drawn, wrong = cluster.submit([order("star", 1, partials=3), order(width=60)], "me")
            shown = []
            while (event := await drawn.events.get()) is not None:
                shown.append(event)
            assert [type(event) for event in shown] == [Partial] * 3
            assert_same((await drawn.result).image, expected)
            assert (drawn.done, drawn.steps) == (4, 4)
            with pytest.raises(ValueError, match="30"):
                await wrong.result
            assert cluster.running == 0

    run(serve())


def test_a_picture_whose_replica_is_lost_is_drawn_again(pipe: CogView3Pipeline, alone: Callable[..., Any]) -> None:
    expected = alone("star", 1)

    async def serve() -> None:
        async with clustered(pipe) as (cluster, handle):
            handle.losses = [2, 0]
            (job,) = cluster.submit([order("star", 1, partials=3)], "me")
            assert_same((await job.result).image, expected)
            indices = [job.events.get_nowait().index for _ in range(3)]
            assert indices == [0, 1, 2]
            assert handle.calls == 3
            handle.losses = [0, 0, 0]
            (job,) = cluster.submit([order("star", 1)], "me")
            with pytest.raises(RuntimeError, match="3 replicas"):
                await job.result

    run(serve())


def test_a_canceled_picture_is_canceled_in_its_replica(pipe: CogView3Pipeline) -> None:
    async def serve() -> None:
        async with clustered(pipe, batch=1) as (cluster, handle):
            long, *others = cluster.submit([order("star", 0, steps=1000), order("star", 1), order("star", 2)], "me")
            assert cluster.position(others[1]) == 2
            while not long.done:
                await asyncio.sleep(0.01)
            assert cluster.position(long) is None
            assert (cluster.running, cluster.waiting) == (2, 1)  # two batches of one; who is next is decided here
            cluster.cancel([long, others[1]])
            for job in (long, others[1]):
                with pytest.raises(Canceled):
                    await job.result
            await others[0].result
            assert long.done < 1000
            assert handle.calls == 2

    run(serve())


def test_the_deployment_is_made_as_told(folder: Path) -> None:
    pipelines, limits = Pipelines(str(folder)), Limits(batch=3, seconds=50, threads=2)
    scale = Scale(2, 5, gpus=1.0, cpus=1.0)
    made = deployment(pipelines, "2+2", 1, limits, scale, "same")._bound_deployment
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3)
    assert made.max_ongoing_requests == 6
    assert made.ray_actor_options["num_gpus"] == 1
    assert made._deployment_config.graceful_shutdown_timeout_s == 50


def test_other_files_or_settings_are_another_identity(folder: Path) -> None:
    def identity(batch: int = 4) -> str:
        return identity_of(Pipelines(str(folder)), "2+2", 1, Limits(batch=batch), Scale())

    first = identity()
    assert identity() == first
    assert identity(batch=5) != first
    write_sampling(Sampling(default="2+2", modes={"2+2": Mode(steps=3)}), folder)
    assert identity() != first


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray with four small CPUs on loopback; its sockets need a short path."""
    from cogview3.captions.engines import start_ray

    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 4, "object_store_memory": 100 * 2**20, "_temp_dir": place}
    try:
        try:
            start_ray(ray, **options)
        except ConnectionError:  # on a busy machine its processes may be too slow the first time
            ray.shutdown()
            start_ray(ray, **options)
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def connect(folder: Path, batch: int, scale: Scale) -> Cluster:
    made = Cluster(Pipelines(str(folder)), Limits(batch=batch, threads=1), Metrics(), scale)
    sizes = made.load("2+2", 2)
    assert (str(sizes.own), sizes.relays) == ("64x64", 2)
    return made


@pytest.mark.slow
def test_a_cluster_of_this_machine(
    cluster: Any, folder: Path, pipe: CogView3Pipeline, alone: Callable[..., Any]
) -> None:
    """Two replicas draw; one dies; both are replaced while pictures come; nothing listens beyond loopback."""
    import psutil

    expected = [alone("star", seed) for seed in range(4)]

    async def draw(engine: Any, seeds: list[int]) -> None:
        jobs = engine.submit([order("star", seed) for seed in seeds], "me")
        for seed, job in zip(seeds, jobs, strict=True):
            assert_same((await job.result).image, expected[seed])

    async def serve_all() -> None:
        first = await asyncio.to_thread(connect, folder, 2, Scale(2, 2))
        first.start()
        await draw(first, [0, 1, 2, 3] * 4)
        assert listening(psutil) == {"127.0.0.1"}
        again = await asyncio.to_thread(connect, folder, 2, Scale(2, 2))  # the process was restarted: taken over
        again.start()
        await draw(again, [0])
        work = asyncio.create_task(draw(first, [0, 1, 2, 3] * 20))
        await asyncio.sleep(0)
        victim = next(actor for actor in ray.util.list_named_actors(all_namespaces=True) if "painter" in actor["name"])
        ray.kill(ray.get_actor(victim["name"], victim["namespace"]), no_restart=False)
        await work
        work = asyncio.create_task(draw(first, [0, 1, 2, 3] * 20))
        update = await asyncio.to_thread(connect, folder, 3, Scale(2, 2))  # other settings: replaced one by one
        await work
        update.start()
        await draw(update, [3])
        for each in (first, again, update):
            await each.close()

    try:
        asyncio.run(serve_all())
    finally:
        serve.shutdown()


@pytest.mark.slow
def test_replicas_come_while_requests_wait_and_go_when_idle(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MORE_SECONDS", "FEWER_SECONDS"):
        monkeypatch.setattr(f"cogview3.serving.cluster.{name}", 1.0)

    async def until_running(wanted: int) -> None:
        async with asyncio.timeout(300):
            while True:
                (application,) = serve.status().applications.values()
                if application.deployments[DEPLOYMENT].replica_states.get("RUNNING") == wanted:
                    return
                await asyncio.sleep(1)

    async def serve_all() -> None:
        engine = await asyncio.to_thread(connect, folder, 1, Scale(1, 2))
        engine.start()
        await until_running(1)
        jobs = engine.submit([order("star", seed, steps=1000) for seed in range(8)], "me")
        await until_running(2)
        engine.cancel(jobs)
        await until_running(1)
        await engine.close()

    try:
        asyncio.run(serve_all())
    finally:
        serve.shutdown()


@pytest.mark.slow
def test_the_command_draws_on_a_cluster_of_its_own_and_leaves_nothing(
    folder: Path, start: Callable[..., Process]
) -> None:
    import psutil

    process = start(str(folder), "--engine", "ray")
    started = psutil.Process(process.pid).children(recursive=True)
    assert "raylet" in [each.name() for each in started]
    with patient(process.url) as client:
        assert ask(client, "star", 1)[0] == 200
    assert process.end() == 143
    told = process.log.read_text().splitlines()
    assert "stopped" in told  # Ray's own lines may follow
    assert not [line for line in told if line.startswith("error")]
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []


def listening(psutil: Any) -> set[str]:
    """Addresses at which this process and those that it began listen."""
    ours = psutil.Process()
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in (ours, *ours.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
