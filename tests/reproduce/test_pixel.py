"""The relay in pixels beside plain diffusion: on tiny networks, and on pictures whose distances are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cogview3 import PixelRelayPipeline
from cogview3.cli.app import app
from cogview3.config import PixelModel
from cogview3.evaluation import frechet
from cogview3.generation.pixel_relay import PixelRelayScheduler
from cogview3.models.pixel_unet import build_pixel_unet
from cogview3.reproduce import pixel

PLAIN = {"factor": 1, "length": 1.0, "sigma_start": 80.0, "eta": 0.0}


def write_parts(folder: Path) -> dict[str, Path]:
    runs = {}
    for number, (part, size, patch, how) in enumerate(
        (("relay", 32, 4, {"factor": 4}), ("base", 8, 1, PLAIN), ("edm", 32, 4, PLAIN))
    ):
        torch.manual_seed(number)
        model = PixelModel(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, patch=patch)
        pipe = PixelRelayPipeline(build_pixel_unet(model, size), PixelRelayScheduler(**how))
        pipe.save_pretrained(folder / part / "weights")
        runs[part] = folder / part
    return runs


def test_the_command_writes_table_and_grid(tmp_path: Path) -> None:
    runs = write_parts(tmp_path)
    arguments = ["reproduce", "pixel", *(f"--{part}={run}" for part, run in runs.items())]
    arguments += ["--count=3", "--steps=2", f"--out={tmp_path / 'out'}", "--json", "--device=cpu"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    names = [row["name"] for row in told["rows"]]
    assert names == ["relay, 2 + 2 steps", "plain EDM, 4 steps", "plain EDM, 2 steps", "relay on small renders"]
    relay, edm = told["rows"][:2]
    assert edm["against"]["difference"] == pytest.approx(edm["distance"] - relay["distance"])
    flops = told["training"]
    assert flops["relay"] == flops["edm"]
    assert flops["base"]["flops"] < flops["relay"]["flops"]
    with Image.open(tmp_path / "out" / "pixel.png") as grid:
        assert grid.size == (3 * 32, 5 * 32)
    assert "no order is claimed" in (tmp_path / "out" / "pixel.md").read_text()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    runs = write_parts(tmp_path)
    arguments = ["reproduce", "pixel", *(f"--{part}={run}" for part, run in runs.items() if part != "edm")]
    done = CliRunner().invoke(app, [*arguments, f"--edm={tmp_path / 'none'}", f"--out={tmp_path / 'out'}"])
    assert done.exit_code == 2
    assert str(tmp_path / "none") in done.stderr
    swapped = {**runs, "relay": runs["edm"]}
    with pytest.raises(pixel.UserError, match="factors"):
        pixel.open_parts(swapped)


def test_the_three_are_of_equal_training() -> None:
    """The plain network sees as many pictures as both stages, and a picture costs all alike, but for their edges."""
    recipes = {part: pixel.load_recipe(f"scenes/pixel_{part}") for part in pixel.PARTS}
    images = {part: recipe.train.images for part, recipe in recipes.items()}
    assert images["edm"] == images["relay"] + images["base"]
    assert recipes["edm"].model == recipes["relay"].model
    assert len({recipe.data.size // recipe.model.patch for recipe in recipes.values()}) == 1


def test_a_difference_of_distances_is_that_of_closed_forms() -> None:
    """N(m, I) to N(0, I) is at |m|^2: of m = 0.5 and 0 in 4 dimensions 1 apart, which the interval holds."""
    inside = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        reference, near, far = torch.randn(3, 200, 4, generator=generator, dtype=torch.float64)
        found = frechet.difference(far + 0.5, near, reference, seed)
        inside.append(found["interval"][0] < 1 < found["interval"][1])
    assert sum(inside) >= 3
    few = frechet.difference(far[:9], near[:9], reference[:9])
    expected = [frechet.frechet_distance(each[:9], reference[:9]) for each in (far, near)]
    assert few == {"difference": pytest.approx(float(np.subtract(*expected))), "interval": None}
