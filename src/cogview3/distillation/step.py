"""The student's target: one sampler step that ends where several of its teacher's end.

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512) for both stages. From z_t, noisy data, the teacher goes
k steps of its own step list to z''. The student's list has every k-th of these times, so its single step covers the
same way, and as a sampler step is affine in the prediction D, one D brings the student there exactly:

    z' = kappa D + rest,    D* = (z'' - rest) / kappa.

With sigma, f before the step, sigma', f' after it, r = sigma'/sigma and beta = r f - f':

| step                    | kappa        | rest                           | start of the relay (f = 1)         |
|-------------------------|--------------|--------------------------------|------------------------------------|
| base (f = f' = 0)       | 1 - r        | r z_t                          |                                    |
| relay, z_0^t recomputed | 1 - r + beta | r z_t - beta z_L               | kappa = 1 - f', whatever the noise |
| relay, z_0^t carried    | 1 - f'/f     | r z_t + (f'/f - r) z_0^t       | the same                           |

ERRATUM. The paper's equation 9 is the carried form for linear blur and a stride of 2, but prints D / t. Times below
are the steps left, f = t / T_r; then 1 - f'/f = 1 - (t - 2)/t = 2/t. With 1/t the weights of z_t, D and z_0^t sum to
(t - 1)/t, so that a constant latent is no fixed point: every step would darken the picture. 2/t is built here, k/t for
a stride of k.

The last step ends at sigma' = f' = 0, where kappa = 1 and rest = 0: the student predicts the teacher's end point.

Symbols as in `cogview3.diffusion`; no networks, no random numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cogview3.diffusion import relay, schedule

StepLevels = tuple[Tensor, Tensor, Tensor, Tensor]
"""sigma, sigma', f, f' of a step: noise level and blur fraction before and after it, () or (B,)."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""From z_t (B, C, H, W) and the numbers of the steps to be made (B,), counted from 0, to the predictions D."""


@dataclass(frozen=True)
class Levels:
    """The steps of a sampler, on the CPU.

    Attributes:
        times: time t of each of n steps, (n,), whole, falling.
        sigmas: noise levels before each step and after the last, (n + 1,), falling to 0.
        f: blur fractions alike, from 1 to 0; for the base all 0.
    """

    times: Tensor
    sigmas: Tensor
    f: Tensor

    def at(self, first: Tensor, stride: int) -> StepLevels:
        """Levels of a step that covers `stride` of these from number `first`, (B,)."""
        return self.sigmas[first], self.sigmas[first + stride], self.f[first], self.f[first + stride]


def base_levels(num_steps: int, sigmas: Tensor) -> Levels:
    """The base sampler's steps. sigmas: the schedule, (T,); num_steps: 1 to T, a ValueError otherwise."""
    times = schedule.base_timesteps(num_steps, len(sigmas))
    return Levels(torch.tensor(times), schedule.step_sigmas(sigmas, times), torch.zeros(num_steps + 1).to(sigmas))


def relay_levels(num_steps: int, relay_start: int, sigmas: Tensor, blur: str = "linear", power: float = 1.0) -> Levels:
    """The relay sampler's steps from T_r; arguments as in `schedule.relay_timesteps`, which may raise ValueError."""
    times = schedule.relay_timesteps(num_steps, relay_start, len(sigmas), power)
    levels = schedule.step_sigmas(sigmas, times)
    return Levels(torch.tensor(times), levels, relay.sampler_blur_fractions(num_steps, power, blur, levels).to(sigmas))


def run_steps(
    denoise: Denoiser,
    z: Tensor,
    low: Tensor | None,
    levels: Levels,
    first: Tensor,
    count: int,
    estimate: str = "recompute",
) -> Tensor:
    """`count` deterministic sampler steps from z: the teacher's way, or with all steps a whole sampling.

    Args:
        denoise: the network, guided: D of z_t and of the number of the step.
        z: z_t before the first step, variance exploding, (B, C, H, W).
        low: z_L; with estimate "carry" the estimate z_0^t before the first step; None for the base.
        levels: the sampler's steps.
        first: number of each sample's first step, (B,), at most n - count.
        count: number of steps.
        estimate: what z_0^t is within the relay's steps, one of `relay.BLUR_ESTIMATES`.

    Returns:
        z after the steps, (B, C, H, W).
    """
    for number in range(count):
        step = levels.at(first + number, 1)
        x0 = denoise(z, first + number)
        z = _step(z, x0, low, step, estimate)
        if low is not None and estimate == "carry":
            low = relay.carry(low, x0, *step[2:])
    return z


