"""`generate` and `upscale`: prompts to pictures, pictures to larger ones."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogview3.cli.endpoints import KeyOption
from cogview3.cli.expand import (
    ExpanderCacheOption,
    ExpanderModelOption,
    ExpanderOption,
    ExpandOption,
    expand_all,
    open_expander,
    wants_expansion,
)
from cogview3.cli.loading import check_placement, free_memory, load, model_name, parse_lora
from cogview3.cli.options import (
    BatchOption,
    CompileOption,
    Device,
    DeviceOption,
    DropTextEncoderOption,
    Dtype,
    DtypeOption,
    FastOption,
    GuidanceOption,
    JsonOption,
    LightOption,
    ModelOption,
    ModeOption,
    Offload,
    OffloadOption,
    PromptCacheOption,
    QuantizeOption,
    RelayGuidanceOption,
    RelaysOption,
    RelayStepsOption,
    SamplerOption,
    SeedOption,
    StepsOption,
    TileSizeOption,
    VaeSlicingOption,
    VaeTilingOption,
    check_finite,
    clean_stdout,
    parse_size,
    pick_mode,
    pick_seed,
    report,
)
from cogview3.cli.pictures import contact_sheet, grid_file, open_picture, plan_files, save_png, slug
from cogview3.cli.typed import unexpandable, warn_of_prompts
from cogview3.config import UserError

if TYPE_CHECKING:
    import torch

    from cogview3.generation.modes import Mode

NegativeOption = Annotated[str | None, typer.Option("--negative", help="What to steer away from.")]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Size of the final picture, such as 256x256.")
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="PATH[:SCALE]", help="Run or file of an adapter; repeatable; scale 1 by default."),
]
GridOption = Annotated[bool, typer.Option("--grid", help="Also write all pictures on one sheet.")]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="A .png file, or a folder; the current one by default.")
]

"""Unknown words that are named; a prompt in another language has no others."""


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw, in quotes.")] = None,
    model: ModelOption = "scenes",
    file: Annotated[Path | None, typer.Option("--file", help="Text file with a prompt a line.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures of each prompt.")] = 1,
    negative: NegativeOption = None,
    steps: StepsOption = None,
    relay_steps: RelayStepsOption = None,
    relays: RelaysOption = None,
    guidance: GuidanceOption = None,
    relay_guidance: RelayGuidanceOption = None,
    size: SizeOption = None,
    image: Annotated[Path | None, typer.Option("--image", help="Picture to begin with instead of noise.")] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", min=0, max=1, help="How much of it is drawn anew; 0.6 by default.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Picture, white where --image is drawn anew, black elsewhere."),
    ] = None,
    lora: LoraOption = None,
    tile_size: TileSizeOption = None,
    sampler: SamplerOption = None,
    expand: ExpandOption = None,
    expander: ExpanderOption = None,
    expander_model: ExpanderModelOption = None,
    expander_cache: ExpanderCacheOption = None,
    key_env: KeyOption = None,
    prompt_cache: PromptCacheOption = None,
    offload: OffloadOption = Offload.none,
    quantize: QuantizeOption = None,
    drop_text_encoder: DropTextEncoderOption = False,
    vae_slicing: VaeSlicingOption = False,
    vae_tiling: VaeTilingOption = False,
    compile_networks: CompileOption = False,
    mode: ModeOption = None,
    fast: FastOption = False,
    light: LightOption = False,
    grid: GridOption = False,
    batch: BatchOption = 4,
    seed: SeedOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures of prompts.

    Picture i has the seed SEED + i, and comes out alike alone or in a batch.
    """
    texts = [text for text in gather_prompts(prompts or [], file) for _ in range(count)]
    check_utf8("--negative", negative)
    width, height = parse_size(size)
    check_finite("--guidance", guidance)
    check_finite("--relay-guidance", relay_guidance)
    check_finite("--strength", strength)
    for name, given in (("--relay-steps", relay_steps), ("--relay-guidance", relay_guidance)):
        if relays == 0 and given is not None:
            raise UserError(f"{name} {given:g} is for a relay, and with --relays 0 there is none: leave it out")
    adapters = [parse_lora(entry) for entry in lora or []]
    if mask is not None and image is None:
        raise UserError(f"--mask {mask} is for a picture: give --image as well, or leave it out")
    begin_with = None if image is None else open_picture(image)
    masked = None if mask is None else open_picture(mask)
    mode, seed = pick_mode(mode, fast), pick_seed(seed)
    seeds = list(range(seed, seed + len(texts)))
    files = plan_files(out, [f"{slug(text)}-{number}" for text, number in zip(texts, seeds, strict=True)])
    sheet = grid_file(out, seed, files) if grid else None
    expand = wants_expansion(expand, model, expander, expander_model, expander_cache, key_env)
    placement = (offload, quantize, drop_text_encoder, vae_slicing, vae_tiling, compile_networks)
    picture = {
        "height": height,
        "width": width,
        "relays": relays,
        "batch": min(batch, len(texts)),
        "tile_size": tile_size,
        "guided": any(scale is None or scale > 1 for scale in (guidance, relay_guidance)),
        "light": light or None,
    }
    with clean_stdout(as_json), ExitStack() as stack:
        warn_of_prompts(model, texts)
        drawn, written = texts, None
        if expand:
            import cogview3

            check_placement(device, dtype, placement)
            cogview3.CogView3Pipeline.check_model(model, mode)
            made = open_expander(model, expander, expander_model, expander_cache, device, key_env=key_env)
            written = expand_all(made, texts, unexpandable(model, expander, texts))
            del made  # a local one need not stay beside the model
            free_memory()
            drawn = [each.text for each in written]
        told = [*drawn, negative]
        pipe = stack.enter_context(
            load("CogView3Pipeline", model, mode, device, dtype, prompt_cache, told, placement, picture, adapters)
        )
        relayed = int(pipe.relay_unet is not None) if relays is None else relays
        facts = {
            "model": model_name(model),
            "mode": pipe.mode_name,
            "steps": steps or pipe.mode.steps,
            "guidance": pipe.mode.guidance if guidance is None else guidance,
            "relays": relayed,
            "relay_steps": (relay_steps or pipe.mode.relay_steps) if relayed else None,
            "relay_guidance": _relay_guidance(pipe.mode, relay_guidance) if relayed else None,
            "tile_size": tile_size,
            "sampler": (sampler and str(sampler)) or pipe.mode.sampler,
            "light": light or pipe.mode.light or None,
            "negative_prompt": negative,
            "image": image and image.name,
            "strength": _strength(strength, masked is not None) if image else None,
            "mask": mask and mask.name,
            "lora": ", ".join(lora or []) or None,
        }
        start, shown = time.perf_counter(), []
        for first in range(0, len(texts), batch):
            part = slice(first, first + batch)
            images = pipe(
                drawn[part],
                negative_prompt=negative,
                width=width,
                height=height,
                num_inference_steps=steps,
                relay_steps=relay_steps,
                num_relays=relays,
                guidance_scale=guidance,
                relay_guidance_scale=relay_guidance,
                image=begin_with,
                strength=strength,
                mask_image=masked,
                tile_size=tile_size,
                sampler=sampler and str(sampler),
                light=light or None,
                generator=generators(seeds[part]),
            ).images
            for index, image_drawn in enumerate(images, first):
                own = {"prompt": texts[index], "expanded_prompt": None, "seed": seeds[index]}
                if written is not None and not written[index].reason:
                    own |= {"expanded_prompt": drawn[index], "expander": written[index].model}
                save_png(image_drawn, files[index], facts | own)
            if sheet is not None:
                shown += images
        seconds = time.perf_counter() - start
        facts |= compiling(compile_networks)
        if sheet is not None:
            columns = count if 1 < count < len(texts) else None
            save_png(contact_sheet(shown, columns), sheet, facts | {"seed": seed})
    result = facts | {"prompts": texts, "seeds": seeds, "grid": sheet and str(sheet)}
    if written is not None:
        result |= {
            "expander": written[0].model,
            "expanded_prompts": drawn,
            "not_expanded": {each.prompt: each.reason for each in written if each.reason},
        }
    tell(result, files if sheet is None else [*files, sheet], seconds, as_json)


