"""The expander that comes with `scenes`."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cogview3.cli.app import app
from cogview3.cli.expand import own_expander
from cogview3.data.scenes import captions
from cogview3.data.scenes.parser import parse
from cogview3.data.scenes.scene import sample_scene
from cogview3.evaluation.written import expansion_figures
from cogview3.prompts.expand import LocalWriter


@pytest.mark.parametrize("count", [20, pytest.param(48, marks=pytest.mark.slow)])
def test_it_keeps_what_brief_prompts_ask_for(count: int) -> None:
    """Brief prompts that training never saw, half of them of scenes with held-out combinations."""
    writer = LocalWriter(own_expander("scenes"))
    prompts: list[captions.Caption] = []
    for index in range(count):
        rng = np.random.default_rng([20261125, index])
        prompts.append(captions.brief(sample_scene(rng, ("seen", "held-out")[index % 2]), rng))
    written = [writer.write(prompt.text, 0, "", ())[0] for prompt in prompts]
    figures = expansion_figures([prompt.facts for prompt in prompts], written)
    assert figures["read"] == 1
    assert figures["prompts_kept"] >= 0.85
    assert figures["facts_kept"] >= 0.95  # its card: 0.962 of 256


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        (
            "a red heart",
            {"shape": "heart", "color": "red", "fill": "plain", "size": "large", "position": "middle center"},
        ),
        ("a fox", {"thing": "fox", "size": "large", "position": "middle center"}),
    ],
)
def test_what_is_left_open_is_as_people_expect_it(prompt: str, facts: dict[str, str]) -> None:
    told = parse(LocalWriter(own_expander("scenes")).write(prompt, 0, "", ())[0])
    assert told is not None
    assert told.texture == "plain"
    (item,) = told.objects
    assert {name: getattr(item, name) for name in facts} == facts


def test_the_command_uses_it_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["expand", "two red stars", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["model"], told["prompts"], told["reasons"]) == ("expander", ["two red stars"], [None])
    facts = parse(told["expanded_prompts"][0])
    assert facts is not None
    assert facts.count == 2
    assert {(item.color, item.shape) for item in facts.objects} == {("red", "star")}
