"""What is compared: this system in its modes, and what a user would take instead.

Each is run as its users run it: SDXL 50 Euler steps with guidance 5, LCM-SDXL 4 steps with guidance 8 as a condition,
Stable Cascade 20 steps with guidance 4 and 10 without. How many operations each takes is counted on the meta device
from one forward pass of each of its networks, in their real shapes.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from benchmarks.full_size.networks import CLIP_LENGTH, TEXT_LENGTH, build, clip_tokenizer, t5_tokenizer
from diffusers import (
    DDPMWuerstchenScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableCascadeCombinedPipeline,
    StableDiffusionXLPipeline,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cogview3.bench.stopwatch import Watched
from cogview3.generation.attention import constant_text
from cogview3.generation.latents import LIGHT_COMPONENTS
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler, base_scheduler
from cogview3.models.modes import Mode

PROMPT = "a lighthouse on a cliff above a stormy sea at dusk"


class Networks:
    """Networks by name, built when they are first asked for and kept.

    Args:
        scale: "full", "narrow" or "tiny".
        device: where they run; "meta" for counting.
        dtype: their number format.
    """

    def __init__(self, scale: str, device: str | torch.device, dtype: torch.dtype) -> None:
        self.scale, self.device, self.dtype = scale, torch.device(device), dtype
        self.built: dict[str, nn.Module] = {}
        self.compiled: set[str] = set()

    def get(self, name: str) -> nn.Module:
        """A network of `networks.CONFIGS`, on the device."""
        if name not in self.built:
            self.built[name] = build(name, self.scale, self.device, self.dtype)
        return self.built[name]

    def bring(self, names: Sequence[str], free: Callable[[], int] | None = None, reserve: int = 0) -> bool:
        """Have these networks on the device; others make room where there is not enough.

        Args:
            names: those that are needed.
            free: bytes free on the device; None where nothing need make room.
            reserve: bytes to leave free.

        Returns:
            Whether any that had been there before came back.
        """
        away = [name for name in names if name not in self.built or self._is_away(name)]
        if free is not None and away:
            needed = reserve + sum(_bytes(build(name, self.scale, "meta", self.dtype)) for name in away)
            for name in [name for name in self.built if name not in names and not self._is_away(name)]:
                if free() >= needed:
                    break
                self.built[name].to("cpu")
        back = [name for name in away if name in self.built]
        for name in names:
            self.get(name).to(self.device)
        return bool(back)

    def size(self, names: Sequence[str]) -> int:
        """Bytes of these networks' weights."""
        return sum(_bytes(self.get(name)) for name in names)

    def _is_away(self, name: str) -> bool:
        return next(self.built[name].parameters()).device.type != self.device.type


def _bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


@dataclass(frozen=True)
class System(ABC):
    """One way from a prompt to a picture.

    Attributes:
        name: for tables.
        needs: names of its networks.
    """

    name: str
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def pipe(self, networks: Networks) -> Any:
        """The pipeline, on networks that are shared with others."""

    @abstractmethod
    def call(self, side: int) -> dict[str, Any]:
        """Arguments of the pipeline's call."""

    @abstractmethod
    def watched(self, networks: Networks) -> list[Watched]:
        """The networks' methods, to time its parts."""

    @abstractmethod
    def operations(self, networks: Networks, side: int) -> dict[str, int]:
        """Floating-point operations of a picture by part, of networks on the meta device."""

    def names(self) -> tuple[str, ...]:
        """Names of the networks that it uses."""
        return self.needs


def operations(
    network: nn.Module, *arguments: Any, method: str = "__call__", meta: dict[str, Any] | None = None, **options: Any
) -> int:
    """Operations of one call on the meta device, a multiplication and an addition each; shapes stand for tensors."""
    meta = meta or {"device": "meta", "dtype": next(network.parameters()).dtype}

    def tensor(value: Any) -> Any:
        return torch.empty(value, **meta) if isinstance(value, tuple) else value

    inputs = [tensor(value) for value in arguments]
    named = {
        key: {part: tensor(shape) for part, shape in value.items()} if isinstance(value, dict) else tensor(value)
        for key, value in options.items()
    }
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        getattr(network, method)(*inputs, **named)
    return counter.get_total_flops()


def _tokens(length: int) -> torch.Tensor:
    return torch.zeros(1, length, dtype=torch.long, device="meta")


