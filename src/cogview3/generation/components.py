"""Checks of a pipeline's components: wrong kinds, and components that do not fit each other, are refused at once."""

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from diffusers.models import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny

from cogview3.config import UserError
from cogview3.diffusion.schedule import base_timesteps
from cogview3.errors import one_line

AUTOENCODERS = (AutoencoderKL, AsymmetricAutoencoderKL, AutoencoderTiny)
_KINDS = {
    "unet": "a UNet2DConditionModel",
    "relay_unet": "a UNet2DConditionModel",
    "text_encoder": "a T5EncoderModel",
    "tokenizer": "a T5Tokenizer",
}
_OF_SCHEDULERS = ("scale_model_input", "add_noise", "init_noise_sigma")


def check_components(components: Mapping[str, Any]) -> None:
    """Refuse components that a pipeline cannot draw with; any of them may be None.

    Raises UserError naming the component, its class or size, and what will do.
    """
    check_networks(components)
    if components.get("scheduler") is not None:
        check_base_scheduler(components["scheduler"])
    check_relay_scheduler(components.get("relay_scheduler"))


def check_networks(components: Mapping[str, Any]) -> None:
    """The checks of `check_components` but for schedulers. Raises UserError."""
    vae, text_encoder = components.get("vae"), components.get("text_encoder")
    for name, what in _KINDS.items():
        given = components.get(name)
        if given is not None and not hasattr(given, "tokenize" if name == "tokenizer" else "config"):
            raise UserError(f"{name} is a {type(given).__name__}: give {what}")
    if vae is not None and not isinstance(getattr(vae, "_orig_mod", vae), AUTOENCODERS):
        known = " or ".join(kind.__name__ for kind in AUTOENCODERS)
        raise UserError(f"vae is a {type(vae).__name__}: give {known}")
    scaling = {} if vae is None else {name: vae.config.get(name) for name in ("scaling_factor", "shift_factor")}
    for name, value in scaling.items():
        given = value is not None or name == "scaling_factor"
        if given and (not isinstance(value, Real) or not math.isfinite(value)):
            raise UserError(f"the vae's {name} is {value!r}: give it a finite number, as its config.json should have")
    unets = {name: components[name] for name in ("unet", "relay_unet") if components.get(name) is not None}
    channels = vae.config["latent_channels"] if vae is not None else None
    width = getattr(getattr(text_encoder, "config", None), "d_model", None)
    for name, unet in unets.items():
        taken, given, text = (unet.config[key] for key in ("in_channels", "out_channels", "cross_attention_dim"))
        if channels is not None and {taken, given} != {channels}:
            raise UserError(
                f"{name} takes {taken} and gives {given} channels, but the VAE's latents "
                f"have {channels}: give networks that belong together"
            )
        if width is not None and text != width:
            raise UserError(
                f"{name} takes text {text} wide, but the text encoder gives {width}: give networks that belong together"
            )


def check_relay_scheduler(scheduler: Any) -> None:
    """Refuse a relay scheduler of another kind; None will do. Raises UserError."""
    if scheduler is not None and not hasattr(scheduler, "add_start_noise"):
        raise UserError(f"relay_scheduler is a {type(scheduler).__name__}: give a RelayScheduler")


def check_base_scheduler(scheduler: Any, tried: bool = True) -> None:
    """Refuse a scheduler that cannot take the published steps, `tried` on a copy of it. Raises UserError."""
    kind, fix = type(scheduler).__name__, "give another, such as EulerDiscreteScheduler"
    if isinstance(scheduler, type):
        raise UserError(f"scheduler is the class {scheduler.__name__}: give one of it, such as by from_config")
    if "timesteps" not in inspect.signature(getattr(scheduler, "set_timesteps", lambda: None)).parameters:
        raise UserError(f"scheduler {kind} takes no list of timesteps: {fix}")
    if scheduler.config.get("num_train_timesteps") is None:
        raise UserError(f"scheduler {kind} has no num_train_timesteps: {fix}")
    if missing := [name for name in _OF_SCHEDULERS if not hasattr(scheduler, name)]:
        raise UserError(f"scheduler {kind} has no {missing[0]}: {fix}")
    if not tried:
        return
    try:  # schedulers of other kinds fail in all of these ways, deep inside
        copy = type(scheduler).from_config(scheduler.config)
        copy.set_timesteps(timesteps=base_timesteps(2, copy.config["num_train_timesteps"]))
        sample, time = torch.zeros(1, 4, 2, 2), copy.timesteps[0]
        copy.step(copy.scale_model_input(sample, time), time, sample)
    except Exception as error:
        raise UserError(f"scheduler {kind} cannot take the base's step list ({one_line(error)}): {fix}") from None
