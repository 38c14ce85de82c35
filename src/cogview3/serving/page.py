"""The web page: draw with a live preview, see a picture's settings, edit within a mask, enlarge."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image, ImageChops

from cogview3.errors import UserError
from cogview3.generation.written import read_settings
from cogview3.serving.errors import ApiError, api_error
from cogview3.serving.layout import STYLE, Layout, gr
from cogview3.serving.orders import Canceled, Drawn
from cogview3.serving.pictures import read_upload, write_picture
from cogview3.serving.requests import Requests
from cogview3.serving.schemas import MOST_PARTIALS, MOST_SEED
from cogview3.serving.service import Plan, Service, Wish
from cogview3.serving.sizes import parse_size

Shown = dict[Any, Any]
"""What a component of the page is to show."""

MOST_SHOWN = 24
"""Pictures that the gallery keeps."""


def mount_page(app: FastAPI, service: Service, requests: Requests) -> None:
    """Put the page at /, behind a login by a key's name and the key where there are keys."""
    folder = tempfile.TemporaryDirectory(prefix="cogview3-page-")
    app.state.page_folder = folder  # lives as long as the application
    page = Page(service, requests, Path(folder.name))
    keys = service.keys
    auth = (lambda name, secret: keys.name(secret) == name) if len(keys) else None
    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        auth=auth,
        auth_message="The name of your API key, and the key as password." if auth else None,
        allowed_paths=[folder.name],
        show_error=True,
        footer_links=[],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
    )


class Page(Layout):
    """The page's parts and what they do; pictures are in `folder` on their way to the browser."""

    def __init__(self, service: Service, requests: Requests, folder: Path) -> None:
        super().__init__(service)
        self._requests, self._folder = requests, folder
        with self.blocks:
            self._connect()

    def _connect(self) -> None:
        """What happens when."""
        choices = [self._mode, self._size, self._seed]
        fields = [self._history, self._written, self._prompt, self._auto, self._expanded, *choices, self._count]
        kept = [self._gallery, self._history, self._written, self._details, self._settings]
        shown = [self._status, self._warnings, self._expanded, self._picture, self._compared, *kept]
        shown += [self._enlarge, self._edit]
        filled = [self._prompt, self._expanded, self._written, *choices, self._mask, self._status]
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        begun = [self._given, self._mask, self._strength]
        gr.on([self._draw.click, self._prompt.submit], self.draw, fields, shown, **quiet)
        self._redraw.click(self.draw, [*fields, *begun], shown, api_name="redraw", **quiet)
        for button, source in ((self._enlarge, self._picture), (self._enlarge_given, self._given)):
            button.click(self.enlarge, [source, self._prompt, self._mode, self._history], shown, **quiet)
        self._stop.click(self.stop, None, self._status, queue=False)
        self._describe.click(self.describe, self._prompt, [self._expanded, self._written], concurrency_limit=None)
        self._given.upload(self.read, self._given, filled, **quiet)
        self._given.clear(lambda: gr.update(value=None, visible=False), None, self._mask, queue=False)
        self._edit.click(self.begin_with, self._picture, [self._given, self._mask, self._begin], **quiet)
        self._gallery.select(self.select, self._history, [self._picture, self._settings, self._compared], queue=False)
        self.blocks.unload(self.leave)

    async def draw(
        self,
        request: gr.Request,
        history: list[Any],
        written: tuple[str, str],
        prompt: str,
        auto: bool,
        expanded: str,
        mode: str,
        size: str,
        seed: str,
        count: float,
        image: str | None = None,
        mask: dict[str, Any] | None = None,
        strength: float | None = None,
    ) -> AsyncIterator[Shown]:
        """Draw, from a picture where one is given, and show how far it is."""
        description = expanded.strip() if auto else ""
        if description == written[1] and prompt.strip() != written[0]:
            description = ""  # of another prompt, and not edited since
        with _told():
            if strength is not None and not image:
                raise UserError("There is no picture to start from yet.")
            given = _read(image) if image else None
            painted = _painted(mask) if given else None
            wish = Wish(
                prompt,
                count=int(count),
                size=given.size if given else parse_size(size),
                mode=mode,
                seed=_parse_seed(seed),
                expand=auto,
                expanded=description or None,
                partials=MOST_PARTIALS,
                image=given,
                mask=painted.resize(given.size) if painted and given else None,
                strength=None if painted else strength,
            )
        async for shown in self._run(wish, history, request):
            yield shown

    async def enlarge(
        self, image: str | None, prompt: str, mode: str, history: list[Any], request: gr.Request
    ) -> AsyncIterator[Shown]:
        """Enlarge a picture; with its own prompt where it tells one."""
        with _told():
            if not image:
                raise UserError("There is no picture to enlarge yet.")
            given = _read(image)
        own = _settings(image)
        words = own.get("expanded_prompt") or own.get("prompt") or prompt.strip() or None
        async for shown in self._run(Wish(words, mode=mode, image=given, enlarge=1), history, request):
            yield shown

    async def _run(self, wish: Wish, history: list[Any], request: gr.Request) -> AsyncIterator[Shown]:
        describes = bool(wish.expand and not wish.expanded)
        if describes:
            yield {self._status: "Describing."}
        with _told():
            plan = await self._service.plan(wish)
            ask = self._requests.begin(_id(request), _client(request), plan)
        base: Image.Image | None = None
        warnings = gr.update(value="\n".join(f"- {each}" for each in plan.warnings), visible=bool(plan.warnings))
        shown = {self._status: _waiting(self._requests.position(ask)), self._warnings: warnings}
        yield shown | (self._described(wish.prompt, plan.revised or plan.prompt) if describes else {})
        try:
            async for event in self._requests.events(ask):
                if event is None:
                    position = self._requests.position(ask)
                    yield {self._status: _waiting(position) if position else _progress(ask.progress)}
                    continue
                number, one = event
                if isinstance(one, Drawn):
                    history, shown = self._keep(plan, number, one, history, base if number == 0 else None)
                    yield shown
                    continue
                if one.image.width < plan.size.width and number == 0:
                    base = one.image
                yield {self._status: _progress(ask.progress), self._picture: one.image}
        except Canceled:
            yield {self._status: "Stopped."}
        except Exception as error:
            raise gr.Error(str(api_error(error)), print_exception=False) from error
        finally:
            self._requests.end(ask)

    def _keep(
        self, plan: Plan, number: int, drawn: Drawn, history: list[Any], base: Image.Image | None
    ) -> tuple[list[Any], Shown]:
        """Put a finished picture first in the gallery, its file named after its seed; and what shows it."""
        order = plan.orders[number]
        facts = {key: value for key, value in self._service.facts(plan, order).items() if value is not None}
        handle, name = tempfile.mkstemp(prefix=f"{order.seed}-", suffix=".png", dir=self._folder)
        with os.fdopen(handle, "wb") as file:
            file.write(write_picture(drawn.image, "png", None, facts))
        for path, _ in history[MOST_SHOWN - 1 :]:
            Path(path).unlink(missing_ok=True)
        history = [(name, facts), *history[: MOST_SHOWN - 1]]
        pair = None if base is None else (base.resize(drawn.image.size), drawn.image)
        ready = gr.update(interactive=True)
        return history, {
            self._status: f"Drawn: {plan.size}, {drawn.seconds:.1f} s, seed {order.seed}.",
            self._picture: name,
            self._compared: gr.update(value=pair, visible=pair is not None),
            self._gallery: gr.update(value=[path for path, _ in history], visible=True),
            self._history: history,
            self._details: gr.update(visible=True),
            self._settings: facts,
            self._enlarge: ready,
            self._edit: ready,
        }

    def stop(self, request: gr.Request) -> str:
        """Stop what this page is drawing."""
        return "Stopping." if self._requests.cancel(_id(request), _client(request)) else "Nothing is being drawn."

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self._requests.cancel(_id(request), _client(request))

    async def describe(self, prompt: str) -> Shown:
        """The description of a prompt, to be looked at and edited."""
        with _told():
            if not prompt.strip():
                raise UserError("Say what to draw first.")
            return self._described(prompt, (await self._service.expand(prompt)).text)

    def _described(self, prompt: str | None, description: str | None) -> Shown:
        """A description in its box, and a note of the prompt that it is of."""
        return {self._expanded: description, self._written: ((prompt or "").strip(), description)}

    def read(self, path: str) -> Shown:
        """Offer a picture for painting, and fill the fields from its text where it was drawn by this package."""
        with _told():
            shown: Shown = {self._mask: gr.update(value=_read(path), visible=True)}
        own = _settings(path)
        if "prompt" not in own:
            return shown | {self._status: "This picture tells no settings."}
        with Image.open(path) as image:
            size = f"{image.width}x{image.height}"
        written = own["prompt"], own.get("expanded_prompt", "")
        shown |= {self._prompt: written[0], self._expanded: written[1], self._written: written, self._size: size}
        if own.get("mode") in self._service.modes:
            shown[self._mode] = own["mode"]
        return shown | {self._seed: own.get("seed", ""), self._status: "The settings were read from the picture."}

    def begin_with(self, path: str) -> Shown:
        """Take what was drawn as the picture to begin with."""
        return {
            self._given: path,
            self._mask: gr.update(value=_read(path), visible=True),
            self._begin: gr.update(open=True),
        }

    def select(self, history: list[Any], event: gr.SelectData) -> Shown:
        """Show a picture of the gallery with its settings."""
        path, facts = history[event.index]
        return {self._picture: path, self._settings: facts, self._compared: gr.update(visible=False)}


