"""What holds for every pipeline, in the way that diffusers' common tests ask it of theirs."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import PipelineCallback
from PIL import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError
from cogview3.models.modes import Mode, Sampling, write_sampling

Seeded = Callable[[int], torch.Generator]
Components = Callable[..., dict[str, Any]]


@dataclass
class Case:
    """One pipeline class and how to call it.

    Attributes:
        pipeline: the class.
        call: arguments of a quick call.
        steps: steps of that call over all stages.
        stages: names of its stages.
        unet: the component that draws first.
    """

    pipeline: type[DiffusionPipeline]
    call: dict[str, Any]
    steps: int
    stages: tuple[str, ...]
    unet: str

    def build(self, components: dict[str, Any]) -> Any:
        pipe = self.pipeline(**components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(self, pictures: int = 1, **changes: Any) -> dict[str, Any]:
        """A call for several pictures, each with its prompt, image and generator."""
        prompts = ["a red star", "a blue circle left of a star", "star"][:pictures]
        inputs = {**self.call, "prompt": prompts, "output_type": "pt"}
        inputs["generator"] = [torch.Generator().manual_seed(seed) for seed in range(pictures)]
        if "image" in inputs:
            inputs["image"] = [inputs["image"].roll(i, dims=-1) for i in range(pictures)]
        return {**inputs, **changes}

    def pick(self, inputs: dict[str, Any], i: int) -> dict[str, Any]:
        """The i-th picture's part of a call."""
        own = ("prompt", "generator", "image")
        return {key: value[i : i + 1] if key in own else value for key, value in inputs.items()}


CASES = {
    "base": Case(
        CogView3Pipeline,
        {"num_inference_steps": 2, "relay_steps": 2, "guidance_scale": 3.0},
        4,
        ("base", "relay 1"),
        "unet",
    ),
    "upscale": Case(
        CogView3UpscalePipeline,
        {
            "image": torch.rand(3, 22, 30, generator=torch.Generator().manual_seed(9)),
            "num_inference_steps": 3,
            "guidance_scale": 3.0,
        },
        3,
        ("relay 1",),
        "relay_unet",
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the pipelines."""
    return CASES[request.param]


_SHARED: dict[type[DiffusionPipeline], Any] = {}
_EXPECTED: dict[type[DiffusionPipeline], torch.Tensor] = {}


@pytest.fixture
def pipe(case: Case, make_components: Components) -> Any:
    """The pipeline, built once a session: to be called, not to be changed."""
    if case.pipeline not in _SHARED:
        _SHARED[case.pipeline] = case.build(make_components())
    return _SHARED[case.pipeline]


@pytest.fixture
def expected(case: Case, pipe: Any) -> torch.Tensor:
    """What it draws at `case.inputs()`."""
    if case.pipeline not in _EXPECTED:
        _EXPECTED[case.pipeline] = pipe(**case.inputs()).images
    return _EXPECTED[case.pipeline].clone()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def count_rows(unet: torch.nn.Module) -> list[int]:
    """Batch sizes of a UNet's calls from now on."""
    rows: list[int] = []
    unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


# Signatures


def test_call_takes_what_every_pipeline_takes(case: Case) -> None:
    parameters = inspect.signature(case.pipeline.__call__).parameters
    expected = {
        "prompt",
        "negative_prompt",
        "num_inference_steps",
        "guidance_scale",
        "num_images_per_prompt",
        "generator",
        "prompt_embeds",
        "negative_prompt_embeds",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    }
    assert expected <= parameters.keys()


def test_encode_prompt_returns_arguments_of_call(case: Case) -> None:
    source = textwrap.dedent(inspect.getsource(case.pipeline.encode_prompt))
    returned = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return))
    names = [element.id for element in returned.value.elts]
    assert names == ["prompt_embeds", "negative_prompt_embeds"]
    assert set(names) <= inspect.signature(case.pipeline.__call__).parameters.keys()


