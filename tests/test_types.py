"""Types: the ratchet of errors, which counts by part and never rises, and what users' type checkers are told."""

import importlib.util
import inspect
import json
import pickle
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from diffusers.utils import BaseOutput

import cogview3
from cogview3.generation import calls
from cogview3.generation.calls import RelayPipelineOutput

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "check_types.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_types", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load_script()
LINES = [
    "src/cogview3/data/tars.py:1: error: x  [misc]",
    "src/cogview3/data/scenes/scene.py:7: error: y  [misc]",
    "src/cogview3/errors.py:3: error: z  [misc]",
]
SEEN = ['tests/public_types.py:31: error: Expression is of type "Any", not "Image"  [assert-type]']


def test_errors_are_counted_by_part() -> None:
    assert check.count([*LINES, "Found 3 errors in 3 files"]) == Counter(data=2, errors=1)
    assert check.count(SEEN) == Counter(public_types=1)


def test_strict_parts_have_no_allowance() -> None:
    limits = json.loads(check.LIMITS.read_text("utf-8"))
    assert not limits.keys() & {"errors", "config", "diffusion", "public_types"}
    assert all(number > 0 for number in limits.values())


@pytest.mark.parametrize(
    ("limits", "code"), [({"data": 2, "errors": 1}, 0), ({"data": 1, "errors": 1}, 1), ({"data": 2}, 1)]
)
def test_more_errors_than_before_fail(
    limits: dict[str, int], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "limits.json"
    path.write_text(json.dumps(limits))
    monkeypatch.setattr(check, "LIMITS", path)
    monkeypatch.setattr(check, "errors", lambda: LINES)
    assert check.main([]) == code
    assert json.loads(path.read_text()) == limits


def test_an_update_lowers_and_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "limits.json"
    monkeypatch.setattr(check, "LIMITS", path)
    monkeypatch.setattr(check, "errors", lambda: LINES)
    path.write_text('{"data": 5, "errors": 4, "cli": 3}')
    assert check.main(["--update"]) == 0
    assert json.loads(path.read_text()) == {"data": 2, "errors": 1}
    path.write_text('{"data": 1, "errors": 4}')
    assert check.main(["--update"]) == 1
    assert json.loads(path.read_text()) == {"data": 1, "errors": 4}


def test_the_package_is_marked_as_typed() -> None:
    assert (Path(cogview3.__file__).parent / "py.typed").is_file()


def test_the_readmes_snippets_are_among_what_type_checkers_see() -> None:
    seen = (ROOT / "tests" / "public_types.py").read_text("utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found = [line for line in "".join(snippets).splitlines() if "CogView3" in line and "import" not in line]
    assert len(found) == 4
    for line in found:
        assert line.partition("  #")[0] in seen or "DiffusionPipeline.from_pretrained" in line


def test_outputs_are_diffusers_own_kind_with_any_type_of_images() -> None:
    output = RelayPipelineOutput[list[int]](images=[1, 2])
    assert output.images == output["images"] == output[0] == [1, 2]
    assert isinstance(output, BaseOutput)
    assert pickle.loads(pickle.dumps(output)).images == [1, 2]


@pytest.mark.parametrize("kind", [cogview3.CogView3Pipeline, cogview3.CogView3UpscalePipeline])
def test_types_of_components_are_annotations_alone(kind: type) -> None:
    parts = set(inspect.signature(kind).parameters) - {"mode"}
    assert parts <= {name for each in kind.__mro__ for name in vars(each).get("__annotations__", {})}
    assert not [name for name in parts if hasattr(kind, name)]


def test_arguments_for_type_checkers_are_those_of_the_calls() -> None:
    for kind, arguments in (
        (cogview3.CogView3Pipeline, calls.DrawArguments),
        (cogview3.CogView3UpscalePipeline, calls.UpscaleArguments),
        (cogview3.PixelRelayPipeline, calls.PixelArguments),
    ):
        own = inspect.signature(kind.__call__).parameters
        first = {"self", "prompt", "negative_prompt", "output_type", "return_dict"}
        first |= {"height", "width"} if kind is cogview3.CogView3Pipeline else {"image"}
        assert arguments.__annotations__ == {name: own[name].annotation for name in own.keys() - first}
