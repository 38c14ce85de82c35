"""The recipe of diffusion in pixels: plain EDM, or the original relay diffusion."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from cogview3.config.tables import Checked, NotNegative, Positive, PositiveFloat, Share, Table


class PixelModel(Table):
    """UNet2DModel on patches: a `patch` x `patch` square of pixels is one position with 3 patch^2 channels.

    Attributes:
        block_out_channels: of each level; each after the first halves the sides.
        layers_per_block: residual blocks of a level.
        norm_num_groups: of the group norms; divides the channels.
        patch: side of the squares, in pixels.
    """

    block_out_channels: Annotated[tuple[Positive, ...], Field(min_length=1)]
    layers_per_block: Positive = 1
    norm_num_groups: Annotated[Positive, Checked] = 16
    patch: Positive = 1

    @field_validator("norm_num_groups")
    @classmethod
    def _divides(cls, number: int, info: ValidationInfo) -> int:
        widths = info.data.get("block_out_channels", ())
        if any(width % number for width in widths):
            raise ValueError(f"does not divide block_out_channels {list(widths)}; give a common divisor")
        return number

    @property
    def multiple(self) -> int:
        """What the sides of pictures are multiples of, in pixels."""
        return self.patch * 2 ** (len(self.block_out_channels) - 1)


class PixelData(Table):
    """Scenes of the built-in world, another one for each sample, as squares of `size` pixels."""

    size: Annotated[int, Field(ge=32, multiple_of=16)]


class PixelObjective(Table):
    """What `diffusion.pixel_relay` calls by the same symbols; the defaults are the published ones of ImageNet.

    Attributes:
        factor: s, from the small picture's side to this one's; 1 is plain EDM, without blur and block noise.
        length: L, the share of EDM's noise levels that is trained on, from the lowest.
        max_blur: b_max, in pixels.
        floor: of the damping.
        block_share: of the block noise.
        sigma_start: the noise level at which sampling begins.
        eta: share of the noise that the sampler draws anew at each step.
    """

    factor: Positive = 4
    length: Annotated[float, Field(gt=0, le=1)] = 0.93
    max_blur: NotNegative = 3.0
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.001
    block_share: NotNegative = 0.15
    sigma_start: PositiveFloat = 0.9
    eta: Share = 0.2


class PixelHeader(Table):
    """Table [recipe] of diffusion in pixels."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    description: str = ""
    kind: Literal["pixel"]
