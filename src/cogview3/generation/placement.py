"""Where a pipeline's networks are kept: offload, 8-bit weights, prompts encoded first; and the errors for these."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from cogview3.config import OutOfMemory, UserError
from cogview3.generation import inputs
from cogview3.generation.compiling import FEW_STEPS, check_compiler
from cogview3.generation.loading import vae_factor
from cogview3.generation.memory import DRAWING, GIB, Picture, estimates, quantizes, skeletons
from cogview3.prompts.cache import HeldPrompts
from cogview3.references import Reference, find

OFFLOADS = ("none", "model", "sequential")
QUANTIZED = ("int8", "fp8")
FP8_CAPABILITY = (8, 9)
_OPTIONS = {"drop-text-encoder": "--drop-text-encoder"} | {name: f"--offload {name}" for name in OFFLOADS[1:]}


@dataclass(frozen=True)
class Placement:
    """How a pipeline is brought to its device.

    Attributes:
        offload: "none"; "model" keeps the networks in main memory and the one that runs on the device; "sequential" a
            layer, which is much slower.
        quantize: weights of a byte for the linear layers of text encoder and UNets: "int8", or "fp8", whose products
            are computed in 8 bits, too; None leaves them as they are.
        drop_text_encoder: encode all prompts first, and let the text encoder go.
        vae_slicing: the VAE takes one picture at a time; both kinds of offload do so anyway.
        vae_tiling: the VAE works in tiles of 512 pixels.
        compile: compile the networks' blocks.
    """

    offload: str = "none"
    quantize: str | None = None
    drop_text_encoder: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    compile: bool = False

    def check(self, device: str, dtype: torch.dtype | None = None) -> None:
        """Refuse what cannot be had on a device, in a number format if one is given, or together.

        Raises UserError naming the option and the fix.
        """
        kind = torch.device(device).type
        if self.offload not in OFFLOADS:
            raise UserError(f"--offload {self.offload}: choose from {', '.join(OFFLOADS)}")
        if self.quantize not in (None, *QUANTIZED):
            raise UserError(f"--quantize {self.quantize}: choose from {', '.join(QUANTIZED)}")
        if self.offload != "none" and kind == "cpu":
            raise UserError(f"--offload {self.offload} is for a GPU, and the device is the CPU: leave it out")
        if self.offload == "sequential" and (self.quantize or self.compile):
            other = "--quantize" if self.quantize else "--compile"
            raise UserError(
                f"--offload sequential moves single weights, which does not work with {other}: use --offload model"
            )
        if self.quantize == "fp8":
            if kind != "cuda" or torch.cuda.get_device_capability() < FP8_CAPABILITY:
                found = f"not {kind}"
                if kind == "cuda":
                    found = f"and this GPU has {'.'.join(map(str, torch.cuda.get_device_capability()))}"
                raise UserError(f"--quantize fp8 needs a CUDA GPU of capability 8.9 or more, {found}: use int8")
            if dtype not in (None, torch.bfloat16):
                raise UserError("--quantize fp8 works only with --dtype bfloat16: leave --dtype out, or use int8")
        if self.quantize:
            _import_torchao()
        if self.compile:
            check_compiler(device)


def _import_torchao() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchao.quantization
    except ImportError:
        raise UserError('--quantize needs the package torchao: pip install -c constraints.txt ".[quantize]"') from None
    return torchao.quantization


def apply_placement(
    pipe: DiffusionPipeline, device: str, placement: Placement, prompts: Sequence[str | None] = ()
) -> None:
    """Bring a pipeline of ours, loaded into main memory, to a device.

    `prompts` are all that will be asked for; only needed to drop the text encoder.
    """
    placement.check(device)

    def quantize(*names: str) -> None:
        for network in filter(None, (getattr(pipe, name) for name in names)):
            if placement.quantize:
                quantize_network(network, placement.quantize, device if placement.offload == "none" else None)

    quantize("text_encoder")
    if placement.drop_text_encoder and pipe.text_encoder is not None:
        drop_text_encoder(pipe, device, [prompt for prompt in prompts if prompt is not None])
    quantize("unet", "relay_unet")  # which brings them to the device, where the text encoder has gone
    if placement.vae_slicing or placement.offload != "none":
        pipe.enable_vae_slicing()
    if placement.vae_tiling:
        pipe.enable_vae_tiling()
    if placement.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif placement.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if placement.compile:
        few = pipe.mode.steps + pipe.mode.relay_steps <= FEW_STEPS
        pipe.compile_networks(graphs=few and placement.offload == "none")


def quantize_network(network: torch.nn.Module, kind: str, device: str | None = None) -> None:
    """Give a network's linear layers weights of a byte, in place.

    Args:
        network: text encoder or UNet.
        kind: "int8": whole numbers with a scale for each output, multiplied in the network's own format. "fp8":
            weights and what they are multiplied with, with a scale for each row.
        device: where each layer is brought before; None leaves them where they are.
    """
    torchao = _import_torchao()
    if kind == "int8":
        config = torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    else:
        config = torchao.Float8DynamicActivationFloat8WeightConfig(
            granularity=torchao.PerRow(),
            activation_value_lb=1e-12,  # a row of zeros, as texts that are left out are, would be divided by zero
            set_inductor_config=False,
        )
    torchao.quantize_(network, config, filter_fn=quantizes, device=device)


def drop_text_encoder(pipe: DiffusionPipeline, device: str, prompts: Sequence[str]) -> None:
    """Encode all prompts a pipeline will be asked for, into its prompt cache, and let its text encoder go.

    Without a cache on disk they are held in memory.
    """
    pipe.text_encoder.to(device)
    if pipe.prompt_cache is None:
        pipe.prompt_cache = HeldPrompts()
    for prompt in dict.fromkeys(prompts):
        pipe._encode("prompt", prompt, torch.device(device))
    pipe.text_encoder = None
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


# Not enough memory


def model_estimates(
    model: str, mode: str | None, picture: Picture, dtype: torch.dtype, quantize: str | None = None
) -> dict[str, int]:
    """`memory.estimates` for a model by its name; empty for one on the hub, whose configurations are not here.

    Raises UserError for a picture that the model cannot draw, or a damaged configuration.
    """
    found = find(model, mode)
    if found.on_hub:
        return {}
    networks = skeletons(network_folders(found))
    if picture.light is None:
        picture = replace(picture, light=found.settings()[1].light or False)
    check_picture(networks, picture)
    return estimates(networks, picture, dtype, quantize)


def check_picture(networks: Mapping[str, Any], picture: Picture) -> None:
    """Refuse sizes, relays and tiles that pipelines refuse, too, once they are loaded."""
    cell = vae_factor(networks["vae"].config["block_out_channels"])
    relays = picture.relays or 0
    if picture.tile_size is not None:
        inputs.check_side("tile_size", picture.tile_size, 8 * cell)
    if relays and "relay_unet" not in networks:
        raise UserError(f"num_relays is {relays}, but relay_unet or relay_scheduler is missing: give 0")
    _, _, relays = picture.sizes(networks)
    if picture.upscale:
        inputs.check_enlarged((picture.width or cell) >> relays, (picture.height or cell) >> relays, relays)
        return
    for name, side in (("height", picture.height), ("width", picture.width)):
        if side is not None:
            inputs.check_side(name, side, cell * 2**relays)


def network_folders(model: Reference) -> dict[str, Path]:
    """Folders of a model's networks by component, with the UNets of its mode."""
    _, entry = model.settings()
    own = {"unet": entry.unet, "relay_unet": entry.relay_unet}
    folders = {name: model.folder / (own.get(name) or name) for name in DRAWING}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def chosen(placement: Placement) -> str:
    """The one of `memory.MODES` that a placement is."""
    if placement.offload == "none" and placement.drop_text_encoder:
        return "drop-text-encoder"
    return placement.offload


