"""Pictures dropped from a batch midway: the others come out as they would have alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError
from cogview3.generation.scheduler import RelayScheduler

PROMPTS = ["a red star", "a blue circle", "star"]
SIZE = {"width": 64, "height": 64, "num_inference_steps": 4, "relay_steps": 3, "output_type": "np"}


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def dropping(at: int, rows: Any) -> Callable[..., dict[str, Any]]:
    return lambda pipe, step, timestep, tensors: {"rows": rows} if step == at else {}


@pytest.fixture
def make_pipe(make_components: Callable[..., dict[str, Any]]) -> Callable[..., CogView3Pipeline]:
    def make(**relay: Any) -> CogView3Pipeline:
        pipe = CogView3Pipeline(**make_components() | {"relay_scheduler": RelayScheduler(**relay)})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(
    ("relay", "arguments"),
    [
        ({}, {"eta": 1.0}),
        ({"blur_estimate": "carry"}, {}),
        ({"solver_order": 2}, {"sampler": "dpm++"}),
        ({}, {"masked": True, "negative_prompt": PROMPTS}),
    ],
    ids=["noise", "carry", "second order", "mask"],
)
def test_those_that_go_on_come_out_as_if_alone(
    make_pipe: Callable[..., CogView3Pipeline], relay: dict[str, Any], arguments: dict[str, Any], at: int
) -> None:
    pipe, arguments = make_pipe(**relay), dict(arguments)
    alone = dict(arguments)
    if arguments.pop("masked", False):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 64, 40))
        pictures = [Image.effect_noise((64, 64), 40 + 9 * number).convert("RGB") for number in range(3)]
        arguments |= {"image": pictures, "mask_image": mask}
        alone |= {"image": pictures[2], "mask_image": mask, "negative_prompt": PROMPTS[2]}
        del alone["masked"]
    kept = pipe(
        PROMPTS, generator=generators([0, 1, 2]), callback_on_step_end=dropping(at, [0, 2]), **SIZE, **arguments
    ).images
    own = pipe(PROMPTS[2], generator=generators([2]), **SIZE, **alone).images
    assert len(kept) == 2
    np.testing.assert_allclose(kept[1], own[0], atol=1e-5)


def test_enlarging_drops_pictures_too(make_pipe: Callable[..., CogView3Pipeline]) -> None:
    pipe = CogView3UpscalePipeline.from_pipe(make_pipe())
    pipe.set_progress_bar_config(disable=True)
    pictures = [Image.effect_noise((24, 20), 40 + 9 * number).convert("RGB") for number in range(2)]
    given = {"num_inference_steps": 3, "output_type": "np"}
    kept = pipe(pictures, generator=generators([0, 1]), callback_on_step_end=dropping(0, [1]), **given).images
    own = pipe(pictures[1], generator=generators([1]), **given).images
    np.testing.assert_allclose(kept, own, atol=1e-5)


@pytest.mark.parametrize("rows", [[], [3], [1, 0], [0, 0], [-1], "02", torch.tensor([0])])
def test_wrong_rows_are_refused(make_pipe: Callable[..., CogView3Pipeline], rows: Any) -> None:
    with pytest.raises(UserError, match="rows"):
        make_pipe()(PROMPTS, callback_on_step_end=dropping(0, rows), **SIZE)
