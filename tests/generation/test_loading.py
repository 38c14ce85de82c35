"""Model folders: modes, bundled names, hub names, and every kind of damage."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from cogview3 import CogView3Pipeline, CogView3UpscalePipeline, RelayScheduler, references
from cogview3.config import UserError
from cogview3.generation import loading, pretrained
from cogview3.prompts.cache import HeldPrompts

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the folder that `model` copies is written, once a module."""
    return tmp_path_factory.mktemp("written") / "model"


@pytest.fixture
def model(
    request: pytest.FixtureRequest, written: Path, make_unet: Callable[..., UNet2DConditionModel], tmp_path: Path
) -> Path:
    """A model folder with a plain mode, one with its own UNets, and one with only its own relay UNet."""
    if not written.exists():
        write_model(written, request.getfixturevalue("components"), make_unet)
    return Path(shutil.copytree(written, tmp_path / "model"))


def write_model(folder: Path, components: dict[str, Any], make_unet: Callable[..., UNet2DConditionModel]) -> None:
    CogView3Pipeline(**components).save_pretrained(folder)
    own = {"time_cond_proj_dim": 8}
    make_unet(10, **own).save_pretrained(folder / "modes/4+1/unet")
    make_unet(11, **own).save_pretrained(folder / "modes/4+1/relay_unet")
    fast = {"steps": 4, "relay_steps": 1, "relay_start": 200, "distilled": True, "guidance_range": [1, 12]}
    modes = {
        "50+10": {"steps": 50, "relay_steps": 10, "guidance": 3.0},
        "4+1": {**fast, "unet": "modes/4+1/unet", "relay_unet": "modes/4+1/relay_unet"},
        "50+1": {"relay_steps": 1, "relay_unet": "modes/4+1/relay_unet", "blur_estimate": "carry", "relay_power": 2},
    }
    (folder / "sampling.json").write_text(json.dumps({"format": 1, "default": "50+10", "modes": modes}))


def draw(pipe: CogView3Pipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red star", generator=torch.Generator().manual_seed(0), output_type="pt", height=32, width=32).images


# Modes


def test_default_mode(model: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model)
    assert pipe.mode_name == "50+10"
    assert pipe.mode.guidance == 3.0
    assert pipe.unet.config.time_cond_proj_dim is None
    assert pipe.relay_scheduler.config.relay_start == 500


def test_only_the_modes_own_networks_are_read(model: Path) -> None:
    shutil.rmtree(model / "unet")
    shutil.rmtree(model / "relay_unet")
    pipe = CogView3Pipeline.from_pretrained(model, mode="4+1")
    saved = load_file(model / "modes/4+1/unet" / WEIGHTS)
    assert torch.equal(pipe.unet.conv_in.weight, saved["conv_in.weight"])
    saved = load_file(model / "modes/4+1/relay_unet" / WEIGHTS)
    assert torch.equal(pipe.relay_unet.conv_in.weight, saved["conv_in.weight"])
    assert pipe.relay_scheduler.config.relay_start == 200
    assert draw(pipe).shape == (1, 3, 32, 32)
    assert pipe.num_timesteps == 5


def test_mode_with_one_network_of_its_own(model: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model, mode="50+1")
    assert pipe.unet.config.time_cond_proj_dim is None
    assert pipe.relay_unet.config.time_cond_proj_dim == 8
    config = pipe.relay_scheduler.config
    assert (config.blur_estimate, config.power, config.relay_start) == ("carry", 2.0, 500)


def test_given_components_are_not_read(model: Path, make_unet: Callable[..., UNet2DConditionModel]) -> None:
    shutil.rmtree(model / "modes")
    unets = {"unet": make_unet(20, time_cond_proj_dim=8), "relay_unet": make_unet(21, time_cond_proj_dim=8)}
    pipe = CogView3Pipeline.from_pretrained(model, mode="4+1", **unets)
    assert pipe.unet is unets["unet"]


def test_saving_keeps_the_loaded_mode(model: Path, tmp_path: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model, mode="4+1")
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path / "fast")
    table = json.loads((tmp_path / "fast/sampling.json").read_text())
    assert table["default"] == "4+1"
    assert table["modes"].keys() == {"4+1"}
    assert "unet" not in table["modes"]["4+1"]
    again = CogView3Pipeline.from_pretrained(tmp_path / "fast")
    assert again.mode_name == "4+1"
    assert again.mode.distilled
    torch.testing.assert_close(draw(again), expected, rtol=0, atol=1e-5)  # other alignment in the file


