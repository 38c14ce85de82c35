"""Pictures that are dropped from a batch while it is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from cogview3.config import UserError
from cogview3.generation.masks import Masked

if TYPE_CHECKING:
    from cogview3.generation.denoising import Run, Stage


def drop(stage: "Stage", latents: torch.Tensor, run: "Run") -> "tuple[Stage, torch.Tensor]":
    """Go on with the pictures `run.rows` alone, in whatever the stage, its scheduler and the run hold for each picture.

    Latents are (B, C, h, w).
    """
    assert run.rows is not None
    keep = partial(keep_rows, rows=run.rows, count=len(latents))
    for holder, names in (
        (stage.scheduler, list(vars(stage.scheduler))),  # what it remembers of earlier steps
        (run, ("generator", "prompt_embeds", "negative_prompt_embeds", "masked")),
    ):
        for name in names:
            held = getattr(holder, name)
            if (kept := keep(held)) is not held:
                setattr(holder, name, kept)
    run.rows = run.text = None
    arguments = {name: keep(value) for name, value in stage.step_arguments.items()}
    return replace(stage, step_arguments=arguments, keep=keep(stage.keep)), keep(latents)


def keep_rows(value: Any, rows: Sequence[int], count: int) -> Any:
    """What belongs to the pictures `rows` of a batch of `count`, in whatever holds something for each picture.

    Args:
        value: a tensor (count, ...) of three dimensions or more, a list of generators, a list of such tensors, `Masked`
            pictures, or a `partial` with such arguments. Anything else is given back as it is.
        rows: indices of the pictures, from 0 on.
        count: pictures so far.
    """
    keep = partial(keep_rows, rows=rows, count=count)
    if isinstance(value, torch.Tensor):
        return value[list(rows)] if value.ndim > 2 and len(value) == count else value
    if isinstance(value, list):
        per_picture = len(value) == count and all(isinstance(each, torch.Generator) for each in value)
        return [value[row] for row in rows] if per_picture else [keep(each) for each in value]
    if isinstance(value, Masked):
        return Masked(keep(value.pixels), keep(value.mask))
    if isinstance(value, partial):
        arguments = {name: keep(each) for name, each in value.keywords.items()}
        return partial(value.func, *map(keep, value.args), **arguments)
    return value


def check_rows(rows: Any, count: int) -> list[int]:
    """The pictures that a callback wants to go on with, of `count`. Raises UserError for what names none of them."""
    named = list(rows) if isinstance(rows, list | tuple | range) else []
    if not named or sorted(set(named)) != named or not set(named) <= set(range(count)):
        raise UserError(f"the callback gave rows {rows!r}: give the rising indices of some of the {count} pictures")
    return named
