"""Pictures encoded ahead of training, in a cache of shards for one VAE and one kind of picture."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from cogview3 import checkpoints
from cogview3.data.scenes import render as drawing
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.diffusion.relay import enlarge
from cogview3.errors import as_user_error
from cogview3.precision import computes_bfloat16

SHARD = 1024  # pictures in a shard
MAX_BLUR = 2.0  # pixels of the small picture, standard deviation: all but wipes out a period of 6
MAX_LATENT_NOISE = 0.3  # of latents of unit variance, standard deviation
_BLUR_RADIUS = 6  # three of the largest standard deviations
_CHUNK_PIXELS = 2**20  # pixels encoded at once


@dataclass(frozen=True)
class SceneLatents:
    """Which latents: `pictures` scenes of side `size`, drawn from `seed`; for a relay stage also z_L."""

    size: int  # side of the pictures, in pixels
    pictures: int  # how many
    seed: int  # of the scenes, and of the faults of their small pictures
    low: tuple[float, float] | None = None  # of a relay stage: `hand_over`'s shares, reconstructed and degraded

    def scene(self, index: int) -> Scene:
        """The scene of a picture; the same index gives the same scene at every size."""
        return _scene(self.seed, index)


@lru_cache(maxsize=2**16)  # each is asked for at every visit
def _scene(seed: int, index: int) -> Scene:
    return sample_scene(np.random.default_rng([seed, index]))


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 pictures (H, W, 3) to one batch (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(pictures: Tensor) -> np.ndarray:
    """Pictures (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3)."""
    scaled = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def scaled(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents of the encoder (B, C, H/8, W/8), shifted and scaled as the UNets see them."""
    shift, factor = vae.config["shift_factor"] or 0.0, float(vae.config["scaling_factor"])
    return (latents - shift) * factor


@torch.no_grad()
def posterior(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents, unscaled, (B, C, H/8, W/8) each, of pictures (B, 3, H, W) in [-1, 1]."""
    found = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist
    return found.mean, found.logvar


def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Scaled latents (posterior's mode) of pictures (B, 3, H, W) in [-1, 1]: (B, C, H/8, W/8)."""
    return scaled(vae, posterior(vae, pictures)[0])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), clamped to [-1, 1], of scaled latents (B, C, H/8, W/8)."""
    shift = vae.config["shift_factor"] or 0.0
    pixels: Tensor = vae.decode((latents / vae.config["scaling_factor"] + shift).to(vae.dtype)).sample
    return pixels.clamp(-1, 1)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] through the VAE and back; clamped to that range."""
    return decode(vae, encode(vae, pictures))


def encode_scene_batch(vae: AutoencoderKL, kind: SceneLatents, indices: Sequence[int]) -> dict[str, Tensor]:
    """Latents (B, C, size/8, size/8) of scenes, on the CPU: "z0" of x_0 and, where `kind.low`, "zL" of x_L."""
    pictures = to_tensor([drawing.render(kind.scene(index), kind.size) for index in indices])
    pictures = pictures.to(vae.device, memory_format=torch.channels_last)
    rngs = [np.random.default_rng([kind.seed, index, 9]) for index in indices]
    fast = computes_bfloat16(vae.device)  # a third of float32's time where a CPU does, many times it elsewhere
    with torch.autocast(vae.device.type, torch.bfloat16, enabled=fast):
        parts = posteriors(vae, pictures, kind.low, rngs)
    latents = {"z0": parts["mean"]} | ({"zL": parts["low_mean"]} if "low_mean" in parts else {})
    return {name: scaled(vae, value).float().cpu().contiguous() for name, value in latents.items()}


def posteriors(
    vae: AutoencoderKL, pictures: Tensor, low: tuple[float, float] | None, rngs: Sequence[np.random.Generator]
) -> dict[str, Tensor]:
    """`posterior` of pictures (B, 3, H, W) in [-1, 1], as "mean" and "logvar".

    Where `low` gives the shares of small pictures that `hand_over` disturbs, also "low_mean" and "low_logvar" of x_L;
    `rngs` are for that, one a picture.
    """
    parts = dict(zip(("mean", "logvar"), posterior(vae, pictures), strict=True))
    if low is not None:
        small = hand_over(vae, torch.nn.functional.avg_pool2d(pictures, 2), *low, rngs)
        parts |= zip(("low_mean", "low_logvar"), posterior(vae, enlarge(small)), strict=True)
    return parts


@torch.no_grad()
def hand_over(
    vae: AutoencoderKL, pictures: Tensor, reconstructed: float, degraded: float, rngs: Sequence[np.random.Generator]
) -> Tensor:
    """Small pictures as a base stage might hand them over.

    Those come out of the VAE's decoder, and have faults: a share `reconstructed` of the pictures goes through the VAE,
    a share `degraded` with a blur of up to `MAX_BLUR` pixels (standard deviation) and noise of up to `MAX_LATENT_NOISE`
    on the latents, so that a relay learns to take fine detail from the text.

    Args:
        vae: the autoencoder.
        pictures: clean ones, (B, 3, H, W) in [-1, 1].
        reconstructed, degraded: shares of the pictures, 0 to 1; the others stay as they are.
        rngs: one for each picture; draws which kind it is, and its faults.

    Returns (B, 3, H, W) in [-1, 1], float32.
    """
    if not reconstructed and not degraded:
        return pictures.float()
    chances = torch.tensor([rng.random() for rng in rngs])
    decoded = decode(vae, handed_over_latents(vae, pictures, chances < degraded, rngs))
    clean = (chances >= degraded + reconstructed).view(-1, 1, 1, 1).to(pictures.device)
    return torch.where(clean, pictures, decoded.float())


