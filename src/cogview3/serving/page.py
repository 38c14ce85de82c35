"""The page: draw with a live preview, look at what was drawn and by what, enlarge, begin from a picture."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would call home

import gradio as gr
from PIL import Image

from cogview3.config import UserError
from cogview3.generation.written import number, read_settings
from cogview3.serving.errors import ApiError
from cogview3.serving.orders import Canceled, Drawn, Partial
from cogview3.serving.pictures import read_upload, write_picture
from cogview3.serving.requests import Requests
from cogview3.serving.schemas import MOST_PARTIALS, MOST_SEED
from cogview3.serving.service import Plan, Service, Wish

MOST_SHOWN = 24
"""Pictures that the gallery keeps."""

STYLE = """
footer { display: none !important }
.gradio-container { max-width: 1100px !important; margin: 0 auto !important }
@media (max-width: 640px) { .gradio-container { padding: 8px !important } }
"""


def mount_page(app: FastAPI, service: Service, requests: Requests) -> None:
    """Put the page at /, behind a login by name and API key where there are keys."""
    folder = tempfile.TemporaryDirectory(prefix="cogview3-page-")
    app.state.page_folder = folder  # lives as long as the application
    page = Page(service, requests, Path(folder.name))
    keys = service.keys
    auth = (lambda name, secret: keys.name(secret) is not None) if len(keys) else None
    gr.mount_gradio_app(
        app,
        page.build(),
        path="/",
        auth=auth,
        auth_message="Any name; the password is your API key." if auth else None,
        allowed_paths=[folder.name],
        show_error=True,
        footer_links=[],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
    )


class Page:
    """The page's parts and what they do.

    Args:
        service: draws.
        requests: takes note of what is drawn.
        folder: for pictures on their way to the browser.
    """

    def __init__(self, service: Service, requests: Requests, folder: Path) -> None:
        self._service, self._requests, self._folder = service, requests, folder
        own = service.sizes.own
        shapes = [(1, 1), (3, 2), (2, 3), (2, 1), (1, 2)]
        area = own.width * own.height
        sizes = [service.sizes.nearest(round((area * w / h) ** 0.5), round((area * h / w) ** 0.5)) for w, h in shapes]
        largest = service.sizes.nearest(own.width * 64, own.height * 64)
        self._sizes = list(dict.fromkeys([*map(str, sizes), str(largest)]))

    def build(self) -> gr.Blocks:
        """The page."""
        service = self._service
        with gr.Blocks(title=f"CogView3: {service.model}", analytics_enabled=False, delete_cache=(3600, 21600)) as page:
            history = gr.State([])
            gr.Markdown(f"# CogView3\nDraws with **{service.model}**; nothing leaves this machine.")
            with gr.Row():
                with gr.Column(scale=2):
                    prompt = gr.Textbox(label="Prompt", lines=2, max_length=32_000, autofocus=True, elem_id="prompt")
                    expand = gr.Button("Describe in full", size="sm", visible=service.expander is not None)
                    expanded = gr.Textbox(
                        label="Description that is drawn instead (edit it, or leave it empty)",
                        lines=3,
                        elem_id="expanded",
                        visible=service.expander is not None,
                    )
                    with gr.Row():
                        mode = gr.Dropdown(list(service.modes), value=service.default_mode, label="Mode")
                        size = gr.Dropdown(self._sizes, value=str(service.sizes.own), label="Size")
                    with gr.Row():
                        seed = gr.Number(label="Seed (empty: random)", precision=0, minimum=0, value=None)
                        count = gr.Slider(1, 4, 1, step=1, label="Pictures")
                    with gr.Row():
                        draw = gr.Button("Draw", variant="primary", elem_id="draw")
                        stop = gr.Button("Stop", variant="stop", elem_id="stop")
                    with gr.Accordion("Begin from a picture, or read its settings", open=False):
                        given = gr.Image(
                            label="Drop a picture here",
                            type="filepath",
                            image_mode=None,
                            format="png",
                            sources=["upload", "clipboard"],
                            elem_id="given",
                        )
                        use = gr.Checkbox(label="Draw it anew", value=False)
                        strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="How much of it is drawn anew")
                        enlarge_given = gr.Button("Enlarge it", elem_id="enlarge-given")
                with gr.Column(scale=3):
                    status = gr.Markdown("Ready.", elem_id="status")
                    picture = gr.Image(
                        label="Picture",
                        format="png",
                        type="filepath",
                        image_mode=None,
                        interactive=False,
                        elem_id="picture",
                        buttons=["download"],
                    )
                    enlarge = gr.Button("Enlarge", elem_id="enlarge")
                    compared = gr.ImageSlider(label="Base and relay", interactive=False, format="png", max_height=512)
                    gallery = gr.Gallery(label="Drawn here", format="png", columns=4, elem_id="gallery")
                    settings = gr.JSON(label="Settings of the picture", elem_id="settings")

            fields = [prompt, expanded, mode, size, seed, count, given, use, strength]
            shown = [status, picture, compared, gallery, history, settings]
            quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
            for trigger in (draw.click, prompt.submit):
                trigger(self.draw, [*fields, history], shown, api_name="draw", **quiet)
            stop.click(self.stop, None, status, queue=False)
            expand.click(self.expand, prompt, expanded, concurrency_limit=None, api_name="expand")
            enlarge.click(self.enlarge, [picture, prompt, mode, history], shown, api_name="enlarge", **quiet)
            enlarge_given.click(self.enlarge, [given, prompt, mode, history], shown, **quiet)
            given.upload(self.read, given, [prompt, expanded, mode, size, seed, settings], concurrency_limit=None)
            gallery.select(self.select, history, [picture, settings], queue=False)
            page.unload(self.leave)
        return page

    async def draw(
        self,
        prompt: str,
        expanded: str,
        mode: str,
        size: str,
        seed: float | None,
        count: float,
        image: str | None,
        use: bool,
        strength: float,
        history: list[Any],
        request: gr.Request,
    ) -> AsyncIterator[list[Any]]:
        """Draw, and show how far it is."""
        width, height = map(int, str(size).split("x"))
        wish = Wish(
            prompt,
            count=int(count),
            size=(width, height),
            mode=mode,
            seed=None if seed is None else min(int(seed), MOST_SEED),
            expanded=(expanded or "").strip() or None,
            partials=MOST_PARTIALS,
        )
        if use and image:
            wish = replace(wish, image=_read(image), strength=strength)
        async for shown in self._run(wish, history, request):
            yield shown

    async def enlarge(
        self, image: str | None, prompt: str, mode: str, history: list[Any], request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        """Enlarge a picture; with its own prompt where it tells one."""
        if not image:
            raise gr.Error("There is no picture to enlarge yet.")
        own = _settings(image)
        words = own.get("expanded_prompt") or own.get("prompt") or prompt.strip() or None
        async for shown in self._run(Wish(words, mode=mode, image=_read(image), enlarge=1), history, request):
            yield shown

    async def _run(self, wish: Wish, history: list[Any], request: gr.Request) -> AsyncIterator[list[Any]]:
        try:
            plan = await self._service.plan(wish)
            ask = self._requests.begin(_id(request), _client(request), plan)
        except (UserError, ApiError) as error:
            raise gr.Error(str(error)) from None
        base: Image.Image | None = None
        yield [_waiting(self._requests.position(ask)), *[gr.skip()] * 5]
        try:
            async for event in self._requests.events(ask):
                if event is None:
                    position = self._requests.position(ask)
                    yield [_waiting(position) if position else _progress(ask.progress), *[gr.skip()] * 5]
                    continue
                number, one = event
                if isinstance(one, Partial):
                    if one.image.width < plan.size.width and number == 0:
                        base = one.image
                    yield [_progress(ask.progress), one.image, *[gr.skip()] * 4]
                    continue
                history, facts = self._keep(plan, number, one, history)
                pair = gr.skip() if base is None else (base.resize(one.image.size), one.image)
                status = f"Drawn: {plan.size}, {one.seconds:.1f} s."
                yield [status, history[0][0], pair, [path for path, _ in history], history, facts]
        except Canceled:
            yield ["Stopped.", *[gr.skip()] * 5]
        except Exception as error:
            raise gr.Error(str(error) or "The picture could not be drawn.") from error
        finally:
            self._requests.end(ask)

    def _keep(self, plan: Plan, number: int, drawn: Drawn, history: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Put a finished picture first in the gallery, its file named after its seed."""
        order = plan.orders[number]
        facts = {key: value for key, value in self._service.facts(plan, order).items() if value is not None}
        handle, name = tempfile.mkstemp(prefix=f"{order.seed}-", suffix=".png", dir=self._folder)
        with os.fdopen(handle, "wb") as file:
            file.write(write_picture(drawn.image, "png", None, facts))
        for path, _ in history[MOST_SHOWN - 1 :]:
            Path(path).unlink(missing_ok=True)
        return [(name, facts), *history[: MOST_SHOWN - 1]], facts

    def stop(self, request: gr.Request) -> str:
        """Stop what this page is drawing."""
        return "Stopping." if self._requests.cancel(_id(request), _client(request)) else "Nothing is being drawn."

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self._requests.cancel(_id(request), _client(request))

    async def expand(self, prompt: str) -> str:
        """The description of a prompt, to be looked at and edited before it is drawn."""
        if not prompt.strip():
            raise gr.Error("Say what to draw first.")
        try:
            return await self._service.expand(prompt)
        except UserError as error:
            raise gr.Error(str(error)) from None

    def read(self, path: str | None) -> list[Any]:
        """Fill the fields from the text of a PNG that was drawn with us; leave them alone for other pictures."""
        own = _settings(path) if path else {}
        if "prompt" not in own:
            return [*[gr.skip()] * 5, {"settings": "none in this picture"} if path else None]
        mode = own.get("mode") if own.get("mode") in self._service.modes else None
        with Image.open(str(path)) as image:
            size = f"{image.width}x{image.height}"
        return [
            own["prompt"],
            own.get("expanded_prompt", ""),
            mode or gr.skip(),
            size if size in self._sizes else gr.skip(),
            number(own, "seed", int),
            own,
        ]

    def select(self, history: list[Any], event: gr.SelectData) -> list[Any]:
        """Show a picture of the gallery with its settings."""
        path, facts = history[event.index]
        return [path, facts]


def _id(request: gr.Request) -> str:
    return f"page_{request.session_hash}"


def _client(request: gr.Request) -> str:
    return f"page {getattr(request, 'username', None) or (request.client and request.client.host)}"


def _read(path: str) -> Image.Image:
    try:
        return read_upload("the picture", Path(path).read_bytes())
    except UserError as error:
        raise gr.Error(str(error)) from None


def _settings(path: str) -> dict[str, str]:
    with suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
        return read_settings(image)
    return {}


def _waiting(position: int | None) -> str:
    return f"Waiting: {position} before it." if position else "Drawing."


def _progress(share: float) -> str:
    return f"Drawing: {share:.0%}"
