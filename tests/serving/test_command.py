"""The command: how it ends, and the files that have a system run it."""

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from cogview3.cli.app import app
from cogview3.serving.server import Server

DOCS = Path(__file__).parents[2] / "docs" / "serving"


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]], ids=len)
def test_an_orderly_end_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch, signals: list[int]) -> None:
    main_loop = Server.main_loop

    async def signaled(server: Any) -> None:
        for each in signals:
            os.kill(os.getpid(), each)
        await main_loop(server)

    monkeypatch.setattr(Server, "main_loop", signaled)
    done = CliRunner().invoke(app, ["serve", str(folder), "--port", "0", "--no-page", "--no-mcp"])
    assert done.exit_code == 128 + signals[0]
    assert ("error" in done.stderr) == (len(signals) > 1)  # the second one forces the end


def test_files_for_systems_run_the_command_as_it_is() -> None:
    container, unit = ((DOCS / name).read_text() for name in ("Containerfile", "cogview3.service"))
    parts = dict(line.split(maxsplit=1) for line in container.splitlines() if line.startswith(("ENTRYPOINT", "CMD")))
    started = [word for name in ("ENTRYPOINT", "CMD") for word in yaml.safe_load(parts[name])]
    (line,) = (line for line in unit.splitlines() if line.startswith("ExecStart="))
    serve: Any = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    for program, command, *arguments in (started, shlex.split(line.removeprefix("ExecStart="))):
        assert (Path(program).name, command) == ("cogview3", "serve")
        assert serve.make_context("serve", arguments).params["model"] == "scenes"
    service = yaml.safe_load((DOCS / "compose.yaml").read_text())["services"]["cogview3"]
    place = (DOCS / service["build"]["context"]).resolve()
    assert (place / service["build"]["dockerfile"]).samefile(DOCS / "Containerfile")
    assert service["ports"] == ["127.0.0.1:8000:8000"]
