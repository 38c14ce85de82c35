"""How much memory a model needs, computed from its configurations alone.

Networks are built on the meta device, where tensors have shapes but no numbers, and are run there: the most bytes that
live at once are what a run needs beside the weights. Attention counts as the fused kernels do it, without the matrix
of weights. What is not in it: workspaces of libraries and gaps between blocks of memory, for which `MARGIN` stands.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5Config, T5EncoderModel

from cogview3.config import UserError
from cogview3.errors import as_user_error
from cogview3.generation.attention import constant_text
from cogview3.generation.latents import LIGHT_COMPONENTS
from cogview3.generation.loading import vae_factor
from cogview3.models.component_folders import untrained
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.prompts.text_models import check_folder

GIB = 2**30
MARGIN = (1.05, GIB // 2)
"""What an estimate is multiplied by, and what is added to it: an allowance, not a measurement."""

MODES = ("none", "drop-text-encoder", "model", "sequential")
"""Ways to place a model, the fastest first."""

DRAWING = ("text_encoder", "vae", "unet", "relay_unet", *LIGHT_COMPONENTS)
"""Components that have weights."""


@dataclass(frozen=True)
class Picture:
    """What is drawn at once.

    Attributes:
        height, width: of the final picture in pixels; None means the model's own size.
        relays: how often a smaller one is doubled on the way; None means once, where there is a relay.
        batch: pictures drawn together.
        guided: whether networks without a guidance condition run a second branch.
        tokens: text length.
        tile_size, vae_tile_size: side in pixels of tiles, of relays and VAE, and of the VAE alone; None for none.
        vae_slicing: whether the VAE works on one picture at a time.
        upscale: whether there is no base stage.
        light: whether the tiny autoencoder replaces the VAE; None means the mode's choice.
        encoded: whether there is text to encode.
    """

    height: int | None = None
    width: int | None = None
    relays: int | None = None
    batch: int = 1
    guided: bool = True
    tokens: int = 225
    tile_size: int | None = None
    vae_tile_size: int | None = None
    vae_slicing: bool = False
    upscale: bool = False
    light: bool | None = None
    encoded: bool = True

    def sizes(self, networks: Mapping[str, Any]) -> tuple[int, int, int]:
        """Height, width and relays, the model's own where they are unset. Raises UserError where it has none."""
        relays = int("relay_unet" in networks) if self.relays is None else self.relays
        side = vae_factor(networks["vae"].config["block_out_channels"]) * 2**relays
        own = networks["unet"].config["sample_size"] if "unet" in networks else 1
        sides = own if isinstance(own, list | tuple) else (own, own)
        for name, given, default in zip(("height", "width"), (self.height, self.width), sides, strict=True):
            if given is None and default is None:
                raise UserError(f"{name} is unset and the UNet has no sample_size: give {name}")
        height, width = (
            side * default if given is None else math.ceil(given / side) * side
            for given, default in zip((self.height, self.width), sides, strict=True)
        )
        return height, width, relays


@dataclass(frozen=True)
class Stage:
    """One part of the work: the networks that are on the device under model offload, and bytes beside the weights."""

    name: str
    networks: tuple[str, ...]
    activations: int


# Networks


def skeletons(folders: Mapping[str, Path]) -> dict[str, nn.Module]:
    """Networks by component on the meta device, from the `config.json` of their folders.

    Raises UserError where a configuration is missing or damaged.
    """
    kinds: dict[str, Callable[[Path], nn.Module]] = {
        "text_encoder": lambda folder: T5EncoderModel(T5Config.from_pretrained(folder)),
        "vae": partial(untrained, AutoencoderKL),
        "unet": partial(untrained, UNet2DConditionModel),
        "relay_unet": partial(untrained, UNet2DConditionModel),
        "latent_enlarger": partial(untrained, LatentEnlarger),
        "light_decoder": partial(untrained, LightDecoder),
    }
    networks = {}
    for name, folder in folders.items():
        check_folder(folder)
        with as_user_error(f"{folder / 'config.json'} is missing or damaged", "export it again"), torch.device("meta"):
            networks[name] = kinds[name](folder).eval()
    return networks


