"""Options of commands that ask a chat endpoint."""

from typing import TYPE_CHECKING, Annotated

import typer

from cogview3.config import UserError

if TYPE_CHECKING:
    from cogview3.prompts.budget import Price

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key-env",
        metavar="NAME",
        help="Variable with the endpoint's key; by default OPENAI_API_KEY, over https or to this machine.",
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds for one request.")]
TriesOption = Annotated[int, typer.Option("--tries", min=1, max=100, help="Requests until one is given up.")]
FieldsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Field of each request, such as temperature=0."),
]
MaxRequestsOption = Annotated[int | None, typer.Option("--max-requests", min=0, help="Budget in requests.")]
MaxTokensOption = Annotated[int | None, typer.Option("--max-tokens", min=0, help="Budget in tokens.")]
MaxMoneyOption = Annotated[float | None, typer.Option("--max-money", min=0, help="Budget in the price's money.")]
SideOption = Annotated[int, typer.Option("--side", min=64, max=8192, help="Larger side of the pictures sent.")]
PriceOption = Annotated[
    str | None,
    typer.Option("--price", metavar="PROMPT,COMPLETION", help="Of a million tokens of each, such as 2.5,10."),
]


def parse_price(text: str | None) -> "Price | None":
    """The price of a million tokens of prompts and of completions."""
    from cogview3.prompts.budget import Price

    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--price {text}: write two numbers, such as 2.5,10") from None
    return Price(prompt, completion)
