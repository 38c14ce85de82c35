"""Pixel relay diffusion against scipy's transform, closed forms, and Gaussians whose denoiser is known exactly."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.stats import norm
from torch import Tensor

from cogview3.diffusion import pixel_relay

# float64 rounding of a few dozen operations on numbers of order 1
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Patches


@pytest.mark.parametrize("s", [1, 2, 3, 4, 8])
def test_patches_are_transformed_as_by_scipy(s: int) -> None:
    x = draw(2, 3, 2 * s, 3 * s)
    u = pixel_relay.patch_dct(x, s)
    for row in range(2):
        for column in range(3):
            place = (..., slice(row * s, (row + 1) * s), slice(column * s, (column + 1) * s))
            expected = dctn(x[place].numpy(), axes=(-2, -1), norm="ortho")
            np.testing.assert_allclose(u[place].numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pixel_relay.patch_idct(u, s), x, **EXACT)


@pytest.mark.parametrize("s", [1, 2, 4, 7])
def test_the_transform_is_orthonormal(s: int) -> None:
    matrix = pixel_relay.dct_matrix(s)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(s, dtype=torch.float64), **EXACT)
    single = pixel_relay.patch_dct(draw(1, 1, 2 * s, s).float(), s)
    assert single.dtype == torch.float32


def test_small_pictures_are_the_patches_means_and_enlarging_gives_them_back() -> None:
    x = draw(2, 3, 8, 12)
    small = pixel_relay.shrink(x, 4)
    torch.testing.assert_close(small[1, 2, 1, 2], x[1, 2, 4:8, 8:12].mean(), **EXACT)
    means = pixel_relay.enlarge(small, 4)
    assert (means[0, 0, :4, 4:8] == small[0, 0, 0, 1]).all()
    coefficients = pixel_relay.patch_dct(means, 4)
    kept = torch.zeros(4, 4, dtype=torch.float64)
    kept[0, 0] = 1
    torch.testing.assert_close(coefficients, pixel_relay.damp(pixel_relay.patch_dct(x, 4), kept), **EXACT)


@pytest.mark.parametrize(
    ("x", "s", "named"),
    [
        (torch.zeros(3, 8, 8), 4, r"\(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 4, "uint8"),
        (torch.zeros(1, 3, 8, 10), 4, "10 x 8"),
        (torch.zeros(1, 3, 8, 8), 0, "s 0"),
    ],
)
def test_bad_pictures_are_refused(x: Tensor, s: int, named: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError), match=named):
        pixel_relay.shrink(x, s) if s else pixel_relay.dct_matrix(s)


# Blur


@pytest.mark.parametrize("q", [0.0, 0.2, 0.5, 0.81, 1.0])
def test_blur_is_its_damping_formula_and_nothing_at_time_0(q: float) -> None:
    s, floor, x = 4, 0.001, draw(1, 2, 8, 8)
    alpha = pixel_relay.damping(pixel_relay.blur_strength(q), s, floor)
    u, blurred = (pixel_relay.patch_dct(pictures, s) for pictures in (x, pixel_relay.blur(x, alpha)))
    tau = (3 * math.sin(math.pi * q / 2) ** 2) ** 2 / 2
    for i in range(s):
        for j in range(s):
            expected = math.exp(-(math.pi**2) * (i**2 + j**2) / s**2 * tau) * (1 - floor) + floor
            torch.testing.assert_close(blurred[..., i::s, j::s], expected * u[..., i::s, j::s], **EXACT)
    if q == 0:
        torch.testing.assert_close(pixel_relay.blur(x, alpha), x, **EXACT)


def test_damping_for_each_sample_and_published_values() -> None:
    """At ImageNet's sigma 0.9 the time is 0.881, the blur 2.90, and the first frequency keeps 0.076."""
    q = pixel_relay.time_of(0.9, 0.93)
    strength = pixel_relay.blur_strength(q)
    assert (q.item(), strength.item()) == pytest.approx((0.881, 2.90), abs=0.005)
    assert pixel_relay.damping(strength, 4)[0, 1].item() == pytest.approx(0.076, abs=0.0005)
    # CelebA-HQ: training with L 0.89 and blur 2; its sampler's settings have less blur at the start than training had
    start = [pixel_relay.blur_strength(pixel_relay.time_of(0.95, length), 2.0).item() for length in (1.05, 0.89)]
    assert start == pytest.approx([1.79, 1.98], abs=0.005)
    x = draw(2, 3, 8, 8)
    alphas = pixel_relay.damping(torch.tensor([0.3, 2.0], dtype=torch.float64), 4)
    for n in range(2):
        torch.testing.assert_close(pixel_relay.blur(x, alphas)[n : n + 1], pixel_relay.blur(x[n : n + 1], alphas[n]))


