"""The denoising loop that all stages share: guided predictions, steps, callbacks."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from cogview3.config import UserError
from cogview3.generation.attention import constant_text, project_text
from cogview3.generation.calls import StepCallback
from cogview3.generation.compiling import compile_networks
from cogview3.generation.inputs import check_floats
from cogview3.generation.masks import Keep, Masked
from cogview3.generation.tiles import blend_tiles
from cogview3.models.unet import guidance_condition, size_conditions, takes_guidance


@dataclass
class Run:
    """What one call carries through all of its stages.

    Attributes:
        device: where the networks run; diffusers takes milliseconds to find out, so it is asked once.
        generator: one for all pictures, or one for each.
        callback: called after every step.
        callback_tensors: names of the tensors that it is given.
        prompt_embeds: (B, L, C).
        negative_prompt_embeds: alike; None where there is no prompt to be guided towards.
        step: steps done so far, over all stages.
        masked: the given pictures of which a part is kept.
        text: whether the running stage is guided, and what its UNet is then given as text; None where that is to be
            computed again.
        rows: the pictures to continue with after a step, where the callback dropped some.
    """

    device: torch.device
    generator: torch.Generator | list[torch.Generator] | None
    callback: StepCallback | None
    callback_tensors: Sequence[str]
    prompt_embeds: torch.Tensor = field(init=False)
    negative_prompt_embeds: torch.Tensor | None = field(init=False)
    step: int = 0
    masked: Masked | None = None
    text: tuple[bool, torch.Tensor] | None = None
    rows: list[int] | None = None


@dataclass(frozen=True)
class Stage:
    """One stage, ready to denoise: `scheduler` has its time steps.

    Attributes:
        dtype: in which the UNet computes.
        guidance: the pipeline's attribute that holds the guidance scale; read at every step, since callbacks
            may change it.
        labels: the UNet's class labels, (1, 6 * width), or None.
        step_arguments: further arguments of the scheduler's step.
        tile: side of the tiles that the UNet sees, in latents; None where it sees everything.
        keep: puts back, after each step, what a mask keeps.
    """

    name: str
    unet: UNet2DConditionModel
    dtype: torch.dtype
    scheduler: Any
    guidance: str
    labels: torch.Tensor | None
    step_arguments: dict[str, Any]
    tile: int | None = None
    keep: Keep | None = None


class DenoisingMixin(DiffusionPipeline):
    """For pipelines with a `vae_scale_factor`, whose guidance scales are attributes.

    Attributes:
        compiled: whether the networks' blocks are compiled, see `compile_networks`.
    """

    compiled: bool = False
    vae_scale_factor: int
    _interrupt: bool
    _stage_name: str | None

    def compile_networks(self, graphs: bool = False, dynamic: bool | None = True, backend: str = "inductor") -> None:
        """Compile UNets and VAE block by block, at their first use; see `generation.compiling.compile_networks`."""
        compile_networks(self, graphs, dynamic, backend)
        self.compiled = True

    def _noise(self, shape: Sequence[int], run: Run) -> torch.Tensor:
        """Standard normal numbers from the run's generators, in float32: the same in every precision."""
        noise: torch.Tensor = randn_tensor(
            tuple(shape), generator=run.generator, device=run.device, dtype=torch.float32
        )
        return noise

    def _stage(
        self,
        run: Run,
        name: str,
        unet: UNet2DConditionModel,
        scheduler: Any,
        guidance: str,
        size: tuple[int, int],
        tile_size: int | None = None,
        keep: Keep | None = None,
        **arguments: Any,
    ) -> Stage:
        """A stage that draws `size` (height, width) pixels; drops arguments that the scheduler lacks.

        In tiles, each is drawn as a picture of its own size.
        """
        tile = None
        if tile_size is not None and max(size) > tile_size:
            tile = tile_size // self.vae_scale_factor
            size = min(size[0], tile_size), min(size[1], tile_size)
        known = inspect.signature(scheduler.step).parameters
        arguments = {key: value for key, value in arguments.items() if key in known}
        labels, dtype = None, unet.dtype
        if unet.config["class_embed_type"] is not None:
            width = unet.config["projection_class_embeddings_input_dim"] // 6
            labels = size_conditions(size, (0, 0), size, width).to(run.device, dtype)
        return Stage(name, unet, dtype, scheduler, guidance, labels, arguments, tile, keep)

    def _denoise(self, stage: Stage, latents: torch.Tensor, run: Run) -> torch.Tensor:
        """Run all steps of a stage on latents (B, C, h, w), float32, and return them."""
        scheduler, run.text, self._stage_name = stage.scheduler, None, stage.name
        with self.progress_bar(total=len(scheduler.timesteps)) as bar, constant_text(stage.unet) as fewer_texts:
            bar.set_description(stage.name)
            for index, timestep in enumerate(scheduler.timesteps):
                if self._interrupt:
                    break
                output = self._predict(stage, latents, timestep, run, fewer_texts)
                stepped = scheduler.step(output, timestep, latents, **stage.step_arguments, return_dict=False)
                latents = stepped[0] if stage.keep is None else stage.keep(stepped[0], index)
                latents = self._call_back(timestep, latents, stepped[-1], run)
                if run.rows is not None:
                    stage, latents = drop(stage, latents, run)
                bar.update()
        if not latents.isfinite().all():
            raise FloatingPointError(
                f"the {stage.name} stage produced non-finite numbers in {stage.dtype}: "
                "use bfloat16 or float32, or a lower guidance"
            )
        return latents

    def _predict(
        self, stage: Stage, latents: torch.Tensor, timestep: torch.Tensor, run: Run, fewer_texts: bool
    ) -> torch.Tensor:
        """The UNet's output in float32, guided: uncond + w (cond - uncond).

        That is guidance of D as well: at fixed z_t, D is affine in the output for every prediction type.
        """
        unet, scale = stage.unet, float(getattr(self, stage.guidance))
        sample = stage.scheduler.scale_model_input(latents, timestep).to(stage.dtype)
        guided = scale > 1 and not takes_guidance(unet) and run.negative_prompt_embeds is not None
        text = None if run.text is None or run.text[0] != guided else run.text[1]
        if text is None:
            text = _text(run, guided, fewer_texts).to(stage.dtype)
            run.text = guided, text
            if self.compiled:
                project_text(unet, text)
        rows = len(sample) * (2 if guided else 1)
        condition = None
        if takes_guidance(unet):
            condition = guidance_condition(scale, unet.config["time_cond_proj_dim"]).to(sample).expand(rows, -1)
        labels = None if stage.labels is None else stage.labels.expand(rows, -1)

        def predict(part: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = unet(
                torch.cat([part, part]) if guided else part,
                timestep,
                encoder_hidden_states=text,
                timestep_cond=condition,
                class_labels=labels,
                return_dict=False,
            )[0].float()
            if not guided:
                return output
            unconditional, conditional = output.chunk(2)
            return unconditional + scale * (conditional - unconditional)

        return blend_tiles(predict, sample, stage.tile)

    def _call_back(
        self, timestep: torch.Tensor, latents: torch.Tensor, predicted: torch.Tensor, run: Run
    ) -> torch.Tensor:
        """Tell the callback of a step, and take over the tensors that it returns.

        `predicted` is the scheduler's estimate of the finished latents; that of a scheduler without one, the latents.
        """
        step, run.step = run.step, run.step + 1
        if run.callback is None:
            return latents
        tensors = {
            "latents": latents,
            "pred_original_sample": predicted,
            "prompt_embeds": run.prompt_embeds,
            "negative_prompt_embeds": run.negative_prompt_embeds,
        }
        given = {name: tensors[name] for name in run.callback_tensors}
        changed = run.callback(self, step, timestep, given) or {}
        _check_changed(changed, latents)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if changed.get(name) is not None:
                _check_embeds(name, changed[name], run.prompt_embeds)
            setattr(run, name, _kept(name, tensors[name], changed.get(name, tensors[name]), len(latents)))
        if {"prompt_embeds", "negative_prompt_embeds"} & (given.keys() | changed.keys()):
            run.text = None  # it may have been changed in place, too
        run.rows = None if "rows" not in changed else check_rows(changed["rows"], len(latents))
        returned: torch.Tensor = changed.get("latents", latents)
        return returned


def _check_changed(changed: Any, latents: torch.Tensor) -> None:
    """Refuse what a callback gave, where it is no dictionary, or its tensors are none that can be gone on with."""
    if not isinstance(changed, Mapping):
        raise UserError(f"the callback gave a {type(changed).__name__}: give a dictionary of tensors, or nothing")
    for name, value in changed.items():
        known = torch.Tensor | None if name == "negative_prompt_embeds" else torch.Tensor
        if name in ("latents", "prompt_embeds", "negative_prompt_embeds") and not isinstance(value, known):
            raise UserError(f"the callback gave {name} as a {type(value).__name__}: give a tensor")
    given = changed.get("latents", latents)
    if given.shape != latents.shape:
        raise UserError(f"the callback gave latents {tuple(given.shape)}: give {tuple(latents.shape)}, as they were")
    check_floats("the callback's latents", given)


def _check_embeds(name: str, given: torch.Tensor, own: torch.Tensor) -> None:
    """Refuse embeddings of a callback that no UNet takes, but for their number; `own` are the prompts' so far."""
    if given.ndim != 3 or given.shape[2] != own.shape[2]:
        shape = f"(pictures, tokens, {own.shape[2]})"
        raise UserError(f"the callback gave {name} {tuple(given.shape)}: give a tensor of shape {shape}")
    check_floats(f"the callback's {name}", given)


def _kept(name: str, own: torch.Tensor | None, given: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    """Embeddings that a callback gave, one for each picture.

    Diffusers' callbacks that end guidance cut the unconditional half off as `prompt_embeds[-1:]`. There is none in
    ours, so what they give, the last text alone, leaves them as they are.
    """
    if given is None or len(given) == rows:
        return given
    if own is not None and torch.equal(given, own[-1:]):
        return own
    raise UserError(f"the callback gave {len(given)} {name} for {rows} pictures: give one for each")


def _text(run: Run, guided: bool, fewer_texts: bool) -> torch.Tensor:
    """Texts for a UNet, those of the unconditional branch first, and left out where they are zeros and may be.

    Always a new tensor, for that is how `TextAttention` knows another text.
    """
    negative = run.negative_prompt_embeds if guided else None
    if negative is None or (fewer_texts and not negative.any()):
        return run.prompt_embeds.clone()
    return torch.cat([negative, run.prompt_embeds])


def drop(stage: Stage, latents: torch.Tensor, run: Run) -> tuple[Stage, torch.Tensor]:
    """Go on with the pictures `run.rows` alone, in whatever the stage, its scheduler and the run hold for each picture.

    Latents are (B, C, h, w).
    """
    assert run.rows is not None
    keep = partial(keep_rows, rows=run.rows, count=len(latents))
    for holder, names in (
        (stage.scheduler, list(vars(stage.scheduler))),  # what it remembers of earlier steps
        (run, ("generator", "prompt_embeds", "negative_prompt_embeds", "masked")),
    ):
        for name in names:
            held = getattr(holder, name)
            if (kept := keep(held)) is not held:
                setattr(holder, name, kept)
    run.rows = run.text = None
    arguments = {name: keep(value) for name, value in stage.step_arguments.items()}
    return replace(stage, step_arguments=arguments, keep=keep(stage.keep)), keep(latents)


def keep_rows(value: Any, rows: Sequence[int], count: int) -> Any:
    """What belongs to the pictures `rows` of a batch of `count`, in whatever holds something for each picture.

    Args:
        value: a tensor (count, ...) of three dimensions or more, a list of generators, a list of such tensors, `Masked`
            pictures, or a `partial` with such arguments. Anything else is given back as it is.
        rows: indices of the pictures, from 0 on.
        count: pictures so far.
    """
    keep = partial(keep_rows, rows=rows, count=count)
    if isinstance(value, torch.Tensor):
        return value[list(rows)] if value.ndim > 2 and len(value) == count else value
    if isinstance(value, list):
        per_picture = len(value) == count and all(isinstance(each, torch.Generator) for each in value)
        return [value[row] for row in rows] if per_picture else [keep(each) for each in value]
    if isinstance(value, Masked):
        return Masked(keep(value.pixels), keep(value.mask))
    if isinstance(value, partial):
        arguments = {name: keep(each) for name, each in value.keywords.items()}
        return partial(value.func, *map(keep, value.args), **arguments)
    return value


def check_rows(rows: Any, count: int) -> list[int]:
    """The pictures that a callback wants to continue with, of `count`. Raises UserError for what names none of them."""
    named = list(rows) if isinstance(rows, list | tuple | range) else []
    whole = all(isinstance(row, int | np.integer) and not isinstance(row, bool) for row in named)
    if not named or not whole or sorted(set(named)) != named or not set(named) <= set(range(count)):
        raise UserError(f"the callback gave rows {rows!r}: give the rising indices of some of the {count} pictures")
    return named
