"""Rows of `reproduce` that need a training: what is trained, for how long, and where it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cogview3 import checkpoints
from cogview3.config import load_recipe

STARTS = (200, 400, 500, 600, 800)
"""Table 3's relay starts."""

FINE_TUNE_IMAGES = 6_400
"""Samples of each start's fine-tune."""


@dataclass(frozen=True)
class Training:
    """One run: its row, its recipe with changes, the component that it gives, and rough minutes on two cores."""

    row: str
    recipe: str
    changes: tuple[str, ...]
    component: str
    minutes: int


def trainings(model: str, quick: bool) -> list[Training]:
    """The runs, all beginning with the model's own networks."""
    images = 640 if quick else FINE_TUNE_IMAGES
    shared = (f"recipe.start_from={model}", f"data.vae={model}", f"data.text={model}")
    length = (f"train.images={images}", "optimizer.warmup_images=200", f"train.checkpoint_images={images // 2}")
    relay = [
        Training(
            f"T_r {start}",
            "scenes/relay",
            (*shared, *length, f"objective.relay_start={start}", "optimizer.learning_rate=3e-4"),
            "relay_unet",
            max(1, round(images / 800)),
        )
        for start in STARTS
    ]
    single = (*shared, *length, "data.size=256", "train.batch=16", "optimizer.learning_rate=3e-4")
    return [Training("single stage", "scenes/base", single, "unet", max(1, round(images / 500))), *relay]


def train_rows(runs: Path, chosen: Sequence[Training], device: str) -> dict[str, Path]:
    """Train, or resume, each run in a folder of its own; the folders of the trained networks by row."""
    from cogview3.training.loop import train

    found = {}
    for each in chosen:
        run = runs / each.row.replace(" ", "-")
        train(load_recipe(each.recipe, list(each.changes)), out=run, restart=False, device=device)
        found[each.row] = checkpoints.weights_folder(run, each.component)
    return found
