"""`captions`: better captions for pictures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cogview3.cli import options
from cogview3.cli.data import ShardsArgument
from cogview3.cli.endpoints import EndpointOptions, parse_price
from cogview3.cli.finetune import finetune
from cogview3.cli.recaption import recaption
from cogview3.cli.settings import with_options

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Write better captions for pictures."""


@app.command()
@with_options(asking=EndpointOptions)
def collect(
    shards: ShardsArgument,
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", help="Chat endpoint, such as http://localhost:8000/v1.")
    ],
    model: Annotated[str, typer.Option("--model", help="Model name at the endpoint.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the triplets; an existing one is resumed.")],
    asking: EndpointOptions,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Maximum number of images to process.")] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Process only every Nth image.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Retry images that were set aside or left in doubt.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Concurrent requests.")] = 8,
    first_wait: Annotated[
        float, typer.Option("--first-wait", min=0, help="Seconds before the first retry; doubled after each.")
    ] = 1.0,
    as_json: options.JsonOption = False,
) -> None:
    """Collect captions from a strong model: questions, answers and a merged caption.

    The same command resumes a stopped run; budgets hold for all runs into the folder together.
    """
    options.check_writable(out)
    from cogview3.captions.triplets import collect as run
    from cogview3.cli.progress import counter
    from cogview3.data.formats import find_shards
    from cogview3.prompts.budget import Budget
    from cogview3.prompts.endpoint import Endpoint, Retry

    asked = Endpoint(
        endpoint,
        model,
        key_env=asking.key_env,
        timeout=asking.timeout,
        retry=Retry(tries=asking.tries, first=first_wait),
        budget=Budget(*asking.limits, parse_price(asking.price)),
        extra=asking.extra,
    )
    found = find_shards(shards)
    with counter("images", count, resumes=True) as progress:
        result = run(
            found,
            asked,
            out,
            count=count,
            every=every,
            side=asking.side,
            concurrency=concurrency,
            again=again,
            progress=progress,
        )
    options.report(result, describe(result), as_json)


app.command()(finetune)
app.command()(recaption)


def describe(result: dict[str, Any]) -> str:
    """The report of a collection in lines."""
    from cogview3.data.report import listed

    spent = result["spent"]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    money = f", {spent['money']:.4f} in money" if spent["money"] else ""
    lines = [
        f"{result['triplets']} triplets in {result['out']}, {result['new']} of them new",
        f"spent in all: {spent['requests']} requests, {tokens} tokens{money}",
        f"words: {result['words']['old']:g} before, {result['words']['new']:g} after (medians)",
        f"rules broken: {listed(result['rules'])}",
    ]
    skipped = ("aside", "unanswered", "broken", "filtered")
    lines += [f"{name}: {listed(result[name])}" for name in skipped if result[name]]
    if result["repeated"]:
        lines.append(f"{result['repeated']} images were duplicates")
    if result["moved"]:
        lines.append(f"{result['moved']} triplets have new addresses, as their images were moved")
    if result["aside"] or result["in_doubt"]:
        doubt = f"{result['in_doubt']} in doubt (requested when a run was killed); " if result["in_doubt"] else ""
        lines.append(f"{doubt}aside.jsonl lists images without a triplet; --again retries them")
    if result["stopped"]:
        lines.append(f"stopped: {result['stopped']}")
    return "\n".join(lines)
