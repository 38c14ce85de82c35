"""[model] and [lora]: the networks that recipes train."""

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from cogview3.config.tables import Checked, Positive, PositiveFloat, Table


def _divides_widths(first: int = 0) -> AfterValidator:
    """A check that a number divides `block_out_channels`, from level `first` on."""

    def check(number: int, info: ValidationInfo) -> int:
        widths = info.data.get("block_out_channels", ())[first:]
        if any(width % number for width in widths):
            raise ValueError(f"does not divide block_out_channels {list(widths)}; give a common divisor")
        return number

    return AfterValidator(check)


class VaeModel(Table):
    """AutoencoderKL of one latent cell for each 8 x 8 pixels."""

    block_out_channels: tuple[Positive, Positive, Positive, Positive]
    layers_per_block: Positive = 1
    norm_num_groups: Annotated[Positive, Checked, _divides_widths()] = 8
    latent_channels: Positive = 4
    sample_size: Positive = 256


class TextModel(Table):
    """T5 with gated GELU; the decoder is for training only and is not shipped."""

    d_model: Positive = 128
    d_kv: Positive = 32
    d_ff: Positive = 256
    num_heads: Positive = 4
    num_layers: Positive = 4
    num_decoder_layers: Positive = 1
    vocab_size: Annotated[int, Field(ge=512)] = 1024
    max_length: Annotated[int, Field(ge=16)] = 96


class ExpanderModel(TextModel):
    """A whole T5: its decoder writes, so it is larger and kept. `max_length` holds for prompts and for its output."""

    num_decoder_layers: Positive = 3


class RecaptionerModel(Table):
    """LLaVA: a FocalNet on pictures of `image_size`, and a causal language model of Llama's kind.

    Attributes:
        vision_width: of the first level, whose patches have 4 pixels; each level after it halves their number and
            doubles the width.
        vision_depths: layers of each level. The last level's patches go into the text.
        vision_window: side in patches of the smallest neighborhood that is mixed; odd.
    """

    vision_width: Positive = 48
    vision_depths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2, 2, 4)
    vision_window: Annotated[Positive, Checked] = 3
    image_size: Annotated[int, Field(ge=32), Checked] = 128
    head_dim: Positive = 24
    text_width: Annotated[Positive, Checked] = 192
    text_layers: Positive = 3
    vocab_size: Annotated[int, Field(ge=512)] = 1024

    @property
    def coarsest_patch(self) -> int:
        """Side in pixels of the last level's patches."""
        return 4 << (len(self.vision_depths) - 1)

    @field_validator("vision_window")
    @classmethod
    def _is_odd(cls, number: int) -> int:
        if number % 2 == 0:
            raise ValueError("even; give an odd number of patches")
        return number

    @field_validator("image_size")
    @classmethod
    def _divides(cls, number: int, info: ValidationInfo) -> int:
        patch = 4 << (len(info.data.get("vision_depths", (1,))) - 1)
        if number % patch:
            raise ValueError(f"not a multiple of {patch}, the last level's patches; give one")
        return number

    @field_validator("text_width")
    @classmethod
    def _of_heads(cls, width: int, info: ValidationInfo) -> int:
        head = info.data.get("head_dim", width)
        if width % head:
            raise ValueError(f"not a multiple of head_dim {head}; give one")
        return width


class UNetModel(Table):
    """UNet2DConditionModel of three levels: DownBlock2D, CrossAttnDownBlock2D x 2."""

    block_out_channels: tuple[Positive, Positive, Positive]
    layers_per_block: Positive = 2
    transformer_layers_per_block: tuple[Positive, Positive, Positive] = (1, 1, 1)
    head_dim: Annotated[Positive, Checked, _divides_widths(first=1)] = 32  # the first level has no attention
    norm_num_groups: Annotated[Positive, Checked, _divides_widths()] = 16
    size_embedding: Annotated[int, Field(gt=0, multiple_of=2)] = 16


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
    norm_num_groups: Annotated[Positive, Checked, _divides_widths()] = 16
    patch: Positive = 1

    @property
    def multiple(self) -> int:
        """The sides of pictures are multiples of this, in pixels."""
        return self.patch << (len(self.block_out_channels) - 1)


class EnlargerModel(Table):
    """`LatentEnlarger`: channels and residual blocks at the resolution of its input latents."""

    width: Annotated[int, Field(gt=0, multiple_of=2)] = 64
    blocks: Positive = 3


class LightDecoderModel(Table):
    """`LightDecoder`: channels and residual blocks at the latents' resolution."""

    width: Annotated[int, Field(gt=0, multiple_of=4)] = 64
    blocks: Positive = 4


class Lora(Table):
    """Adapters of low rank, trained on the frozen network of `recipe.start_from`.

    Attributes:
        rank: of the adapters.
        alpha: the adapters' output is multiplied by alpha / rank; alpha is the rank by default.
        targets: ends of the names of the layers that get an adapter.
        dropout: share of an adapter's inputs that is left out in training.
    """

    rank: Positive = 16
    alpha: PositiveFloat | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
