"""A prompt, and the facts about the picture that it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogview3.data.scenes.scene import HELD_OUT, Facts, ObjectFacts, Scene
from cogview3.data.scenes.things import is_held_out_ground


@dataclass(frozen=True)
class Prompt:
    """A prompt and what is known of the picture that it asks for.

    Attributes:
        text: the prompt.
        facts: what it states, None where that is not known.
        scene: the scene that it describes, None where there is none.
        tags: the groups that its set puts it in, such as {"category": "Animals", "challenge": "Basic"}.
        geneval: GenEval's record of what the picture must hold, None of other sets.
        reference: a real picture of the prompt, None where there is none.
    """

    text: str
    facts: Facts | None = None
    scene: Scene | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    geneval: Mapping[str, Any] | None = None
    reference: Path | None = None

    @property
    def objects(self) -> tuple[ObjectFacts, ...]:
        """The scene's objects, or those that the prompt states where there is no scene."""
        facts = self.scene.facts() if self.scene else self.facts
        return facts.objects if facts else ()

    @property
    def held_out(self) -> bool:
        """Whether training never shows an object: its shape, color and fill together, or the thing on this ground."""
        stated = self.scene or self.facts
        ground = None if stated is None else stated.ground
        return any(
            (item.shape, item.color, item.fill) in HELD_OUT
            or (item.thing is not None and ground is not None and is_held_out_ground(item.thing, ground))
            for item in self.objects
        )
