"""`generate`: prompts to pictures."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogview3.cli import options
from cogview3.cli.drawing import DrawOptions, Gallery, generators, tell
from cogview3.cli.endpoints import KeyOption
from cogview3.cli.expand import ExpanderOptions, ExpandOption, expand_all, open_expander, wants_expansion
from cogview3.cli.loading import check_placement, free_memory, load, parse_lora
from cogview3.cli.pictures import MAX_SHEET, contact_sheet, grid_file, open_picture, plan_files, slug
from cogview3.cli.settings import with_options
from cogview3.cli.typed import check_utf8, gather_prompts, hint_quotes, warn_of_prompts
from cogview3.config import UserError

if TYPE_CHECKING:
    from cogview3.prompts.expand import Expansion

MAX_PICTURES = 1_000_000
"""Maximum number of pictures of one command: their names are planned before the first is drawn."""


@with_options(writer=ExpanderOptions, draw=DrawOptions)
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw, in quotes.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Text file with one prompt per line.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures of each prompt.")] = 1,
    steps: options.StepsOption = None,
    relays: options.RelaysOption = None,
    relay_guidance: options.RelayGuidanceOption = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Size of the final picture, such as 256x256.")
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", help="Image to start from instead of noise.")] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", min=0, max=1, help="Share of the base steps that redraw --image; default 0.6."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Inpainting mask, white where --image is redrawn.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", metavar="PATH[:SCALE]", help="Run or file of an adapter; repeatable; scale 1 by default."
        ),
    ] = None,
    sampler: options.SamplerOption = None,
    expand: ExpandOption = None,
    *,
    writer: ExpanderOptions,
    key_env: KeyOption = None,
    grid: Annotated[bool, typer.Option("--grid", help="Also write a contact sheet of all pictures.")] = False,
    batch: options.BatchOption = 4,
    draw: DrawOptions,
) -> None:
    """Draw pictures of prompts.

    Picture i uses the seed SEED + i, and is the same whether drawn alone or in a batch.
    """
    given_texts = gather_prompts(prompts or [], file)
    if (asked_for := count * len(given_texts)) > MAX_PICTURES:
        raise UserError(f"--count {count}: {asked_for} pictures; at most {MAX_PICTURES} are drawn at once")
    texts = [text for text in given_texts for _ in range(count)]
    hint_quotes(prompts or [])
    check_utf8("--negative", draw.negative)
    width, height = options.parse_size(size)
    for name, scale in (("--guidance", draw.guidance), ("--relay-guidance", relay_guidance), ("--strength", strength)):
        options.check_finite(name, scale)
    for name, given in (("--relay-steps", draw.relay_steps), ("--relay-guidance", relay_guidance)):
        if relays == 0 and given is not None:
            raise UserError(f"{name} {given:g} is for a relay, but --relays 0 has none: leave it out")
    adapters = [parse_lora(entry) for entry in lora or []]
    if mask is not None and image is None:
        raise UserError(f"--mask {mask} is for a picture: give --image as well, or leave it out")
    if grid and len(texts) > MAX_SHEET:
        raise UserError(f"--grid shows at most {MAX_SHEET} pictures, not {len(texts)}: leave it out")
    begin_with = None if image is None else open_picture(image)
    masked = None if mask is None else open_picture(mask)
    mode, seeds = options.pick_mode(draw.mode, draw.fast), draw.seeds(len(texts))
    files = plan_files(draw.out, [f"{slug(text)}-{number}" for text, number in zip(texts, seeds, strict=True)])
    sheet = grid_file(draw.out, seeds[0], files) if grid else None
    gallery = Gallery(files, draw.out)
    expand = wants_expansion(expand, draw.model, writer, key_env)
    picture = {
        "height": height,
        "width": width,
        "relays": relays,
        "batch": min(batch, len(texts)),
        "tile_size": draw.tile_size,
        "guided": any(scale is None or scale > 1 for scale in (draw.guidance, relay_guidance)),
        "light": draw.light or None,
    }
    with options.clean_stdout(draw.as_json), ExitStack() as stack:
        if not adapters:  # an adapter may have taught what the model has not learned
            warn_of_prompts(draw.model, texts)
        written = None
        if expand:
            import cogview3

            check_placement(draw.device, draw.dtype, draw.placement)
            cogview3.CogView3Pipeline.check_model(draw.model, mode)
            made = open_expander(draw.model, writer, draw.device, key_env=key_env)
            written = expand_all(made, texts)
            del made  # a local one need not stay beside the model
            free_memory()
        drawn = texts if written is None else [each.text for each in written]
        all_texts = [*dict.fromkeys(drawn), draw.negative]
        pipe = stack.enter_context(load("CogView3Pipeline", draw, all_texts, picture, adapters))
        from cogview3.models.modes import Overrides
        from cogview3.references import find

        asked = Overrides(
            steps=steps,
            relay_steps=draw.relay_steps,
            guidance=draw.guidance,
            relay_guidance=relay_guidance,
            relays=relays,
            sampler=sampler,
            light=draw.light or None,
        )
        facts = {"model": find(draw.model).label, "mode": pipe.mode_name} | _settled(pipe, asked)
        facts |= {
            "tile_size": draw.tile_size,
            "negative_prompt": draw.negative,
            "image": image and image.name,
            "strength": pipe.default_strength(masked) if image and strength is None else strength,
            "mask": mask and mask.name,
            "lora": ", ".join(lora or []) or None,
        }
        start, shown = time.perf_counter(), []
        with gallery.kept():
            for first in range(0, len(texts), batch):
                part = slice(first, first + batch)
                images = pipe(
                    drawn[part],
                    negative_prompt=draw.negative,
                    width=width,
                    height=height,
                    **asked.arguments(),
                    image=begin_with,
                    strength=strength,
                    mask_image=masked,
                    tile_size=draw.tile_size,
                    generator=generators(seeds[part]),
                ).images
                for index, one in enumerate(images, first):
                    expansion = written[index] if written else None
                    gallery.add(one, facts | _own(texts[index], seeds[index], expansion))
                if sheet is not None:
                    shown += images
            seconds = time.perf_counter() - start
            if sheet is not None:
                columns = count if 1 < count < len(texts) else None
                about = {"seed": seeds[0], "prompts": " | ".join(dict.fromkeys(texts))[:1000]}
                gallery.add(contact_sheet(shown, columns), facts | about, sheet)
    grid_at = str(gallery.written[-1]) if sheet else None
    result = facts | {"prompts": texts, "seeds": list(seeds), "grid": grid_at}
    if written is not None:
        result |= {
            "expander": written[0].model,
            "expanded_prompts": drawn,
            "not_expanded": {each.prompt: each.reason for each in written if each.reason},
        }
    tell(result, gallery.written, seconds, draw)


def _settled(pipe: Any, asked: Any) -> dict[str, Any]:
    """How pictures are sampled, under the names that their files store."""
    settled = pipe.settle(asked)
    relays = int(pipe.relay_unet is not None) if asked.relays is None else asked.relays
    return {
        "steps": settled.steps,
        "guidance": settled.guidance,
        "relays": relays,
        "relay_steps": settled.relay_steps if relays else None,
        "relay_guidance": settled.relay_guidance if relays else None,
        "sampler": settled.sampler,
        "light": settled.light or None,
    }


def _own(prompt: str, seed: int, written: "Expansion | None") -> dict[str, Any]:
    """The settings of one picture that differ from the others'."""
    own: dict[str, Any] = {"prompt": prompt, "expanded_prompt": None, "seed": seed}
    if written is not None and not written.reason:
        own |= {"expanded_prompt": written.text, "expander": written.model}
    return own
