"""What both pipelines share: the denoising loop, pictures to latents and back, relays."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from cogview3.config import UserError
from cogview3.diffusion.relay import enlarge
from cogview3.generation import inputs
from cogview3.generation.attention import constant_text, project_text
from cogview3.generation.light import LIGHT_COMPONENTS, LightMixin
from cogview3.generation.lora import RelayLoraMixin
from cogview3.generation.masks import Keep, Masked, keep_in_relay
from cogview3.generation.pretrained import ModePipeline
from cogview3.generation.prompts import PromptsMixin
from cogview3.generation.rows import check_rows, drop
from cogview3.generation.switches import SwitchesMixin
from cogview3.generation.tiles import blend_tiles
from cogview3.models.unet import guidance_condition, size_conditions, takes_guidance

StepCallback = Callable[[DiffusionPipeline, int, torch.Tensor, dict[str, Any]], dict[str, Any]]
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class Run:
    """What one call carries through all of its stages.

    Attributes:
        device: where the networks run; diffusers takes milliseconds to tell, so it is asked once.
        generator: one for all pictures, or one for each.
        callback: called after every step.
        callback_tensors: names of the tensors that it is given.
        prompt_embeds: (B, L, C).
        negative_prompt_embeds: alike; None where there is no prompt to be guided towards.
        step: steps done so far, over all stages.
        masked: the given pictures of which a part is kept.
        text: whether the running stage is guided, and what its UNet is then given as text; None where that is to be
            made anew.
        rows: the pictures to go on with after a step, where the callback dropped some.
    """

    device: torch.device
    generator: torch.Generator | list[torch.Generator] | None
    callback: StepCallback | None
    callback_tensors: Sequence[str]
    prompt_embeds: torch.Tensor = field(init=False)
    negative_prompt_embeds: torch.Tensor | None = field(init=False)
    step: int = 0
    masked: Masked | None = None
    text: tuple[bool, torch.Tensor] | None = None
    rows: list[int] | None = None


@dataclass(frozen=True)
class Stage:
    """One stage, ready to denoise: `scheduler` has its time steps.

    Attributes:
        name: for progress bars and errors.
        unet: the network.
        dtype: in which it computes.
        scheduler: diffusers' or ours.
        guidance: the pipeline's attribute that holds the guidance scale; read at every step, since callbacks
            may change it.
        labels: the UNet's class labels, (1, 6 * width), or None.
        step_arguments: further arguments of the scheduler's step.
        tile: side of the tiles that the UNet sees, in latents; None where it sees everything.
        keep: puts back, after each step, what a mask keeps.
    """

    name: str
    unet: UNet2DConditionModel
    dtype: torch.dtype
    scheduler: Any
    guidance: str
    labels: torch.Tensor | None
    step_arguments: dict[str, Any]
    tile: int | None = None
    keep: Keep | None = None


@dataclass(frozen=True)
class RelaySettings:
    """How a call's relays are sampled.

    Attributes:
        count: how often the side is doubled.
        steps: steps of each relay.
        start: T_r; None leaves the scheduler's.
        eta: stochasticity of the steps, 0 to 1.
        tile_size: side in pixels of the tiles that larger pictures are cut into; None never cuts.
        light: whether the latent enlarger, where there is one, stands in for the VAE between stages.
        keep_colors: whether the relays' predictions keep the low frequencies of what they enlarge.
    """

    count: int
    steps: int
    start: int | None
    eta: float
    tile_size: int | None
    light: bool = False
    keep_colors: bool = False


class RelayPipelineBase(ModePipeline, PromptsMixin, RelayLoraMixin, SwitchesMixin, LightMixin):
    """Base of `CogView3Pipeline` and `CogView3UpscalePipeline`."""

    model_cpu_offload_seq = "text_encoder->unet->relay_unet->vae"
    # The next network sends only the one before it back to main memory, and a light part may not run at all: were they
    # in the chain, both UNets would stay. They are small, and simply on the device.
    _exclude_from_cpu_offload: ClassVar[list[str]] = list(LIGHT_COMPONENTS)
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "pred_original_sample",
        "prompt_embeds",
        "negative_prompt_embeds",
    ]
    _relay_guidance = "_relay_guidance_scale"

    def _register(self, **components: Any) -> None:
        self.register_modules(**components)
        vae = components["vae"]
        self.vae_scale_factor = inputs.vae_factor(vae.config.block_out_channels) if vae is not None else 8
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

    # Settings of a call

    def _settle_guidance(self, guidance: float | None, mode_guidance: float, given: dict[str, Any]) -> None:
        """Check guidance and whatever else is `given` against the mode; keep the scale for this call."""
        if guidance is not None:
            inputs.check_real("guidance_scale", guidance, 0)
        self.mode.check_distilled(str(self.mode_name), given)
        self._guidance_scale = mode_guidance if guidance is None else guidance

    def _check_relays(self, settings: RelaySettings) -> None:
        """Refuse wrong relay settings; sets the relay scheduler's steps as a trial."""
        inputs.check_whole("num_relays", settings.count, 0, 8)
        if settings.tile_size is not None:  # the autoencoder works in tiles even without a relay
            inputs.check_side("tile_size", settings.tile_size, 8 * self.vae_scale_factor)
        levels = 1000 if self.relay_scheduler is None else self.relay_scheduler.config.num_train_timesteps
        inputs.check_real("eta", settings.eta, 0, 1)
        inputs.check_whole("relay steps", settings.steps, 1, levels)
        if settings.start is not None:
            inputs.check_whole("relay_start", settings.start, 1, levels)
        if settings.count == 0:
            return
        if self.relay_unet is None or self.relay_scheduler is None:
            raise UserError(f"num_relays is {settings.count}, but relay_unet or relay_scheduler is missing: give 0")
        if settings.eta and self.relay_scheduler.config.get("solver_order", 1) == 2:
            raise UserError(f"eta is {settings.eta}, but the relay's solver is of second order: leave eta out")
        try:
            self.relay_scheduler.set_timesteps(settings.steps, relay_start=settings.start)
        except ValueError as error:
            raise UserError(f"relay steps: {error}") from None

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
        inputs.check_output_type(output_type)
        inputs.check_generators(generator, pictures)
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            callback_tensors = callback.tensor_inputs
        inputs.check_callback(callback_tensors, self._callback_tensor_inputs)
        self._interrupt = False
        generator = list(generator) if isinstance(generator, Sequence) else generator
        return Run(device, generator, callback, callback_tensors)

    # Denoising

    def _noise(self, shape: Sequence[int], run: Run) -> torch.Tensor:
        """Standard normal numbers from the run's generators, in float32: the same in every precision."""
        return randn_tensor(tuple(shape), generator=run.generator, device=run.device, dtype=torch.float32)

    def _stage(
        self,
        run: Run,
        name: str,
        unet: UNet2DConditionModel,
        scheduler: Any,
        guidance: str,
        size: tuple[int, int],
        tile_size: int | None = None,
        keep: Keep | None = None,
        **arguments: Any,
    ) -> Stage:
        """A stage that draws `size` (height, width) pixels; drops arguments that the scheduler lacks.

        In tiles, each is drawn as a picture of its own size.
        """
        tile = None if tile_size is None or max(size) <= tile_size else tile_size // self.vae_scale_factor
        if tile is not None:
            size = min(size[0], tile_size), min(size[1], tile_size)
        known = inspect.signature(scheduler.step).parameters
        arguments = {key: value for key, value in arguments.items() if key in known}
        labels, dtype = None, unet.dtype
        if unet.config.class_embed_type is not None:
            width = unet.config.projection_class_embeddings_input_dim // 6
            labels = size_conditions(size, (0, 0), size, width).to(run.device, dtype)
        return Stage(name, unet, dtype, scheduler, guidance, labels, arguments, tile, keep)

    def _denoise(self, stage: Stage, latents: torch.Tensor, run: Run) -> torch.Tensor:
        """Run all steps of a stage on latents (B, C, h, w), float32, and return them."""
        scheduler, run.text, self._stage_name = stage.scheduler, None, stage.name
        with self.progress_bar(total=len(scheduler.timesteps)) as bar, constant_text(stage.unet) as fewer_texts:
            bar.set_description(stage.name)
            for index, timestep in enumerate(scheduler.timesteps):
                if self._interrupt:
                    break
                output = self._predict(stage, latents, timestep, run, fewer_texts)
                stepped = scheduler.step(output, timestep, latents, **stage.step_arguments, return_dict=False)
                latents = stepped[0] if stage.keep is None else stage.keep(stepped[0], index)
                latents = self._call_back(timestep, latents, stepped[-1], run)
                if run.rows is not None:
                    stage, latents = drop(stage, latents, run)
                bar.update()
        if not latents.isfinite().all():
            raise FloatingPointError(
                f"the {stage.name} stage gave infinite or undefined numbers in {stage.dtype}: "
                "use bfloat16 or float32, or a lower guidance"
            )
        return latents

    def _predict(
        self, stage: Stage, latents: torch.Tensor, timestep: torch.Tensor, run: Run, fewer_texts: bool
    ) -> torch.Tensor:
        """The UNet's output in float32, guided: uncond + w (cond - uncond).

        That is guidance of D as well: at fixed z_t, D is affine in the output for every prediction type.
        """
        unet, guidance = stage.unet, getattr(self, stage.guidance)
        sample = stage.scheduler.scale_model_input(latents, timestep).to(stage.dtype)
        guided = guidance > 1 and not takes_guidance(unet) and run.negative_prompt_embeds is not None
        if run.text is None or run.text[0] != guided:
            run.text = guided, _text(run, guided, fewer_texts).to(stage.dtype)
            if self.compiled:
                project_text(unet, run.text[1])
        rows = len(sample) * (2 if guided else 1)
        condition = None
        if takes_guidance(unet):
            condition = guidance_condition(guidance, unet.config.time_cond_proj_dim).to(sample).expand(rows, -1)
        labels = None if stage.labels is None else stage.labels.expand(rows, -1)

        def predict(part: torch.Tensor) -> torch.Tensor:
            output = unet(
                torch.cat([part, part]) if guided else part,
                timestep,
                encoder_hidden_states=run.text[1],
                timestep_cond=condition,
                class_labels=labels,
                return_dict=False,
            )[0].float()
            if not guided:
                return output
            unconditional, conditional = output.chunk(2)
            return unconditional + guidance * (conditional - unconditional)

        return blend_tiles(predict, sample, stage.tile)

    def _call_back(
        self, timestep: torch.Tensor, latents: torch.Tensor, predicted: torch.Tensor, run: Run
    ) -> torch.Tensor:
        """Tell the callback of a step, and take over the tensors that it returns.

        `predicted` is the scheduler's estimate of the finished latents; that of a scheduler without one, the latents.
        """
        step, run.step = run.step, run.step + 1
        if run.callback is None:
            return latents
        tensors = {
            "latents": latents,
            "pred_original_sample": predicted,
            "prompt_embeds": run.prompt_embeds,
            "negative_prompt_embeds": run.negative_prompt_embeds,
        }
        given = {name: tensors[name] for name in run.callback_tensors}
        changed = run.callback(self, step, timestep, given) or {}
        rows = len(run.prompt_embeds)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds = changed.get(name, tensors[name])
            if embeds is not None and len(embeds) != rows:
                raise UserError(f"the callback gave {len(embeds)} {name} for {rows} pictures: give one for each")
            setattr(run, name, embeds)
        if {"prompt_embeds", "negative_prompt_embeds"} & (given.keys() | changed.keys()):
            run.text = None  # it may have been changed in place, too
        run.rows = None if "rows" not in changed else check_rows(changed["rows"], rows)
        return changed.get("latents", latents)

    # Pictures and latents

    @contextmanager
    def _safe_vae(self) -> Iterator[torch.dtype]:
        """Run a float16 VAE in float32 where its configuration says that it overflows; gives what it runs in."""
        dtype = self.vae.dtype
        upcast = dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            self.vae.to(torch.float32)
        try:
            yield torch.float32 if upcast else dtype
        finally:
            if upcast:
                self.vae.to(torch.float16)

    def _to_latents(self, pixels: torch.Tensor, tile_size: int | None = None) -> torch.Tensor:
        """Pictures (B, 3, H, W) in -1..1 to scaled latents (B, C, H/8, W/8): the posterior's mode."""
        factor = self.vae_scale_factor

        def encode(part: torch.Tensor) -> torch.Tensor:
            return self.vae.encode(part.to(dtype)).latent_dist.mode().float()

        tile_size = tile_size or self.vae_tile_size
        with self._safe_vae() as dtype:
            mode = blend_tiles(encode, pixels, tile_size and tile_size // factor, cell=factor)
        inputs.check_numbers("the VAE's encoder", mode, dtype)
        shift = self.vae.config.shift_factor or 0.0
        return (mode - shift) * self.vae.config.scaling_factor

    def _to_pixels(self, latents: torch.Tensor, tile_size: int | None = None, light: bool = False) -> torch.Tensor:
        """Scaled latents to pictures (B, 3, H, W), float32, clamped to -1..1."""
        if light and self.light_decoder is not None:
            return self._light_decode(latents, tile_size)
        shift, factor = self.vae.config.shift_factor or 0.0, self.vae_scale_factor

        def decode(part: torch.Tensor) -> torch.Tensor:
            unscaled = (part / self.vae.config.scaling_factor + shift).to(dtype)
            return self.vae.decode(unscaled, return_dict=False)[0].float()

        tile_size = tile_size or self.vae_tile_size
        with self._safe_vae() as dtype:
            pixels = blend_tiles(decode, latents, tile_size and tile_size // factor, cell_out=factor)
        inputs.check_numbers("the VAE's decoder", pixels, dtype)
        return pixels.clamp(-1, 1)

    def _output(self, images: torch.Tensor, output_type: str, return_dict: bool) -> ImagePipelineOutput | tuple[Any]:
        if output_type != "latent":
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    # Relay

    def _relays(self, low_res_latents: torch.Tensor, settings: RelaySettings, run: Run) -> torch.Tensor:
        """z_L, (B, C, h, w), to latents of finished pictures: as large after one relay, twice that after two."""
        latents = self._relay(low_res_latents, 1, settings, run)
        for number in range(2, settings.count + 1):
            if self._interrupt:
                break
            latents = self._relay(self._enlarge(latents, settings), number, settings, run)
        return latents

    def _enlarge(self, latents: torch.Tensor, settings: RelaySettings) -> torch.Tensor:
        """A stage's latents, (B, C, h, w), to the next one's z_L, (B, C, 2h, 2w)."""
        if settings.light and self.latent_enlarger is not None:
            return self._light_enlarge(latents, settings.tile_size)
        return self._low_res_latents(self._to_pixels(latents, settings.tile_size), settings)

    def _low_res_latents(self, pixels: torch.Tensor, settings: RelaySettings) -> torch.Tensor:
        """z_L of pictures (B, 3, H, W) in -1..1: the mode of x_L, their bilinear enlargement, unrounded."""
        return self._to_latents(enlarge(pixels), settings.tile_size)

    def _relay(self, low_res_latents: torch.Tensor, number: int, settings: RelaySettings, run: Run) -> torch.Tensor:
        """One relay: z_L to latents of a picture of the same size."""
        height, width = (side * self.vae_scale_factor for side in low_res_latents.shape[2:])
        scheduler = self.relay_scheduler
        scheduler.set_timesteps(settings.steps, device=run.device, relay_start=settings.start)
        noise, keep = self._noise(low_res_latents.shape, run), None
        if run.masked is not None:
            known = self._to_latents(run.masked.at(height, width), settings.tile_size)
            mask = run.masked.for_latents(*low_res_latents.shape[2:])
            keep = keep_in_relay(scheduler, known, low_res_latents, mask, noise)
        stage = self._stage(
            run,
            f"relay {number}",
            self.relay_unet,
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


def _text(run: Run, guided: bool, fewer_texts: bool) -> torch.Tensor:
    """Texts for a UNet, those of the unconditional branch first, and left out where they are zeros and may be.

    Always a new tensor, for that is how `TextAttention` knows another text.
    """
    if not guided or (fewer_texts and not run.negative_prompt_embeds.any()):
        return run.prompt_embeds.clone()
    return torch.cat([run.negative_prompt_embeds, run.prompt_embeds])
