"""Draws batches, stage by stage: the code that runs in the one thread that owns the pipelines."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.data.latents import decode
from cogview3.serving.orders import Canceled, Drawn, Job, Order, Partial, Settings

FIRST, LAST = 0.2, 0.8
"""Shares of the work after which the first unfinished picture is due, and by which the last one is."""


class Pace:
    """Spreads `count` unfinished pictures over the work of a picture, one after a step, none after the last."""

    def __init__(self, count: int) -> None:
        self._count, self._shown = count, 0
        self._costs: list[float] = []

    def begin(self, steps: int, relays: int, relay_steps: int) -> None:
        """Tell, once at least before `due`, of how many steps the work is, `relay_steps` of them in each relay.

        A relay's step costs four times as much as one of the stage before.
        """
        if self._costs or not self._count:
            return
        base = steps - relays * relay_steps
        costs = [1.0] * base + [4.0**relay for relay in range(1, relays + 1) for _ in range(relay_steps)]
        total = sum(costs)
        self._costs = [sum(costs[: step + 1]) / total for step in range(len(costs))]

    def due(self, done: int) -> int | None:
        """The number of the unfinished picture, from 0 on, that is due after `done` steps; None where none is."""
        left = self._count - self._shown
        if left <= 0 or done >= len(self._costs):
            return None
        share = FIRST + (LAST - FIRST) * self._shown / self._count
        if self._costs[done - 1] < share and len(self._costs) - done > left:
            return None
        self._shown += 1
        return self._shown - 1


@dataclass
class Work:
    """What a job keeps between its stages.

    Attributes:
        generator: of its noise, as far as it was drawn from.
        embeds: of the prompt and of the negative one, (1, L, C); None without a prompt.
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
    """Advances jobs by a stage."""

    def __init__(self, pipelines: Mapping[str, CogView3Pipeline]) -> None:
        self._pipelines = pipelines

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
        drawer, start = self._pipelines[settings.mode], time.perf_counter()
        if stage == 0:
            _begin(drawer, jobs)
        last = stage == settings.stages - 1
        pipe: CogView3Pipeline | CogView3UpscalePipeline = drawer
        arguments = _texts(jobs)
        if settings.enlarge or stage:
            pipe = CogView3UpscalePipeline.from_pipe(drawer)
            pipe.set_progress_bar_config(disable=True)
            arguments |= _enlargement(settings, jobs)
        else:
            arguments |= _drawing(settings, jobs)
        alive = list(jobs)
        images = pipe(
            **arguments,
            generator=[job.work.generator for job in jobs],
            output_type="pil" if last else "latent",
            callback_on_step_end=_watcher(alive, stage),
            callback_on_step_end_tensor_inputs=["pred_original_sample"],
        ).images
        seconds = time.perf_counter() - start
        outcomes: dict[Job, Drawn | BaseException | None] = {job: Canceled() for job in jobs}
        for job, image in zip(alive, images if last else images.split(1), strict=True):
            job.work.seconds += seconds
            job.work.latents = None if last else image
            outcomes[job] = Drawn(image, job.work.seconds, job.work.tokens) if last else None
        return list(outcomes.values())


def _begin(pipe: CogView3Pipeline, jobs: Sequence[Job]) -> None:
    """Encode the prompts together, and set up what each job keeps."""
    orders = [job.order for job in jobs]
    embeds: list[Any] = [None] * len(jobs)
    if orders[0].settings.prompted:
        negative = [order.negative_prompt or "" for order in orders] if orders[0].settings.negative else None
        pairs = pipe.encode_prompt([order.prompt or "" for order in orders], negative)
        embeds = list(zip(*(each.split(1) for each in pairs), strict=True))
    for job, pair in zip(jobs, embeds, strict=True):
        job.work = Work(
            torch.Generator().manual_seed(job.order.seed), pair, _tokens(pipe, job.order), Pace(job.order.partials)
        )


def _watcher(jobs: list[Job], stage: int) -> Callable[..., dict[str, Any]]:
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
                picture = to_picture(pipe, tensors["pred_original_sample"][row : row + 1])
                loop = job.result.get_loop()
                loop.call_soon_threadsafe(job.events.put_nowait, Partial(number, picture))
        if len(rows) == len(jobs):
            return {}
        jobs[:] = [jobs[row] for row in rows]
        return {"rows": rows}

    return watch


def _drawing(settings: Settings, jobs: Sequence[Job]) -> dict[str, Any]:
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


def _enlargement(settings: Settings, jobs: Sequence[Job]) -> dict[str, Any]:
    """Arguments that make `CogView3UpscalePipeline` enlarge given pictures, or do one relay of those begun."""
    arguments: dict[str, Any] = {"num_inference_steps": settings.relay_steps}
    if settings.prompted:
        arguments["guidance_scale"] = settings.relay_guidance
    if settings.enlarge:
        return arguments | {"image": [job.order.image for job in jobs], "num_relays": settings.relays}
    return arguments | {"latents": torch.cat([job.work.latents for job in jobs])}


def _texts(jobs: Sequence[Job]) -> dict[str, Any]:
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


@torch.no_grad()
def to_picture(pipe: Any, latents: torch.Tensor) -> Image:
    """Scaled latents, (1, C, h, w), to a picture: by the tiny decoder where the pipeline has one, else by its VAE."""
    light = pipe.light_decoder
    pixels = decode(pipe.vae, latents) if light is None else light(latents.to(light.dtype))
    pictures: list[Image] = pipe.image_processor.postprocess(pixels.float().nan_to_num(), output_type="pil")
    return pictures[0]
