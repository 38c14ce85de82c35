"""Noise schedule, step lists and prediction types, shared by the base and the relay stage."""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

BETA_SCHEDULES = ("linear", "scaled_linear")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


# Schedule


def make_betas(
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
) -> Tensor:
    """Variance added at each of T times, (T,), float64, in (0, 1).

    "linear" is linear in beta, "scaled_linear", the one used, in sqrt(beta); the names are diffusers'.
    """
    num_train_timesteps = check_count("num_train_timesteps", num_train_timesteps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start {beta_start} and beta_end {beta_end}: choose 0 < beta_start <= beta_end < 1")
    if beta_schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    if beta_schedule == "scaled_linear":
        ends = math.sqrt(beta_start), math.sqrt(beta_end)
        return torch.linspace(*ends, num_train_timesteps, dtype=torch.float64).square()
    raise ValueError(f"beta_schedule {beta_schedule!r} is unknown: choose one of {', '.join(BETA_SCHEDULES)}")


def make_sigmas(
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """sigma_t = sqrt((1 - abar_t) / abar_t), (T,), rising; with the defaults from 0.0292 to 14.6146."""
    betas = make_betas(num_train_timesteps, beta_start, beta_end, beta_schedule)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return torch.sqrt((1 - alphas_cumprod) / alphas_cumprod).to(dtype)


# Step lists


def base_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """Times of the base sampler's steps, t_i = floor((T - 1) (n - i) / n) for i = 0..n-1: 999 first, falling.

    Computed exactly. The release's floating-point version is one lower here and there from 99 steps on.
    """
    num_train_timesteps = check_count("num_train_timesteps", num_train_timesteps)
    num_steps = check_count("num_steps", num_steps)
    if num_steps > num_train_timesteps:
        raise ValueError(
            f"num_steps {num_steps} is more than the {num_train_timesteps} noise levels: choose at most that"
        )
    return _floor((num_train_timesteps - 1) * remaining_time(num_steps)[:-1])


def log_timesteps(num_steps: int, sigmas: Tensor, first: int | None = None) -> list[int]:
    """Times at which log sigma falls evenly from sigma_first towards sigma_0, falling.

    log sigma_{t_i} = log sigma_first + (i/n) (log sigma_0 - log sigma_first) for i = 0..n-1, rounded to the nearest
    time; where more steps than times fall into a range, they take neighboring ones. Solvers of higher order, which are
    exact in log sigma up to a power of its step, do best with it.

    Args:
        num_steps: n, 1 to first + 1.
        sigmas: all noise levels, (T,), rising.
        first: the first step's time, T - 1 by default.
    """
    last = len(sigmas) - 1 if first is None else first
    num_steps = check_count("num_steps", num_steps)
    if num_steps > last + 1:
        raise ValueError(f"num_steps {num_steps} is more than the {last + 1} noise levels from {last} on")
    logs = sigmas.double().log()
    wanted = torch.lerp(logs[0], logs[last], remaining_time(num_steps)[:-1])
    above = torch.searchsorted(logs, wanted).clamp(1, last) if last else torch.zeros(num_steps, dtype=torch.long)
    below = (above - 1).clamp(min=0)
    times = torch.where(wanted - logs[below] < logs[above] - wanted, below, above).tolist()
    times[0] = last
    for i in range(num_steps - 2, 0, -1):
        times[i] = max(times[i], times[i + 1] + 1)
    for i in range(1, num_steps):
        times[i] = min(times[i], times[i - 1] - 1)
    return times


def relay_timesteps(
    num_steps: int, relay_start: int = 500, num_train_timesteps: int = 1000, power: float = 1.0
) -> list[int]:
    """Times of the relay sampler's steps, falling from T_r - 1.

    t_i = floor((T - 1)/T T_r ((p - i)/p)^power) for i = 0..p-1. Power 1 is the release's spacing, its last p
    of n steps, where n = p T / T_r is whole; a higher power spends more of the steps at low noise.

    Raises:
        ValueError: if two steps would fall on the same time; it says how many steps are possible.
    """
    num_steps = check_count("num_steps", num_steps)
    relay_start = check_relay_start(relay_start, num_train_timesteps)
    times = _relay_times(num_steps, relay_start, num_train_timesteps, power)
    if num_steps > relay_start or _repeats(times):
        fewer = range(min(num_steps - 1, relay_start), 0, -1)
        most = next(n for n in fewer if not _repeats(_relay_times(n, relay_start, num_train_timesteps, power)))
        raise ValueError(
            f"num_steps {num_steps} repeats noise levels (relay_start {relay_start}, power {power:g}): "
            f"choose at most {most}"
        )
    return times


def remaining_time(num_steps: int, power: float = 1.0) -> Tensor:
    """u_i = ((p - i)/p)^power for i = 0..p, (p + 1,), float64: 1 before the first step, 0 after the last."""
    num_steps = check_count("num_steps", num_steps)
    if not (math.isfinite(power) and power > 0):
        raise ValueError(f"power {power} is not a positive number: choose 1 for even spacing, 1.5 or 2 for finer ends")
    return (torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps) ** power


def step_sigmas(sigmas: Tensor, timesteps: Sequence[int]) -> Tensor:
    """Noise levels before each step and after the last: sigma_{t_i}, then 0. (T,) and p times -> (p + 1,)."""
    return torch.cat([sigmas[list(timesteps)], sigmas.new_zeros(1)])


def check_count(name: str, count: int) -> int:
    """`count` as an int of at least 1; a ValueError naming it otherwise (also for 2.0 and True)."""
    try:
        whole = operator.index(count)
    except TypeError:
        whole = 0
    if whole < 1 or isinstance(count, bool):
        raise ValueError(f"{name} {count!r} is not a count: choose a whole number of at least 1")
    return whole


def check_relay_start(relay_start: int, num_train_timesteps: int = 1000) -> int:
    """`relay_start` as an int in 1..T; a ValueError naming it otherwise."""
    num_train_timesteps = check_count("num_train_timesteps", num_train_timesteps)
    relay_start = check_count("relay_start", relay_start)
    if relay_start > num_train_timesteps:
        raise ValueError(
            f"relay_start {relay_start} is more than the {num_train_timesteps} noise levels: choose 1 to "
            f"{num_train_timesteps}"
        )
    return relay_start


def _relay_times(num_steps: int, relay_start: int, num_train_timesteps: int, power: float) -> list[int]:
    start = relay_start * (num_train_timesteps - 1) / num_train_timesteps
    return _floor(start * remaining_time(num_steps, power)[:-1])


def _floor(times: Tensor) -> list[int]:
    # Whole numbers come out of the division up to 1e-13 too low; no other time is as near to one as 1e-9.
    return (times + 1e-9).floor().long().tolist()


def _repeats(times: list[int]) -> bool:
    return len(set(times)) < len(times)


# Prediction types: what the network's output means


def expand_to(value: Tensor | float, latents: Tensor) -> Tensor:
    """A number, (), (1,) or (B,) -> a tensor of the latents' dtype and device, to multiply (B, C, H, W)."""
    value = as_tensor(value)
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, latents.shape[0])):
        raise ValueError(
            f"a value of shape {tuple(value.shape)} does not fit latents {tuple(latents.shape)}: "
            f"give one number, or one for each of the {latents.shape[0]} samples"
        )
    # dtype first: some devices have no float64
    return value.to(latents.dtype).to(latents.device).reshape(-1, *[1] * (latents.ndim - 1))


