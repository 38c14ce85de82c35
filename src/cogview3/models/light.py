"""The tiny autoencoder: small networks that replace the VAE's two halves, which dominate the cost with few steps.

Both work at the latents' resolution as far as they can, and reach the higher one by pixel shuffles. Neither has
normalization: what they put out at a place depends on its neighborhood alone, so tiles are exact but for their borders.
Latents are scaled, that is as the UNets see them.
"""

from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from cogview3.models.registered import register_to_config


class _Block(nn.Module):
    """x + conv(relu(conv(x))), 3 x 3; the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(self.conv1(x).relu_())
        return x + change


def _conv(width: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width, width_out, 3, padding=1)


def _double(width: int, width_out: int) -> nn.Sequential:
    """A convolution to twice the side: (B, width, h, w) to (B, width_out, 2h, 2w)."""
    return nn.Sequential(_conv(width, 4 * width_out), nn.PixelShuffle(2))


class LatentEnlarger(ModelMixin, ConfigMixin):
    """z of a picture to z_L, the latents of its bilinear enlargement: z_L = E(up(D(z))) without decoding.

    Args:
        latent_channels: of z and z_L.
        width: channels at z's resolution; half as many at z_L's.
        num_blocks: residual blocks at z's resolution, each reaching two latents further.
    """

    config_name: Any  # diffusers' two bases disagree on its type

    @register_to_config
    def __init__(self, latent_channels: int = 4, width: int = 64, num_blocks: int = 3) -> None:
        super().__init__()
        self.conv_in = _conv(latent_channels, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(num_blocks)))
        self.up = _double(width, width // 2)
        self.conv_out = _conv(width // 2, latent_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """z, (B, C, h, w), scaled, to z_L, (B, C, 2h, 2w), scaled: a correction to the nearest neighbors."""
        correction: Tensor = self.conv_out(self.up(self.blocks(self.conv_in(latents))).relu_())
        return functional.interpolate(latents, scale_factor=2, mode="nearest") + correction


class LightDecoder(ModelMixin, ConfigMixin):
    """Latents to a picture of eight times their side, distilled from the VAE's decoder.

    Args:
        latent_channels: of the latents.
        width: channels at the latents' resolution; half as many at twice, a quarter at four times that resolution.
        num_blocks: residual blocks at the latents' resolution; there is one at each of the other two.
        out_channels: of the picture.
    """

    config_name: Any  # diffusers' two bases disagree on its type

    @register_to_config
    def __init__(self, latent_channels: int = 4, width: int = 64, num_blocks: int = 4, out_channels: int = 3) -> None:
        super().__init__()
        self.conv_in = _conv(latent_channels, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(num_blocks)))
        self.ups = nn.Sequential(
            _double(width, width // 2), _Block(width // 2), _double(width // 2, width // 4), _Block(width // 4)
        )
        self.conv_out = _double(width // 4, out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents, (B, C, h, w), scaled, to pictures, (B, out_channels, 8h, 8w), about -1..1, not clamped."""
        pixels: Tensor = self.conv_out(self.ups(self.blocks(self.conv_in(latents))).relu_())
        return pixels
