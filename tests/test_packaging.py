"""What several places say of the package agrees: versions, bounds and pins, targets that the workflow calls."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version
    assert re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1] == version
    nodes = tomllib.loads((ROOT / "integrations" / "comfyui" / "pyproject.toml").read_text("utf-8"))
    assert nodes["project"]["version"] == version


def test_pins_are_within_the_bounds_of_all_that_is_required() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = [Requirement(each) for each in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())]
    wanted = [each for each in wanted if each.name != "cogview3"]
    assert [str(each) for each in wanted if canonicalize_name(each.name) not in pins] == []
    assert [str(each) for each in wanted if not each.specifier.contains(pins[canonicalize_name(each.name)])] == []
    assert [str(each) for each in wanted if ">=" not in str(each.specifier)] == [], "without a lower bound"


def test_the_workflow_calls_targets_that_are_there() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    called = set(re.findall(r"^make (\w+)$", "\n".join(steps), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"lint", "test"} <= called <= targets
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert versions[0] == PROJECT["requires-python"].removeprefix(">=")
