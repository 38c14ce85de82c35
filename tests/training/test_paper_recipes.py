"""The paper's stages as recipes: they follow each other, say what is missing, and train the published network."""

import tomllib
from importlib.resources import files

import pytest
import tomli_w
import torch
from diffusers import UNet2DConditionModel

from cogview3.bench.networks import CONFIGS
from cogview3.config import UserError, load_recipe, parse_recipe, recipe_names
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.unet import unet_config
from cogview3.training.objectives.diffusion import build_unet

STAGES = {  # steps and batch, as the paper's table gives them; resolution
    "base_256": (600_000, 2048, 256),
    "base_512": (200_000, 2048, 512),
    "base_aesthetic": (10_000, 1024, 512),
    "relay_1024_plain": (100_000, 1024, 1024),
    "relay_loss": (20_000, 1024, 1024),
}
PLACES = ["data.vae=model", "data.text=model", 'data.shards=["pictures/*.tar"]']

LIGHT = {"paper/enlarger": "latent_enlarger", "paper/light_decoder": "light_decoder"}


@pytest.mark.parametrize("name", LIGHT)
def test_light_parts_are_those_that_the_benchmark_counts_for_the_full_size(name: str) -> None:
    model = load_recipe(name, [PLACES[0], PLACES[2]]).model
    config = CONFIGS["full"][LIGHT[name]]
    assert (model.width, model.blocks) == (config["width"], config["num_blocks"])
    with torch.device("meta"):
        network = {"latent_enlarger": LatentEnlarger, "light_decoder": LightDecoder}[LIGHT[name]](
            width=model.width, num_blocks=model.blocks
        )
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    told = files("cogview3").joinpath(f"recipes/{name}.toml").read_text("utf-8")
    assert f"the network has {millions:.0f} million parameters" in told


def test_each_stage_is_as_long_as_the_papers_and_starts_from_the_one_before() -> None:
    before = None
    for name, (steps, batch, size) in STAGES.items():
        recipe = load_recipe(f"paper/{name}", PLACES)
        assert (recipe.train.images, recipe.train.batch, recipe.data.size) == (steps * batch, batch, size)
        assert recipe.recipe.start_from == before
        assert (recipe.objective.prediction, recipe.objective.offset_noise) == ("epsilon", 0.05)
        assert (recipe.data.new_share, recipe.data.text_dropout) == (0.95, 0.1)
        before = f"runs/{recipe.name}"
    assert (recipe.kind, recipe.objective.relay_start, recipe.objective.blur) == ("relay", 500, "linear")


def test_distillation_starts_from_the_last_stages() -> None:
    base, relay = (load_recipe(f"paper/distill_{stage}", PLACES) for stage in ("base", "relay"))
    assert (base.distill.teacher, base.distill.steps[-2:]) == ("runs/paper-base_aesthetic", (8, 4))
    assert (relay.distill.teacher, relay.distill.steps[-1]) == ("runs/paper-relay_loss", 1)
    # `time_cond_proj_dim` of the published distilled networks
    assert (base.distill.guidance_width, relay.distill.guidance_width) == (512, 256)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("paper/")])
def test_what_the_user_has_to_give_is_named(name: str) -> None:
    needed = {place.split("=")[0].removeprefix("data."): place for place in PLACES}
    if name in LIGHT:
        del needed["text"]
    for missing in needed:
        rest = [place for key, place in needed.items() if key != missing]
        with pytest.raises(UserError, match=rf"data\.{missing}: .*--set"):
            load_recipe(name, rest)
    recipe = load_recipe(name, list(needed.values()))
    assert parse_recipe(tomllib.loads(tomli_w.dumps(recipe.to_dict())), "again") == recipe


def test_the_network_is_the_published_one() -> None:
    recipe = load_recipe("paper/base_512", PLACES)
    with torch.device("meta"):
        mine = build_unet(recipe.model, 4096, 64)
        published = UNet2DConditionModel(**unet_config("full"))
    assert sum(parameter.numel() for parameter in mine.parameters()) == 2_906_612_484
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (mine, published)]
    assert shapes[0] == shapes[1]
    names = set(mine.config) - {"_use_default_values", "_class_name", "_diffusers_version"}
    different = {name for name in names if mine.config[name] != published.config[name]}
    # the first level has no attention, so its number of heads is no matter
    assert different <= {"attention_head_dim"}
    assert mine.config.attention_head_dim[1:] == published.config.attention_head_dim[1:]
