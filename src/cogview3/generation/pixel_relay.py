"""`PixelRelayPipeline` and its scheduler: the original relay diffusion, in pixels, on diffusers' interfaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import UNet2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from cogview3.config import UserError
from cogview3.diffusion import pixel_relay
from cogview3.generation.calls import Generators, PixelArguments, RelayPipelineOutput, StepCallback
from cogview3.generation.inputs import Picture
from cogview3.models.pixel_unet import TIME_SCALE, on_patches, patch_of, side_multiple
from cogview3.models.registered import register_to_config


@dataclass
class PixelRelaySchedulerOutput(BaseOutput):
    """One step's result.

    Attributes:
        prev_sample: the picture after the step, (B, 3, H, W).
        pred_original_sample: the prediction D of the sharp picture, (B, 3, H, W).
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class PixelRelayScheduler(SchedulerMixin, ConfigMixin):
    """The sampler of `diffusion.pixel_relay`; plain EDM with factor 1.

    As with diffusers' `HeunDiscreteScheduler`, a step of the solvers of second order is two entries of `timesteps`,
    and two calls of `step`.

    Args:
        factor: s, from the small picture's side to the large one's.
        length: L, the share of EDM's noise levels that training knows.
        max_blur: b_max, in pixels.
        floor: of the damping.
        block_share: of the block noise.
        sigma_start: the first step's noise level.
        sigma_min: the last step's.
        rho: spacing of the noise levels between them, `edm_sigmas`.
        solver: "heun" (second order), "euler" (first) or "published_heun".
        eta: share of the noise that is replaced at each step, 0 to 1.

    Raises:
        ValueError: a value out of range.
    """

    config_name: Any  # diffusers' two bases disagree on its type

    @register_to_config
    def __init__(
        self,
        factor: int = 4,
        length: float = 0.93,
        max_blur: float = 3.0,
        floor: float = 0.001,
        block_share: float = 0.15,
        sigma_start: float = 0.9,
        sigma_min: float = 0.008,
        rho: float = 7.0,
        solver: str = "heun",
        eta: float = 0.2,
    ) -> None:
        pixel_relay.check_solver(solver)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta {eta} is out of range: choose 0 (deterministic) to 1")
        self.set_timesteps(1)

    @property
    def order(self) -> int:
        """Calls of the network a step."""
        return 1 if self.config["solver"] == "euler" else 2

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the steps, before sampling.

        Sets `sigmas`, (p + 1,), float64, the noise levels before each step and 0 after the last, `alphas`, (p + 1, s,
        s), the damping at each, and `timesteps`, what the network is given for each call of it: 250 ln sigma.

        Raises ValueError where `num_inference_steps` is no whole number of at least 1.
        """
        config = self.config
        self.sigmas = pixel_relay.edm_sigmas(
            num_inference_steps, config["sigma_start"], config["sigma_min"], config["rho"]
        )
        times = pixel_relay.time_of(self.sigmas, config["length"])
        strengths = pixel_relay.blur_strength(times, config["max_blur"])
        self.alphas = pixel_relay.damping(strengths, config["factor"], config["floor"])
        self.num_inference_steps = num_inference_steps
        # the levels at which the network is called: each step's, and again the next step's where there is one
        self._calls = torch.cat([self.sigmas[:1], self.sigmas[1:-1].repeat_interleave(self.order)])
        self.timesteps = (TIME_SCALE * pixel_relay.preconditioning(self._calls)[3]).float().to(device)
        self._call = 0
        self._kept: tuple[Any, ...] | None = None

    def noise(
        self, shape: tuple[int, ...], generator: Generators, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """n: white noise plus its share of block noise, of `shape` (B, 3, H, W)."""
        if isinstance(generator, Sequence):
            generator = list(generator)  # which is what diffusers takes
        draws = [randn_tensor(shape, generator=generator, device=device, dtype=dtype)]
        if self.config["factor"] > 1 and self.config["block_share"]:
            draws.append(randn_tensor(shape, generator=generator, device=device, dtype=dtype))
        return pixel_relay.relay_noise(draws[0], draws[-1], self.config["factor"], self.config["block_share"])

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """Standard deviation of the noise that sampling starts with, on top of the enlarged small pictures."""
        return self.sigmas[0]

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The forward process: pictures (B, 3, H, W) blurred as at their times, plus sigma n.

        Args:
            original_samples: sharp pictures.
            noise: of `noise`, alike.
            timesteps: 250 ln sigma of each, (B,), such as entries of `timesteps`.
        """
        sigmas = torch.exp(timesteps.double().cpu() / (TIME_SCALE / 4))
        times = pixel_relay.time_of(sigmas, self.config["length"])
        strengths = pixel_relay.blur_strength(times, self.config["max_blur"])
        alphas = pixel_relay.damping(strengths, self.config["factor"], self.config["floor"]).to(original_samples)
        return pixel_relay.forward(original_samples, sigmas.to(original_samples), alphas, noise)

    def start(self, small: torch.Tensor | None, noise: torch.Tensor) -> torch.Tensor:
        """Where sampling starts: sigma n, on the small pictures (B, 3, H/s, W/s) in [-1, 1], enlarged."""
        noisy = self.sigmas[0].to(noise) * noise
        return noisy if small is None else pixel_relay.enlarge(small, self.config["factor"]) + noisy

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """The network's input c_in x, (B, 3, H, W)."""
        return self._preconditioning(sample)[2] * sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> PixelRelaySchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """A step, or the half of one, in the sample's precision; calls are counted, `timestep` is not looked at.

        Args:
            model_output: the network's output, (B, 3, H, W).
            timestep: one of `timesteps`.
            sample: the noisy picture, (B, 3, H, W), not scaled.
            generator: draws the noise of eta > 0; one, or one for each sample.
            return_dict: a `PixelRelaySchedulerOutput` rather than a tuple.

        Raises:
            ValueError: more calls than `timesteps`.
        """
        c_skip, c_out, *_ = self._preconditioning(sample)
        clean = c_skip * sample + c_out * model_output.to(sample.dtype)
        s, eta, solver = self.config["factor"], self.config["eta"], self.config["solver"]
        x0 = pixel_relay.patch_dct(clean, s)
        if self._kept is None:
            i = self._call if self.order == 1 else (self._call + 1) // 2
            sigma, sigma_next = self.sigmas[i : i + 2].tolist()
            levels = (sigma, sigma_next, self.alphas[i], self.alphas[i + 1])
            u, noise = pixel_relay.patch_dct(sample, s), None
            if eta and sigma_next > 0:
                drawn = self.noise(tuple(sample.shape), generator, sample.device, sample.dtype)
                noise = pixel_relay.patch_dct(drawn, s)
            eta = eta if sigma_next > 0 else 0.0
            after = pixel_relay.step(u, x0, *levels, eta, noise)
            if self.order == 2 and sigma_next > 0:
                self._kept = u, x0, after, levels, eta, noise
        else:
            u, before, after, levels, eta, noise = self._kept
            self._kept = None
            after = pixel_relay.corrected(solver, u, (before, x0), after, levels, eta, noise)
        self._call += 1
        previous = pixel_relay.patch_idct(after, s)
        if not return_dict:
            return previous, clean
        return PixelRelaySchedulerOutput(prev_sample=previous, pred_original_sample=clean)

    def _preconditioning(self, sample: torch.Tensor) -> list[torch.Tensor]:
        if self._call >= len(self._calls):
            raise ValueError(f"all {len(self._calls)} timesteps are done: call set_timesteps again")
        return [factor.to(sample) for factor in pixel_relay.preconditioning(self._calls[self._call])]