def test_encode_prompt_works_without_the_other_components(case: Case, components: dict[str, Any]) -> None:
    text = {key: value if key in ("tokenizer", "text_encoder") else None for key, value in components.items()}
    rest = {key: None if key in ("tokenizer", "text_encoder") else value for key, value in components.items()}
    embeds, negative = case.build(text).encode_prompt("a red star", negative_prompt="blue")
    inputs = case.inputs()
    expected = case.build(components)(**inputs | {"negative_prompt": "blue"}).images
    inputs = case.inputs(prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert torch.equal(case.build(rest)(**inputs).images, expected)


def test_components_rebuild_the_pipeline(case: Case, components: dict[str, Any]) -> None:
    pipe = case.build(components)
    assert pipe.components == {"latent_enlarger": None, "light_decoder": None} | components
    again = case.build(pipe.components)
    assert torch.equal(pipe(**case.inputs()).images, again(**case.inputs()).images)


def test_pipelines_share_components(case: Case, components: dict[str, Any]) -> None:
    other = next(each for each in CASES.values() if each is not case)
    shared = case.pipeline.from_pipe(other.build(components))
    assert shared.relay_unet is components["relay_unet"]
    shared.set_progress_bar_config(disable=True)
    expected = case.build(components)(**case.inputs()).images
    assert torch.equal(shared(**case.inputs()).images, expected)


# Outputs


def test_output_types_show_the_same_picture(case: Case, pipe: Any) -> None:
    kinds = {kind: pipe(**case.inputs(2, output_type=kind)).images for kind in ("pil", "np", "pt")}
    assert all(isinstance(image, Image.Image) for image in kinds["pil"])
    assert kinds["pt"].shape[:2] == (2, 3)
    np.testing.assert_array_equal(kinds["np"], kinds["pt"].permute(0, 2, 3, 1).numpy())
    eight_bit = (kinds["np"] * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in kinds["pil"]]), eight_bit)
    assert kinds["pt"].std() > 0.001  # a picture, not a flat field


def test_latents_decode_to_the_picture(case: Case, components: dict[str, Any]) -> None:
    pipe = case.build(components)
    latents = pipe(**case.inputs(output_type="latent")).images
    picture = pipe(**case.inputs()).images
    decoded = components["vae"].decode(latents / 0.5, return_dict=False)[0].detach()
    height, width = picture.shape[2:]
    decoded = (decoded / 2 + 0.5).clamp(0, 1)[:, :, :height, :width]
    torch.testing.assert_close(picture, decoded, rtol=0, atol=1e-6)  # float32 rounding near 1


def test_unknown_output_type_is_refused(case: Case, pipe: Any) -> None:
    with pytest.raises(UserError, match="output_type is 'jpeg': choose from pil"):
        pipe(**case.inputs(output_type="jpeg"))


def test_tuple_equals_dictionary(case: Case, pipe: Any, expected: torch.Tensor) -> None:
    output = pipe(**case.inputs())
    assert torch.equal(pipe(**case.inputs(return_dict=False))[0], expected)
    assert torch.equal(output.images, expected)
    assert torch.equal(output["images"], output.images)


def test_same_seed_same_picture_other_seed_another(case: Case, pipe: Any, seeded: Seeded) -> None:
    first, again = (pipe(**case.inputs(generator=seeded(4))).images for _ in range(2))
    other = pipe(**case.inputs(generator=seeded(5))).images
    unseeded = pipe(**case.inputs(generator=None)).images
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, unseeded)


# Batches


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_batch_equals_its_pictures_one_by_one(case: Case, pipe: Any, eta: float) -> None:
    batch = pipe(**case.inputs(3, eta=eta)).images
    singles = [pipe(**case.pick(case.inputs(3, eta=eta), i)).images for i in range(3)]
    assert batch.shape[0] == 3
    # float32: other batch sizes sum in another order
    assert relative_error(batch, torch.cat(singles)) < 1e-4


@pytest.mark.parametrize("prompts", [1, 2])
def test_several_pictures_a_prompt(case: Case, pipe: Any, seeded: Seeded, prompts: int) -> None:
    """Those of a prompt lie side by side."""
    inputs = case.inputs(prompts, num_images_per_prompt=2)
    inputs["generator"] = tuple(seeded(seed) for seed in range(2 * prompts))
    images = pipe(**inputs).images
    assert len(images) == 2 * prompts
    single = case.pick(case.inputs(prompts), prompts - 1) | {"generator": seeded(2 * prompts - 1)}
    assert relative_error(images[-1:], pipe(**single).images) < 1e-4


