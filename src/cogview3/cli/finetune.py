"""`captions finetune`: train a model to write captions like the collected ones."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cogview3.cli import options
from cogview3.cli.settings import with_options
from cogview3.config import FinetuneSettings


@with_options(settings=FinetuneSettings)
def finetune(
    pairs: Annotated[
        list[str], typer.Argument(metavar="TRIPLETS|SHARDS...", help="Folders of triplets, or re-captioned shards.")
    ],
    model: Annotated[str, typer.Option("--model", help="Folder, run or hub name of an image-text-to-text model.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="RUN", help="Run folder; an existing one is resumed.")],
    settings: FinetuneSettings,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, help="Images at once on a device; gradient accumulation does the rest.")
    ] = 8,
    workers: Annotated[int, typer.Option("--workers", min=0, max=1024, help="Data loader processes.")] = 0,
    restart: options.RestartOption = False,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Fine-tune a model to write new captions from pictures and old ones.

    The same command resumes a stopped run. Its folder is a model for `captions recaption`.
    """
    options.check_writable(out)
    with options.clean_stdout(as_json):
        from cogview3.captions.pairs import read_pairs
        from cogview3.captions.recaptioner import finetune as run
        from cogview3.cli.progress import counter

        where = options.pick_device(device)
        with counter("shards", None) as tell:
            found = read_pairs(pairs, max(1, workers), tell)
        with counter("images", settings.steps * settings.batch, resumes=True) as tell:
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
    if os.environ.get("RANK", "0") == "0":  # of several processes, one reports
        options.report(result, options.lines(result), as_json)
