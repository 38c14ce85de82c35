"""Pictures of models at two guidance scales each; `evaluation.response` computes the figures of the change."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from cogview3.evaluation.drawing import draw_batch
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.response import Response
from cogview3.generation.pipeline import CogView3Pipeline
from cogview3.models.modes import Overrides


def changes(
    pipe: CogView3Pipeline,
    prompts: Sequence[Prompt],
    seed: int,
    batch: int,
    sampling: Overrides,
    responses: Sequence[tuple[float, float]],
    progress: Callable[[int], None],
) -> Iterator[list[Tensor]]:
    """How each batch changes between the two guidance scales of each pair, the noise being the same.

    A tensor for each pair, (B, 3, size, size), float16 in [-2, 2].
    """
    scales = sorted({scale for pair in responses for scale in pair})
    for first in range(0, len(prompts), batch):
        indices = range(first, min(first + batch, len(prompts)))
        at = {}
        for scale in scales:
            drawn = draw_batch(pipe, prompts, indices, seed, replace(sampling, guidance=scale), with_base=False)
            at[scale] = drawn.pictures.float()
        yield [(at[high] - at[low]).half().cpu() for low, high in responses]
        progress(indices.stop)


def compare_changes(
    batches: Iterable[list[Tensor]], reference: list[list[Tensor]], responses: Sequence[tuple[float, float]], seed: int
) -> list[dict[str, Any]]:
    """The figures of each pair of scales, against the first model's changes; these are put into an empty `reference`.

    Of other models one batch at a time is held.
    """
    first = not reference
    found = [Response(seed) for _ in responses]
    for number, changes in enumerate(batches):
        if first:
            reference.append(changes)
        for response, own, other in zip(found, changes, reference[number], strict=True):
            response.update(own, other)
    return [{"guidance": list(pair), **each.result()} for pair, each in zip(responses, found, strict=True)]
