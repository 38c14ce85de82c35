"""Prompts to evaluate on: the built-in world's fixed sets, or a file."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from cogview3.config import UserError
from cogview3.data.scenes import captions
from cogview3.data.scenes.scene import Scene, sample_scene
from cogview3.evaluation.prompt import Prompt
from cogview3.evaluation.prompt_files import read_prompts

ENTROPY = 20_000_003
"""Prompt i is drawn from the seeds (ENTROPY, i). Training draws its scenes from (a recipe's seed, i)."""

TUNE_ENTROPY = 20_000_029
"""The same for scenes-tune, whose scenes are others."""

DEFAULT_COUNT = 500
"""Prompts of a drawn set where no count is asked for."""

WRITTEN_EVERY = 5
"""Of scenes-tune every so manyth prompt is a written one, as long as there are any."""

_BUILT_IN: dict[str, Callable[[Scene, np.random.Generator], captions.Caption]] = {
    "scenes-heldout": captions.comprehensive,
    "scenes-brief": captions.brief,
}
_WRITTEN = {"scenes-people": "scenes_people.jsonl", "scenes-tune": "scenes_tune.jsonl"}
"""Prompts and their facts written by hand."""

_NOT_BUNDLED = {
    "drawbench": "a CSV file with the columns Prompts and Category",
    "partiprompts": "PartiPrompts.tsv of github.com/google-research/parti",
    "hpsv2": "the folder benchmark of the data set zhwang/HPDv2",
    "geneval": "evaluation_metadata.jsonl of github.com/djghosh13/geneval",
    "coco": "captions_val2014.json of cocodataset.org, the pictures beside it",
}
"""Published sets, and which file holds them."""


def load_prompts(name_or_file: str, count: int | None = None) -> list[Prompt]:
    """The first `count` prompts of a set; a larger count begins with the same prompts.

    Args:
        name_or_file: "scenes-heldout" (comprehensive captions of random scenes, alternately of seen combinations alone
            and with a held-out one, or a thing on a held-out ground), "scenes-brief" (brief captions of the same
            scenes), "scenes-people" (200 prompts as people type them, written by hand), "scenes-tune" (for choosing
            between models: comprehensive and brief captions of other scenes, and 60 written prompts), or a file that
            `prompt_files` reads: a published set, a prompt a line, or an object a line with "text" and perhaps
            "facts" and "scene", as `Facts.to_dict` and `Scene.to_dict` write them.
        count: number of prompts; None is all that were written, 300 of scenes-tune, 500 of the drawn sets.

    Raises:
        UserError: an unknown name, a file that is empty or damaged, or a count that it cannot meet.
    """
    if count is not None and count < 1:
        raise UserError(f"count is {count}: give 1 or more")
    if name_or_file in _BUILT_IN:
        return [_scene_prompt(name_or_file, index) for index in range(DEFAULT_COUNT if count is None else count)]
    if name_or_file == "scenes-tune":
        return _tuning_prompts(count)
    path = _written(name_or_file) if name_or_file in _WRITTEN else Path(name_or_file)
    if not path.exists():
        if (known := name_or_file.lower()) in _NOT_BUNDLED:
            fix = f"fetch {_NOT_BUNDLED[known]}, and give its name"
            raise UserError(f"prompts {name_or_file!r} are not bundled: {fix}")
        raise UserError(f"no prompts {name_or_file!r}: give a file, or one of {', '.join([*_BUILT_IN, *_WRITTEN])}")
    prompts = read_prompts(path)
    if not prompts:
        raise UserError(f"{path} holds no prompts: give a file with a prompt a line")
    if count is not None and count > len(prompts):
        raise UserError(f"{path} holds {len(prompts)} prompts, fewer than {count}: lower the count")
    return prompts[:count]


def _scene_prompt(name: str, index: int, entropy: int = ENTROPY) -> Prompt:
    scene = sample_scene(np.random.default_rng([entropy, index]), ("seen", "held-out")[index % 2])
    caption = _BUILT_IN[name](scene, np.random.default_rng([entropy, index, 1]))
    return Prompt(caption.text, caption.facts, scene)


def _written(name: str) -> Path:
    return Path(str(files("cogview3.evaluation") / "sets" / _WRITTEN[name]))


def _tuning_prompts(count: int | None) -> list[Prompt]:
    written = read_prompts(_written("scenes-tune"))
    prompts = []
    for index in range(WRITTEN_EVERY * len(written) if count is None else count):
        number, rest = divmod(index, WRITTEN_EVERY)
        if rest == WRITTEN_EVERY - 1 and number < len(written):
            prompts.append(written[number])
        else:  # two kinds of captions, each of two kinds of scenes
            name = ("scenes-heldout", "scenes-brief")[index // 2 % 2]
            prompts.append(_scene_prompt(name, index, TUNE_ENTROPY))
    return prompts