def test_a_single_string_is_one_prompt(case: Case, pipe: Any, expected: torch.Tensor) -> None:
    assert torch.equal(pipe(**case.inputs(prompt="a red star")).images, expected)


def test_number_of_generators_must_fit(case: Case, pipe: Any, seeded: Seeded) -> None:
    with pytest.raises(UserError, match="2 generators for 1 pictures: give one for each"):
        pipe(**case.inputs(generator=[seeded(0), seeded(1)]))


@pytest.mark.parametrize("count", [0, -1, 1.5, True, 10_001])
def test_wrong_number_of_pictures_is_refused(case: Case, pipe: Any, count: Any) -> None:
    with pytest.raises(UserError, match="num_images_per_prompt is"):
        pipe(**case.inputs(num_images_per_prompt=count))


# Prompts


def test_prompt_embeds_replace_prompts(case: Case, pipe: Any) -> None:
    expected = pipe(**case.inputs(2, negative_prompt=["red", "of"])).images
    embeds, negative = pipe.encode_prompt(case.inputs(2)["prompt"], negative_prompt=["red", "of"])
    inputs = case.inputs(2, prompt=None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert torch.equal(pipe(**inputs).images, expected)


def test_without_negative_prompt_the_branch_sees_zeros(case: Case, pipe: Any, expected: torch.Tensor) -> None:
    embeds, negative = pipe.encode_prompt("a red star", num_images_per_prompt=2)
    assert negative.shape == embeds.shape == (2, 12, 16)
    assert not negative.any()
    zeros = pipe(**case.inputs(negative_prompt_embeds=torch.zeros(1, 12, 16))).images
    assert torch.equal(zeros, expected)
    assert not torch.equal(zeros, pipe(**case.inputs(negative_prompt="")).images)


def test_one_negative_prompt_serves_all(case: Case, pipe: Any) -> None:
    one = pipe(**case.inputs(2, negative_prompt="blue")).images
    assert torch.equal(one, pipe(**case.inputs(2, negative_prompt=["blue", "blue"])).images)


def test_prompt_matters(case: Case, pipe: Any, expected: torch.Tensor) -> None:
    assert not torch.equal(pipe(**case.inputs(prompt="blue circle")).images, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": 3}, "prompt is int 3: give a string"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": ["red", None]}, "prompt holds NoneType None"),
        ({"negative_prompt": 3}, "negative_prompt is int 3"),
        ({"prompt_embeds": torch.zeros(1, 12, 16)}, "both prompt and prompt_embeds are given"),
        (
            {"negative_prompt": "red", "negative_prompt_embeds": torch.zeros(1, 12, 16)},
            "both negative_prompt and negative_prompt_embeds",
        ),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 12, 8)}, r"prompt_embeds is \(1, 12, 8\): .* 16\)"),
        ({"prompt": None, "prompt_embeds": "red"}, "prompt_embeds is str"),
        ({"negative_prompt": ["red", "of", "a"]}, "3 negative prompts for 1 prompts"),
        ({"negative_prompt_embeds": torch.zeros(1, 5, 16)}, r"\(1, 5, 16\) and \(1, 12, 16\): make them equal"),
    ],
)
def test_wrong_prompts_are_refused(case: Case, pipe: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**case.inputs(**changes))


def test_words_need_a_text_encoder(case: Case, components: dict[str, Any]) -> None:
    pipe = case.build(components | {"text_encoder": None, "tokenizer": None})
    with pytest.raises(UserError, match="no text encoder: give prompt_embeds instead of prompt"):
        pipe(**case.inputs())
    with pytest.raises(UserError, match="no text encoder: give prompt_embeds instead of prompt"):
        pipe.encode_prompt("red")


