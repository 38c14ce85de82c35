"""Conversion of the published release's files to a model folder and back; written whole or not at all."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import AutoConfig, PreTrainedTokenizerBase, T5EncoderModel
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.errors import as_user_error
from cogview3.generation.loading import check_model_folder, check_target, folder_sizes
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.generation.pretrained import check_weights_complete
from cogview3.generation.scheduler import RelayScheduler, base_scheduler
from cogview3.models.component_folders import in_format, read_component, write_component
from cogview3.models.modes import Mode, Sampling, distilled_mode, write_sampling
from cogview3.models.release import load_unet, load_vae, save_unet, save_vae
from cogview3.models.release_files import LATEST, VAE_FILE
from cogview3.prompts.text_models import SAFE, check_folder, load_text_encoder, load_tokenizer
from cogview3.references import find

TEXT_LENGTH = 225
"""Tokens of a prompt in the release."""

SIDES = {"unet": 64, "relay_unet": 128}
"""Sides of the latents that the release's stages draw."""

_GUIDANCE_WIDTHS = {"unet": 512, "relay_unet": 256}  # of the release's distilled networks
_OTHER = {"unet": "relay_unet", "relay_unet": "unet"}

_PLAIN = Mode(steps=50, relay_steps=12, relay_start=500, blur_estimate="recompute", guidance=7.5)
_PLAIN_NAME = "50+12"
# The release's distilled networks: bases of 4 and of 8 steps, relays of 1 step and of 2; and where the relays start.
_DISTILLED_STARTS = {"4+1": 200, "8+2": 500, "4+2": 500, "8+1": 200}
_GUIDANCE_RANGE = (1, 12)


def convert(
    unet: Path,
    relay_unet: Path,
    vae: Path,
    text_encoder: Path,
    modes: Mapping[str, tuple[Path, Path]],
    out: Path,
    dtype: torch.dtype | None = None,
    progress: Callable[[str], None] = lambda component: None,
) -> dict[str, Any]:
    """Write the release's files as a model folder in diffusers' format, replacing an earlier one.

    The UNets and the VAE are read and written tensor by tensor; the text encoder is held whole.

    Args:
        unet, relay_unet: the undistilled UNets, as `models.release.load_unet` takes them.
        vae: `sdxl_vae.safetensors`.
        text_encoder: a transformers folder with T5's encoder and its tokenizer, or a model folder that has them.
        modes: base and relay UNet of distilled modes: 4+1, 8+2, 4+2 or 8+1.
        out: the model folder.
        dtype: number format of the weights; None leaves each as it is stored.
        progress: called with the name of each component before it is written.

    Returns:
        {"out", "modes", "bytes", "components"}.

    Raises:
        UserError: a file or folder is missing, damaged or of another network, networks do not fit each other, an
            unknown mode, or `out` is some other folder.
    """
    check_target(out)
    table = Sampling(default=_PLAIN_NAME, modes={_PLAIN_NAME: _PLAIN, **{name: _distilled(name) for name in modes}})
    sources = {"unet": unet, "relay_unet": relay_unet}
    for name, (base, relay) in modes.items():
        sources[f"modes/{name}/unet"], sources[f"modes/{name}/relay_unet"] = base, relay
    unets = {place: load_unet(source, sample_size=SIDES[Path(place).name]) for place, source in sources.items()}
    autoencoder = load_vae(vae)
    tokenizer = _load_tokenizer(text_encoder)
    _check_fit(unets, sources, autoencoder, _text_width(text_encoder))
    with checkpoints.whole_folder(out) as folder:
        progress("text_encoder")
        encoder = _load_text_encoder(text_encoder, dtype)
        _write_pipeline(folder, tokenizer, encoder, autoencoder, unets)
        del encoder
        progress("vae")
        write_component(autoencoder, folder / "vae", dtype)
        for place in list(unets):
            progress(place)
            write_component(unets.pop(place), folder / place, dtype)  # taken out, so that its file is let go
        write_sampling(table, folder)
    sizes = folder_sizes(out)
    return {"out": str(out), "modes": list(table.modes), "bytes": sum(sizes.values()), "components": sizes}


def convert_to_release(
    model: str, out: Path, dtype: torch.dtype | None = None, progress: Callable[[str], None] = lambda component: None
) -> dict[str, Any]:
    """Write a model's UNets and VAE as the release's files, replacing earlier ones.

    Each UNet becomes a folder with `latest` in the place that it has in the model; the VAE `sdxl_vae.safetensors`.
    The text encoder is left out, being the same in both formats.

    Args:
        model: a model folder.
        out: the folder to write.
        dtype, progress: as for `convert`.

    Returns:
        {"out", "bytes", "components"}.

    Raises:
        UserError: no such model, one that the release's files cannot hold, or `out` is some other folder.
    """
    if out.exists() and not (out / "unet" / LATEST).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and holds no converted release; give another folder with -o")
    found = find(model)
    source = found.folder
    check_model_folder(str(source), ("vae", "unet"), ())
    _check_predictions(source)
    sampling = found.sampling()
    modes = sampling.modes.values() if sampling else ()
    places = {place for mode in modes for place in (mode.unet, mode.relay_unet) if place}
    places |= {name for name in SIDES if (source / name).is_dir()}
    unets = {place: read_component(UNet2DConditionModel, source / place) for place in sorted(places)}
    autoencoder = read_component(AutoencoderKL, source / "vae")
    with checkpoints.whole_folder(out) as folder:
        progress("vae")
        save_vae(autoencoder, folder / VAE_FILE, dtype)
        for place in list(unets):
            progress(place)
            save_unet(unets.pop(place), folder / place, dtype)
    sizes = folder_sizes(out) | {VAE_FILE: (out / VAE_FILE).stat().st_size}
    return {"out": str(out), "bytes": sum(sizes.values()), "components": sizes}


