"""Growth curves of docs/scenes.md: how right the base's pictures are against the samples that it has seen.

    python scripts/growth.py models SNAPSHOTS RUN PARTS OUT   # a model of each snapshot
    cogview3 evaluate OUT/* --prompts scenes-tune --count 100 --relays 0 --steps 30 --metrics scene -o OUT-evaluated
    python scripts/growth.py plot OUT-evaluated docs/images/growth.png

SNAPSHOTS holds folders NAME-SAMPLES with a checkpoint's `ema.safetensors`, RUN is the run that they are of, and PARTS a
model or run with VAE and text encoder.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from cogview3.reproduce.snr_plots import new_figure
from cogview3.training.export import export

KINDS = ("thing", "shape", "color", "fill", "size", "position", "count", "relation")


def models(snapshots: Path, run: Path, parts: str, out: Path) -> None:
    """Write a model folder without a relay, named by the number of samples, for each snapshot."""
    for folder in sorted(snapshots.glob("*-*"), key=_samples):
        target = out / f"{_samples(folder):07}"
        if target.exists():
            continue
        with tempfile.TemporaryDirectory() as temporary:
            weights = Path(temporary) / "weights"
            shutil.copytree(run / "weights", weights)
            shutil.copy(folder / "ema.safetensors", weights / "unet" / "diffusion_pytorch_model.safetensors")
            out.mkdir(parents=True, exist_ok=True)
            export(parts, parts, temporary, None, {}, target)


def plot(evaluated: Path, image: Path) -> None:
    """Draw the share of facts, by kind, and of whole pictures against samples, with the share of facts' interval."""
    found = json.loads((evaluated / "results.json").read_text("utf-8"))["models"]
    scores = {int(Path(name.partition(":")[0]).name): entry["scene"]["model"] for name, entry in found.items()}
    samples = sorted(scores)
    figure, axes = new_figure(1)
    (axis,) = axes
    low, high = zip(*(scores[number]["interval"] for number in samples), strict=True)
    axis.fill_between(samples, low, high, alpha=0.15, color="black", linewidth=0)
    axis.plot(samples, [scores[number]["share"] for number in samples], color="black", linewidth=2, label="all facts")
    axis.plot(samples, [scores[number]["whole"] for number in samples], "k--", label="pictures wholly")
    for kind in KINDS:
        axis.plot(samples, [scores[number]["kinds"][kind] for number in samples], linewidth=1, label=kind)
    axis.set_xlabel("samples seen")
    axis.set_ylabel("share right")
    axis.legend(fontsize="small", ncols=2)
    figure.savefig(image, dpi=110)


def _samples(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    if command == "models":
        models(Path(paths[0]), Path(paths[1]), paths[2], Path(paths[3]))
    else:
        plot(Path(paths[0]), Path(paths[1]))
