"""Prompt to picture: the base stage, then relay stages that double the side."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Unpack, overload

import numpy as np
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogview3.config import UserError
from cogview3.diffusion.schedule import base_timesteps, log_timesteps
from cogview3.generation import inputs
from cogview3.generation.base import RelayPipelineBase
from cogview3.generation.calls import DrawArguments, Generators, RelayPipelineOutput, StepCallback
from cogview3.generation.components import check_base_scheduler
from cogview3.generation.latents import LIGHT_COMPONENTS
from cogview3.generation.masks import Masked, keep_in_base, to_mask
from cogview3.generation.scheduler import SAMPLERS, RelayScheduler, sampler_scheduler
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.modes import Mode, Overrides

DEFAULT_STRENGTH = 0.6
"""How much of a given image is redrawn: its layout stays, its objects may change."""


class CogView3Pipeline(RelayPipelineBase):
    """Text to image by relay diffusion.

    Args:
        tokenizer: of T5's kind; its `model_max_length` is the text length. Not needed with prompt embeddings.
        text_encoder: T5 encoder. Not needed with prompt embeddings.
        vae: KL autoencoder with a scaling factor and perhaps a shift factor.
        unet: the base stage; its `sample_size` is the default side in latents.
        scheduler: the base stage's; see `cogview3.generation.scheduler.base_scheduler`. Any of diffusers'
            schedulers that takes `timesteps` will do.
        relay_unet: the relay stage; without one only base pictures are drawn.
        relay_scheduler: the relay stage's.
        latent_enlarger: for `light`: stands in for the VAE between stages.
        light_decoder: for `light`: stands in for the VAE's decoder at the end.
        mode: how calls are sampled by default. Distilled UNets that a pipeline has loaded bring theirs along.

    Raises:
        UserError: components that do not fit each other, or of a kind that is not drawn with.
    """

    unet: UNet2DConditionModel
    scheduler: EulerDiscreteScheduler

    _optional_components: list[str] = [  # noqa: RUF012, as diffusers declares it
        *("tokenizer", "text_encoder", "relay_unet", "relay_scheduler"),
        *LIGHT_COMPONENTS,
    ]
    _required_components: ClassVar[tuple[str, ...]] = ("vae", "unet", "scheduler")

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        scheduler: EulerDiscreteScheduler,
        relay_unet: UNet2DConditionModel | None = None,
        relay_scheduler: RelayScheduler | None = None,
        latent_enlarger: LatentEnlarger | None = None,
        light_decoder: LightDecoder | None = None,
        mode: Mode | str | None = None,
    ) -> None:
        super().__init__()
        self._register(
            mode,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            relay_unet=relay_unet,
            relay_scheduler=relay_scheduler,
            latent_enlarger=latent_enlarger,
            light_decoder=light_decoder,
        )
        self._relay_guidance_scale = 1.0

    @property
    def relay_guidance_scale(self) -> float:
        """Guidance scale of the relay stages."""
        return self._relay_guidance_scale

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        **arguments: Unpack[DrawArguments],
    ) -> RelayPipelineOutput[list[Image.Image]]: ...

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: Literal["np"],
        return_dict: Literal[True] = True,
        **arguments: Unpack[DrawArguments],
    ) -> RelayPipelineOutput[np.ndarray]: ...

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: Literal["pt", "latent"],
        return_dict: Literal[True] = True,
        **arguments: Unpack[DrawArguments],
    ) -> RelayPipelineOutput[torch.Tensor]: ...

    @overload
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        **arguments: Unpack[DrawArguments],
    ) -> Any: ...

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        relay_steps: int | None = None,
        num_relays: int | None = None,
        guidance_scale: float | None = None,
        relay_guidance_scale: float | None = None,
        relay_start: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        image: inputs.Picture | Sequence[inputs.Picture] | None = None,
        strength: float | None = None,
        mask_image: inputs.Picture | Sequence[inputs.Picture] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ["latents"],
        tile_size: int | None = None,
        eta: float = 0.0,
        light: bool | None = None,
        sampler: str | None = None,
    ) -> RelayPipelineOutput[Any] | tuple[Any]:
        """Draw pictures of prompts.

        Args:
            prompt: one prompt or a list of them; longer ones than the text length are cut, with a warning.
            negative_prompt: what guidance leads away from; zeros, not the encoding of "", where left out.
            height: of the final picture in pixels, a multiple of 8 * 2^num_relays; the base's own size times
                2^num_relays by default.
            width: alike.
            num_inference_steps: base steps; the mode's by default.
            relay_steps: steps of each relay; the mode's by default.
            num_relays: how often the side is doubled; 0 gives the base picture. 1 by default where there is a
                relay UNet.
            guidance_scale: of the base; 1 and less means none. The mode's by default.
            relay_guidance_scale: of the relays; the mode's by default.
            relay_start: T_r, 1 to 1000; the relay scheduler's by default.
            num_images_per_prompt: pictures for each prompt.
            generator: one for all pictures, or a list with one for each; it draws the noise of every stage.
            latents: start noise of the base of unit variance, (B, C, h, w), instead of drawing it.
            prompt_embeds: (prompts, L, C), instead of `prompt`; see `encode_prompt`.
            negative_prompt_embeds: alike, instead of `negative_prompt`.
            image: a picture to begin with instead of noise, one for all prompts or one for each, as in
                `CogView3UpscalePipeline`; cut to the final picture's proportions and brought to the base's size.
            strength: how much of `image` is redrawn, above 0 and up to 1: the share of the base's steps that are
                taken, rounded, one at least. 0.6 by default where there is an image, 1 with a mask.
            mask_image: which part of `image` is redrawn, white (1), and which is kept, black (0), in every stage
                and exactly in the finished picture; one for all prompts or one for each, cut as `image` is. Shades
                between blend the finished picture. Latents keep what lies in cells that the mask does not touch.
            output_type: "pil", "np" (B, H, W, 3) or "pt" (B, 3, H, W) in 0..1, or "latent" (B, C, H/8, W/8)
                as the UNet sees them, that is scaled.
            return_dict: a `RelayPipelineOutput`; a plain tuple if False.
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after every step; `step` runs
                over all stages up to `num_timesteps - 1`. Tensors that it returns replace ours; `rows`, indices of
                some of the pictures, drops the others, here and from what is returned.
            callback_on_step_end_tensor_inputs: which tensors it gets: latents, pred_original_sample (what they would be
                when finished, as estimated in this step), prompt_embeds, negative_prompt_embeds.
            tile_size: side in pixels, a multiple of 64, of the overlapping tiles that relays and autoencoder work
                through where a picture is larger, in bounded memory; None works on whole pictures.
            eta: stochasticity of the relay's steps, 0 (the published sampler) to 1.
            light: whether the model's tiny autoencoder replaces the VAE; the mode's choice by default.
            sampler: of the base, "euler" (the published one) or "dpm++" (DPM-Solver++ 2M, which needs fewer steps);
                the mode's by default. Each has its own spacing of the steps.

        Returns:
            `images`: prompts * num_images_per_prompt pictures, those of a prompt side by side.

        Raises:
            UserError: wrong arguments, before any work.
            FloatingPointError: a stage overflowed, in float16 say.
        """
        self._check_required(output_type)
        settled = self.settle(
            Overrides(
                steps=num_inference_steps,
                relay_steps=relay_steps,
                guidance=inputs.check_guidance("guidance_scale", guidance_scale),
                relay_guidance=inputs.check_guidance("relay_guidance_scale", relay_guidance_scale),
                sampler=sampler,
                light=light,
                relay_start=relay_start,
            )
        )
        self._guidance_scale, self._relay_guidance_scale = settled.guidance, settled.relay_guidance_scale
        count = int(self.relay_unet is not None) if num_relays is None else num_relays
        relays = self._relay_settings(settled, count, relay_start, eta, tile_size)
        tile_size, sampler = relays.tile_size, settled.sampler
        scheduler, device = self._base_scheduler(sampler), self._execution_device
        if mask_image is not None and image is None:
            raise UserError("mask_image is given, but there is no image: give one, or leave mask_image out")
        share = self._check_strength(image, strength, latents, mask_image)
        taken = self._set_timesteps(scheduler, sampler, settled.steps, share, device)
        self._num_timesteps = taken + relays.count * relays.steps
        size = self._base_size(height, width, relays.count)
        texts = (prompt_embeds, negative_prompt_embeds)
        each = inputs.check_whole("num_images_per_prompt", num_images_per_prompt, 1, inputs.MAX_PICTURES)
        negative_prompt, texts = self._without_negative(negative_prompt, texts, self.unet)
        prompts = self._check_text(prompt, negative_prompt, *texts, self.unet)
        if not prompts:
            raise UserError("neither prompt nor prompt_embeds is given: give one")
        pictures = prompts * each
        shape = self._check_latents(latents, pictures, size)
        pixels = None if image is None else self._fit_image(image, pictures, each, size)
        masked = None
        if image is not None and mask_image is not None:
            full = size[0] << relays.count, size[1] << relays.count
            original = self._fit_image(image, pictures, each, full)
            masked = Masked(original, self._fit_mask(mask_image, image, pictures, each, full))
        run = self._start_run(
            device, pictures, output_type, generator, callback_on_step_end, callback_on_step_end_tensor_inputs
        )

        run.prompt_embeds, run.negative_prompt_embeds = self.encode_prompt(
            prompt, negative_prompt, each, *texts, device=device
        )
        noise = self._noise(shape, run) if latents is None else latents
        noise = noise.to(device, torch.float32)
        known = None if pixels is None else self._to_latents(pixels.to(device), tile_size)
        keep = None
        if masked is not None and known is not None:
            run.masked = masked.to(device)
            keep = partial(keep_in_base, scheduler, known, run.masked.for_latents(*shape[2:]), noise)
        stage = self._stage(
            run, "base", self.unet, scheduler, "_guidance_scale", size, keep=keep, generator=run.generator
        )
        if known is None:
            begin = noise * scheduler.init_noise_sigma
        else:  # pictures, with as much noise as the first step has
            begin = scheduler.add_noise(known, noise, scheduler.timesteps[:1].expand(len(known)))
        latents = self._denoise(stage, begin, run)
        if relays.count and not self._interrupt:
            latents = self._relays(self._enlarge(latents, tile_size, relays.light), relays, run)
        images = latents if output_type == "latent" else self._to_pixels(latents, tile_size, relays.light)
        if run.masked is not None and output_type != "latent":
            images = run.masked.paste(images)
        return self._output(images, output_type, return_dict)

    @staticmethod
    def default_strength(mask_image: Any = None) -> float:
        """`strength` where a call with an `image` leaves it out: with a mask its part is redrawn from noise."""
        return DEFAULT_STRENGTH if mask_image is None else 1.0

    def _check_latents(
        self, latents: torch.Tensor | None, pictures: int, size: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """The base latents' shape for `size` (height, width) pixels, which given ones must have."""
        height, width = (side // self.vae_scale_factor for side in size)
        shape = (pictures, self.unet.config["in_channels"], height, width)
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise UserError(f"latents is {type(latents).__name__}: give a tensor of shape {shape}")
        if latents is not None and tuple(latents.shape) != shape:
            raise UserError(f"latents are {tuple(latents.shape)}: give {shape} for this size and number of pictures")
        if latents is not None:
            inputs.check_floats("latents", latents)
        return shape

    def _base_size(self, height: int | None, width: int | None, num_relays: int) -> tuple[int, int]:
        """Height and width of the base picture in pixels."""
        multiple = self.vae_scale_factor * 2**num_relays
        sides = self.unet.config["sample_size"]
        defaults = sides if isinstance(sides, list | tuple) else (sides, sides)
        size = []
        for name, value, default in zip(("height", "width"), (height, width), defaults, strict=True):
            if value is None and default is None:
                raise UserError(f"{name} is unset and the UNet has no sample_size: give {name}")
            side = inputs.check_side(name, default * multiple if value is None else value, multiple)
            size.append(side // 2**num_relays)
        return size[0], size[1]

    def _check_strength(self, image: Any, strength: float | None, latents: torch.Tensor | None, mask: Any) -> float:
        """The share of the base's steps to take: all without an image."""
        if image is None:
            if strength is not None:
                raise UserError(f"strength is {strength}, but there is no image: give one, or leave strength out")
            return 1.0
        if latents is not None:
            raise UserError("both image and latents are given: leave one out")
        strength = inputs.check_real("strength", self.default_strength(mask) if strength is None else strength, 0, 1)
        if strength == 0:
            raise UserError("strength is 0, which would draw nothing: give a number above 0 and up to 1")
        return strength

    def _fit_image(
        self, image: inputs.Picture | Sequence[inputs.Picture], pictures: int, per_prompt: int, size: tuple[int, int]
    ) -> torch.Tensor:
        """The pictures to begin with, (pictures, 3, *size) in -1..1."""
        return _for_each("images", inputs.cover(inputs.to_pixels(image), *size), pictures, per_prompt)

    def _fit_mask(self, mask: Any, image: Any, pictures: int, per_prompt: int, size: tuple[int, int]) -> torch.Tensor:
        """The masks at the final size, (pictures, 1, *size) in 0..1."""
        masks, sizes = to_mask(mask), inputs.raw_sizes(image)
        height, width = masks.shape[2:]
        if sizes and sizes[0] != (width, height):
            raise UserError(f"mask_image is {width}x{height}, but image {sizes[0][0]}x{sizes[0][1]}: make them equal")
        return _for_each("masks", inputs.cover(masks, *size).clamp(0, 1), pictures, per_prompt)

    def _base_scheduler(self, sampler: str | None) -> Any:
        """The base's scheduler for this call: the pipeline's own, or a sampler asked for on its noise levels."""
        check_base_scheduler(self.scheduler, tried=False)
        if sampler is None:
            return self.scheduler
        if sampler not in SAMPLERS:
            raise UserError(f"sampler is {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        return sampler_scheduler(sampler, self.scheduler)

    def _set_timesteps(
        self, scheduler: Any, sampler: str | None, steps: int, share: float, device: torch.device
    ) -> int:
        """Give the base's scheduler the last `share` of the step list; returns how many steps that is.

        The list is the published one, and for "dpm++" even in log sigma from the same time on.
        """
        levels = scheduler.config["num_train_timesteps"]
        steps = inputs.check_whole("num_inference_steps", steps, 1, levels)
        taken = max(1, round(share * steps))
        times = base_timesteps(steps, levels)[-taken:]
        if sampler == "dpm++":
            kept = scheduler.alphas_cumprod.double()
            times = log_timesteps(taken, ((1 - kept) / kept).sqrt(), times[0])
        scheduler.set_timesteps(timesteps=times, device=device)
        return len(scheduler.timesteps)  # schedulers of second order make two of each


def _for_each(what: str, given: torch.Tensor, pictures: int, per_prompt: int) -> torch.Tensor:
    """Pictures or masks (1 or prompts, ...), repeated for each of the pictures that are drawn."""
    prompts = pictures // per_prompt
    if len(given) not in (1, prompts):
        raise UserError(f"{len(given)} {what} for {prompts} prompts: give one for each, or one for all")
    return given.expand(prompts, -1, -1, -1).repeat_interleave(per_prompt, dim=0)