def _distilled(name: str) -> Mode:
    if name not in _DISTILLED_STARTS:
        raise UserError(
            f"--mode {name}: the release has no networks distilled for such steps; "
            f"write one of {', '.join(_DISTILLED_STARTS)}"
        )
    return distilled_mode(
        name,
        relay_start=_DISTILLED_STARTS[name],
        blur_estimate="recompute",
        guidance=7.5,
        guidance_range=_GUIDANCE_RANGE,
    )


def _check_fit(
    unets: Mapping[str, UNet2DConditionModel], sources: Mapping[str, Path], vae: AutoencoderKL, text_width: int
) -> None:
    """Refuse networks that do not belong together, or that are not in their place."""
    channels = vae.config["latent_channels"]
    for place, unet in unets.items():
        source, guidance = sources[place], unet.config["time_cond_proj_dim"]
        taken, given, text = (unet.config[key] for key in ("in_channels", "out_channels", "cross_attention_dim"))
        distilled = guidance is not None
        if distilled and place in SIDES:
            raise UserError(f"{source} is distilled: give it with --mode, and an undistilled network for {place}")
        if not distilled and place not in SIDES:
            raise UserError(f"{source} is not distilled, but {place} must be: give a distilled network with --mode")
        if guidance == _GUIDANCE_WIDTHS[_OTHER[Path(place).name]]:
            raise UserError(
                f"{source} embeds guidance {guidance} wide, as the release's other stage does: swap "
                f"base and relay of --mode {Path(place).parent.name}"
            )
        if text != text_width:
            raise UserError(
                f"{source} takes text {text} wide, but --text-encoder gives {text_width}: "
                "give the text encoder that belongs to it"
            )
        if {taken, given} != {channels}:
            raise UserError(
                f"{source} takes {taken} and gives {given} channels, but --vae has {channels}: "
                "give the VAE that belongs to it"
            )


def _check_predictions(source: Path) -> None:
    for name in ("scheduler", "relay_scheduler"):
        path = source / name / "scheduler_config.json"
        kind = json.loads(path.read_bytes()).get("prediction_type") if path.is_file() else "epsilon"
        if kind != "epsilon":
            raise UserError(f"{source}: its {name} has prediction_type {kind!r}, and the release's networks epsilon")


def _encoder_folder(path: Path, component: str) -> Path:
    """`path` itself, or its subfolder where it is a model folder."""
    folder = path / component if (path / "text_encoder").is_dir() else path
    if not folder.is_dir():
        raise UserError(f"--text-encoder {path}: {folder} is no folder; give a transformers folder with T5's encoder")
    return folder


def _text_width(path: Path) -> int:
    folder = _encoder_folder(path, "text_encoder")
    with _text_encoder(folder):
        check_folder(folder)
        config = AutoConfig.from_pretrained(folder, **SAFE)
    if config.model_type != "t5":
        raise UserError(f"{folder} holds a {config.model_type} model: give T5's encoder")
    return int(config.d_model)


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    folder = _encoder_folder(path, "tokenizer")
    if not (folder / "tokenizer.json").is_file():
        if not (folder / "spiece.model").is_file():
            raise UserError(f"{folder} has no tokenizer (tokenizer.json or spiece.model): put T5's there")
        if not (is_sentencepiece_available() and is_protobuf_available()):
            raise UserError(f"{folder}/spiece.model cannot be read: install sentencepiece and protobuf")
    with _text_encoder(folder):
        return load_tokenizer(folder, model_max_length=TEXT_LENGTH)


def _load_text_encoder(path: Path, dtype: torch.dtype | None) -> T5EncoderModel:
    folder = _encoder_folder(path, "text_encoder").resolve()
    with _text_encoder(folder):
        encoder = load_text_encoder(folder, dtype="auto")
    check_weights_complete(str(folder.parent), folder.name, encoder)
    for name, tensor in encoder.named_parameters():
        in_format(f"text_encoder: {name}", tensor, dtype)  # for its checks
    return encoder if dtype is None else encoder.to(dtype)


def _text_encoder(folder: Path) -> AbstractContextManager[None]:
    what = f"{folder} holds no T5 encoder that can be loaded"
    return as_user_error(what, "download it again, as safetensors", ours=True)


def _write_pipeline(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    encoder: T5EncoderModel,
    vae: AutoencoderKL,
    unets: Mapping[str, UNet2DConditionModel],
) -> None:
    """Everything but the UNets and the VAE: model_index.json, schedulers, tokenizer and text encoder."""
    scheduler, relay_scheduler = base_scheduler("epsilon"), RelayScheduler(relay_start=500)
    pipe = CogView3Pipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        unet=unets["unet"],
        scheduler=scheduler,
        relay_unet=unets["relay_unet"],
        relay_scheduler=relay_scheduler,
    )
    pipe.save_config(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="2GB")
    scheduler.save_pretrained(folder / "scheduler")
    relay_scheduler.save_pretrained(folder / "relay_scheduler")
