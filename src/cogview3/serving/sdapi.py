"""The part of AUTOMATIC1111's API that programs such as Open WebUI use."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from cogview3.serving.api import ERRORS, request_id
from cogview3.serving.errors import ApiError
from cogview3.serving.pictures import base64_text, write_picture
from cogview3.serving.requests import Requests, client_of
from cogview3.serving.schemas import MOST_PICTURES, MOST_SEED
from cogview3.serving.service import Service, Wish


class TextToImage(BaseModel):
    """What a picture is asked for with. Other fields are ignored, since programs send all that they have.

    Steps and scale are for modes that take any; a distilled mode has its own, and `info` tells what was used.
    """

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(min_length=1, max_length=32_000, pattern=r"\S")
    negative_prompt: str | None = Field(None, max_length=32_000)
    width: int | None = Field(None, ge=1, le=99_999)
    height: int | None = Field(None, ge=1, le=99_999)
    steps: int | None = Field(None, ge=1, le=1000)
    cfg_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-1, le=MOST_SEED, description="-1 is a random one.")
    batch_size: int | None = Field(None, ge=1, le=MOST_PICTURES)
    n_iter: int | None = Field(None, ge=1, le=MOST_PICTURES)
    expand: bool | None = Field(None, description="As in /v1/images/generations.")


class Pictures(BaseModel):
    """Finished pictures: base64 PNG; what they were asked for with; and what was used, as JSON text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class Options(BaseModel):
    """The settings that there are."""

    model_config = ConfigDict(extra="ignore")

    sd_model_checkpoint: str | None = Field(None, max_length=256, description="NAME@MODE as sd-models lists them.")


class Checkpoint(BaseModel):
    """A model that can be asked for."""

    title: str
    model_name: str


class State(BaseModel):
    """What is being drawn."""

    job_count: int
    sampling_step: int
    sampling_steps: int


class Progress(BaseModel):
    """How far the client's oldest request is."""

    progress: float
    eta_relative: float
    state: State
    current_image: str | None = None
    textinfo: str | None = None


def create_router(service: Service, requests: Requests) -> APIRouter:
    """The routes below /sdapi/v1."""
    chosen: dict[str, str] = {}  # by client: the mode that it set

    async def client(request: Request) -> str:
        return client_of(request, service.keys)

    Client = Annotated[str, Depends(client)]
    router = APIRouter(prefix="/sdapi/v1", tags=["sdapi"], responses=ERRORS, dependencies=[Depends(client)])

    def title(client: str) -> str:
        return f"{service.model}@{chosen.get(client, service.default_mode)}"

    @router.post("/txt2img")
    async def txt2img(request: Request, body: TextToImage, client: Client) -> Pictures:
        """Draw pictures of a prompt."""
        name = chosen.get(client, service.default_mode)
        free = not service.modes[name].distilled
        own = service.sizes.own
        count = (body.batch_size or 1) * (body.n_iter or 1)
        if count > MOST_PICTURES:
            raise ApiError(400, f"{count} pictures: ask for at most {MOST_PICTURES}", "invalid_value", "batch_size")
        wish = Wish(
            body.prompt,
            (body.negative_prompt or "").strip() or None if free else None,
            count=count,
            size=(body.width or own.width, body.height or own.height),
            mode=name,
            steps=body.steps if free else None,
            guidance=body.cfg_scale if free else None,
            seed=None if body.seed in (None, -1) else body.seed,
            expand=body.expand,
        )
        plan = await service.plan(wish)
        pictures = await requests.drawn(requests.begin(request_id(request), client, plan), request)
        facts = [service.facts(plan, order) for order in plan.orders]
        files = [
            await asyncio.to_thread(write_picture, drawn.image, "png", None, fact)
            for drawn, fact in zip(pictures, facts, strict=True)
        ]
        info = facts[0] | {"width": plan.size.width, "height": plan.size.height}
        info |= {"all_seeds": [order.seed for order in plan.orders], "warnings": plan.warnings}
        return Pictures(
            images=[base64_text(file) for file in files],
            parameters=body.model_dump(exclude_none=True),
            info=json.dumps(info),
        )

    @router.get("/options")
    async def options(client: Client) -> Options:
        """What the client has set."""
        return Options(sd_model_checkpoint=title(client))

    @router.post("/options")
    async def set_options(body: Options, client: Client) -> Options:
        """Choose the model's mode for the client's next pictures."""
        if body.sd_model_checkpoint is not None:
            try:
                mode = service.pick_model(body.sd_model_checkpoint)
            except LookupError as error:
                raise ApiError(404, str(error.args[0]), "model_not_found", "sd_model_checkpoint") from None
            if len(chosen) > 10_000:
                chosen.clear()
            chosen[client] = mode or service.default_mode
        return Options(sd_model_checkpoint=title(client))

    @router.get("/sd-models")
    async def sd_models() -> list[Checkpoint]:
        """The model in each of its modes."""
        names = [f"{service.model}@{mode}" for mode in service.modes]
        return [Checkpoint(title=name, model_name=name) for name in names]

    @router.get("/progress")
    async def progress(client: Client) -> Progress:
        """How far the client's oldest request is."""
        asks = requests.of(client)
        if not asks:
            return Progress(progress=0, eta_relative=0, state=State(job_count=0, sampling_step=0, sampling_steps=0))
        first = asks[0]
        done, steps = sum(job.done for job in first.jobs), sum(job.steps for job in first.jobs)
        state = State(job_count=len(asks), sampling_step=done, sampling_steps=steps)
        position = requests.position(first)
        text = None if position is None else f"{position} pictures before it"
        return Progress(progress=first.progress, eta_relative=requests.left(first), state=state, textinfo=text)

    return router
