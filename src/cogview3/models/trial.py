"""Networks tried before they are used: some configurations make one that is built and filled, but cannot compute."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from cogview3.errors import as_user_error
from cogview3.models.light import LatentEnlarger, LightDecoder

_MEND = "its config.json is damaged, copy or export it again"
_LARGE = 300_000_000
"""Parameters."""


def try_network(network: nn.Module, source: object) -> None:
    """Run a network once on the smallest input that it takes.

    Left alone are networks of kinds that no pipeline has, those that are not on the CPU, and large ones, for which it
    would take seconds.

    Args:
        network: not changed.
        source: where it comes from, for the error.

    Raises:
        UserError: it cannot compute what its kind computes, or gives another size than its configuration says.
    """
    trial = next((trial for kind, trial in _TRIALS.items() if isinstance(network, kind)), None)
    parameters = list(network.parameters())
    if trial is None or sum(each.numel() for each in parameters) > _LARGE:
        return
    if any(type(each.data) is not Tensor or each.device.type != "cpu" for each in parameters):
        return
    with torch.no_grad(), as_user_error(f"{source}: a {type(network).__name__} that cannot compute", _MEND):
        trial(network)


def _zeros(network: Any, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=network.dtype)


def _same_size(given: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(given.shape) != shape:
        raise ValueError(f"it gives {tuple(given.shape)} where {shape} is right")


def _unet(network: Any) -> None:
    config, side = network.config, 2 ** len(network.config.block_out_channels)
    for name in ("attention_head_dim", "num_attention_heads"):  # torch takes true for 1 here, and not there
        given = config.get(name)
        if any(isinstance(each, bool) for each in (given if isinstance(given, list | tuple) else [given])):
            raise ValueError(f"{name} is {given}, not a number")
    options: dict[str, Tensor] = {}
    if config.time_cond_proj_dim is not None:
        options["timestep_cond"] = _zeros(network, 1, config.time_cond_proj_dim)
    if config.class_embed_type is not None:
        options["class_labels"] = _zeros(network, 1, config.projection_class_embeddings_input_dim)
    text = _zeros(network, 1, 2, config.cross_attention_dim)
    sample = network(
        _zeros(network, 1, config.in_channels, side, side), _zeros(network), encoder_hidden_states=text, **options
    ).sample
    _same_size(sample, (1, config.out_channels, side, side))


def _autoencoder(network: Any) -> None:
    side = 2 ** (len(network.config.block_out_channels) + 2)
    _same_size(network(_zeros(network, 1, 3, side, side)).sample, (1, 3, side, side))


def _text_encoder(network: Any) -> None:
    states = network(input_ids=torch.zeros(1, 4, dtype=torch.int64)).last_hidden_state
    _same_size(states, (1, 4, network.config.d_model))


def _light(network: Any) -> None:
    channels, factor = network.config.latent_channels, 2 if isinstance(network, LatentEnlarger) else 8
    given = network(_zeros(network, 1, channels, 4, 4))
    _same_size(given, (1, channels if factor == 2 else 3, 4 * factor, 4 * factor))


_TRIALS: dict[type[nn.Module], Callable[[Any], None]] = {
    UNet2DConditionModel: _unet,
    AutoencoderKL: _autoencoder,
    AsymmetricAutoencoderKL: _autoencoder,
    AutoencoderTiny: _autoencoder,
    T5EncoderModel: _text_encoder,
    LatentEnlarger: _light,
    LightDecoder: _light,
}
