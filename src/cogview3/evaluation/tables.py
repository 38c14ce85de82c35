"""Models side by side on the same prompts and the same noise: figures, a table and grids of pictures."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from rich.table import Table
from torch import Tensor

from cogview3 import __version__, checkpoints
from cogview3.config import UserError
from cogview3.data.latents import decode, to_uint8
from cogview3.evaluation.metrics import METRICS, Drawn, Metric, enlarge_to, make_metrics
from cogview3.evaluation.progress import Counter, silent
from cogview3.evaluation.prompt_sets import Prompt, load_prompts
from cogview3.evaluation.response import Response, columns
from cogview3.generation.inputs import vae_factor
from cogview3.generation.loading import load_sampling, resolve_model, unloadable
from cogview3.generation.modes import pick_mode
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.prompts.expand import Expander

GRID_PICTURES, GRID_COLUMNS = 24, 8


@dataclass(frozen=True)
class Overrides:
    """How pictures are sampled, where the model's mode is not to decide: None leaves it to the mode."""

    steps: int | None = None
    relay_steps: int | None = None
    guidance: float | None = None
    relay_guidance: float | None = None
    relays: int | None = None
    sampler: str | None = None
    light: bool | None = None

    def arguments(self) -> dict[str, Any]:
        """The pipeline's arguments."""
        return {
            "num_inference_steps": self.steps,
            "relay_steps": self.relay_steps,
            "guidance_scale": self.guidance,
            "relay_guidance_scale": self.relay_guidance,
            "num_relays": self.relays,
            "sampler": self.sampler,
            "light": self.light,
        }


