"""[objective]: what recipes minimize."""

from typing import Annotated, Literal

from pydantic import Field

from cogview3.config.tables import NotNegative, Positive, PositiveFloat, Prediction, Share, Table


class VaeObjective(Table):
    """Weights of L1, squared error, edge (finite differences) and KL terms."""

    l1: NotNegative = 1.0
    mse: NotNegative = 2.0
    edge: NotNegative = 0.25
    kl: NotNegative = 1e-3
    statistics_images: Annotated[int, Field(ge=64)] = 1024


class PairObjective(Table):
    """What a text encoder learns from captions and pictures.

    Attributes:
        masked: weight of predicting words that are hidden from the caption.
        contrastive: weight of matching a batch's captions and pictures.
        swapped: weight of telling each caption from the same with two words swapped, by its picture.
        masked_share: share of the words that are hidden.
        temperature: divides the similarity of caption and picture, -1 to 1, in both of those.
    """

    masked: NotNegative = 1.0
    contrastive: NotNegative = 1.0
    swapped: NotNegative = 1.0
    masked_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    temperature: PositiveFloat = 0.07


class BaseObjective(Table):
    """Plain diffusion on all 1000 steps; with `min_snr`, weighted by Min-SNR with that gamma (5 in its paper)."""

    prediction: Prediction = "v_prediction"
    offset_noise: NotNegative = 0.05
    min_snr: PositiveFloat | None = None


class RelayObjective(Table):
    """Latent relay diffusion (equations 4 to 7), t uniform in 0..relay_start - 1; `min_snr` as for a base stage."""

    prediction: Prediction = "v_prediction"
    relay_start: Annotated[int, Field(ge=1, le=1000)] = 500
    blur: Literal["linear", "sigma", "sin4"] = "linear"
    offset_noise: NotNegative = 0.05
    min_snr: PositiveFloat | None = None


class LightDecoderObjective(Table):
    """Weights of L1, squared error and edge (finite differences) terms, against the VAE's decoding."""

    l1: NotNegative = 1.0
    mse: NotNegative = 2.0
    edge: NotNegative = 0.5


class PixelObjective(Table):
    """Parameters of `diffusion.pixel_relay`, by its symbols; the defaults are the published ones of ImageNet.

    Attributes:
        factor: s, from the small picture's side to this one's; 1 is plain EDM, without blur and block noise.
        length: L, the share of EDM's noise levels that is trained on, from the lowest.
        max_blur: b_max, in pixels.
        floor: of the damping.
        block_share: of the block noise.
        sigma_start: the noise level at which sampling begins.
        eta: share of the noise that the sampler redraws at each step.
    """

    factor: Positive = 4
    length: Annotated[float, Field(gt=0, le=1)] = 0.93
    max_blur: NotNegative = 3.0
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.001
    block_share: NotNegative = 0.15
    sigma_start: PositiveFloat = 0.9
    eta: Share = 0.2
