"""The two small networks that stand in for the VAE: shapes, reach, learning, files."""

from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin

from cogview3.models.light import LatentEnlarger, LightDecoder

NETWORKS = [(LatentEnlarger, 2, 4), (LightDecoder, 8, 3)]
Network = type[LatentEnlarger] | type[LightDecoder]


def tiny(kind: Network, **changes: int) -> LatentEnlarger | LightDecoder:
    torch.manual_seed(0)
    return kind(**{"width": 8, "num_blocks": 1, **changes})


@pytest.mark.parametrize(("kind", "factor", "channels"), NETWORKS)
@pytest.mark.parametrize("size", [(4, 4), (3, 7), (1, 1)])
def test_sides_grow_by_the_factor(kind: Network, factor: int, channels: int, size: tuple[int, int]) -> None:
    assert tiny(kind)(torch.zeros(2, 4, *size)).shape == (2, channels, factor * size[0], factor * size[1])


@pytest.mark.parametrize(("kind", "factor", "channels"), NETWORKS)
def test_what_is_far_away_does_not_matter(kind: Network, factor: int, channels: int) -> None:
    """So that tiles equal the whole but near their borders; a block reaches two latents further."""
    network, latents = tiny(kind), torch.randn(1, 4, 1, 24, generator=torch.Generator().manual_seed(1))
    for module in network.modules():  # blocks begin as the identity, which reaches nowhere
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.3)
    changed = latents.clone()
    changed[..., 0] += 1
    moved = (network(changed) - network(latents)).abs().amax((0, 1, 2)).nonzero().max().item() // factor
    reach = {"LatentEnlarger": 5, "LightDecoder": 7}[kind.__name__]
    assert 3 <= moved <= reach


@pytest.mark.parametrize(("kind", "factor", "channels"), NETWORKS)
def test_it_learns_what_it_is_shown(kind: Network, factor: int, channels: int) -> None:
    network, latents = tiny(kind), torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    wanted = torch.nn.functional.interpolate(latents[:, :channels].tanh(), scale_factor=factor, mode="bilinear")
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (network(latents) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("kind", "factor", "channels"), NETWORKS)
def test_files_give_the_same_network(kind: Network, factor: int, channels: int, tmp_path: Path) -> None:
    network = tiny(kind, width=16, num_blocks=2)
    network.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert isinstance(loaded, ModelMixin)
    assert loaded.config.width == 16
    latents = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(loaded(latents), network(latents))


def test_of_the_sizes_that_scenes_has_both_fit_in_little() -> None:
    """Half precision takes two bytes a number; the model's share of the repository for both is 1.5 MiB."""
    numbers = {kind.__name__: sum(p.numel() for p in kind().parameters()) for kind, _, _ in NETWORKS}
    assert 2 * sum(numbers.values()) < 1.5 * 2**20
    assert 2 * numbers["LatentEnlarger"] < 0.6 * 2**20
