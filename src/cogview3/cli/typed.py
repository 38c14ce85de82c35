"""Typed prompts: gathered, checked, and warned about before they are expanded or drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from cogview3.config import UserError

MAX_WARNINGS = 10
MAX_SHOWN = 60  # characters of a prompt in a warning
MAX_FILE = 2**24
"""Bytes of a file of lines; a larger one is refused."""


def gather_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given and those of the file, one a line, blank lines left out.

    Raises:
        UserError: none at all, an empty one, or text that is not UTF-8.
    """
    gathered = list(prompts)
    for number, prompt in enumerate(gathered, 1):
        if not prompt.strip():
            raise UserError(f"prompt {number} is empty; say what to draw")
        check_utf8(f"prompt {number}", prompt)
    if file is not None:
        gathered += read_lines("--file", file)
    if not gathered:
        raise UserError(f"--file {file}: no prompts in it" if file else "no prompt; give one in quotes, or --file")
    return gathered


def read_lines(option: str, file: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises UserError where it is too large, or no UTF-8 text."""
    with file.open("rb") as opened:
        held = opened.read(MAX_FILE + 1)  # a pipe does not report its size
    if len(held) > MAX_FILE:
        size = file.stat().st_size or f"more than {MAX_FILE}"
        raise UserError(f"{option} {file}: {size} bytes; at most {MAX_FILE} are read, so split it")
    try:
        text = held.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {file}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{option} {file}: NUL characters in it, as in UTF-16 read as UTF-8; save it as UTF-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_utf8(name: str, text: str | None) -> None:
    """Refuse, with a UserError, an argument whose bytes are no UTF-8 text."""
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{name} is not valid UTF-8; check the terminal's encoding")


def hint_quotes(prompts: Sequence[str]) -> None:
    """Say on stderr how to write one prompt of several words, where each word came as a prompt of its own."""
    if len(prompts) > 1 and not any(len(prompt.split()) > 1 for prompt in prompts):
        one = " ".join(prompts)
        typer.echo(
            f"note: {len(prompts)} prompts of one word each; to draw a single picture, quote them: {one!r}", err=True
        )


def problems_of(model: str) -> Callable[[str], list[str]]:
    """What of a prompt the bundled `scenes` model does not know or cannot draw; of other models nothing is known."""
    from cogview3.references import find

    if not find(model).is_bundled:
        return lambda prompt: []
    from cogview3.data.scenes.typed import problems

    return problems


def warn_of_prompts(model: str, prompts: Sequence[str]) -> None:
    """Say on stderr what of each prompt the bundled `scenes` model does not know or cannot draw."""
    problems = problems_of(model)
    found = {prompt: faults for prompt in dict.fromkeys(prompts) if (faults := problems(prompt))}
    for prompt, faults in list(found.items())[:MAX_WARNINGS]:
        shown = prompt if len(prompt) <= MAX_SHOWN else f"{prompt[:MAX_SHOWN]}..."
        typer.echo(f"warning: {shown!r}: {'; '.join(faults)}", err=True)
    if len(found) > MAX_WARNINGS:
        typer.echo(f"warning: the same applies to {len(found) - MAX_WARNINGS} more prompts", err=True)
