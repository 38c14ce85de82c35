"""Draws the figures of docs/relay.md: python docs/figures/relay.py docs/images.

Those of signal-to-noise ratios are `cogview3 reproduce snr`s.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from cogview3.data.latents import decode, encode, to_tensor, to_uint8
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import sample_scene
from cogview3.diffusion import pixel_relay, relay, schedule
from cogview3.references import weights_folder
from cogview3.reproduce.snr_plots import new_figure

TIMES = (1.0, 0.75, 0.5, 0.25, 0.0)
SCENE = 4


def forward_process() -> Image.Image:
    """Rows, from the start of sampling on the left to its end: pixels and latents, without and with their noise."""
    scene = sample_scene(np.random.default_rng([SCENE, 0]))
    generator = torch.Generator().manual_seed(0)
    rows = [*_pixels(to_tensor([render(scene, 128)]), generator), *_latents(to_tensor([render(scene, 256)]), generator)]
    return Image.fromarray(np.vstack([np.hstack(row) for row in rows]))


def _pixels(x0: torch.Tensor, generator: torch.Generator) -> list[list[np.ndarray]]:
    white, other = (torch.randn(x0.shape, generator=generator) for _ in range(2))
    noise = pixel_relay.relay_noise(white, other, 4)
    clean, noisy = [], []
    for time in TIMES:
        alpha = pixel_relay.damping(pixel_relay.blur_strength(time), 4)
        sigma = 0.9 * time**3
        clean.append(pixel_relay.blur(x0, alpha))
        noisy.append(pixel_relay.forward(x0, sigma, alpha, noise))
    return [[_enlarged(to_uint8(x)[0]) for x in row] for row in (clean, noisy)]


def _latents(x0: torch.Tensor, generator: torch.Generator) -> list[list[np.ndarray]]:
    vae = AutoencoderKL.from_pretrained(weights_folder("scenes", "vae")).eval().float()
    z0, zL = encode(vae, x0), encode(vae, relay.low_resolution(x0))
    noise, sigmas = torch.randn(z0.shape, generator=generator), schedule.make_sigmas()
    clean, noisy = [], []
    for time in TIMES:
        clean.append(relay.blur(z0, zL, time))
        noisy.append(relay.forward(z0, zL, sigmas[round(299 * time)] if time else 0.0, time, noise))
    return [[to_uint8(decode(vae, z))[0] for z in row] for row in (clean, noisy)]


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(2, 0).repeat(2, 1)


def noise_samples() -> Image.Image:
    """White noise of 32 pixels enlarged, block noise of 128, white noise of 128; each of variance 1."""
    generator = torch.Generator().manual_seed(1)
    small, other, white = (torch.randn(1, 3, side, side, generator=generator) for side in (32, 128, 128))
    pictures = pixel_relay.enlarge(small, 4), pixel_relay.block_noise(other, 4), white
    return Image.fromarray(np.hstack([_enlarged(to_uint8(x / 3)[0]) for x in pictures]))


def damping_curves(path: Path) -> None:
    """What is left of frequencies, against time; and the power of block noise, against frequency."""
    figure, (blur, spectrum) = new_figure(2)
    times = torch.linspace(0, 1, 101)
    alphas = pixel_relay.damping(pixel_relay.blur_strength(times), 4)
    for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (0, 3), (3, 3)):
        blur.plot(times, alphas[:, i, j], label=f"frequency ({i}, {j})")
    blur.set(title="damping alpha of 4 x 4 patches", xlabel="time q", ylabel="alpha")
    blur.legend(fontsize=8)
    frequencies = torch.linspace(0, 0.5, 201)
    for s in (2, 4, 8):
        spectrum.plot(frequencies, pixel_relay.block_spectrum(frequencies, s) / s, label=f"s = {s}")
    spectrum.set(title="block noise along one axis", xlabel="frequency (cycles a pixel)", ylabel="power over center's")
    spectrum.legend(fontsize=8)
    figure.savefig(path)


def main(folder: Path) -> None:
    """Write all figures into a folder."""
    forward_process().save(folder / "relay_forward.png")
    noise_samples().save(folder / "relay_noise.png")
    damping_curves(folder / "relay_damping.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