def test_mode_goes_along_with_from_pipe(model: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model, mode="4+1")
    upscaler = CogView3UpscalePipeline.from_pipe(pipe)
    assert (upscaler.mode_name, upscaler.mode) == ("4+1", pipe.mode)
    assert upscaler.relay_unet is pipe.relay_unet


def test_from_pipe_names_what_is_missing(model: Path, components: dict[str, Any]) -> None:
    upscaler = CogView3UpscalePipeline.from_pretrained(model)
    with pytest.raises(UserError, match="a CogView3Pipeline needs unet, scheduler, which the CogView3UpscalePipeline"):
        CogView3Pipeline.from_pipe(upscaler)
    assert CogView3Pipeline.from_pipe(upscaler, unet=components["unet"], scheduler=components["scheduler"]).unet
    base = CogView3Pipeline(**{**components, "relay_unet": None, "relay_scheduler": None})
    with pytest.raises(UserError, match="a CogView3UpscalePipeline needs relay_unet, relay_scheduler, which"):
        CogView3UpscalePipeline.from_pipe(base)


def test_switches_go_along_with_from_pipe(model: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model)
    assert not CogView3UpscalePipeline.from_pipe(pipe).compiled
    pipe.enable_vae_tiling(512)
    pipe.compile_networks(backend="eager")
    pipe.prompt_cache = HeldPrompts()
    upscaler = CogView3UpscalePipeline.from_pipe(pipe)
    assert (upscaler.compiled, upscaler.vae_tile_size) == (True, 512)
    assert upscaler.prompt_cache is pipe.prompt_cache


@pytest.mark.parametrize("name", ["unet", "relay_unet"])
def test_a_mode_that_is_not_distilled_is_not_taken_for_one(
    model: Path, make_unet: Callable[..., UNet2DConditionModel], name: str
) -> None:
    shutil.rmtree(model / "modes/4+1" / name)
    make_unet(10).save_pretrained(model / "modes/4+1" / name)
    with pytest.raises(UserError, match=rf"4\+1 is marked distilled in sampling.json, but its {name} does not take"):
        CogView3Pipeline.from_pretrained(model, mode="4+1")
    CogView3Pipeline.from_pretrained(model)


