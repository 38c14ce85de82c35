"""Why relay works: signal-to-noise ratio by frequency, at several resolutions (arXiv 2309.03350, section 3).

Frequencies are those of the cosine transform of the whole picture, in cycles a picture, so that a frequency is the same
detail at every resolution. Twice the side has four times the coefficients: a frequency that both resolutions have
carries four times the power at the larger one, while white noise of the same level has as much as before. So the
same noise level leaves more of the picture, and a second stage may begin midway. Block noise (`diffusion.pixel_relay`)
has the power that white noise of the small picture has, in all frequencies that the small picture knows.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.models import AutoencoderKL
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from cogview3.config import UserError
from cogview3.data.images import MAX_PIXELS, decode, pictures_below
from cogview3.data.latents import encode, to_tensor
from cogview3.data.report import Broken
from cogview3.data.scenes.render import render
from cogview3.data.scenes.scene import sample_scene
from cogview3.diffusion import pixel_relay, relay, schedule
from cogview3.references import weights_folder

PAPER_STARTS = {200: (0.288, 0.829), 400: (0.289, 0.835), 500: (0.290, 0.847), 600: (0.289, 0.836), 800: (0.286, 0.812)}
"""HPSv2 and ImageReward of table 3 of arXiv 2403.05121 by T_r: latents of side 128, DrawBench, about 10 steps."""
PAPER_SIDE, PAPER_START = 128, 500
_BATCH = 4  # pictures encoded at once


@dataclass(frozen=True)
class Spectrum:
    """Power of pictures or latents, by bands of frequency.

    Attributes:
        kind: "pixels" or "latents".
        side: of the pictures or latents, in their own pixels.
        edges: of the bands, in cycles a picture, (bands + 1,): octaves from 1/2 on to the highest frequency, side / 2.
        signal: mean power of a coefficient of the orthonormal cosine transform, (bands,).
        white: of noise of level 1, white, (bands,): 1.
        block: of block noise of level 1, the smallest side's white noise, (bands,); `None` at that side.
        detail: of z_0 - z_L, what a picture of half the side cannot hold, (bands,).
    """

    kind: str
    side: int
    edges: list[float]
    signal: list[float]
    white: list[float]
    block: list[float] | None
    detail: list[float]

    def snr(self, sigma: float, noise: str = "white") -> np.ndarray:
        """Signal-to-noise ratio of each band at a noise level."""
        return np.array(self.signal) / (sigma**2 * np.array(getattr(self, noise)))


@dataclass(frozen=True)
class Start:
    """What spectra say of the relay's start T_r at one side of latents.

    Attributes:
        side: of the relay's latents.
        equivalent: T_r at which the coarse half of the frequencies has the ratio that the paper's T_r = 500 leaves of
            it at side 128, by white noise alone: sigma in proportion to the side.
        detail: T_r at which noise has the power of the detail that the small picture lacks, in the band where that
            is strongest: below, what the enlarged picture lacks shows through the noise.
        kept: T_r at which noise has the power of the picture, in the band below the small picture's highest
            frequency: above, what the base drew there is lost.
    """

    side: int
    equivalent: int
    detail: int
    kept: int


def measure(
    pictures: Sequence[np.ndarray], sizes: Sequence[int], vae: AutoencoderKL | None = None, progress: Any = None
) -> dict[str, Any]:
    """Spectra of pictures, and of their latents, at each of several sides; and what they say of the relay's start.

    Args:
        pictures: uint8, (H, W, 3), squares of the largest side.
        sizes: sides in pixels, rising, each a multiple of the one before; smaller ones are means.
        vae: for latents; their sides are an eighth of those of at least 64 pixels.
        progress: called with the number of pictures done.

    Returns:
        {"count", "spectra": [Spectrum...], "starts": [Start...]}.
    """
    sums: dict[tuple[str, int], np.ndarray] = {}
    for first in range(0, len(pictures), _BATCH):
        batch = to_tensor(list(pictures[first : first + _BATCH]))
        for size in sizes:
            x = pixel_relay.shrink(batch, sizes[-1] // size)
            _add(sums, ("pixels", size), x, relay.low_resolution(x))
            if vae is not None and size >= 64:
                parts = (encode(vae, part).float().cpu() for part in (x, relay.low_resolution(x)))
                _add(sums, ("latents", size // 8), *parts)
        if progress:
            progress(min(first + _BATCH, len(pictures)))
    spectra = [_spectrum(kind, side, total / len(pictures), sums) for (kind, side), total in sums.items()]
    starts = [_start(spectrum) for spectrum in spectra if spectrum.kind == "latents" and spectrum.side >= 16]
    return {"count": len(pictures), "spectra": spectra, "starts": starts}


def _add(sums: dict[tuple[str, int], np.ndarray], key: tuple[str, int], x: Tensor, low: Tensor) -> None:
    """Add up squared coefficients of x and of x - low, channels averaged: (2, side, side)."""
    powers = [(dctn(part.double().numpy(), axes=(-2, -1), norm="ortho") ** 2).mean(1).sum(0) for part in (x, x - low)]
    sums[key] = sums.get(key, 0.0) + np.stack(powers)


def _spectrum(kind: str, side: int, power: np.ndarray, sums: dict[tuple[str, int], np.ndarray]) -> Spectrum:
    smallest = min(other for name, other in sums if name == kind)
    edges = [2.0**k for k in range(-1, int(math.log2(side)))]
    noise = block_noise_power(side, side // smallest)
    return Spectrum(
        kind=kind,
        side=side,
        edges=edges,
        signal=_bands(power[0], edges),
        white=[1.0] * (len(edges) - 1),
        block=_bands(noise, edges) if side > smallest else None,
        detail=_bands(power[1], edges),
    )


def _bands(power: np.ndarray, edges: list[float]) -> list[float]:
    """Means of a picture's coefficients over rings of frequency; corners above the highest edge are left out."""
    half = np.arange(len(power)) / 2  # coefficient k is k half waves
    radius = np.hypot(half[:, None], half)
    rings = itertools.pairwise(edges)
    return [float(power[(radius >= low) & (radius < high)].mean()) for low, high in rings]


