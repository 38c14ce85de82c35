"""Pictures to latents and back: by the VAE, or by the tiny autoencoder that replaces it, whole or in tiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from cogview3.config import UserError
from cogview3.diffusion.relay import enlarge
from cogview3.generation import inputs
from cogview3.generation.tiles import blend_tiles
from cogview3.models.light import LatentEnlarger, LightDecoder

LIGHT_COMPONENTS = ("latent_enlarger", "light_decoder")
"""Optional components that `light` puts in the VAE's place."""


class LatentsMixin(DiffusionPipeline):
    """For pipelines with a `vae`, perhaps a `latent_enlarger` and a `light_decoder`, and a `vae_scale_factor`.

    Attributes:
        vae_tile_size: side in pixels of the tiles that the VAE works in where a call cuts nothing; None never cuts.
    """

    vae: AutoencoderKL
    latent_enlarger: LatentEnlarger | None
    light_decoder: LightDecoder | None
    vae_scale_factor: int
    vae_tile_size: int | None = None

    def enable_vae_slicing(self) -> None:
        """Encode and decode one picture at a time, to save memory."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self, tile_size: int = 512) -> None:
        """Encode and decode larger pictures in overlapping tiles of `tile_size` pixels, a multiple of 64.

        The UNets still see whole pictures, unless a call is given `tile_size`, which then counts for the VAE as well.

        Raises UserError for a side that is no multiple of 64.
        """
        self.vae_tile_size = inputs.check_side("tile_size", tile_size, 8 * self.vae_scale_factor)

    def disable_vae_tiling(self) -> None:
        """Encode and decode pictures whole again."""
        self.vae_tile_size = None

    def _check_light(self, light: bool | None) -> bool:
        """Whether a call with this settled choice uses the tiny autoencoder; refuses where there are none."""
        if light and self.latent_enlarger is None and self.light_decoder is None:
            asked = f"load another mode than {self.mode_name!r}" if self.mode.light else "leave light out"
            raise UserError(
                f"this model has no tiny autoencoder: {asked}, or export it with --enlarger and --light-decoder"
            )
        return bool(light)

    @contextmanager
    def _safe_vae(self) -> Iterator[torch.dtype]:
        """Run a float16 VAE in float32 where its configuration says that it overflows; gives what it runs in."""
        dtype = self.vae.dtype
        upcast = dtype == torch.float16 and self.vae.config.get("force_upcast", True)
        if upcast:
            self.vae.to(torch.float32)
        try:
            yield torch.float32 if upcast else dtype
        finally:
            if upcast:
                self.vae.to(torch.float16)

    def _scaling(self) -> tuple[float, float]:
        """Shift and factor of the VAE's latents, scaled ones being (z - shift) * factor."""
        config = self.vae.config
        return config.get("shift_factor") or 0.0, config["scaling_factor"]

    def _to_latents(self, pixels: torch.Tensor, tile_size: int | None = None) -> torch.Tensor:
        """Pictures (B, 3, H, W) in -1..1 to scaled latents (B, C, H/8, W/8), the posterior's mode."""
        cell, (shift, factor) = self.vae_scale_factor, self._scaling()

        def encode(part: torch.Tensor) -> torch.Tensor:
            encoded: Any = self.vae.encode(part.to(dtype))
            posterior = getattr(encoded, "latent_dist", None)
            found: torch.Tensor = encoded.latents if posterior is None else posterior.mode()
            return found.float()

        with self._safe_vae() as dtype:
            found = blend_tiles(encode, pixels, self._tile(tile_size), cell=cell)
        inputs.check_numbers("the VAE's encoder", found, dtype)
        return (found - shift) * factor

    def _to_pixels(self, latents: torch.Tensor, tile_size: int | None = None, light: bool = False) -> torch.Tensor:
        """Scaled latents to pictures (B, 3, H, W), float32, clamped to -1..1."""
        cell, (shift, factor) = self.vae_scale_factor, self._scaling()
        if light and self.light_decoder is not None:
            return self._by("the tiny decoder", self.light_decoder, latents, tile_size, cell).clamp(-1, 1)

        def decode(part: torch.Tensor) -> torch.Tensor:
            pixels: torch.Tensor = self.vae.decode((part / factor + shift).to(dtype), return_dict=False)[0]
            return pixels.float()

        with self._safe_vae() as dtype:
            pixels = blend_tiles(decode, latents, self._tile(tile_size), cell_out=cell)
        inputs.check_numbers("the VAE's decoder", pixels, dtype)
        return pixels.clamp(-1, 1)

    def _low_res_latents(self, pixels: torch.Tensor, tile_size: int | None) -> torch.Tensor:
        """z_L of pictures (B, 3, H, W) in -1..1: the mode of x_L, their bilinear enlargement, unrounded."""
        return self._to_latents(enlarge(pixels), tile_size)

    def _enlarge(self, latents: torch.Tensor, tile_size: int | None, light: bool) -> torch.Tensor:
        """A stage's latents, (B, C, h, w), to the next one's z_L, (B, C, 2h, 2w), float32."""
        if light and self.latent_enlarger is not None:
            return self._by("the latent enlarger", self.latent_enlarger, latents, tile_size, 2)
        return self._low_res_latents(self._to_pixels(latents, tile_size), tile_size)

    def _by(self, what: str, network: Any, latents: torch.Tensor, tile_size: int | None, cell_out: int) -> torch.Tensor:
        """What a tiny network makes of latents, float32."""
        tile = tile_size and tile_size // self.vae_scale_factor
        made = blend_tiles(lambda part: network(part.to(network.dtype)).float(), latents, tile, cell_out=cell_out)
        inputs.check_numbers(what, made, network.dtype)
        return made

    def _tile(self, tile_size: int | None) -> int | None:
        """Side in latents of the tiles that the VAE works in."""
        tile_size = tile_size or self.vae_tile_size
        return tile_size and tile_size // self.vae_scale_factor
