"""More layers a block: the same function at first, and layers that learn."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel

from cogview3.training.deepen import deepen, further_layers


def outputs(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    z, text, labels = (torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (5, 16), (48,)))
    return unet(z, torch.tensor([3, 700]), encoder_hidden_states=text, class_labels=labels).sample


@pytest.mark.parametrize(("few", "many"), [(1, 2), (1, 3), (2, 3)])
def test_the_deeper_network_computes_what_the_shallow_one_does(
    make_unet: Callable[..., UNet2DConditionModel], few: int, many: int
) -> None:
    shallow, deep = make_unet(1, layers_per_block=few), make_unet(2, layers_per_block=many)
    assert further_layers(shallow, deep) == many - few
    deepen(shallow, deep)
    torch.testing.assert_close(outputs(deep), outputs(shallow), rtol=1e-4, atol=1e-5)  # float32, sums in another order


def test_each_further_layer_learns_from_the_first_step(make_unet: Callable[..., UNet2DConditionModel]) -> None:
    shallow, deep = make_unet(1), make_unet(2, layers_per_block=2)
    deepen(shallow, deep)
    deep.train()
    outputs(deep).square().mean().backward()
    gradients = {name: parameter.grad.abs().sum() for name, parameter in deep.named_parameters()}
    further = ["down_blocks.1.resnets.1.conv2.weight", "down_blocks.1.attentions.1.proj_out.weight"]
    further += ["up_blocks.0.resnets.1.conv2.weight", "up_blocks.0.resnets.1.conv_shortcut.weight"]
    assert all(gradients[name] > 0 for name in further)


def test_other_differences_are_no_further_layers(make_unet: Callable[..., UNet2DConditionModel]) -> None:
    shallow = make_unet(1)
    assert further_layers(shallow, make_unet(1)) == 0
    assert further_layers(make_unet(1, layers_per_block=2), shallow) == 0
    assert further_layers(shallow, make_unet(1, layers_per_block=2, block_out_channels=(8, 16, 32))) == 0
