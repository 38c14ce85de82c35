"""`expand`, and what `generate --expand` shares with it: short prompts to descriptions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from cogview3.cli import options
from cogview3.cli.endpoints import FieldsOption, KeyOption, TimeoutOption, TriesOption
from cogview3.cli.settings import with_options
from cogview3.cli.typed import gather_prompts, hint_quotes
from cogview3.config import UserError
from cogview3.config.settings import parse_settings

if TYPE_CHECKING:
    from cogview3.prompts.expand import Expander, Expansion

ExpandOption = Annotated[
    bool | None,
    typer.Option(
        "--expand/--no-expand",
        help="Expand prompts with a language model first; default if the model has its own expander.",
    ),
]


class ExpanderOptions(BaseModel):
    """Which language model expands prompts, and where its expansions are kept."""

    expander: Annotated[
        str | None,
        typer.Option(
            "--expander",
            metavar="FOLDER|URL",
            help="Language model: a transformers folder or a chat endpoint; the model's own by default.",
        ),
    ] = None
    expander_model: Annotated[
        str | None, typer.Option("--expander-model", metavar="NAME", help="Model name at the endpoint.")
    ] = None
    expander_cache: Annotated[
        Path | None,
        typer.Option("--expander-cache", help="Folder that caches expansions; in the user cache by default."),
    ] = None

    @property
    def given(self) -> bool:
        """Whether any is set."""
        return bool(self.expander or self.expander_model or self.expander_cache)


@with_options(writer=ExpanderOptions)
def expand(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Short prompts, in quotes.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Text file with one prompt per line.")] = None,
    model: options.ModelOption = "scenes",
    *,
    writer: ExpanderOptions,
    key_env: KeyOption = None,
    timeout: TimeoutOption = 60.0,
    tries: TriesOption = 3,
    fields: FieldsOption = None,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Expand short prompts into detailed descriptions in English.

    A prompt whose expansion fails, or drops something asked for, is printed unchanged, with a warning.
    """
    texts = gather_prompts(prompts or [], file)
    hint_quotes(prompts or [])
    with options.clean_stdout(as_json):
        made = open_expander(model, writer, device, key_env=key_env, timeout=timeout, tries=tries, fields=fields)
        expansions = expand_all(made, texts)
    result = {
        "model": expansions[0].model,
        "prompts": texts,
        "expanded_prompts": [each.text for each in expansions],
        "reasons": [each.reason or None for each in expansions],
    }
    options.report(result, "\n".join(each.text for each in expansions), as_json)


def expand_all(expander: "Expander", prompts: Sequence[str]) -> "list[Expansion]":
    """The expansions of prompts; a warning on stderr names each prompt that stays as it is, with the reason."""
    expansions = expander.expand_all(prompts)
    for each in dict.fromkeys(expansions):
        if each.reason:
            typer.echo(f"warning: not expanded: {each.prompt!r}: {each.reason}", err=True)
    return expansions


def open_expander(
    model: str,
    how: ExpanderOptions,
    device: options.Device,
    *,
    key_env: str | None = None,
    timeout: float = 60.0,
    tries: int = 3,
    fields: list[str] | None = None,
) -> "Expander":
    """The expander that the options name, else the one in the model's folder.

    Raises:
        UserError: neither, or options that do not go together.
    """
    from cogview3.prompts.endpoint import Endpoint, Retry
    from cogview3.prompts.expand import EndpointWriter, Expander, LocalWriter
    from cogview3.references import find, user_cache

    cache = how.expander_cache or user_cache("expansions")
    if how.expander is not None and "://" in how.expander:
        if how.expander_model is None:
            raise UserError(f"--expander {how.expander}: name the endpoint's model with --expander-model")
        endpoint = Endpoint(
            how.expander,
            how.expander_model,
            key_env=key_env,
            timeout=timeout,
            retry=Retry(tries=tries),
            extra=parse_settings(fields or [], "temperature=0"),
        )
        return Expander(EndpointWriter(endpoint), cache)
    if how.expander_model is not None or key_env is not None or fields:
        raise UserError("--expander-model, --key-env and --set are for endpoints; give --expander URL")
    folder = own_expander(model) if how.expander is None else Path(how.expander)
    local = LocalWriter(folder, options.pick_device(device))
    if how.expander is not None or not find(model).is_bundled:
        return Expander(local, cache)
    from cogview3.data.scenes.request import request

    return Expander(local, cache, request)


def check_expand(expand: bool, how: ExpanderOptions, key_env: str | None) -> None:
    """Refuse options of the expander where nothing is expanded. Raises UserError."""
    if not expand and (how.given or key_env):
        raise UserError("--expander, --expander-model, --expander-cache and --key-env are for --expand; add it")


def wants_expansion(expand: bool | None, model: str, how: ExpanderOptions, key_env: str | None = None) -> bool:
    """Whether prompts are expanded: as asked, else where an expander is named or the model has its own.

    Raises UserError for options of an expander beside --no-expand.
    """
    if expand is not None:
        check_expand(expand, how, key_env)
        return expand
    if how.given or key_env:
        return True
    try:
        own_expander(model)
    except UserError:  # none, or no such model, which is reported when it is loaded
        return False
    return True


def own_expander(model: str) -> Path:
    """The folder of a model's own expander. Raises UserError where it has none."""
    from cogview3.generation.loading import EXPANDER_FOLDER
    from cogview3.references import find

    folder = Path(find(model).source) / EXPANDER_FOLDER
    if not folder.is_dir():
        raise UserError(f"{model} has no expander of its own; name one with --expander FOLDER or --expander URL")
    return folder
