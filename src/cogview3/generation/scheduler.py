"""`RelayScheduler`: the relay sampler of `diffusion.relay` behind diffusers' scheduler interface."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from cogview3.diffusion import relay, schedule
from cogview3.generation.colors import with_colors_of
from cogview3.models.registered import register_to_config


def base_scheduler(prediction_type: str = "epsilon") -> EulerDiscreteScheduler:
    """Euler's method on CogView3's noise schedule, diffusers' own, for the base stage.

    With `schedule.base_timesteps` as its `timesteps` it is the published sampler; spacing "leading" makes the
    start noise sqrt(1 + sigma_0^2) strong.
    """
    scheduler: EulerDiscreteScheduler = EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="leading",
    )
    return scheduler


SAMPLERS = ("euler", "dpm++")
"""Names of the base's samplers."""


def sampler_scheduler(name: str, scheduler: Any) -> Any:
    """The scheduler of a sampler, on another scheduler's noise levels and prediction type; itself where it is that.

    Args:
        name: "euler", or "dpm++": DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095), diffusers' own. It extrapolates
            each prediction from the one before it, so that fewer steps do; the last step is Euler's.
        scheduler: one of diffusers'.
    """
    if name == "euler":
        same = isinstance(scheduler, EulerDiscreteScheduler)
        return scheduler if same else EulerDiscreteScheduler.from_config(scheduler.config, timestep_spacing="leading")
    return DPMSolverMultistepScheduler.from_config(
        scheduler.config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=False
    )


