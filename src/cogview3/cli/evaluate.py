"""`evaluate`: scores of models and of pictures."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cogview3.cli import options
from cogview3.cli.endpoints import KeyOption
from cogview3.cli.expand import ExpanderOptions, check_expand, open_expander
from cogview3.cli.loading import quiet_libraries
from cogview3.cli.settings import with_options
from cogview3.config import UserError


@with_options(writer=ExpanderOptions)
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL[@MODE][:STEPS]...",
            help="What to compare: scenes, scenes@4+1, scenes:4+1, sdxl, any diffusers pipeline.",
        ),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts", help="Built-in set, or a file of PartiPrompts, DrawBench, HPSv2, GenEval, COCO or lines."
        ),
    ] = "scenes-heldout",
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Number of prompts; default 500, or all of a file.")
    ] = None,
    metrics: Annotated[str, typer.Option("--metrics", help="Metrics, separated by commas.")] = "scene",
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Folder of another system's pictures, 00000.png and so on.")
    ] = None,
    per_prompt: Annotated[int, typer.Option("--per-prompt", min=1, help="Pictures per prompt; GenEval takes 4.")] = 1,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="NAME=PATH", help="Weights of a scorer: a path or hub name; repeatable."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Real pictures for fid: a folder, or an .npz with mu and sigma.")
    ] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Check scorers on their authors' pictures, in the folder of --images.")
    ] = False,
    steps: options.StepsOption = None,
    relay_steps: options.RelayStepsOption = None,
    relays: options.RelaysOption = None,
    guidance: options.GuidanceOption = None,
    relay_guidance: options.RelayGuidanceOption = None,
    response: Annotated[
        list[str] | None,
        typer.Option(
            "--guidance-response",
            metavar="LOW,HIGH",
            help="Compare the change between two guidance scales of the base.",
        ),
    ] = None,
    *,
    expand: Annotated[bool, typer.Option("--expand", help="Expand the prompts with a language model first.")] = False,
    writer: ExpanderOptions,
    key_env: KeyOption = None,
    sampler: options.SamplerOption = None,
    light: options.LightOption = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the noise.")] = 0,
    batch: options.BatchOption = 8,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes that draw in parallel.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Folder for pictures, figures and a web page; the same command resumes there."
        ),
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Score models, or pictures of any system, on a set of prompts.

    Facts are reported with their chance and ceiling. With --json the table goes to stderr.
    """
    options.check_finite("--guidance", guidance)
    options.check_finite("--relay-guidance", relay_guidance)
    check_expand(expand, writer, key_env)
    responses = [_pair(text) for text in response or []]
    if expand and not models:
        raise UserError("--expand writes prompts for models to draw: give one")
    if out is not None:
        options.check_writable(out)
    if self_check:
        _self_check(images, weights, device, as_json)
        return
    with options.clean_stdout(as_json):
        from rich.console import Console

        from cogview3.cli.progress import counter
        from cogview3.evaluation.evaluate import evaluate as run
        from cogview3.evaluation.metrics import Setting
        from cogview3.evaluation.scorers.weights import Weights
        from cogview3.evaluation.systems import split_model
        from cogview3.evaluation.tables import show

        quiet_libraries()
        given = dict(_weight(text) for text in weights or [])
        place = options.pick_device(device)
        made = None
        if expand and models:
            made = open_expander(split_model(models[0])[0], writer, device, key_env=key_env)
        result = run(
            models or [],
            prompts,
            count,
            [name.strip() for name in metrics.split(",")],
            images=images or [],
            per_prompt=per_prompt,
            seed=seed,
            out=out,
            batch=batch,
            processes=processes,
            responses=responses,
            expander=made,
            device=place,
            dtype=options.pick_dtype(dtype, place),
            setting=Setting(Weights(given, place), reference),
            counter=partial(counter, resumes=out is not None),
            steps=steps,
            relay_steps=relay_steps,
            relays=relays,
            guidance=guidance,
            relay_guidance=relay_guidance,
            sampler=sampler,
            light=light or None,
        )
        console = Console(stderr=as_json)
        for table in show(result):
            console.print(table.rich())
    if as_json:
        options.report(result, "", as_json)


def _self_check(images: list[Path] | None, weights: list[str] | None, device: options.Device, as_json: bool) -> None:
    if not images:
        raise UserError("--self-check needs the authors' pictures: give their folder with --images")
    with options.clean_stdout(as_json):
        from cogview3.evaluation.scorers.weights import Weights
        from cogview3.evaluation.self_check import self_check

        given = dict(_weight(text) for text in weights or [])
        rows = self_check(images[0], Weights(given, options.pick_device(device), local=True))
    words = {True: "agrees", False: "DIFFERS", None: "skipped"}
    lines = [f"{row['scorer']}: {words[row['agrees']]}, {row.get('reason') or _found(row)}" for row in rows]
    options.report({"anchors": rows}, "\n".join(lines), as_json)
    if any(row["agrees"] is False for row in rows):
        raise typer.Exit(1)


def _found(row: dict[str, Any]) -> str:
    found, expected = (", ".join(f"{value:.4f}" for value in row[key]) for key in ("found", "expected"))
    return f"{found}; published {expected}"


def _weight(text: str) -> tuple[str, str]:
    """NAME=PATH of one of the scorers' assets."""
    from cogview3.evaluation.scorers import SCORERS
    from cogview3.evaluation.scorers.inception import INCEPTION

    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise UserError(f"--weights {text!r}: write NAME=PATH, such as hpsv2=HPS_v2_compressed.pt")
    known = {asset.name for scorer in SCORERS.values() for asset in scorer.assets} | {INCEPTION.name}
    if name not in known:
        raise UserError(f"--weights {text!r}: no weights {name!r}; choose from {', '.join(sorted(known))}")
    return name, path


def _pair(text: str) -> tuple[float, float]:
    """Two numbers, "1,7.5"."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--guidance-response {text!r}: write two scales, such as 1,7.5") from None
    options.check_finite("--guidance-response", low)
    options.check_finite("--guidance-response", high)
    return low, high
