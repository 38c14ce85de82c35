"""Options of commands that ask a chat endpoint."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cogview3.config import Table, UserError
from cogview3.config.settings import parse_settings

if TYPE_CHECKING:
    from cogview3.prompts.budget import Price

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key-env",
        metavar="NAME",
        help="Environment variable with the API key; by default OPENAI_API_KEY, over https or to this machine.",
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Timeout of a request, in seconds.")]
TriesOption = Annotated[int, typer.Option("--tries", min=1, max=100, help="Attempts for each request.")]
FieldsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a field of every request, such as temperature=0; repeatable."),
]


class EndpointOptions(Table):
    """Options of collecting and re-captioning for requests to an endpoint."""

    side: Annotated[
        int, typer.Option("--side", min=64, max=8192, help="Longer side of the pictures sent, in pixels.")
    ] = 768
    max_requests: Annotated[int | None, typer.Option("--max-requests", min=0, help="Maximum number of requests.")] = (
        None
    )
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=0, help="Maximum number of tokens.")] = None
    max_money: Annotated[
        float | None, typer.Option("--max-money", min=0, help="Maximum cost, computed with --price.")
    ] = None
    price: Annotated[
        str | None,
        typer.Option(
            "--price",
            metavar="PROMPT,COMPLETION",
            help="Price of a million prompt and completion tokens, such as 2.5,10.",
        ),
    ] = None
    key_env: KeyOption = None
    timeout: TimeoutOption = 120.0
    tries: TriesOption = 6
    fields: FieldsOption = None

    @property
    def limits(self) -> tuple[int | None, int | None, float | None]:
        """Maximum numbers of requests and tokens, and maximum cost."""
        return self.max_requests, self.max_tokens, self.max_money

    @property
    def extra(self) -> dict[str, Any]:
        """Further fields of each request. Raises UserError for what is not KEY=VALUE."""
        return parse_settings(self.fields or [], "temperature=0")


def parse_price(text: str | None) -> "Price | None":
    """The price of a million tokens of prompts and of completions."""
    from cogview3.prompts.budget import Price

    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
        return Price(prompt, completion)
    except ValueError:
        raise UserError(f"--price {text}: write two numbers, 0 or more, such as 2.5,10") from None
