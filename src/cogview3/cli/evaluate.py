"""`evaluate`: how right a model's pictures are."""

from pathlib import Path
from typing import Annotated

import typer

from cogview3.cli.endpoints import KeyOption
from cogview3.cli.expand import (
    ExpanderCacheOption,
    ExpanderModelOption,
    ExpanderOption,
    check_expand,
    open_expander,
)
from cogview3.cli.options import (
    BatchOption,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    GuidanceOption,
    JsonOption,
    LightOption,
    RelayGuidanceOption,
    RelaysOption,
    RelayStepsOption,
    SamplerOption,
    StepsOption,
    check_finite,
    check_writable,
    clean_stdout,
    pick_device,
    pick_dtype,
    report,
)
from cogview3.config import UserError


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[@MODE][:STEPS]...", help="What to compare: scenes, scenes@4+1, scenes:4+1."),
    ],
    prompts: Annotated[
        str, typer.Option("--prompts", help="Built-in set, or a file with a prompt a line.")
    ] = "scenes-heldout",
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Number of prompts: 500, or all of a file.")
    ] = None,
    metrics: Annotated[str, typer.Option("--metrics", help="Names of metrics, joined by commas.")] = "scene",
    steps: StepsOption = None,
    relay_steps: RelayStepsOption = None,
    relays: RelaysOption = None,
    guidance: GuidanceOption = None,
    relay_guidance: RelayGuidanceOption = None,
    response: Annotated[
        list[str] | None,
        typer.Option(
            "--guidance-response",
            metavar="LOW,HIGH",
            help="Compare the change between two guidance scales of the base.",
        ),
    ] = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Draw descriptions that a language model writes of the prompts.")
    ] = False,
    expander: ExpanderOption = None,
    expander_model: ExpanderModelOption = None,
    expander_cache: ExpanderCacheOption = None,
    key_env: KeyOption = None,
    sampler: SamplerOption = None,
    light: LightOption = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the prompts' noise.")] = 0,
    batch: BatchOption = 8,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the figures, each picture's score and a grid.")
    ] = None,
    device: DeviceOption = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    as_json: JsonOption = False,
) -> None:
    """Score models on a set of prompts.

    Chance and ceiling stand beside every figure. With --json the table goes to stderr.
    """
    check_finite("--guidance", guidance)
    check_finite("--relay-guidance", relay_guidance)
    check_expand(expand, expander, expander_model, expander_cache, key_env)
    responses = [_pair(text) for text in response or []]
    if out is not None:
        check_writable(out)
    with clean_stdout(as_json):
        import diffusers
        import transformers
        from rich.console import Console

        from cogview3.cli.progress import counter
        from cogview3.evaluation import tables

        diffusers.utils.logging.disable_progress_bar()  # those of loading, one for each component
        transformers.utils.logging.disable_progress_bar()
        place = pick_device(device)
        made = None
        if expand:
            own = tables.split_model(models[0])[0]
            made = open_expander(own, expander, expander_model, expander_cache, device, key_env=key_env)
        result = tables.evaluate(
            models,
            prompts,
            count,
            [name.strip() for name in metrics.split(",")],
            seed=seed,
            out=out,
            batch=batch,
            responses=responses,
            expander=made,
            device=place,
            dtype=pick_dtype(dtype, place),
            counter=counter,
            steps=steps,
            relay_steps=relay_steps,
            relays=relays,
            guidance=guidance,
            relay_guidance=relay_guidance,
            sampler=sampler and str(sampler),
            light=light or None,
        )
        console = Console(stderr=as_json)
        for table in tables.show(result):
            console.print(table)
    if as_json:
        report(result, "", as_json)


def _pair(text: str) -> tuple[float, float]:
    """Two numbers, "1,7.5"."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--guidance-response {text!r}: write two scales, as in 1,7.5") from None
    check_finite("--guidance-response", low)
    check_finite("--guidance-response", high)
    return low, high
