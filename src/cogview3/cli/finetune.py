"""`captions finetune`: teach a model to write captions as the collected ones are."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cogview3.cli.options import (
    Device,
    DeviceOption,
    JsonOption,
    RestartOption,
    check_writable,
    clean_stdout,
    lines,
    pick_device,
    report,
)


def finetune(
    pairs: Annotated[
        list[str], typer.Argument(metavar="TRIPLETS|SHARDS...", help="Folders of triplets, or re-captioned shards.")
    ],
    model: Annotated[str, typer.Option("--model", help="Folder, run or hub name of an image-text-to-text model.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="RUN", help="Run folder; the same one goes on.")],
    images: Annotated[int, typer.Option("--images", min=1, help="Seen in all; 1,500 batches by default.")] = 384_000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures of a step.")] = 256,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="1e-4 for LoRA, 1e-5 with --full, by default.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of LoRA.")] = False,
    rank: Annotated[int, typer.Option("--rank", min=1, max=1024, help="Of LoRA.")] = 16,
    held_out: Annotated[int, typer.Option("--held-out", min=1, help="Pairs kept apart, a tenth at most.")] = 500,
    check_images: Annotated[
        int, typer.Option("--check-images", min=1, help="Between looks at the held-out loss, and checkpoints.")
    ] = 12_800,
    patience: Annotated[int, typer.Option("--patience", min=1, help="Looks without a better loss until it ends.")] = 3,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Pictures at once on a device.")] = 8,
    workers: Annotated[int, typer.Option("--workers", min=0, max=1024, help="Processes that read pictures.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the order and LoRA's start.")] = 0,
    restart: RestartOption = False,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model to write new captions from pictures and old ones.

    The same command goes on with a run that was stopped. Its folder is a model for `captions recaption`.
    """
    check_writable(out)
    with clean_stdout(as_json):
        from cogview3.captions.pairs import read_pairs
        from cogview3.captions.recaptioner import Settings
        from cogview3.captions.recaptioner import finetune as run
        from cogview3.cli.progress import counter

        settings = Settings(
            images=images,
            batch=batch,
            learning_rate=learning_rate,
            full=full,
            rank=rank,
            held_out=held_out,
            check_images=check_images,
            patience=patience,
            seed=seed,
        )
        where = pick_device(device)
        with counter("shards", None) as tell:
            found = read_pairs(pairs, max(1, workers), tell)
        with counter("images", settings.steps * batch, resumes=True) as tell:
            result = run(
                found,
                model,
                out,
                settings,
                device=where,
                micro_batch=at_once,
                workers=workers,
                restart=restart,
                progress=tell,
            )
    if os.environ.get("RANK", "0") == "0":  # of several processes, one tells
        report(result, lines(result), as_json)
