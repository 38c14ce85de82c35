"""Models side by side on the same prompts and the same noise: pictures, figures, tables and pages."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cogview3 import __version__, checkpoints
from cogview3.config import UserError
from cogview3.data.latents import to_tensor
from cogview3.evaluation import guidance, report
from cogview3.evaluation.folder import Folder, System
from cogview3.evaluation.metrics import METRICS, Drawn, Metric, Setting, make_metrics
from cogview3.evaluation.progress import Counter, silent
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.prompt_sets import load_prompts
from cogview3.evaluation.store import Store, claim
from cogview3.evaluation.systems import Own, find_system
from cogview3.evaluation.workers import fill
from cogview3.models.modes import Overrides
from cogview3.prompts.expand import Expander

MAX_PICTURES = 1_000_000
"""Most pictures that are drawn of one model."""


@dataclass(frozen=True)
class _Job:
    """What is the same for all systems."""

    prompts: list[Prompt]
    sent: list[Prompt]  # what the systems are given: the prompts, or their expansions
    names: Sequence[str]
    seed: int
    batch: int
    device: str
    dtype: torch.dtype
    processes: int
    setting: Setting
    counter: Counter
    pictures: Path

    def metrics(self) -> dict[str, Metric]:
        return make_metrics(self.names, self.prompts, self.seed, self.setting)


def evaluate(
    models: Sequence[str] = (),
    prompts: str = "scenes-heldout",
    count: int | None = None,
    metrics: Sequence[str] = ("scene",),
    *,
    images: Sequence[Path] = (),
    per_prompt: int = 1,
    seed: int = 0,
    out: Path | None = None,
    batch: int = 8,
    processes: int = 1,
    responses: Sequence[tuple[float, float]] = (),
    expander: Expander | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    setting: Setting | None = None,
    counter: Counter = silent,
    **overrides: Any,
) -> dict[str, Any]:
    """Draw every prompt with every model, and score the pictures.

    Picture i starts from noise that depends on `seed` and i alone, in every model and whatever the batch. Metrics that
    compare take the first model as reference. Some draw it once more from other noise, for a measure of what they give;
    the models themselves share their noise, and so may come nearer than that. Pictures are scored as they are saved, in
    8 bits.

    Args:
        models: bundled names, folders or hub names of our models or of any pipeline of diffusers, each perhaps with a
            mode and with step counts, see `systems.split_model`; or one of `baselines.BASELINES`.
        prompts: a built-in set or a file, see `load_prompts`.
        count: number of prompts; None is all of a file and 500 of a built-in set.
        metrics: names in `cogview3.evaluation.metrics.METRICS`.
        images: folders of pictures that other systems drew, see `folder.Folder`.
        per_prompt: pictures of each prompt.
        seed: 0 or more.
        out: folder for the pictures, results.json and .csv, report.md, index.html and, of each model, grid-MODEL.png
            (the first 24 pictures, each beside its enlarged base picture where there is a relay) and
            pictures-MODEL.jsonl (the scores of each). What is there already is not drawn again.
        batch: pictures drawn at once.
        processes: how many draw at the same time, each with a copy of the model.
        responses: pairs of guidance scales; for each, how the pictures change from one to the other, against how the
            first model's do (`evaluation.response`); the relay's guidance stays. Takes two models of ours or more.
        expander: writes out the prompts before they are drawn; scored is what the prompts themselves ask for.
        device: where the networks run.
        dtype: their number format.
        setting: weights and real pictures that metrics need.
        counter: progress bars.
        overrides: the fields of `Overrides`.

    Returns:
        What results.json holds: the arguments, and under "models" for each model how it was sampled, the seconds
        that drawing took, how many pictures failed and why, and one entry for each metric.

    Raises:
        UserError: a model, mode, metric or prompt that cannot be used, models of different picture sizes where the
            same is needed, or a folder that holds another run; before any picture is drawn.
    """
    _check(models, images, batch, per_prompt, processes, responses)
    given = Overrides(**overrides)
    systems: list[System] = [find_system(model, given) for model in models]
    _check_responses(systems, responses)
    asked = load_prompts(prompts, count)
    if (wanted := len(asked) * per_prompt) > MAX_PICTURES:
        raise UserError(f"per-prompt {per_prompt}: {wanted} pictures; at most {MAX_PICTURES} are drawn of a model")
    loaded = [prompt for prompt in asked for _ in range(per_prompt)]
    systems += [Folder(folder, loaded, per_prompt) for folder in images]
    make_metrics(metrics, loaded, seed, setting)
    if len(systems) > 1 and (responses or any(METRICS[name].needs_one_size for name in metrics)):
        _check_sizes(systems)
    results: dict[str, Any] = {
        "version": __version__,
        "prompts": prompts,
        "count": len(loaded) // per_prompt,
        "per_prompt": per_prompt,
        "seed": seed,
        "models": {},
    }
    with ExitStack() as stack:
        if out is not None:
            stack.enter_context(checkpoints.held(out))
            run = {"prompts": prompts, "seed": seed, "per_prompt": per_prompt, "expanded": expander is not None}
            claim(out / "run.json", run)
        sent = loaded
        if expander is not None:
            expansions = expander.expand_all([prompt.text for prompt in loaded])
            sent = [replace(prompt, text=each.text) for prompt, each in zip(loaded, expansions, strict=True)]
            kept = {each.prompt: each.reason for each in expansions if each.reason}
            results["expander"] = {"model": expansions[0].model, "unexpanded": kept}
        pictures = Path(stack.enter_context(TemporaryDirectory())) if out is None else out / "pictures"
        job = _Job(
            loaded, sent, metrics, seed, batch, device, dtype, processes, setting or Setting(), counter, pictures
        )
        _run(job, systems, responses, results, out)
    return results


def _run(
    job: _Job,
    systems: Sequence[System],
    responses: Sequence[tuple[float, float]],
    results: dict[str, Any],
    out: Path | None,
) -> None:
    """Draw and score each system; after each, everything is written, since a later one may fail."""
    files = file_names([system.name for system in systems])
    reference: dict[str, Metric] = {}
    first_changes: list[list[Tensor]] = []  # of the first model, batch by batch
    stores: dict[str, Store] = {}
    for system, file in zip(systems, files, strict=True):
        name = unique(system.name, results["models"], "{} ({})")  # a folder may be called like a model
        own, store = job.metrics(), _draw(job, system, name, file, job.seed)
        stores[name] = store
        with job.counter(f"scores of {name}", len(job.prompts)) as progress:
            outcome = _Scored.of(job, system, store, own, progress)
        if reference:
            for key, metric in own.items():
                outcome.entry[key] |= metric.compare(reference[key]) or {}
        else:
            reference = own
            for key, floor in _floors(job, system, name, file, own).items():
                outcome.entry[key]["floor"] = floor
        if responses and isinstance(system, Own):
            with job.counter(f"responses of {name}", len(job.prompts)) as progress:
                pipe = system.pipe(job.device, job.dtype)
                found = guidance.changes(pipe, job.sent, job.seed, job.batch, system.sampling, responses, progress)
                compared = guidance.compare_changes(found, first_changes, responses, job.seed)
                outcome.entry["guidance_response"] = compared
        results["models"][name] = system.how() | outcome.entry
        if isinstance(system, Own):
            system.free()
        if out is not None:
            outcome.write(out, file)
            report.write(out, results, stores)


def _draw(job: _Job, system: System, name: str, file: str, seed: int) -> Store:
    store = Store(job.pictures / file, job.sent, seed, system.how())
    if isinstance(system, Folder):  # its pictures may have changed since
        store.clear()
    with job.counter(f"pictures of {name}", len(job.prompts)) as progress:
        fill(system, store, job.batch, job.device, job.dtype, job.processes, progress)
    return store


def _floors(job: _Job, system: System, name: str, file: str, metrics: dict[str, Metric]) -> dict[str, dict[str, Any]]:
    """What metrics that compare models give for the first one against itself, drawn again from other noise."""
    again = {
        key: type(metric)(job.prompts, job.seed, job.setting) for key, metric in metrics.items() if metric.has_floor
    }
    if not again or isinstance(system, Folder):
        return {}
    store = _draw(job, system, f"{name} from other noise", f"{file}-other-noise", job.seed + 1)
    for drawn in _batches(job, store, None):
        for metric in again.values():
            metric.update(drawn)
    return {key: metrics[key].compare(metric) or {} for key, metric in again.items()}


def _batches(job: _Job, store: Store, vae: Any) -> Iterator[Drawn]:
    """The stored pictures in their order, those of one size together."""
    batch: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    for index in store.there():
        picture, base = store.load(index)
        if batch and (len(batch) == job.batch or picture.shape != batch[0][1].shape):
            yield _as_drawn(store, batch, vae)
            batch = []
        batch.append((index, picture, base))
    if batch:
        yield _as_drawn(store, batch, vae)


def _as_drawn(store: Store, batch: Sequence[tuple[int, np.ndarray, np.ndarray | None]], vae: Any) -> Drawn:
    indices, pictures, bases = zip(*batch, strict=True)
    base = None if any(each is None for each in bases) else to_tensor(list(bases))
    seconds = sum(store.records[index]["seconds"] for index in indices)
    return Drawn(indices, to_tensor(list(pictures)), base, vae, seconds)


@dataclass
class _Scored:
    """What one system gave: its entry in the results, a record of each picture, and the grid's tiles."""

    entry: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    tiles: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, job: _Job, system: System, store: Store, metrics: dict[str, Metric], progress: Any) -> "_Scored":
        """Score a system's pictures; those that failed are counted, and reported with their reasons."""
        scored, size = cls(), None
        needs_vae = any(metric.needs_vae for metric in metrics.values()) and all(each.scene for each in job.prompts)
        vae = system.vae(job.device, job.dtype) if needs_vae else None
        for drawn in _batches(job, store, vae):
            notes = {name: metric.update(drawn) for name, metric in metrics.items()}
            for place, index in enumerate(drawn.indices):
                scored.records.append(_record(job.prompts[index], index, {k: v[place] for k, v in notes.items()}))
            size = drawn.pictures.shape[-1]
            progress(len(scored.records))
        failed = store.failed()
        if failed and not scored.records:
            first, reason = next(iter(failed.items()))
            raise UserError(f"{system.name}: none of {len(failed)} pictures is there; number {first} is {reason}")
        scored.records += [_record(job.prompts[index], index, {"failed": why}) for index, why in failed.items()]
        scored.tiles = [report.side_by_side(*store.load(index)) for index in store.there()[: report.GRID_PICTURES]]
        seconds = [store.records[index]["seconds"] for index in store.there()]
        scored.entry = {
            "size": size,
            "seconds": float(sum(seconds)),
            "seconds_per_picture": float(np.median(seconds)),
            "failed": len(failed),
            "failures": {str(index): why for index, why in list(failed.items())[:20]},
            **{name: metric.result() for name, metric in metrics.items()},
        }
        return scored

    def write(self, out: Path, name: str) -> None:
        """Write records and grid, each file whole or not at all."""
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in self.records]
        checkpoints.write_text(out / f"pictures-{name}.jsonl", "\n".join(lines) + "\n")
        with checkpoints.whole_file(out / f"grid-{name}.png") as temporary:
            report.grid(self.tiles).save(temporary, format="PNG")


