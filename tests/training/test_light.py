"""Training of latent enlarger and light decoder, and their way into a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from cogview3 import CogView3Pipeline
from cogview3.config import UserError, parse_recipe
from cogview3.data.latents import decode, encode
from cogview3.models.light import LatentEnlarger, LightDecoder
from cogview3.references import weights_folder
from cogview3.training import loop
from cogview3.training.export import export
from cogview3.training.loop import train
from cogview3.training.objectives import build, psnr
from cogview3.training.objectives.light import LightTraining, enlarged_latents
from tests.data.conftest import picture
from tests.training.conftest import COMMON
from tests.training.test_export import as_distilled
from tests.training.test_sources import DATA, write_pictures

WEIGHTS = "diffusion_pytorch_model.safetensors"
KINDS = {"enlarger": ("latent_enlarger", LatentEnlarger), "light_decoder": ("light_decoder", LightDecoder)}


def recipe(kind: str, runs: Path, **changes: Any) -> Any:
    tables = {
        **COMMON,
        "recipe": {"name": kind, "kind": kind},
        "model": {"width": 8, "blocks": 1},
        "data": {"vae": str(runs / "vae"), "size": 64, "pictures": 6},
    }
    for name, value in changes.items():
        table, _, key = name.partition("__")
        tables[table] = {**tables[table], key: value}
    return parse_recipe(json.loads(json.dumps(tables)), "tiny")


def objective(kind: str, runs: Path, **changes: Any) -> LightTraining:
    built = build(recipe(kind, runs, **changes))
    built.prepare("cpu")
    return built


@pytest.fixture(scope="module")
def light_runs(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one run of each kind; for reading only."""
    folder = tmp_path_factory.mktemp("light")
    for kind in KINDS:
        train(recipe(kind, runs), folder / kind, device="cpu")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_in_every_batch(runs: Path, kind: str) -> None:
    one, other = objective(kind, runs), objective(kind, runs)
    together = one.batch(0, [0, 1, 2])
    alone = [other.batch(0, [index]) for index in (2, 0, 1)]
    for name, values in together.items():
        assert torch.equal(values, torch.cat([alone[1][name], alone[2][name], alone[0][name]]))
    again = one.batch(6, [6, 7, 8, 9, 10, 11])["z"]  # the second epoch: all pictures once, in another order
    first = one.batch(0, [0, 1, 2, 3, 4, 5])["z"]
    assert not torch.equal(first, again)
    assert {z.sum().item() for z in first} == {z.sum().item() for z in again}


def test_targets_are_what_the_vae_makes_of_the_latents(runs: Path) -> None:
    enlarger, decoder = (objective(kind, runs, data__degraded_share=0.5) for kind in KINDS)
    a, b = enlarger.batch(0, [0, 1]), decoder.batch(0, [0, 1])
    assert torch.equal(a["z"], b["z"])
    assert a["z"].shape == (2, 4, 8, 8)
    assert a["target"].shape == (2, 4, 16, 16)
    assert b["target"].shape == (2, 3, 64, 64)
    # latents are kept in float16, so the targets belong to slightly other ones
    torch.testing.assert_close(b["target"], decode(decoder.vae, b["z"]), rtol=0, atol=5e-3)
    torch.testing.assert_close(a["target"], enlarged_latents(enlarger.vae, a["z"]), rtol=0, atol=2e-2)


def test_faults_are_those_of_a_base_stage(runs: Path) -> None:
    clean, faulty = (objective("enlarger", runs, data__degraded_share=share, data__large_share=0.0) for share in (0, 1))
    a, b = clean.batch(0, [0, 1, 2])["z"], faulty.batch(0, [0, 1, 2])["z"]
    # noise of up to 0.3, and blur: all differ, by less than the latents' own spread
    assert ((a - b).square().mean((1, 2, 3)).sqrt() > 0.01).all()
    assert (a - b).std() < a.std()


def test_large_pictures_are_cut(runs: Path) -> None:
    whole, cut = (objective("light_decoder", runs, data__large_share=share) for share in (0, 1))
    assert whole.batch(0, [0])["z"].shape == cut.batch(0, [0])["z"].shape
    assert not torch.equal(whole.batch(0, [0])["z"], cut.batch(0, [0])["z"])


def test_the_losses_are_their_terms(runs: Path) -> None:
    weights = {"l1": 0.5, "mse": 3.0, "edge": 2.0}
    decoder = objective("light_decoder", runs)
    batch = decoder.batch(0, [0, 1])
    flat = torch.full_like(batch["target"], 0.25)
    decoder.trained.forward = lambda z: batch["target"] + flat
    terms = decoder(batch)
    expected = {"l1": 0.25, "mse": 0.0625, "edge": 0.0, "loss": 0.25 + 2 * 0.0625}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-6)
    decoder.recipe = recipe("light_decoder", runs).model_copy(
        update={"objective": decoder.recipe.objective.model_copy(update=weights)}
    )
    assert decoder(batch)["loss"].item() == pytest.approx(0.5 * 0.25 + 3 * 0.0625, abs=1e-6)
    enlarger = objective("enlarger", runs)
    batch = enlarger.batch(0, [0, 1])
    enlarger.trained.forward = lambda z: batch["target"] - 0.5
    assert enlarger(batch)["loss"].item() == pytest.approx(0.25, abs=1e-6)


