"""What pipelines refuse before any work, and numbers that they do not pass on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMWuerstchenScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks
from PIL import Image

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline
from cogview3.config import UserError
from cogview3.generation import inputs
from cogview3.models.light import LatentEnlarger

CALL = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture
def calls(components: dict[str, Any]) -> list[str]:
    """Names of the networks that have run."""
    names: list[str] = []
    networks = {name: components[name] for name in ("text_encoder", "unet", "relay_unet")}
    networks |= {"encode": components["vae"].encoder, "decode": components["vae"].decoder}
    for name, network in networks.items():
        network.register_forward_pre_hook(lambda *_, name=name: names.append(name))
    return names


def pipeline(kind: Any, components: dict[str, Any]) -> Any:
    pipe = kind(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("tile_size", "words"), [(4, "not a multiple of 64"), (-8, "tile_size is -8: give a whole number"), (0, "is 0")]
)
@pytest.mark.parametrize("changes", [{}, {"relay_unet": None, "relay_scheduler": None}])
def test_tiles_are_checked_without_a_relay(
    components: dict[str, Any], calls: list[str], changes: dict[str, None], tile_size: int, words: str
) -> None:
    relays = None if changes else 0
    pipe = pipeline(CogView3Pipeline, components | changes)
    with pytest.raises(UserError, match=words):
        pipe("a red star", num_relays=relays, tile_size=tile_size, **CALL)
    assert calls == []


# Pictures that are too large; their pixels are never touched

HUGE = [
    Image.new("1", (30_000, 30_000)),
    np.broadcast_to(np.zeros(3, np.uint8), (30_000, 30_000, 3)),
    torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, 30_000, 30_000),
]


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_one_to_pixels", lambda image: pytest.fail("its pixels were converted"))


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize("image", HUGE)
def test_huge_pictures_are_refused_by_their_sides(components: dict[str, Any], image: Any) -> None:
    with pytest.raises(UserError, match="image is 30000x30000: give sides of at most 4096"):
        pipeline(CogView3UpscalePipeline, components)(image, **CALL)
    with pytest.raises(UserError, match="image is 30000x30000: give at most 8192x8192 pixels"):
        pipeline(CogView3Pipeline, components)("a red star", image=[image], **CALL)


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((1, 4, 4, 600), {}, "image is 4800x32: give sides of at most 4096 for 1 relays"),
        ((1, 4, 0, 4), {}, "image is 32x0: give sides of at least 4 pixels"),
        ((2, 4, 4, 4), {"prompt": ["star"] * 3}, "3 prompts for 2 pictures"),
        ((2, 4, 4, 4), {"generator": [torch.Generator()]}, "1 generators for 2 pictures"),
    ],
)
def test_latents_are_checked_before_they_are_decoded(
    components: dict[str, Any], calls: list[str], shape: tuple[int, ...], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        pipeline(CogView3UpscalePipeline, components)(latents=torch.zeros(shape), **CALL, **changes)
    assert calls == []


# Callbacks


def test_a_callback_must_keep_a_text_for_each_picture(components: dict[str, Any]) -> None:
    pipe = pipeline(CogView3Pipeline, components)
    first = {"prompt_embeds": torch.zeros(1, 12, 16)}
    call = {**CALL, "relay_steps": 2, "callback_on_step_end": lambda *_: first}
    with pytest.raises(UserError, match="the callback gave 1 prompt_embeds for 2 pictures: give one for each"):
        pipe(["a red star", "a blue circle"], **call)
    assert pipe("a red star", **call).images.isfinite().all()


# Undefined numbers


def test_undefined_numbers_name_the_vaes_encoder(components: dict[str, Any]) -> None:
    components["vae"].encoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the VAE's encoder .* in torch\.float32"):
        pipeline(CogView3UpscalePipeline, components)(torch.rand(3, 16, 16), **CALL)


def test_undefined_numbers_name_the_latent_enlarger(components: dict[str, Any]) -> None:
    enlarger = LatentEnlarger(width=8, num_blocks=1).eval()
    for parameter in enlarger.parameters():
        parameter.data.fill_(float("nan"))
    pipe = pipeline(CogView3Pipeline, components | {"latent_enlarger": enlarger})
    with pytest.raises(FloatingPointError, match=r"the latent enlarger .* in torch\.float32"):
        pipe("a red star", light=True, **CALL)


# Values of other libraries' kinds


@pytest.mark.parametrize("two", [np.uint8(2), np.float32(2), np.array(2), torch.tensor(2), torch.tensor(2.0)])
def test_numbers_of_every_kind_are_taken(components: dict[str, Any], two: Any) -> None:
    call = {"num_inference_steps": two, "relay_steps": two, "guidance_scale": two, "num_images_per_prompt": two}
    assert len(pipeline(CogView3Pipeline, components)("a red star", num_relays=0, output_type="pt", **call).images) == 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, 10**400) for name in ("num_inference_steps", "relay_steps", "guidance_scale", "eta", "num_relays")),
        *(("generator", each) for each in (5, "x", [None], np.random.default_rng(0), np.int64(3))),
        *(("latents", each) for each in ("x", np.zeros((1, 4, 4, 4)), [[1]])),
        *(("image", np.zeros((32, 32, 3), kind)) for kind in (object, str)),
        *(("callback_on_step_end", each) for each in (5, [print], lambda *_: 5, lambda *_: {"latents": np.zeros(1)})),
        ("callback_on_step_end", lambda *_: {"latents": torch.zeros(1)}),
        ("callback_on_step_end", lambda pipe, step: {}),
        ("callback_on_step_end", IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5)),
        ("callback_on_step_end", MultiPipelineCallbacks([IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5)])),
        ("callback_on_step_end_tensor_inputs", None),
        ("callback_on_step_end_tensor_inputs", "latents"),
        ("prompt", "\ud800"),
        ("negative_prompt", "a \udfff"),
    ],
)
def test_values_of_other_kinds_are_refused_by_name(components: dict[str, Any], argument: str, value: Any) -> None:
    call = {**CALL, "prompt": "a red star", argument: value}
    with pytest.raises(UserError, match=argument.replace("_", "[_ ]").removesuffix("[_ ]on[_ ]step[_ ]end")):
        pipeline(CogView3Pipeline, components)(**call)


@pytest.mark.parametrize("part", ["scheduler", "relay_scheduler"])
@pytest.mark.parametrize("kind", [DDPMWuerstchenScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler])
def test_schedulers_that_were_put_in_later_are_checked_in_the_call(
    components: dict[str, Any], calls: list[str], part: str, kind: Any
) -> None:
    pipe = pipeline(CogView3Pipeline, components)
    setattr(pipe, part, kind())
    with pytest.raises(UserError, match=f"{part} .*{kind.__name__}"):
        pipe("a red star", **CALL)
    assert calls == []


# Tensors that hold no usable numbers, and components that are put in later

TEXT = torch.zeros(1, 12, 16)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "negative_prompt_embeds"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda each: each.long(), "holds torch.int64 numbers: give floats"),
        (lambda each: each.to(torch.complex64), "holds torch.complex64 numbers: give floats"),
        (lambda each: each / 0, "holds infinite or undefined numbers"),
        (lambda each: each.to_sparse(), "in torch.sparse_coo: give a dense one"),
        (lambda each: each.to("meta"), "on meta in torch.strided: give a dense one"),
    ],
)
def test_tensors_that_hold_no_usable_numbers_are_refused(
    components: dict[str, Any], calls: list[str], name: str, change: Any, words: str
) -> None:
    given = change(torch.zeros(1, 4, 4, 4) if name == "latents" else TEXT)
    texts = {"prompt": "a red star"} if name == "latents" else {"prompt_embeds": TEXT}
    with pytest.raises(UserError, match=f"{name} .*{words}"):
        pipeline(CogView3Pipeline, components)(**texts | {name: given}, **CALL)
    pictures = {"latents": torch.zeros(1, 4, 4, 4)} | ({} if name == "latents" else {"prompt_embeds": TEXT})
    with pytest.raises(UserError, match=f"{name} .*{words}"):
        pipeline(CogView3UpscalePipeline, components)(**pictures | {name: given}, **CALL)
    assert calls == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt_embeds": None}, "prompt_embeds as a NoneType"),
        (
            {"prompt_embeds": torch.zeros(2, 16)},
            r"prompt_embeds \(2, 16\): give a tensor of shape \(pictures, tokens, 16",
        ),
        ({"prompt_embeds": torch.tensor(1.0)}, r"prompt_embeds \(\): give"),
        ({"negative_prompt_embeds": torch.zeros(1, 12, 17)}, r"negative_prompt_embeds \(1, 12, 17\): give"),
        ({"prompt_embeds": TEXT.long()}, "the callback's prompt_embeds holds torch.int64 numbers"),
        ({"latents": torch.zeros(1, 4, 4, 4) / 0}, "the callback's latents holds infinite or undefined numbers"),
        ({"latents": torch.zeros(1, 4, 4, 4) > 0}, "the callback's latents holds torch.bool numbers"),
        ({"latents": torch.zeros(1, 4, 4, 4, device="meta")}, "the callback's latents is a tensor on meta"),
        ({"rows": [False]}, r"the callback gave rows \[False\]"),
        ({"rows": [0, "a"]}, r"the callback gave rows \[0, 'a'\]"),
        ({"rows": [[0]]}, r"the callback gave rows \[\[0\]\]"),
    ],
)
def test_what_a_callback_must_not_give(components: dict[str, Any], changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pipeline(CogView3Pipeline, components)("a red star", callback_on_step_end=lambda *_: changed, **CALL)


@pytest.mark.parametrize("names", [[2], [None], [b"latents"]])
def test_names_for_callbacks_are_texts(components: dict[str, Any], names: list[Any]) -> None:
    call = {"callback_on_step_end": lambda *_: {}, "callback_on_step_end_tensor_inputs": names}
    with pytest.raises(UserError, match=f"tensor_inputs has {names[0]}: choose from latents"):
        pipeline(CogView3Pipeline, components)("a red star", **call, **CALL)


@pytest.mark.parametrize("kind", [CogView3Pipeline, CogView3UpscalePipeline])
def test_components_that_are_missing_or_no_networks_are_named(components: dict[str, Any], kind: Any) -> None:
    needed = "unet" if kind is CogView3Pipeline else "relay_unet"
    call = CALL | ({"prompt": "a red star"} if kind is CogView3Pipeline else {"image": torch.zeros(3, 16, 16)})
    for name in ("vae", needed):
        pipe = pipeline(kind, components)
        setattr(pipe, name, None)
        with pytest.raises(UserError, match=f"this pipeline has no {name}: load the complete model"):
            pipe(**call)
    for name in ("unet", "relay_unet", "text_encoder", "tokenizer"):
        for wrong in (5, "x", torch.nn.Linear(2, 2)):
            with pytest.raises(UserError, match=f"{name} is a {type(wrong).__name__}: give a "):
                kind(**components | {name: wrong})


def test_a_scheduler_is_no_class(components: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="scheduler is the class DDIMScheduler: give one of it"):
        CogView3Pipeline(**components | {"scheduler": DDIMScheduler})


def test_arrays_of_the_other_byte_order_are_pictures(components: dict[str, Any]) -> None:
    picture = np.random.default_rng(0).random((16, 16, 3), np.float32)
    given = inputs.to_pixels(picture.astype(picture.dtype.newbyteorder()))
    assert torch.equal(given, inputs.to_pixels(picture))
    for name in ("image", "mask_image"):
        wrong = {"image": Image.new("RGB", (32, 32)), name: torch.zeros(32, 32).expand(3, -1, -1).to_sparse()}
        with pytest.raises(UserError, match=f"{name} is a tensor on cpu in torch.sparse_coo"):
            pipeline(CogView3Pipeline, components)("a red star", **wrong, **CALL)


def test_masks_are_refused_by_their_sides_too(components: dict[str, Any]) -> None:
    mask = np.broadcast_to(np.zeros(1, bool), (100_000, 100_000))
    with pytest.raises(UserError, match="mask_image is 100000x100000: give at most 8192x8192"):
        pipeline(CogView3Pipeline, components)("a", image=Image.new("RGB", (32, 32)), mask_image=mask, **CALL)


def test_no_pictures_and_no_prompts_are_refused(components: dict[str, Any]) -> None:
    pipe = pipeline(CogView3UpscalePipeline, components)
    with pytest.raises(UserError, match=r"latents is \(0, 4, 4, 4\): give at least one picture"):
        pipe(latents=torch.zeros(0, 4, 4, 4), **CALL)
    with pytest.raises(UserError, match=r"prompt_embeds is \(0, 12, 16\): give at least one prompt"):
        pipe(torch.zeros(3, 16, 16), prompt_embeds=torch.zeros(0, 12, 16), **CALL)


# Pipelines around other pipelines, and where they are saved


def test_pipelines_are_made_of_pipelines(components: dict[str, Any]) -> None:
    pipe = pipeline(CogView3Pipeline, components)
    for given, kind in ((None, "NoneType"), ("scenes", "str"), (CogView3Pipeline, "type")):
        with pytest.raises(UserError, match=f"from_pipe is given a {kind}: give a loaded pipeline"):
            CogView3UpscalePipeline.from_pipe(given)
    with pytest.raises(UserError, match="a CogView3Pipeline has no unett: choose from tokenizer, text_encoder, vae"):
        CogView3Pipeline.from_pipe(pipe, unett=components["unet"])
    for dtype in ("x", torch.int8):
        with pytest.raises(UserError, match=f"dtype is {dtype!r}: give torch.float32"):
            CogView3Pipeline.from_pipe(pipe, dtype=dtype)
    assert CogView3Pipeline.from_pipe(pipe, dtype="bfloat16").dtype == torch.bfloat16


def test_pipelines_are_saved_in_folders(components: dict[str, Any], tmp_path: Path) -> None:
    pipe, file = pipeline(CogView3Pipeline, components), tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match=f"{file} is a file: give a folder"):
        pipe.save_pretrained(file)
    for given in (None, "", 5, b"x"):
        with pytest.raises(UserError, match=f"save_pretrained is given {given!r}: give a folder"):
            pipe.save_pretrained(given)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("given", [None, 5, b"scenes", ["scenes"]])
def test_models_are_named_by_texts_and_paths(given: Any) -> None:
    with pytest.raises(UserError, match=f"model is a {type(given).__name__}: give a name or a path"):
        CogView3Pipeline.from_pretrained(given)