# Guidance


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_of_one_and_less_runs_a_single_branch(case: Case, components: dict[str, Any], guidance: float) -> None:
    rows = count_rows(components[case.unet])
    pipe = case.build(components)
    single = pipe(**case.inputs(guidance_scale=guidance)).images
    assert set(rows) == {1}
    assert not pipe.do_classifier_free_guidance
    rows.clear()
    pipe(**case.inputs())
    assert set(rows) == {2}
    assert pipe.do_classifier_free_guidance
    assert pipe.guidance_scale == 3.0
    assert torch.equal(single, pipe(**case.inputs(guidance_scale=1)).images)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_guidance_is_linear_in_the_clean_prediction(case: Case, make_components: Components, prediction: str) -> None:
    """One step returns D, which is uncond + w (cond - uncond) whatever the network predicts."""
    pipe = case.build(make_components(prediction))
    steps = {"num_inference_steps": 1, "output_type": "latent"}
    if case.unet == "unet":
        steps["num_relays"] = 0
    one, two, five = (pipe(**case.inputs(guidance_scale=w, **steps)).images for w in (1, 2, 5))
    # float32, sigma up to 14.6
    torch.testing.assert_close(five - two, 3 * (two - one), rtol=1e-3, atol=1e-4)
    assert (two - one).abs().max() > 1e-3


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -1.0, "7", True])
def test_wrong_guidance_is_refused(case: Case, pipe: Any, guidance: Any) -> None:
    with pytest.raises(UserError, match=r"guidance_scale is .*: give a finite number, 0 or more"):
        pipe(**case.inputs(guidance_scale=guidance))


def test_distilled_networks_take_guidance_as_a_condition(case: Case, make_components: Components) -> None:
    components = make_components(time_cond_proj_dim=8)
    seen: list[Any] = []

    def look(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append((len(args[0]), kwargs["timestep_cond"]))

    components[case.unet].register_forward_pre_hook(look, with_kwargs=True)
    pipe = case.build(components)
    strong = pipe(**case.inputs(2, guidance_scale=5.0)).images
    weak = pipe(**case.inputs(2, guidance_scale=2.0)).images
    assert {rows for rows, _ in seen} == {2}
    assert not pipe.do_classifier_free_guidance
    assert not torch.equal(strong, weak)
    expected = torch.tensor([np.sin(5000.0), np.cos(5000.0)], dtype=torch.float32)
    # the first frequency is 1; the sine of 5000 in float32 is good to 5000 * 6e-8
    torch.testing.assert_close(seen[0][1][:, [0, 4]], expected.expand(2, 2), rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="distilled model has no negative branch"):
        pipe(**case.inputs(negative_prompt="blue"))


def test_networks_without_size_conditions(case: Case, make_components: Components) -> None:
    components = make_components(class_embed_type=None, projection_class_embeddings_input_dim=None)
    assert case.build(components)(**case.inputs()).images.isfinite().all()


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_prediction_types(case: Case, make_components: Components, expected: torch.Tensor, prediction: str) -> None:
    """The same weights mean another picture for each prediction type."""
    assert not torch.equal(case.build(make_components(prediction))(**case.inputs()).images, expected)


# Steps


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, "4"])
def test_wrong_steps_are_refused(case: Case, pipe: Any, steps: Any) -> None:
    with pytest.raises(UserError, match=r"steps.* is .*: give a whole number from 1 to 1000"):
        pipe(**case.inputs(num_inference_steps=steps))


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_wrong_eta_is_refused(case: Case, pipe: Any, eta: float) -> None:
    with pytest.raises(UserError, match=r"eta is .*: give a finite number, from 0 to 1"):
        pipe(**case.inputs(eta=eta))


@pytest.mark.parametrize("start", [0, 1001, 3.5])
def test_wrong_relay_start_is_refused(case: Case, pipe: Any, start: Any) -> None:
    with pytest.raises(UserError, match=r"relay_start is .*: give a whole number from 1 to 1000"):
        pipe(**case.inputs(relay_start=start))


def test_more_steps_than_noise_levels_are_refused(case: Case, pipe: Any) -> None:
    with pytest.raises(UserError, match=r"relay steps: .*choose at most 2"):
        pipe(**case.inputs(relay_start=2) | _relay_steps(case, 3))


def _relay_steps(case: Case, steps: int) -> dict[str, int]:
    return {"relay_steps" if case.unet == "unet" else "num_inference_steps": steps}


@pytest.mark.parametrize("relays", [-1, 9, 1.5])
def test_wrong_number_of_relays_is_refused(case: Case, pipe: Any, relays: Any) -> None:
    with pytest.raises(UserError, match="num_relays is"):
        pipe(**case.inputs(num_relays=relays))


# Callbacks