def evaluate(
    models: Sequence[str],
    prompts: str = "scenes-heldout",
    count: int | None = None,
    metrics: Sequence[str] = ("scene",),
    *,
    seed: int = 0,
    out: Path | None = None,
    batch: int = 8,
    responses: Sequence[tuple[float, float]] = (),
    expander: Expander | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    counter: Counter = silent,
    **overrides: int | float | str | None,
) -> dict[str, Any]:
    """Draw every prompt with every model, and score the pictures.

    Picture i starts from noise that depends on `seed` and i alone, in every model and whatever the batch. Metrics that
    compare take the first model as reference. Some draw it once more from other noise, for a measure of what they give;
    the models themselves share their noise, and so may come nearer than that.

    Args:
        models: bundled names, folders or hub names, each perhaps with a mode and with step counts, see `split_model`.
        prompts: a built-in set or a file, see `load_prompts`.
        count: number of prompts; None is all of a file and 500 of a built-in set.
        metrics: names in `cogview3.evaluation.metrics.METRICS`.
        seed: 0 or more.
        out: folder for results.json and, of each model, grid-MODEL.png (the first 24 pictures, each beside its
            enlarged base picture where there is a relay) and pictures-MODEL.jsonl (the scores of each).
        batch: pictures drawn at once.
        responses: pairs of guidance scales; for each, how the pictures change from one to the other, against how the
            first model's do (`evaluation.response`); the relay's guidance stays. Takes two models or more.
        expander: writes out the prompts before they are drawn; scored is what the prompts themselves ask for.
        device: where the networks run.
        dtype: their number format.
        counter: progress bars.
        overrides: the fields of `Overrides`.

    Returns:
        What results.json holds: the arguments, and under "models" for each model how it was sampled, the seconds
        that drawing took, and one entry for each metric.

    Raises:
        UserError: a model, mode, metric or prompt that cannot be used, or models of different picture sizes where the
            same is needed; before any picture is drawn.
    """
    given = Overrides(**overrides)
    chosen = {model: split_model(model, given) for model in models}
    _check(models, chosen.values(), batch, responses)
    loaded = load_prompts(prompts, count)
    make_metrics(metrics, loaded, seed)
    if len(models) > 1 and (responses or any(METRICS[name].needs_one_size for name in metrics)):
        _check_sizes(chosen)
    results: dict[str, Any] = {
        "version": __version__,
        "prompts": prompts,
        "count": len(loaded),
        "seed": seed,
        "models": {},
    }
    told = loaded
    if expander is not None:
        expansions = expander.expand_all([prompt.text for prompt in loaded])
        told = [replace(prompt, text=each.text) for prompt, each in zip(loaded, expansions, strict=True)]
        kept = {each.prompt: each.reason for each in expansions if each.reason}
        results["expander"] = {"model": expansions[0].model, "unexpanded": kept}
    files = _file_names(chosen)
    reference: dict[str, Metric] = {}
    first_changes: list[list[Tensor]] = []  # of the first model, batch by batch
    for name, (model, mode, sampling) in chosen.items():
        pipe = CogView3Pipeline.from_pretrained(model, mode=mode, dtype=dtype).to(device)
        pipe.set_progress_bar_config(disable=True)
        own = make_metrics(metrics, loaded, seed)
        with counter(name, len(loaded)) as progress:
            outcome = _evaluate_one(draw(pipe, told, seed, batch, sampling), loaded, own, progress)
        if reference:
            for key, metric in own.items():
                outcome.entry[key] |= metric.compare(reference[key]) or {}
        else:
            reference = own
            for key, floor in _floors(pipe, loaded, told, seed, batch, sampling, own, counter).items():
                outcome.entry[key]["floor"] = floor
        if responses:
            with counter(f"{name}, guidance", len(loaded)) as progress:
                changes = _changes(pipe, told, seed, batch, sampling, responses, progress)
                outcome.entry["guidance_response"] = _responses(changes, first_changes, responses, seed)
        results["models"][name] = _how(pipe, sampling) | outcome.entry
        if out is not None:  # after each model: a later one may fail
            outcome.write(out, files[name])
            checkpoints.write_text(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    return results


def _floors(
    pipe: CogView3Pipeline,
    prompts: Sequence[Prompt],
    told: Sequence[Prompt],
    seed: int,
    batch: int,
    sampling: Overrides,
    metrics: dict[str, Metric],
    counter: Counter,
) -> dict[str, dict[str, Any]]:
    """What metrics that compare models give for the first one against itself, drawn again from other noise."""
    again = {name: type(metric)(prompts, seed) for name, metric in metrics.items() if metric.has_floor}
    if again:
        with counter("the same from other noise", len(prompts)) as progress:
            _evaluate_one(draw(pipe, told, seed + 1, batch, sampling, with_base=False), prompts, again, progress)
    return {name: metrics[name].compare(metric) for name, metric in again.items()}


def _changes(
    pipe: CogView3Pipeline,
    prompts: Sequence[Prompt],
    seed: int,
    batch: int,
    sampling: Overrides,
    responses: Sequence[tuple[float, float]],
    progress: Callable[[int], None],
) -> Iterator[list[Tensor]]:
    """How each batch changes between the two guidance scales of each pair, the noise being the same.

    A tensor for each pair, (B, 3, size, size), float16 in [-2, 2].
    """
    scales = sorted({scale for pair in responses for scale in pair})
    runs = [draw(pipe, prompts, seed, batch, replace(sampling, guidance=scale), with_base=False) for scale in scales]
    for drawn in zip(*runs, strict=True):
        at = {scale: one.pictures.float() for scale, one in zip(scales, drawn, strict=True)}
        yield [(at[high] - at[low]).half().cpu() for low, high in responses]
        progress(drawn[0].indices[-1] + 1)


def _responses(
    batches: Iterable[list[Tensor]],
    reference: list[list[Tensor]],
    responses: Sequence[tuple[float, float]],
    seed: int,
) -> list[dict[str, Any]]:
    """The figures of each pair of scales, against the first model's changes; these are put into an empty `reference`.

    Of other models one batch at a time is held.
    """
    first = not reference
    found = [Response(seed) for _ in responses]
    for number, changes in enumerate(batches):
        if first:
            reference.append(changes)
        for response, own, other in zip(found, changes, reference[number], strict=True):
            response.update(own, other)
    return [{"guidance": list(pair), **each.result()} for pair, each in zip(responses, found, strict=True)]


def split_model(model: str, sampling: Overrides | None = None) -> tuple[str, str | None, Overrides]:
    """Model, mode and sampling of "MODEL[@MODE][:STEPS[+RELAY_STEPS]]"; a folder's name as it stands has neither.

    "scenes:4+1" is the model's default mode in 4 base steps and 1 relay step; "scenes@4+1" is a mode of that name.

    Args:
        model: as above.
        sampling: what else is asked for; step counts in `model` come before its own.

    Raises:
        UserError: a part is missing.
    """
    sampling = sampling or Overrides()
    if Path(model).is_dir():
        return model, None, sampling
    name, at, mode = model.rpartition("@")
    steps = re.search(r":(\d{1,4})(?:\+(\d{1,4}))?$", mode, re.ASCII)
    if steps:
        base, relay = (int(count) if count else None for count in steps.groups())
        sampling = replace(sampling, steps=base, relay_steps=sampling.relay_steps if relay is None else relay)
        mode = mode[: steps.start()]
    if not at:
        name, mode = mode, ""
    if not name or (at and not mode):
        raise UserError(f"model {model!r}: write MODEL, MODEL@MODE or MODEL:STEPS, such as scenes@4+1 or scenes:4+1")
    return name, mode or None, sampling


def _check(
    models: Sequence[str],
    chosen: Iterable[tuple[str, str | None, Overrides]],
    batch: int,
    responses: Sequence[tuple[float, float]],
) -> None:
    """Refuse models and modes that do not exist, or do not go with what is asked for, before any is loaded."""
    if not models:
        raise UserError("no models: give at least one")
    if batch < 1:
        raise UserError(f"batch is {batch}: give 1 or more")
    if doubles := sorted({model for model in models if models.count(model) > 1}):
        raise UserError(f"model {doubles[0]} is given twice: give each model and mode once")
    if responses and len(models) < 2:
        raise UserError("the response to guidance compares models with the first: give two or more")
    for low, high in responses:
        if not 0 <= low < high:
            raise UserError(f"guidance response {low:g} to {high:g}: give a lower scale first, as in 1 to 7.5")
    for model, mode, sampling in chosen:
        mode_name, entry = pick_mode(load_sampling(resolve_model(model)), mode, model)
        for scale in [sampling.guidance, *(scale for pair in responses for scale in pair)]:
            entry.check_distilled(str(mode_name), asdict(replace(sampling, guidance=scale)))


def _check_sizes(chosen: dict[str, tuple[str, str | None, Overrides]]) -> None:
    """Refuse models whose pictures are not of the first one's size; reads their configurations alone."""
    sizes: dict[str, list[int]] = {}
    for name, (model, mode, sampling) in chosen.items():
        source = resolve_model(model)
        _, entry = pick_mode(load_sampling(source), mode, model)
        try:
            unet = UNet2DConditionModel.load_config(source, subfolder=entry.unet or "unet")
            vae = AutoencoderKL.load_config(source, subfolder="vae")
            has_relay = CogView3Pipeline.load_config(source).get("relay_unet", [None])[0] is not None
        except OSError as error:
            raise unloadable(source, error) from error
        side, relays = unet["sample_size"], int(has_relay) if sampling.relays is None else sampling.relays
        sides = side if isinstance(side, list) else [side or 0] * 2  # without one, drawing refuses it
        sizes[name] = [one * vae_factor(vae["block_out_channels"]) * 2**relays for one in sides]
    first, size = next(iter(sizes.items()))
    for name, other in sizes.items():
        if other != size:
            raise UserError(
                f"{name} draws {other[0]} x {other[1]} pixels and {first} {size[0]} x {size[1]}, but guidance "
                "responses and Fréchet distances are of pictures of one size; give models that draw the same size"
            )


def _file_names(models: Iterable[str]) -> dict[str, str]:
    """What each model's files are called; "scenes" and "./scenes" are two models, and so scenes and scenes-2."""
    names: dict[str, str] = {}
    for model in models:
        plain = name = re.sub(r"[^\w.@+-]+", "-", model).strip("-.") or "model"
        number = 1
        while name in names.values():
            number += 1
            name = f"{plain}-{number}"
        names[model] = name
    return names


def generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator a picture, on the CPU: its noise depends on the seed and the picture's number alone."""
    seeds = [np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] for index in indices]
    return [torch.Generator().manual_seed(int(value >> np.uint64(1))) for value in seeds]


