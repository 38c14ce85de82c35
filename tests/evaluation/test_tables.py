"""Models side by side: the same noise for all, files whole, errors before work."""

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cogview3 import CogView3Pipeline
from cogview3.config import UserError
from cogview3.data.latents import to_uint8
from cogview3.evaluation.drawing import draw_batch, generators
from cogview3.evaluation.evaluate import evaluate
from cogview3.evaluation.prompt_sets import load_prompts
from cogview3.evaluation.report import grid
from cogview3.evaluation.response import Response
from cogview3.evaluation.systems import split_model
from cogview3.evaluation.tables import show
from cogview3.models.modes import Overrides
from cogview3.prompts.expand import Expander


def drawn(pipe: CogView3Pipeline, batch: int, **overrides: int) -> tuple[torch.Tensor, torch.Tensor]:
    prompts, batches = (
        load_prompts("scenes-brief", 3),
        [range(3)[first : first + batch] for first in range(0, 3, batch)],
    )
    parts = [draw_batch(pipe, prompts, indices, 7, Overrides(**overrides)) for indices in batches]
    return torch.cat([part.pictures for part in parts]), torch.cat([part.base for part in parts])


def open_grid(folder: Path) -> np.ndarray:
    with Image.open(next(folder.glob("grid-*.png"))) as image:
        return np.asarray(image)


def test_a_picture_does_not_depend_on_its_batch(pipe: CogView3Pipeline) -> None:
    together, alone = drawn(pipe, batch=3), drawn(pipe, batch=2)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # float32 sums in another order, clamped to 1


def test_base_pictures_are_those_of_the_same_run(pipe: CogView3Pipeline) -> None:
    prompts = load_prompts("scenes-brief", 3)
    _, base = drawn(pipe, batch=3)
    texts = [prompt.text for prompt in prompts]
    options = {"num_relays": 0, "generator": generators(7, range(3)), "output_type": "pt"}
    torch.testing.assert_close(base, pipe(texts, **options).images * 2 - 1, rtol=0, atol=1e-5)


def test_overrides_reach_the_pipeline(pipe: CogView3Pipeline) -> None:
    prompts = load_prompts("scenes-brief", 1)
    settings = Overrides(steps=3, relay_steps=2, guidance=1.5, relay_guidance=2.0, relays=2)
    part = draw_batch(pipe, prompts, range(1), 0, settings)
    assert part.pictures.shape == (1, 3, 256, 256)
    assert part.base.shape == (1, 3, 64, 64)
    assert pipe.num_timesteps == 3 + 2 * 2
    assert (pipe.guidance_scale, pipe.relay_guidance_scale) == (1.5, 2.0)


def test_noise_differs_by_seed_and_picture() -> None:
    firsts = [torch.randn(4, generator=g) for seed in range(3) for g in generators(seed, range(5))]
    assert len({tuple(values.tolist()) for values in firsts}) == 15
    again = torch.randn(4, generator=generators(2, [4])[0])
    assert torch.equal(again, firsts[-1])