def scale_model_input(z: Tensor, sigma: Tensor | float) -> Tensor:
    """The network's input alpha z = z / sqrt(1 + sigma^2), (B, C, H, W), of unit scale; sigma: () or (B,)."""
    return expand_to(_alpha(sigma), z) * z


def to_x0(model_output: Tensor, z: Tensor, sigma: Tensor | float, prediction_type: str = "epsilon") -> Tensor:
    """The prediction D of z_0 that a network output stands for.

    epsilon: D = z - sigma out. v_prediction: D = alpha^2 z - sigma alpha out. sample: D = out.

    Args:
        model_output: (B, C, H, W).
        z: noisy latents, variance exploding, (B, C, H, W), not yet multiplied by alpha.
        sigma: their noise level, () or (B,).
        prediction_type: one of `PREDICTION_TYPES`.
    """
    gain = expand_to(output_gain(sigma, prediction_type), z)
    if prediction_type == "epsilon":
        return z - gain * model_output
    if prediction_type == "v_prediction":
        return expand_to(_alpha(sigma) ** 2, z) * z - gain * model_output
    return model_output


def target_from_x0(x0: Tensor, z: Tensor, sigma: Tensor | float, prediction_type: str = "epsilon") -> Tensor:
    """What the network must put out so that `to_x0` gives x0: the inverse of `to_x0`.

    epsilon: (z - x0) / sigma. v_prediction: alpha eps - sigma alpha x0 with that eps, which is
    (alpha^2 z - x0) / (sigma alpha). sample: x0. This is the drawn noise only if z = x0 + sigma noise.
    Shapes as in `to_x0`; sigma > 0.
    """
    gain = expand_to(output_gain(sigma, prediction_type), z)
    if prediction_type == "epsilon":
        return (z - x0) / gain
    if prediction_type == "v_prediction":
        return (expand_to(_alpha(sigma) ** 2, z) * z - x0) / gain
    return x0


def output_gain(sigma: Tensor | float, prediction_type: str) -> Tensor:
    """|dD / d output|, sigma, sigma alpha or 1: an output's error times this is D's. Shape of sigma."""
    sigma = as_tensor(sigma)
    if prediction_type == "epsilon":
        return sigma
    if prediction_type == "v_prediction":
        return sigma * _alpha(sigma)
    if prediction_type == "sample":
        return torch.ones_like(sigma)
    raise ValueError(f"prediction_type {prediction_type!r} is unknown: choose one of {', '.join(PREDICTION_TYPES)}")


def snr(sigma: Tensor | float) -> Tensor:
    """Signal-to-noise ratio abar_t / (1 - abar_t) = 1 / sigma^2. Shape of sigma; sigma > 0."""
    return as_tensor(sigma) ** -2


def loss_weight(sigma: Tensor | float, prediction_type: str) -> Tensor:
    """Weight of the output's squared error that makes the loss ||D - z_0||^2 / sigma^2, the release's.

    epsilon: 1. v_prediction: 1 / (1 + sigma^2). sample: 1 / sigma^2. Shape of sigma; sigma > 0.
    """
    return snr(sigma) * output_gain(sigma, prediction_type) ** 2


def min_snr_weight(sigma: Tensor | float, gamma: float, prediction_type: str) -> Tensor:
    """Weight of the output's squared error that makes the loss min(SNR, gamma) ||D - z_0||^2.

    Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); gamma is 5 there. `loss_weight` is its limit for
    infinite gamma. Shape of sigma; sigma > 0.
    """
    if not gamma > 0:
        raise ValueError(f"gamma {gamma} is not positive: choose 5, or inf for no limit")
    return snr(sigma).clamp(max=gamma) * output_gain(sigma, prediction_type) ** 2


def _alpha(sigma: Tensor | float) -> Tensor:
    return (1 + as_tensor(sigma) ** 2) ** -0.5


def as_tensor(value: Tensor | float) -> Tensor:
    """A tensor as it is, a Python number as a float64 one, ()."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
