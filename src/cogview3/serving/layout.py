"""The page's layout: its parts; `page` defines what they do."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would call home

import gradio as gr

from cogview3.serving.service import STRENGTH, Service

STYLE = """
footer { display: none !important }
.gradio-container { width: 100% !important; max-width: 1100px !important; margin: 0 auto !important }
.gradio-container main { width: 100% !important }
#picture img { width: 100%; height: 100%; object-fit: contain }
#gallery, #gallery .grid-wrap { min-height: 0 !important }
#gallery .grid-container {
  grid-template-columns: repeat(4, minmax(0, 1fr)) !important; grid-auto-rows: auto !important
}
#status { min-height: 1.5em }
@media (max-width: 640px) { .gradio-container { padding: 8px !important } }
"""


class Layout:
    """The page's parts; `blocks` is the page, for gradio."""

    def __init__(self, service: Service) -> None:
        self._service = service
        with gr.Blocks(
            title=f"CogView3: {service.model}", analytics_enabled=False, delete_cache=(3600, 21600)
        ) as self.blocks:
            self._history = gr.State([])
            self._written = gr.State(("", ""))  # the last prompt that was described, and its description
            gr.Markdown(f"# CogView3\nDraws with **{service.model}**; nothing leaves this machine.")
            with gr.Row():
                with gr.Column(scale=2):
                    self._build_prompt()
                    self._build_given()
                with gr.Column(scale=3):
                    self._build_result()

    def _build_prompt(self) -> None:
        """What to draw, and by what settings."""
        service = self._service
        described = service.expander is not None
        self._prompt = gr.Textbox(
            label="Prompt", lines=1, max_lines=6, max_length=32_000, autofocus=True, elem_id="prompt"
        )
        with gr.Group(visible=described):
            self._auto = gr.Checkbox(described, label="Draw a description of the prompt", elem_id="auto")
            self._expanded = gr.Textbox(
                label="Description",
                placeholder="Written when you draw; or write it now, and edit it.",
                lines=3,
                max_lines=12,
                elem_id="expanded",
            )
            self._describe = gr.Button("Describe", size="sm", elem_id="describe")
        with gr.Row():
            self._mode = gr.Dropdown(list(service.modes), value=service.default_mode, label="Mode", min_width=120)
            self._size = gr.Dropdown(
                self._sizes(), value=str(service.sizes.own), label="Size", allow_custom_value=True, min_width=120
            )
        with gr.Row():
            self._seed = gr.Textbox(label="Seed", placeholder="random", max_length=16, min_width=120)
            self._count = gr.Slider(1, 4, 1, step=1, label="Pictures", min_width=120)
        with gr.Row():
            self._draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=120)
            self._stop = gr.Button("Stop", elem_id="stop", min_width=120)
        self._status = gr.Markdown("Ready.", elem_id="status")
        self._warnings = gr.Markdown(visible=False, elem_id="warnings")

    def _build_given(self) -> None:
        """A picture to begin with."""
        with gr.Accordion("Begin with a picture, or read its settings", open=False, elem_id="begin") as self._begin:
            gr.Markdown(
                "The settings of a PNG that was drawn here are filled in above. Paint over what is redrawn; "
                "with nothing painted all of it is, as far as the slider says."
            )
            self._given = gr.Image(
                label="Drop a picture",
                type="filepath",
                image_mode=None,
                format="png",
                sources=["upload", "clipboard"],
                height=220,
                elem_id="given",
            )
            self._mask = gr.ImageEditor(
                label="Mask",
                type="pil",
                format="png",
                sources=[],
                transforms=[],
                layers=False,
                brush=gr.Brush(colors=["#ff2fd0"], color_mode="fixed"),
                visible=False,
                elem_id="mask",
            )
            self._strength = gr.Slider(0.05, 1, STRENGTH, step=0.05, label="How far")
            with gr.Row():
                self._redraw = gr.Button("Redraw it", elem_id="redraw", min_width=120)
                self._enlarge_given = gr.Button("Enlarge it", elem_id="enlarge-given", min_width=120)

    def _build_result(self) -> None:
        """What was drawn."""
        self._picture = gr.Image(
            label="Picture",
            format="png",
            type="filepath",
            image_mode=None,
            interactive=False,
            height="min(512px, 92vw)",
            elem_id="picture",
            buttons=["download", "fullscreen"],
        )
        with gr.Row():
            self._enlarge = gr.Button("Enlarge", interactive=False, elem_id="enlarge", min_width=120)
            self._edit = gr.Button("Begin with it", interactive=False, elem_id="edit", min_width=120)
        self._gallery = gr.Gallery(
            label="Drawn here",
            format="png",
            columns=4,
            height="auto",
            allow_preview=False,
            visible=False,
            elem_id="gallery",
        )
        self._compared = gr.ImageSlider(
            label="Base and relay",
            interactive=False,
            format="png",
            height="min(512px, 92vw)",
            visible=False,
            elem_id="compared",
        )
        with gr.Accordion("Settings of the picture", open=False, visible=False, elem_id="told") as self._details:
            self._settings = gr.JSON(show_label=False, elem_id="settings")

    def _sizes(self) -> list[str]:
        """Sizes to choose from: the model's own in several proportions, and the largest."""
        sizes = self._service.sizes
        area = sizes.own.width * sizes.own.height
        shapes = [(1, 1), (3, 2), (2, 3), (2, 1), (1, 2)]
        found = [sizes.nearest(round((area * w / h) ** 0.5), round((area * h / w) ** 0.5)) for w, h in shapes]
        largest = sizes.nearest(sizes.own.width * 64, sizes.own.height * 64)
        return list(dict.fromkeys([*map(str, found), str(largest)]))
