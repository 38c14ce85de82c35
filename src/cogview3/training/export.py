"""Runs to a model folder: EMA weights, float16, with `sampling.json`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from cogview3 import checkpoints
from cogview3.config import UserError, distillation_of
from cogview3.errors import one_line
from cogview3.generation.loading import check_component, check_target, folder_sizes
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler
from cogview3.models.int8 import load_unet, save_int8
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.models.modes import Mode, Sampling, distilled_mode, mode_steps, write_sampling
from cogview3.models.unet import takes_guidance
from cogview3.prompts.text_models import load_text_encoder, load_tokenizer
from cogview3.references import find, split, weights_folder

LIGHT_PARTS: dict[str, Any] = {"latent_enlarger": LatentEnlarger, "light_decoder": LightDecoder}
_INHERITED = ("steps", "relay_steps", "guidance", "relay_guidance", "sampler")
_RELAY_ENTRIES = ("relay_start", "blur_estimate", "relay_power")
_RELAY_INHERITED = (*_RELAY_ENTRIES, "relay_order")


def export(
    vae: str,
    text: str,
    base: str,
    relay: str | None,
    modes: dict[str, tuple[str, str]],
    out: Path,
    sampling: dict[str, Any] | None = None,
    light: dict[str, str] | None = None,
    expander: str | None = None,
    int8: bool = False,
    fewer_steps: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a model folder in diffusers' format, whole or not at all, replacing an earlier one.

    Args:
        vae, text, base, relay: runs or models, as `references.weights_folder` takes them, that hold these components;
            the newest checkpoint of a run counts, whether the run is finished or not.
        modes: base and relay of distilled modes, by names such as "4+1" (base steps + relay steps): runs of `distill`
            or single rounds, or a model's mode as MODEL@MODE, such as scenes@4+1. Of both the range of guidance and
            the relay's start and steps are taken over.
        out: the model folder.
        sampling: entries of the default mode (`steps`, `relay_steps`, `guidance`, `relay_guidance`, ...). Steps,
            guidance and sampler that are left out are those of the model that `base` is, if it is one, and so is how
            the relay is sampled, if `relay` is the same.
        light: runs or models that hold the "latent_enlarger" or the "light_decoder", trained with this VAE. Beside
            every mode stands then another that uses them, "4+1-light" beside "4+1".
        int8: store the UNets of `modes` in a byte a weight (`models.int8`), at half the size; drawing is as before.
        expander: a run or model that holds the "expander" of short prompts; `generate --expand` takes it then.
        fewer_steps: names of further modes, such as "8+2", that are the default one in the steps so named.

    Returns:
        {"out", "modes", "bytes", "components"}.

    Raises:
        UserError: a component is missing, a mode's name is not of that form or not that of its runs' steps, its
            guidance is none that they were distilled for, a network of it is not distilled or one of the default mode
            is, or `out` is some other folder.
    """
    check_target(out)
    default = Mode(**_sampling_of(base, relay) | (sampling or {}))
    name = f"{default.steps}+{default.relay_steps}"
    names = [name, *fewer_steps, *modes]
    if double := next((mode for mode in names if names.count(mode) > 1), None):
        fault = "is the default mode's name" if double == name else "is given twice"
        raise UserError(f"--mode {double} {fault}; give that other step counts")
    given = default.model_copy(update={key: (sampling or {}).get(key) for key in _RELAY_INHERITED})
    distilled = {mode: _distilled(mode, given, *runs) for mode, runs in modes.items()}
    entries = {name: default, **{mode: _in_steps(default, mode) for mode in fewer_steps}, **distilled}
    if light:  # each mode, and the same with the tiny autoencoder
        entries |= {f"{mode}-light": entry.model_copy(update={"light": True}) for mode, entry in entries.items()}
    table = Sampling(default=name, modes=entries)
    pipe = _assemble(vae, text, base, relay, light or {})
    further: dict[str, Any] = {}
    own_expander = () if expander is None else _load_expander(expander)
    for mode, (unet, relay_unet) in modes.items():
        for component, run in (("unet", unet), ("relay_unet", relay_unet)):
            further[getattr(table.modes[mode], component)] = _load_unet(run, component, mode, int8)
    with checkpoints.whole_folder(out) as folder:
        pipe.save_pretrained(folder)
        for place, network in further.items():
            if int8:
                save_int8(network, folder / place)
            else:
                network.save_pretrained(folder / place)
        for part in own_expander:
            part.save_pretrained(folder / "expander")
        _forget_origins(folder)
        write_sampling(table, folder)
    sizes = folder_sizes(out)
    return {"out": str(out), "modes": list(table.modes), "bytes": sum(sizes.values()), "components": sizes}


def _sampling_of(base: str, relay: str | None) -> dict[str, Any]:
    """Steps, guidance and sampler of the model that the base comes from; nothing of a run, or of a distilled one.

    Where the relay comes from there, too, also how that is sampled.
    """
    try:
        folder = weights_folder(base, "unet").parent
    except UserError:  # raised when its turn comes, after what is cheaper to check
        return {}
    sampling = find(folder).sampling()
    if sampling is None or (mode := sampling.modes[sampling.default]).distilled:
        return {}
    same = (folder / "relay_unet").is_dir()
    same = same and relay is not None and weights_folder(relay, "relay_unet").parent == folder
    return mode.model_dump(include={*_INHERITED, *(_RELAY_INHERITED if same else ())}, exclude_none=True)


