"""Draws batches, stage by stage: all that runs in the one thread that owns the pipelines."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.serving.orders import Canceled, Drawn, Job, Order, Settings
from cogview3.serving.previews import Pace, to_picture

Tell = Callable[[Job, int, Image], None]
"""Takes a job's unfinished picture and its number; called in the painter's thread."""


@dataclass
class Work:
    """What a job keeps between its stages.

    Attributes:
        generator: of its noise, as far as it was drawn from.
        embeds: of the prompt and of the negative one, (1, L, C); None without a prompt.
        tokens: of the prompt.
        pace: when its unfinished pictures are due.
        latents: after a stage, (1, C, h, w); None before the first.
        seconds: spent on it so far.
    """

    generator: torch.Generator
    embeds: tuple[torch.Tensor, torch.Tensor] | None
    tokens: int
    pace: Pace
    latents: torch.Tensor | None = None
    seconds: float = 0.0


class Painter:
    """Advances jobs by a stage.

    Args:
        pipelines: a pipeline by mode, loaded where it is not yet.
        tell: takes unfinished pictures.
    """

    def __init__(self, pipelines: Mapping[str, CogView3Pipeline], tell: Tell) -> None:
        self._pipelines, self._tell = pipelines, tell

    def advance(self, jobs: Sequence[Job]) -> list[Drawn | BaseException | None]:
        """Do the next stage of jobs of one kind.

        A job that makes the others fail is found by doing each alone.

        Returns:
            For each its picture; None where stages are left; or why there is none.
        """
        states = [None if job.work is None else job.work.generator.get_state() for job in jobs]
        try:
            return self._stage(jobs)
        except Canceled as error:
            return [error] * len(jobs)
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        for job, state in zip(jobs, states, strict=True):
            if state is None:
                job.work = None
            else:
                job.work.generator.set_state(state)
        return [outcome for job in jobs for outcome in self.advance([job])]

    def _stage(self, jobs: Sequence[Job]) -> list[Drawn | BaseException | None]:
        settings, stage = jobs[0].kind
        pipe, start = self._pipelines[settings.mode], time.perf_counter()
        if stage == 0:
            self._begin(pipe, jobs)
        last = stage == settings.stages - 1
        call = _enlargement if settings.enlarge or stage else _drawing
        if call is _enlargement:
            pipe = CogView3UpscalePipeline.from_pipe(pipe)
            pipe.set_progress_bar_config(disable=True)
        alive = list(jobs)
        images = pipe(
            **call(settings, jobs, stage),
            **_texts(jobs),
            generator=[job.work.generator for job in jobs],
            output_type="pil" if last else "latent",
            callback_on_step_end=self._watcher(alive, stage),
            callback_on_step_end_tensor_inputs=["pred_original_sample"],
        ).images
        seconds = time.perf_counter() - start
        outcomes: dict[Job, Drawn | BaseException | None] = {job: Canceled() for job in jobs}
        for job, image in zip(alive, images if last else images.split(1), strict=True):
            job.work.seconds += seconds
            job.work.latents = None if last else image
            outcomes[job] = Drawn(image, job.work.seconds, job.work.tokens) if last else None
        return list(outcomes.values())

    def _begin(self, pipe: CogView3Pipeline, jobs: Sequence[Job]) -> None:
        """Encode the prompts together, and set up what each job keeps."""
        orders, embeds = [job.order for job in jobs], [None] * len(jobs)
        if orders[0].settings.prompted:
            negative = [order.negative_prompt for order in orders] if orders[0].settings.negative else None
            pairs = pipe.encode_prompt([order.prompt for order in orders], negative)
            embeds = list(zip(*(each.split(1) for each in pairs), strict=True))
        for job, pair in zip(jobs, embeds, strict=True):
            job.work = Work(
                torch.Generator().manual_seed(job.order.seed), pair, _tokens(pipe, job.order), Pace(job.order.partials)
            )

    def _watcher(self, jobs: list[Job], stage: int) -> Callable[..., dict[str, Any]]:
        """What the pipeline calls after every step: drops pictures that nobody waits for, and shows how far others are.

        What is dropped is taken out of `jobs`.
        """
        begun = {job: job.done for job in jobs}

        def watch(pipe: Any, step: int, _: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
            rows = [row for row, job in enumerate(jobs) if not job.canceled]
            if not rows:
                raise Canceled
            for row in rows:
                job = jobs[row]
                settings, pace = job.order.settings, job.work.pace
                if stage == 0:
                    left = 0 if settings.stages == 1 else settings.relays * settings.relay_steps
                    job.steps = pipe.num_timesteps + left
                    pace.begin(job.steps, settings.relays, settings.relay_steps)
                job.done = begun[job] + step + 1
                number = pace.due(job.done)
                if number is not None:
                    self._tell(job, number, to_picture(pipe, tensors["pred_original_sample"][row : row + 1]))
            if len(rows) == len(jobs):
                return {}
            jobs[:] = [jobs[row] for row in rows]
            return {"rows": rows}

        return watch


def _drawing(settings: Settings, jobs: Sequence[Job], stage: int) -> dict[str, Any]:
    """Arguments that make `CogView3Pipeline` draw the base, or the whole picture where that is not queued by stages."""
    relays = settings.relays if settings.whole else 0
    scale = 2 ** (settings.relays - relays)
    arguments: dict[str, Any] = {
        "width": settings.width // scale,
        "height": settings.height // scale,
        "num_inference_steps": settings.steps,
        "num_relays": relays,
        "guidance_scale": settings.guidance,
    }
    if relays:
        arguments |= {"relay_steps": settings.relay_steps, "relay_guidance_scale": settings.relay_guidance}
    if settings.strength is not None:
        arguments |= {"image": [job.order.image for job in jobs], "strength": settings.strength}
    if settings.masked:
        arguments["mask_image"] = [job.order.mask for job in jobs]
    return arguments


def _enlargement(settings: Settings, jobs: Sequence[Job], stage: int) -> dict[str, Any]:
    """Arguments that make `CogView3UpscalePipeline` enlarge given pictures, or do one relay of those begun."""
    arguments: dict[str, Any] = {"num_inference_steps": settings.relay_steps}
    if settings.prompted:
        arguments["guidance_scale"] = settings.relay_guidance
    if settings.enlarge:
        return arguments | {"image": [job.order.image for job in jobs], "num_relays": settings.relays}
    return arguments | {"latents": torch.cat([job.work.latents for job in jobs])}


def _texts(jobs: Sequence[Job]) -> dict[str, torch.Tensor]:
    """Embeddings of all jobs, those of negative prompts only where there are some."""
    pairs = [job.work.embeds for job in jobs]
    if pairs[0] is None:
        return {}
    names = ("prompt_embeds", "negative_prompt_embeds")[: 2 if jobs[0].order.settings.negative else 1]
    return {name: torch.cat(each) for name, each in zip(names, zip(*pairs, strict=True), strict=False)}


def _tokens(pipe: CogView3Pipeline, order: Order) -> int:
    """Length of the prompt as the text encoder sees it."""
    if pipe.tokenizer is None or order.prompt is None:
        return 0
    return len(pipe.tokenizer(order.prompt, truncation=True)["input_ids"])
