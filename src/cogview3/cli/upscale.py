"""`upscale`: larger versions of pictures."""

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from cogview3.cli import options
from cogview3.cli.drawing import DrawOptions, Gallery, generators, tell
from cogview3.cli.loading import load
from cogview3.cli.pictures import open_picture, plan_files
from cogview3.cli.settings import with_options
from cogview3.cli.typed import check_utf8
from cogview3.config import UserError


@with_options(draw=DrawOptions)
def upscale(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures of any size.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Prompt: what the pictures show, if known.")] = None,
    relays: Annotated[int, typer.Option("--relays", min=1, max=8, help="Relay stages, each doubling the size.")] = 1,
    keep_colors: Annotated[
        bool | None,
        typer.Option("--keep-colors/--free-colors", help="Keep the picture's colors; default without a prompt."),
    ] = None,
    *,
    draw: DrawOptions,
) -> None:
    """Upscale pictures with the relay stage.

    Each relay doubles the sides; pictures of any size work.
    """
    guidance, negative, light = draw.guidance, draw.negative, draw.light or None
    options.check_finite("--guidance", guidance)
    for name, text in (("--prompt", prompt), ("--negative", negative)):
        check_utf8(name, text)
        if text is not None and not text.strip():
            raise UserError(f"{name} is empty; give words, or leave it out")
    if guidance is not None and not (prompt or negative):
        raise UserError(f"--guidance {guidance:g} needs a --prompt: give one, or leave it out")
    sizes = [open_picture(path).size for path in images]  # unreadable pictures are reported before any work
    seeds = list(draw.seeds(len(images)))
    files = plan_files(draw.out, [f"{path.stem}-{2**relays}x" for path in images])
    gallery = Gallery(files, draw.out)
    places = {path.resolve(): number for number, path in enumerate(images)}
    for number, path in enumerate(files):
        if places.get(path.resolve(), number) != number:
            raise UserError(f"{images[number]} would be upscaled into {path}, which is also an input; change --out")
    width, height = max(sizes, key=math.prod)
    drawn: dict[str, object] = {"height": height << relays, "width": width << relays, "relays": relays}
    drawn |= {"tile_size": draw.tile_size, "upscale": True, "guided": bool(prompt or negative), "light": light}
    from cogview3.models.modes import Overrides
    from cogview3.references import find

    with options.clean_stdout(draw.as_json), load("CogView3UpscalePipeline", draw, [prompt, negative], drawn) as pipe:
        settled = pipe.settle(Overrides(relay_steps=draw.relay_steps, relay_guidance=guidance, light=light))
        facts = {
            "model": find(draw.model).label,
            "mode": pipe.mode_name,
            "relays": relays,
            "relay_steps": settled.relay_steps,
            "relay_guidance": settled.relay_guidance if prompt or negative else None,
            "tile_size": draw.tile_size,
            "keep_colors": prompt is None if keep_colors is None else keep_colors,
            "light": settled.light or None,
            "prompt": prompt,
            "negative_prompt": negative,
        }
        start = time.perf_counter()
        with gallery.kept():
            for source, number in zip(images, seeds, strict=True):
                enlarged = pipe(
                    open_picture(source),
                    prompt=prompt,
                    negative_prompt=negative,
                    num_inference_steps=draw.relay_steps,
                    num_relays=relays,
                    guidance_scale=guidance,
                    tile_size=draw.tile_size,
                    light=light,
                    keep_colors=keep_colors,
                    generator=generators([number]),
                ).images[0]
                gallery.add(enlarged, facts | {"image": source.name, "seed": number})
        seconds = time.perf_counter() - start
    tell(facts | {"seeds": seeds}, gallery.written, seconds, draw)
