"""Pipelines for commands: checked against the free memory, loaded, and moved to their device."""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogview3.checkpoints import LORA_FILE
from cogview3.cli import options
from cogview3.config import UserError

if TYPE_CHECKING:
    import torch

    from cogview3.cli.drawing import DrawOptions
    from cogview3.generation.placement import Placement
    from cogview3.prompts.cache import PromptCache


def quiet_libraries() -> None:
    """Silence progress bars and remarks of the libraries while models are loaded; errors still show."""
    import logging

    for name in ("torchao", "torch.distributed.elastic.multiprocessing.redirects"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def load(
    pipeline: str,
    draw: "DrawOptions",
    prompts: Sequence[str | None],
    drawn: Mapping[str, Any],
    adapters: Sequence[tuple[Path, float]] = (),
) -> Iterator[Any]:
    """A pipeline of the class `pipeline` on its device; progress bars show on a terminal only.

    It has no text encoder if there is no prompt, or if the prompt cache has all of them. When a GPU's memory runs out
    within the block, the error names a mode that needs less.

    Args:
        pipeline: name of the class.
        draw: the command's options.
        prompts: all that will be drawn.
        drawn: fields of `generation.memory.Picture`, for an estimate before anything is loaded on a GPU.
        adapters: LoRA files and their scales.

    Raises:
        UserError: wrong options.
        OutOfMemory: the GPU has less free memory than needed.
    """
    import cogview3
    from cogview3.generation.memory import Picture
    from cogview3.generation.placement import apply_placement, check_free, explained, model_estimates

    quiet_libraries()
    kind, model, mode = getattr(cogview3, pipeline), draw.model, options.pick_mode(draw.mode, draw.fast)
    how = draw.placement
    where, number_format = check_placement(draw.device, draw.dtype, how)
    parts: dict[str, Any] = {"dtype": number_format}
    cache = draw.prompt_cache and open_prompt_cache(draw.prompt_cache, model, number_format, how.quantize)
    texts = [prompt for prompt in prompts if prompt is not None]
    encoded = bool(texts) and not (cache is not None and cache.has(texts))
    needs = {}
    if where == "cuda":
        kind.check_model(model, mode)  # an estimate needs a whole model
        cut = 512 if how.vae_tiling else None
        more: dict[str, Any] = {"vae_slicing": how.vae_slicing, "vae_tile_size": cut, "encoded": encoded}
        needs = model_estimates(model, mode, Picture(**drawn, **more), number_format, how.quantize)
        check_free(needs, how)
    if not encoded:
        parts["text_encoder"] = None
    with explained(needs, how):
        pipe = kind.from_pretrained(model, mode=mode, **parts)
        pipe.prompt_cache = cache
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
        load_loras(pipe, adapters)
        apply_placement(pipe, where, how, prompts)
        yield pipe


def check_placement(device: options.Device, dtype: options.Dtype, how: "Placement") -> "tuple[str, torch.dtype]":
    """Device and number format behind the options. Raises UserError where the placement does not go with them."""
    where = options.pick_device(device)
    number_format = options.pick_dtype(dtype, where)
    how.check(where, number_format)
    return where, number_format


def free_memory() -> None:
    """Free GPU memory of deleted networks: torch caches it, and an estimate would count it as used."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parse_lora(entry: str) -> tuple[Path, float]:
    """An adapter's file and scale, from `PATH[:SCALE]`; the path of a run or a folder that holds one will do."""
    text, colon, number = entry.rpartition(":")
    path, scale = Path(entry), 1.0
    if colon and not path.exists():
        try:
            path, scale = Path(text), float(number)
        except ValueError:
            raise UserError(f"--lora {entry}: no such file; write PATH or PATH:SCALE, such as run:0.8") from None
    options.check_finite("--lora", scale)
    for place in (path, path / LORA_FILE, path / "weights" / LORA_FILE):
        if place.is_file():
            return place, scale
    reason = f"holds no {LORA_FILE}" if path.is_dir() else "no such file"
    raise UserError(f"--lora {entry}: {reason}; give an adapter's file, or the run that trained it")


def load_loras(pipe: Any, adapters: Sequence[tuple[Path, float]]) -> None:
    """Put adapters, (file, scale) each, on a pipeline, together. Raises UserError where one does not fit."""
    if not adapters:
        return
    if importlib.util.find_spec("peft") is None:
        raise UserError("--lora needs peft: pip install 'cogview3[train]'")
    from cogview3.errors import as_user_error

    names = [f"lora-{number}" for number in range(1, len(adapters) + 1)]
    for name, (path, _) in zip(names, adapters, strict=True):
        with as_user_error(f"--lora {path}", "is damaged or does not fit this model", ours=True):
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    pipe.set_adapters(names, [scale for _, scale in adapters])


def open_prompt_cache(folder: Path, model: str, dtype: "torch.dtype", quantize: str | None = None) -> "PromptCache":
    """The prompt cache of a model's text encoder in a number format, with weights of a byte or without.

    Raises UserError for a name on the hub, or no place to write.
    """
    from cogview3.fingerprints import encoder_fingerprint
    from cogview3.prompts.cache import PromptCache
    from cogview3.references import find

    found = find(model)
    if found.on_hub:
        raise UserError(f"--prompt-cache needs a model folder, and {model} is a name on the hub; download it first")
    options.check_writable(folder, "--prompt-cache")
    encoder = encoder_fingerprint(found.folder) + (f" {quantize}" if quantize else "")
    return PromptCache(folder, encoder, dtype)
