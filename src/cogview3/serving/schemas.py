"""Request and response fields of the images API: OpenAI's, and our own."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

MOST_PICTURES = 10
MOST_PARTIALS = 3
MOST_SEED = 2**53 - 1
"""Largest whole number that every JSON reader keeps."""

Format = Literal["png", "jpeg", "webp"]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]


def _whole(value: Any) -> Any:
    """1.0 is the whole number 1 in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)

Text = Annotated[str, Field(min_length=1, max_length=32_000, pattern=r"\S")]
Steps = Annotated[int, Field(ge=1, le=1000), _WHOLE]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class ImageRequest(BaseModel):
    """What generations and edits have in common."""

    model: str | None = Field(None, max_length=256, description="As /v1/models lists them; NAME@MODE picks a mode.")
    n: Annotated[int, Field(ge=1, le=MOST_PICTURES), _WHOLE] | None = Field(
        None, description="Pictures; the i-th has the seed `seed` + i."
    )
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = Field(
        None, description="WIDTHxHEIGHT; the nearest size that the model draws is taken, and told."
    )
    quality: Quality | None = Field(None, description="Picks a mode: low the fastest, high the one of most steps.")
    background: Literal["auto", "opaque"] | None = Field(None)
    moderation: Literal["auto", "low"] | None = Field(None, description="Has no effect.")
    output_format: Format | None = Field(None, description="png by default, which keeps the settings as text.")
    output_compression: Annotated[int, Field(ge=0, le=100), _WHOLE] | None = Field(
        None, description="Quality of jpeg and webp; png is lossless."
    )
    partial_images: Annotated[int, Field(ge=0, le=MOST_PARTIALS), _WHOLE] | None = Field(
        None, description="Unfinished pictures in a stream."
    )
    stream: bool | None = Field(None, description="Server-sent events instead of one JSON object.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="url gives data: addresses.")
    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="Has no effect.")
    safety_identifier: Annotated[str, Field(max_length=512)] | None = Field(None, description="Has no effect.")
    seed: Annotated[int, Field(ge=0, le=MOST_SEED), _WHOLE] | None = Field(
        None, description="Random where it is left out, and told."
    )
    steps: Steps | None = Field(None, description="Of the base; the mode's by default.")
    relay_steps: Steps | None = Field(None, description="Of each relay; the mode's by default.")
    guidance: Scale | None = Field(None, description="How strongly the prompt steers; the mode's by default.")
    relay_guidance: Scale | None = Field(None, description="Likewise in the relays.")
    negative_prompt: Annotated[str, Field(max_length=32_000)] | None = Field(
        None, description="What to steer away from; distilled modes cannot."
    )
    expand: bool | None = Field(
        None, description="Draw a description that a language model writes; by default where there is one."
    )
    mode: str | None = Field(None, description="A mode of the model.")


class Generation(ImageRequest):
    """What a generation is asked for with, as JSON."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: Text = Field(description="What to draw.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Has no effect.")


class Edit(ImageRequest):
    """What an edit is asked for with: a form, whose values are strings."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text | None = Field(None, description="What to draw; may be left out where a picture is enlarged.")
    input_fidelity: Literal["low", "high"] | None = Field(None, description="A strength of 0.6 or 0.35.")
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="How much of the picture is redrawn; 0.6, or 1 within a mask, by default."
    )
    enlarge: Annotated[int, Field(ge=1, le=3), _WHOLE] | None = Field(
        None, description="Double the picture's sides so often instead."
    )


def request_models(modes: Sequence[str]) -> tuple[type[Any], type[Any]]:
    """`Generation` and `Edit` for a model's modes."""
    mode: dict[str, Any] = {"mode": (Literal[tuple(modes)] | None, Field(None, description="A mode of the model."))}
    generation: type[Any] = create_model("ImageGeneration", __base__=Generation, **mode)
    edit: type[Any] = create_model("ImageEdit", __base__=Edit, **mode)
    return generation, edit


class TokenDetails(BaseModel):
    """Tokens by kind."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens of the prompt; of pictures their latents."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails


class ImageData(BaseModel):
    """One picture, with what it was drawn by."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int
    seconds: float


class ImagesResponse(BaseModel):
    """Finished pictures. `size` is the true one; `warnings` say what of the prompt they will not show."""

    created: int
    data: list[ImageData]
    background: str
    output_format: Format
    quality: str
    size: str
    usage: Usage
    model: str
    mode: str
    steps: int
    warnings: list[str]
    seconds: float


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer other than a picture."""

    error: ErrorDetails


class Model(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class Progress(BaseModel):
    """How far a request of one's own is."""

    id: str
    position: int | None = Field(description="Pictures that are likely to be begun before it; null once it was begun.")
    progress: float
    pictures: int


class AllProgress(BaseModel):
    """Requests that are not answered yet."""

    object: Literal["list"] = "list"
    data: list[Progress]


class Cancel(BaseModel):
    """Names a request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str = Field(max_length=64, description="Its x-request-id.")


class Canceled(BaseModel):
    """Whether a request was canceled."""

    id: str
    canceled: bool
