"""`info`: the contents of a model folder, from its JSON files and the headers of its weights."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from cogview3.checkpoints import read_json
from cogview3.cli import options

_MEND = "copy or export the model again"


def info(
    model: Annotated[str, typer.Argument(help="Bundled model or model folder.")],
    memory: Annotated[
        bool, typer.Option("--memory", help="Also compute the peak memory of drawing, which takes a while.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Show a model's modes and sizes.

    Reads configurations and the headers of weights only.
    """
    from cogview3.errors import as_user_error
    from cogview3.references import find

    found = find(model)
    folder = found.folder
    if found.mode is not None:
        found.settings()  # refuses a mode that is not there; the others are shown too
    with as_user_error(f"{folder}: its configurations are damaged", _MEND):
        facts = describe(folder)
        if memory:
            facts["peaks"] = peaks(folder, facts)
    options.report(facts, as_text(facts), as_json)


def describe(folder: Path) -> dict[str, Any]:
    """What a model folder in diffusers' format holds: sides in pixels, sizes on disk and in memory in bytes.

    Raises UserError where it is no model folder, or a damaged one.
    """
    from cogview3.generation.loading import check_component, check_model_folder, read_index
    from cogview3.references import MODEL_INDEX, find

    check_model_folder(str(folder), ("vae",), ())
    index = read_index(folder / MODEL_INDEX)
    names = [name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None]
    sampling = find(folder).sampling()
    modes = sampling.modes if sampling else {}
    upscaler = "unet" not in names  # it has no use for the modes' bases, either
    used = [mode.relay_unet for mode in modes.values()] + [mode.unet for mode in modes.values() if not upscaler]
    own = {unet for unet in used if unet is not None}
    for name in sorted(own):
        check_component(folder / name)
    parts = {name: measure(folder / name) for name in [*names, *sorted(own)]}
    parts = {name: part for name, part in parts.items() if part["parameters"]}
    card = folder / "README.md"
    side = drawn_side(folder, "relay_unet" if upscaler else "unet")
    doubled = 2 if "relay_unet" in names and not upscaler else 1
    tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json", _MEND) if "tokenizer" in names else {}
    return {
        "folder": str(folder),
        "class": index["_class_name"],
        "card": str(card) if card.is_file() else None,
        "prompt_tokens": tokenizer.get("model_max_length"),
        "base_side": None if upscaler else _shown_side(side),
        "side": _shown_side(side and [doubled * one for one in side]),
        "components": parts,
        "default_mode": sampling.default if sampling else None,
        "modes": {
            name: mode.model_dump(exclude_none=True) | {"memory": memory(mode.unet, mode.relay_unet, parts)}
            for name, mode in modes.items()
        },
        "memory": memory(None, None, parts),
    }


def peaks(folder: Path, facts: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Bytes at the peak of drawing one picture of the model's own size, by number format and memory mode, computed.

    Args:
        folder: the model's.
        facts: of `describe`; an upscaler's picture is the enlarged one.
    """
    side = facts["side"]
    if side is None:
        return {}
    import torch

    from cogview3.generation.memory import Picture
    from cogview3.generation.placement import model_estimates

    formats = {"bfloat16": (torch.bfloat16, None), "int8": (torch.bfloat16, "int8"), "float32": (torch.float32, None)}
    height, width = side if isinstance(side, list) else (side, side)
    picture = Picture() if facts["base_side"] is not None else Picture(height, width, relays=1, upscale=True)
    return {name: model_estimates(str(folder), None, picture, *how) for name, how in formats.items()}


def measure(component: Path) -> dict[str, int]:
    """Parameters and bytes on disk of a component's safetensors files, from their headers alone."""
    from safetensors import safe_open

    parameters = 0
    files = sorted(component.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "numpy") as tensors:
            names = (name for name in tensors.keys() if not name.endswith(".int8_scale"))  # noqa: SIM118
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return {"parameters": parameters, "bytes": sum(file.stat().st_size for file in files)}


def drawn_side(folder: Path, unet: str) -> list[int] | None:
    """Height and width in pixels of the pictures that a UNet draws by default; None where its model gives none."""
    from cogview3.generation.loading import vae_factor

    latents = read_json(folder / unet / "config.json", _MEND).get("sample_size")
    levels = read_json(folder / "vae" / "config.json", _MEND)["block_out_channels"]
    if latents is None:
        return None
    return [one * vae_factor(levels) for one in (latents if isinstance(latents, list) else [latents] * 2)]


def _shown_side(side: list[int] | None) -> int | list[int] | None:
    """The one side of a square, [height, width] of others."""
    return side[0] if side is not None and side[0] == side[1] else side


def memory(unet: str | None, relay_unet: str | None, parts: dict[str, dict[str, int]]) -> dict[str, int]:
    """Bytes of weights that are held with these UNets in place of the shared ones, by number format."""
    shared = [name for name in parts if "/" not in name and name not in ("unet", "relay_unet")]
    used = [*shared, unet or "unet", relay_unet or "relay_unet"]
    count = sum(parts[name]["parameters"] for name in used if name in parts)
    return {"float32": 4 * count, "bfloat16": 2 * count}


def as_text(facts: dict[str, Any]) -> str:
    """The outcome of `describe` for people."""

    def by(side: int | list[int]) -> str:
        height, width = side if isinstance(side, list) else (side, side)
        return f"{width}x{height}"

    size = "set by --size; the model has no default"
    if facts["side"] is not None:
        size = f"any, as it only enlarges; memory is given for {by(facts['side'])}"
    if facts["base_side"] is not None:
        size = f"{by(facts['side'])}, base {by(facts['base_side'])}"
    lines = [
        f"{facts['folder']} ({facts['class']})",
        f"  card     {facts['card'] or 'none'}",
        f"  prompts  up to {facts['prompt_tokens']} tokens" if facts["prompt_tokens"] else "  prompts  no tokenizer",
        f"  size     {size}",
        "  parts    millions of parameters, MB on disk",
    ]
    for name, part in facts["components"].items():
        lines.append(f"    {name:24} {part['parameters'] / 1e6:9.2f} {part['bytes'] / 1e6:9.1f}")
    if facts.get("peaks"):
        lines += [
            "  memory   computed peak in GB of drawing one picture: all on the GPU, text encoder dropped after use,",
            "           --offload model, --offload sequential; includes an allowance of 5 % and 0.5 GiB",
        ]
    for name, needs in facts.get("peaks", {}).items():
        lines.append(f"    {name:24} " + " ".join(f"{need / 1e9:9.2f}" for need in needs.values()))
    lines.append(f"  modes    (default {facts['default_mode']})" if facts["modes"] else "  modes    none")
    width = max([8, *map(len, facts["modes"])])
    for name, mode in facts["modes"].items():
        kind = "distilled, " * mode["distilled"] + "light, " * mode.get("light", False)
        held = mode["memory"]["float32"] / 1e6
        lines.append(
            f"    {name:{width}} {kind}base steps {mode['steps']}, relay steps {mode['relay_steps']}, "
            f"guidance {mode['guidance']:g}, {held:.0f} MB of float32 weights"
        )
    return "\n".join(lines)