def test_figures_of_exact_substitutes(runs: Path) -> None:
    """What does just what the VAE does has no error, and the VAE's facts and PSNR."""
    enlarger = objective("enlarger", runs)
    enlarger.trained.forward = lambda z: enlarged_latents(enlarger.vae, z) * 1.1
    figures = enlarger.validate()
    assert figures["error_64"] == pytest.approx(0.1, abs=1e-4)
    assert figures["error_128"] == pytest.approx(0.1, abs=1e-4)
    assert figures["psnr_64"] > 10
    decoder = objective("light_decoder", runs)
    decoder.trained.forward = lambda z: decode(decoder.vae, z) + 1e-3
    figures = decoder.validate()
    assert figures["psnr"] == pytest.approx(figures["psnr_vae"], abs=0.1)
    assert figures["facts"] == pytest.approx(figures["facts_vae"], abs=0.05)
    assert figures["psnr_to_vae"] == pytest.approx(66.0, abs=1.0)  # 20 log10(2 / 1e-3), a little of it clamped
    assert psnr(torch.tensor(0.04)) == pytest.approx(20.0)


# Pictures in shards


def of_shards(kind: str, runs: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Tables of a recipe that reads pictures of several ratios, 96 x 96 and like areas."""
    data = {name: value for name, value in DATA.items() if name != "text_dropout"}
    data |= {"vae": str(runs / "vae"), "shards": [write_pictures(folder / "tars")], "degraded_share": 0.0}
    tables = recipe(kind, runs).to_dict()
    for name, value in changes.items():
        table, _, key = name.partition("__")
        (data if table == "data" else tables[table])[key] = value
    return {**tables, "data": data}


def shard_objective(*given: Any, **changes: Any) -> LightTraining:
    built = build(parse_recipe(of_shards(*given, **changes), "tiny"))
    built.prepare("cpu")
    return built


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_in_shards_are_learned_from_alike(runs: Path, tmp_path: Path, kind: str) -> None:
    built = shard_objective(kind, runs, tmp_path)
    shapes = set()
    for first in range(0, 16, 2):
        batch = built.batch(first, [first, first + 1])
        z, target = batch["z"], batch["target"]
        shapes.add(tuple(z.shape[2:]))
        if kind == "enlarger":  # equation of z_L, by torch's own enlargement
            large = F.interpolate(decode(built.vae, z), scale_factor=2, mode="bilinear", align_corners=False)
            torch.testing.assert_close(target, encode(built.vae, large), rtol=1e-3, atol=1e-3)
        else:
            torch.testing.assert_close(target, decode(built.vae, z), rtol=1e-3, atol=1e-3)
        assert all(".tar: " in key for key in built.keys([first, first + 1]))
        assert built(batch)["loss"].isfinite()
    assert len(shapes) > 1
    figures = built.validate()
    names = {"error_96", "psnr_96"} if kind == "enlarger" else {"psnr_to_vae", "psnr", "psnr_vae"}
    assert figures.keys() == names | {"data_used", "data_broken", "data_left_out"}
    shown = built.recipe.validate_.images
    side, rows = (192, 2) if kind == "enlarger" else (96, 3)
    assert built.samples().size == (shown * side, rows * side)


def test_pictures_without_captions_will_do(runs: Path, tmp_path: Path) -> None:
    for number in range(4):
        picture(number, 96, 96).save(tmp_path / f"{number}.png")
    built = shard_objective("light_decoder", runs, tmp_path / "set", data__shards=[str(tmp_path)])
    assert built(built.batch(0, [0, 1]))["loss"].isfinite()


def test_faults_of_pictures_in_shards_are_noise_on_their_latents(runs: Path, tmp_path: Path) -> None:
    clean, faulty = (
        shard_objective("enlarger", runs, tmp_path / str(share), data__degraded_share=share) for share in (0.0, 1.0)
    )
    for first in range(0, 8, 2):
        a, b = (built.batch(first, [first, first + 1])["z"] for built in (clean, faulty))
        levels = (b - a).flatten(1).std(1)
        assert (levels > 0).all()
        assert (levels < 0.33).all()  # up to 0.3, of some hundreds of numbers
        assert (b - a).flatten(1).mean(1).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["enlarger", pytest.param("light_decoder", marks=pytest.mark.slow)])
def test_training_on_shards_goes_on_exactly_and_exports(runs: Path, tmp_path: Path, kind: str) -> None:
    """A run of 8 samples in one go, and one that stopped after 4 and went on."""
    short = {"train__images": 8, "train__batch": 2, "train__log_images": 2, "train__checkpoint_images": 4}
    made = parse_recipe(of_shards(kind, runs, tmp_path, **short, validate__images=2), "tiny")
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    train(made, through, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        advance = loop._Run._advance

        def kill(run: Any) -> dict[str, float]:
            if run.images == 6:
                raise RuntimeError("killed")
            return advance(run)

        patch.setattr(loop._Run, "_advance", kill)
        with pytest.raises(RuntimeError, match="killed"):
            train(made, stopped, device="cpu")
    train(made, stopped, device="cpu")
    component = KINDS[kind][0]
    a, b = (load_file(run / "weights" / component / WEIGHTS) for run in (through, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_wrong_data_of_light_parts_are_refused(runs: Path, tmp_path: Path) -> None:
    tables = of_shards("enlarger", runs, tmp_path)
    for changes, words in (
        ({"text": "x"}, r"data\.text: unknown; known here: vae, size, degraded_share, .*shards"),
        ({"latents": "require"}, r"data\.latents: Input should be 'never'"),
        ({"bucket_step": 64}, r"data\.bucket_step: .*does not divide size 96"),
        ({"shards": []}, r"data\.shards"),
    ):
        with pytest.raises(UserError, match=words):
            parse_recipe({**tables, "data": tables["data"] | changes}, "tiny")
    tables["data"]["shards"] = [str(tmp_path / "none" / "*.tar")]
    with pytest.raises(UserError, match="none"):
        build(parse_recipe(tables, "tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_resumes_exactly(runs: Path, kind: str, tmp_path: Path) -> None:
    long = {"train__images": 160, "train__log_images": 40, "data__pictures": 4, "train__checkpoint_images": 80}
    long |= {"validate__every_images": 1000, "validate__images": 1}
    train(recipe(kind, runs, **long), tmp_path / "run", device="cpu")

    def losses() -> list[float]:
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        return [entry["loss"] for line in lines if "loss" in (entry := json.loads(line))]

    whole = losses()
    assert whole[-1] < 0.8 * whole[0]
    last = tmp_path / "run" / "checkpoints" / "images-160"
    for file in sorted(last.iterdir()):
        file.unlink()
    last.rmdir()
    train(recipe(kind, runs, **long), tmp_path / "run", device="cpu")
    assert losses() == whole


def test_runs_hold_the_component_and_a_sample(light_runs: Path, runs: Path) -> None:
    for kind, (component, network) in KINDS.items():
        loaded = network.from_pretrained(weights_folder(light_runs / kind, component))
        assert loaded.config.width == 8
        assert (light_runs / kind / "samples" / "images-10.png").is_file()
        further = build(recipe(kind, runs, recipe__start_from=str(light_runs / kind)))
        for name, value in further.trained.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name])
        with pytest.raises(UserError, match=f"no {component} in"):
            build(recipe(kind, runs, recipe__start_from=str(runs / "vae")))


@pytest.mark.parametrize(
    "names",
    [
        ("latent_enlarger", "light_decoder"),
        pytest.param(("light_decoder",), marks=pytest.mark.slow),
        pytest.param((), marks=pytest.mark.slow),
    ],
)
def test_exported_parts_give_every_mode_a_light_one(
    runs: Path, light_runs: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    folders = {component: light_runs / kind for kind, (component, _) in KINDS.items() if component in names}
    arguments = {name: runs / name for name in ("vae", "text", "base", "relay")}
    modes = {"2+1": as_distilled(runs, tmp_path / "distilled")}
    sampling = {"steps": 3, "relay_steps": 2, "sampler": "dpm++", "relay_order": 2}
    result = export(**arguments, modes=modes, out=tmp_path / "model", sampling=sampling, light=folders)
    light = ["3+2-light", "2+1-light"] if names else []
    assert result["modes"] == ["3+2", "2+1", *light]
    assert set(names) <= set(result["components"])
    table = json.loads((tmp_path / "model" / "sampling.json").read_text())["modes"]
    assert (table["3+2"]["sampler"], table["3+2"]["relay_order"]) == ("dpm++", 2)
    assert not {"sampler", "relay_order"} & table["2+1"].keys()  # distilled for Euler's steps
    for name in light:
        assert table[name] == {**table[name.removesuffix("-light")], "light": True}
    pipe = CogView3Pipeline.from_pretrained(str(tmp_path / "model"), mode=(light or ["3+2"])[0])
    for component in ("latent_enlarger", "light_decoder"):
        assert (getattr(pipe, component) is not None) == (component in names)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red star", generator=torch.Generator().manual_seed(0)).images[0].size == (128, 128)


def test_a_missing_part_is_named(runs: Path, light_runs: Path, tmp_path: Path) -> None:
    arguments = {name: runs / name for name in ("vae", "text", "base", "relay")}
    light = {"latent_enlarger": light_runs / "light_decoder"}
    with pytest.raises(UserError, match="no latent_enlarger in"):
        export(**arguments, modes={}, out=tmp_path / "model", light=light)
    assert not (tmp_path / "model").exists()


def test_the_vae_that_is_imitated_is_the_run_s(runs: Path) -> None:
    decoder = objective("light_decoder", runs)
    pictures = torch.zeros(1, 3, 64, 64)
    assert encode(decoder.vae, pictures).shape == (1, 4, 8, 8)
    assert not any(parameter.requires_grad for parameter in decoder.vae.parameters())
    assert not any(name.startswith("_frozen") for name, _ in decoder.named_parameters())
