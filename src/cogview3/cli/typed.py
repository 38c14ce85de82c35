"""Warnings of typed prompts, before they are expanded or drawn."""

from collections.abc import Sequence
from pathlib import Path

import typer

from cogview3.cli.loading import model_name

MAX_WARNINGS = 10
MAX_SHOWN = 60  # characters of a prompt in a warning


def warn_of_prompts(model: str, prompts: Sequence[str]) -> None:
    """Say on stderr what of each prompt the bundled `scenes` model does not know or cannot draw."""
    if model_name(model) != "scenes":
        return
    from cogview3.data.scenes.typed import learned_words, problems
    from cogview3.generation.loading import resolve_model

    learned = learned_words(Path(resolve_model(model)) / "tokenizer" / "tokenizer.json")
    found = {prompt: told for prompt in dict.fromkeys(prompts) if (told := problems(prompt, learned))}
    for prompt, told in list(found.items())[:MAX_WARNINGS]:
        shown = prompt if len(prompt) <= MAX_SHOWN else f"{prompt[:MAX_SHOWN]}..."
        typer.echo(f"warning: {shown!r}: {'; '.join(told)}", err=True)
    if len(found) > MAX_WARNINGS:
        typer.echo(f"warning: the same holds of {len(found) - MAX_WARNINGS} more prompts", err=True)


def unexpandable(model: str, expander: str | None, prompts: Sequence[str]) -> dict[str, str]:
    """Prompts that the bundled model's own expander should leave as they are, each with the reason."""
    if model_name(model) != "scenes" or expander is not None:
        return {}
    from cogview3.data.scenes.typed import why_not_expand

    return {prompt: reason for prompt in dict.fromkeys(prompts) if (reason := why_not_expand(prompt))}