def upscale(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures of any size.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What they show, if known.")] = None,
    model: ModelOption = "scenes",
    negative: NegativeOption = None,
    relay_steps: RelayStepsOption = None,
    relays: Annotated[int, typer.Option("--relays", min=1, max=8, help="How often the side is doubled.")] = 1,
    guidance: GuidanceOption = None,
    tile_size: TileSizeOption = None,
    keep_colors: Annotated[
        bool | None,
        typer.Option("--keep-colors/--free-colors", help="Hold the picture's colors; on by default without a prompt."),
    ] = None,
    prompt_cache: PromptCacheOption = None,
    offload: OffloadOption = Offload.none,
    quantize: QuantizeOption = None,
    drop_text_encoder: DropTextEncoderOption = False,
    vae_slicing: VaeSlicingOption = False,
    vae_tiling: VaeTilingOption = False,
    compile_networks: CompileOption = False,
    mode: ModeOption = None,
    fast: FastOption = False,
    light: LightOption = False,
    seed: SeedOption = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enlarge pictures with the relay stage.

    Sides grow 2^RELAYS times; any size will do.
    """
    check_finite("--guidance", guidance)
    for name, text in (("--prompt", prompt), ("--negative", negative)):
        check_utf8(name, text)
        if text is not None and not text.strip():
            raise UserError(f"{name} is empty; give words, or leave it out")
    if guidance is not None and not (prompt or negative):
        raise UserError(f"--guidance {guidance:g} needs a --prompt, which there is none of to follow: leave it out")
    mode, seed = pick_mode(mode, fast), pick_seed(seed)
    sizes = [open_picture(path).size for path in images]  # whatever cannot be read is told before any work
    seeds = list(range(seed, seed + len(images)))
    files = plan_files(out, [f"{path.stem}-{2**relays}x" for path in images])
    places = {path.resolve(): number for number, path in enumerate(images)}
    for number, path in enumerate(files):
        if places.get(path.resolve(), number) != number:
            raise UserError(
                f"{images[number]} would be enlarged into {path}, which is to be enlarged, too; change --out"
            )
    placement = (offload, quantize, drop_text_encoder, vae_slicing, vae_tiling, compile_networks)
    width, height = max(sizes, key=math.prod)
    drawn = {"height": height << relays, "width": width << relays, "relays": relays}
    drawn |= {"tile_size": tile_size, "upscale": True, "guided": bool(prompt or negative), "light": light or None}
    with (
        clean_stdout(as_json),
        load(
            "CogView3UpscalePipeline", model, mode, device, dtype, prompt_cache, [prompt, negative], placement, drawn
        ) as pipe,
    ):
        facts = {
            "model": model_name(model),
            "mode": pipe.mode_name,
            "relays": relays,
            "relay_steps": relay_steps or pipe.mode.relay_steps,
            "relay_guidance": _relay_guidance(pipe.mode, guidance) if prompt or negative else None,
            "tile_size": tile_size,
            "keep_colors": prompt is None if keep_colors is None else keep_colors,
            "light": light or pipe.mode.light or None,
            "prompt": prompt,
            "negative_prompt": negative,
        }
        start = time.perf_counter()
        for source, path, number in zip(images, files, seeds, strict=True):
            enlarged = pipe(
                open_picture(source),
                prompt=prompt,
                negative_prompt=negative,
                num_inference_steps=relay_steps,
                num_relays=relays,
                guidance_scale=guidance,
                tile_size=tile_size,
                light=light or None,
                keep_colors=keep_colors,
                generator=generators([number]),
            ).images[0]
            save_png(enlarged, path, facts | {"seed": number})
        seconds = time.perf_counter() - start
        facts |= compiling(compile_networks)
    tell(facts | {"seeds": seeds}, files, seconds, as_json)


def _relay_guidance(mode: "Mode", given: float | None) -> float:
    """What a relay is guided by: the mode's scale unless one is given."""
    return mode.relay_guidance_scale if given is None else given


def _strength(given: float | None, masked: bool) -> float:
    from cogview3.generation.pipeline import DEFAULT_STRENGTH

    default = 1.0 if masked else DEFAULT_STRENGTH
    return default if given is None else given


def gather_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given and those of the file, one a line, blank lines left out.

    Raises:
        UserError: none at all, an empty one, or text that is not UTF-8.
    """
    gathered = list(prompts)
    for number, prompt in enumerate(gathered, 1):
        if not prompt.strip():
            raise UserError(f"prompt {number} is empty; say what to draw")
        check_utf8(f"prompt {number}", prompt)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"--file {file}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
        gathered += [line.strip() for line in lines if line.strip()]
    if not gathered:
        raise UserError(f"--file {file}: no prompts in it" if file else "no prompt; give one in quotes, or --file")
    return gathered


def check_utf8(name: str, text: str | None) -> None:
    """Refuse, with a UserError, an argument whose bytes are no UTF-8 text."""
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{name} is not valid UTF-8; check the terminal's encoding")


def generators(seeds: Sequence[int]) -> "list[torch.Generator]":
    """One generator a seed, on the CPU, so that a seed gives the same noise on every device."""
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]


def compiling(compiled: bool) -> dict[str, float]:
    """How long compiling took, as a part of the report; nothing where nothing was."""
    if not compiled:
        return {}
    from cogview3.generation.compiling import compile_seconds

    return {"compile_seconds": round(compile_seconds(), 1)}


def tell(result: dict[str, Any], files: Sequence[Path], seconds: float, as_json: bool) -> None:
    """Report the pictures written, how long drawing took, and the seeds."""
    seeds = result["seeds"]
    shown = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    lines = [*map(str, files), f"{len(seeds)} picture{'s' * (len(seeds) > 1)} in {seconds:.1f} s, {shown}"]
    if "compile_seconds" in result:
        lines[-1] += f"; compiling took {result['compile_seconds']:.1f} s of it"
    report(result | {"files": list(map(str, files)), "seconds": round(seconds, 3)}, "\n".join(lines), as_json)
