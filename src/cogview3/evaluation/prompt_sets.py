"""Prompts to evaluate on: the built-in world's fixed sets, or a file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cogview3.config import UserError
from cogview3.data.scenes import captions
from cogview3.data.scenes.scene import HELD_OUT, Facts, ObjectFacts, Scene, sample_scene

ENTROPY = 20_000_003
"""Prompt i is drawn from the seeds (ENTROPY, i). Training draws its scenes from (a recipe's seed, i)."""

DEFAULT_COUNT = 500
"""Prompts of a built-in set where no count is asked for."""

_BUILT_IN: dict[str, Callable[[Scene, np.random.Generator], captions.Caption]] = {
    "scenes-heldout": captions.comprehensive,
    "scenes-brief": captions.brief,
}
_NOT_BUNDLED = ("drawbench", "partiprompts", "coco")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what is known of the picture that it asks for.

    Attributes:
        text: the prompt.
        facts: what it states, None where that is not known.
        scene: the scene that it describes, None where there is none.
    """

    text: str
    facts: Facts | None = None
    scene: Scene | None = None

    @property
    def objects(self) -> tuple[ObjectFacts, ...]:
        """The scene's objects, or those that the prompt states where there is no scene."""
        facts = self.scene.facts() if self.scene else self.facts
        return facts.objects if facts else ()

    @property
    def held_out(self) -> bool:
        """Whether an object's shape, color and fill are a triple that no training scene contains."""
        return any((item.shape, item.color, item.fill) in HELD_OUT for item in self.objects)


def load_prompts(name_or_file: str, count: int | None = None) -> list[Prompt]:
    """The first `count` prompts of a set; a larger count begins with the same prompts.

    Args:
        name_or_file: "scenes-heldout" (comprehensive captions of random scenes, alternately of seen triples alone
            and with a held-out triple), "scenes-brief" (brief captions of the same scenes), or a file: a prompt a
            line, or, where it ends in .jsonl, objects with "text" and perhaps "facts" and "scene", as
            `Facts.to_dict` and `Scene.to_dict` write them.
        count: number of prompts; None is all of a file, or 500 of a built-in set.

    Raises:
        UserError: an unknown name, a file that is empty or damaged, or a count that it cannot meet.
    """
    if count is not None and count < 1:
        raise UserError(f"count is {count}: give 1 or more")
    if name_or_file in _BUILT_IN:
        return [_scene_prompt(name_or_file, index) for index in range(DEFAULT_COUNT if count is None else count)]
    path = Path(name_or_file)
    if not path.is_file():
        _refuse(name_or_file)
    prompts = _read(path)
    if not prompts:
        raise UserError(f"{path} holds no prompts: give a file with a prompt a line")
    if count is not None and count > len(prompts):
        raise UserError(f"{path} holds {len(prompts)} prompts, fewer than {count}: lower the count")
    return prompts[:count]


def _scene_prompt(name: str, index: int) -> Prompt:
    scene = sample_scene(np.random.default_rng([ENTROPY, index]), ("seen", "held-out")[index % 2])
    caption = _BUILT_IN[name](scene, np.random.default_rng([ENTROPY, index, 1]))
    return Prompt(caption.text, caption.facts, scene)


def _refuse(name: str) -> None:
    if name.lower() in _NOT_BUNDLED:
        raise UserError(f"prompts {name!r} are not bundled: save them in a file, a prompt a line, and give its name")
    raise UserError(f"no prompts {name!r}: give a file, or one of {', '.join(_BUILT_IN)}")


def _read(path: Path) -> list[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".jsonl":
        return [_from_json(path, number, line) for number, line in numbered]
    return [Prompt(line) for _, line in numbered]


def _from_json(path: Path, number: int, line: str) -> Prompt:
    try:
        entry = json.loads(line)
        text, facts, scene = entry["text"], entry.get("facts"), entry.get("scene")
        if not isinstance(text, str) or not text.strip():
            raise ValueError("text is no string, or empty")
        scene = Scene.from_dict(scene) if scene else None
        facts = Facts.from_dict(facts) if facts else scene.facts() if scene else None
    except UserError as error:  # names the value and the mend
        raise UserError(f"{path}, line {number}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}, line {number}: {reason}; write objects with text and perhaps facts") from None
    return Prompt(text, facts, scene)
