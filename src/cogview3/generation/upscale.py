"""Upscaling: relay stages alone, on any picture."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Unpack, overload

import numpy as np
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from cogview3.config import UserError
from cogview3.generation import inputs
from cogview3.generation.base import RelayPipelineBase
from cogview3.generation.calls import Generators, RelayPipelineOutput, StepCallback, UpscaleArguments
from cogview3.generation.latents import LIGHT_COMPONENTS
from cogview3.generation.scheduler import RelayScheduler
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.modes import Mode, Overrides


class CogView3UpscalePipeline(RelayPipelineBase):
    """Doubles pictures' sides by the relay stage, once or several times.

    Takes over the components and the mode of a `CogView3Pipeline` by `from_pipe`, but has no use for the base's
    components; `from_pretrained` leaves them out.

    Args:
        tokenizer, text_encoder: only needed for prompts in words.
        vae, relay_unet, relay_scheduler, latent_enlarger, light_decoder, mode: as of `CogView3Pipeline`.
        unet, scheduler: unused, kept for sharing.
    """

    relay_unet: UNet2DConditionModel
    relay_scheduler: RelayScheduler

    _optional_components: list[str] = [  # noqa: RUF012, as diffusers declares it
        *("tokenizer", "text_encoder", "unet", "scheduler"),
        *LIGHT_COMPONENTS,
    ]
    _required_components: ClassVar[tuple[str, ...]] = ("vae", "relay_unet", "relay_scheduler")
    _skipped_components: ClassVar[tuple[str, ...]] = ("unet", "scheduler")
    _relay_guidance, _first_unet = "_guidance_scale", "relay_unet"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKL,
        relay_unet: UNet2DConditionModel,
        relay_scheduler: RelayScheduler,
        unet: UNet2DConditionModel | None = None,
        scheduler: EulerDiscreteScheduler | None = None,
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

    @overload
    def __call__(
        self,
        image: inputs.Picture | Sequence[inputs.Picture] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        **arguments: Unpack[UpscaleArguments],
    ) -> RelayPipelineOutput[list[Image.Image]]: ...

    @overload
    def __call__(
        self,
        image: inputs.Picture | Sequence[inputs.Picture] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        output_type: Literal["np"],
        return_dict: Literal[True] = True,
        **arguments: Unpack[UpscaleArguments],
    ) -> RelayPipelineOutput[np.ndarray]: ...

    @overload
    def __call__(
        self,
        image: inputs.Picture | Sequence[inputs.Picture] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        output_type: Literal["pt", "latent"],
        return_dict: Literal[True] = True,
        **arguments: Unpack[UpscaleArguments],
    ) -> RelayPipelineOutput[torch.Tensor]: ...

    @overload
    def __call__(
        self,
        image: inputs.Picture | Sequence[inputs.Picture] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        **arguments: Unpack[UpscaleArguments],
    ) -> Any: ...

    @torch.no_grad()
    def __call__(
        self,
        image: inputs.Picture | Sequence[inputs.Picture] | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        num_relays: int = 1,
        guidance_scale: float | None = None,
        relay_start: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ["latents"],
        tile_size: int | None = None,
        eta: float = 0.0,
        light: bool | None = None,
        keep_colors: bool | None = None,
    ) -> RelayPipelineOutput[Any] | tuple[Any]:
        """Enlarge pictures to exactly 2^num_relays times their sides.

        Args:
            image: a PIL picture, an array (H, W, 3), a tensor (3, H, W), batches or lists of them. Floats in
                0..1 or uint8; all of one size, but any: it is padded by reflection and cropped again.
            prompt: what the picture shows, one for all pictures or one for each. Without one, and without a
                negative one, there is no guidance.
            negative_prompt: what guidance leads away from; zeros where left out.
            num_inference_steps: steps of each relay; the mode's relay steps by default.
            num_relays: how often the side is doubled, 1 to 8.
            guidance_scale: 1 and less means none; the mode's relay guidance by default.
            relay_start: T_r, 1 to 1000: higher redraws more; the relay scheduler's by default.
            num_images_per_prompt: enlargements of each picture.
            generator: one for all enlargements, or a list with one for each.
            latents: instead of `image`, another pipeline's of the same autoencoder, scaled, (B, C, h, w), as
                `output_type="latent"` gives them.
            prompt_embeds: (1 or pictures, L, C), instead of `prompt`.
            negative_prompt_embeds: alike, instead of `negative_prompt`.
            output_type: as of `CogView3Pipeline`; the padding of "latent" is not cropped.
            return_dict, callback_on_step_end, callback_on_step_end_tensor_inputs, tile_size, eta: as of
                `CogView3Pipeline`.
            light: whether the model's tiny autoencoder replaces the VAE, after the first enlargement;
                the mode's choice by default.
            keep_colors: set the lowest frequencies of every prediction to those of the picture that is enlarged (see
                `generation.colors`), since without a prompt colors drift. By default where there is no prompt.

        Returns:
            `images`: pictures * num_images_per_prompt of them, those of a picture side by side.

        Raises:
            UserError: wrong arguments, before any work.
            FloatingPointError: a stage overflowed, in float16 say.
        """
        self._check_required(output_type)
        guidance = inputs.check_guidance("guidance_scale", guidance_scale)
        settled = self.settle(
            Overrides(relay_steps=num_inference_steps, relay_guidance=guidance, light=light, relay_start=relay_start)
        )
        self._guidance_scale = settled.relay_guidance_scale
        if keep_colors is None:
            keep_colors = prompt is None and prompt_embeds is None
        count = inputs.check_whole("num_relays", num_relays, 1, 8)
        relays = self._relay_settings(settled, count, relay_start, eta, tile_size, keep_colors)
        tile_size, self._num_timesteps = relays.tile_size, count * relays.steps
        embeds = (prompt_embeds, negative_prompt_embeds)
        negative_prompt, embeds = self._without_negative(negative_prompt, embeds, self.relay_unet)
        texts = (prompt, negative_prompt, *embeds)
        prompts = self._check_text(*texts, self.relay_unet)
        prompts = prompts or self._count_texts("negative_prompt", *texts[1::2], self.relay_unet)
        given = self._check_pictures(image, latents, count)
        if prompts not in (0, 1, len(given)):
            raise UserError(f"{prompts} prompts for {len(given)} pictures: give one for each, or one for all")
        each = inputs.check_whole("num_images_per_prompt", num_images_per_prompt, 1, inputs.MAX_PICTURES)
        pictures, device = len(given) * each, self._execution_device
        run = self._start_run(
            device, pictures, output_type, generator, callback_on_step_end, callback_on_step_end_tensor_inputs
        )

        text, negative = self._embed(*texts, len(given), device)
        run.prompt_embeds = text.repeat_interleave(each, dim=0)
        run.negative_prompt_embeds = None if negative is None else negative.repeat_interleave(each, dim=0)
        given = given.to(device, torch.float32)
        pixels = given if latents is None else self._to_pixels(given, tile_size)
        padded = inputs.pad_reflected(pixels, self._least_side).repeat_interleave(each, dim=0)
        images = self._relays(self._low_res_latents(padded, tile_size), relays, run)
        if output_type != "latent":
            images = self._to_pixels(images, tile_size, relays.light)
            doubled = images.shape[2] // padded.shape[2]
            images = images[:, :, : doubled * pixels.shape[2], : doubled * pixels.shape[3]]
        return self._output(images, output_type, return_dict)

    @property
    def _least_side(self) -> int:
        """Pixels that a side must be a multiple of, so that twice of it fills whole latents."""
        return max(1, self.vae_scale_factor // 2)

    def _check_pictures(
        self, image: inputs.Picture | Sequence[inputs.Picture] | None, latents: torch.Tensor | None, num_relays: int
    ) -> torch.Tensor:
        """The pictures to enlarge, (B, 3, H, W) in -1..1, or the latents, not decoded yet; refuses wrong sizes."""
        if image is not None and latents is not None:
            raise UserError("both image and latents are given: give one of them")
        if image is not None:
            for width, height in inputs.raw_sizes(image):
                inputs.check_enlarged(width, height, num_relays)
            pixels = inputs.to_pixels(image)
            inputs.check_enlarged(pixels.shape[3], pixels.shape[2], num_relays, self._least_side)
            return pixels
        if latents is None:
            raise UserError("neither image nor latents is given: give one of them")
        channels = self.vae.config["latent_channels"]
        if not isinstance(latents, torch.Tensor) or latents.ndim != 4 or latents.shape[1] != channels:
            shape = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise UserError(f"latents is {shape}: give a tensor of shape (B, {channels}, height / 8, width / 8)")
        if not len(latents):
            raise UserError(f"latents is {tuple(latents.shape)}: give at least one picture")
        inputs.check_floats("latents", latents)
        height, width = (side * self.vae_scale_factor for side in latents.shape[2:])
        inputs.check_enlarged(width, height, num_relays, self._least_side)
        return latents

    def _embed(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        pictures: int,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings for each picture; without any prompt one zero token and no unconditional branch.

        Attention to zeros, none of them masked, is the same for any number of them.
        """
        if [prompt, negative_prompt, prompt_embeds, negative_prompt_embeds].count(None) == 4:
            width = self.relay_unet.config["cross_attention_dim"]
            return torch.zeros(pictures, 1, width, device=device), None
        if prompt is not None or prompt_embeds is not None:
            positive, negative = self.encode_prompt(
                prompt, negative_prompt, 1, prompt_embeds, negative_prompt_embeds, device
            )
        else:
            given = negative_prompt_embeds
            negative = (self._encode("negative_prompt", negative_prompt, device) if given is None else given).to(device)
            positive = torch.zeros_like(negative)
        return positive.expand(pictures, -1, -1), negative.expand(pictures, -1, -1)