def weight_bytes(network: nn.Module, dtype: torch.dtype, quantize: str | None = None) -> int:
    """Bytes of a network's parameters in a number format; quantized layers have a byte a weight, and scales.

    The VAE is never quantized: it is small, and made of convolutions.
    """
    size = dtype.itemsize
    total = sum(parameter.numel() for parameter in network.parameters()) * size
    if quantize is None or isinstance(network, AutoencoderKL):
        return total
    linear = [module for module in network.modules() if isinstance(module, nn.Linear) and quantizes(module)]
    scale = torch.float32.itemsize
    return total - sum(each.weight.numel() * (size - 1) - each.out_features * scale for each in linear)


def quantizes(module: nn.Module, name: str = "") -> bool:
    """Whether a layer's weights are quantized: linear ones, in shapes that 8-bit products can take."""
    return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0


class _LiveBytes(TorchDispatchMode):
    """The most bytes of storages that live at once, those of `weights` apart."""

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        tensors = [*weights.parameters(), *weights.buffers()]
        self._kept = [tensor.untyped_storage() for tensor in tensors]
        self._seen: dict[int, Any] = {storage._cdata: None for storage in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in self._seen:
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            self._seen[key] = weakref.ref(storage, partial(self._free, key, size))
        return outputs

    def _free(self, key: int, size: int, _: object) -> None:
        del self._seen[key]
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Attention that makes nothing but its result, as fused kernels do. For shapes only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, value = args[0] if args else kwargs["query"], args[2] if len(args) > 2 else kwargs["value"]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


@torch.no_grad()
def peak_bytes(network: nn.Module, call: Callable[[], Any]) -> int:
    """The most bytes that a call on the meta device holds at once, the network's weights not counted."""
    live = _LiveBytes(network)
    with _FusedAttention(), live:
        call()
    return live.peak


# Stages


def stages(networks: Mapping[str, Any], picture: Picture, dtype: torch.dtype) -> list[Stage]:
    """The parts of drawing a picture in the order of their first run, each with what it needs beside the weights.

    `networks` are as `skeletons` gives them, and are cast to `dtype`.
    """
    for network in networks.values():
        nn.Module.to(network, dtype)  # diffusers' own warns of layers that need float32, a line each
    vae = networks["vae"]
    factor, (height, width, relays) = vae_factor(vae.config["block_out_channels"]), picture.sizes(networks)
    enlarger, decoder = (networks.get(name) if picture.light else None for name in LIGHT_COMPONENTS)
    sides = [(height >> number, width >> number) for number in range(relays, -1, -1)]
    found = []
    on_device: tuple[str, ...] = ()  # what the stage before leaves there under model offload

    def decoding(size: tuple[int, int]) -> Stage:
        if decoder is not None:
            return Stage("decode", on_device, _light_peak(decoder, size, factor, picture, dtype))
        return Stage("decode", (*on_device, "vae"), _vae_peak(vae, size, picture, dtype, factor, False))

    if "text_encoder" in networks and picture.encoded:
        tokens = torch.zeros(picture.batch, picture.tokens, dtype=torch.long, device="meta")
        encoder = networks["text_encoder"]
        found.append(Stage("text", ("text_encoder",), peak_bytes(encoder, lambda: encoder(tokens))))
        on_device = ("text_encoder",)
    if not picture.upscale:
        found.append(Stage("base", ("unet",), _unet_peak(networks["unet"], sides[0], None, picture, dtype, factor)))
        on_device = ("unet",)
        if enlarger is None or not relays:
            found.append(decoding(sides[0]))
    for number, size in enumerate(sides[1:]):
        if enlarger is not None and (number or not picture.upscale):
            found.append(Stage("enlarge", on_device, _light_peak(enlarger, size, 2 * factor, picture, dtype)))
        else:
            found.append(Stage("encode", (*on_device, "vae"), _vae_peak(vae, size, picture, dtype, factor, True)))
            on_device = (*on_device, "vae")
        relay = _unet_peak(networks["relay_unet"], size, picture.tile_size, picture, dtype, factor)
        left = ("vae",) if "vae" in on_device else ()
        found.append(Stage("relay", (*left, "relay_unet"), relay))
        on_device = ("relay_unet",) if enlarger is not None or decoder is not None else ()
        if enlarger is None or number == relays - 1:
            found.append(decoding(size))
    return found


def _unet_peak(
    unet: UNet2DConditionModel, size: tuple[int, int], tile: int | None, picture: Picture, dtype: Any, factor: int
) -> int:
    height, width = (min(side, tile or side) // factor for side in size)
    config, batch = unet.config, picture.batch
    guidance_width = config["time_cond_proj_dim"]
    rows = batch * (2 if picture.guided and guidance_width is None else 1)
    meta: dict[str, Any] = {"device": "meta", "dtype": dtype}
    labels = None
    if config["class_embed_type"] is not None:
        labels = torch.empty(rows, config["projection_class_embeddings_input_dim"], **meta)
    condition = None if guidance_width is None else torch.empty(rows, guidance_width, **meta)
    text = torch.empty(batch, picture.tokens, config["cross_attention_dim"], **meta)

    def call() -> None:
        sample = torch.empty(rows, config["in_channels"], height, width, **meta)
        time = torch.empty((), device="meta")
        unet(sample, time, encoder_hidden_states=text, class_labels=labels, timestep_cond=condition)

    with constant_text(unet):
        return peak_bytes(unet, call)


def _vae_peak(
    vae: AutoencoderKL, size: tuple[int, int], picture: Picture, dtype: Any, factor: int, encode: bool
) -> int:
    tile = picture.tile_size or picture.vae_tile_size
    height, width = (min(side, tile or side) for side in size)
    rows = 1 if picture.vae_slicing else picture.batch
    meta: dict[str, Any] = {"device": "meta", "dtype": dtype}

    def call() -> None:
        if encode:
            vae.encode(torch.empty(rows, 3, height, width, **meta)).latent_dist.mode()
        else:
            channels = vae.config["latent_channels"]
            vae.decode(torch.empty(rows, channels, height // factor, width // factor, **meta)).sample.float()

    # beside it the whole batch's pictures in float32, twice: what comes out, and what is made of it
    return peak_bytes(vae, call) + 2 * picture.batch * 3 * size[0] * size[1] * 4


def _light_peak(
    network: LatentEnlarger | LightDecoder, size: tuple[int, int], factor: int, picture: Picture, dtype: torch.dtype
) -> int:
    """Of a tiny network that takes latents `factor` times smaller than `size`; a batch goes through it at once."""
    height, width = (min(side, picture.tile_size or side) // factor for side in size)
    shape = picture.batch, network.config["latent_channels"], height, width

    def call() -> None:
        network(torch.empty(shape, device="meta", dtype=dtype)).float()

    return peak_bytes(network, call) + 2 * picture.batch * 3 * size[0] * size[1] * 4


# Estimates


def estimates(
    networks: Mapping[str, nn.Module], picture: Picture, dtype: torch.dtype, quantize: str | None = None
) -> dict[str, int]:
    """Bytes on the device at the peak, margin included, for each of `MODES`.

    none: everything is there from the beginning. drop-text-encoder: the prompts are encoded first, by the text encoder
    alone. model: the network that runs, and those that diffusers leaves there. sequential: a layer at a time; left out
    for quantized weights, which it cannot move. The two kinds of offload switch VAE slicing on. `networks` are as
    `skeletons` gives them; `quantize` is "int8" or "fp8" for weights of a byte in text encoder and UNets.
    """
    sliced = replace(picture, vae_slicing=True)
    unused = ["unet"] * picture.upscale + ["text_encoder"] * (not picture.encoded)
    used = [name for name in networks if name not in unused]
    weights = {name: weight_bytes(networks[name], dtype, quantize) for name in used}
    whole = stages(networks, picture, dtype)
    offloaded = whole if picture.vae_slicing or picture.batch == 1 else stages(networks, sliced, dtype)
    without_text = sum(size for name, size in weights.items() if name != "text_encoder")
    of_text = max((stage.activations for stage in whole if stage.name == "text"), default=0)
    of_pictures = max(stage.activations for stage in whole if stage.name != "text")
    modules = (module for name in used for module in networks[name].modules())
    layers = [sum(each.numel() for each in module.parameters(recurse=False)) for module in modules]
    peaks = {
        "none": sum(weights.values()) + max(of_text, of_pictures),
        "drop-text-encoder": max(weights.get("text_encoder", 0) + of_text, without_text + of_pictures),
        "model": max(sum(weights.get(name, 0) for name in each.networks) + each.activations for each in offloaded)
        + sum(weights.get(name, 0) for name in LIGHT_COMPONENTS),
        "sequential": max(layers) * dtype.itemsize  # the largest layer's weights
        + max(each.activations for each in offloaded),
    }
    if quantize:
        del peaks["sequential"]
    return {mode: round(peak * MARGIN[0]) + MARGIN[1] for mode, peak in peaks.items()}