def _painted(editor: dict[str, Any] | None) -> Image.Image | None:
    """What was painted in an editor as a mask, white there; None where nothing was."""
    mask: Image.Image | None = None
    for layer in (editor or {}).get("layers") or []:
        alpha = layer.getchannel("A").point(lambda value: 255 if value else 0)
        mask = alpha if mask is None else ImageChops.lighter(mask, alpha)
    return mask if mask is not None and mask.getbbox() else None


def _parse_seed(text: str) -> int | None:
    """A seed; None for an empty text. Raises UserError."""
    text = str(text or "").strip()
    if text and not (text.isdecimal() and int(text) <= MOST_SEED):
        raise UserError(f"Seed is {text!r}: give a whole number from 0 to {MOST_SEED}, or nothing.")
    return int(text) if text else None


@contextmanager
def _told() -> Iterator[None]:
    """Show what is wrong with a request on the page."""
    try:
        yield
    except (UserError, ApiError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def _id(request: gr.Request) -> str:
    return f"page_{request.session_hash}"


def _client(request: gr.Request) -> str:
    """The name of the key that was logged in with, else an address."""
    return getattr(request, "username", None) or (request.client.host if request.client else "unknown")


def _read(path: str) -> Image.Image:
    return read_upload("the picture", Path(path).read_bytes())


def _settings(path: str) -> dict[str, str]:
    with suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
        return read_settings(image)
    return {}


def _waiting(position: int | None) -> str:
    return f"Waiting: {position} before it." if position else "Drawing."


def _progress(share: float) -> str:
    return f"Drawing: {share:.0%}"
