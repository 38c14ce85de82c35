import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn.functional import interpolate

from cogview3.diffusion import relay, schedule

# float64 rounding of a few dozen operations on numbers of order 1
EXACT = {"rtol": 1e-12, "atol": 1e-12}
RELAY_START = 500
SIGMAS = schedule.make_sigmas()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def table(p: int, kind: str = "linear", power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sigmas and blur fractions of p steps, (p + 1,) each."""
    sigmas = schedule.step_sigmas(SIGMAS, schedule.relay_timesteps(p, RELAY_START, power=power))
    return sigmas, relay.sampler_blur_fractions(p, power, kind, sigmas)


z0, zL, noise = (draw(2, 4, 3, 3, seed=seed) for seed in range(3))
PAIR = torch.tensor([0.3, 1.2], dtype=torch.float64)
FRACTIONS = torch.tensor([0.25, 1.0], dtype=torch.float64)


# Pictures


def test_low_resolution_is_bilinear_down_and_up() -> None:
    x = draw(2, 3, 8, 12, seed=0)
    small = interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False, antialias=False)
    expected = interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(relay.low_resolution(x), expected, **EXACT)
    torch.testing.assert_close(relay.enlarge(small), expected, **EXACT)


def test_enlarging_keeps_linear_ramps_and_means() -> None:
    """Pixel centers: pixel i of the large picture lies at (i + 0.5)/3 - 0.5 of the small one."""
    ramp = torch.arange(6, dtype=torch.float64).expand(1, 3, 6, 6)
    large = relay.enlarge(ramp, 3)
    at = ((torch.arange(18, dtype=torch.float64) + 0.5) / 3 - 0.5).clamp(0, 5)
    torch.testing.assert_close(large, at.expand(1, 3, 18, 18), **EXACT)


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 3, 8, 7), "7 x 8 cannot be halved"),
        (torch.zeros(1, 3, 5, 8), "8 x 5 cannot be halved"),
    ],
)
def test_bad_pictures_are_refused(x: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        relay.low_resolution(x)


# Blur


def test_blur_fractions_of_training_times() -> None:
    t = torch.tensor([0, 1, 249, 499])
    linear = relay.blur_fraction(t.double(), RELAY_START)
    torch.testing.assert_close(linear, torch.tensor([0, 0.002, 0.498, 0.998]).double(), rtol=1e-6, atol=1e-9)
    by_sigma = relay.blur_fraction(t, RELAY_START, "sigma", SIGMAS)
    torch.testing.assert_close(by_sigma, SIGMAS[t] / SIGMAS[499], **EXACT)
    sin4 = relay.blur_fraction(t.double(), RELAY_START, "sin4")
    expected = [(1 - math.exp(-(math.sin(math.pi * (k + 1) / 1000) ** 4))) / (1 - math.exp(-1)) for k in t.tolist()]
    torch.testing.assert_close(sin4, torch.tensor(expected, dtype=torch.float64), **EXACT)
    assert sin4[-1].item() == pytest.approx(1)
    assert relay.blur_fraction(250, RELAY_START).item() == 0.5


@pytest.mark.parametrize("kind", relay.BLUR_KINDS)
def test_blur_rises_from_almost_nothing_to_almost_all(kind: str) -> None:
    f = relay.blur_fraction(torch.arange(RELAY_START), RELAY_START, kind, SIGMAS)
    assert (f.diff() >= 0).all()
    assert 0 <= f[0] < 0.02  # sigma_0 / sigma_499 = 0.018
    assert 0.99 < f[-1] <= 1


def test_linear_blur_keeps_the_eps_target_near_unit_scale() -> None:
    """f_t / sigma_t, by which z_L - z_0 enters the eps target, stays below 0.72."""
    f = relay.blur_fraction(torch.arange(RELAY_START), RELAY_START)
    assert (f / SIGMAS[:RELAY_START]).max().item() == pytest.approx(0.72, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.tensor([0, 500]), 500), "choose 0 to 499"),
        ((-1, 500), "choose 0 to 499"),
        ((0, 0), "relay_start 0"),
        ((3, 500, "cosine"), "'cosine' is unknown: choose one of linear, sigma, sin4"),
        ((3, 500, "sigma"), "needs the schedule's sigmas"),
        ((3.5, 500, "sigma", SIGMAS), "whole times"),
        ((3, 1001, "sigma", SIGMAS), "relay_start 1001"),
    ],
)
def test_bad_blurs_are_refused(arguments: tuple[object, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        relay.blur_fraction(*arguments)


def test_sampler_blur_fractions_follow_the_spacing_of_time() -> None:
    left = torch.arange(12, -1, -1, dtype=torch.float64) / 12
    torch.testing.assert_close(relay.sampler_blur_fractions(12), left, **EXACT)
    torch.testing.assert_close(relay.sampler_blur_fractions(12, power=2.0), left**2, **EXACT)
    times = torch.tensor(schedule.relay_timesteps(12, RELAY_START, power=2.0))
    # rounding down and the factor 0.999 take at most 1.5 times from t = T_r f
    assert ((relay.sampler_blur_fractions(12, power=2.0)[:-1] * RELAY_START - times).abs() <= 1.5).all()


@pytest.mark.parametrize("kind", relay.BLUR_KINDS)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_sampler_blur_runs_from_one_to_zero_and_as_in_training(kind: str, power: float) -> None:
    _, f = table(10, kind, power)
    assert (f[0].item(), f[-1].item()) == (1.0, 0.0)
    assert (f.diff() < 0).all()
    times = torch.tensor(schedule.relay_timesteps(10, RELAY_START, power=power))
    trained = relay.blur_fraction(times.double() if kind != "sigma" else times, RELAY_START, kind, SIGMAS)
    # up to 1.5 of 500 times apart, at a slope of up to pi/2 * 1.3 / (1 - 1/e) per T_r for sin4
    torch.testing.assert_close(f[:-1], trained, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0,), "num_steps 0"),
        ((10, 1.0, "cosine"), "'cosine' is unknown"),
        ((10, 1.0, "sigma"), "11 noise levels"),
        ((10, 1.0, "sigma", SIGMAS), "11 noise levels"),
    ],
)
def test_bad_sampler_blurs_are_refused(arguments: tuple[object, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        relay.sampler_blur_fractions(*arguments)


# Forward process and target


def test_forward_is_blur_plus_noise_for_each_sample() -> None:
    z = relay.forward(z0, zL, PAIR, FRACTIONS, noise)
    torch.testing.assert_close(z[0], 0.75 * z0[0] + 0.25 * zL[0] + 0.3 * noise[0], **EXACT)
    torch.testing.assert_close(z[1], zL[1] + 1.2 * noise[1], **EXACT)
    torch.testing.assert_close(relay.start(zL, PAIR, noise)[1], z[1], **EXACT)


def test_offset_noise_shifts_a_whole_sample() -> None:
    shifted = relay.add_offset_noise(noise, torch.tensor([1.0, -2.0]), strength=0.05) - noise
    torch.testing.assert_close(shifted[0], torch.full_like(shifted[0], 0.05), **EXACT)
    torch.testing.assert_close(shifted[1], torch.full_like(shifted[1], -0.1), **EXACT)
    torch.testing.assert_close(relay.add_offset_noise(noise, torch.tensor([1.0, -2.0])) - noise, shifted, **EXACT)


def test_targets_aim_at_the_sharp_latents_not_at_the_drawn_noise() -> None:
    z = relay.forward(z0, zL, PAIR, FRACTIONS, noise)
    f, sigma = FRACTIONS[:, None, None, None], PAIR[:, None, None, None]
    eps = noise + f * (zL - z0) / sigma
    v = (eps - sigma * z0) / (1 + sigma**2).sqrt()
    for prediction_type, expected in (("epsilon", eps), ("v_prediction", v), ("sample", z0)):
        target = relay.relay_target(z0, z, PAIR, prediction_type)
        torch.testing.assert_close(target, expected, **EXACT)
        torch.testing.assert_close(schedule.to_x0(target, z, PAIR, prediction_type), z0, **EXACT)
    assert (relay.relay_target(z0, z, PAIR) - noise).abs().max() > 0.5


# Sampler: algebra


def test_coefficients_are_the_papers_for_single_steps() -> None:
    p = 7
    sigmas, f = table(p)
    for i in range(p):
        t = p - i
        a, b, c = relay.step_coefficients(sigmas[i], sigmas[i + 1], f[i], f[i + 1])
        assert a.item() == pytest.approx((sigmas[i + 1] / sigmas[i]).item(), rel=1e-12)
        assert b.item() == pytest.approx(1 / t, rel=1e-12)
        assert c.item() == pytest.approx((t - 1) / t - a.item(), abs=1e-12)


def test_delta_is_the_ancestral_posteriors_deviation() -> None:
    """Known posterior of z' between z_t and a fixed mean: precision 1/sigma'^2 + 1/(sigma^2 - sigma'^2)."""
    sigma, sigma_next = PAIR * 2, PAIR
    variance = 1 / (1 / sigma_next**2 + 1 / (sigma**2 - sigma_next**2))
    torch.testing.assert_close(relay.delta(1.0, sigma, sigma_next), variance.sqrt(), **EXACT)
    torch.testing.assert_close(relay.delta(0.5, sigma, sigma_next), variance.sqrt() / 2, **EXACT)
    assert relay.delta(1.0, 1.0, 0.0) == 0


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_blur_a_step_is_ddims(eta: float) -> None:
    reference = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    reference.set_timesteps(10)  # from 400 to 300
    sigma, sigma_next = SIGMAS[400], SIGMAS[300]
    output, z_t = draw(2, 4, 3, 3, seed=5), draw(2, 4, 3, 3, seed=6) * 1.5
    expected = reference.step(output, 400, schedule.scale_model_input(z_t, sigma), eta=eta, variance_noise=noise)
    x0 = schedule.to_x0(output, z_t, sigma)
    delta = relay.delta(eta, sigma, sigma_next)
    stepped = relay.relay_step(z_t, x0, zL, sigma, sigma_next, 0.0, 0.0, delta, noise)
    # diffusers' schedule is float32
    torch.testing.assert_close(
        schedule.scale_model_input(stepped, sigma_next), expected.prev_sample, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", relay.BLUR_KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_both_forms_are_the_same_step(kind: str, eta: float) -> None:
    sigmas, f = table(9, kind)
    x0 = draw(2, 4, 3, 3, seed=7)
    for i in range(9):
        for j in range(i + 1, 10):  # every stride
            levels = sigmas[i], sigmas[j], f[i], f[j]
            delta = relay.delta(eta, sigmas[i], sigmas[j])
            one = relay.relay_step(z0, x0, zL, *levels, delta, noise)
            other = relay.direct_step(z0, x0, zL, *levels, delta, noise)
            torch.testing.assert_close(one, other, **EXACT)
    r, beta = relay.direct_coefficients(2.0, 1.0, 0.5, 0.2)
    assert (r.item(), beta.item()) == pytest.approx((0.5, 0.05))


@pytest.mark.parametrize("estimate", relay.BLUR_ESTIMATES)
@pytest.mark.parametrize("kind", relay.BLUR_KINDS)
@pytest.mark.parametrize("stride", [1, 2, 3, 6])
def test_constants_are_fixed_points(estimate: str, kind: str, stride: int) -> None:
    """z_0 = z_L = k without noise stays k for every stride: the coefficients of each step sum to one."""
    sigmas, f = table(6, kind)
    k = torch.full((2, 4, 3, 3), 1.7, dtype=torch.float64)
    z = k
    for i in range(0, 6, stride):
        z = relay.relay_step(z, k, k, sigmas[i], sigmas[i + stride], f[i], f[i + stride], estimate=estimate)
        torch.testing.assert_close(z, k, **EXACT)


@pytest.mark.parametrize("estimate", relay.BLUR_ESTIMATES)
def test_the_last_step_returns_the_prediction(estimate: str) -> None:
    sigmas, f = table(4)
    for i in range(4):
        last = relay.relay_step(zL, z0, noise, sigmas[i], sigmas[-1], f[i], f[-1], estimate=estimate)
        torch.testing.assert_close(last, z0, rtol=0, atol=0)


def test_samples_of_a_batch_may_be_at_different_steps() -> None:
    sigmas, f = table(8)
    i, j = torch.tensor([0, 5]), torch.tensor([2, 6])
    batch = relay.relay_step(noise, z0, zL, sigmas[i], sigmas[j], f[i], f[j])
    for n in range(2):
        alone = relay.relay_step(
            noise[n : n + 1], z0[n : n + 1], zL[n : n + 1], sigmas[i[n]], sigmas[j[n]], f[i[n]], f[j[n]]
        )
        torch.testing.assert_close(batch[n : n + 1], alone, **EXACT)


def test_latents_keep_their_dtype() -> None:
    z, x0, low = (x.bfloat16() for x in (noise, z0, zL))
    sigmas, f = table(8)
    assert relay.relay_step(z, x0, low, sigmas[0], sigmas[1], f[0], f[1]).dtype == torch.bfloat16
    assert relay.carry(low, x0, f[0], f[1]).dtype == torch.bfloat16
    assert relay.forward(x0, low, PAIR, FRACTIONS, z).dtype == torch.bfloat16


def test_bad_steps_are_refused() -> None:
    levels = (2.0, 1.0, 0.5, 0.2)
    with pytest.raises(ValueError, match="'carried' is unknown: choose one of recompute, carry"):
        relay.relay_step(z0, z0, zL, *levels, estimate="carried")
    with pytest.raises(ValueError, match=r"delta is 0\.5"):
        relay.relay_step(z0, z0, zL, *levels, delta=0.5)
    with pytest.raises(ValueError, match=r"delta 1\.5 is above sigma_next 1\.0"):
        relay.relay_step(z0, z0, zL, *levels, delta=1.5, noise=noise)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="eta"):
            relay.delta(eta, 2.0, 1.0)


# Sampler: distributions


def sample(
    z: Tensor,
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    sigmas: Tensor,
    f: Tensor,
    low: Tensor,
    eta: float,
    draws: Callable[[int], Tensor],
    estimate: str = "recompute",
) -> list[Tensor]:
    """All p + 1 states of the sampler from z. denoise(z, sigma, f) -> D; draws(i) -> the noise of step i."""
    states, blurred = [z], low
    for i in range(len(sigmas) - 1):
        levels = sigmas[i], sigmas[i + 1], f[i], f[i + 1]
        x0 = denoise(z, sigmas[i], f[i])
        reference = low if estimate == "recompute" else blurred
        z = relay.relay_step(z, x0, reference, *levels, relay.delta(eta, *levels[:2]), draws(i), estimate)
        blurred = relay.carry(blurred, x0, f[i], f[i + 1])
        states.append(z)
    return states


@pytest.mark.parametrize("estimate", relay.BLUR_ESTIMATES)
@pytest.mark.parametrize("kind", relay.BLUR_KINDS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_marginals_of_a_fixed_true_z0(kind: str, eta: float, estimate: str) -> None:
    """With D = z_0 every state is N(F(z_0, t), sigma_t^2) (equation 5), simulated with 40,000 samples."""
    count, true, low = 40_000, 1.3, -0.4
    generator = torch.Generator().manual_seed(11)

    def draws(_: int) -> Tensor:
        return torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator)

    sigmas, f = table(6, kind, power=1.5)
    low_latents = torch.full((count, 1, 1, 1), low, dtype=torch.float64)
    z = relay.start(low_latents, sigmas[0], draws(-1))
    states = sample(z, lambda z, *_: torch.full_like(z, true), sigmas, f, low_latents, eta, draws, estimate)
    for z, sigma, fraction in zip(states, sigmas, f, strict=True):
        # five standard errors of a mean, sigma/sqrt(n), and of a deviation, sigma/sqrt(2 n)
        margin = 5 * sigma.item() / math.sqrt(count) + 1e-12
        assert z.mean().item() == pytest.approx((1 - fraction.item()) * true + fraction.item() * low, abs=margin)
        assert z.std().item() == pytest.approx(sigma.item(), abs=margin / math.sqrt(2))


def exact_spread(p: int, variance: float, eta: float = 0.0, estimate: str = "recompute", power: float = 1.0) -> float:
    """Output deviation over the true one for z_0 ~ N(z_L, variance) with the exact denoiser.

    The sampler is linear here, so with z_L = 0 a state is kept as its weights on the independent normal
    numbers drawn so far, (1, p + 1, 1, 1); its deviation is their root sum of squares, without sampling error.
    """
    sigmas, f = table(p, power=power)
    sources = torch.eye(p + 1, dtype=torch.float64).reshape(p + 1, 1, p + 1, 1, 1)
    low = torch.zeros_like(sources[0])

    def denoise(z: Tensor, sigma: Tensor, f: Tensor) -> Tensor:
        """E[z_0 | z_t] where z_t = (1 - f) z_0 + sigma eps."""
        return (1 - f) * variance / ((1 - f) ** 2 * variance + sigma**2) * z

    start = relay.start(low, sigmas[0], sources[0])
    states = sample(start, denoise, sigmas, f, low, eta, lambda i: sources[i + 1], estimate)
    return states[-1].square().sum().sqrt().item() / math.sqrt(variance)


@pytest.mark.parametrize(("p", "spread"), [(10, 0.82), (100, 0.98)])
def test_recomputed_estimate_reaches_the_known_spread(p: int, spread: float) -> None:
    assert exact_spread(p, 0.25) == pytest.approx(spread, abs=0.005)  # known to two decimals


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_recomputed_estimate_converges_to_the_data(eta: float, variance: float) -> None:
    """At first order in 1/p: twice the steps halve the error; 0.6 leaves room for rounded times."""
    errors = [abs(exact_spread(p, variance, eta) - 1) for p in (50, 100, 200)]
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]
    assert errors[2] < 0.025


def test_carried_estimate_does_not_converge() -> None:
    spreads = [exact_spread(p, 0.25, estimate="carry") for p in (10, 100, 200, 400)]
    assert spreads[0] == pytest.approx(0.874, abs=0.001)
    assert spreads[1] > 1.2
    assert spreads[1] < spreads[2] < spreads[3]


def test_finer_steps_at_low_noise_keep_more_of_the_spread() -> None:
    even, finer = (exact_spread(10, 0.25, power=power) for power in (1.0, 2.0))
    assert (even, finer) == pytest.approx((0.82, 0.88), abs=0.005)
