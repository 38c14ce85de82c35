"""Sampling modes: `sampling.json` at the root of a model folder says how each of its modes is sampled."""

import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from cogview3.checkpoints import write_text
from cogview3.config import UserError

SAMPLING_FILE = "sampling.json"
_MOST_BYTES = 2**22


def _inside_folder(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"{path!r} is not a folder inside the model folder")
    return path


Subfolder = Annotated[str, AfterValidator(_inside_folder)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Mode(BaseModel):
    """How one mode is sampled. The defaults are the paper's undistilled comparison.

    Attributes:
        steps: base steps.
        relay_steps: steps of each relay stage.
        guidance: guidance scale of the base, 1 meaning none.
        relay_guidance: guidance scale of the relay; None means the base's.
        relay_start: T_r; None leaves the relay scheduler's.
        blur_estimate: what z_0^t is inside the relay's step; None leaves the relay scheduler's.
        relay_power: spacing of the relay's steps; None leaves the relay scheduler's.
        relay_order: order of the relay's solver, 1 or 2; None leaves the relay scheduler's.
        sampler: of the base, "euler" or "dpm++"; None takes the model's scheduler.
        light: whether the model's latent enlarger and tiny decoder stand in for its VAE.
        unet: folder of this mode's own base UNet inside the model folder; None means `unet`.
        relay_unet: folder of its own relay UNet; None means `relay_unet`.
        distilled: trained for exactly these step counts, which are then refused otherwise.
        guidance_range: lowest and highest guidance that a distilled mode was trained for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Steps = 50
    relay_steps: Steps = 10
    guidance: Guidance = 7.5
    relay_guidance: Guidance | None = None
    relay_start: Steps | None = None
    blur_estimate: Literal["recompute", "carry"] | None = None
    relay_power: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    relay_order: Literal[1, 2] | None = None
    sampler: Literal["euler", "dpm++"] | None = None
    light: bool | None = None
    unet: Subfolder | None = None
    relay_unet: Subfolder | None = None
    distilled: bool = False
    guidance_range: tuple[Guidance, Guidance] | None = None

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        if self.guidance_range and self.guidance_range[0] > self.guidance_range[1]:
            raise ValueError(f"guidance_range {self.guidance_range} is not [lowest, highest]")
        return self

    @property
    def relay_guidance_scale(self) -> float:
        """Guidance scale of the relay: its own, or the base's."""
        return self.guidance if self.relay_guidance is None else self.relay_guidance

    def settle(self, overrides: "Overrides", name: str | None = None) -> Self:
        """How a call is sampled: this mode, with what the call asks for in place of its own entries.

        Of the result `relay_guidance` is always a number.

        Args:
            overrides: what the call asks for.
            name: the mode's name, for the error.

        Raises:
            UserError: of a distilled mode another step count, sampler or relay start than it was trained for, or a
                guidance outside its `guidance_range`.
        """
        given = {key: value for key, value in asdict(overrides).items() if key != "relays" and value is not None}
        if self.distilled:
            self._check_trained(given, name)
        return self.model_copy(update={"relay_guidance": self.relay_guidance_scale} | given)

    def _check_trained(self, given: dict[str, Any], name: str | None) -> None:
        trained = {key: getattr(self, key) for key in ("steps", "relay_steps", "relay_start")}
        trained["sampler"] = self.sampler or "euler"
        for key, own in trained.items():
            if own is not None and given.get(key, own) != own:
                raise UserError(f"{key} is {given[key]}, but mode {name!r} is distilled for {own}: leave it out")
        low, high = self.guidance_range or (0.0, math.inf)
        for key in ("guidance", "relay_guidance"):
            if key in given and not low <= given[key] <= high:
                raise UserError(f"{key} is {given[key]}, but mode {name!r} is distilled for {low:g} to {high:g}")


@dataclass(frozen=True)
class Overrides:
    """What a call asks for, where its mode is not to decide; None leaves it to the mode.

    Attributes:
        steps, relay_steps, guidance, relay_guidance, relay_start, sampler, light: as in `Mode`.
        relays: how often the side is doubled; None means once where there is a relay.
    """

    steps: int | None = None
    relay_steps: int | None = None
    guidance: float | None = None
    relay_guidance: float | None = None
    relays: int | None = None
    sampler: str | None = None
    light: bool | None = None
    relay_start: int | None = None

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `CogView3Pipeline`."""
        return {_ARGUMENTS.get(key, key): value for key, value in asdict(self).items()}


_ARGUMENTS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "relay_guidance": "relay_guidance_scale",
    "relays": "num_relays",
}


NO_MODE = Mode()
"""How models without `sampling.json` are sampled."""


class Sampling(BaseModel):
    """The whole of `sampling.json`.

    Attributes:
        format: version of the file's layout, 1.
        default: name of the mode that is loaded where none is asked for.
        modes: all modes by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    default: str
    modes: dict[str, Mode]

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default not in self.modes:
            raise ValueError(f"default {self.default!r} is none of the modes {', '.join(self.modes)}")
        return self


def mode_steps(name: str) -> tuple[int, int]:
    """Base steps and relay steps that a mode's name tells, such as "4+1".

    Raises UserError where the name is not of that form.
    """
    match = re.fullmatch(r"(\d{1,4})\+(\d{1,4})", name, re.ASCII)
    if not match:
        raise UserError(f"--mode {name!r} does not name its steps; write base steps + relay steps, as in 4+1")
    return int(match[1]), int(match[2])


def distilled_mode(name: str, **settings: Any) -> Mode:
    """The entry of a distilled mode with UNets of its own in `modes/<name>`, its step counts from its name, as "4+1".

    `settings` are further attributes of `Mode`. Raises UserError where the name is not of that form.
    """
    steps, relay_steps = mode_steps(name)
    own: dict[str, Any] = {"steps": steps, "relay_steps": relay_steps, "distilled": True}
    own |= {"unet": f"modes/{name}/unet", "relay_unet": f"modes/{name}/relay_unet", "sampler": None}
    return Mode(**settings | own | {"relay_order": None})


def read_sampling(path: str | os.PathLike[str]) -> Sampling:
    """Read and check a `sampling.json`.

    Raises UserError where it is unreadable, no JSON, or wrong in a way that the message names.
    """
    try:
        if os.stat(path).st_size > _MOST_BYTES:
            raise UserError(f"{path}: more than {_MOST_BYTES} bytes are not read; fix the file")
        return Sampling.model_validate_json(Path(path).read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place + ': ' if place else ''}{first['msg']}; fix the file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; fix or delete the file") from None


def write_sampling(sampling: Sampling, folder: str | os.PathLike[str]) -> None:
    """Write `sampling.json` into a model folder, whole or not at all. Unset entries are left out."""
    write_text(Path(folder) / SAMPLING_FILE, sampling.model_dump_json(exclude_none=True, indent=2) + "\n")


def pick_mode(sampling: Sampling | None, name: str | None, source: str) -> tuple[str | None, Mode]:
    """The mode of that name, or the default one for None, with its name; `source` is the model, for the error.

    Without a table, `sampling.json`, there are no modes, and the defaults of `Mode` hold. Raises UserError where there
    is no such mode, listing those that there are.
    """
    if sampling is None:
        if name is not None:
            raise UserError(f"model {source} has no modes ({SAMPLING_FILE} is missing): leave out mode {name!r}")
        return None, NO_MODE
    name = sampling.default if name is None else name
    if name not in sampling.modes:
        raise UserError(f"model {source} has no mode {name!r}: choose from {', '.join(sampling.modes)}")
    return name, sampling.modes[name]