def draw(
    pipe: CogView3Pipeline,
    prompts: Sequence[Prompt],
    seed: int,
    batch: int,
    sampling: Overrides,
    with_base: bool = True,
) -> Iterator[Drawn]:
    """Pictures of all prompts, batch by batch, and `with_base` the base pictures of the very same runs."""
    base_steps = pipe.mode.steps if sampling.steps is None else sampling.steps
    captured: dict[str, Tensor] = {}

    def capture(pipeline: CogView3Pipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        if step == base_steps - 1:
            captured["base"] = tensors["latents"]
        return {}

    for first in range(0, len(prompts), batch):
        indices = range(first, min(first + batch, len(prompts)))
        start = time.perf_counter()
        pictures = pipe(
            [prompts[index].text for index in indices],
            generator=generators(seed, indices),
            output_type="pt",
            callback_on_step_end=capture,
            **sampling.arguments(),
        ).images
        if pictures.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - start
        enlarged = with_base and pipe.num_timesteps > base_steps
        base = decode(pipe.vae, captured["base"]).float() if enlarged else None
        yield Drawn(indices, pictures * 2 - 1, base, pipe.vae, seconds)


@dataclass(frozen=True)
class _Outcome:
    """What one model gave: its entry in the results, a record of each picture, and the grid's tiles."""

    entry: dict[str, Any]
    records: list[dict[str, Any]]
    tiles: list[np.ndarray]

    def write(self, out: Path, name: str) -> None:
        """Write records and grid, each file whole or not at all."""
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in self.records]
        checkpoints.write_text(out / f"pictures-{name}.jsonl", "\n".join(lines) + "\n")
        with checkpoints.whole_file(out / f"grid-{name}.png") as temporary:
            grid(self.tiles).save(temporary, format="PNG")