@dataclass
class RelaySchedulerOutput(BaseOutput):
    """One step's result.

    Attributes:
        prev_sample: latents after the step, (B, C, h, w).
        pred_original_sample: the prediction D of clean latents, (B, C, h, w).
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class RelayScheduler(SchedulerMixin, ConfigMixin):
    """Latent relay diffusion (equations 4 to 7): from blurred, noised latents to sharp ones.

    Latents are variance exploding: z_t = mean + sigma_t eps. Start with `add_start_noise`, give the network
    `scale_model_input`, and `step` with the low-resolution latents z_L.

    Args:
        num_train_timesteps: length of the noise schedule.
        beta_start: its first beta.
        beta_end: its last beta.
        beta_schedule: "scaled_linear" or "linear".
        relay_start: T_r, where sampling starts by default, 1 to num_train_timesteps.
        prediction_type: "epsilon", "v_prediction" or "sample".
        blur: blur schedule, "linear" (the one used), "sigma" or "sin4".
        blur_estimate: z_0^t inside a step: "recompute" (from the newest prediction, the published sampler and
            the one that converges) or "carry" (the paper's Algorithm 1).
        power: spacing of the steps, t_i = T_r ((p - i)/p)^power; above 1 more of them at low noise.
        solver_order: 1, or 2 to extrapolate each prediction from the one before it (`relay.extrapolate`); that is
            for "recompute" and eta 0.

    Raises:
        ValueError: a value out of range.
    """

    order = 1
    config_name: Any  # diffusers' two bases disagree on its type
    _begin_index: int | None

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        relay_start: int = 500,
        prediction_type: str = "epsilon",
        blur: str = "linear",
        blur_estimate: str = "recompute",
        power: float = 1.0,
        solver_order: int = 1,
    ) -> None:
        for name, value, known in (
            ("prediction_type", prediction_type, schedule.PREDICTION_TYPES),
            ("blur", blur, relay.BLUR_KINDS),
            ("blur_estimate", blur_estimate, relay.BLUR_ESTIMATES),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: choose one of {', '.join(known)}")
        if solver_order not in (1, 2) or (solver_order == 2 and blur_estimate == "carry"):
            raise ValueError(f"solver_order {solver_order!r}: choose 1, or 2 with blur_estimate recompute")
        self._all_sigmas = schedule.make_sigmas(num_train_timesteps, beta_start, beta_end, beta_schedule)
        self.set_timesteps(1)
        self.num_inference_steps: int | None = None

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def changed(self, **settings: Any) -> "RelayScheduler":
        """A new scheduler like this one, but for these entries of its configuration."""
        scheduler = RelayScheduler.from_config(self.config, **settings)
        assert isinstance(scheduler, RelayScheduler)
        return scheduler

    @property
    def step_index(self) -> int | None:
        """Index of the next step, None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step where a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say which step comes first, so that it need not be searched for."""
        self._begin_index = begin_index

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None, relay_start: int | None = None
    ) -> None:
        """Choose the steps, before sampling.

        Sets `timesteps`, (p,), whole and falling from T_r - 1, and `sigmas`, (p + 1,), the noise levels
        before each step and 0 after the last.

        Args:
            num_inference_steps: p, 1 to T_r.
            device: of `timesteps`; `sigmas` stay on the CPU.
            relay_start: T_r, the configuration's by default.

        Raises:
            ValueError: more steps than noise levels, or a T_r out of range.
        """
        start, blur = self.config["relay_start"] if relay_start is None else relay_start, self.config["blur"]
        power, total = self.config["power"], self.config["num_train_timesteps"]
        timesteps = schedule.relay_timesteps(num_inference_steps, start, total, power)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(timesteps, device=device)
        self.sigmas = schedule.step_sigmas(self._all_sigmas, timesteps)
        self._blur_fractions = relay.sampler_blur_fractions(num_inference_steps, power, blur, self.sigmas)
        self._step_index: int | None = None
        self._begin_index = None
        self._blurred: torch.Tensor | None = None
        self._x0_before: torch.Tensor | None = None

    def index_for_timestep(self, timestep: int | float | torch.Tensor) -> int:
        """Index of a time in `timesteps`. Raises ValueError where it is none of them."""
        matches = (self.timesteps == timestep).nonzero()
        if not len(matches):
            raise ValueError(f"timestep {timestep} is not one of the {len(self.timesteps)} set: use `timesteps`")
        return int(matches[0])

    def add_start_noise(self, low_res_latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Where sampling starts: z_L + sigma eps with the first step's sigma. Both (B, C, h, w)."""
        return relay.start(low_res_latents, self.sigmas[self._begin_index or 0], noise)

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """Standard deviation of the noise that sampling starts with, on top of z_L."""
        return self.sigmas[self._begin_index or 0]

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        low_res_latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The forward process (equation 5) at training times: F(z_0, t) + sigma_t eps.

        Args:
            original_samples: clean latents z_0, (B, C, h, w).
            noise: alike, of unit variance.
            timesteps: (B,), whole, 0 to T_r - 1 with `low_res_latents`.
            low_res_latents: z_L, (B, C, h, w); without it there is no blur, as of other schedulers.
        """
        times = timesteps.to(self._all_sigmas.device).long()
        sigmas = self._all_sigmas[times].to(original_samples)
        fractions = torch.zeros_like(sigmas)
        if low_res_latents is not None:
            start = self.config["relay_start"]
            fractions = relay.blur_fraction(times, start, self.config["blur"], self._all_sigmas).to(original_samples)
        low = original_samples if low_res_latents is None else low_res_latents
        return relay.forward(original_samples, low, sigmas, fractions, noise)

    def noised(
        self, original_samples: torch.Tensor, low_res_latents: torch.Tensor, noise: torch.Tensor, index: int
    ) -> torch.Tensor:
        """The forward process at noise level `index` of `sigmas`, with the sampler's own blur there.

        Latents and noise (B, C, h, w). Index p, after the last step, gives the clean latents.
        """
        sigma, fraction = self.sigmas[index].to(original_samples), self._blur_fractions[index].to(original_samples)
        return relay.forward(original_samples, low_res_latents, sigma, fraction, noise)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | float | torch.Tensor) -> torch.Tensor:
        """The network's input z_t / sqrt(1 + sigma_t^2), (B, C, h, w)."""
        return schedule.scale_model_input(sample, self.sigmas[self._index(timestep)])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | float | torch.Tensor,
        sample: torch.Tensor,
        low_res_latents: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        keep_colors: bool = False,
    ) -> RelaySchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step of the relay sampler (equations 6 and 7), in float32 at least.

        Args:
            model_output: the network's output of the configured prediction type, guided, (B, C, h, w).
            timestep: one of `timesteps`; only the first one matters, steps are counted from there.
            sample: z_t, (B, C, h, w), not scaled.
            low_res_latents: z_L, (B, C, h, w).
            eta: 0 (deterministic, the published sampler) to 1 (ancestral).
            generator: draws the noise of eta > 0; one, or one for each sample.
            return_dict: a `RelaySchedulerOutput` rather than a tuple.
            keep_colors: set the prediction's lowest frequencies to those of z_L, see `generation.colors`.

        Returns:
            `prev_sample` and `pred_original_sample`, in the output's dtype.

        Raises:
            ValueError: a time that is none of `timesteps`, more steps than set, shapes that differ, or an eta above
                0 with solver_order 2.
        """
        index = self._index(timestep)
        for name, tensor in (("sample", sample), ("low_res_latents", low_res_latents)):
            if tensor.shape != model_output.shape:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)}: give {tuple(model_output.shape)}, like model_output"
                )
        precision = torch.promote_types(sample.dtype, torch.float32)
        output, z_t, low = (tensor.to(precision) for tensor in (model_output, sample, low_res_latents))
        sigma, sigma_next = self.sigmas[index : index + 2].unbind()
        f, f_next = self._blur_fractions[index : index + 2].unbind()
        x0 = schedule.to_x0(output, z_t, sigma, self.config["prediction_type"])
        if keep_colors:
            x0 = with_colors_of(x0, low)
        delta = relay.delta(eta, sigma, sigma_next)
        if eta and self.config["solver_order"] == 2:
            raise ValueError(f"eta is {eta}, but solver_order 2 takes steps without noise: give 0")
        noise = None
        if delta > 0:
            noise = randn_tensor(z_t.shape, generator=generator, device=z_t.device, dtype=precision)
        estimate = self.config["blur_estimate"]
        if estimate == "carry":
            blurred = low if self._blurred is None else self._blurred
            self._blurred = relay.carry(blurred, x0, f, f_next)
            low = blurred
        used, before = x0, self._x0_before
        if self.config["solver_order"] == 2:
            self._x0_before = x0
            if before is not None:
                places = slice(index - 1, index + 2)
                sigmas, fractions = self.sigmas[places].unbind(), self._blur_fractions[places].unbind()
                used = relay.extrapolate(x0, before, sigmas, fractions)
        previous = relay.relay_step(z_t, used, low, sigma, sigma_next, f, f_next, delta, noise, estimate)
        self._step_index = index + 1
        previous, x0 = previous.to(model_output.dtype), x0.to(model_output.dtype)
        if not return_dict:
            return previous, x0
        return RelaySchedulerOutput(prev_sample=previous, pred_original_sample=x0)

    def _index(self, timestep: int | float | torch.Tensor) -> int:
        """Index of the step at hand; the first time it is looked up, later it is counted."""
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        if self._step_index >= len(self.timesteps):
            raise ValueError(f"all {len(self.timesteps)} steps are done: call set_timesteps again")
        return self._step_index
