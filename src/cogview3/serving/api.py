"""OpenAI's images API: generations, edits, models; and the progress of requests."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse

from cogview3.errors import UserError
from cogview3.serving import schemas
from cogview3.serving.errors import ApiError, api_error
from cogview3.serving.orders import Drawn, Partial
from cogview3.serving.pictures import OtherKind, base64_text, read_mask, read_upload, write_picture
from cogview3.serving.requests import Ask, Requests, client_of
from cogview3.serving.service import FAITHFUL_STRENGTH, Plan, Service, Wish
from cogview3.serving.sizes import parse_size

MOST_FIELDS = 64
_REQUEST_ID = re.compile(r"[\w.-]{1,64}")

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.ErrorBody, "description": text}
    for code, text in {
        400: "Something in the request is wrong; `param` names it.",
        401: "No API key, or a wrong one.",
        404: "There is no such model.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        429: "The queue is full, or the client over its limit; Retry-After tells when to come back.",
        499: "The request was canceled.",
        500: "The picture could not be drawn.",
        503: "The service is being stopped.",
        504: "The time limit passed.",
    }.items()
}
_STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Pictures."}


def create_router(service: Service, requests: Requests) -> APIRouter:
    """The routes below /v1."""
    Generation, Edit = schemas.request_models(list(service.modes))

    async def client(request: Request) -> str:
        return client_of(request, service.keys)

    Client = Annotated[str, Depends(client)]
    router = APIRouter(prefix="/v1", tags=["images"], responses=ERRORS, dependencies=[Depends(client)])

    @router.post("/images/generations", response_model=schemas.ImagesResponse, responses={200: _STREAM})
    async def generate(request: Request, body: Generation, client: Client) -> Response:  # type: ignore[valid-type]
        """Draw pictures of a prompt."""
        answer = Answer(service, requests, body)
        return await answer.send(request, client, answer.wish())

    @router.post(
        "/images/edits",
        response_model=schemas.ImagesResponse,
        responses={200: _STREAM},
        openapi_extra={"requestBody": _form_schema(Edit)},
    )
    async def edit(request: Request, client: Client) -> Response:
        """Begin with a picture: redraw it in part, within a mask, or enlarge it."""
        async with request.form(max_files=17, max_fields=MOST_FIELDS) as form:
            body = Edit.model_validate(_texts(form))
            image, mask = await _uploads(form)
        answer = Answer(service, requests, body)
        return await answer.send(request, client, answer.wish(image, mask))

    @router.get("/models", response_model=schemas.Models)
    async def models() -> schemas.Models:
        """The model, and one entry for each of its modes."""
        return schemas.Models(data=[_model(name) for name in _names(service)])

    @router.get("/models/{name:path}", response_model=schemas.Model)
    async def model(name: str) -> schemas.Model:
        """One of them."""
        if name not in _names(service):
            raise ApiError(404, f"there is no model {name!r}", "model_not_found", "model")
        return _model(name)

    @router.get("/images/progress", response_model=schemas.AllProgress)
    async def progress(client: Client) -> schemas.AllProgress:
        """How far one's own requests are."""
        data = [
            schemas.Progress(
                id=ask.id, position=requests.position(ask), progress=round(ask.progress, 4), pictures=len(ask.jobs)
            )
            for ask in requests.of(client)
        ]
        return schemas.AllProgress(data=data)

    @router.post("/images/cancel", response_model=schemas.Canceled)
    async def cancel(body: schemas.Cancel, client: Client) -> schemas.Canceled:
        """Stop a request of one's own within one step."""
        return schemas.Canceled(id=body.id, canceled=requests.cancel(body.id, client))

    return router