@dataclass(frozen=True)
class RelaySystem(System):
    """This system in one of its modes.

    Attributes:
        mode: steps and guidance, and whether the light parts stand in for the VAE.
        distilled: whether guidance is a condition, with no second branch.
        plain: count cross attention as if it were computed anew at every step and for both branches.
    """

    mode: Mode = field(default_factory=Mode)
    distilled: bool = False
    plain: bool = False

    def names(self) -> tuple[str, ...]:
        """Names of the networks that it uses."""
        prefix = "distilled_" if self.distilled else ""
        return ("t5", "vae", f"{prefix}unet", f"{prefix}relay_unet", *(LIGHT_COMPONENTS if self.mode.light else ()))

    def pipe(self, networks: Networks) -> CogView3Pipeline:
        """Base and relays from 512 pixels at full size."""
        t5, vae, unet, relay, *light = map(networks.get, self.names())
        pipe = CogView3Pipeline(t5_tokenizer(), t5, vae, unet, base_scheduler(), relay, RelayScheduler(), *light)
        pipe._use_mode(self.name, self.mode)
        return pipe

    def call(self, side: int) -> dict[str, Any]:
        """The base draws half the side of 1024 pixels; larger pictures take further relays."""
        return {"height": side, "width": side, "num_relays": self.relays(side), "output_type": "pt"}

    def relays(self, side: int) -> int:
        """How often the side is doubled: once up to 1024 pixels, twice up to 2048."""
        return max(1, math.ceil(math.log2(side / 512)))

    def watched(self, networks: Networks) -> list[Watched]:
        """Text, base, relay, and as "vae" its two halves or what stands in for them."""
        t5, vae, unet, relay, *light = map(networks.get, self.names())
        halves = [(network, "forward") for network in light] or [(vae, "decode"), (vae, "encode")]
        return [
            ("text", t5, "forward"),
            ("base", unet, "forward"),
            ("relay", relay, "forward"),
            *(("vae", network, method) for network, method in halves),
        ]

    def operations(self, networks: Networks, side: int) -> dict[str, int]:
        """By part; decoding and encoding between the stages belong to "vae"."""
        t5, vae, unet, relay, *light = map(networks.get, self.names())
        parts = {"text": operations(t5, _tokens(TEXT_LENGTH)), "relay": 0}
        low = side >> self.relays(side)
        parts["base"] = self._stage(unet, low // 8, self.mode.steps)
        parts["vae"] = 0 if light else operations(vae, (1, 4, low // 8, low // 8), method="decode")
        for larger in (low << number for number in range(1, self.relays(side) + 1)):
            if light:
                parts["vae"] += operations(light[0], (1, 4, larger // 16, larger // 16))
            else:
                parts["vae"] += operations(vae, (1, 3, larger, larger), method="encode")
                parts["vae"] += operations(vae, (1, 4, larger // 8, larger // 8), method="decode")
            parts["relay"] += self._stage(relay, larger // 8, self.mode.relay_steps)
        if light:
            parts["vae"] += operations(light[1], (1, 4, side // 8, side // 8))
        return parts

    def _stage(self, unet: nn.Module, side: int, steps: int) -> int:
        """All steps of a stage: the first also projects the text."""
        rows, config = (1 if self.distilled else 2), unet.config
        texts = rows if self.plain else 1
        options: dict[str, Any] = {"class_labels": (rows, config.projection_class_embeddings_input_dim)}
        if self.distilled:
            options["timestep_cond"] = (rows, config.time_cond_proj_dim)
        meta = {"device": "meta", "dtype": unet.dtype}
        text = torch.empty(texts, TEXT_LENGTH, config.cross_attention_dim, **meta)
        shapes = (rows, 4, side, side), torch.zeros((), device="meta")
        with nullcontext() if self.plain else constant_text(unet):
            first = operations(unet, *shapes, text, **options)
            later = operations(unet, *shapes, text, **options)
        return first + (steps - 1) * later


@dataclass(frozen=True)
class StableDiffusionXL(System):
    """SDXL, or LCM-SDXL, which takes guidance as a condition."""

    steps: int = 50
    guidance: float = 5.0
    lcm: bool = False

    def names(self) -> tuple[str, ...]:
        """Names of the networks that it uses."""
        return ("clip", "big_clip", "vae", "lcm_unet" if self.lcm else "sdxl_unet")

    def pipe(self, networks: Networks) -> StableDiffusionXLPipeline:
        """Diffusers' pipeline."""
        clip, big_clip, vae, unet = map(networks.get, self.names())
        kind = LCMScheduler if self.lcm else EulerDiscreteScheduler
        levels = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        extra = {} if self.lcm else {"timestep_spacing": "leading", "steps_offset": 1}
        return StableDiffusionXLPipeline(
            vae,
            clip,
            big_clip,
            clip_tokenizer(),
            clip_tokenizer(),
            unet,
            kind(**levels, **extra),
            add_watermarker=False,
        )

    def call(self, side: int) -> dict[str, Any]:
        """The steps and guidance that its authors recommend."""
        steps = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        return {"height": side, "width": side, "output_type": "pt", **steps}

    def watched(self, networks: Networks) -> list[Watched]:
        """Text, the UNet as "base", and the decoder."""
        clip, big_clip, vae, unet = map(networks.get, self.names())
        return [
            ("text", clip, "forward"),
            ("text", big_clip, "forward"),
            ("base", unet, "forward"),
            ("vae", vae, "decode"),
        ]

    def operations(self, networks: Networks, side: int) -> dict[str, int]:
        """By part."""
        clip, big_clip, vae, unet = map(networks.get, self.names())
        rows, config = (1 if self.lcm else 2), unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        options: dict[str, Any] = {"added_cond_kwargs": {"text_embeds": (rows, pooled), "time_ids": (rows, 6)}}
        if self.lcm:
            options["timestep_cond"] = (rows, config.time_cond_proj_dim)
        text, latents = (rows, CLIP_LENGTH, config.cross_attention_dim), (rows, 4, side // 8, side // 8)
        step = operations(unet, latents, torch.zeros((), device="meta"), text, **options)
        encoders = operations(clip, _tokens(CLIP_LENGTH)) + operations(big_clip, _tokens(CLIP_LENGTH))
        return {
            "text": encoders,  # no negative prompt is zeros, which are not encoded
            "base": self.steps * step,
            "vae": operations(vae, (1, 4, side // 8, side // 8), method="decode"),
        }


@dataclass(frozen=True)
class StableCascade(System):
    """Stable Cascade: a prior in a strongly compressed space, guided, and a decoder, unguided."""

    needs: ClassVar[tuple[str, ...]] = ("big_clip", "prior", "decoder", "vqgan")
    steps: int = 20
    decoder_steps: int = 10
    guidance: float = 4.0

    def pipe(self, networks: Networks) -> StableCascadeCombinedPipeline:
        """Diffusers' pipeline, both halves with one text encoder."""
        clip, prior, decoder, vqgan = map(networks.get, self.needs)
        tokenizer = clip_tokenizer()
        logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
        before = logger.level
        logger.setLevel(logging.ERROR)  # that they are deprecated
        try:
            return StableCascadeCombinedPipeline(
                tokenizer,
                clip,
                decoder,
                DDPMWuerstchenScheduler(),
                vqgan,
                prior,
                clip,
                tokenizer,
                DDPMWuerstchenScheduler(),
            )
        finally:
            logger.setLevel(before)

    def call(self, side: int) -> dict[str, Any]:
        """The steps and guidance that its authors recommend."""
        return {
            "height": side,
            "width": side,
            "prior_num_inference_steps": self.steps,
            "prior_guidance_scale": self.guidance,
            "num_inference_steps": self.decoder_steps,
            "decoder_guidance_scale": 0.0,
            "output_type": "pt",
        }

    def watched(self, networks: Networks) -> list[Watched]:
        """Text, the prior as "base", its decoder as "relay", and the last decoder as "vae"."""
        clip, prior, decoder, vqgan = map(networks.get, self.needs)
        return [
            ("text", clip, "forward"),
            ("base", prior, "forward"),
            ("relay", decoder, "forward"),
            ("vae", vqgan, "decode"),
        ]

    def operations(self, networks: Networks, side: int) -> dict[str, int]:
        """By part."""
        clip, prior, decoder, vqgan = map(networks.get, self.needs)
        small = math.ceil(side / 42.67)
        large = int(small * 10.67)
        of_prior, of_decoder = prior.config, decoder.config
        pooled = of_prior.clip_text_pooled_in_channels
        prior_step = operations(
            prior,
            (2, of_prior.in_channels, small, small),
            torch.zeros(2, device="meta", dtype=prior.dtype),
            clip_text_pooled=(2, 1, pooled),
            clip_text=(2, CLIP_LENGTH, of_prior.clip_text_in_channels),
            clip_img=(2, 1, of_prior.clip_image_in_channels),
        )
        decoder_step = operations(
            decoder,
            (1, of_decoder.in_channels, large, large),
            torch.zeros(1, device="meta", dtype=decoder.dtype),
            clip_text_pooled=(1, 1, pooled),
            effnet=(1, of_decoder.effnet_in_channels, small, small),
        )
        return {
            "text": 2 * operations(clip, _tokens(CLIP_LENGTH)),
            "base": self.steps * prior_step,
            "relay": self.decoder_steps * decoder_step,
            "vae": operations(vqgan, (1, 4, large, large), method="decode"),
        }


_FULL = Mode(steps=50, relay_steps=10, relay_start=500, blur_estimate="recompute", guidance=7.5)
_EIGHT = Mode(steps=8, relay_steps=2, relay_start=500, distilled=True)
_FOUR = Mode(steps=4, relay_steps=1, relay_start=200, distilled=True)
_LIGHT = Mode(steps=4, relay_steps=1, relay_start=200, distilled=True, light=True)

BASELINE = "SDXL 50"
"""What times and operations are given as a ratio to, at the same size and batch."""

SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        StableDiffusionXL(BASELINE),
        RelaySystem("CogView3 50+10", mode=_FULL),
        RelaySystem("CogView3 8+2", mode=_EIGHT, distilled=True),
        RelaySystem("CogView3 4+1", mode=_FOUR, distilled=True),
        RelaySystem("CogView3 4+1 light", mode=_LIGHT, distilled=True),
        StableCascade("Stable Cascade 20+10"),
        StableDiffusionXL("LCM-SDXL 4", steps=4, guidance=8.0, lcm=True),
    )
}
"""What is measured. A further one is an entry more: a subclass that says its networks, its call and its operations."""

PLAIN = RelaySystem("CogView3 50+10, plain", mode=_FULL, plain=True)
"""For counting alone: the text projected at every step, and both branches' cross attention computed."""
