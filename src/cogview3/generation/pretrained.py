"""Pipelines that load one mode of a model folder, and save it again."""

import inspect
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from safetensors import safe_open
from transformers import PreTrainedModel

from cogview3.config import UserError
from cogview3.errors import as_user_error
from cogview3.generation.loading import EXPANDER_FOLDER, check_component, check_model_folder, fetch_model
from cogview3.generation.scheduler import RelayScheduler
from cogview3.models.int8 import SCALE, load_unet
from cogview3.models.modes import NO_MODE, SAMPLING_FILE, Mode, Overrides, Sampling, read_sampling, write_sampling
from cogview3.models.trial import try_network
from cogview3.models.unet import takes_guidance
from cogview3.prompts.text_models import check_vocabulary, load_tokenizer
from cogview3.references import find

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Arguments of `from_pretrained` that say how the hub is asked."""

_RELAY_SETTINGS = {
    "relay_start": "relay_start",
    "blur_estimate": "blur_estimate",
    "relay_power": "power",
    "relay_order": "solver_order",
}
"""Entries of a mode, and what the relay scheduler's configuration calls them."""

_CARRIED = "cogview3_mode"
"""Attribute of distilled UNets: name and entry of the mode that they are for, so that no pipeline loses it."""

_MORE = {True: re.compile(r"^(decoder|lm_head)\."), False: re.compile(r"\.(query|key|value|proj_attn)\.\w+$")}
"""Tensors that files of text encoders, and those of other networks, may hold besides."""

_log = logging.get_logger(__name__)