def test_from_pipe_casts_nothing_unless_told(model: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model, dtype=torch.float16)
    before = {name: module.dtype for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    assert set(before.values()) == {torch.float16, torch.bfloat16}
    upscaler = CogView3UpscalePipeline.from_pipe(pipe)
    assert {name: getattr(upscaler, name).dtype for name in before} == before
    assert {name: getattr(pipe, name).dtype for name in before} == before
    assert (pipe.mode_name, pipe.mode.guidance) == ("50+10", 3.0)
    cast = CogView3UpscalePipeline.from_pipe(pipe, torch_dtype=torch.float32, text_encoder=None)
    assert cast.relay_unet.dtype == torch.float32
    assert cast.text_encoder is None
    assert pipe.text_encoder is not None


def test_from_pipe_keeps_guidance_and_the_distilled_modes_checks(model: Path) -> None:
    picture, last = torch.rand(3, 16, 16), {"output_type": "pt", "prompt": "a red star"}
    upscaler = CogView3UpscalePipeline.from_pipe(CogView3Pipeline.from_pretrained(model))
    upscaler.set_progress_bar_config(disable=True)
    upscaler(picture, num_inference_steps=1, **last)
    assert upscaler.guidance_scale == 3.0
    upscaler = CogView3UpscalePipeline.from_pipe(CogView3Pipeline.from_pretrained(model, mode="4+1"))
    upscaler.set_progress_bar_config(disable=True)
    upscaler(picture, **last)
    assert upscaler.num_timesteps == 1
    with pytest.raises(UserError, match=r"mode '4\+1' is distilled for 1"):
        upscaler(picture, num_inference_steps=2, **last)


def test_upscaler_leaves_the_base_out(model: Path) -> None:
    shutil.rmtree(model / "modes/4+1/unet")
    pipe = CogView3UpscalePipeline.from_pretrained(model, mode="4+1")
    assert pipe.unet is None
    assert pipe.scheduler is None
    assert pipe.mode_name == "4+1"


def test_dtypes_by_component(model: Path) -> None:
    dtype = {"unet": torch.float16, "default": torch.bfloat16}
    pipe = CogView3Pipeline.from_pretrained(model, mode="4+1", dtype=dtype)
    assert pipe.unet.dtype == torch.float16
    assert pipe.relay_unet.dtype == pipe.vae.dtype == torch.bfloat16
    plain = CogView3Pipeline.from_pretrained(model, mode="4+1", dtype=torch.bfloat16)
    assert plain.unet.dtype == plain.vae.dtype == torch.bfloat16


def test_unknown_modes_are_refused(model: Path) -> None:
    with pytest.raises(UserError, match="has no mode '8\\+2': choose from 50\\+10, 4\\+1, 50\\+1"):
        CogView3Pipeline.from_pretrained(model, mode="8+2")


# What a caller brings along


def test_a_relay_scheduler_of_the_callers_is_left_as_it_is(model: Path) -> None:
    given = RelayScheduler(relay_start=200, power=1.5)
    config = CogView3Pipeline.from_pretrained(model, mode="50+1", relay_scheduler=given).relay_scheduler.config
    assert (config.relay_start, config.power, config.blur_estimate) == (200, 1.5, "recompute")
    with pytest.raises(UserError, match="relay_scheduler: mode '4\\+1' is distilled for its own; leave it out"):
        CogView3Pipeline.from_pretrained(model, mode="4+1", relay_scheduler=given)


def test_a_saved_mode_says_what_the_relay_scheduler_does(model: Path, tmp_path: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model, mode="50+1")
    pipe.relay_scheduler = RelayScheduler.from_config(pipe.relay_scheduler.config, relay_start=200, power=3.0)
    pipe.save_pretrained(tmp_path / "saved")
    config = CogView3Pipeline.from_pretrained(tmp_path / "saved").relay_scheduler.config
    assert (config.relay_start, config.power, config.blur_estimate) == (200, 3.0, "carry")


@pytest.mark.parametrize("option", ["quantization_config", "device_map"])
def test_what_does_not_reach_a_modes_own_networks_is_refused(model: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"{option} does not apply to the own UNets of mode '4\\+1'"):
        CogView3Pipeline.from_pretrained(model, mode="4+1", **{option: "balanced"})


def test_variants_are_those_of_a_modes_own_networks_too(model: Path) -> None:
    for path in model.rglob("*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    pipe = CogView3Pipeline.from_pretrained(model, mode="4+1", variant="fp16")
    assert pipe.unet.config.time_cond_proj_dim == 8


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_number_formats_may_be_named(model: Path, name: str) -> None:
    assert CogView3Pipeline.from_pretrained(model, mode="4+1", torch_dtype=name).unet.dtype == torch.bfloat16


@pytest.mark.parametrize("given", ["int8", "manual_seed", 16])
def test_other_names_are_no_number_formats(model: Path, given: Any) -> None:
    with pytest.raises(UserError, match=f"dtype is {given!r}: give torch.float32"):
        CogView3Pipeline.from_pretrained(model, dtype=given)


# The hub, in place of which a folder answers


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folder as `owner/toy`, of which what is asked for comes into tmp_path / "cache"."""

    def hub_file(repository: str, name: str, **options: Any) -> str:
        assert repository == "owner/toy"
        assert options == {"revision": "v1"}
        if not (model / name).exists():
            raise EntryNotFoundError("404")
        return str(model / name)

    def snapshot(repository: str, allow_patterns: list[str], **options: Any) -> str:
        assert (repository, options) == ("owner/toy", {"revision": "v1"})
        held = [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()]
        for name in filter_repo_objects(held, allow_patterns=allow_patterns):
            (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(model / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    for module in (loading, references):
        monkeypatch.setattr(module, "hf_hub_download", hub_file)
    monkeypatch.setattr(references, "snapshot_download", snapshot)
    return model


def test_hub_models_have_modes_of_which_one_is_fetched(hub: Path, tmp_path: Path) -> None:
    (hub / "README.md").write_text("a card")
    (hub / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    pipe = CogView3Pipeline.from_pretrained("owner/toy", mode="4+1", revision="v1")
    assert pipe.mode_name == "4+1"
    assert pipe.unet.config.time_cond_proj_dim == 8
    fetched = {path.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").rglob("*")}
    assert {"modes/4+1/unet/config.json", "relay_scheduler/scheduler_config.json"} <= fetched
    assert not {"unet", "relay_unet", "README.md"} & fetched
    assert draw(pipe).equal(draw(CogView3Pipeline.from_pretrained(hub, mode="4+1")))


def test_an_upscaler_of_a_hub_model_does_without_its_base(hub: Path, tmp_path: Path) -> None:
    pipe = CogView3UpscalePipeline.from_pretrained("owner/toy", revision="v1")
    assert pipe.mode_name == "50+10"
    assert not {"unet", "scheduler"} & {path.name for path in (tmp_path / "cache").iterdir()}


def test_hub_repositories_without_a_model_are_refused(hub: Path) -> None:
    (hub / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"owner/toy on the hub is no model .*model_index.json is missing"):
        CogView3Pipeline.from_pretrained("owner/toy", revision="v1")


def test_hub_models_without_sampling_file(hub: Path) -> None:
    (hub / "sampling.json").unlink()
    assert references.find("owner/toy").sampling(revision="v1") is None


def test_hub_models_without_text_tensors_are_refused(hub: Path) -> None:
    damage(hub, "text tensors gone")
    with pytest.raises(UserError, match=r"cache: text_encoder lacks 4 tensors"):
        CogView3Pipeline.from_pretrained("owner/toy", mode="4+1", revision="v1")


def test_text_encoders_without_files_to_compare_are_refused(make_text_encoder: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"owner/toy: text_encoder has no \*\.safetensors to check"):
        pretrained.check_weights_complete("owner/toy", "text_encoder", make_text_encoder())


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("not found\nat all")])
def test_unreachable_hub_models_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(references, "hf_hub_download", fail)
    with pytest.raises(UserError, match="model owner/toy cannot be loaded: it is no folder here") as caught:
        CogView3Pipeline.from_pretrained("owner/toy")
    assert "\n" not in str(caught.value)


# Damage


def damage(model: Path, kind: str) -> None:
    unet = model / "unet"
    match kind:
        case "no index":
            (model / "model_index.json").unlink()
        case "index is no JSON":
            (model / "model_index.json").write_text("{")
        case "index is no table":
            (model / "model_index.json").write_text("[]")
        case "index names no class":
            (model / "model_index.json").write_text("{}")
        case "foreign":
            (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        case "component gone":
            shutil.rmtree(unet)
        case "component empty":
            shutil.rmtree(unet)
            unet.mkdir()
        case "weights gone":
            (unet / WEIGHTS).unlink()
        case "weights cut":
            with open(unet / WEIGHTS, "r+b") as file:
                file.truncate(5000)
        case "weights of zeros":
            (unet / WEIGHTS).write_bytes(bytes(1000))
        case "tensor gone":
            tensors = load_file(unet / WEIGHTS)
            del tensors["conv_in.weight"]
            save_file(tensors, unet / WEIGHTS)
        case "text tensors gone":
            file = model / "text_encoder/model.safetensors"
            tensors = load_file(file)
            for name in [name for name in tensors if "SelfAttention" in name][:4]:
                del tensors[name]
            save_file(tensors, file, metadata={"format": "pt"})
        case "tensor misshapen":
            tensors = load_file(unet / WEIGHTS)
            tensors["conv_in.bias"] = torch.zeros(7)
            save_file(tensors, unet / WEIGHTS)
        case "configuration damaged":
            (unet / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no index", "is no model folder .*give the folder that holds it"),
        ("index is no JSON", r"model_index.json is damaged: copy or export"),
        ("index is no table", r"model_index.json is damaged"),
        ("index names no class", r"model_index.json is damaged"),
        ("foreign", "holds a StableDiffusionPipeline model: give one of CogView3Pipeline"),
        ("component gone", "model/unet is missing or empty: copy or export"),
        ("component empty", "model/unet is missing or empty"),
        ("weights gone", r"model/unet has no weights \(\*.safetensors\)"),
        ("weights cut", f"model/unet/{WEIGHTS} is damaged"),
        ("weights of zeros", f"model/unet/{WEIGHTS} is damaged"),
        ("tensor gone", r"model: unet lacks 1 tensors \(conv_in.weight\)"),
        ("text tensors gone", r"model: text_encoder lacks 4 tensors \(.*, \.\.\.\)"),
        ("tensor misshapen", "model cannot be loaded: copy or export the model again .*conv_in.bias"),
        ("configuration damaged", r"model/unet/config\.json is damaged: copy or export it again"),
    ],
)
def test_damaged_folders_are_refused_by_name(model: Path, kind: str, message: str) -> None:
    damage(model, kind)
    with pytest.raises(UserError, match=message) as caught:
        CogView3Pipeline.from_pretrained(model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"in_channels": "4"}),
        ("unet/config.json", {"attention_head_dim": 0}),
        ("unet/config.json", {"block_out_channels": []}),
        ("unet/config.json", {"block_out_channels": [8] * 10**5}),
        ("unet/config.json", {"cross_attention_dim": 10**40}),
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"transformer_layers_per_block": [10**9, 1, 1]}),
        ("unet/config.json", {"down_block_types": ["os.system"] * 3}),
        ("modes/4+1/unet/config.json", {"norm_num_groups": 0}),
        ("vae/config.json", {"block_out_channels": [0]}),
        ("vae/config.json", {"block_out_channels": None}),
        ("vae/config.json", {"scaling_factor": "large"}),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
        ("text_encoder/config.json", {"num_layers": 10**9}),
        ("text_encoder/config.json", {"d_model": {}}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"beta_schedule": [[]]}),
        ("relay_scheduler/scheduler_config.json", {"num_train_timesteps": "1000"}),
        ("relay_scheduler/scheduler_config.json", {"power": None}),
        ("model_index.json", {"unet": []}),
        ("model_index.json", {"unet": [1.5, 1]}),
        ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel", "more"]}),
        ("model_index.json", {"unet": ["subprocess", "Popen"]}),
        ("model_index.json", {"vae": ["diffusers", "NoSuchModel"]}),
        ("model_index.json", {"_class_name": ["pipeline", "CogView3Pipeline"]}),
        ("unet/config.json", DEEP),
        ("vae/config.json", ""),
        ("vae/config.json", "\0" * 1000),
        ("scheduler/scheduler_config.json", "[]"),
        ("model_index.json", DEEP),
        ("model_index.json", " " * 2**23),
        ("sampling.json", DEEP),
        ("sampling.json", ""),
        ("sampling.json", '{"format": 1e999, "default": [], "modes": 4}'),
    ],
)
def test_damaged_configurations_are_one_line(model: Path, file: str, change: Any) -> None:
    path = model / file
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as caught:
        CogView3Pipeline.from_pretrained(model, mode="4+1" if "4+1" in file else None)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("mode", [None, "4+1"])
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_weights_of_whole_numbers_are_refused(model: Path, mode: str | None, kind: torch.dtype) -> None:
    path = model / ("modes/4+1/unet" if mode else "unet") / WEIGHTS
    tensors = load_file(path)
    save_file(tensors | {"conv_in.weight": tensors["conv_in.weight"].to(kind)}, path)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: conv_in.weight is stored as \w+, not as floats"):
        CogView3Pipeline.from_pretrained(model, mode=mode)


def test_a_run_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(UserError, match=r"is no model folder .*it is a run; make a model of runs with cogview3 export"):
        CogView3Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["gone", "cut", "misshapen", "incomplete"])
def test_damaged_mode_is_refused_by_name(model: Path, kind: str) -> None:
    unet = model / "modes/4+1/unet"
    tensors = load_file(unet / WEIGHTS)
    if kind == "gone":
        shutil.rmtree(unet)
    elif kind == "cut":
        (unet / WEIGHTS).write_bytes(b"cut")
    elif kind == "misshapen":
        save_file(tensors | {"conv_in.bias": torch.zeros(7)}, unet / WEIGHTS)
    else:
        save_file({name: each for name, each in tensors.items() if name != "conv_in.bias"}, unet / WEIGHTS)
    with pytest.raises(UserError, match=r"missing or empty|is damaged|cannot be loaded|lacks 1 tensors"):
        CogView3Pipeline.from_pretrained(model, mode="4+1")


def test_an_upscalers_folder_is_no_text_to_image_model(model: Path, tmp_path: Path) -> None:
    CogView3UpscalePipeline.from_pretrained(model).save_pretrained(tmp_path / "upscaler")
    with pytest.raises(UserError, match="upscaler has no scheduler, unet: give a complete model"):
        CogView3Pipeline.from_pretrained(tmp_path / "upscaler")
    again = CogView3UpscalePipeline.from_pretrained(tmp_path / "upscaler")
    assert isinstance(again.relay_scheduler, RelayScheduler)


def test_device_maps_are_left_to_the_libraries(model: Path) -> None:
    pipe = CogView3Pipeline.from_pretrained(model, device_map="cpu")
    assert pipe.device == torch.device("cpu")


def test_a_model_is_not_written_where_no_folder_can_take_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path(), tmp_path, Path("/")):
        with pytest.raises(UserError, match=rf"^{re.escape(str(out))} is the current folder"):
            loading.check_target(out)
    loading.check_target(Path("model"))
    (tmp_path / "model").mkdir()
    loading.check_target(Path("model"))
