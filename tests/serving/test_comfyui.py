"""The ComfyUI nodes, run as ComfyUI runs them: by the names of INPUT_TYPES, against a stub of its progress bar."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


class Interrupted(Exception):
    pass


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What the nodes import of ComfyUI, and how far its bar is."""
    state = SimpleNamespace(shown=[], interrupt=False)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int) -> None:
            state.shown.append((value, self.total))

    def check() -> None:
        if state.interrupt:
            raise Interrupted

    management = ModuleType("comfy.model_management")
    management.get_torch_device = lambda: torch.device("cpu")
    management.throw_exception_if_processing_interrupted = check
    utils = ModuleType("comfy.utils")
    utils.ProgressBar = ProgressBar
    package = ModuleType("comfy")
    package.model_management, package.utils = management, utils
    for module in (package, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location(
        "cogview3_nodes", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    state.package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cogview3_nodes", state.package)
    spec.loader.exec_module(state.package)
    yield state
    sys.modules.pop("cogview3_nodes.nodes", None)


def execute(comfy: SimpleNamespace, name: str, **values: Any) -> tuple:
    """Run a node as ComfyUI does: unknown inputs are refused, required ones without a value take their default."""
    node = comfy.package.NODE_CLASS_MAPPINGS[name]
    asked = node.INPUT_TYPES()
    known = asked["required"] | asked.get("optional", {})
    assert values.keys() <= known.keys()
    for key, entry in asked["required"].items():
        if key not in values:
            values[key] = entry[0][0] if isinstance(entry[0], list) else entry[1]["default"]
    outputs = getattr(node(), node.FUNCTION)(**values)
    assert len(outputs) == len(node.RETURN_TYPES)
    return outputs


def test_every_node_has_a_name_to_show(comfy: SimpleNamespace) -> None:
    assert comfy.package.NODE_CLASS_MAPPINGS.keys() == comfy.package.NODE_DISPLAY_NAME_MAPPINGS.keys()


def test_load_model(comfy: SimpleNamespace) -> None:
    (pipe,) = execute(comfy, "CogView3LoadModel", mode="4+1")
    assert pipe.mode_name == "4+1"
    assert pipe.unet.dtype == torch.float32


def test_generate_and_upscale(comfy: SimpleNamespace, pipe: CogView3Pipeline) -> None:
    size = {"width": 64, "height": 64}
    image, latent = execute(comfy, "CogView3Generate", model=pipe, prompt="star", seed=5, count=2, **size)
    assert comfy.shown == [(step, 4) for step in range(1, 5)]
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    own = pipe(["star"] * 2, **size, generator=generators, output_type="np").images
    torch.testing.assert_close(image, torch.from_numpy(own), atol=1e-5, rtol=0)

    upscale = CogView3UpscalePipeline.from_pipe(pipe)
    upscale.set_progress_bar_config(disable=True)
    twice, _ = execute(comfy, "CogView3RelayUpscale", model=pipe, latent=latent, seed=1)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    own = upscale(latents=latent["samples"], generator=generators, output_type="np").images
    torch.testing.assert_close(twice, torch.from_numpy(own), atol=1e-5, rtol=0)

    odd = image[:1, :30, :22]
    larger, _ = execute(comfy, "CogView3RelayUpscale", model=pipe, image=odd, seed=1)
    assert larger.shape == (1, 60, 44, 3)


def test_wrong_connections_are_told(comfy: SimpleNamespace, pipe: CogView3Pipeline) -> None:
    with pytest.raises(ValueError, match="either"):
        execute(comfy, "CogView3RelayUpscale", model=pipe)
    with pytest.raises(ValueError, match="another model"):
        execute(comfy, "CogView3RelayUpscale", model=pipe, latent={"samples": torch.zeros(1, 4, 8, 8)})


def test_an_interrupt_stops_within_a_step(comfy: SimpleNamespace, pipe: CogView3Pipeline) -> None:
    comfy.interrupt = True
    with pytest.raises(Interrupted):
        execute(comfy, "CogView3Generate", model=pipe, prompt="star", width=64, height=64)
    assert comfy.shown == []