# Noise


def linear_map(function: Callable[[Tensor], Tensor], sides: tuple[int, int]) -> Tensor:
    """The matrix of a linear function of pictures (B, 1, H, W)."""
    count = sides[0] * sides[1]
    units = torch.eye(count, dtype=torch.float64).view(count, 1, *sides)
    return function(units).reshape(count, count).T


@pytest.mark.parametrize("s", [2, 3, 4])
def test_block_noise_has_variance_1_and_the_triangles_covariance(s: int) -> None:
    sides = (8, 12)
    matrix = linear_map(lambda white: pixel_relay.block_noise(white, s), sides)
    covariance = (matrix @ matrix.T).view(*sides, *sides)
    for k in range(-4, 5):
        for m in range(-5, 6):
            expected = max(0.0, 1 - abs(k) / s) * max(0.0, 1 - abs(m) / s)
            found = covariance[4, 6, (4 + k) % 8, (6 + m) % 12].item()
            assert found == pytest.approx(expected, abs=1e-12), (k, m)
    # cyclic: the same from every pixel
    torch.testing.assert_close(covariance[0, 0].roll((4, 6), (0, 1)), covariance[4, 6], **EXACT)


@pytest.mark.parametrize("s", [2, 4])
def test_block_noise_has_its_spectrum(s: int) -> None:
    n = 16
    matrix = linear_map(lambda white: pixel_relay.block_noise(white, s), (n, n))
    power = torch.fft.fft2((matrix @ matrix.T)[0].view(n, n)).real
    along = pixel_relay.block_spectrum(torch.fft.fftfreq(n, dtype=torch.float64), s)
    torch.testing.assert_close(power, along[:, None] * along, rtol=0, atol=1e-10)


def test_block_noise_meets_the_small_pictures_white_noise_at_low_frequencies() -> None:
    """0.43 of the center's power at the small picture's highest frequency, 1/(2 s), along one axis for s = 4."""
    low = pixel_relay.block_spectrum(torch.tensor([0.0, 1 / 8], dtype=torch.float64), 4)
    assert low[0] == 4
    assert (low[1] / low[0]).item() == pytest.approx((math.sin(math.pi / 2) / (4 * math.sin(math.pi / 8))) ** 2)
    assert (low[1] / low[0]).item() == pytest.approx(0.43, abs=0.005)


def test_relay_noise_is_white_and_a_share_of_block_noise() -> None:
    white, other = draw(1, 1, 8, 8), draw(1, 1, 8, 8, seed=1)
    expected = white + 0.15 * pixel_relay.block_noise(other, 4)
    torch.testing.assert_close(pixel_relay.relay_noise(white, other, 4), expected, **EXACT)
    assert pixel_relay.relay_noise(white, other, 1) is white
    with pytest.raises(ValueError, match="8 x 8"):
        pixel_relay.block_noise(white, 9)


# Time


