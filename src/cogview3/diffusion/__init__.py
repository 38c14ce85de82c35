"""The mathematics of relay diffusion: pure functions on tensors.

Nothing here knows of networks, files or devices, and nothing draws random numbers: noise is an argument.
`schedule` holds what both stages share, `relay` the second stage, `pixel_relay` the original method, in pixels, with
symbols of its own. Import from the modules: this file is only the table of symbols, spelt alike in code, tests and
documentation. Equations are numbered as in CogView3 (arXiv 2403.05121). A prime marks what holds after a step
(sigma', f'); in code that is `_next`.

| symbol    | in code               | meaning                                                            |
|-----------|-----------------------|--------------------------------------------------------------------|
| t, T      | `num_train_timesteps` | time, a noise level's number 0..T-1; T = 1000                      |
| abar_t    | `alphas_cumprod`      | share of the variance that is signal at time t, in (0, 1)          |
| sigma_t   | `sigma`               | noise level, sqrt((1 - abar_t) / abar_t): 0.029 to 14.6            |
| alpha_t   | `alpha`               | 1 / sqrt(1 + sigma_t^2) = sqrt(abar_t); networks are given alpha z |
| eps       | `noise`               | standard normal numbers, of the latents' shape                     |
| x_0, x_L  | `x`                   | a picture; the same, halved and enlarged again: (B, 3, H, W)       |
| z_0       | `z0`                  | latents of x_0, scaled: (B, C, H/8, W/8)                           |
| z_L       | `zL`                  | latents of x_L, of the same shape                                  |
| z_t       | `z`, `z_t`            | noisy latents, variance exploding: mean + sigma_t eps              |
| D         | `x0`                  | the network's prediction of z_0 (z0~ in the sampler's equations)   |
| T_r       | `relay_start`         | the relay stage knows times 0..T_r - 1; 500                        |
| u         | `remaining_time`      | what is left of sampling: 1 at its start, 0 at its end             |
| f_t       | `f`                   | blur fraction: 1 at the relay's start, 0 at its end                |
| F(z_0, t) | `blur(z0, zL, f)`     | (1 - f_t) z_0 + f_t z_L, the mean of z_t in the relay (equation 4) |
| z_0^t     | `blurred`             | the sampler's estimate of F(z_0, t)                                |
| n, p      | `num_steps`           | number of sampling steps: base, relay                              |
| a, b, c   | `a`, `b`, `c`         | weights of z_t, D and z_0^t in a relay step (equation 6)           |
| r, beta   | `r`, `beta`           | the same step's weights in terms of z_t, D and z_L                 |
| delta     | `delta`               | standard deviation of the noise that a step adds              |
| eta       | `eta`                 | 0: deterministic sampler (delta = 0); 1: ancestral                 |
| w         | `guidance`            | strength of classifier-free guidance; 1 is none                    |

A value per sample (t, sigma, f, delta) is a number, a tensor () or a tensor (B,), spread over the latents
(B, C, H, W). Coefficients are computed in that value's own precision; the latents keep their dtype.
"""
