"""`generate` and `upscale`: prompts to pictures, pictures to larger ones."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogview3.cli.options import (
    BatchOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    FastOption,
    GuidanceOption,
    JsonOption,
    ModelOption,
    ModeOption,
    PromptCacheOption,
    RelayGuidanceOption,
    RelaysOption,
    RelayStepsOption,
    SeedOption,
    StepsOption,
    TileSizeOption,
    check_finite,
    check_writable,
    clean_stdout,
    parse_size,
    pick_device,
    pick_dtype,
    pick_mode,
    pick_seed,
    report,
)
from cogview3.cli.pictures import contact_sheet, grid_file, open_picture, plan_files, save_png, slug
from cogview3.config import UserError

if TYPE_CHECKING:
    import torch

    from cogview3.prompts.cache import PromptCache

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

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls an adapter's file."""

MAX_WARNINGS = 10
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
    lora: LoraOption = None,
    tile_size: TileSizeOption = None,
    prompt_cache: PromptCacheOption = None,
    mode: ModeOption = None,
    fast: FastOption = False,
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
    width, height = parse_size(size)
    check_finite("--guidance", guidance)
    check_finite("--relay-guidance", relay_guidance)
    check_finite("--strength", strength)
    adapters = [parse_lora(entry) for entry in lora or []]
    begin_with = None if image is None else open_picture(image)
    mode, seed = pick_mode(mode, fast), pick_seed(seed)
    seeds = list(range(seed, seed + len(texts)))
    files = plan_files(out, [f"{slug(text)}-{number}" for text, number in zip(texts, seeds, strict=True)])
    sheet = grid_file(out, seed) if grid else None
    warn_of_unknown_words(model, texts)
    with clean_stdout(as_json):
        pipe = load("CogView3Pipeline", model, mode, device, dtype, prompt_cache, [*texts, negative])
        load_loras(pipe, adapters)
        facts = {
            "model": model_name(model),
            "mode": pipe.mode_name,
            "steps": steps or pipe.mode.steps,
            "relay_steps": relay_steps or pipe.mode.relay_steps,
            "negative_prompt": negative,
            "image": image and image.name,
            "strength": _strength(strength) if image else None,
            "lora": ", ".join(lora or []) or None,
        }
        start, images = time.perf_counter(), []
        for first in range(0, len(texts), batch):
            part = slice(first, first + batch)
            images += pipe(
                texts[part],
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
                tile_size=tile_size,
                generator=generators(seeds[part]),
            ).images
            for index in range(first, len(images)):
                save_png(images[index], files[index], facts | {"prompt": texts[index], "seed": seeds[index]})
        seconds = time.perf_counter() - start
        if sheet is not None:
            columns = count if 1 < count < len(texts) else None
            save_png(contact_sheet(images, columns), sheet, facts | {"seed": seed})
    result = facts | {"prompts": texts, "seeds": seeds, "grid": sheet and str(sheet)}
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
    prompt_cache: PromptCacheOption = None,
    mode: ModeOption = None,
    fast: FastOption = False,
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
    mode, seed = pick_mode(mode, fast), pick_seed(seed)
    pictures = [open_picture(path) for path in images]
    seeds = list(range(seed, seed + len(pictures)))
    files = plan_files(out, [f"{path.stem}-{2**relays}x" for path in images])
    with clean_stdout(as_json):
        pipe = load("CogView3UpscalePipeline", model, mode, device, dtype, prompt_cache, [prompt, negative])
        facts = {
            "model": model_name(model),
            "mode": pipe.mode_name,
            "relay_steps": relay_steps or pipe.mode.relay_steps,
            "prompt": prompt,
            "negative_prompt": negative,
        }
        start = time.perf_counter()
        for picture, path, number in zip(pictures, files, seeds, strict=True):
            drawn = pipe(
                picture,
                prompt=prompt,
                negative_prompt=negative,
                num_inference_steps=relay_steps,
                num_relays=relays,
                guidance_scale=guidance,
                tile_size=tile_size,
                generator=generators([number]),
            ).images[0]
            save_png(drawn, path, facts | {"seed": number})
        seconds = time.perf_counter() - start
    tell(facts | {"seeds": seeds}, files, seconds, as_json)


def _strength(given: float | None) -> float:
    from cogview3.generation.pipeline import DEFAULT_STRENGTH

    return DEFAULT_STRENGTH if given is None else given