def test_callback_sees_every_step_of_all_stages(case: Case, pipe: Any, expected: torch.Tensor) -> None:
    steps, times = [], []

    def look(self: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        assert self is pipe
        assert set(tensors) == {"latents"}
        steps.append(step)
        times.append(int(timestep))
        return tensors

    inputs = case.inputs(callback_on_step_end=look)
    images = pipe(**inputs).images
    assert steps == list(range(case.steps))
    assert pipe.num_timesteps == case.steps
    assert times[-1] < times[-2]
    assert torch.equal(images, expected)


def test_callback_sees_what_the_base_takes_for_the_finished_latents(components: dict[str, Any]) -> None:
    case = CASES["base"]
    pipe, seen, levels = case.build(components), [], []

    def look(pipe: Any, step: int, _: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((tensors["latents"], tensors["pred_original_sample"]))
        levels[:] = pipe.scheduler.sigmas.tolist()
        return {}

    shown = ["latents", "pred_original_sample"]
    pipe(
        **case.inputs(
            num_inference_steps=3, num_relays=0, callback_on_step_end=look, callback_on_step_end_tensor_inputs=shown
        )
    )
    (first, _), (second, predicted), (last, finished) = seen
    slope = (second - first) / (levels[2] - levels[1])  # an Euler step goes straight towards the prediction
    torch.testing.assert_close(predicted, first - levels[1] * slope, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(finished, last, atol=1e-5, rtol=1e-5)


def test_callback_may_return_nothing(case: Case, pipe: Any, expected: torch.Tensor) -> None:
    assert torch.equal(pipe(**case.inputs(callback_on_step_end=lambda *_: None)).images, expected)


def test_callback_replaces_tensors(case: Case, pipe: Any) -> None:
    names = pipe._callback_tensor_inputs

    def zero_at_the_end(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert set(tensors) == set(names)
        last = step == pipe.num_timesteps - 1
        return {"latents": torch.zeros_like(tensors["latents"])} if last else {}

    inputs = {"callback_on_step_end_tensor_inputs": names, "output_type": "latent"}
    assert not pipe(**case.inputs(callback_on_step_end=zero_at_the_end, **inputs)).images.any()


@pytest.mark.parametrize("name", ["prompt_embeds", "negative_prompt_embeds"])
def test_callback_replaces_embeddings(case: Case, pipe: Any, expected: torch.Tensor, name: str) -> None:

    def replace(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: torch.ones_like(tensors[name])}

    inputs = case.inputs(callback_on_step_end=replace, callback_on_step_end_tensor_inputs=[name])
    assert not torch.equal(pipe(**inputs).images, expected)


def test_callback_changes_guidance(case: Case, components: dict[str, Any]) -> None:
    pipe = case.build(components)
    rows = count_rows(components[case.unet])

    def raise_guidance(self: Any, _: int, __: Any, ___: Any) -> dict[str, Any]:
        self._guidance_scale += 1.0
        return {}

    pipe(**case.inputs(guidance_scale=1.0, callback_on_step_end=raise_guidance))
    assert pipe.guidance_scale == 1.0 + pipe.num_timesteps
    assert rows[:2] == [1, 2]


def test_callback_objects_name_their_tensors(case: Case, pipe: Any) -> None:
    class Look(PipelineCallback):
        tensor_inputs = ["prompt_embeds"]  # noqa: RUF012 - diffusers' interface

        def callback_fn(self, _: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            assert set(tensors) == {"prompt_embeds"}
            seen.append(tensors["prompt_embeds"])
            return tensors

    seen: list[torch.Tensor] = []
    pipe(**case.inputs(callback_on_step_end=Look()))
    assert len(seen) == case.steps


def test_unknown_callback_tensor_is_refused(case: Case, pipe: Any) -> None:
    with pytest.raises(UserError, match="has noise: choose from latents"):
        pipe(**case.inputs(callback_on_step_end_tensor_inputs=["latents", "noise"]))


def test_interrupt_leaves_the_rest_out(case: Case, pipe: Any) -> None:
    """What comes back are the latents of the step at which the callback stopped."""
    collected: list[torch.Tensor] = []

    def collect(self: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        collected.append(tensors["latents"])
        self._interrupt = step == stop
        return tensors

    for stop in range(case.steps):
        collected.clear()
        images = pipe(**case.inputs(callback_on_step_end=collect, output_type="latent")).images
        assert len(collected) == stop + 1
        assert torch.equal(images, collected[-1])
        assert pipe.interrupt
    stop = 0
    assert pipe(**case.inputs(callback_on_step_end=collect)).images.isfinite().all()
    pipe(**case.inputs())
    assert not pipe.interrupt


# Progress


def test_progress_bars_name_the_stages(
    case: Case, components: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = case.pipeline(**components)
    pipe(**case.inputs())
    shown = capfd.readouterr().err
    assert all(f"{stage}: 100%" in shown for stage in case.stages)
    pipe.set_progress_bar_config(disable=True)
    pipe(**case.inputs())
    assert capfd.readouterr().err == ""


# Files, precision and devices


def test_saved_pipeline_draws_the_same(
    case: Case, components: dict[str, Any], expected: torch.Tensor, tmp_path: Path
) -> None:
    pipe = case.build(components)
    pipe.save_pretrained(tmp_path)
    loaded = case.pipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.mode_name is None
    # the same weights, but mapped from a file: other alignment, other order of summation
    assert relative_error(loaded(**case.inputs()).images, expected) < 1e-5


def test_a_table_of_what_was_there_before_does_not_stay(case: Case, components: dict[str, Any], tmp_path: Path) -> None:
    write_sampling(Sampling(default="9+9", modes={"9+9": Mode(steps=9, relay_steps=9, guidance=2.0)}), tmp_path)
    case.build(components).save_pretrained(tmp_path)
    loaded = case.pipeline.from_pretrained(tmp_path)
    assert loaded.mode_name is None
    assert loaded.mode == Mode()


def test_optional_components_stay_missing(case: Case, components: dict[str, Any], tmp_path: Path) -> None:
    optional = case.pipeline._optional_components
    pipe = case.build({key: None if key in optional else value for key, value in components.items()})
    pipe.save_pretrained(tmp_path)
    loaded = case.pipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert all(getattr(loaded, name) is None for name in optional)
    embeds = {"prompt": None, "prompt_embeds": torch.ones(1, 12, 16)}
    found, expected = (each(**case.inputs(**embeds)).images for each in (loaded, pipe))
    assert relative_error(found, expected) < 1e-5  # as above


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_saved_and_loaded(
    case: Case, components: dict[str, Any], tmp_path: Path, dtype: torch.dtype
) -> None:
    expected = case.build(components)(**case.inputs(output_type="latent")).images
    pipe = case.build(components).to(dtype)
    pipe.save_pretrained(tmp_path)
    loaded = case.pipeline.from_pretrained(tmp_path, dtype=dtype)
    loaded.set_progress_bar_config(disable=True)
    modules = [module for module in loaded.components.values() if isinstance(module, torch.nn.Module)]
    # T5 and the VAE overflow in float16
    kinds = {module.dtype for module in modules if not isinstance(module, UNet2DConditionModel)}
    assert kinds == {torch.bfloat16}
    assert all(module.dtype == dtype for module in modules if isinstance(module, UNet2DConditionModel))
    latents = loaded(**case.inputs(output_type="latent")).images
    assert latents.dtype == torch.float32
    # 8 or 11 bits of precision, amplified by guidance 3 and a start sigma of up to 14.6
    assert relative_error(latents, expected) < 0.1


def test_stored_half_precision_loads_as_float32(case: Case, components: dict[str, Any], tmp_path: Path) -> None:
    case.build(components).to(torch.float16).save_pretrained(tmp_path)
    loaded = case.pipeline.from_pretrained(tmp_path)
    for module in loaded.components.values():
        if isinstance(module, torch.nn.Module):
            assert {each.dtype for each in module.parameters()} == {torch.float32}


def test_to_moves_precision(case: Case, components: dict[str, Any]) -> None:
    pipe = case.build(components)
    assert pipe.dtype == torch.float32
    assert pipe.device == torch.device("cpu")
    pipe.to(torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    pipe.to("cpu", torch.float32)
    assert pipe.dtype == torch.float32


def test_float16_vae_runs_in_float32_where_it_overflows(
    case: Case, components: dict[str, Any], make_vae: Callable[..., Any]
) -> None:
    seen: list[torch.dtype] = []
    for upcast in (True, False):
        vae = make_vae(force_upcast=upcast).half()
        vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
        pipe = case.build(components | {"vae": vae})
        assert pipe(**case.inputs()).images.isfinite().all()
        assert vae.dtype == torch.float16
    half = len(seen) // 2
    assert seen == [torch.float32] * half + [torch.float16] * half


def test_undefined_numbers_name_the_stage(case: Case, components: dict[str, Any]) -> None:
    components[case.unet].conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=f"the {case.stages[0]} stage .* in torch.float32"):
        case.build(components)(**case.inputs())


def test_undefined_numbers_name_the_vae(case: Case, components: dict[str, Any]) -> None:
    components["vae"].decoder.conv_out.bias.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"the VAE's decoder .* in torch\.float32"):
        case.build(components)(**case.inputs())


def test_vae_scale_and_shift(case: Case, components: dict[str, Any], make_vae: Callable[..., Any]) -> None:
    """Latents are (mode - shift) * scale: with another scale and shift they decode to the same picture."""
    vae = make_vae(scaling_factor=2.0, shift_factor=0.7)
    pipe = case.build(components | {"vae": vae})
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    mean = vae.encode(pixels).latent_dist.mean
    latents = pipe._to_latents(pixels)
    torch.testing.assert_close(latents, (mean - 0.7) * 2.0)
    decoded = vae.decode(mean, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(pipe._to_pixels(latents), decoded, rtol=0, atol=1e-5)  # float32 there and back


# Memory


def test_attention_slicing_changes_nothing(case: Case, components: dict[str, Any], expected: torch.Tensor) -> None:
    pipe = case.build(components)
    for size in ("auto", 1):
        pipe.enable_attention_slicing(size)
        assert relative_error(pipe(**case.inputs()).images, expected) < 1e-4  # another order of summation
    pipe.disable_attention_slicing()
    assert relative_error(pipe(**case.inputs()).images, expected) < 1e-4


def test_vae_slicing_changes_nothing(case: Case, components: dict[str, Any]) -> None:
    pipe = case.build(components)
    expected = pipe(**case.inputs(2)).images
    rows: list[int] = []
    components["vae"].decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    pipe.enable_vae_slicing()
    assert relative_error(pipe(**case.inputs(2)).images, expected) < 1e-4  # another batch size
    assert set(rows) == {1}
    rows.clear()
    pipe.disable_vae_slicing()
    assert torch.equal(pipe(**case.inputs(2)).images, expected)
    assert set(rows) == {2}


def test_model_offload_runs_every_component(case: Case, components: dict[str, Any]) -> None:
    networks = {name for name, each in components.items() if isinstance(each, torch.nn.Module)}
    assert set(case.pipeline.model_cpu_offload_seq.split("->")) == networks
    assert case.pipeline._exclude_from_cpu_offload == ["latent_enlarger", "light_decoder"]
    pipe = case.build(components)
    expected = pipe(**case.inputs()).images
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # hooks are set anew after each call
        assert torch.equal(pipe(**case.inputs()).images, expected)
        assert len(pipe._all_hooks) == 4
    pipe.remove_all_hooks()
    assert torch.equal(pipe(**case.inputs()).images, expected)


def test_sequential_offload_keeps_weights_off_the_device(case: Case, components: dict[str, Any]) -> None:
    """Drawing that way needs a GPU: from the CPU to the CPU accelerate mixes tensors up by their addresses."""
    pipe = case.build(components | {"tokenizer": None, "text_encoder": None})
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert components[case.unet].conv_in.weight.is_meta
    assert pipe._execution_device.type == "cpu"


@pytest.mark.gpu
def test_offload_from_a_gpu(case: Case, components: dict[str, Any]) -> None:
    """Both kinds, which accelerate can only do towards a device that is not the CPU."""
    pipe = case.build(components)
    expected = pipe(**case.inputs()).images
    for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        enable(device="cuda")
        # convolutions in TF32, if the machine allows them
        assert relative_error(pipe(**case.inputs()).images.cpu(), expected) < 1e-2
        assert components[case.unet].conv_in.weight.device.type in ("cpu", "meta")
        pipe.remove_all_hooks()
