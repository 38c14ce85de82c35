"""Request and response fields of the images API: OpenAI's, and our own."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

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


def _integer(low: int, high: int) -> Any:
    return Annotated[int, Field(ge=low, le=high), BeforeValidator(_whole)] | None


Text = Annotated[str, Field(min_length=1, max_length=32_000, pattern=r"\S")]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]

_SHARED: dict[str, Any] = {
    "model": (str | None, Field(None, max_length=256, description="As /v1/models lists them; NAME@MODE picks a mode.")),
    "n": (_integer(1, MOST_PICTURES), Field(None, description="Pictures; the i-th has the seed `seed` + i.")),
    "size": (
        Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None,
        Field(None, description="WIDTHxHEIGHT; the nearest size that the model draws is taken, and told."),
    ),
    "quality": (Quality | None, Field(None, description="Picks a mode: low the fastest, high the one of most steps.")),
    "background": (Literal["auto", "opaque"] | None, Field(None)),
    "moderation": (Literal["auto", "low"] | None, Field(None, description="Has no effect.")),
    "output_format": (Format | None, Field(None, description="png by default, which keeps the settings as text.")),
    "output_compression": (_integer(0, 100), Field(None, description="Quality of jpeg and webp; png is lossless.")),
    "partial_images": (_integer(0, MOST_PARTIALS), Field(None, description="Unfinished pictures in a stream.")),
    "stream": (bool | None, Field(None, description="Server-sent events instead of one JSON object.")),
    "response_format": (Literal["b64_json", "url"] | None, Field(None, description="url gives data: addresses.")),
    "user": (Annotated[str, Field(max_length=512)] | None, Field(None, description="Has no effect.")),
    "safety_identifier": (Annotated[str, Field(max_length=512)] | None, Field(None, description="Has no effect.")),
    "seed": (_integer(0, MOST_SEED), Field(None, description="Random where it is left out, and told.")),
    "steps": (_integer(1, 1000), Field(None, description="Of the base; the mode's by default.")),
    "relay_steps": (_integer(1, 1000), Field(None, description="Of each relay; the mode's by default.")),
    "guidance": (Scale | None, Field(None, description="How strongly the prompt steers; the mode's by default.")),
    "relay_guidance": (Scale | None, Field(None, description="Likewise in the relays.")),
    "negative_prompt": (
        Annotated[str, Field(max_length=32_000)] | None,
        Field(None, description="What to steer away from; distilled modes cannot."),
    ),
    "expand": (
        bool | None,
        Field(None, description="Draw a description that a language model writes; by default where there is one."),
    ),
}

_GENERATION: dict[str, Any] = {
    "prompt": (Text, Field(description="What to draw.")),
    "style": (Literal["vivid", "natural"] | None, Field(None, description="Has no effect.")),
}

_EDIT: dict[str, Any] = {
    "prompt": (Text | None, Field(None, description="What to draw; may be left out where a picture is enlarged.")),
    "input_fidelity": (Literal["low", "high"] | None, Field(None, description="A strength of 0.6 or 0.35.")),
    "strength": (
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(None, description="How much of the picture is redrawn; 0.6, or 1 within a mask, by default."),
    ),
    "enlarge": (_integer(1, 3), Field(None, description="Double the picture's sides so often instead.")),
}


class ImageRequest(Protocol):
    """A generation or an edit, as type checkers see it; the models themselves are made of the tables above."""

    model: str | None
    n: int | None
    size: str | None
    quality: Quality | None
    output_format: Format | None
    output_compression: int | None
    partial_images: int | None
    stream: bool | None
    response_format: str | None
    seed: int | None
    steps: int | None
    relay_steps: int | None
    guidance: float | None
    relay_guidance: float | None
    prompt: str | None
    negative_prompt: str | None
    expand: bool | None
    mode: str | None
    # of edits alone
    input_fidelity: Literal["low", "high"] | None
    strength: float | None
    enlarge: int | None


def request_models(modes: Sequence[str]) -> tuple[type[Any], type[Any]]:
    """What generations (JSON) and edits (a form, whose values are strings) are asked for with, for a model's modes."""
    mode: dict[str, Any] = {"mode": (Literal[tuple(modes)] | None, Field(None, description="A mode of the model."))}
    strict = ConfigDict(strict=True, extra="forbid")
    generation: type[Any] = create_model("ImageGeneration", __config__=strict, **_GENERATION, **_SHARED, **mode)
    edit: type[Any] = create_model("ImageEdit", __config__=ConfigDict(extra="forbid"), **_EDIT, **_SHARED, **mode)
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
