"""`cogview3 evaluate` at the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cogview3.cli.app import app


def test_json_is_all_that_stdout_gets(model: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(model), "--count", "1", "--relays", "0", "--json"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["count"] == 1
    assert "all facts" in done.stderr


def test_without_json_the_table_is_printed(model: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", f"{model}@2+1", "--count", "1", "--relays", "0", "--steps", "1"])
    assert done.exit_code == 0, done.stderr
    assert "all facts" in done.stdout
    assert "1+0 steps" in " ".join(done.stdout.split())  # wherever the title of a long name is wrapped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no model 'nowhere'"),
        (["{model}", "--prompts", "drawbench"], "not bundled"),
        (["{model}", "--metrics", "scene,inception"], "no metric 'inception'"),
        (["{model}", "--guidance", "nan"], "finite"),
        (["{model}", "--guidance-response", "1"], "two scales, such as 1,7.5"),
        (["{model}", "--guidance-response", "1,inf"], "finite"),
        (["{model}", "--guidance-response", "1,7.5"], "two or more"),
        (["{model}", "--out", "missing/folder"], "create it first"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", *(word.format(model=model) for word in arguments)])
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
