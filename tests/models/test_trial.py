"""Configurations that make networks which are built and filled, but cannot compute."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from cogview3 import CogView3Pipeline
from cogview3.config import UserError
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.trial import try_network
from cogview3.prompts.text_models import load_network


def test_sound_networks_pass(
    make_unet: Callable[..., UNet2DConditionModel],
    make_vae: Callable[..., AutoencoderKL],
    make_text_encoder: Callable[[], torch.nn.Module],
) -> None:
    networks = [make_unet(), make_unet(time_cond_proj_dim=8), make_vae(), make_text_encoder(), LatentEnlarger(width=8)]
    for network in [*networks, LightDecoder(width=8), make_unet().bfloat16(), torch.nn.Linear(2, 2)]:
        try_network(network, "somewhere")


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("unet", "downsample_padding", None),
        ("relay_unet", "freq_shift", "x"),
        ("relay_unet", "mid_block_scale_factor", []),
        ("unet", "dropout", float("nan")),
        ("unet", "attention_head_dim", True),
        ("scheduler", "prediction_type", "flow"),
    ],
)
def test_what_cannot_compute_is_refused_before_anything_is_drawn(
    saved_model: Path, tmp_path: Path, part: str, entry: str, value: Any
) -> None:
    shutil.copytree(saved_model, tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    with pytest.raises(UserError, match=part):
        CogView3Pipeline.from_pretrained(tmp_path)


def test_networks_that_recipes_name_are_tried_too(
    make_unet: Callable[..., UNet2DConditionModel], tmp_path: Path
) -> None:
    make_unet().save_pretrained(tmp_path)
    load_network(UNet2DConditionModel, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"freq_shift": None}))
    with pytest.raises(UserError, match="UNet2DConditionModel that cannot compute"):
        load_network(UNet2DConditionModel, tmp_path)


def test_pictures_of_another_size_than_the_configuration_says(make_vae: Callable[..., AutoencoderKL]) -> None:
    vae = make_vae()
    vae.decoder.conv_out = torch.nn.Conv2d(4, 1, 3, padding=1)
    with pytest.raises(UserError, match=r"somewhere: a AutoencoderKL .*\(1, 1, 64, 64\)"):
        try_network(vae, "somewhere")