def gather_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given and those of the file, one a line, blank lines left out.

    Raises:
        UserError: none at all, an empty one, or text that is not UTF-8.
    """
    gathered = list(prompts)
    for number, prompt in enumerate(gathered, 1):
        if not prompt.strip():
            raise UserError(f"prompt {number} is empty; say what to draw")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise UserError(f"prompt {number} is not valid UTF-8; check the terminal's encoding")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"--file {file}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
        gathered += [line.strip() for line in lines if line.strip()]
    if not gathered:
        raise UserError(f"--file {file}: no prompts in it" if file else "no prompt; give one in quotes, or --file")
    return gathered


def warn_of_unknown_words(model: str, prompts: Sequence[str]) -> None:
    """Name on stderr the words that the bundled `scenes` model never saw, with known ones that look alike."""
    if model_name(model) != "scenes":
        return
    from cogview3.data.scenes.captions import suggestions, unknown_words

    unknown = list(dict.fromkeys(word for prompt in dict.fromkeys(prompts) for word in unknown_words(prompt)))
    if len(unknown) > MAX_WARNINGS:
        typer.echo(f"warning: {len(unknown)} words are unknown to the model; the first are:", err=True)
    for word in unknown[:MAX_WARNINGS]:
        near = suggestions(word)
        hint = f"; near words: {', '.join(near)}" if near else ""
        typer.echo(f"warning: the model does not know the word {word!r}{hint}", err=True)


def model_name(model: str) -> str:
    """What a model is called in reports: a folder's own name without the way to it, or the name as it is."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def load(
    pipeline: str,
    model: str,
    mode: str | None,
    device: Device,
    dtype: Dtype,
    prompt_cache: Path | None = None,
    prompts: Sequence[str | None] = (),
) -> Any:
    """A pipeline of the class named, on its device; bars show how far it is, on a terminal only.

    Without its text encoder where the prompt cache has all prompts.
    """
    import diffusers
    import transformers

    import cogview3

    diffusers.utils.logging.disable_progress_bar()  # those of loading, one for each component
    transformers.utils.logging.disable_progress_bar()
    place = pick_device(device)
    parts: dict[str, Any] = {"dtype": pick_dtype(dtype, place)}
    cache = None if prompt_cache is None else open_prompt_cache(prompt_cache, model, parts["dtype"])
    if cache is not None and cache.has([prompt for prompt in prompts if prompt is not None]):
        parts["text_encoder"] = None
    pipe = getattr(cogview3, pipeline).from_pretrained(model, mode=mode, **parts)
    pipe.prompt_cache = cache
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    return pipe.to(place)


def parse_lora(entry: str) -> tuple[Path, float]:
    """An adapter's file and scale, from `PATH[:SCALE]`; the path of a run or a folder that holds one will do."""
    text, colon, number = entry.rpartition(":")
    path, scale = Path(entry), 1.0
    if colon and not path.exists():
        try:
            path, scale = Path(text), float(number)
        except ValueError:
            raise UserError(f"--lora {entry}: no such file; write PATH or PATH:SCALE, such as run:0.8") from None
    check_finite("--lora", scale)
    for place in (path, path / LORA_FILE, path / "weights" / LORA_FILE):
        if place.is_file():
            return place, scale
    reason = f"holds no {LORA_FILE}" if path.is_dir() else "no such file"
    raise UserError(f"--lora {entry}: {reason}; give an adapter's file, or the run that trained it")


def load_loras(pipe: Any, adapters: Sequence[tuple[Path, float]]) -> None:
    """Put adapters, (file, scale) each, on a pipeline, together. Raises UserError where one does not fit."""
    if not adapters:
        return
    names = [f"lora-{number}" for number in range(1, len(adapters) + 1)]
    for name, (path, _) in zip(names, adapters, strict=True):
        try:
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
        except ImportError:
            raise UserError("--lora needs peft: pip install 'cogview3[train]'") from None
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(":")
            raise UserError(f"--lora {path}: does not fit this model ({reason})") from error
    pipe.set_adapters(names, [scale for _, scale in adapters])


def open_prompt_cache(folder: Path, model: str, dtype: "torch.dtype") -> "PromptCache":
    """The prompt cache of a model's text encoder. Raises UserError for a name on the hub, or no place to write."""
    from cogview3.generation.loading import resolve_model
    from cogview3.prompts.cache import PromptCache, encoder_fingerprint

    source = resolve_model(model)
    if not Path(source).is_dir():
        raise UserError(f"--prompt-cache needs a model folder, and {model} is a name on the hub; download it first")
    check_writable(folder, "--prompt-cache")
    return PromptCache(folder, encoder_fingerprint(source), dtype)


def generators(seeds: Sequence[int]) -> "list[torch.Generator]":
    """One generator a seed, on the CPU, so that a seed gives the same noise on every device."""
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]


def tell(result: dict[str, Any], files: Sequence[Path], seconds: float, as_json: bool) -> None:
    """Report the pictures written, how long drawing took, and the seeds."""
    seeds = result["seeds"]
    shown = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    lines = [*map(str, files), f"{len(seeds)} picture{'s' * (len(seeds) > 1)} in {seconds:.1f} s, {shown}"]
    report(result | {"files": list(map(str, files)), "seconds": round(seconds, 3)}, "\n".join(lines), as_json)