class PixelRelayPipeline(DiffusionPipeline):
    """Draws pictures in pixels: by relay from small ones, or from noise where the scheduler's factor is 1.

    The small pictures are given, or drawn by a base, which makes the whole system of the paper. Unconditional.

    Args:
        unet: of `models.pixel_unet`.
        scheduler: its scheduler.
        base_unet: a network for the small pictures.
        base_scheduler: its scheduler, of factor 1.
    """

    unet: UNet2DModel
    scheduler: PixelRelayScheduler
    base_unet: UNet2DModel | None
    base_scheduler: PixelRelayScheduler | None
    image_processor: VaeImageProcessor

    model_cpu_offload_seq: Any = "base_unet->unet"  # diffusers declares it as None
    _optional_components: list[str] = ["base_unet", "base_scheduler"]  # noqa: RUF012, as diffusers declares it

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: PixelRelayScheduler,
        base_unet: UNet2DModel | None = None,
        base_scheduler: PixelRelayScheduler | None = None,
    ) -> None:
        super().__init__()
        if base_scheduler is not None and base_scheduler.config["factor"] != 1:
            raise ValueError(f"base_scheduler has factor {base_scheduler.config['factor']}: a base's is 1")
        self.register_modules(unet=unet, scheduler=scheduler, base_unet=base_unet, base_scheduler=base_scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @overload
    def __call__(
        self,
        image: Picture | list[Image.Image] | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        **arguments: Unpack[PixelArguments],
    ) -> RelayPipelineOutput[list[Image.Image]]: ...

    @overload
    def __call__(
        self,
        image: Picture | list[Image.Image] | None = None,
        *,
        output_type: Literal["np"],
        return_dict: Literal[True] = True,
        **arguments: Unpack[PixelArguments],
    ) -> RelayPipelineOutput[np.ndarray]: ...

    @overload
    def __call__(
        self,
        image: Picture | list[Image.Image] | None = None,
        *,
        output_type: Literal["pt"],
        return_dict: Literal[True] = True,
        **arguments: Unpack[PixelArguments],
    ) -> RelayPipelineOutput[torch.Tensor]: ...

    @overload
    def __call__(
        self,
        image: Picture | list[Image.Image] | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        **arguments: Unpack[PixelArguments],
    ) -> Any: ...

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Image.Image] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 20,
        base_steps: int = 20,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> RelayPipelineOutput[Any] | tuple[Any]:
        """Draw pictures of `factor` times the small ones' size.

        Args:
            image: small pictures: PIL, arrays (B, H, W, 3) or tensors (B, 3, H, W) in 0..1, all of one size. By default
                the base draws `batch_size` of them in `base_steps`.
            batch_size, base_steps: see `image`.
            num_inference_steps: steps of the scheduler; Heun's take the network twice each.
            generator: draws all noise; one, or one for each picture.
            output_type: "pil", "np" or "pt".
            return_dict: a `RelayPipelineOutput`; a plain tuple if False.
            callback_on_step_end: called as (pipeline, index, timestep, {"latents"}) after each call of the network;
                what it returns as "latents" replaces the noisy pictures.

        Raises UserError without pictures and a base, or for pictures of a size that the network cannot take.
        """
        factor = self.scheduler.config["factor"]
        small = None
        if image is not None:
            if factor == 1:
                raise UserError("image: this pipeline draws from noise (factor 1); leave image out")
            small = self.image_processor.preprocess(image).to(self.device, self.unet.dtype)
        elif factor > 1:
            if self.base_unet is None or self.base_scheduler is None:
                raise UserError("image: this pipeline has no base to draw the small pictures; give them as image")
            small = self._draw(self.base_unet, self.base_scheduler, base_steps, None, batch_size, generator, None)
            small = small.clamp(-1, 1)
        pictures = self._draw(
            self.unet, self.scheduler, num_inference_steps, small, batch_size, generator, callback_on_step_end
        )
        images = self.image_processor.postprocess(pictures.clamp(-1, 1), output_type=output_type)
        self.maybe_free_model_hooks()
        return RelayPipelineOutput(images=images) if return_dict else (images,)

    def _draw(
        self,
        unet: UNet2DModel,
        scheduler: PixelRelayScheduler,
        steps: int,
        small: torch.Tensor | None,
        batch_size: int,
        generator: Generators,
        callback: StepCallback | None,
    ) -> torch.Tensor:
        patch, device, dtype = patch_of(unet), self._execution_device, unet.dtype
        if small is None:
            shape = (batch_size, 3, *(unet.config["sample_size"] * patch,) * 2)
        else:
            sides = [scheduler.config["factor"] * side for side in small.shape[-2:]]
            multiple = side_multiple(unet)
            if any(side % multiple for side in sides):
                least = multiple // np.gcd(multiple, scheduler.config["factor"])
                raise UserError(
                    f"image: {small.shape[-1]} x {small.shape[-2]} pixels; give sides that are multiples of {least}"
                )
            shape = (len(small), 3, *sides)
        if isinstance(generator, Sequence) and len(generator) != shape[0]:
            raise UserError(f"generator: {len(generator)} for {shape[0]} pictures; give one, or one for each")
        scheduler.set_timesteps(steps, device)
        x = scheduler.start(small, scheduler.noise(shape, generator, device, dtype))
        with self.progress_bar(total=len(scheduler.timesteps)) as bar:
            for index, time in enumerate(scheduler.timesteps):
                output = on_patches(unet, scheduler.scale_model_input(x, time), time, patch)
                x = scheduler.step(output, time, x, generator, return_dict=False)[0]
                if callback is not None:
                    x = (callback(self, index, time, {"latents": x}) or {}).get("latents", x)
                bar.update()
        return x