def _record(prompt: Prompt, index: int, notes: dict[str, Any]) -> dict[str, Any]:
    known = {"index": index, "text": prompt.text, "objects": len(prompt.objects), "held_out": prompt.held_out}
    return known | dict(prompt.tags) | notes


def _check(
    models: Sequence[str],
    images: Sequence[Path],
    batch: int,
    per_prompt: int,
    processes: int,
    responses: Sequence[tuple[float, float]],
) -> None:
    """Refuse what can be refused without looking anywhere."""
    if not models and not images:
        raise UserError("no models: give at least one, or --images")
    for name, value in (("batch", batch), ("per-prompt", per_prompt), ("processes", processes)):
        if value < 1:
            raise UserError(f"{name} is {value}: give 1 or more")
    if doubles := sorted({model for model in models if models.count(model) > 1}):
        raise UserError(f"model {doubles[0]} is given twice: give each model and mode once")
    if responses and len(models) < 2:
        raise UserError("the response to guidance compares models with the first: give two or more")
    for low, high in responses:
        if not 0 <= low < high:
            raise UserError(f"guidance response {low:g} to {high:g}: give a lower scale first, as in 1 to 7.5")


def _check_responses(systems: Iterable[System], responses: Sequence[tuple[float, float]]) -> None:
    for scale in (scale for pair in responses for scale in pair):
        for system in systems:
            if not isinstance(system, Own):
                raise UserError(f"{system.name} is not a CogView3 model: leave it or --guidance-response out")
            system.mode.settle(replace(system.sampling, guidance=scale), system.mode_name)


def _check_sizes(systems: Sequence[System]) -> None:
    """Refuse models whose pictures are not of the first one's size, as far as that is known before they are drawn."""
    sizes = {system.name: size for system in systems if (size := system.size()) is not None}
    if not sizes:
        return
    first, size = next(iter(sizes.items()))
    for name, other in sizes.items():
        if other != size:
            raise UserError(
                f"{name} draws {other[0]} x {other[1]} pixels and {first} {size[0]} x {size[1]}, but guidance "
                "responses and Fréchet distances are of pictures of one size; give models that draw the same size"
            )


def unique(name: str, taken: Iterable[str], form: str) -> str:
    """A name that is not taken: itself, else numbered from 2 on, by `form`, such as "{} ({})"."""
    number, plain = 1, name
    while name in taken:
        number += 1
        name = form.format(plain, number)
    return name


def file_names(models: Sequence[str]) -> list[str]:
    """What each model's files are called; "scenes" and "./scenes" are two models, and so scenes and scenes-2."""
    names: list[str] = []
    for model in models:
        names.append(unique(re.sub(r"[^\w.@+-]+", "-", model).strip("-.") or "model", names, "{}-{}"))
    return names
