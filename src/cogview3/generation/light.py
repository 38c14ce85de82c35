"""The light parts of a pipeline: small networks in the VAE's place between the stages and at the end."""

import torch

from cogview3.config import UserError
from cogview3.generation import inputs
from cogview3.generation.tiles import blend_tiles
from cogview3.models.light import LatentEnlarger, LightDecoder

LIGHT_COMPONENTS = ("latent_enlarger", "light_decoder")
"""Optional components that `light` puts in the VAE's place."""


class LightMixin:
    """What pipelines do by their components `latent_enlarger` and `light_decoder`, either of which may be missing."""

    latent_enlarger: LatentEnlarger | None
    light_decoder: LightDecoder | None

    def _settle_light(self, light: bool | None) -> bool:
        """Whether this call uses the light parts, the mode's choice by default; refuses where there are none."""
        light = bool(self.mode.light if light is None else light)
        if light and self.latent_enlarger is None and self.light_decoder is None:
            asked = f"load another mode than {self.mode_name!r}" if self.mode.light else "leave light out"
            raise UserError(f"this model has no light parts: {asked}, or export it with --enlarger and --light-decoder")
        return light

    def _light_enlarge(self, latents: torch.Tensor, tile_size: int | None) -> torch.Tensor:
        """A stage's latents, (B, C, h, w), to the next one's z_L, (B, C, 2h, 2w), float32."""
        network, tile = self.latent_enlarger, tile_size and tile_size // self.vae_scale_factor
        enlarged = blend_tiles(lambda part: network(part.to(network.dtype)).float(), latents, tile, cell_out=2)
        inputs.check_numbers("the latent enlarger", enlarged, network.dtype)
        return enlarged

    def _light_decode(self, latents: torch.Tensor, tile_size: int | None) -> torch.Tensor:
        """Scaled latents to pictures (B, 3, H, W), float32, clamped to -1..1."""
        network, factor = self.light_decoder, self.vae_scale_factor
        tile = tile_size and tile_size // factor
        pixels = blend_tiles(lambda part: network(part.to(network.dtype)).float(), latents, tile, cell_out=factor)
        inputs.check_numbers("the light decoder", pixels, network.dtype)
        return pixels.clamp(-1, 1)
