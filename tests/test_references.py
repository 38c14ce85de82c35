"""One grammar of models, modes, runs and folders: what every command and recipe makes of a name."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from cogview3 import CogView3Pipeline, references
from cogview3.config import UserError
from cogview3.references import find, split, weights_folder

MODES = {"format": 1, "default": "50+10", "modes": {"50+10": {}, "4+1": {"unet": "modes/4+1/unet", "steps": 4}}}


def make_model(folder: Path) -> Path:
    """A model folder as far as names go: a VAE, a UNet and another one in mode 4+1."""
    for name in ("vae", "unet", "modes/4+1/unet"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    (folder / "sampling.json").write_text(json.dumps(MODES))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which a folder is called like the one bundled model, "toy"."""
    make_model(tmp_path / "bundled" / "toy")
    (tmp_path / "bundled" / "toy" / "model_index.json").write_text("{}")
    monkeypatch.setattr(references, "BUNDLED", tmp_path / "bundled")
    make_model(tmp_path / "here" / "toy")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_bundled_names_come_before_folders_for_models_and_for_their_parts(here: Path) -> None:
    bundled = here.parent / "bundled" / "toy"
    assert references.bundled_models() == ["toy"]
    assert find("toy").source == str(bundled)
    assert weights_folder("toy", "vae") == bundled / "vae"
    assert weights_folder("toy@4+1", "unet") == bundled / "modes" / "4+1" / "unet"
    assert find("toy").is_bundled


@pytest.mark.parametrize("name", ["./toy", "toy/", os.path.abspath("toy"), Path("toy")])
def test_paths_are_folders(here: Path, name: Any) -> None:
    if isinstance(name, str) and os.path.isabs(name):
        name = str(here / "toy")
    assert Path(find(name).source).resolve() == here / "toy"
    assert weights_folder(name, "vae").resolve() == here / "toy" / "vae"
    assert not find(name).is_bundled
    assert find(name).label == "toy"


@pytest.mark.usefixtures("here")
def test_modes_stand_behind_an_at(here: Path) -> None:
    assert find("./toy@4+1").settings()[1].steps == 4
    assert find("./toy", "4+1") == find("./toy@4+1")
    assert find("./toy@4+1", "4+1").mode == "4+1"
    assert weights_folder("./toy@4+1", "unet") == here.joinpath("toy/modes/4+1/unet").relative_to(here)
    assert weights_folder("./toy@4+1", "vae") == Path("toy/vae")  # shared by all modes
    with pytest.raises(UserError, match=r"'\./toy@4\+1' names mode '4\+1', and --mode '8\+2'"):
        find("./toy@4+1", "8+2")
    with pytest.raises(UserError, match=r"no mode '8\+2': choose from 50\+10, 4\+1"):
        weights_folder("toy@8+2", "unet")


def test_a_folder_with_an_at_in_its_name_is_a_folder(here: Path) -> None:
    make_model(here / "toy@4+1")
    assert find("./toy@4+1") == references.Reference("./toy@4+1", "./toy@4+1")
    assert split("toy@4+1") == ("toy@4+1", None)


@pytest.mark.parametrize("name", ["@4+1", "toy@"])
def test_half_a_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"model {name!r}: write MODEL or MODEL@MODE")):
        find(name)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["nothing", "./nothing", "/nothing/at/all", "a/b/c", "", "~x/y", Path("owner/name")])
def test_unknown_names_are_refused(name: Any) -> None:
    for use in (CogView3Pipeline.from_pretrained, lambda given: weights_folder(given, "vae")):
        with pytest.raises(UserError, match=r"there is no such folder, and the bundled models are toy; a hub name"):
            use(name)


def test_no_bundled_models_are_named_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "BUNDLED", tmp_path)
    with pytest.raises(UserError, match=r"no model 'nothing': .*models are none"):
        find("nothing")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.bin is a file: give the model's folder"):
        CogView3Pipeline.from_pretrained(tmp_path / "weights.bin")


def test_weights_are_found_in_runs_and_model_folders(tmp_path: Path) -> None:
    for root in (tmp_path / "run" / "weights", tmp_path / "model"):
        (root / "vae").mkdir(parents=True)
        (root / "vae" / "config.json").write_text("{}")
    assert weights_folder(tmp_path / "run", "vae") == tmp_path / "run" / "weights" / "vae"
    assert weights_folder(str(tmp_path / "model"), "vae") == tmp_path / "model" / "vae"
    with pytest.raises(UserError, match=rf"no unet in '{tmp_path / 'run'}'; give a run folder"):
        weights_folder(tmp_path / "run", "unet")


def test_a_run_of_an_adapter_is_told(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=rf"holds an adapter and no unet; draw with generate --lora {tmp_path}"):
        weights_folder(tmp_path, "unet")


def test_parts_of_hub_models_are_fetched_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "cache")
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "cache")

    monkeypatch.setattr(references, "snapshot_download", snapshot)
    monkeypatch.setattr(references, "hf_hub_download", lambda _, name: str(tmp_path / "cache" / name))
    assert weights_folder("owner/toy@4+1", "unet") == tmp_path / "cache" / "modes" / "4+1" / "unet"
    name, patterns = asked[0]
    assert name == "owner/toy"
    assert {"modes/4+1/unet/*.json", "modes/4+1/unet/*.safetensors"} <= set(patterns)
    assert not [pattern for pattern in patterns if not pattern.startswith("modes/4+1/unet/") or ".py" in pattern]


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("off\nline")

    monkeypatch.setattr(references, "snapshot_download", fail)
    with pytest.raises(UserError, match="model runs/vae cannot be loaded: it is no folder here") as caught:
        weights_folder("runs/vae", "vae")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("here")
def test_what_is_missing_in_a_folder_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(UserError, match=r"no vae in 'toy/none': .*there is no such folder"):
        weights_folder("toy/none", "vae")


def test_a_name_on_the_hub_has_no_folder() -> None:
    with pytest.raises(UserError, match="owner/toy is a name on the hub; download it"):
        find("owner/toy").folder  # noqa: B018


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert references.user_cache("expansions") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert references.user_cache("expansions") == tmp_path / "cogview3" / "expansions"
