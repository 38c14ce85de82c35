"""Runs to a model folder: averaged weights, float16, with `sampling.json`."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, T5EncoderModel

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.generation.loading import check_target, folder_sizes
from cogview3.generation.modes import Mode, Sampling, distilled_mode, write_sampling
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.scheduler import RelayScheduler


def export(
    vae: Path,
    text: Path,
    base: Path,
    relay: Path | None,
    modes: dict[str, tuple[Path, Path]],
    out: Path,
    sampling: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model folder in diffusers' format, whole or not at all, replacing an earlier one.

    Args:
        vae, text, base, relay: runs, model folders or bundled models that hold these components; the newest
            checkpoint of a run counts, whether the run is finished or not.
        modes: base and relay of distilled modes, by names such as "4+1" (base steps + relay steps).
        out: the model folder.
        sampling: entries of the default mode (`steps`, `relay_steps`, `guidance`, `relay_guidance`, ...).

    Returns:
        {"out", "modes", "bytes", "components"}.

    Raises:
        UserError: a component is missing, a mode's name is not of that form, or `out` is some other folder.
    """
    check_target(out)
    default = Mode(**(sampling or {}))
    name = f"{default.steps}+{default.relay_steps}"
    if name in modes:
        raise UserError(f"--mode {name} is the default mode's name; give that other step counts")
    table = Sampling(
        default=name, modes={name: default, **{mode: distilled_mode(mode, **default.model_dump()) for mode in modes}}
    )
    pipe = _assemble(vae, text, base, relay)
    further = {}
    for mode, (unet, relay_unet) in modes.items():
        further[table.modes[mode].unet] = _load_unet(unet, "unet")
        further[table.modes[mode].relay_unet] = _load_unet(relay_unet, "relay_unet")
    with checkpoints.whole_folder(out) as folder:
        pipe.save_pretrained(folder)
        for place, network in further.items():
            network.save_pretrained(folder / place)
        write_sampling(table, folder)
    sizes = folder_sizes(out)
    return {"out": str(out), "modes": list(table.modes), "bytes": sum(sizes.values()), "components": sizes}


def _assemble(vae: Path, text: Path, base: Path, relay: Path | None) -> CogView3Pipeline:
    folder = checkpoints.weights_folder
    relay_parts = {}
    if relay is not None:
        scheduler = RelayScheduler.from_pretrained(folder(relay, "relay_scheduler"))
        relay_parts = {"relay_unet": _load_unet(relay, "relay_unet"), "relay_scheduler": scheduler}
    return CogView3Pipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder(text, "tokenizer")),
        text_encoder=T5EncoderModel.from_pretrained(folder(text, "text_encoder")).half(),
        vae=AutoencoderKL.from_pretrained(folder(vae, "vae"), torch_dtype=torch.float16),
        unet=_load_unet(base, "unet"),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder(base, "scheduler")),
        **relay_parts,
    )


def _load_unet(reference: Path, component: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(
        checkpoints.weights_folder(reference, component), torch_dtype=torch.float16
    )
