"""`captions recaption`: new captions for whole sets."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cogview3.cli import options
from cogview3.cli.data import ShardsArgument
from cogview3.cli.endpoints import EndpointOptions, parse_price
from cogview3.cli.settings import with_options
from cogview3.config import UserError

if TYPE_CHECKING:
    from cogview3.captions.recaption import Standing
    from cogview3.captions.rows import Job

EVERY = 30.0
"""Seconds between progress lines, where stderr is not a terminal."""


@with_options(asking=EndpointOptions)
def recaption(
    shards: ShardsArgument,
    asking: EndpointOptions,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Image-text-to-text model: a folder, run or hub name; with --endpoint, its name there."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Chat endpoint to use, such as http://localhost:8000/v1."),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Local processes or a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=4096, help="Shards at once; by default one per GPU.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures or requests per batch in each worker.")] = 8,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for report.json and report.html.")] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=10, help="Sampling temperature; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Random seed of sampling.")] = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", min=1, help="Maximum caption length in tokens; the model's own limit or 256 by default."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Retry images that failed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace captions made with other settings.")] = False,
    crashes: Annotated[
        int, typer.Option("--crashes", min=1, max=100, help="Worker crashes before a shard is given up.")
    ] = 3,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Write new captions for whole data sets, beside each shard.

    The same command resumes a stopped run, and changes nothing once all is done. Each worker loads the model.
    """
    if model is None:
        raise UserError("--model: give a model, or with --endpoint the name of one there")
    if out is not None:
        options.check_writable(out)
    limited = any(value is not None for value in asking.limits)
    if endpoint is None and (limited or asking.price or asking.key_env or asking.fields):
        raise UserError("--max-requests, --max-tokens, --max-money, --price, --key-env and --set are for --endpoint")
    with options.clean_stdout(as_json):
        from cogview3.captions.engines import make_engine
        from cogview3.captions.recaption import recaption as run
        from cogview3.captions.report import describe, summarize, write_page
        from cogview3.checkpoints import write_text
        from cogview3.cli.progress import counter
        from cogview3.data.formats import find_shards

        found = find_shards(shards)
        job, gpus = None, 0
        if endpoint is None:
            elsewhere = engine == "ray" and bool(os.environ.get("RAY_ADDRESS"))
            job, gpus = _model_job(model, device, dtype, batch, seed, temperature, max_new_tokens, elsewhere)
        else:
            if limited and ((workers or 1) > 1 or engine == "ray"):
                raise UserError("a budget needs a single worker; use --engine local without --workers")
            from cogview3.captions.endpoint import EndpointJob

            cost = parse_price(asking.price)
            job = EndpointJob(
                endpoint,
                model,
                key_env=asking.key_env,
                timeout=asking.timeout,
                tries=asking.tries,
                requests=batch,
                side=asking.side,
                seed=seed,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                limits=asking.limits,
                price=(cost.prompt, cost.completion) if cost else None,
                fields=asking.extra,
            )
        makes = make_engine(engine, workers, crashes, gpus)
        with _standing(len(found)) as progress:
            result = run(found, job, makes, again=again, overwrite=overwrite, progress=progress)
        with counter("shards", len(found)) as progress:
            figures, shown = summarize(found, progress=progress)
        result["report"] = figures
        if out is not None:
            write_text(out / "report.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
            result["pictures"] = write_page(out / "report.html", figures, shown)
            result["out"] = str(out)
    options.report(result, "\n".join([*_lines(result), describe(figures)]), as_json)
    if result["given_up"]:
        raise typer.Exit(1)


def _model_job(
    model: str,
    device: options.Device,
    dtype: options.Dtype,
    batch: int,
    seed: int,
    temperature: float,
    max_new_tokens: int | None,
    elsewhere: bool,
) -> tuple["Job", int]:
    """A job of a model, and the number of GPUs that it may use: of this machine, or `elsewhere`, of a Ray cluster."""
    import torch

    from cogview3.captions.engines import cluster_gpus
    from cogview3.captions.model import ModelJob

    if elsewhere and device in ("auto", "cuda"):
        gpus = cluster_gpus()
        if device == "cuda" and not gpus:
            raise UserError("--device cuda: the Ray cluster has no GPU; use --device auto, or start it with GPUs")
        where = "cuda" if gpus else "cpu"
        own = torch.bfloat16 if gpus else torch.float32
        kind = own if dtype == "auto" else getattr(torch, dtype)
    else:
        where = options.pick_device(device)
        gpus = torch.cuda.device_count() if where == "cuda" else 0
        kind = options.pick_dtype(dtype, where)
    job = ModelJob(model, where, str(kind).removeprefix("torch."), batch, seed, temperature, max_new_tokens)
    return job, gpus


@contextmanager
def _standing(total: int) -> Iterator[Callable[["Standing"], None]]:
    """Show a job's progress: shards, images and tokens a second, time left; as lines where stderr is no terminal."""
    from cogview3.cli.progress import counter

    last, before = time.monotonic(), None
    with counter("shards", total, resumes=True) as tell:

        def show(standing: "Standing") -> None:
            nonlocal last, before
            if before is None:  # finished earlier, so it says nothing about the time left
                before = standing.share
            note = _rates(standing, standing.share - before)
            tell(standing.share, note)
            if not sys.stderr.isatty() and time.monotonic() - last > EVERY:
                last = time.monotonic()
                typer.echo(f"{standing.shards} of {standing.of} shards; {note}", err=True)

        yield show


def _rates(standing: "Standing", done: float) -> str:
    """How fast a job goes, by the shards `done` in this run."""
    if not standing.seconds:
        return ""
    images, tokens = standing.images / standing.seconds, standing.tokens / standing.seconds
    failed = f" ({standing.failed} failed)" if standing.failed else ""
    message = f"{standing.images} images{failed}, {images:.1f} a second, {tokens:,.0f} tokens a second"
    if not done:
        return message
    return f"{message}, {timedelta(seconds=round((standing.of - standing.share) / done * standing.seconds))} left"


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['shards']} shards, {result['finished_before']} of them finished before"]
    if result["images"]:
        rate = f", {result['images_a_second']:g} images and {result['tokens_a_second']:g} tokens a second"
        lines.append(f"{result['images']} images in this run{rate * bool(result['images_a_second'])}")
    lines += [f"given up: {address}: {reason}" for address, reason in result["given_up"].items()]
    return lines