@pytest.mark.usefixtures("nothing_read")
def test_prompts_may_be_expanded_before_they_are_drawn(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptions are drawn; records and scores are of the prompts. One that loses its intent is drawn itself."""
    prompts = [prompt.text for prompt in load_prompts("scenes-brief", 2)]

    class Writer:
        name, identity = "writer", "writer"

        def write(self, prompt: str, number: int, earlier: str, lost: Sequence[str]) -> list[str]:
            return ["nothing"] if prompt == prompts[1] else [f"a picture of {prompt}"]

    drawn_texts: list[str] = []
    call = CogView3Pipeline.__call__

    def recording(pipe: CogView3Pipeline, texts: list[str], **options: Any) -> Any:
        drawn_texts.extend(texts)
        return call(pipe, texts, **options)

    monkeypatch.setattr(CogView3Pipeline, "__call__", recording)
    given = {"count": 2, "metrics": ["scene"], "relays": 0}
    result = evaluate([str(model)], "scenes-brief", **given, expander=Expander(Writer()), out=tmp_path)
    assert drawn_texts == [f"a picture of {prompts[0]}", prompts[1]]
    assert result["expander"]["model"] == "writer"
    assert list(result["expander"]["unexpanded"]) == [prompts[1]]
    lines = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    assert [line["text"] for line in lines] == prompts


def test_what_is_written_is_what_is_returned(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ticks: list[tuple[str, int, int]] = []

    @contextmanager
    def counter(name: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: ticks.append((name, total, done))

    names = [str(model), f"{model}@2+1-fast"]
    results = evaluate(names, "scenes-heldout", 3, seed=5, out=out, batch=2, counter=counter)
    bars = [bar for name in names for bar in ((f"pictures of {name}", (0, 2, 3)), (f"scores of {name}", (2, 3)))]
    assert ticks == [(name, 3, done) for name, counts in bars for done in counts]
    assert json.loads((out / "results.json").read_text()) == results
    assert (results["prompts"], results["count"], results["seed"]) == ("scenes-heldout", 3, 5)
    assert list(results["models"]) == names
    entry = results["models"][names[0]]
    settings = {"mode": "2+1", "steps": 2, "relay_steps": 1, "guidance": 3.0, "relay_guidance": 3.0, "relays": 1}
    assert settings.items() <= entry.items()
    assert entry["size"] == 128
    assert entry["seconds"] > 0
    assert results["models"][names[1]]["mode"] == "2+1-fast"

    files = {path.name for path in out.iterdir()}
    kinds = {"index.html", "pictures", "quality_time.png", "report.md", "results.csv", "results.json", "run.json"}
    assert kinds <= files
    assert len(files) == len(kinds) + 2 * 2
    records = [json.loads(line) for line in next(out.glob("pictures-*tiny.jsonl")).read_text().splitlines()]
    prompts = load_prompts("scenes-heldout", 3)
    assert [record["text"] for record in records] == [prompt.text for prompt in prompts]
    assert [record["held_out"] for record in records] == [False, True, False]
    shares = [sum(record["scene"][key] for record in records) for key in ("right", "facts")]
    assert shares[0] / shares[1] == entry["scene"]["model"]["share"]


@pytest.mark.usefixtures("nothing_read")
def test_two_models_of_one_name_are_written_apart(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    names = [model.name, f"./{model.name}"]
    evaluate(names, "scenes-heldout", 1, out=tmp_path / "out")
    files = [f"{kind}-{model.name}{number}" for kind in ("grid", "pictures") for number in ("", "-2")]
    written = [path for path in (tmp_path / "out").iterdir() if path.name.startswith(("grid-", "pictures-"))]
    assert sorted(path.stem for path in written) == files
    assert sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir()) == [model.name, f"{model.name}-2"]


@pytest.mark.usefixtures("nothing_read")
def test_the_grid_shows_base_and_final_picture_of_each_prompt(
    model: Path, tmp_path: Path, pipe: CogView3Pipeline
) -> None:
    evaluate([str(model)], "scenes-brief", 3, seed=7, out=tmp_path, batch=3)
    sheet = open_grid(tmp_path)
    assert sheet.shape == (128, 3 * 256, 3)
    pictures, _ = drawn(pipe, batch=3)
    np.testing.assert_array_equal(sheet[:, 128:256], to_uint8(pictures)[0])


def test_without_a_relay_there_is_nothing_to_compare(model: Path, tmp_path: Path) -> None:
    results = evaluate([str(model)], "scenes-brief", 2, out=tmp_path, relays=0)
    (entry,) = results["models"].values()
    assert entry["size"] == 64
    assert entry["scene"]["base_enlarged"] is entry["scene"]["fine_gain"] is None
    assert open_grid(tmp_path).shape == (64, 2 * 64, 3)


def test_the_table_shows_every_figure_beside_chance_and_ceiling(model: Path) -> None:
    results = evaluate([str(model)], "scenes-heldout", 2)
    text = io.StringIO()
    table, stated = show(results)  # of one model: nothing is compared
    Console(file=text, width=200).print(table.rich())
    lines = text.getvalue().splitlines()
    row = results["models"][str(model)]["scene"]
    (facts,) = [line for line in lines if "all facts" in line]
    columns = ("model", "base_enlarged", "chance", "ceiling", "ceiling_enlarged")
    figures = [f"{row[key]['share']:.3f}" for key in columns]
    bounds = " to ".join(f"{bound:.3f}" for bound in row["model"]["interval"])
    assert re.split(r" {2,}", facts.strip())[1:] == [*figures, bounds]
    fills = {line[0]: line[1] for line in stated.rows if line[0].startswith("fill: ")}
    assert fills == {f"fill: {name}": f"{share:.3f}" for name, share in row["model"]["values"]["fill"].items()}
    counts = [f"{number} object{'s' * (number != '1')}" for number in row["model"]["objects"]]
    for label in ("held-out combinations", "fill and outline", "gradient energy", *counts, *row["model"]["kinds"]):
        assert any(line.strip().startswith(f"{label} ") for line in lines), label
    narrow = io.StringIO()
    Console(file=narrow, width=80).print(table.rich())
    assert bounds in narrow.getvalue()  # an interval is never broken


@pytest.mark.usefixtures("nothing_read")
def test_step_counts_behind_the_model_are_sampled(model: Path) -> None:
    names = [str(model), f"{model}:1+2"]
    entries = evaluate(names, "scenes-heldout", 2)["models"]
    assert [(entries[name]["steps"], entries[name]["relay_steps"]) for name in names] == [(2, 1), (1, 2)]


@pytest.mark.usefixtures("nothing_read")
def test_responses_to_guidance_are_those_of_pictures_drawn_at_both_scales(model: Path) -> None:
    names = [str(model), f"{model}:3"]
    results = evaluate(names, "scenes-heldout", 2, responses=[(1, 3), (1, 6)])
    own, other = (results["models"][name]["guidance_response"] for name in names)
    assert [row["guidance"] for row in own] == [[1, 3], [1, 6]]
    assert [row["correlation"] for row in own] == pytest.approx([1, 1])  # the first is compared with itself
    prompts, expected = load_prompts("scenes-heldout", 2), []
    pipe = CogView3Pipeline.from_pretrained(model)
    for steps in (2, 3):
        low, high = (
            draw_batch(pipe, prompts, range(2), 0, Overrides(steps=steps, guidance=scale)).pictures.flatten(1).numpy()
            for scale in (1.0, 6.0)
        )
        expected.append(high - low)
    first, second = expected
    r2 = 1 - ((second - first) ** 2).sum() / ((first - first.mean()) ** 2).sum()
    assert other[1]["r2"] == pytest.approx(r2, abs=5e-3)
    values = [np.corrcoef(*pair)[0, 1] for pair in zip(*expected, strict=True)]
    assert other[1]["correlation"] == pytest.approx(np.mean(values), abs=2e-3)  # changes are kept in float16
    table = show(results)[-1]
    pairs = ("1 to 3", "1 to 6")
    kinds = ("", ", cells", ", R²", ", cells' R²")
    assert table.heads == ["model", *(pair + kind for pair in pairs for kind in kinds)]
    told = table.rows[1][5:]
    figures = other[1]["correlation"], other[1]["cells"]["correlation"], other[1]["r2"], other[1]["cells"]["r2"]
    assert told == [f"{value:.3f}" for value in figures]


@pytest.mark.usefixtures("nothing_read")
@pytest.mark.parametrize("asked", [{"responses": [(1, 3)]}, {"metrics": ["scene", "frechet"]}])
def test_models_of_different_sizes_are_refused_where_pictures_are_compared(
    model: Path, tmp_path: Path, asked: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": 16}))
    names = [str(model), str(other)]
    monkeypatch.setattr(CogView3Pipeline, "from_pretrained", None)  # nothing is loaded
    with pytest.raises(UserError, match=r"other draws 256 x 256 pixels and .*tiny 128 x 128.* one size; give models"):
        evaluate(names, "scenes-heldout", 2, **asked)
    monkeypatch.undo()
    if "responses" not in asked:
        assert len(evaluate(names, "scenes-heldout", 1)["models"]) == 2  # facts are compared whatever the size


@pytest.mark.usefixtures("nothing_read")
def test_a_model_that_fails_leaves_the_results_of_those_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = CogView3Pipeline.from_pretrained, []

    def fail_later(*arguments: Any, **options: Any) -> CogView3Pipeline:
        loaded.append(arguments)
        if len(loaded) > 1:
            raise MemoryError
        return load(*arguments, **options)

    monkeypatch.setattr(CogView3Pipeline, "from_pretrained", fail_later)
    with pytest.raises(MemoryError):
        evaluate([str(model), f"{model}:3"], "scenes-heldout", 1, out=tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["models"]) == [str(model)]
    assert results["models"][str(model)]["scene"]["model"]["pictures"] == 1


@pytest.mark.usefixtures("nothing_read")
def test_no_more_than_a_batch_of_changes_is_correlated_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, torch.dtype]] = []
    update = Response.update

    def note(self: Response, own: torch.Tensor, reference: torch.Tensor) -> None:
        given.append((len(own), reference.dtype))
        update(self, own, reference)

    monkeypatch.setattr(Response, "update", note)
    monkeypatch.setattr("cogview3.evaluation.response.correlations", lambda own, _: torch.arange(len(own)).double())
    results = evaluate([str(model), f"{model}:3"], "scenes-heldout", 3, batch=2, responses=[(1, 3)])
    assert given == [(2, torch.float16), (1, torch.float16)] * 2
    for entry in results["models"].values():
        (row,) = entry["guidance_response"]
        assert (row["correlation"], row["pictures"]) == (pytest.approx(1 / 3), 3)


def test_a_grid_wraps_at_eight_pictures() -> None:
    tiles = [np.full((4, 4, 3), value, np.uint8) for value in range(10)]
    sheet = np.asarray(grid(tiles))
    assert sheet.shape == (8, 32, 3)
    assert (sheet[5, 6] == 9).all()
    assert (sheet[5, 10] == 255).all()
    assert grid([np.zeros((4, 8, 3), np.uint8)] * 5).size == (4 * 8, 8)


@pytest.mark.parametrize(
    ("model_name", "expected"),
    [
        ("scenes", ("scenes", None, Overrides())),
        ("scenes@4+1", ("scenes", "4+1", Overrides())),
        ("a@b/model@8+2", ("a@b/model", "8+2", Overrides())),
        ("scenes:4+1", ("scenes", None, Overrides(steps=4, relay_steps=1))),
        ("a/b@50+10:20", ("a/b", "50+10", Overrides(steps=20))),
        ("C:/models/a", ("C:/models/a", None, Overrides())),
    ],
)
def test_mode_and_steps_stand_behind_the_model(model_name: str, expected: tuple[str, str | None, Overrides]) -> None:
    assert split_model(model_name) == expected


def test_steps_behind_the_model_come_before_those_for_all() -> None:
    given = Overrides(steps=7, relay_steps=3, guidance=2.0)
    assert split_model("scenes:4+1", given)[2] == Overrides(steps=4, relay_steps=1, guidance=2.0)
    assert split_model("scenes:4", given)[2] == Overrides(steps=4, relay_steps=3, guidance=2.0)
    assert split_model("scenes", given)[2] == given


@pytest.mark.parametrize("name", ["name@home", "name:4+1"])
def test_a_folder_may_be_named_like_that(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert split_model(str(folder)) == (str(folder), None, Overrides())


@pytest.mark.parametrize("model_name", ["@4+1", "scenes@", ":4+1", "scenes@:4"])
def test_half_a_name_is_refused(model_name: str) -> None:
    with pytest.raises(UserError, match="such as scenes@4"):
        split_model(model_name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "give at least one"),
        ({"models": ["{model}", "{model}"]}, "given twice"),
        ({"models": ["{model}", "nowhere"]}, "no model 'nowhere'"),
        ({"models": ["{model}", "{model}@9+9"]}, "no mode '9\\+9'"),
        ({"models": ["{model}", "{model}@2+1-fast"], "steps": 5}, "distilled for 2"),
        ({"models": ["{model}@2+1-fast:5"]}, "distilled for 2"),
        ({"models": ["{model}@2+1-fast:2+9"]}, "distilled for 1"),
        ({"responses": [(1.0, 7.5)]}, "give two or more"),
        ({"models": ["{model}", "{model}:4"], "responses": [(7.5, 1.0)]}, "a lower scale first"),
        ({"models": ["{model}", "{model}@2+1-ranged"], "responses": [(1.0, 7.5)]}, "distilled for 1 to 5"),
        ({"metrics": ["scene", "inception"]}, "no metric 'inception'"),
        ({"prompts": "drawbench"}, "not bundled"),
        ({"count": 0}, "give 1 or more"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_errors_come_before_any_picture(
    model: Path, tmp_path: Path, changes: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(CogView3Pipeline, "from_pretrained", refuse)
    call = {"models": ["{model}"], "prompts": "scenes-heldout", "count": 2, **changes}
    call["models"] = [name.format(model=model) for name in call["models"]]
    with pytest.raises(UserError, match=message):
        evaluate(**call, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_no_half_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        evaluate([str(model)], "scenes-brief", 1, out=tmp_path / "out", relays=0)
    assert not list((tmp_path / "out").rglob("*.png"))
    assert not list((tmp_path / "out").rglob("0*.json"))  # without a picture there is no record of one
