"""`captions`: old captions to new ones."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cogview3.cli.data import ShardsArgument
from cogview3.cli.endpoints import (
    FieldsOption,
    KeyOption,
    MaxMoneyOption,
    MaxRequestsOption,
    MaxTokensOption,
    PriceOption,
    SideOption,
    TimeoutOption,
    TriesOption,
    parse_price,
)
from cogview3.cli.finetune import finetune
from cogview3.cli.options import JsonOption, check_writable, report
from cogview3.cli.recaption import recaption
from cogview3.config.settings import parse_settings

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Write better captions for pictures."""


@app.command()
def collect(
    shards: ShardsArgument,
    endpoint: Annotated[str, typer.Option("--endpoint", metavar="URL", help="Such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option("--model", help="The model's name there.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the triplets; the same one goes on.")],
    count: Annotated[int | None, typer.Option("--count", min=1, help="Most images to consider.")] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Consider every so manieth image alone.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Ask again about images put aside or in doubt.")] = False,
    side: SideOption = 768,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=1024, help="Requests at once.")] = 8,
    max_requests: MaxRequestsOption = None,
    max_tokens: MaxTokensOption = None,
    max_money: MaxMoneyOption = None,
    price: PriceOption = None,
    key_env: KeyOption = None,
    timeout: TimeoutOption = 120.0,
    tries: TriesOption = 6,
    first_wait: Annotated[
        float, typer.Option("--first-wait", min=0, help="Seconds before the second try; doubled each time.")
    ] = 1.0,
    fields: FieldsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a strong model about pictures: questions, answers and a merged caption.

    Goes on where it was stopped; budgets count for all runs into the folder together.
    """
    check_writable(out)
    from cogview3.captions.triplets import collect as run
    from cogview3.cli.progress import counter
    from cogview3.data.formats import find_shards
    from cogview3.prompts.budget import Budget
    from cogview3.prompts.endpoint import Endpoint, Retry

    asked = Endpoint(
        endpoint,
        model,
        key_env=key_env,
        timeout=timeout,
        retry=Retry(tries=tries, first=first_wait),
        budget=Budget(max_requests, max_tokens, max_money, parse_price(price)),
        extra=parse_settings(fields or [], "temperature=0"),
    )
    found = find_shards(shards)
    with counter("images", count, resumes=True) as progress:
        result = run(
            found,
            asked,
            out,
            count=count,
            every=every,
            side=side,
            concurrency=concurrency,
            again=again,
            progress=progress,
        )
    report(result, describe(result), as_json)


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
    for name in ("aside", "unanswered", "broken", "filtered"):
        if result[name]:
            lines.append(f"{name}: {listed(result[name])}")
    if result["repeated"]:
        lines.append(f"{result['repeated']} images were there twice")
    if result["moved"]:
        lines.append(f"{result['moved']} triplets now name the place that their images were moved to")
    if result["aside"] or result["in_doubt"]:
        doubt = f"{result['in_doubt']} in doubt (under way when a run was killed); " if result["in_doubt"] else ""
        lines.append(f"{doubt}aside.jsonl lists what lacks a triplet; --again asks about it")
    if result["stopped"]:
        lines.append(f"stopped: {result['stopped']}")
    return "\n".join(lines)
