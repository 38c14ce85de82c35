"""Every picture is right for its prompt and seed, whoever else is drawn with it; one that fails fails alone."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.errors import UserError
from cogview3.serving.orders import Busy, Canceled, Closing, Job, Partial
from tests.serving.conftest import order, pixels, run, running

Alone = Callable[..., torch.Tensor]


def assert_same(image: Image.Image, expected: torch.Tensor) -> None:
    """Each 8-bit value within 1: sums in batches are ordered otherwise."""
    assert (pixels(image) - expected).abs().max() <= 1


class Spy:
    """Pipelines that note the batches, and may do something at a call."""

    def __init__(self, pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        self.threads: set[str] = set()
        self.before: Callable[[str, dict], None] = lambda name, arguments: None
        for kind in (CogView3Pipeline, CogView3UpscalePipeline):
            monkeypatch.setattr(kind, "__call__", self._wrap(kind.__name__, kind.__call__))
        self.pipelines = {"2+2": pipe}

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def spied(pipe: Any, *given: Any, **arguments: Any) -> Any:
            self.calls.append((name, len(arguments["generator"])))
            self.threads.add(threading.current_thread().name)
            self.before(name, arguments)
            return call(pipe, *given, **arguments)

        return spied


@pytest.fixture
def spy(pipe: CogView3Pipeline, monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(pipe, monkeypatch)


def test_like_pictures_are_drawn_together_and_come_out_as_if_alone(alone: Alone, spy: Spy) -> None:
    prompts = ["a red star", "a blue circle", "star", "a blue star"]
    expected = [alone(prompt, seed) for seed, prompt in enumerate(prompts)]

    async def serve() -> list[Image.Image]:
        async with running(spy.pipelines, batch=4) as engine:
            jobs = [job for seed, prompt in enumerate(prompts) for job in engine.submit([order(prompt, seed)], "me")]
            return [(await job.result).image for job in jobs]

    spy_calls = spy.calls
    spy_calls.clear()
    for image, own in zip(run(serve()), expected, strict=True):
        assert_same(image, own)
    assert spy_calls == [("CogView3Pipeline", 4), ("CogView3UpscalePipeline", 4)]
    assert len({name for name in spy.threads if name.startswith("painter")}) == 1


def test_two_relays_negative_prompts_and_whole_drawing_are_as_the_pipeline_has_them(
    pipe: CogView3Pipeline, alone: Alone
) -> None:
    generator = [torch.Generator().manual_seed(3)]
    twice = pixels(pipe("star", generator=generator, width=128, height=128, num_relays=2).images[0])
    negative = alone("star", 1, negative_prompt="a blue circle")

    async def serve() -> list[Image.Image]:
        async with running({"2+2": pipe}) as engine:
            asked = [
                order("star", 3, width=128, height=128, relays=2),
                order("star", 1, negative=True, negative_prompt="a blue circle"),
                order("star", 1, negative=True, negative_prompt="a blue circle", whole=True),
            ]
            return [(await job.result).image for job in engine.submit(asked, "me")]

    first, second, third = run(serve())
    assert_same(first, twice)
    assert_same(second, negative)
    assert_same(third, negative)


def test_pictures_are_enlarged_and_begun_from(pipe: CogView3Pipeline, alone: Alone) -> None:
    given = Image.effect_noise((24, 20), 60).convert("RGB")
    upscale = CogView3UpscalePipeline.from_pipe(pipe)
    upscale.set_progress_bar_config(disable=True)
    bare = pixels(upscale(given, generator=[torch.Generator().manual_seed(5)]).images[0])
    begun = alone("star", 2, image=given, strength=0.5)
    size = {"width": 24, "height": 20, "given": (24, 20)}

    async def serve() -> list[Image.Image]:
        async with running({"2+2": pipe}) as engine:
            asked = [
                order(None, 5, image=given, enlarge=True, steps=0, prompted=False, **size),
                order("star", 2, image=given, strength=0.5, given=(24, 20)),
            ]
            return [(await job.result).image for job in engine.submit(asked, "me")]

    enlarged, redrawn = run(serve())
    assert enlarged.size == (48, 40)
    assert_same(enlarged, bare)
    assert_same(redrawn, begun)


def test_a_picture_that_fails_fails_alone(alone: Alone, spy: Spy) -> None:
    expected = alone("star", 1)

    def refuse(name: str, arguments: dict) -> None:
        seeds = [generator.initial_seed() for generator in arguments["generator"]]
        if 13 in seeds and name == "CogView3UpscalePipeline":
            raise FloatingPointError("seed 13 overflows")

    spy.before = refuse

    async def serve() -> list[Any]:
        async with running(spy.pipelines) as engine:
            jobs = engine.submit([order("star", 13), order("star", 1)], "me")
            return await asyncio.gather(*(job.result for job in jobs), return_exceptions=True)

    failed, drawn = run(serve())
    assert isinstance(failed, FloatingPointError)
    assert_same(drawn.image, expected)


def test_a_canceled_picture_stops_within_a_step_and_the_next_one_is_drawn(alone: Alone, spy: Spy) -> None:
    expected = alone("star", 1)
    begun, seen = threading.Event(), []

    async def serve() -> tuple[Any, Any]:
        async with running(spy.pipelines, batch=1) as engine:
            first, second = engine.submit([order("star", 0, steps=900), order("star", 1)], "me")
            spy.before = lambda name, arguments: seen.append(name)
            while first.done < 3:
                await asyncio.sleep(0.005)
            engine.cancel([first])
            at_cancel = first.done
            drawn = await second.result
            begun.set()
            assert first.done <= at_cancel + 1
            return await asyncio.gather(first.result, return_exceptions=True), drawn

    (stopped,), drawn = run(serve())
    assert isinstance(stopped, Canceled)
    assert_same(drawn.image, expected)
    assert seen.count("CogView3UpscalePipeline") == 1  # the canceled one had none


def test_a_canceled_picture_is_dropped_from_its_batch_and_the_rest_is_not_disturbed(
    alone: Alone, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone("star", 1, num_inference_steps=40)
    rows, forward = [], UNet2DConditionModel.forward

    def counted(unet: Any, sample: torch.Tensor, *given: Any, **named: Any) -> Any:
        rows.append(len(sample))
        return forward(unet, sample, *given, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)

    async def serve() -> tuple[Job, int, Image.Image]:
        async with running(spy.pipelines) as engine:
            first, second = engine.submit([order("star", 0, steps=40), order("star", 1, steps=40)], "me")
            while first.done < 2:
                await asyncio.sleep(0.001)
            engine.cancel([first])
            at_cancel = first.done
            with pytest.raises(Canceled):
                await first.result
            return first, at_cancel, (await second.result).image

    first, at_cancel, image = run(serve())
    assert_same(image, expected)
    assert rows.count(4) <= at_cancel + 1  # both pictures, each with and without its prompt
    assert rows.count(2) == 42 - rows.count(4)
    assert spy.calls[-1] == ("CogView3UpscalePipeline", 1)
    assert first.stage == 0


def test_partials_are_what_the_model_takes_for_the_finished_picture(pipe: CogView3Pipeline) -> None:
    async def serve(partials: int) -> tuple[list[Partial], Image.Image]:
        async with running({"2+2": pipe}) as engine:
            (job,) = engine.submit([order("star", 4, partials=partials)], "me")
            shown = []
            while (event := await job.events.get()) is not None:
                shown.append(event)
            assert job.done == job.steps == 4
            return shown, (await job.result).image

    shown, _ = run(serve(3))
    assert [each.index for each in shown] == [0, 1, 2]
    assert [each.image.size for each in shown] == [(32, 32), (32, 32), (64, 64)]
    base = pipe("star", generator=[torch.Generator().manual_seed(4)], width=32, height=32, num_relays=0).images[0]
    assert_same(shown[1].image, pixels(base))  # after the base's last step nothing is left to be taken away
    assert run(serve(0))[0] == []


def test_base_and_relay_of_different_batches_take_turns(spy: Spy) -> None:
    async def serve() -> None:
        async with running(spy.pipelines, batch=1) as engine:
            jobs = engine.submit([order("star", seed, width=128, height=128, relays=2) for seed in range(2)], "me")
            await asyncio.gather(*(job.result for job in jobs))

    run(serve())
    names = [name.removeprefix("CogView3") for name, _ in spy.calls]
    assert names == ["Pipeline", "UpscalePipeline", "Pipeline", *["UpscalePipeline"] * 3]


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_back(pipe: CogView3Pipeline) -> None:
    async def serve() -> None:
        async with running({"2+2": pipe}, waiting=3, waiting_each=2) as engine:
            engine.submit([order(seed=seed) for seed in range(2)], "me")
            with pytest.raises(Busy, match="2 pictures") as mine:
                engine.submit([order()], "me")
            assert 1 <= mine.value.seconds <= 60
            with pytest.raises(Busy, match="3 pictures"):
                engine.submit([order(), order()], "you")
            assert engine.waiting == 2

    run(serve())


def test_closing_finishes_what_was_begun_and_refuses_the_rest(alone: Alone, spy: Spy) -> None:
    expected = alone("star", 0)

    async def serve() -> list[Any]:
        async with running(spy.pipelines, batch=1) as engine:
            first, second = engine.submit([order("star", 0), order("star", 1)], "me")
            while engine.position(first) is not None:
                await asyncio.sleep(0)
            engine.stop_taking()
            assert not engine.ready
            with pytest.raises(Closing):
                engine.submit([order()], "me")
            return await asyncio.gather(first.result, second.result, return_exceptions=True)

    first, second = run(serve())
    assert_same(first.image, expected)
    assert isinstance(second, Closing)


def test_wrong_settings_are_the_pipelines_error(pipe: CogView3Pipeline) -> None:
    async def serve() -> None:
        async with running({"2+2": pipe}) as engine:
            (job,) = engine.submit([order(width=60)], "me")
            with pytest.raises(UserError, match="30"):
                await job.result

    run(serve())


def test_the_drawing_thread_has_as_many_threads_as_it_is_told(spy: Spy) -> None:
    seen = []
    spy.before = lambda name, arguments: seen.append(torch.get_num_threads())

    async def serve() -> None:
        async with running(spy.pipelines, threads=1) as engine:
            await engine.submit([order()], "me")[0].result

    run(serve())
    assert set(seen) == {1}
