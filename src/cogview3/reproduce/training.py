"""Rows of `reproduce` that need a training: what is trained, for how long, and where it is kept."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogview3 import checkpoints
from cogview3.config import load_recipe
from cogview3.references import weights_folder
from cogview3.reproduce.rows import SINGLE_STAGE, Trained

STARTS = (200, 300, 400, 500, 600, 800)
"""Table 3's relay starts, and the built-in world's."""

FINE_TUNE_IMAGES = 6_400
"""Samples of each start's fine-tune."""

QUICK_IMAGES = 640
"""Samples of every training with `--quick`."""

PER_MINUTE = 800
"""Pictures of 256 x 256 that a core trains on in a minute, roughly."""


@dataclass(frozen=True)
class Training:
    """One run: its row, its recipe with changes, the network that it gives, its pictures, and what is said of it."""

    row: str
    recipe: str
    changes: tuple[str, ...]
    component: str
    images: int
    note: str

    @property
    def minutes(self) -> int:
        """Of one core, roughly."""
        return max(1, round(self.images / PER_MINUTE))


def trainings(model: str, quick: bool) -> list[Training]:
    """The runs, all beginning with the model's own networks.

    The single stage has what a relay has: the base network, and on top of it the relay's training. Both networks are
    alike and cost the same a picture, so that equal compute is equally many pictures of the final size: those of
    scenes/relay, from as large a set.
    """
    relay: Any = load_recipe("scenes/relay")
    tuned, single = (QUICK_IMAGES,) * 2 if quick else (FINE_TUNE_IMAGES, relay.train.images)
    shared = (f"recipe.start_from={model}", f"data.vae={model}", f"data.text={model}")
    at_size = (f"data.size={relay.data.size}", f"data.pictures={relay.data.pictures}")
    batch = f"train.batch={relay.train.batch}"
    note = f"the base, trained on at that size on {single:,} pictures" + (
        "; a relay has a hundred times as many" if quick else ": as many as scenes/relay has"
    )
    return [
        Training(SINGLE_STAGE, "scenes/base", (*shared, *_length(single), *at_size, batch), "unet", single, note),
        *(
            Training(
                f"T_r {start}",
                "scenes/relay",
                (*shared, *_length(tuned), f"objective.relay_start={start}", "optimizer.learning_rate=3e-4"),
                "relay_unet",
                tuned,
                f"fine-tuned on {tuned:,} pictures",
            )
            for start in STARTS
        ),
    ]


def _length(images: int) -> tuple[str, ...]:
    """A run of so many pictures, with a checkpoint every two minutes."""
    warmup = min(1_000, images // 3)
    return f"train.images={images}", f"optimizer.warmup_images={warmup}", "train.checkpoint_images=1600"


def train_rows(runs: Path, chosen: Sequence[Training], device: str) -> dict[str, Trained]:
    """Train, or resume, each run in a folder of its own; the trained networks by row.

    Which runs ended, by what recipe, is kept in `runs`/trained.json, as resuming one at its end validates it again.
    """
    from cogview3.training.loop import train

    record = runs / "trained.json"
    ended = checkpoints.read_json(record, "delete it; the runs are then looked at again") if record.is_file() else {}
    found = {}
    for each in chosen:
        run, recipe = runs / each.row.replace(" ", "-"), load_recipe(each.recipe, list(each.changes))
        digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
        if ended.get(each.row) != digest or not (run / "weights" / each.component).is_dir():
            train(recipe, out=run, restart=False, device=device)
            ended[each.row] = digest
            checkpoints.write_text(record, json.dumps(ended, indent=1) + "\n")
        found[each.row] = Trained(weights_folder(run, each.component), each.note)
    return found