class Answer:
    """How a request's pictures are sent."""

    def __init__(self, service: Service, requests: Requests, body: schemas.Generation | schemas.Edit) -> None:
        self._service, self._requests, self._body = service, requests, body
        self._created = int(time.time())
        self._kind, self._quality = body.output_format or "png", body.output_compression

    def wish(self, image: Any = None, mask: Any = None) -> Wish:
        """What is wished for. Raises ApiError for a model that there is not, and UserError."""
        body = self._body
        try:
            mode = body.mode or self._service.pick_model(body.model) or self._service.quality_mode(body.quality)
        except LookupError as error:
            raise ApiError(404, str(error.args[0]), "model_not_found", "model") from None
        given: dict[str, Any] = {}
        if isinstance(body, schemas.Edit):
            strength = FAITHFUL_STRENGTH if body.input_fidelity == "high" else None
            given = {"strength": body.strength or strength, "enlarge": body.enlarge}
            if body.enlarge and (mask is not None or body.strength):
                raise UserError("enlarge takes no mask or strength: leave them out")
        return Wish(
            body.prompt,
            body.negative_prompt,
            count=body.n or 1,
            size=None if body.size in (None, "auto") else parse_size(body.size),
            mode=mode,
            steps=body.steps,
            relay_steps=body.relay_steps,
            guidance=body.guidance,
            relay_guidance=body.relay_guidance,
            seed=body.seed,
            image=image,
            mask=mask,
            expand=body.expand,
            partials=(body.partial_images or 0) if body.stream else 0,
            **given,
        )

    async def send(self, request: Request, client: str, wish: Wish) -> Response:
        """Queue the wish and answer it, as one object or as a stream."""
        plan = await self._service.plan(wish)
        ask = self._requests.begin(request_id(request), client, plan)
        headers = {"x-request-id": ask.id}
        if self._body.stream:
            headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(self._stream(ask), media_type="text/event-stream", headers=headers)
        pictures = await self._requests.drawn(ask, request)
        data = [await self._data(plan, number, drawn) for number, drawn in enumerate(pictures)]
        usage = self._usage(plan, pictures)
        body = {"created": self._created, "data": data, "usage": usage, **self._about(plan)}
        return JSONResponse(body | {"seconds": round(time.monotonic() - ask.started, 3)}, headers=headers)

    async def _stream(self, ask: Ask) -> AsyncIterator[bytes]:
        """Server-sent events of a request; an error midway is an event, too."""
        about = self._about(ask.plan)
        try:
            yield format_sse_event(comment=f"request {ask.id}, position {self._requests.position(ask)}")
            async for found in self._requests.events(ask):
                if found is None:
                    yield format_sse_event(comment=f"progress {ask.progress:.3f}")
                    continue
                number, event = found
                own = {"created_at": int(time.time()), "image_index": number, **about}
                if isinstance(event, Partial):
                    data = await asyncio.to_thread(write_picture, event.image, self._kind, self._quality, {})
                    own |= {"b64_json": base64_text(data), "partial_image_index": event.index}
                else:
                    own |= await self._data(ask.plan, number, event) | {"usage": self._usage(ask.plan, [event])}
                yield self._sse("partial_image" if isinstance(event, Partial) else "completed", own)
        except Exception as error:
            yield format_sse_event(event="error", data_str=json.dumps(api_error(error).body))
        finally:
            self._requests.end(ask)

    def _sse(self, what: str, own: dict[str, Any]) -> bytes:
        name = f"image_{'edit' if isinstance(self._body, schemas.Edit) else 'generation'}.{what}"
        return format_sse_event(event=name, data_str=json.dumps({"type": name, **own}))

    async def _data(self, plan: Plan, number: int, drawn: Drawn) -> dict[str, Any]:
        """A finished picture as an entry of the answer."""
        order = plan.orders[number]
        facts = self._service.facts(plan, order)
        text = base64_text(await asyncio.to_thread(write_picture, drawn.image, self._kind, self._quality, facts))
        picture = {"b64_json": text}
        if self._body.response_format == "url":
            picture = {"url": f"data:image/{self._kind};base64,{text}"}
        revised = {"revised_prompt": plan.revised} if plan.revised else {}
        return picture | revised | {"seed": order.seed, "seconds": round(drawn.seconds, 3)}

    def _about(self, plan: Plan) -> dict[str, Any]:
        settings = plan.orders[0].settings
        return {
            "background": "opaque",
            "output_format": self._kind,
            "quality": self._service.quality_of(settings.mode),
            "size": str(plan.size),
            "model": self._service.model,
            "mode": settings.mode,
            "steps": settings.steps + settings.relays * settings.relay_steps,
            "warnings": plan.warnings,
        }

    def _usage(self, plan: Plan, pictures: list[Drawn]) -> dict[str, Any]:
        """Tokens: of the prompt as the text encoder has them, of pictures their latents."""
        factor = self._service.sizes.factor
        given = plan.orders[0].settings.given
        text = max(drawn.tokens for drawn in pictures)
        image = (given[0] // factor) * (given[1] // factor) if given else 0
        output = len(pictures) * (plan.size.width // factor) * (plan.size.height // factor)
        details = schemas.TokenDetails(text_tokens=text, image_tokens=image)
        return schemas.Usage(
            input_tokens=text + image,
            output_tokens=output,
            total_tokens=text + image + output,
            input_tokens_details=details,
        ).model_dump()


def request_id(request: Request) -> str:
    """The request's own id where it brings a proper one along, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _names(service: Service) -> list[str]:
    return [service.model, *(f"{service.model}@{mode}" for mode in service.modes)]


def _model(name: str) -> schemas.Model:
    return schemas.Model(id=name, created=0, owned_by="cogview3")


def _texts(form: FormData) -> dict[str, str]:
    """The fields of a form that are no files. Raises ApiError for one that is there twice."""
    texts: dict[str, str] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            if name in texts:
                raise ApiError(400, f"{name} is given twice", "invalid_value", name)
            texts[name] = value
    return texts


async def _uploads(form: FormData) -> tuple[Any, Any]:
    """The picture and the mask of a form. Raises ApiError and UserError."""
    files: dict[str, list[UploadFile]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name.removesuffix("[]"), []).append(value)
    if unknown := sorted(files.keys() - {"image", "mask"}):
        raise ApiError(400, f"unknown parameter: {unknown[0]}", "unknown_parameter", unknown[0])
    for name, given in files.items():
        if len(given) > 1:
            raise ApiError(400, f"{len(given)} pictures as {name}: this model takes one", "invalid_value", name)
    if "image" not in files:
        raise ApiError(400, "missing required parameter: image", "missing_required_parameter", "image")

    async def read(name: str, decode: Callable[[bytes], Any]) -> Any:
        try:
            return await asyncio.to_thread(decode, await files[name][0].read())
        except UserError as error:
            code = "unsupported_file_mimetype" if isinstance(error, OtherKind) else "invalid_image"
            raise ApiError(400, str(error), code, name) from None

    image = await read("image", lambda data: read_upload("image", data))
    mask = await read("mask", lambda data: read_mask(data, image.size)) if "mask" in files else None
    return image, mask


def _form_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The document's entry for a form with files."""
    schema = model.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {"image": file, "mask": file}
    schema["required"] = [*schema.get("required", []), "image"]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