def advice(needs: Mapping[str, int], free: int, placement: Placement) -> str:
    """What would fit: the fastest mode that does, with less, and goes together with the rest, or a smaller picture."""
    whole = placement.quantize or placement.compile
    for name, need in needs.items():
        possible = name in _OPTIONS and need < needs[chosen(placement)] and not (whole and name == "sequential")
        if possible and need <= free:
            return f"{_OPTIONS[name]} needs {need / GIB:.1f} GiB"
    smaller = ["a smaller --batch or --size", "--tile-size 512"] + ["--quantize int8"] * (not placement.quantize)
    if not needs and placement.offload == "none":  # a model on the hub, of which nothing is computed
        smaller.insert(0, "--offload model")
    return f"{'no mode fits: ' if needs else ''}use {', '.join(smaller[:-1])} or {smaller[-1]}"


def check_free(needs: Mapping[str, int], placement: Placement, free: int | None = None) -> None:
    """Refuse, before anything is loaded, what will not fit in the GPU's `free` bytes, asked of it by default.

    `needs` are bytes by mode. Raises OutOfMemory naming the mode that would fit.
    """
    free = torch.cuda.mem_get_info()[0] if free is None else free
    mode = chosen(placement)
    if needs and needs[mode] > free:
        raise OutOfMemory(
            f"about {needs[mode] / GIB:.1f} GiB of GPU memory are needed and {free / GIB:.1f} are free: "
            f"{advice(needs, free, placement)}"
        )


@contextmanager
def explained(needs: Mapping[str, int], placement: Placement) -> Iterator[None]:
    """Turn torch's running out of GPU memory into an error that names the mode that would fit.

    Raises OutOfMemory as `check_free`, though here the estimate said that it would do.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
        raise OutOfMemory(f"the GPU's memory ran out: {advice(needs, total, placement)}") from error