def test_noise_levels_are_edms_quantiles_below_the_length() -> None:
    q = torch.tensor([0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    for length in (1.0, 0.93):
        expected = np.exp(1.2 * norm.ppf(q.numpy() * length) - 1.2)
        np.testing.assert_allclose(pixel_relay.sigma_at(q, length).numpy(), expected, rtol=1e-10)
        torch.testing.assert_close(pixel_relay.time_of(pixel_relay.sigma_at(q, length), length), q)


def test_trainings_noise_levels_end_where_they_should() -> None:
    for dtype in (torch.float32, torch.float64):
        sigma = pixel_relay.training_sigma(torch.tensor([0.0, 1e-9, 0.5, 1.0], dtype=dtype), 0.93)
        assert sigma[:2].tolist() == pytest.approx([0.0075] * 2, rel=1e-3)
        assert sigma[-1].item() == pytest.approx(math.exp(1.2 * norm.ppf(0.93) - 1.2), rel=1e-3)
        assert pixel_relay.training_sigma(torch.ones(1, dtype=dtype)).isfinite().all()


def test_sampling_levels_are_edms_and_can_be_cut() -> None:
    sigmas = pixel_relay.edm_sigmas(5, 80.0, 0.008, 7.0)
    for i in range(5):
        expected = (80 ** (1 / 7) + i / 4 * (0.008 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert sigmas[i].item() == pytest.approx(expected, rel=1e-12)
    assert sigmas[-1] == 0
    published = pixel_relay.edm_sigmas(200, rho=100, start=0.9)
    assert len(published) == 101
    assert published[0].item() == pytest.approx(0.869, abs=5e-4)
    celeba = pixel_relay.edm_sigmas(150, start=0.95)
    assert (len(celeba) - 1, round(celeba[0].item(), 3)) == (54, 0.922)


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"sigma_min": 0.0}, {"sigma_max": 0.001}, {"rho": 0}])
def test_bad_levels_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        pixel_relay.edm_sigmas(**{"num_steps": 5, **wrong})


# Network and loss


def test_preconditioning_keeps_the_networks_input_and_target_at_unit_variance() -> None:
    """Karras et al.: for data of deviation 0.5, c_in x and (x_0 - c_skip x) / c_out have variance 1, uncorrelated."""
    sigma = torch.tensor([0.01, 0.5, 3.0], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = pixel_relay.preconditioning(sigma)
    total = 0.25 + sigma**2
    torch.testing.assert_close(c_in**2 * total, torch.ones_like(sigma), **EXACT)
    variance = ((1 - c_skip) ** 2 * 0.25 + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(variance, torch.ones_like(sigma), **EXACT)
    torch.testing.assert_close(pixel_relay.loss_weight(sigma) * c_out**2, torch.ones_like(sigma), **EXACT)
    torch.testing.assert_close(c_noise, sigma.log() / 4, **EXACT)
    assert pixel_relay.loss_weight(1e-4) == 1e5


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_gradients_are_finite_at_both_ends_in_float32(end: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, white, other = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(3))
    uniform = torch.full((2,), end)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1)
    sigma = pixel_relay.training_sigma(uniform, 0.93)
    time = pixel_relay.time_of(sigma, 0.93)
    alpha = pixel_relay.damping(pixel_relay.blur_strength(time), 4)
    x = pixel_relay.forward(x0, sigma, alpha, pixel_relay.relay_noise(white, other, 4))
    prediction = pixel_relay.denoise(lambda scaled, _: layer(scaled), x, sigma)
    losses = pixel_relay.loss(x0, prediction, sigma)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert (losses < 10).all()  # the error of a small network's output, of unit scale
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


# Sampler


S, SIDES, LENGTH, BLUR = 2, (4, 4), 0.93, 2.0
COUNT = SIDES[0] * SIDES[1]


class Gaussian:
    """x_0 ~ N(m, C) and its exact denoiser, block noise's covariance included."""

    def __init__(self) -> None:
        factor = draw(COUNT, COUNT, seed=3) * 0.15
        self.mean = draw(COUNT, seed=4) * 0.3
        self.covariance = factor @ factor.T + 0.02 * torch.eye(COUNT, dtype=torch.float64)
        block = linear_map(lambda white: pixel_relay.block_noise(white, S), SIDES)
        self.noise = torch.eye(COUNT, dtype=torch.float64) + 0.15**2 * block @ block.T

    def blur(self, sigma: float) -> Tensor:
        strength = pixel_relay.blur_strength(pixel_relay.time_of(sigma, LENGTH), BLUR)
        return linear_map(lambda x: pixel_relay.blur(x, pixel_relay.damping(strength, S)), SIDES)

    def marginal(self, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the noisy picture."""
        blur = self.blur(sigma)
        return blur @ self.mean, blur @ self.covariance @ blur.T + sigma**2 * self.noise

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        mean, covariance = self.marginal(sigma)
        gain = self.covariance @ self.blur(sigma).T @ torch.linalg.inv(covariance)
        return (self.mean + (x.reshape(-1, COUNT) - mean) @ gain.T).reshape(x.shape)


def propagate(data: Gaussian, sigmas: list[float], solver: str, eta: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and covariance after the sampler, without sampling: it is affine, so where it takes units tells all.

    A picture is kept as the part that does not depend on the start, and the weights of the start's and each step's
    noise, all as one batch.
    """
    steps = len(sigmas) - 1 if eta else 0
    alphas = [
        pixel_relay.damping(pixel_relay.blur_strength(pixel_relay.time_of(sigma, LENGTH), BLUR), S) for sigma in sigmas
    ]
    size = 1 + COUNT * (1 + steps)
    root, noise_root = (torch.linalg.cholesky(c) for c in (data.marginal(sigmas[0])[1], data.noise))
    x = torch.zeros(size, COUNT, dtype=torch.float64)
    x[0] = data.marginal(sigmas[0])[0]
    x[1 : 1 + COUNT] = root.T
    drawn = iter(range(steps))

    def noise() -> Tensor:
        values, first = torch.zeros(size, COUNT, dtype=torch.float64), 1 + COUNT * (1 + next(drawn))
        values[first : first + COUNT] = noise_root.T
        return values.view(size, 1, *SIDES)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        whole = data.denoise(x, sigma)
        offset = data.denoise(torch.zeros_like(x[:1]), sigma)
        return torch.cat([whole[:1], whole[1:] - offset])  # the weights go through the linear part alone

    x = pixel_relay.sample_pixel_relay(denoise, x.view(size, 1, *SIDES), sigmas, alphas, solver, eta, noise)
    x = x.view(size, COUNT)
    return x[0], x[1:].T @ x[1:]


def error(steps: int, solver: str, eta: float = 0.0) -> float:
    """Of mean and covariance at sigma 0.1, from 0.9 on, where they are known."""
    data, end = Gaussian(), 0.1
    sigmas = torch.linspace(0.9**0.25, end**0.25, steps + 1, dtype=torch.float64) ** 4
    found, true = propagate(data, sigmas.tolist(), solver, eta), data.marginal(end)
    return sum((a - b).norm().item() for a, b in zip(found, true, strict=True))


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("published_heun", 1), ("heun", 2)], ids=["euler", "published", "heun"]
)
def test_orders_of_the_solvers_where_the_blur_moves(solver: str, order: int) -> None:
    errors = [error(steps, solver) for steps in (20, 40, 80)]
    rates = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert rates[-1] == pytest.approx(order, abs=0.2), errors


def test_heun_with_the_mean_of_the_predictions_is_nearer_than_the_published_one() -> None:
    assert error(20, "heun") < 0.5 * error(20, "published_heun")


def test_noise_drawn_anew_leads_to_the_same_distribution() -> None:
    """It does where little is drawn anew at a step: the error falls with eta^2, here as 1/n."""
    coarse, fine = error(10, "euler", 0.4), error(40, "euler", 0.2)
    assert fine == pytest.approx(coarse / 4, rel=0.35)
    assert error(10, "euler", 1.0) > 2 * coarse


def test_the_last_step_gives_the_prediction_and_one_step_from_the_start_too() -> None:
    x, target = draw(2, 1, 4, 4), draw(2, 1, 4, 4, seed=1)
    alphas = [pixel_relay.damping(2.0, 2), pixel_relay.damping(0.0, 2)]
    for solver in pixel_relay.SOLVERS:
        found = pixel_relay.sample_pixel_relay(lambda *_: target, x, [0.9, 0.0], alphas, solver)
        torch.testing.assert_close(found, target, **EXACT)


def test_a_known_picture_stays_on_its_path() -> None:
    """With D = x_0 every state is the blurred picture plus the start's noise times sigma."""
    x0, noise = draw(1, 1, 4, 4), draw(1, 1, 4, 4, seed=1)
    levels = [0.9, 0.4, 0.1]
    alphas = [pixel_relay.damping(strength, 2) for strength in (2.0, 1.0, 0.3)]
    for solver in pixel_relay.SOLVERS:
        start = pixel_relay.forward(x0, levels[0], alphas[0], noise)
        found = pixel_relay.sample_pixel_relay(lambda *_: x0, start, levels, alphas, solver)
        if solver != "published_heun":
            torch.testing.assert_close(found, pixel_relay.forward(x0, levels[-1], alphas[-1], noise), **EXACT)


def test_noise_drawn_anew_takes_its_share_of_the_old_ones_place() -> None:
    """With D = x_0: u' = alpha' x_0 + sigma' (sqrt(1 - eta^2) n + eta n'), of both kinds of step."""
    x0, noise, fresh = (draw(1, 1, 4, 4, seed=seed) for seed in range(3))
    alpha, alpha_next = (pixel_relay.damping(strength, 2) for strength in (2.0, 1.0))
    sigma, sigma_next, eta = 0.9, 0.4, 0.6
    before, after = pixel_relay.damp(x0, alpha), pixel_relay.damp(x0, alpha_next)
    given = (before + sigma * noise, sigma, sigma_next, alpha, alpha_next, eta, fresh)
    expected = after + sigma_next * (0.8 * noise + 0.6 * fresh)
    torch.testing.assert_close(pixel_relay.step(given[0], x0, *given[1:]), expected, **EXACT)
    known = after + sigma_next * noise
    torch.testing.assert_close(pixel_relay.published_heun(given[0], (x0, x0), known, *given[1:]), expected, **EXACT)


def test_a_samples_loss_is_its_mean_square_error_weighted() -> None:
    """EDM's weight (sigma^2 + s^2) / (sigma s)^2, here with s = 0.5: 8 at sigma 0.5, 5 at sigma 1."""
    x0, sigma = torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.tensor([0.5, 1.0], dtype=torch.float64)
    prediction = torch.tensor([[2.0, 0, 0, 0], [1.0, 1, 1, 1]], dtype=torch.float64).view(2, 1, 2, 2)
    found = pixel_relay.loss(x0, prediction, sigma, sigma_data=0.5)
    torch.testing.assert_close(found, torch.tensor([8.0, 5.0], dtype=torch.float64), **EXACT)


def test_bad_samplers_are_refused() -> None:
    alphas = [pixel_relay.damping(1.0, 2)] * 2
    u = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="'rk4'"):
        pixel_relay.sample_pixel_relay(lambda *_: u, u, [1.0, 0.0], alphas, "rk4")
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="eta"):
            pixel_relay.step(u, u, 1.0, 0.5, *alphas, eta)
    with pytest.raises(ValueError, match=r"eta is 0\.2"):
        pixel_relay.step(u, u, 1.0, 0.5, *alphas, 0.2)
