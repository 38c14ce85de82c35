"""The same tasks on a Ray cluster of this machine."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cogview3.captions.engines import _told_by_ray, local, on_ray, start_ray
from cogview3.captions.model import ModelJob
from cogview3.captions.recaption import Engine, recaption
from cogview3.captions.rows import CannotGoOn
from cogview3.cli.recaption import _model_job
from cogview3.config import UserError
from cogview3.data.formats import find_shards
from tests.captions.light import LightJob
from tests.captions.test_recaption import ROOT, here, leftovers, rows
from tests.captions.tiny import save_llava
from tests.data.conftest import all_keys, write_tars


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray with two CPUs on loopback; its sockets need a short path."""
    ray = pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        start_ray(ray, num_cpus=2, object_store_memory=100 * 2**20, _temp_dir=folder)
        yield ray
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_no_other_machine_can_reach_it(cluster: Any) -> None:
    psutil = pytest.importorskip("psutil")
    actor = cluster.remote(num_cpus=0)(type("Actor", (), {"there": lambda self: True})).remote()
    assert cluster.get(actor.there.remote())
    ours = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in (ours, *ours.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    cluster.kill(actor)
    assert len(listening) > 3
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


@pytest.mark.slow
def test_actors_that_die_are_replaced_and_more_than_there_are_cpus_come_to_their_turn(
    cluster: Any, tars: list[str], tmp_path: Path
) -> None:
    """Each of three is given a shard at once, and there is room for two."""
    job = LightJob(tmp_path, once="0000003")
    result = recaption(find_shards(tars), job, partial(on_ray, workers=3))
    assert (result["images"], result["tokens"], result["given_up"]) == (15, 75, {})
    assert set(job.log()) == set(all_keys())
    assert job.log().count("0000000") == 1
    (tmp_path / "other").mkdir()
    recaption(find_shards(write_tars(tmp_path / "other", (5, 4, 6))), job, here)
    assert rows(tmp_path / "tars") == rows(tmp_path / "other")
    assert leftovers(tmp_path / "tars") == []


@pytest.mark.slow
def test_shards_and_jobs_are_given_up_as_elsewhere(cluster: Any, tars: list[str], tmp_path: Path) -> None:
    job = LightJob(tmp_path, always="0000003", broken="0001002")
    while cluster.available_resources().get("CPU") != 2:
        pass  # other tests' actors are still ending
    result = recaption(find_shards(tars), job, partial(on_ray, tries=1))
    assert result["given_up"] == {
        tars[0]: "the worker died; tried 1 times",
        tars[1]: "RuntimeError: the device is on fire; tried 1 times",
    }
    assert {"0", "1"} <= set((tmp_path / "loads").read_text().split()), "a worker a CPU"
    with pytest.raises(CannotGoOn, match=r"cannot be loaded \(RuntimeError: on fire\)"):
        recaption(find_shards(tars), LightJob(tmp_path, loads="on fire"), partial(on_ray, workers=1), overwrite=True)
    with pytest.raises(UserError, match="the Ray cluster has no GPU"):
        recaption(find_shards(tars), job, partial(on_ray, gpu=True))


@pytest.mark.parametrize("kind", [UserError, CannotGoOn])
def test_what_others_would_meet_as_well_is_raised(kind: type[Exception]) -> None:
    ray = pytest.importorskip("ray")
    with pytest.raises(kind, match=r"^on fire$"):
        _told_by_ray(ray, ray.exceptions.RayTaskError("caption", "Traceback", kind("on fire")))


@pytest.mark.parametrize(("gpus", "expected"), [(3, ("cuda", "bfloat16", 3)), (0, ("cpu", "float32", 0))])
def test_a_clusters_gpus_count_and_not_this_machines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, expected: tuple[str, str, int]
) -> None:
    monkeypatch.setattr("cogview3.captions.engines.cluster_gpus", lambda: gpus)
    model = str(save_llava(tmp_path / "llava"))
    job, count = _model_job(model, "auto", "auto", 1, 0, 0.0, 8, True)
    assert (job.device, job.dtype, count) == expected
    if not gpus:
        with pytest.raises(UserError, match="--device cuda: the Ray cluster has no GPU"):
            _model_job(model, "cuda", "auto", 1, 0, 0.0, 8, True)


@pytest.mark.parametrize(
    "engine", [local, pytest.param(partial(on_ray, workers=1), marks=pytest.mark.slow, id="on_ray")]
)
def test_engines_give_equal_rows(request: pytest.FixtureRequest, tmp_path: Path, engine: Engine) -> None:
    """A model of transformers in this process, and in a local worker or an actor, with draws."""
    if engine is not local:
        request.getfixturevalue("cluster")
    model = save_llava(tmp_path / "llava", endings="aeiou.,")
    job = ModelJob(str(model), batch=3, temperature=1.0, seed=5)
    found = {}
    for name, each in (("here", here), ("there", engine)):
        tars = write_tars(tmp_path / name, (5, 4))
        assert recaption(find_shards(tars), job, each)["images"] == 9
        found[name] = rows(tmp_path / name)
    assert found["there"] == found["here"]
    assert len({row["new"] for row in found["here"]}) > 5


@pytest.mark.slow
def test_a_set_through_many_kills(cluster: Any, tmp_path: Path) -> None:
    """Twelve shards; twice an actor is killed, and then the job is let go."""
    tars = write_tars(tmp_path / "tars", (6,) * 12)
    for _ in range(2):
        messages = on_ray_until(tmp_path, tars, 20)
        assert messages >= 20
    result = recaption(find_shards(tars), LightJob(tmp_path), on_ray)
    assert result["finished_before"] > 0
    assert [row["key"] for row in rows(tmp_path / "tars")] == all_keys((6,) * 12)
    assert leftovers(tmp_path / "tars") == []


def on_ray_until(folder: Path, tars: list[str], images: int) -> int:
    """Run until so many images are done, then let go as Ctrl-C does."""
    killers = sorted(Path(folder).glob("died-*"))
    job = LightJob(folder, once=f"{len(killers):04}003")
    done = 0

    def stop(standing: Any) -> None:
        nonlocal done
        done = standing.images
        if done >= images:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recaption(find_shards(tars), job, on_ray, progress=stop)
    return done
