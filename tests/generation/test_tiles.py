"""Tiles: they cover everything, blend seamlessly, and one tile is no tile."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError
from cogview3.generation.tiles import blend_tiles, tile_starts, tile_weights
from tests.generation.seams import seam_ratio

CALL = {"num_inference_steps": 2, "relay_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
ONE_STEP = {"num_inference_steps": 1, "relay_steps": 1}


@pytest.mark.parametrize("tile", [8, 13, 64])
@pytest.mark.parametrize("length", [1, 8, 9, 63, 64, 65, 200])
def test_tiles_cover_everything_and_overlap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    side = min(tile, length)
    covered = {cell for start in starts for cell in range(start, start + side)}
    assert covered == set(range(length))
    # starts are rounded to whole cells: two neighbors may come one cell closer
    assert all(1 <= b - a <= side * 2 / 3 + 1 for a, b in pairwise(starts)), "they share a third of a side"
    fewest = 1 if length <= tile else int(np.ceil((length - tile) / (tile * 2 / 3))) + 1
    assert len(starts) == fewest


def test_weights_are_a_gaussian_around_the_middle() -> None:
    weights = tile_weights(10, 20).numpy()
    y, x = (np.arange(10) + 0.5) / 10 - 0.5, (np.arange(20) + 0.5) / 20 - 0.5
    expected = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * 0.125**2))
    np.testing.assert_allclose(weights, expected, rtol=1e-5)  # float32
    assert weights.min() > 0


@pytest.mark.parametrize(("cell", "cell_out"), [(1, 1), (8, 1), (1, 8)])
def test_what_is_computed_place_by_place_comes_out_whole(cell: int, cell_out: int) -> None:
    """Functions that look at one cell only: tiles must change nothing, whatever the weights."""
    values = torch.randn(2, 3, 21 * cell, 30 * cell, generator=torch.Generator().manual_seed(0))
    calls = []

    def function(part: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(part.shape[2:]))
        return F.interpolate(F.avg_pool2d(part, cell), scale_factor=cell_out, mode="nearest") ** 2

    given = blend_tiles(function, values, 8, cell, cell_out)
    assert len(calls) == len(tile_starts(21, 8)) * len(tile_starts(30, 8))
    assert set(calls) == {(8 * cell, 8 * cell)}
    # a weighted mean of equal numbers, in float32
    torch.testing.assert_close(given, function(values), rtol=1e-5, atol=1e-5)


def test_a_side_shorter_than_a_tile_is_not_cut() -> None:
    shapes = []

    def function(part: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(part.shape[2:]))
        return part

    values = torch.rand(1, 1, 5, 40)
    torch.testing.assert_close(blend_tiles(function, values, 16), values)
    assert set(shapes) == {(5, 16)}


def test_tiles_that_disagree_meet_without_a_jump() -> None:
    """Two tiles of constant values, 0 and 1: the blend rises smoothly, by little from cell to cell."""
    values = iter([0.0, 1.0])
    row = blend_tiles(lambda part: torch.full_like(part, next(values)), torch.zeros(1, 1, 96, 160), 96)[0, 0, 48]
    steps = row.diff()
    assert (row[0], row[-1]) == (0, 1)
    assert (steps >= 0).all()
    assert steps[63] < 2e-3, "where the second tile begins"
    assert steps.max() < 0.15  # a hard border would be 1; the overlap is 32 cells wide


# In pipelines


def draw(components: dict[str, Any], **changes: Any) -> torch.Tensor:
    pipe = CogView3Pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red star", **{**CALL, "generator": torch.Generator().manual_seed(0), **changes}).images


def watch(module: torch.nn.Module, name: str = "forward") -> list[tuple[int, ...]]:
    """Sizes of what a module's method is given from now on."""
    sizes: list[tuple[int, ...]] = []
    method = getattr(module, name)

    def watched(given: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tuple(given.shape[2:]))
        return method(given, *arguments, **options)

    setattr(module, name, watched)
    return sizes


def test_one_tile_is_as_good_as_none(components: dict[str, Any]) -> None:
    assert torch.equal(draw(components, tile_size=64), draw(components))


def test_relay_and_autoencoder_never_see_more_than_a_tile(components: dict[str, Any]) -> None:
    unet, relay = watch(components["unet"]), watch(components["relay_unet"])
    encoded, decoded = (watch(components["vae"], name) for name in ("encode", "decode"))
    images = draw(components, height=128, width=144, tile_size=64, **ONE_STEP)
    assert images.shape == (1, 3, 128, 144)
    assert set(unet) == {(8, 9)}  # the base draws whole pictures
    assert set(relay) == {(8, 8)}
    assert set(encoded) == {(64, 64)}
    assert set(decoded) == {(8, 8)}


def test_tiles_are_drawn_as_pictures_of_their_own_size(components: dict[str, Any]) -> None:
    labels = []
    components["relay_unet"].register_forward_pre_hook(
        lambda _, args, kwargs: labels.append(kwargs["class_labels"]), with_kwargs=True
    )
    draw(components, height=64, width=64, **ONE_STEP)
    draw(components, height=144, width=128, tile_size=64, **ONE_STEP)
    assert len(labels) == 1 + 3 * 3
    assert all(torch.equal(item[0], labels[0][0]) for item in labels)


def test_a_picture_is_enlarged_in_tiles(components: dict[str, Any]) -> None:
    del components["unet"], components["scheduler"]
    pipe = CogView3UpscalePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    seen = watch(pipe.relay_unet)
    image = torch.rand(3, 35, 32, generator=torch.Generator().manual_seed(1))
    result = pipe(image, num_inference_steps=1, num_relays=2, tile_size=64, output_type="pt").images
    assert result.shape == (1, 3, 140, 128)
    assert set(seen) == {(8, 8)}


@pytest.mark.parametrize(("tile_size", "words"), [(0, "tile_size is 0"), (100, "nearest is 128"), ("a", "'a'")])
def test_wrong_tiles_are_refused(components: dict[str, Any], tile_size: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw(components, tile_size=tile_size)


def test_the_bundled_model_draws_in_tiles_without_seams() -> None:
    """Two relays, four tiles in the second: borders jump no more than in the same picture drawn whole."""
    pipe = CogView3Pipeline.from_pretrained("scenes", mode="4+1")
    pipe.set_progress_bar_config(disable=True)
    prompt = (
        "2 shapes: a bordered small dotted blue box upper left and a huge purple hoop with horizontal stripes and no "
        "border at the bottom. The background is plain yellow."
    )
    call = {"height": 384, "width": 384, "num_relays": 2, "output_type": "np"}
    whole, tiled = (
        pipe(prompt, **call, tile_size=tile, generator=torch.Generator().manual_seed(2)).images[0]
        for tile in (None, 256)
    )
    assert np.abs(whole - tiled).max() > 0.05  # they were drawn otherwise
    assert np.abs(whole - tiled).mean() < 0.02
    assert seam_ratio(tiled, 256) < 1.2 * seam_ratio(whole, 256)
    # as the measure would tell: the last of each border's two tiles a little brighter
    shifted = tiled.copy()
    for start in tile_starts(48, 32)[1:]:
        shifted[:, 8 * start :] += 0.05
    assert seam_ratio(shifted, 256) > 2 * seam_ratio(whole, 256)
