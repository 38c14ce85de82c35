"""What both pipelines share: components and settings, the start of a call, relays."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.utils.torch_utils import get_device

from cogview3.config import UserError
from cogview3.generation import inputs
from cogview3.generation.calls import Generators, RelayPipelineOutput, StepCallback
from cogview3.generation.components import check_components, check_networks, check_relay_scheduler
from cogview3.generation.denoising import DenoisingMixin, Run
from cogview3.generation.latents import LIGHT_COMPONENTS, LatentsMixin
from cogview3.generation.loading import vae_factor
from cogview3.generation.lora import RelayLoraMixin
from cogview3.generation.masks import keep_in_relay
from cogview3.generation.pretrained import ModePipeline
from cogview3.generation.prompts import PromptsMixin
from cogview3.generation.scheduler import RelayScheduler
from cogview3.models.modes import Mode
from cogview3.models.unet import takes_guidance

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_FOREIGN = (IPAdapterScaleCutoffCallback,)
"""Callbacks of diffusers for parts that no pipeline here has."""


@dataclass(frozen=True)
class RelaySettings:
    """How a call's relays are sampled, checked: the arguments of pipelines' calls, `count` being `num_relays`."""

    count: int
    steps: int
    start: int | None
    eta: float
    tile_size: int | None
    light: bool = False
    keep_colors: bool = False


class RelayPipelineBase(ModePipeline, PromptsMixin, RelayLoraMixin, LatentsMixin, DenoisingMixin):
    """Base of `CogView3Pipeline` and `CogView3UpscalePipeline`."""

    unet: UNet2DConditionModel | None
    scheduler: EulerDiscreteScheduler | None
    relay_unet: UNet2DConditionModel | None
    image_processor: VaeImageProcessor

    # Without ClassVar, and in the first case without a type, because diffusers declares them so.
    model_cpu_offload_seq: Any = "text_encoder->unet->relay_unet->vae"
    # The next network sends only the one before it back to main memory, and a tiny one may not run at all: were they
    # in the chain, both UNets would stay. They are small, and simply on the device.
    _exclude_from_cpu_offload: list[str] = list(LIGHT_COMPONENTS)  # noqa: RUF012
    _callback_tensor_inputs: list[str] = [  # noqa: RUF012
        *("latents", "pred_original_sample"),
        *("prompt_embeds", "negative_prompt_embeds"),
    ]
    _relay_guidance, _first_unet = "_relay_guidance_scale", "unet"

    def _register(self, mode: Mode | str | None, **components: Any) -> None:
        check_components(components)
        self.register_modules(**components)
        self._begin_mode(mode)
        vae = components["vae"]
        self.vae_scale_factor = vae_factor(vae.config["block_out_channels"]) if vae is not None else 8
        if vae is not None:
            vae.to(memory_format=torch.channels_last)  # spares convolutions the reordering: a fifth of its time on CPUs
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False
        self._stage_name: str | None = None

    # State that callbacks read

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the call's first stage; 1 and less means a single branch."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the first stage runs a second, unconditional branch where there is a prompt."""
        return self._guidance_scale > 1 and not takes_guidance(getattr(self, self._first_unet))

    @property
    def num_timesteps(self) -> int:
        """Steps of the newest call, over all of its stages."""
        return self._num_timesteps

    @property
    def stage(self) -> str | None:
        """The running stage, "base", "relay 1" and so on; None before the first call. Callbacks may ask for it."""
        return self._stage_name

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to stop: the rest is left out, and what is there is decoded."""
        return self._interrupt

    # Offloading

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """As diffusers' own. Raises UserError where no device is given and there is no GPU."""
        _check_accelerator("enable_model_cpu_offload", device)
        super().enable_model_cpu_offload(gpu_id, **({} if device is None else {"device": device}))

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As diffusers' own. Raises UserError where no device is given and there is no GPU."""
        _check_accelerator("enable_sequential_cpu_offload", device)
        super().enable_sequential_cpu_offload(gpu_id, **({} if device is None else {"device": device}))

    # Settings of a call

    def _check_required(self, output_type: Any) -> None:
        """Refuse to draw without a component that is needed, or with one that was put in later and does not fit.

        A base's latents are drawn without a VAE, as distillation does.
        """
        for name in self._required_components:
            if getattr(self, name, None) is None and (name, output_type) != ("vae", "latent"):
                raise UserError(f"this pipeline has no {name}: load the complete model, or give it one")
        check_networks(self.components)

    def _relay_settings(
        self, settled: Mode, count: Any, start: Any, eta: Any, tile_size: Any, keep_colors: bool = False
    ) -> RelaySettings:
        """How this call's relays are sampled; refuses wrong settings, and sets the scheduler's steps as a trial."""
        check_relay_scheduler(self.relay_scheduler)
        levels = 1000 if self.relay_scheduler is None else self.relay_scheduler.config["num_train_timesteps"]
        if tile_size is not None:  # the autoencoder works in tiles even without a relay
            tile_size = inputs.check_side("tile_size", tile_size, 8 * self.vae_scale_factor)
        settings = RelaySettings(
            count=inputs.check_whole("num_relays", count, 0, 8),
            steps=inputs.check_whole("relay steps", settled.relay_steps, 1, levels),
            start=None if start is None else inputs.check_whole("relay_start", start, 1, levels),
            eta=inputs.check_real("eta", eta, 0, 1),
            tile_size=tile_size,
            light=self._check_light(settled.light),
            keep_colors=keep_colors,
        )
        if settings.count:
            _, scheduler = self._relay_parts(settings.count)
            if settings.eta and scheduler.config.get("solver_order", 1) == 2:
                raise UserError(f"eta is {settings.eta}, but the relay's solver is of second order: leave eta out")
            try:
                scheduler.set_timesteps(settings.steps, relay_start=settings.start)
            except ValueError as error:
                raise UserError(f"relay steps: {error}") from None
        return settings

    def _relay_parts(self, count: int) -> tuple[UNet2DConditionModel, RelayScheduler]:
        """The relay's network and scheduler for a call of `count` relays, which must be there."""
        if self.relay_unet is None or self.relay_scheduler is None:
            raise UserError(f"num_relays is {count}, but relay_unet or relay_scheduler is missing: give 0")
        return self.relay_unet, self.relay_scheduler

    def _start_run(
        self,
        device: torch.device,
        pictures: int,
        output_type: str,
        generator: Generators,
        callback: StepCallback | None,
        callback_tensors: Sequence[str],
    ) -> Run:
        """The last checks before work starts."""
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type is {output_type!r}: choose from {', '.join(OUTPUT_TYPES)}")
        generators = inputs.check_generators(generator, pictures)
        if callback is not None and not callable(callback):
            raise UserError(f"callback_on_step_end is a {type(callback).__name__}: give a function")
        if callback is not None and not _takes_four(callback):
            raise UserError(
                f"callback_on_step_end takes {inspect.signature(callback)}: "
                "give a function of the pipeline, the step, its timestep and a dictionary of tensors"
            )
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            callback_tensors = callback.tensor_inputs
            of_other_models = [one for one in getattr(callback, "callbacks", [callback]) if isinstance(one, _FOREIGN)]
            if of_other_models:
                kind = type(of_other_models[0]).__name__
                raise UserError(
                    f"callback_on_step_end has a {kind}, for something that this pipeline lacks: leave it out"
                )
        if not isinstance(callback_tensors, list | tuple):
            raise UserError(f"callback_on_step_end_tensor_inputs is {callback_tensors!r}: give a list of names")
        allowed = self._callback_tensor_inputs
        if unknown := [str(name) for name in callback_tensors if name not in allowed]:
            raise UserError(
                f"callback_on_step_end_tensor_inputs has {', '.join(unknown)}: choose from {', '.join(allowed)}"
            )
        self._interrupt = False
        return Run(device, generators, callback, callback_tensors)

    def _output(
        self, pixels: torch.Tensor, output_type: str, return_dict: bool
    ) -> RelayPipelineOutput[Any] | tuple[Any]:
        images: Any = pixels
        if output_type != "latent":
            images = self.image_processor.postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return RelayPipelineOutput(images=images) if return_dict else (images,)

    # Relay

    def _relays(self, low_res_latents: torch.Tensor, settings: RelaySettings, run: Run) -> torch.Tensor:
        """z_L, (B, C, h, w), to latents of finished pictures: as large after one relay, twice that after two."""
        latents = self._relay(low_res_latents, 1, settings, run)
        for number in range(2, settings.count + 1):
            if self._interrupt:
                break
            latents = self._enlarge(latents, settings.tile_size, settings.light)
            latents = self._relay(latents, number, settings, run)
        return latents

    def _relay(self, low_res_latents: torch.Tensor, number: int, settings: RelaySettings, run: Run) -> torch.Tensor:
        """One relay: z_L to latents of a picture of the same size."""
        height, width = (side * self.vae_scale_factor for side in low_res_latents.shape[2:])
        unet, scheduler = self._relay_parts(settings.count)
        scheduler.set_timesteps(settings.steps, device=run.device, relay_start=settings.start)
        noise, keep = self._noise(low_res_latents.shape, run), None
        if run.masked is not None:
            known = self._to_latents(run.masked.at(height, width), settings.tile_size)
            mask = run.masked.for_latents(*low_res_latents.shape[2:])
            keep = partial(keep_in_relay, scheduler, known, low_res_latents, mask, noise)
        stage = self._stage(
            run,
            f"relay {number}",
            unet,
            scheduler,
            self._relay_guidance,
            (height, width),
            settings.tile_size,
            keep,
            low_res_latents=low_res_latents,
            eta=settings.eta,
            generator=run.generator,
            keep_colors=settings.keep_colors,
        )
        latents = scheduler.add_start_noise(low_res_latents, noise)
        return self._denoise(stage, latents, run)


def _check_accelerator(call: str, device: torch.device | str | None) -> None:
    if device is None and get_device() == "cpu":
        raise UserError(f"{call}: there is no GPU to offload from; leave the call out")


def _takes_four(function: StepCallback) -> bool:
    """Whether a callback can be called with what it is given; True where its signature is unknown, as of builtins."""
    try:
        inspect.signature(function).bind(None, 0, 0, {})
    except TypeError:
        return False
    except ValueError:
        pass
    return True