def block_noise_power(side: int, s: int) -> np.ndarray:
    """Expected squared coefficients of block noise of level 1, (side, side): the transform of its covariance.

    The covariance is the triangle's along each axis, over the edges too.
    """
    lags = np.arange(side)
    triangle = np.maximum(0.0, 1 - np.minimum(lags, side - lags) / s)
    covariance = np.stack([np.roll(triangle, place) for place in lags])
    transform = pixel_relay.dct_matrix(side).numpy()
    along = np.einsum("ik,kl,il->i", transform, covariance, transform)
    return np.outer(along, along)


def _start(spectrum: Spectrum) -> Start:
    """`Start` of one spectrum of latents."""
    sigmas = schedule.make_sigmas()
    signal, detail = np.array(spectrum.signal), np.array(spectrum.detail)
    paper = float(sigmas[PAPER_START - 1])
    # the last band is what halving takes away; the one before it is the finest that the small picture holds
    levels = {
        "equivalent": paper * spectrum.side / PAPER_SIDE,
        "detail": math.sqrt(detail.max()),
        "kept": math.sqrt(signal[-2]),
    }
    return Start(spectrum.side, **{name: nearest_start(sigma, sigmas) for name, sigma in levels.items()})


def nearest_start(sigma: float, sigmas: Tensor) -> int:
    """T_r, 1 to T, whose first noise level is nearest to sigma (in log sigma)."""
    return int((sigmas.log() - math.log(sigma)).abs().argmin()) + 1


def scenes(count: int, side: int, seed: int) -> list[np.ndarray]:
    """Random scenes of the built-in world, (side, side, 3) uint8."""
    return [render(sample_scene(np.random.default_rng([seed, index])), side) for index in range(count)]


def folder_pictures(folder: Path, count: int, side: int) -> list[np.ndarray]:
    """Up to `count` pictures of a folder and those in it, by name: their central square, shrunk to `side`.

    Smaller pictures are left out, as enlarged ones have no detail; so is what cannot be read.

    Raises:
        UserError: the folder has none.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder; give one with pictures in it")
    found = []
    for picture in _decoded(folder):
        if min(picture.size) >= side:
            found.append(_square(picture, side))
        if len(found) == count:
            break
    if not found:
        raise UserError(f"--images {folder}: no picture of at least {side} x {side}; give others, or smaller --sizes")
    return found


def _decoded(folder: Path) -> Iterator[Image.Image]:
    for path in pictures_below(folder):
        suffix = path.suffix[1:].lower()
        if path.is_file() and path.stat().st_size < 4 * MAX_PIXELS:
            try:
                yield decode(path.read_bytes(), suffix).image
            except Broken:
                continue


def _square(picture: Image.Image, side: int) -> np.ndarray:
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    box = (left, top, left + short, top + short)
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX, box=box))


def own_start(model: str) -> tuple[int, int] | None:
    """Side of the latents and T_r of a model's relay; None where it has none."""
    try:
        folders = [weights_folder(model, name) for name in ("relay_unet", "relay_scheduler")]
    except UserError:
        return None
    unet, scheduler = (
        json.loads((folder / name).read_text("utf-8"))
        for folder, name in zip(folders, ("config.json", "scheduler_config.json"), strict=True)
    )
    return unet["sample_size"], scheduler["relay_start"]


def to_dict(result: dict[str, Any]) -> dict[str, Any]:
    """A result of `measure` as JSON has it, with the paper's own figures beside."""
    return {
        "count": result["count"],
        "spectra": [asdict(spectrum) for spectrum in result["spectra"]],
        "starts": [asdict(start) for start in result["starts"]],
        "model": result.get("model"),
        "paper": {"side": PAPER_SIDE, "hpsv2_and_image_reward_by_start": PAPER_STARTS},
    }


def low_snr(spectra: Sequence[Spectrum], sigma: float) -> dict[int, float]:
    """By side, the signal-to-noise ratio at the frequencies below the smallest side's highest, as one mean."""
    least = min(len(spectrum.signal) for spectrum in spectra)
    return {spectrum.side: float(spectrum.snr(sigma)[:least].mean()) for spectrum in spectra}


def lines(result: dict[str, Any]) -> list[str]:
    """A result of `measure` to be read."""
    sentences = []
    for kind in ("pixels", "latents"):
        spectra = [spectrum for spectrum in result["spectra"] if spectrum.kind == kind]
        ratios = low_snr(spectra, 1.0) if spectra else {}
        least = min(ratios, default=0)
        sentences += [
            f"{kind} {side}: signal-to-noise ratio of low frequencies {ratio:.4g} at noise level 1, "
            f"{ratio / ratios[least] if ratios[least] else 1:.3g} times that at {least}"  # plain pictures have none
            for side, ratio in ratios.items()
        ]
    sentences += [
        f"relay start for latents of side {start.side}: {start.equivalent} keeps the ratio of the paper's "
        f"{PAPER_START} at {PAPER_SIDE}; {start.detail} drowns the missing detail, {start.kept} the finest there"
        for start in result["starts"]
    ]
    if result.get("model"):
        sentences.append("the model's own relay, of latents of side {}, starts at {}".format(*result["model"]))
    return sentences
