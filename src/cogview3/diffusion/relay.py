"""Latent relay diffusion: the second stage, which starts from a blurred picture instead of from noise.

Equations 4 to 7 of CogView3 (arXiv 2403.05121). The symbols are those of `cogview3.diffusion`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cogview3.diffusion.schedule import (
    as_tensor,
    check_count,
    check_relay_start,
    expand_to,
    make_sigmas,
    relay_timesteps,
    remaining_time,
    step_sigmas,
    target_from_x0,
)

BLUR_KINDS = ("linear", "sigma", "sin4")
BLUR_ESTIMATES = ("recompute", "carry")


# Pictures


def enlarge(x: Tensor, factor: int = 2) -> Tensor:
    """Bilinear enlargement, align_corners=False: (B, C, H, W), floating -> (B, C, factor H, factor W)."""
    _check_pictures(x)
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def low_resolution(x: Tensor) -> Tensor:
    """x_L of x_0: halved by 2 x 2 means (bilinear, not antialiased), then enlarged. (B, C, H, W), even."""
    _check_pictures(x)
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"a picture of {x.shape[-1]} x {x.shape[-2]} cannot be halved: crop it to even sides")
    return enlarge(F.avg_pool2d(x, 2))


def _check_pictures(x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"pictures {tuple(x.shape)} of {x.dtype}: give floating-point ones, (B, C, H, W)")


# Blur


def blur_fraction(
    t: Tensor | int | float, relay_start: int, kind: str = "linear", sigmas: Tensor | None = None
) -> Tensor:
    """f_t at the training times t = 0..T_r - 1. Shape of t, in 0..1.

    linear, the one used: t / T_r. sigma: sigma_t / sigma_{T_r - 1}, for T_r - 1 is where sampling starts.
    sin4: (1 - exp(-sin^4(pi (t + 1) / (2 T_r)))) / (1 - 1/e).

    Args:
        t: times, () or (B,); whole numbers for kind "sigma".
        relay_start: T_r.
        kind: one of `BLUR_KINDS`.
        sigmas: the schedule of `make_sigmas`, (T,), on t's device; needed for kind "sigma" only.
    """
    t = torch.as_tensor(t)
    relay_start = check_count("relay_start", relay_start)
    if bool(((t < 0) | (t >= relay_start)).any()):
        raise ValueError(f"times {t.tolist()} are not all in the relay stage: choose 0 to {relay_start - 1}")
    if kind == "linear":
        return t / relay_start
    if kind == "sin4":
        return _sin4((t + 1) / relay_start)
    if kind == "sigma":
        if sigmas is None or t.is_floating_point():
            raise ValueError("blur 'sigma' needs the schedule's sigmas and whole times: give them, or use 'linear'")
        check_relay_start(relay_start, len(sigmas))
        return sigmas[t] / sigmas[relay_start - 1]
    raise ValueError(_unknown("blur", kind, BLUR_KINDS))


def sampler_blur_fractions(
    num_steps: int, power: float = 1.0, kind: str = "linear", sigmas: Tensor | None = None
) -> Tensor:
    """Blur fractions f before each of p steps and after the last, (p + 1,): from exactly 1 to exactly 0.

    They belong to the times before rounding, T_r u with u = ((p - i)/p)^power: the sampler starts fully
    blurred from any T_r, though the rounded time T_r - 1 had f slightly below 1 in training.
    linear: u, which is (steps left)/p for power 1. sigma: sigma_{t_i} / sigma_{t_0}.
    sin4: as in `blur_fraction`, with t + 1 = T_r u.

    Args:
        num_steps: p.
        power: spacing of the steps, as given to `relay_timesteps`.
        kind: one of `BLUR_KINDS`.
        sigmas: the noise levels of the steps, (p + 1,) (`step_sigmas`); needed for kind "sigma" only.
    """
    u = remaining_time(num_steps, power)
    if kind == "linear":
        return u
    if kind == "sin4":
        return _sin4(u)
    if kind == "sigma":
        if sigmas is None or sigmas.shape != u.shape:
            raise ValueError(f"blur 'sigma' needs the {len(u)} noise levels of {num_steps} steps: give step_sigmas")
        return sigmas / sigmas[0]
    raise ValueError(_unknown("blur", kind, BLUR_KINDS))


def blur(z0: Tensor, zL: Tensor, f: Tensor | float) -> Tensor:
    """F(z_0, t) = (1 - f_t) z_0 + f_t z_L (equation 4). Latents (B, C, H, W); f: () or (B,), in 0..1."""
    f = expand_to(f, z0)
    return (1 - f) * z0 + f * zL


def _sin4(u: Tensor) -> Tensor:
    return (1 - torch.exp(-(torch.sin(math.pi / 2 * u) ** 4))) / (1 - math.exp(-1))


def _unknown(name: str, value: str, known: tuple[str, ...]) -> str:
    return f"{name} {value!r} is unknown: choose one of {', '.join(known)}"


# Forward process and training target


def forward(z0: Tensor, zL: Tensor, sigma: Tensor | float, f: Tensor | float, noise: Tensor) -> Tensor:
    """z_t = F(z_0, t) + sigma_t eps (equation 5). Latents and noise (B, C, H, W); sigma, f: () or (B,)."""
    return blur(z0, zL, f) + expand_to(sigma, z0) * noise


def start(zL: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """Where sampling starts: z_L + sigma eps, with the first step's sigma. zL, noise: (B, C, H, W)."""
    return zL + expand_to(sigma, zL) * noise