def step_gain(step: StepLevels, estimate: str = "recompute") -> Tensor:
    """kappa, by which a step passes on an error of D; in (0, 1], () or (B,)."""
    sigma, sigma_next, f, f_next = step
    if estimate == "carry":
        return relay.step_coefficients(sigma, sigma_next, f, f_next)[1]
    r, beta = relay.direct_coefficients(sigma, sigma_next, f, f_next)
    return 1 - r + beta


def student_x0(z: Tensor, z_next: Tensor, low: Tensor | None, step: StepLevels, estimate: str = "recompute") -> Tensor:
    """D* with which the student's step from z ends at z_next: (z'' - rest) / kappa.

    Args:
        z: z_t, (B, C, H, W).
        z_next: z'', where the teacher's steps end, alike.
        low: as in `run_steps`; in carried form the z_0^t that the teacher's steps began with.
        step: the levels of the student's step.
        estimate: as in `run_steps`.
    """
    rest = _step(z, torch.zeros_like(z), low, step, estimate)
    return (z_next - rest) / schedule.expand_to(step_gain(step, estimate), z)


def student_target(
    z: Tensor,
    z_next: Tensor,
    low: Tensor | None,
    step: StepLevels,
    prediction_type: str = "epsilon",
    estimate: str = "recompute",
) -> Tensor:
    """What the student's network must put out at z_t for its step to end at z_next: eps, v or x0 of D*.

    Arguments as in `student_x0`; prediction_type is one of `schedule.PREDICTION_TYPES`.
    """
    return schedule.target_from_x0(student_x0(z, z_next, low, step, estimate), z, step[0], prediction_type)


def step_weight(step: StepLevels, prediction_type: str = "epsilon", estimate: str = "recompute") -> Tensor:
    """Weight of the output's squared error, (kappa |dD/dout|)^2 / (1 + sigma'^2): || z^'' - z'' ||^2 of unit variance.

    The same for every prediction type: it counts what the step adds to the error of the path. The paper's loss is of
    z'' as it stands, variance exploding. But the next step's network is given z'' / (1 + sigma'^2)^(1/2), the variance
    preserving state, and there errors of different steps add up; so each is counted in that unit. A base of 4 steps
    then has the shares 0.05, 0.16, 0.26 and 0.53 of v's error at t = 999, 749, 499 and 249, as what each step's error
    does to the picture; the loss of z'' itself gives them 0.36, 0.24, 0.17 and 0.23. The last step, and with it a
    student of one, has the same weight in both.

    () or (B,).
    """
    gain = step_gain(step, estimate) * schedule.output_gain(step[0], prediction_type)
    return gain**2 / (1 + step[1] ** 2)


def guidance_weight(guidance: Tensor, power: float = 1.0) -> Tensor:
    """Weight of a sample's error by its guidance w, 1 / (1 + |w - 1|^power); shape as `guidance`.

    A guided D is D_cond + (w - 1)(D_cond - D_uncond), so what is hard about w, and with it the squared error, grows as
    (w - 1)^2. Unweighted (power 0), w above 6 would make half the loss of a range from 1 to 8. Power 2 makes
    all w count alike; the relative error, which says how a student responds to guidance, is then left large at
    large w. Power 1, 1/w for w of 1 and more, lies between both.
    """
    return 1 / (1 + (guidance - 1).abs() ** power)


def _step(z: Tensor, x0: Tensor, low: Tensor | None, step: StepLevels, estimate: str) -> Tensor:
    """A sampler step, (B, C, H, W). Without blur the relay's is the base's, z' = r z_t + (1 - r) D."""
    if low is None:
        return relay.direct_step(z, x0, torch.zeros_like(z), *step)
    return relay.relay_step(z, x0, low, *step, estimate=estimate)