def _evaluate_one(
    batches: Iterable[Drawn],
    prompts: Sequence[Prompt],
    metrics: dict[str, Metric],
    progress: Callable[[int], None],
) -> _Outcome:
    """Score pictures as they are drawn; `seconds` counts the drawing alone."""
    records: list[dict[str, Any]] = []
    tiles: list[np.ndarray] = []
    seconds = 0.0
    for drawn in batches:
        seconds += drawn.seconds
        records += _records(drawn, prompts, metrics)
        if len(tiles) < GRID_PICTURES:
            tiles += _tiles(drawn)[: GRID_PICTURES - len(tiles)]
        progress(len(records))
        size = drawn.pictures.shape[-1]
    figures = {name: metric.result() for name, metric in metrics.items()}
    return _Outcome({"size": size, "seconds": seconds, **figures}, records, tiles)


def _records(drawn: Drawn, prompts: Sequence[Prompt], metrics: dict[str, Metric]) -> list[dict[str, Any]]:
    notes = {name: metric.update(drawn) for name, metric in metrics.items()}
    records = []
    for place, index in enumerate(drawn.indices):
        prompt = prompts[index]
        record = {"index": index, "text": prompt.text, "objects": len(prompt.objects), "held_out": prompt.held_out}
        records.append(record | {name: noted[place] for name, noted in notes.items()})
    return records


def _tiles(drawn: Drawn) -> list[np.ndarray]:
    """Each picture, (H, W, 3) uint8, to the right of its enlarged base picture where there is one."""
    pairs = [drawn.pictures]
    if drawn.base is not None:
        pairs.insert(0, enlarge_to(drawn.base, drawn.pictures.shape[-1]))
    return [np.hstack(pair) for pair in zip(*map(to_uint8, pairs), strict=True)]


def _how(pipe: CogView3Pipeline, sampling: Overrides) -> dict[str, Any]:
    """The mode, and the settings that hold: those given, else the mode's."""
    own = {
        "steps": pipe.mode.steps,
        "relay_steps": pipe.mode.relay_steps,
        "guidance": pipe.mode.guidance,
        "relay_guidance": pipe.mode.relay_guidance_scale,
        "relays": int(pipe.relay_unet is not None),
    }
    given = {key: value for key, value in asdict(sampling).items() if value is not None}
    own |= {key: value for key in ("sampler", "light") if (value := getattr(pipe.mode, key)) is not None}
    return {"mode": pipe.mode_name} | own | given


