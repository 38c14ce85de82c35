"""The teacher: its network and its sampler, and the student that starts as its copy or as another student."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from cogview3.config import Distill, DistillRelay, UserError, distillation_of
from cogview3.diffusion import schedule
from cogview3.distillation import step
from cogview3.distillation.step import Levels
from cogview3.generation.scheduler import RelayScheduler
from cogview3.models.int8 import load_unet
from cogview3.models.unet import same_entry, takes_guidance
from cogview3.references import find, weights_folder


def load_teacher(settings: Distill, is_relay: bool, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """The teacher's UNet, for inference, in `dtype`, whatever it is stored in. Raises UserError where there is none."""
    folder = weights_folder(settings.teacher, "relay_unet" if is_relay else "unet")
    network = load_unet(folder, dtype)
    network.requires_grad_(False)
    return network


def check_distilled(settings: Distill, is_relay: bool) -> None:
    """Refuse, with a UserError, a teacher that is distilled itself for other steps or a narrower range of guidance."""
    recipe = distillation_of(settings.teacher)
    if recipe is not None:
        if (recipe.kind == "distill_relay") != is_relay:
            kind, wanted = recipe.kind, "relay" if is_relay else "base"
            raise UserError(f"distill.teacher {settings.teacher!r} is a run of kind {kind}; give one of a {wanted}")
        trained, known = recipe.distill.steps[-1], recipe.distill.guidance_range
    else:  # a model, or a run of training
        weights_folder(settings.teacher, "relay_unet" if is_relay else "unet")
        mode = find(settings.teacher).settings()[1]
        if not mode.distilled:
            return
        trained, known = mode.relay_steps if is_relay else mode.steps, mode.guidance_range or (0.0, math.inf)
    if trained != settings.steps[0]:
        raise UserError(
            f"distill.steps begins with {settings.steps[0]}, but the teacher {settings.teacher!r} is distilled for "
            f"{trained} steps; begin with {trained}"
        )
    (low, high), (lowest, highest) = settings.guidance_range, known
    if not lowest <= low <= high <= highest:
        raise UserError(
            f"distill.guidance_range is {low:g} to {high:g}, but the teacher {settings.teacher!r} is distilled for "
            f"{lowest:g} to {highest:g}; keep within that"
        )


def student_of(teacher: UNet2DConditionModel, guidance_width: int) -> UNet2DConditionModel:
    """A copy of the teacher, which takes w as a condition.

    Where the teacher did not, w's embedding (`models.unet.guidance_condition`, `guidance_width` wide) enters through
    a bias-free layer, `time_embedding.cond_proj`, that is zero at first: the student begins as the teacher, whatever w.
    diffusers would begin with random numbers.
    """
    config = _plain(teacher.config)
    new = not takes_guidance(teacher)
    if new:
        config["time_cond_proj_dim"] = guidance_width
    student: UNet2DConditionModel = UNet2DConditionModel(**config)
    state = teacher.state_dict()
    if new:
        name = "time_embedding.cond_proj.weight"
        state[name] = torch.zeros_like(student.state_dict()[name])
    student.load_state_dict(state)
    return student


def check_start(settings: Distill, start: str, is_relay: bool) -> None:
    """Refuse, with a UserError, a `recipe.start_from` that is no student of such a teacher: see `begin_as`."""
    component, scheduler = ("relay_unet", "relay_scheduler") if is_relay else ("unet", "scheduler")
    teacher, student = (
        _plain(UNet2DConditionModel.load_config(folder))
        for folder in (weights_folder(settings.teacher, component), weights_folder(start, component))
    )
    for config in (teacher, student):
        config.pop("sample_size", None)  # a default of pipelines, no part of the network
    width = student.pop("time_cond_proj_dim", None)
    if width is None:
        raise UserError(
            f"recipe.start_from {start!r} is not distilled; give a run of distill or MODEL@MODE, or leave it out: by "
            "default a student starts as its teacher"
        )
    wanted = teacher.pop("time_cond_proj_dim", None) or settings.guidance_width
    if width != wanted:
        raise UserError(
            f"recipe.start_from {start!r} embeds guidance {width} wide, not {wanted}; "
            f"set distill.guidance_width to {width}, and give a teacher that is not distilled or as wide"
        )
    different = sorted(key for key in teacher.keys() & student.keys() if not same_entry(teacher[key], student[key]))
    if different:
        key = different[0]
        raise UserError(
            f"recipe.start_from {start!r} is another network than the teacher {settings.teacher!r}: {key} is "
            f"{student[key]}, not {teacher[key]}; give a student of a network like this"
        )
    kinds = [
        EulerDiscreteScheduler.load_config(weights_folder(reference, scheduler)).get("prediction_type", "epsilon")
        for reference in (settings.teacher, start)
    ]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"recipe.start_from {start!r} predicts {kinds[1]}, but the teacher {settings.teacher!r} {kinds[0]}; give a "
            "student of a network like this"
        )


def begin_as(student: UNet2DConditionModel, start: str, is_relay: bool) -> None:
    """Give the student the weights of another one, `recipe.start_from`, which `check_start` has let pass."""
    folder = weights_folder(start, "relay_unet" if is_relay else "unet")
    student.load_state_dict(load_unet(folder).state_dict())


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration without the entries for where it came from."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def teacher_scheduler(settings: Distill, is_relay: bool) -> EulerDiscreteScheduler | RelayScheduler:
    """The teacher's scheduler, with the recipe's relay start and blur estimate, and steps of first order.

    The student's are of first order, too: a step of `RelayScheduler` with `solver_order` 2 depends on the one before.

    Raises UserError where there is none, or the teacher was trained for another start.
    """
    folder = weights_folder(settings.teacher, "relay_scheduler" if is_relay else "scheduler")
    if not isinstance(settings, DistillRelay):
        base: EulerDiscreteScheduler = EulerDiscreteScheduler.from_pretrained(folder)
        return base
    scheduler = RelayScheduler.from_pretrained(folder)
    assert isinstance(scheduler, RelayScheduler)
    trained = scheduler.config["relay_start"]
    start = settings.relay_start or trained
    if start != trained:
        raise UserError(
            f"distill.relay_start is {start}, but the teacher {settings.teacher!r} was trained for {trained}; "
            "leave it out, or train the teacher for it first with fine_tune_images"
        )
    estimate = settings.blur_estimate or scheduler.config["blur_estimate"]
    return scheduler.changed(blur_estimate=estimate, solver_order=1)


def sampler_levels(scheduler: EulerDiscreteScheduler | RelayScheduler, num_steps: int) -> Levels:
    """The steps that a pipeline with this scheduler makes. Raises UserError where so many steps are not possible."""
    config: Any = scheduler.config
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    sigmas = schedule.make_sigmas(*(config[name] for name in names))
    try:
        if isinstance(scheduler, RelayScheduler):
            return step.relay_levels(num_steps, config["relay_start"], sigmas, config["blur"], config["power"])
        return step.base_levels(num_steps, sigmas)
    except ValueError as error:
        raise UserError(f"distill.steps: {error}") from None
