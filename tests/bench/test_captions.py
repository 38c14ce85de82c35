"""The benchmark of re-captioning, on a few pictures."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cogview3.bench.captions import describe, run
from cogview3.captions.model import ModelJob
from cogview3.cli.app import app
from cogview3.config import UserError
from cogview3.data.formats import find_shards
from tests.captions.tiny import save_llava
from tests.data.conftest import write_tars


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("llava")))


def test_both_ways_caption_all_pictures(model: str, tmp_path: Path) -> None:
    tars = write_tars(tmp_path, (5, 3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run(find_shards(tars), ModelJob(model, batch=2, max_new_tokens=2), repeats=2)
    assert (result["images"], result["shards"], result["batch"]) == (8, 2, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for place, clock in enumerate(("clock", "processor")):
        rates = result["images_a_second"][clock]
        assert result["overhead"][clock] == pytest.approx(rates["bare"] / rates["shards"] - 1)
        low, high = sorted(8 / times[place] for times in result["runs"]["bare"])
        assert low <= rates["bare"] <= high
    assert "8 images of 2 shards, 2 at once" in describe(result)


def test_what_cannot_be_measured(model: str, tmp_path: Path) -> None:
    shards = find_shards(write_tars(tmp_path, (0,)))
    with pytest.raises(UserError, match="no picture in 1 shards"):
        run(shards, ModelJob(model))
    with pytest.raises(UserError, match="repeats 0"):
        run(shards, ModelJob(model), repeats=0)
    with pytest.raises(UserError, match="gone: give tars"):
        run([*shards, type(shards[0])("gone")], ModelJob(model))


def test_the_command(model: str, tmp_path: Path) -> None:
    (tar,) = write_tars(tmp_path, (2,))
    command = ["bench", "captions", tar, "--model", model, "--max-new-tokens", "1", "--repeats", "1"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "overhead" in result.stdout
