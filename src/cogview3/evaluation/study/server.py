"""The study's server: one process, secrets in the links, every vote on disk before it is acknowledged."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cogview3.config import UserError
from cogview3.errors import one_line
from cogview3.evaluation.study import database
from cogview3.evaluation.study.build import hash_token, read_study

STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Choice = Literal["left", "right", "tie", "both bad"]


class Vote(BaseModel):
    """An annotator's answers on one pair."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: int
    alignment: Choice
    aesthetics: Choice
    seconds: Annotated[float, Field(ge=0, le=1e6, strict=False)]


def make_app(folder: Path) -> FastAPI:
    """The application of a study's folder. Raises UserError where there is no study."""
    read_study(folder)
    path = folder / database.DATABASE
    app = FastAPI(title="study", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def secure(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    @app.exception_handler(OSError)
    @app.exception_handler(UserError)
    def out_of_order(request: Request, error: Exception) -> JSONResponse:  # the page asks again until it is served
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return JSONResponse({"detail": "the study is out of order; whoever runs it sees why"}, 503)

    def known(db: Any, token: str) -> int:
        annotator = database.annotator_of(db, hash_token(token))
        if annotator is None:
            raise HTTPException(403, "this link is not valid; ask whoever runs the study for yours")
        return annotator

    @app.get("/static/{name}")
    def static(name: Literal["study.js", "study.css"]) -> FileResponse:
        return FileResponse(STATIC / name)

    @app.get("/a/{token}")
    def page(token: str) -> FileResponse:
        with database.connect(path) as db:
            known(db, token)
        return FileResponse(STATIC / "study.html", media_type="text/html")

    @app.get("/a/{token}/task")
    def task(token: str) -> JSONResponse:
        with database.connect(path) as db:
            annotator = known(db, token)
            done, total = database.progress(db, annotator)
            row = database.next_task(db, annotator)
        shown = None if row is None else {"id": row["id"], "prompt": row["text"]}
        return JSONResponse({"done": done, "total": total, "task": shown})

    @app.get("/a/{token}/{task}/{side}.png")
    def picture(token: str, task: int, side: Literal["left", "right"]) -> FileResponse:
        with database.connect(path) as db:
            name = database.file_of(db, known(db, token), task, side)
        if name is None:
            raise HTTPException(403, "this pair is not yours")
        return FileResponse(folder / "pictures" / name, media_type="image/png")

    @app.post("/a/{token}/vote")
    def vote(token: str, given: Vote) -> JSONResponse:
        with database.connect(path) as db:
            annotator = known(db, token)
            try:
                kept = database.vote(db, annotator, given.task, given.alignment, given.aesthetics, given.seconds)
            except database.Conflict:
                raise HTTPException(409, "there is a vote on this pair already, and it stays") from None
            if kept is None:
                raise HTTPException(403, "this pair is not yours")
            done, total = database.progress(db, annotator)
        return JSONResponse({"kept": True, "new": kept, "done": done, "total": total})

    return app
