"""The rows of the tables that `reproduce` measures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogview3.diffusion.relay import BLUR_KINDS
from cogview3.reproduce.measured import Way

SINGLE = "Single stage and relay (tables 1 and 2)"
STARTS = "Relay start (table 3), the one model sampled from all"
TUNED_STARTS = "Relay start (table 3), each fine-tuned"
EXPANSION = "Expansion of brief prompts"
TILES = "Whole and tiled"
ESTIMATE = "Blur estimate inside the sampler"
BLUR = "Blur schedule"
SPACING = "Spacing of the relay's steps"
POWERS = (1.0, 1.5, 2.0)
"""Spacings of the relay's steps, t = T_r ((p - i)/p)^k."""

FEWER_STEPS = ((8, 2), (4, 1))

SINGLE_STAGE = "single stage"
"""The name of its training."""


@dataclass(frozen=True)
class Row:
    """One way of drawing in a table, compared with the row `against` but for the first; `note`: what to know of it."""

    table: str
    name: str
    way: Way
    against: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Trained:
    """A network that was trained for a row: its folder, and what is to be said of it."""

    folder: Path
    note: str


@dataclass(frozen=True)
class Shape:
    """What rows need to know of a model; `side` in pixels, `relay` its scheduler's configuration."""

    steps: int
    relay_steps: int
    side: int
    relay: Mapping[str, Any]
    distilled: Sequence[str] = ()

    def changed(self, **wanted: Any) -> dict[str, Any]:
        """What of `wanted` is other in the model's relay scheduler."""
        return {key: value for key, value in wanted.items() if self.relay[key] != value}


def rows(shape: Shape, trained: Mapping[str, Trained], expands: bool) -> list[Row]:
    """All rows; those of trainings (`training.trainings`) that `trained` lacks are left out."""
    tables = (_single(shape, trained), _starts(shape, trained), _schedules(shape), _tiles(shape))
    return [row for table in (*tables, _expansion() if expands else ()) for row in table]


def _single(shape: Shape, trained: Mapping[str, Trained]) -> Iterator[Row]:
    relay = f"relay {shape.steps}+{shape.relay_steps}"
    whole: dict[str, Any] = {"num_relays": 0, "height": shape.side, "width": shape.side}
    yield Row(SINGLE, relay, Way())
    if SINGLE_STAGE in trained:
        found = trained[SINGLE_STAGE]
        way = Way("draw", unet=found.folder, settings=whole)
        yield Row(SINGLE, f"single stage {shape.side} x {shape.side}, {shape.steps} steps", way, relay, found.note)
    name = f"base network at {shape.side} x {shape.side}, {shape.steps} steps"
    yield Row(SINGLE, name, Way("draw", settings=whole), relay, "not trained at that size")
    for mode in shape.distilled:
        yield Row(SINGLE, f"distilled {mode}", Way("draw", mode), relay)
    for steps, relay_steps in FEWER_STEPS:
        way = Way("draw", settings={"num_inference_steps": steps, "relay_steps": relay_steps})
        yield Row(SINGLE, f"undistilled {steps}+{relay_steps}", way, relay)


def _starts(shape: Shape, trained: Mapping[str, Trained]) -> Iterator[Row]:
    start = shape.relay["relay_start"]
    own = f"T_r {start}"
    for other in sorted({200, 300, 400, 500, 600, 800, start}):
        against, note = (None, "what the model was trained with") if other == start else (own, "")
        settings = {} if other == start else {"relay_start": other}
        yield Row(STARTS, f"T_r {other}", Way(settings=settings), against, note)
    names = [name for name in trained if name.startswith("T_r ")]
    first = own if own in names else next(iter(names), None)
    for name in names:
        way = Way(unet=trained[name].folder, settings={"relay_start": int(name[4:])})
        yield Row(TUNED_STARTS, name, way, None if name == first else first, trained[name].note)


def _schedules(shape: Shape) -> Iterator[Row]:
    for kind in BLUR_KINDS:
        yield Row(BLUR, kind, Way(scheduler=shape.changed(blur=kind)), None if kind == "linear" else "linear")
    for estimate, name in (("recompute", "recomputed"), ("carry", "carried (Algorithm 1)")):
        way = Way(scheduler=shape.changed(blur_estimate=estimate, solver_order=1))  # carrying has no second order
        yield Row(ESTIMATE, name, way, None if estimate == "recompute" else "recomputed")
    first = f"{shape.relay_steps} steps, k = {POWERS[0]:g}"
    for power in POWERS:
        for steps in (shape.relay_steps, max(1, shape.relay_steps // 2)):
            name = f"{steps} steps, k = {power:g}"
            settings = {} if steps == shape.relay_steps else {"num_inference_steps": steps}
            way = Way(settings=settings, scheduler=shape.changed(power=power))
            yield Row(SPACING, name, way, None if name == first else first)


def _tiles(shape: Shape) -> Iterator[Row]:
    tile = max(64, shape.side // 2)
    yield Row(TILES, "whole", Way())
    yield Row(TILES, f"tiles of {tile}", Way(settings={"tile_size": tile}), "whole")


def _expansion() -> Iterator[Row]:
    yield Row(EXPANSION, "as typed", Way("draw", prompts="brief"))
    yield Row(EXPANSION, "expanded", Way("draw", prompts="expanded"), "as typed")
