"""UNet configurations, size conditions and the guidance embedding."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel

from cogview3.models.unet import guidance_condition, size_conditions, unet_config


def count(**config: object) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in UNet2DConditionModel(**config).parameters())


def test_full_configuration_has_the_papers_parameters() -> None:
    assert count(**unet_config("full")) == 2_906_612_484


def test_distilled_configurations_add_a_linear_layer_without_bias() -> None:
    extra = count(**unet_config("full", time_cond_proj_dim=512)) - count(**unet_config("full"))
    assert extra == 512 * 320


@pytest.mark.parametrize("name", ["scenes", "tiny"])
def test_small_configurations_run(name: str) -> None:
    config = unet_config(name)
    unet = UNet2DConditionModel(**config)
    side, width = config["sample_size"], config["projection_class_embeddings_input_dim"] // 6
    labels = size_conditions((side * 8, side * 8), (0, 0), (side * 8, side * 8), width).expand(2, -1)
    text = torch.zeros(2, 5, config["cross_attention_dim"])
    with torch.no_grad():
        output = unet(torch.randn(2, 4, side, side), 7, text, class_labels=labels).sample
    assert output.shape == (2, 4, side, side)


def test_scenes_fits_its_share_of_the_package() -> None:
    assert count(**unet_config("scenes")) * 2 < 16 * 2**20  # float16, files under 16 MiB


def test_overrides_replace_entries() -> None:
    assert unet_config("tiny", sample_size=16)["sample_size"] == 16
    assert unet_config("tiny")["sample_size"] != 16


def test_unknown_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown UNet configuration 'huge': choose from full, scenes, tiny"):
        unet_config("huge")


def test_size_conditions_are_cosines_then_sines() -> None:
    numbers = [512, 768, 8, 16, 1024, 640]
    found = size_conditions(numbers[:2], numbers[2:4], numbers[4:])
    expected = []
    for number in numbers:
        angles = [number * 10000 ** (-i / 128) for i in range(128)]
        expected += [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
    # float32 angles of up to 1024 are good to 1024 * 6e-8
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=0, atol=2e-4)


def test_size_conditions_of_a_batch() -> None:
    sizes = torch.tensor([[64, 96], [128, 32], [64, 64]])
    found = size_conditions(sizes, (0, 0), sizes, 8)
    assert found.shape == (3, 48)
    for i, (height, width) in enumerate(sizes.tolist()):
        assert torch.equal(found[i : i + 1], size_conditions((height, width), (0, 0), (height, width), 8))


def test_guidance_condition_is_sines_then_cosines() -> None:
    found = guidance_condition([1.0, 7.5], 6)
    angles = [[1000 * w * 10000 ** (-i / 2) for i in range(3)] for w in (1.0, 7.5)]
    expected = [[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in angles]
    # float32 angles of up to 7500 are good to 7500 * 6e-8
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-3)
    assert torch.equal(guidance_condition(7.5, 6), found[1:])