class ModePipeline(DiffusionPipeline):
    """A pipeline whose model folder may hold several modes, described by its `sampling.json`.

    Attributes:
        mode_name: name of the loaded mode, None for a model without `sampling.json`.
        mode: its step counts and guidance, used where a call leaves them unset.
    """

    mode_name: str | None = None
    mode: Mode = NO_MODE
    relay_scheduler: RelayScheduler | None
    _asked_mode: str | None = None
    _required_components: ClassVar[tuple[str, ...]] = ()
    _skipped_components: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], mode: str | None = None, **kwargs: Any
    ) -> Self:
        """Load a model, with the UNets and settings of one of its modes.

        Args:
            pretrained_model_name_or_path: a bundled model's name ("scenes"), else a folder ("./scenes" is
                one), else a hub name; each perhaps with a mode, "scenes@4+1" (see `cogview3.references`).
            mode: a mode of the model's `sampling.json`, its default one if left out. Only that mode's UNets
                are read.
            kwargs: as for any diffusers pipeline. `dtype` is float32 by default, whatever the weights are
                stored in; float16 is for the UNets alone, since T5 and the VAE overflow in it: they get bfloat16,
                unless a dictionary says otherwise. Only safetensors are read. A `relay_scheduler` of the caller's
                is left as it is; a distilled mode is for its own.

        Raises:
            UserError: an unknown model or mode, a foreign or damaged folder, no number format, or what a mode with
                UNets of its own does not go together with.
        """
        found = find(pretrained_model_name_or_path, mode)
        source = found.source
        hub_options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        given_dtype = kwargs.pop("torch_dtype", None)
        dtype = _number_formats(given_dtype if kwargs.get("dtype") is None else kwargs["dtype"])
        kwargs["dtype"] = dtype
        kwargs.setdefault("use_safetensors", True)
        for name in cls._skipped_components:
            kwargs.setdefault(name, None)
        mode_name, entry = found.settings(**hub_options if found.on_hub else {})
        if found.on_hub:
            source = fetch_model(found, kwargs, **hub_options)
        kwargs["mode"] = entry
        own = _own_unets(entry, kwargs)
        cls._check_folder(source, entry, kwargs)
        if entry.distilled and kwargs.get("relay_scheduler") is not None:
            raise UserError(f"relay_scheduler: mode {mode_name!r} is distilled for its own; leave it out")
        if own and (option := next((key for key in ("quantization_config", "device_map") if kwargs.get(key)), None)):
            raise UserError(
                f"{option} does not apply to the own UNets of mode {mode_name!r}; leave it out, and use "
                "to(DEVICE) or cogview3.generation.placement.quantize_network"
            )
        kwargs.update(load_mode_unets(source, entry, own, dtype, kwargs.get("variant")))
        if "tokenizer" not in kwargs and (Path(source) / "tokenizer").is_dir():  # encoders and tokenizers are optional
            kwargs["tokenizer"] = load_tokenizer(Path(source) / "tokenizer")
        with _loading(source):
            pipeline = super().from_pretrained(source, **kwargs)
        if not {"device_map", "quantization_config"} & kwargs.keys():
            for name, module in pipeline.components.items():
                if name not in kwargs and isinstance(module, torch.nn.Module):
                    check_weights_complete(source, name, module)
                    check_weights_used(Path(source) / name, module)
                    try_network(module, Path(source) / name)
        tokenizer, text_encoder = (getattr(pipeline, name, None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is not None and text_encoder is not None:
            check_vocabulary(tokenizer, text_encoder, source)
        pipeline._use_mode(mode_name, entry, kwargs.get("relay_scheduler") is None)
        return pipeline

    def register_to_config(self, **entries: Any) -> None:
        """As diffusers' own. `DiffusionPipeline.from_pretrained` ends with it, and so a mode comes from the folder."""
        super().register_to_config(**entries)
        if entries.get("_name_or_path") and (self._asked_mode is not None or self.mode is NO_MODE):
            self._mode_from(str(entries["_name_or_path"]))

    def _begin_mode(self, mode: Mode | str | None) -> None:
        """Take the mode that a new pipeline is given, or else the one that a distilled UNet was loaded in."""
        self._asked_mode = mode if isinstance(mode, str) else None
        if isinstance(mode, Mode):
            self.mode = mode
        elif mode is not None and not isinstance(mode, str):
            raise UserError(f"mode is a {type(mode).__name__}: give its name, or a Mode of cogview3.models.modes")
        distilled = [unet for unet in self._unets().values() if takes_guidance(unet)]
        carried = next((found for unet in distilled if (found := getattr(unet, _CARRIED, None))), None)
        if mode is None and carried is not None:
            self._use_mode(*carried)

    def _mode_from(self, folder: str) -> None:
        """Take the mode that was asked for, or the default one, of a folder that plain diffusers has loaded."""
        asked, self._asked_mode = self._asked_mode, None
        if asked is None and not os.path.exists(os.path.join(folder, SAMPLING_FILE)):
            return
        name, entry = find(Path(folder), asked).settings()
        dtypes = {part: unet.dtype for part, unet in self._unets().items() if getattr(entry, part)}
        self.register_modules(**load_mode_unets(folder, entry, dtypes, dtypes))
        self._use_mode(name, entry)

    def _unets(self) -> dict[str, UNet2DConditionModel]:
        found = {name: getattr(self, name, None) for name in ("unet", "relay_unet")}
        return {name: unet for name, unet in found.items() if unet is not None}

    @classmethod
    def check_model(cls, model: str, mode: str | None = None) -> None:
        """Refuse what `from_pretrained` would, without loading it: reads configurations and headers of weights.

        A name on the hub is left alone.

        Raises UserError for an unknown model or mode, a foreign or damaged folder.
        """
        found = find(model, mode)
        if not found.on_hub:
            cls._check_folder(found.source, found.settings()[1], cls._skipped_components)

    @classmethod
    def _check_folder(cls, source: str, mode: Mode, given: Collection[str]) -> None:
        own = _own_unets(mode, given)
        check_model_folder(source, cls._required_components, {*given, *own})
        for name in own:
            check_component(Path(source) / getattr(mode, name))

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as any diffusers pipeline; the loaded mode is kept as the folder's only one.

        Other modes, and an expander, that the model's folder holds are no components: a warning names what is left out.

        Raises UserError where adapters are loaded, or weights are quantized, which such a folder cannot hold, and for
        what is no folder.
        """
        if not isinstance(save_directory, str | os.PathLike) or not os.fspath(save_directory):
            raise UserError(f"save_pretrained is given {save_directory!r}: give a folder")
        if os.path.isfile(save_directory):
            raise UserError(f"{os.fspath(save_directory)} is a file: give a folder")
        for name, unet in self._unets().items():
            if getattr(unet, "peft_config", None):
                raise UserError(
                    f"{name} has an adapter ({', '.join(unet.peft_config)}), which no model folder holds: call "
                    "fuse_lora() and unload_lora_weights() to merge it, or unload_lora_weights() to leave it out"
                )
            if any(type(each.data) is not torch.Tensor for each in unet.parameters()):
                raise UserError(f"{name} is quantized: save the model before it is quantized")
        self._warn_of_loss(Path(save_directory))
        if self.mode_name is None:  # a table of what was there before would not fit
            (Path(save_directory) / SAMPLING_FILE).unlink(missing_ok=True)
        else:
            entry = self.mode.model_copy(update={"unet": None, "relay_unet": None} | self._relay_entries())
            os.makedirs(save_directory, exist_ok=True)
            write_sampling(Sampling(default=self.mode_name, modes={self.mode_name: entry}), save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _warn_of_loss(self, target: Path) -> None:
        """Name the modes and the expander, of the model's folder and of the one written to, that are not saved."""
        for folder in dict.fromkeys(path for path in (self.name_or_path, target) if path and os.path.isdir(path)):
            table = Path(folder) / SAMPLING_FILE
            modes = read_sampling(table).modes if self.mode_name is not None and table.is_file() else {}
            lost = [f"mode {name}" for name in modes if name != self.mode_name]
            lost += ["the expander"] * (Path(folder) / EXPANDER_FOLDER).is_dir()
            if lost:
                _log.warning(f"{target} holds the loaded mode alone, without {', '.join(lost)} of {folder}")

    def settle(self, overrides: Overrides) -> Mode:
        """How a call is sampled, by what it asks for and else by the mode; see `Mode.settle`."""
        if self._asked_mode is not None:
            raise UserError(f"mode is {self._asked_mode!r}, and these components are of no folder: give a Mode")
        unknown = self.mode is NO_MODE and overrides.steps is None and overrides.relay_steps is None
        if unknown and any(map(takes_guidance, self._unets().values())):
            raise UserError("the UNets are distilled, and nothing says for how many steps: give mode=Mode(...)")
        return self.mode.settle(overrides, self.mode_name)

    @classmethod
    def from_pipe(cls, pipeline: "ModePipeline", **kwargs: Any) -> Self:
        """A pipeline of this class around another one's components, in the same mode and with the same switches.

        Unlike diffusers' it casts nothing unless asked to: the two pipelines share their networks.

        Args:
            pipeline: one of ours.
            kwargs: components in place of the other's; `dtype`, which all networks are cast to, in both pipelines.

        Raises:
            UserError: no pipeline of ours, no such component, or none where this one cannot do without.
        """
        if not isinstance(pipeline, ModePipeline):
            raise UserError(f"from_pipe is given a {type(pipeline).__name__}: give a loaded pipeline of cogview3")
        dtypes = [_number_format(given) for name in ("dtype", "torch_dtype") if (given := kwargs.pop(name, None))]
        known = inspect.signature(cls.__init__).parameters
        if unknown := [name for name in kwargs if name not in known]:
            raise UserError(f"a {cls.__name__} has no {unknown[0]}: choose from {', '.join(list(known)[1:])}")
        components = {name: each for name, each in pipeline.components.items() if name in known} | kwargs
        if missing := [name for name in cls._required_components if components.get(name) is None]:
            raise UserError(
                f"a {cls.__name__} needs {', '.join(missing)}, which the {type(pipeline).__name__} has not; give it "
                "as an argument, or load the model by from_pretrained"
            )
        new = cls(**{"mode": pipeline.mode} | components)
        new.register_to_config(_name_or_path=pipeline.name_or_path)
        if dtypes:
            new.to(dtype=dtypes[0])
        shared = ["compiled", "vae_tile_size", "prompt_cache", "prompt_expander"]
        for name in shared + ["mode_name"] * ("mode" not in kwargs):
            if hasattr(pipeline, name):
                setattr(new, name, getattr(pipeline, name))
        return new

    def _use_mode(self, name: str | None, mode: Mode, into_scheduler: bool = True) -> None:
        """Take over a mode's settings, those of the relay scheduler `into_scheduler`'s configuration.

        Raises UserError for a distilled mode whose UNets do not take guidance.
        """
        for part, guidance in (("unet", mode.guidance), ("relay_unet", mode.relay_guidance_scale)):
            unet = self._unets().get(part)
            if unet is None or not mode.distilled:
                continue
            if guidance > 1 and not takes_guidance(unet):
                raise UserError(
                    f"{self.name_or_path}: mode {name} is marked distilled in sampling.json, but its {part} does not "
                    "take guidance as a condition: correct the entry, or give the mode a distilled network"
                )
            setattr(unet, _CARRIED, (name, mode))
        self.mode_name, self.mode = name, mode
        changes = {own: value for key, own in _RELAY_SETTINGS.items() if (value := getattr(mode, key)) is not None}
        if self.relay_scheduler is not None and changes and into_scheduler:
            self.relay_scheduler = self.relay_scheduler.changed(**changes)

    def _relay_entries(self) -> dict[str, Any]:
        """What the relay scheduler does now, by the entries that the mode has for it."""
        if self.relay_scheduler is None:
            return {}
        config = self.relay_scheduler.config
        return {key: config[own] for key, own in _RELAY_SETTINGS.items() if getattr(self.mode, key) is not None}


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """One line, which names the model, for whatever is made of a folder that is damaged."""
    try:
        with as_user_error(f"model {source} cannot be loaded", "copy or export the model again"):
            yield
    except UserError as error:
        if source in str(error):
            raise
        raise UserError(f"model {source} cannot be loaded: {error}") from None


def _number_formats(given: Any) -> Any:
    """A dtype, or diffusers' dictionary of them, of what `from_pretrained` was given; names of dtypes will do.

    float16 is for the UNets alone: the others get bfloat16.
    """
    if isinstance(given, dict):
        return {name: _number_format(each) for name, each in given.items()}
    dtype = _number_format(given)
    if dtype == torch.float16:
        return {"text_encoder": torch.bfloat16, "vae": torch.bfloat16, "default": torch.float16}
    return dtype


def _number_format(given: Any) -> torch.dtype:
    dtype = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if dtype is None and given is None:
        return torch.float32
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype is {given!r}: give torch.float32, torch.bfloat16 or torch.float16")
    return dtype


def _own_unets(mode: Mode, given: Collection[str]) -> list[str]:
    """The UNets that a mode has of its own, without those that the caller brings along."""
    return [name for name in ("unet", "relay_unet") if getattr(mode, name) and name not in given]


def check_weights_complete(source: str, name: str, module: torch.nn.Module) -> None:
    """Refuse weights that lacked tensors, which the libraries only warn of; `source` is for the error.

    diffusers leaves a missing tensor on the meta device. transformers draws it at random; there the names in
    the files that it was loaded from are compared, a tied tensor counting as present.

    Raises UserError naming the component and the first missing tensors, or where there are no files to compare.
    """
    state = module.state_dict()
    missing = [key for key, tensor in state.items() if tensor.is_meta]
    if isinstance(module, PreTrainedModel):
        files = sorted(Path(str(module.name_or_path)).glob("*.safetensors"))
        if not files:
            raise UserError(f"{source}: {name} has no *.safetensors to check: copy or export the model again")
        saved: set[str] = set()
        for file in files:
            with safe_open(file, "pt") as tensors:
                saved.update(tensors.keys())
        storages = {tensor.data_ptr() for key, tensor in state.items() if key in saved}
        missing += [key for key, tensor in state.items() if tensor.data_ptr() not in storages]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(f"{source}: {name} lacks {len(missing)} tensors ({shown}): copy or export the model again")


def check_weights_used(folder: Path, module: torch.nn.Module) -> None:
    """Refuse weights that a network has no place for, of which the libraries only warn: its config.json is wrong.

    A text encoder's files may hold a decoder as well, and old ones name a VAE's attention otherwise.

    Raises UserError naming the folder and the first of these tensors.
    """
    known, more = module.state_dict().keys(), _MORE[isinstance(module, PreTrainedModel)]
    unused: list[str] = []
    names_of_weights = ("model*.safetensors", "diffusion_pytorch_model*.safetensors")  # an adapter may lie beside them
    for file in sorted(file for name in names_of_weights for file in folder.glob(name)):
        with safe_open(file, "pt") as tensors:
            names = {name.removesuffix(SCALE) for name in tensors.keys()}  # noqa: SIM118, no dictionary
        unused += sorted(name for name in names - known if not more.search(name))
    if unused:
        raise UserError(
            f"{folder} holds {len(unused)} tensors that its config.json has no place for ({unused[0]}, ...): the two "
            "do not belong together, copy or export the model again"
        )


def load_mode_unets(
    source: str, mode: Mode, names: Collection[str], dtype: Any, variant: str | None = None
) -> dict[str, UNet2DConditionModel]:
    """UNets of a model folder by component: those of "unet" and "relay_unet", `names`, that a mode has of its own.

    `dtype` is a torch dtype, or a dictionary of them by component with "default"; it and `variant` as in diffusers.

    Raises UserError where a UNet is missing or damaged.
    """
    unets = {}
    for name in names:
        subfolder = getattr(mode, name)
        check_component(Path(source) / subfolder)
        chosen = dtype
        if isinstance(dtype, dict):
            chosen = dtype.get(name) or dtype.get("default") or torch.float32
        with _loading(source):
            unets[name] = load_unet(Path(source) / subfolder, chosen, variant)
        check_weights_complete(source, subfolder, unets[name])
        check_weights_used(Path(source) / subfolder, unets[name])
    return unets
