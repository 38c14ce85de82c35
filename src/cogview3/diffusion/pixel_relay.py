"""Relay diffusion as it was first published: in pixels, blurred patch by patch (Teng et al., arXiv 2309.03350).

A first stage draws a small picture. The second one, s times its size, begins with that picture enlarged by nearest
neighbor: within each s x s patch only the mean is there, as if all other frequencies of the patch's discrete cosine
transform had been damped away. On top lies noise, part of it block noise, which at low frequencies is what the small
picture's noise would have been. From there both the noise and the damping are taken back.

| symbol  | in code     | meaning                                                                             |
|---------|-------------|-------------------------------------------------------------------------------------|
| s       | `s`         | factor between the resolutions, the side of a patch; 1 is plain EDM, without a blur |
| x_0     | `x0`        | the sharp picture, (B, C, H, W), H and W multiples of s; range -1 to 1              |
| D       | `x0`        | the network's prediction of it                                                      |
| u       | `u`         | DCT coefficients of a picture's patches, laid out in the patches' places            |
| sigma   | `sigma`     | noise level                                                                         |
| L, q    | `length`    | sigma = exp(1.2 ppf(q L) - 1.2): time q, 0 to 1, is a share of EDM's levels below L |
| sigma_B | `blur`      | strength of the blur, in pixels: b_max sin^2(pi q / 2)                              |
| alpha   | `alpha`     | what is left of each frequency, (s, s), in 0..1: 1 at the mean                      |
| n       | `noise`     | white plus 0.15 times block noise; its variance is 1.0225                           |
| g       | `g`         | sigma' / sigma, times sqrt(1 - eta^2); a prime marks what holds after a step        |

A noisy picture is u = alpha DCT(x_0) + sigma DCT(n). A value per sample is a number, () or (B,). All functions take
float32 and float64 and pass gradients on.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cogview3.diffusion.schedule import as_tensor, check_count, expand_to

P_MEAN, P_STD = -1.2, 1.2
SIGMA_DATA = 0.5
SOLVERS = ("euler", "heun", "published_heun")


# Patches and their frequencies


def dct_matrix(s: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The orthonormal DCT-II of s numbers, (s, s): row i is frequency i."""
    s = check_count("s", s)
    place = torch.arange(s, dtype=torch.float64)
    matrix = torch.cos(math.pi / s * place[:, None] * (place + 0.5)) * math.sqrt(2 / s)
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype)


def patch_dct(x: Tensor, s: int) -> Tensor:
    """DCT of every s x s patch, (B, C, H, W) -> the same shape: frequency (i, j) of a patch at its pixel (i, j)."""
    return _each_patch(x, s, dct_matrix(s, x.dtype).to(x.device))


def patch_idct(u: Tensor, s: int) -> Tensor:
    """The inverse of `patch_dct`."""
    return _each_patch(u, s, dct_matrix(s, u.dtype).to(u.device).T)


def _each_patch(x: Tensor, s: int, matrix: Tensor) -> Tensor:
    """Matrix patch matrix^T of every patch: a small matrix product along each axis."""
    _check_pictures(x, s)
    patches = x.unflatten(-1, (-1, s)).unflatten(-3, (-1, s))  # (B, C, H/s, s, W/s, s)
    return torch.einsum("ik,jl,...akbl->...aibj", matrix, matrix, patches).reshape(x.shape)


def _check_pictures(x: Tensor, s: int) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"pictures {tuple(x.shape)} of {x.dtype}: give floating-point ones, (B, C, H, W)")
    if x.shape[-2] % s or x.shape[-1] % s:
        raise ValueError(f"a picture of {x.shape[-1]} x {x.shape[-2]} has no whole patches of {s}: crop it")


def shrink(x: Tensor, s: int) -> Tensor:
    """The small picture: the mean of every patch, (B, C, H, W) -> (B, C, H/s, W/s)."""
    _check_pictures(x, s)
    return F.avg_pool2d(x, s)


def enlarge(x: Tensor, s: int) -> Tensor:
    """Nearest-neighbor enlargement, (B, C, H, W) -> (B, C, s H, s W): of a patch's frequencies the mean alone."""
    _check_pictures(x, 1)
    return x.repeat_interleave(check_count("s", s), -2).repeat_interleave(s, -1)