@torch.no_grad()
def handed_over_latents(
    vae: AutoencoderKL, pictures: Tensor, degraded: Tensor, rngs: Sequence[np.random.Generator]
) -> Tensor:
    """Scaled latents (B, C, H/8, W/8) of pictures as a base stage might draw them; see `hand_over`.

    Args:
        vae: the autoencoder.
        pictures: clean ones, (B, 3, H, W) in [-1, 1].
        degraded: whether each gets faults, (B,), bool.
        rngs: one for each picture; draws its faults.
    """
    faults = torch.tensor(np.stack([rng.uniform(0, 1, 2) for rng in rngs]), dtype=torch.float32)
    faults[~degraded] = 0
    blurs, levels = (faults * torch.tensor([MAX_BLUR, MAX_LATENT_NOISE])).to(pictures.device).unbind(1)
    latents = encode(vae, gaussian_blur(pictures, blurs))
    noise = torch.from_numpy(np.stack([rng.standard_normal(latents.shape[1:], np.float32) for rng in rngs]))
    return latents + (levels.view(-1, 1, 1, 1) * noise.to(levels.device)).to(latents)


def gaussian_blur(pictures: Tensor, deviations: Tensor) -> Tensor:
    """Blur each picture (B, C, H, W) by its own standard deviation (B,), in pixels, at most 2; borders mirrored."""
    count, channels = pictures.shape[:2]
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=pictures.device)
    kernels = (
        (-0.5 * (offsets / deviations.clamp(min=1e-3)[:, None]).square()).softmax(1).repeat_interleave(channels, 0)
    )
    blurred = torch.nn.functional.pad(pictures, (_BLUR_RADIUS,) * 4, mode="reflect").flatten(0, 1)[None]
    for shape in ((-1, 1, 1, offsets.numel()), (-1, 1, offsets.numel(), 1)):
        blurred = torch.nn.functional.conv2d(blurred, kernels.view(shape).to(blurred), groups=count * channels)
    apart: Tensor = blurred.unflatten(1, (count, channels))
    return apart[0]


def cached_latents(vae: AutoencoderKL, vae_folder: Path, kind: SceneLatents, cache: Path) -> dict[str, Tensor]:
    """All latents of `kind`, float16, (pictures, C, size/8, size/8) each; encoded only where the cache lacks them.

    Shards are written whole, so that an interrupted call resumes where it stopped. Raises UserError for a damaged one.
    """
    vae.to(memory_format=torch.channels_last)
    folder = cache / f"latents-{_fingerprint(vae_folder, kind)}"
    shards = []
    for first in range(0, kind.pictures, SHARD):
        indices = range(first, min(first + SHARD, kind.pictures))
        path = folder / f"{first:08d}-{len(indices)}.safetensors"
        if not path.is_file():
            print(f"encoding pictures {first} to {indices[-1]} of {kind.pictures}", file=sys.stderr, flush=True)
            try:
                _write_shard(vae, kind, indices, path)
            except KeyboardInterrupt as stop:
                done = f"{first} of {kind.pictures} pictures encoded; the same command resumes"
                raise type(stop)(done) from None
        with as_user_error(f"{path} is damaged", "delete it to make it again"):
            shards.append(load_file(checkpoints.regular(path)))
            if shards[-1].keys() != shards[0].keys() or {len(each) for each in shards[-1].values()} != {len(indices)}:
                raise ValueError("it holds other latents")
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def _write_shard(vae: AutoencoderKL, kind: SceneLatents, indices: range, path: Path) -> None:
    count = max(1, _CHUNK_PIXELS // kind.size**2)
    parts = [encode_scene_batch(vae, kind, indices[at : at + count]) for at in range(0, len(indices), count)]
    tensors = {name: torch.cat([part[name] for part in parts]).half() for name in parts[0]}
    with checkpoints.whole_file(path) as temporary:
        save_file(tensors, temporary)


def _fingerprint(vae_folder: Path, kind: SceneLatents) -> str:
    """Hash of the VAE's files, the drawing code's constants and the kind of latents, but for their number."""
    digest = hashlib.sha256()
    for path in sorted(vae_folder.iterdir()):
        digest.update(path.read_bytes())
    look = [drawing.OBJECT_COLORS, drawing.GROUND_COLORS, drawing.STRIPE_PERIOD, drawing.CHECK_PERIOD]
    digest.update(repr((look, MAX_BLUR, MAX_LATENT_NOISE, kind.size, kind.seed, kind.low)).encode())
    return digest.hexdigest()[:16]