def grid(tiles: Sequence[np.ndarray]) -> Image.Image:
    """Tiles (H, W, 3), uint8, of one size, row by row: 8 pictures' heights wide at most, and as high as it takes."""
    height, width = tiles[0].shape[:2]
    columns = min(len(tiles), max(1, GRID_COLUMNS * height // width))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (number % columns * width, number // columns * height))
    return sheet


def show(results: dict[str, Any]) -> list[Table]:
    """The figures as tables, ready for rich to print: one of the scene metric for each model, then comparisons."""
    tables = [_scene_table(name, entry) for name, entry in results["models"].items() if "scene" in entry]
    entries = results["models"]
    first = next(iter(entries))
    if "frechet" in entries[first]:
        tables.append(_frechet_table(first, {name: entry["frechet"] for name, entry in entries.items()}))
    if any("compared" in entry.get("scene", {}) for entry in entries.values()):
        tables.append(Table("model", f"facts, of {first}'s", "95 % interval", "difference", "95 % interval"))
        for name, entry in entries.items():
            if figures := entry["scene"].get("compared"):
                keys = ("ratio", "ratio_interval", "difference", "interval")
                tables[-1].add_row(name, *(_cell(figures[key]) for key in keys))
    if "guidance_response" in entries[first]:
        heads = columns(entries[first]["guidance_response"])
        title = f"Change with guidance, against {first}'s: correlation and pooled R², of pixels and of 8 x 8 means"
        tables.append(Table("model", *heads, title=title, title_justify="left"))
        for name, entry in entries.items():
            tables[-1].add_row(name, *map(_cell, columns(entry["guidance_response"]).values()))
    return tables


def _frechet_table(first: str, entries: dict[str, dict[str, Any]]) -> Table:
    heads = ("of all pictures", "extrapolated", "95 % interval")
    table = Table("Fréchet distance", *heads)
    for name, entry in entries.items():
        label = f"{name}, other noise" if name == first else name
        rows = {f"{label} to {first}": entry.get("floor", entry), f"{name} to renders": entry.get("renders")}
        for title, figures in rows.items():
            if figures:
                table.add_row(title, *(_cell(figures[key], 4) for key in ("distance", "extrapolated", "interval")))
    return table


def _scene_table(name: str, entry: dict[str, Any]) -> Table:
    rows = {title: entry["scene"][key] for key, title in _COLUMNS.items() if entry["scene"][key]}
    how = f"{entry['steps']}+{entry['relay_steps'] * entry['relays']} steps, guidance {entry['guidance']:g}"
    table = Table("share right", *rows, title=f"{name}: {how}, {entry['size']} x {entry['size']}", title_justify="left")
    for label, pick in _LINES.items():
        values = [pick(row) for row in rows.values()]
        if any(value is not None for value in values):
            table.add_row(label, *(_cell(value) for value in values))
    for group, keys in _groups(rows["model"]):
        table.add_section()
        for key in keys:
            table.add_row(_label(group, key), *(_cell(row[group].get(key)) for row in rows.values()))
    table.add_section()
    energy = entry["scene"]["gradient_energy"]
    table.add_row("gradient energy", *(_cell(energy.get(key)) for key, title in _COLUMNS.items() if title in rows))
    return table


_COLUMNS = {
    "model": "model",
    "base_enlarged": "base enlarged",
    "chance": "chance",
    "ceiling": "ceiling",
    "ceiling_enlarged": "ceiling enlarged",
}
_LINES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "all facts": lambda row: row["share"],
    "95 % interval": lambda row: row["interval"],
    "fill and outline": lambda row: row["fine"],
    "pictures wholly": lambda row: row["whole"],
    "one-object pictures wholly": lambda row: row["one_object_whole"],
    "seen triples": lambda row: row["seen"],
    "held-out triples": lambda row: row["held_out"],
}


def _groups(row: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for group in ("objects", "kinds"):
        yield group, list(row[group])


def _label(group: str, key: str) -> str:
    return f"{key} object{'s' * (key != '1')}" if group == "objects" else key


def _cell(value: Any, digits: int = 3) -> str:
    if value is None:
        return "-"
    return " to ".join(f"{bound:.{digits}f}" for bound in (value if isinstance(value, list) else [value]))