# Blur


def blur_strength(q: Tensor | float, max_blur: float = 3.0) -> Tensor:
    """sigma_B = b_max sin^2(pi q / 2), in pixels; times q outside of 0..1 are taken as these. Shape of q."""
    return max_blur * torch.sin(math.pi / 2 * as_tensor(q).clamp(0, 1)) ** 2


def damping(blur: Tensor | float, s: int, floor: float = 0.001) -> Tensor:
    """alpha: what a blur leaves of each frequency of a patch, (s, s), or (B, s, s) for strengths (B,).

    alpha_ij = exp(-(pi^2 (i^2 + j^2) / s^2) sigma_B^2 / 2) (1 - floor) + floor: heat dissipation, the cosine
    transform's Gaussian blur. It is 1 at the mean, and everywhere where sigma_B = 0.
    """
    blur = as_tensor(blur)
    s = check_count("factor", s)
    squares = (math.pi / s * torch.arange(s, dtype=blur.dtype, device=blur.device)) ** 2
    exponent = (squares[:, None] + squares) * blur[..., None, None] ** 2 / 2
    return torch.exp(-exponent) * (1 - floor) + floor


def damp(u: Tensor, alpha: Tensor) -> Tensor:
    """Coefficients (B, C, H, W) times their frequency's alpha, (s, s) or (B, s, s)."""
    s = alpha.shape[-1]
    _check_pictures(u, s)
    tiles = alpha.to(u).tile(u.shape[-2] // s, u.shape[-1] // s)
    return u * (tiles[:, None] if tiles.ndim == 3 else tiles)


def blur(x: Tensor, alpha: Tensor) -> Tensor:
    """Pictures (B, C, H, W) with their patches' frequencies damped by alpha, (s, s) or (B, s, s)."""
    s = alpha.shape[-1]
    return patch_idct(damp(patch_dct(x, s), alpha), s)


# Noise


def block_noise(white: Tensor, s: int) -> Tensor:
    """White noise summed over windows of s x s, over the edges too, and divided by s: of variance 1 again.

    Standard normal (B, C, H, W), sides of at least s. Its covariance at a distance (k, l) is the triangle
    (1 - |k|/s) (1 - |l|/s), 0 from s on.
    """
    _check_pictures(white, 1)
    if min(white.shape[-2:]) < s:
        raise ValueError(f"block noise of {white.shape[-1]} x {white.shape[-2]}: both sides must be at least s = {s}")
    padded = F.pad(white, (s - 1, 0, s - 1, 0), mode="circular")
    return F.avg_pool2d(padded, s, stride=1) * s


def block_spectrum(frequency: Tensor, s: int) -> Tensor:
    """Power of block noise along one axis over that of white noise: sin^2(pi f s) / (s sin^2(pi f)), s at f = 0.

    Args:
        frequency: in cycles a pixel, -1/2 to 1/2, any shape.
        s: side of the windows.
    """
    across = torch.sin(math.pi * frequency)
    safe = torch.where(across == 0, 1.0, across)
    return torch.where(across == 0, float(s), torch.sin(math.pi * s * frequency) ** 2 / (s * safe**2))


def relay_noise(white: Tensor, other: Tensor, s: int, share: float = 0.15) -> Tensor:
    """N = white + share * block noise of the other white noise; standard normal (B, C, H, W) each.

    Its variance is 1 + share^2: the published method does not bring it back to 1. For s = 1 it is `white`.
    """
    return white if s == 1 or not share else white + share * block_noise(other, s)


# Time and noise levels


def sigma_at(q: Tensor | float, length: float = 1.0) -> Tensor:
    """Sigma = exp(P_std ppf(q L) + P_mean), EDM's log-normal levels cut off above their quantile L. q: 0 < q L < 1."""
    return torch.exp(P_STD * torch.special.ndtri(as_tensor(q) * length) + P_MEAN)


def time_of(sigma: Tensor | float, length: float = 1.0) -> Tensor:
    """Q of a noise level: cdf((ln sigma - P_mean) / P_std) / L, above 1 for levels that training has none of."""
    q: Tensor = torch.special.ndtr((as_tensor(sigma).log() - P_MEAN) / P_STD) / length
    return q


def training_sigma(uniform: Tensor, length: float = 1.0, lowest: float = 0.0075) -> Tensor:
    """Noise levels of training: `sigma_at` of uniform numbers 0..1, kept at `lowest` and above. Shape of `uniform`."""
    return sigma_at(uniform.clamp(min=time_of(lowest, length).item(), max=1 - 1e-6), length)


def edm_sigmas(
    num_steps: int, sigma_max: float = 80.0, sigma_min: float = 0.008, rho: float = 7.0, start: float | None = None
) -> Tensor:
    """Noise levels of EDM's sampler, falling, and 0 after the last: float64 (n + 1,), or fewer.

    sigma_i = (sigma_max^(1/rho) + i/(n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    Args:
        num_steps: n.
        sigma_max: first level.
        sigma_min: last level, above 0.
        rho: the higher, the more steps at low noise.
        start: leave out levels above it. As published, the second stage takes 200 levels from 80 with rho 100, cut at
            0.9: 100 are left, from 0.869 on.
    """
    num_steps = check_count("num_steps", num_steps)
    if not 0 < sigma_min <= sigma_max < math.inf or not rho > 0:
        raise ValueError(f"sigma_max {sigma_max}, sigma_min {sigma_min}, rho {rho}: choose 0 < sigma_min <= sigma_max")
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = torch.linspace(*ends, num_steps, dtype=torch.float64) ** rho
    kept = sigmas if start is None else sigmas[sigmas <= start]
    return torch.cat([kept, kept.new_zeros(1)])


# Network and loss


def preconditioning(sigma: Tensor | float, sigma_data: float = SIGMA_DATA) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EDM's c_skip, c_out, c_in and c_noise (Karras et al. 2022, arXiv 2206.00364, table 1). Shape of sigma, above 0.

    D = c_skip x + c_out network(c_in x, c_noise). They stand as in EDM on blurred pictures too.
    """
    sigma = as_tensor(sigma)
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt(), sigma.log() / 4


def loss_weight(sigma: Tensor | float, sigma_data: float = SIGMA_DATA, limit: float = 1e5) -> Tensor:
    """Weight of ||D - x_0||^2: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, at most `limit`. Shape of sigma."""
    sigma = as_tensor(sigma)
    return ((sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2).clamp(max=limit)


def forward(x0: Tensor, sigma: Tensor | float, alpha: Tensor, noise: Tensor) -> Tensor:
    """A noisy picture: x_0 blurred by alpha plus sigma n. x0, noise: (B, C, H, W); sigma: () or (B,)."""
    blurred = x0 if alpha.shape[-1] == 1 else blur(x0, alpha)
    return blurred + expand_to(sigma, x0) * noise


def denoise(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, sigma_data: float = SIGMA_DATA
) -> Tensor:
    """D(x, sigma): the sharp picture that a network, given (c_in x, c_noise), sees in a noisy one, (B, C, H, W).

    sigma: (B,).
    """
    c_skip, c_out, c_in, c_noise = preconditioning(sigma, sigma_data)
    output = network(expand_to(c_in, x) * x, c_noise.to(x.dtype))
    return expand_to(c_skip, x) * x + expand_to(c_out, x) * output.to(x.dtype)


def loss(x0: Tensor, prediction: Tensor, sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """Weighted mean square error of D against the sharp picture, of each sample, (B,)."""
    return loss_weight(sigma, sigma_data) * (prediction - x0).square().mean((1, 2, 3))


# Sampler


def step(
    u: Tensor,
    x0: Tensor,
    sigma: float,
    sigma_next: float,
    alpha: Tensor,
    alpha_next: Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One step u -> u' = g u + (alpha' - g alpha) D + eta sigma' n, in coefficients (B, C, H, W).

    Exact where D does not change during the step; then u' is alpha' D + sigma' n for u = alpha D + sigma n, with the
    covariance of n unchanged. Fresh noise is a step of Langevin dynamics of size eta^2: its error falls with eta^2
    and not with the number of steps. The last step (sigma' = 0, alpha' = 1) gives D.

    Args:
        u: coefficients of the noisy picture.
        x0: coefficients of the prediction D.
        sigma: noise level before.
        sigma_next: noise level after.
        alpha: damping before, (s, s).
        alpha_next: damping after.
        eta: share of the noise that is replaced by fresh noise, 0 to 1; 0.2 as published.
        noise: coefficients of n; needed where eta is above 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta {eta} is out of range: choose 0 (deterministic) to 1")
    if eta and noise is None:
        raise ValueError(f"eta is {eta}: such a step adds noise, give it")
    g = math.sqrt(1 - eta**2) * sigma_next / sigma
    stepped = g * u + damp(x0, alpha_next - g * alpha)
    return stepped if noise is None else stepped + eta * sigma_next * noise


def published_heun(
    u: Tensor,
    predictions: tuple[Tensor, Tensor],
    u_next: Tensor,
    sigma: float,
    sigma_next: float,
    alpha: Tensor,
    alpha_next: Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Heun's correction as published: the slopes (u - alpha D) / sigma before and after the step are averaged.

    The change of the blur, (alpha' - alpha) D, stays with the first prediction, so where the blur moves the error of n
    steps falls as 1/n only; `step` with the mean of both predictions makes it 1/n^2. To be compared.

    Args:
        u: as in `step`, and so the next six.
        sigma: before.
        sigma_next: after.
        alpha: before.
        alpha_next: after.
        eta: share of fresh noise.
        noise: coefficients of n.
        predictions: coefficients of D before and after the step.
        u_next: what `step` gave.
    """
    before = (u - damp(predictions[0], alpha)) / sigma
    after = (u_next - damp(predictions[1], alpha_next)) / sigma_next
    kept = math.sqrt(1 - eta**2) * sigma_next
    stepped = u + damp(predictions[0], alpha_next - alpha) + (kept - sigma) * (before + after) / 2
    return stepped if noise is None else stepped + eta * sigma_next * noise


def sample_pixel_relay(
    denoise: Callable[[Tensor, float], Tensor],
    x: Tensor,
    sigmas: list[float],
    alphas: list[Tensor],
    solver: str = "heun",
    eta: float = 0.0,
    draw: Callable[[], Tensor] | None = None,
) -> Tensor:
    """The sampler from a noisy picture to x_0, (B, C, H, W).

    Args:
        denoise: D of a noisy picture and its noise level.
        x: where it starts: `enlarge(small, s)` plus sigmas[0] times `relay_noise`; for s = 1 noise alone.
        sigmas: noise levels before each step and after the last (`edm_sigmas`), (p + 1).
        alphas: damping at each of them, (s, s) (`damping`).
        solver: one of `SOLVERS`. "heun" predicts again after a step, and takes it again with the mean of both.
        eta: share of the noise that is replaced by fresh noise in each step, 0 to 1.
        draw: draws n, (B, C, H, W); needed where eta is above 0.
    """
    check_solver(solver)
    s = alphas[0].shape[-1]
    for i, sigma in enumerate(sigmas[:-1]):
        levels = sigma, sigmas[i + 1], alphas[i], alphas[i + 1]
        noise = patch_dct(draw(), s) if eta and draw else None
        u, x0 = patch_dct(x, s), patch_dct(denoise(x, sigma), s)
        u_next = step(u, x0, *levels, eta, noise)
        if solver != "euler" and sigmas[i + 1] > 0:
            again = patch_dct(denoise(patch_idct(u_next, s), sigmas[i + 1]), s)
            u_next = corrected(solver, u, (x0, again), u_next, levels, eta, noise)
        x = patch_idct(u_next, s)
    return x


def corrected(
    solver: str,
    u: Tensor,
    predictions: tuple[Tensor, Tensor],
    u_next: Tensor,
    levels: tuple[float, float, Tensor, Tensor],
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """A step taken again, knowing D after it: by "heun", with the mean of both predictions, or "published_heun".

    `levels` are sigma, sigma', alpha and alpha'; the others as in `published_heun`.
    """
    if solver == "published_heun":
        return published_heun(u, predictions, u_next, *levels, eta, noise)
    return step(u, (predictions[0] + predictions[1]) / 2, *levels, eta, noise)


def check_solver(solver: str) -> None:
    """Raise a ValueError for a solver that is none of `SOLVERS`."""
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown: choose one of {', '.join(SOLVERS)}")
