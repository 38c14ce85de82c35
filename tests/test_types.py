"""The ratchet of type errors: it counts by part, and no number may rise."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import cogview3

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_types.py"


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


def test_errors_are_counted_by_part() -> None:
    assert check.count([*LINES, "Found 3 errors in 3 files"]) == Counter(data=2, errors=1)


def test_strict_parts_have_no_allowance() -> None:
    limits = json.loads(check.LIMITS.read_text("utf-8"))
    assert not limits.keys() & {"errors", "config", "diffusion"}
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