def add_offset_noise(noise: Tensor, offset: Tensor, strength: float = 0.05) -> Tensor:
    """Noise plus strength * offset: one more standard normal number a sample, (B,), for all its latents."""
    return noise + strength * expand_to(offset, noise)


def relay_target(z0: Tensor, z_t: Tensor, sigma: Tensor | float, prediction_type: str = "epsilon") -> Tensor:
    """What the relay network must put out for D to be z_0 (equation 5's loss ||D - z_0||^2).

    For eps this is (z_t - z_0) / sigma = eps + f (z_L - z_0) / sigma and NOT the drawn noise, since z_t is
    centered on the blurred latents; v likewise follows from D. Weight the squared error with `loss_weight`,
    which is 1 for eps. Shapes as in `schedule.target_from_x0`.
    """
    return target_from_x0(z0, z_t, sigma, prediction_type)


# Sampler


def delta(eta: float, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """Noise added in a step, eta sigma' sqrt(1 - (sigma'/sigma)^2). eta: 0..1; 0 <= sigma' <= sigma."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta {eta} is out of range: choose 0 (deterministic) to 1 (ancestral)")
    sigma, sigma_next = as_tensor(sigma), as_tensor(sigma_next)
    return eta * sigma_next * torch.sqrt(1 - (sigma_next / sigma) ** 2)


def step_coefficients(
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    f: Tensor | float,
    f_next: Tensor | float,
    delta: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients a, b, c of z' = a z_t + b D + c z_0^t + delta eps (equation 6), for any blur and stride.

    a = sqrt(sigma'^2 - delta^2) / sigma, b = 1 - f'/f, c = f'/f - a. With linear blur and t steps left these
    are the paper's b = 1/t and c = (t - 1)/t - a. Where f = 0 nothing is left to deblur, and the step is
    DDIM's. All arguments () or (B,); 0 <= f' <= f, delta <= sigma' <= sigma.
    """
    f = as_tensor(f)
    a = _kept(sigma, sigma_next, delta)
    kept_blur = torch.where(f > 0, as_tensor(f_next) / f, 0.0)
    return a, 1 - kept_blur, kept_blur - a


def relay_step(
    z_t: Tensor,
    x0: Tensor,
    zL_or_blurred: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    f: Tensor | float,
    f_next: Tensor | float,
    delta: Tensor | float = 0.0,
    noise: Tensor | None = None,
    estimate: str = "recompute",
) -> Tensor:
    """One sampler step z_t -> z' (equations 6 and 7), (B, C, H, W), for any blur, stride and eta.

    What stands for the blurred latents z_0^t differs. "recompute", the release's way and the default, takes
    F(D, t) of the newest prediction. "carry", Algorithm 1 of the paper, takes a state that begins as z_L and
    that the caller moves on with `carry`; it does not converge to the data, since the marginals are proved
    for a fixed true z_0 only. The last step (sigma' = f' = 0) returns D.

    Args:
        z_t: noisy latents, variance exploding, (B, C, H, W).
        x0: the prediction D, (B, C, H, W).
        zL_or_blurred: z_L for "recompute", the carried z_0^t for "carry"; (B, C, H, W).
        sigma: noise level before, () or (B,).
        sigma_next: noise level after.
        f: blur fraction before, () or (B,).
        f_next: blur fraction after.
        delta: `delta(eta, sigma, sigma_next)`, or 0.
        noise: standard normal, (B, C, H, W); needed where delta is not 0.
        estimate: one of `BLUR_ESTIMATES`.
    """
    if estimate not in BLUR_ESTIMATES:
        raise ValueError(_unknown("blur_estimate", estimate, BLUR_ESTIMATES))
    blurred = blur(x0, zL_or_blurred, f) if estimate == "recompute" else zL_or_blurred
    a, b, c = (expand_to(k, z_t) for k in step_coefficients(sigma, sigma_next, f, f_next, delta))
    return _add_noise(a * z_t + b * x0 + c * blurred, delta, noise)


def carry(blurred: Tensor, x0: Tensor, f: Tensor | float, f_next: Tensor | float) -> Tensor:
    """The carried estimate after a step: z_0^t + (1 - f'/f)(D - z_0^t); the paper's 1/t for single steps.

    It starts as z_L. Latents (B, C, H, W); f > 0, f': () or (B,).
    """
    return torch.lerp(blurred, x0, expand_to(1 - as_tensor(f_next) / as_tensor(f), x0))


def direct_coefficients(
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    f: Tensor | float,
    f_next: Tensor | float,
    delta: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Coefficients of `direct_step`, r = sqrt(sigma'^2 - delta^2) / sigma and beta = r f - f'; () or (B,)."""
    r = _kept(sigma, sigma_next, delta)
    return r, r * as_tensor(f) - as_tensor(f_next)


def direct_step(
    z_t: Tensor,
    x0: Tensor,
    zL: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    f: Tensor | float,
    f_next: Tensor | float,
    delta: Tensor | float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """`relay_step` with the recomputed estimate: z' = r z_t + (1 - r + beta) D - beta z_L + delta eps.

    It is the same step, F(D, t) put into equation 6, and shows how far an error of D goes: 1 - r + beta.
    Arguments as in `relay_step`.
    """
    r, beta = (expand_to(k, z_t) for k in direct_coefficients(sigma, sigma_next, f, f_next, delta))
    return _add_noise(r * z_t + (1 - r + beta) * x0 - beta * zL, delta, noise)


def extrapolate(
    x0: Tensor, x0_before: Tensor, sigmas: tuple[Tensor | float, ...], fractions: tuple[Tensor | float, ...]
) -> Tensor:
    """What a second-order step puts in D's place: D + (s' - s) / (2 (s - s_before)) (D - D_before).

    Here s = (1 - f) / sigma. Without noise (delta = 0) a step is
    z'/sigma' = z_t/sigma + (s' - s) D + (f'/sigma' - f/sigma) z_L, the ODE's solution for a D that stays as it is.
    Two predictions show how it moves with s, as in Adams and Bashforth's method: the error of n steps then falls as
    1/n^2. Toward the last step (sigma' = 0) s' is infinite; there D is kept.

    Args:
        x0: D at this step, (B, C, H, W).
        x0_before: D at the step before.
        sigmas: noise levels at the step before, at this one and after it; numbers or (), falling.
        fractions: blur fractions likewise.
    """
    before, now, after = (as_tensor(sigma) for sigma in sigmas)
    if not after > 0:
        return x0
    s_before, s, s_after = (
        (1 - as_tensor(f)) / sigma for f, sigma in zip(fractions, (before, now, after), strict=True)
    )
    return x0 + expand_to((s_after - s) / (2 * (s - s_before)), x0) * (x0 - x0_before)


def _kept(sigma: Tensor | float, sigma_next: Tensor | float, delta: Tensor | float) -> Tensor:
    """Share of z_t's noise that stays: sqrt(sigma'^2 - delta^2) / sigma."""
    sigma_next, delta = as_tensor(sigma_next), as_tensor(delta)
    if bool((delta > sigma_next).any()):
        raise ValueError(f"delta {delta.tolist()} is above sigma_next {sigma_next.tolist()}: compute it with delta()")
    return torch.sqrt(sigma_next**2 - delta**2) / as_tensor(sigma)


def _add_noise(z: Tensor, delta: Tensor | float, noise: Tensor | None) -> Tensor:
    if noise is not None:
        return z + expand_to(delta, z) * noise
    if bool(as_tensor(delta).any()):
        raise ValueError(f"delta is {as_tensor(delta).tolist()}, which adds noise: give noise of the latents' shape")
    return z


# The whole sampler


def sample_relay(
    predict_noise: Callable[[Tensor, int], Tensor],
    zL: Tensor,
    noise: Tensor,
    num_steps: int = 10,
    relay_start: int = 500,
) -> Tensor:
    """The relay sampler from its start to z_0 (equations 4 to 7, delta = 0), (B, C, H, W), to be read.

    What `generation.scheduler.RelayScheduler` does with its defaults, which also has other blurs, spacings and solvers.

    Args:
        predict_noise: the network, guidance included: (z_t / sqrt(1 + sigma_t^2), t) -> eps.
        zL: latents of the enlarged picture of the base stage, scaled, (B, C, H, W).
        noise: standard normal, of the same shape.
        num_steps: p, 1 to T_r.
        relay_start: T_r, 1 to 1000.
    """
    timesteps = relay_timesteps(num_steps, relay_start)
    sigmas = step_sigmas(make_sigmas(), timesteps).tolist()
    z: Tensor = zL + sigmas[0] * noise  # not pure noise: the picture is there already, blurred
    for i, t in enumerate(timesteps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        f, f_next = 1 - i / num_steps, 1 - (i + 1) / num_steps
        x0 = z - sigma * predict_noise(z / math.sqrt(1 + sigma**2), t)
        blurred = (1 - f) * x0 + f * zL  # equation 4
        a = sigma_next / sigma  # equation 6
        b = 1 - f_next / f
        c = f_next / f - a
        z = a * z + b * x0 + c * blurred
    return z
