"""The objective of diffusion in pixels on the common loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogview3.config import UserError, load_recipe
from cogview3.diffusion import pixel_relay
from cogview3.generation.pixel_relay import PixelRelayPipeline
from cogview3.training.loop import train
from cogview3.training.objectives.pixel import PixelTraining

TINY = [
    "model.block_out_channels=[8, 16]",
    "model.norm_num_groups=4",
    "data.size=32",
    "train.batch=4",
    "train.images=8",
    "train.log_images=4",
    "train.precision=no",
    "validate.images=6",
    "validate.every_images=8",
]


def tiny(name: str = "scenes/pixel_relay", *more: str) -> Any:
    return load_recipe(name, [*TINY, *more])


@pytest.mark.parametrize("name", ["scenes/pixel_relay", "scenes/pixel_edm"])
def test_a_run_trains_shows_and_saves_a_pipeline(name: str, tmp_path: Path) -> None:
    result = train(tiny(name), tmp_path / "run", device="cpu")
    figures = result["validation"]
    bands = [figures[f"loss_{number}_of_4"] for number in (1, 2, 3, 4)]
    assert all(np.isfinite(bands))
    assert list((tmp_path / "run" / "samples").iterdir())
    pipe = PixelRelayPipeline.from_pretrained(tmp_path / "run" / "weights")
    assert pipe.scheduler.config.factor == (4 if name.endswith("relay") else 1)


def test_a_run_stopped_half_way_goes_on_alike(tmp_path: Path) -> None:
    half = tiny("scenes/pixel_relay", "train.checkpoint_images=4")
    whole = train(half, tmp_path / "whole", device="cpu")
    objective = PixelTraining(half)
    again = PixelTraining(half).batch(4, [4, 5, 6, 7])
    for name, value in objective.batch(4, [4, 5, 6, 7]).items():
        assert torch.equal(value, again[name])
    assert whole["images"] == 8


def test_pictures_are_noisy_and_blurred_as_their_level_says() -> None:
    """What is left after the blurred picture is taken away has the noise's variance, 1.0225 sigma^2."""
    recipe = tiny("scenes/pixel_relay")
    batch = PixelTraining(recipe).batch(0, list(range(64)))
    sigma = batch["sigma"]
    strength = pixel_relay.blur_strength(pixel_relay.time_of(sigma, 0.93), 3.0)
    left = batch["x"] - pixel_relay.blur(batch["x0"], pixel_relay.damping(strength, 4))
    # 64 pictures of 3072 numbers: standard error 0.3 %, block noise's correlation included below 1 %
    assert (left.square().mean((1, 2, 3)) / sigma**2).mean().item() == pytest.approx(1.0225, rel=0.02)
    u = pixel_relay.time_of(sigma, 0.93)
    assert 0.35 < u.mean() < 0.65


def test_the_loss_of_a_network_that_says_nothing_is_its_targets_variance() -> None:
    """With an output of 0 the loss is that of c_skip x: about 1 for data of deviation 0.5, blur and noise alike."""
    recipe = tiny("scenes/pixel_edm")
    objective = PixelTraining(recipe)
    with torch.no_grad():
        for parameter in objective.trained.conv_out.parameters():
            parameter.zero_()
    batch = objective.batch(0, list(range(16)))
    c_skip = pixel_relay.preconditioning(batch["sigma"])[0].view(-1, 1, 1, 1)
    error = (c_skip * batch["x"] - batch["x0"]).square().mean((1, 2, 3))
    expected = (pixel_relay.loss_weight(batch["sigma"]) * error).mean()
    torch.testing.assert_close(objective(batch)["loss"], expected)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.size=48", "multiple of"),
        ("objective.factor=3", "factor 3"),
        ("objective.length=1.5", "length"),
        ("model.norm_num_groups=3", "norm_num_groups"),
        ("model.patch=0", "patch"),
        ("objective.blur=2", "unknown"),
    ],
)
def test_bad_recipes_are_refused(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_recipe("scenes/pixel_relay", ["model.patch=16", override] if "48" in override else [override])
