"""Errors in the format that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cogview3.errors import UserError
from cogview3.serving.orders import Busy, Canceled, Closing

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"
FORESEEN = (UserError, ValidationError, Canceled, Closing, TimeoutError, FloatingPointError, MemoryError)
"""What drawing raises that is no bug, and so not logged with a traceback."""

LONGEST_VALUE = 80
"""Characters of a wrong value that are shown."""


class ApiError(Exception):
    """An answer other than a picture: `code` is a short name for programs, `kind` OpenAI's `type`."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers
        self.kind = kind or (SERVER if status >= 500 else INVALID)

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def too_many(message: str, seconds: float) -> ApiError:
    """429, with the time after which to try again."""
    wait = {"Retry-After": str(math.ceil(seconds))}
    return ApiError(429, message, "rate_limit_exceeded", kind="rate_limit_error", headers=wait)


def api_error(error: BaseException) -> ApiError:
    """What is answered where drawing raised `error`; what is no fault of the request's is not told in detail."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return too_many(str(error), error.seconds)
    if isinstance(error, ValidationError | RequestValidationError):
        return _invalid({**error.errors()[0]})
    if isinstance(error, UserError):
        return ApiError(400, str(error), "invalid_value")
    if isinstance(error, Canceled):
        return ApiError(499, "the request was canceled", "canceled")
    if isinstance(error, Closing):
        return ApiError(503, str(error), "unavailable", headers={"Retry-After": "10"})
    if isinstance(error, TimeoutError):
        return ApiError(504, "the time limit of a picture passed", "timeout", headers={"x-should-retry": "false"})
    if isinstance(error, FloatingPointError):
        return ApiError(500, f"the picture could not be drawn: {error}", "drawing_failed")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        message = "out of memory: ask for a smaller size, or fewer pictures"
        return ApiError(500, message, "out_of_memory", headers={"x-should-retry": "false"})
    return ApiError(500, "the picture could not be drawn; the server's log says why", "internal_error")


def _invalid(found: dict[str, Any]) -> ApiError:
    """400 for what pydantic found first."""
    place = [str(part) for part in found["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    if found["type"] == "extra_forbidden":
        return ApiError(400, f"unknown parameter: {param}", "unknown_parameter", param)
    if found["type"] == "missing":
        return ApiError(400, f"missing required parameter: {param or 'the body'}", "missing_required_parameter", param)
    if found["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", "invalid_json")
    shown = ascii(found.get("input"))
    shown = shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + "..."
    return ApiError(400, f"{param or 'body'} is {shown}: {found['msg']}", "invalid_value", param)


def add_handlers(app: FastAPI) -> None:
    """Answer every error of an application in this shape."""

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers) if error.headers else None
        return ApiError(error.status_code, message, codes.get(error.status_code), headers=headers).response()

    async def answer(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    for kind in (ApiError, RequestValidationError, *FORESEEN, Exception):
        app.add_exception_handler(kind, answer)