def _forget_origins(folder: Path) -> None:
    """Take out of the configurations where on this machine their weights came from."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text("utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _assemble(vae: str, text: str, base: str, relay: str | None, light: dict[str, str]) -> CogView3Pipeline:
    folder = _sound_folder
    relay_parts: dict[str, Any] = {}
    if relay is not None:
        scheduler = RelayScheduler.from_pretrained(folder(relay, "relay_scheduler"))
        relay_parts = {"relay_unet": _load_unet(relay, "relay_unet"), "relay_scheduler": scheduler}
    return CogView3Pipeline(
        tokenizer=load_tokenizer(folder(text, "tokenizer")),
        text_encoder=load_text_encoder(folder(text, "text_encoder")).half(),
        vae=AutoencoderKL.from_pretrained(folder(vae, "vae"), torch_dtype=torch.float16),
        unet=_load_unet(base, "unet"),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder(base, "scheduler")),
        **relay_parts,
        **{
            name: LIGHT_PARTS[name].from_pretrained(folder(run, name), torch_dtype=torch.float16)
            for name, run in light.items()
        },
    )


def _sound_folder(reference: str, component: str) -> Path:
    """`weights_folder`, checked before a library reads it. Raises UserError where a file in it is damaged."""
    folder = weights_folder(reference, component)
    check_component(folder)
    return folder


def _load_unet(reference: str, component: str, mode: str | None = None, whole: bool = False) -> UNet2DConditionModel:
    """A UNet of the default mode, or of a distilled one: only the latter's may, and must, take guidance.

    `whole`: with all its digits, to be rounded to a byte.
    """
    unet = load_unet(_sound_folder(reference, component), torch.float32 if whole else torch.float16)
    if mode is None and takes_guidance(unet):
        option = "--base" if component == "unet" else "--relay"
        raise UserError(f"{option} {reference} is distilled; give it with --mode, and what it was distilled from here")
    if mode is not None and not takes_guidance(unet):
        raise UserError(f"--mode {mode}: the {component} of {reference} is not distilled; give a run of distill")
    return unet


def _load_expander(reference: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = weights_folder(reference, "expander")
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, dtype=torch.float16)
        return model, load_tokenizer(folder)
    except (OSError, ValueError) as error:
        reason = one_line(error, 200)
        raise UserError(f"--expander {reference}: no encoder-decoder that can be loaded ({reason})") from None


def _in_steps(default: Mode, name: str) -> Mode:
    """The default mode in the steps that another's name states."""
    steps, relay_steps = mode_steps(name)
    return default.model_copy(update={"steps": steps, "relay_steps": relay_steps})


def _distilled(name: str, default: Mode, base: str, relay: str) -> Mode:
    steps = mode_steps(name)
    stages = zip((base, relay), ("unet", "relay_unet"), steps, strict=True)
    known = [_known(name, *stage) for stage in stages]
    settings = default.model_dump() | known[1]
    ranges = [entries["guidance_range"] for entries in known if entries.get("guidance_range")]
    return distilled_mode(name, **settings | _guidance_range(name, default, ranges))


def _known(mode: str, reference: str, component: str, steps: int) -> dict[str, Any]:
    """Entries of a mode that its stage brings along: "guidance_range", and how a relay is sampled.

    Left out is what reveals no more than its weights: a model as such, or another run.
    """
    if split(os.fspath(reference))[1] is not None:
        own = find(reference).settings()[1]
        if not own.distilled:
            raise UserError(f"--mode {mode}: {reference} is not distilled; give a mode that is, or a run of distill")
        trained = own.steps if component == "unet" else own.relay_steps
        entries = {"guidance_range", *(_RELAY_ENTRIES if component == "relay_unet" else ())}
        known = own.model_dump(include=entries)  # unset, too: the default mode's are not its
    elif recipe := distillation_of(reference):
        trained = recipe.distill.steps[-1]
        known = {"guidance_range": recipe.distill.guidance_range}
        known |= _relay_steps(reference) if component == "relay_unet" else {}
    else:
        return {}
    if trained != steps:
        raise UserError(f"--mode {mode}: {reference} is distilled for {trained} steps, not for {steps}")
    return known


def _relay_steps(run: str) -> dict[str, Any]:
    """How a run's distilled relay is sampled: `_RELAY_ENTRIES` of its mode."""
    config: Any = RelayScheduler.load_config(weights_folder(run, "relay_scheduler"))
    return {
        "relay_start": config["relay_start"],
        "blur_estimate": config["blur_estimate"],
        "relay_power": config["power"],
    }


def _guidance_range(mode: str, default: Mode, ranges: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What both stages were distilled for, which must hold the model's own guidance: an entry of the mode."""
    if not ranges:
        return {}
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    for key, value in (("guidance", default.guidance), ("relay_guidance", default.relay_guidance_scale)):
        if not low <= value <= high:
            raise UserError(
                f"--mode {mode}: the model's {key} {value:g} is none that its runs were distilled for, {low:g} to "
                f"{high:g}; change it with --set {key}=W"
            )
    return {"guidance_range": (low, high)}
