"""`data`: pictures with captions to train on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cogview3.cli import options
from cogview3.cli.settings import with_options
from cogview3.cli.typed import read_lines
from cogview3.config import Filters, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from cogview3.data.report import Report
    from cogview3.data.statistics import Statistics

app = typer.Typer(rich_markup_mode=None)

Captions = Literal["comprehensive", "brief", "alt-text", "plain"]

ShardsArgument = Annotated[
    list[str], typer.Argument(metavar="SHARDS...", help="Tars, folders or URLs; *, ? and {00000..00010} are expanded.")
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, max=1024, help="Worker processes, one shard each at a time.")
]


@app.callback()
def group() -> None:
    """Prepare and inspect training data."""


@app.command()
def scenes(
    count: Annotated[int, typer.Option("--count", min=1, help="Number of pictures.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder; must be empty or absent.")],
    size: Annotated[int, typer.Option("--size", min=32, max=4096, help="Side of the pictures in pixels.")] = 256,
    captions: Annotated[
        Captions, typer.Option("--captions", help="Kind of caption in the .txt files.")
    ] = "comprehensive",
    new: Annotated[
        Captions | None, typer.Option("--new", help="Kind of new caption, in a sidecar beside each tar.")
    ] = None,
    layout: Annotated[
        Literal["tar", "folder"], typer.Option("--layout", help="WebDataset tars or plain files.")
    ] = "tar",
    shard: Annotated[int, typer.Option("--shard", min=1, max=10_000, help="Pictures per tar.")] = 1000,
    seed: options.SeedOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Write random scenes of the built-in world.

    Captions are true of their pictures, except for some alt-texts.
    """
    options.check_writable(out)
    if new is not None and layout == "folder":
        raise UserError(f"--new {new} writes sidecars of tars; leave out --layout folder, or --new")
    from cogview3.cli.progress import counter
    from cogview3.data.scenes.write import write_scenes

    seed = options.pick_seed(seed)
    with counter("scenes", count) as progress:
        write_scenes(
            out,
            count,
            size=size,
            caption=captions,
            new=new,
            seed=seed,
            shard=shard if layout == "tar" else None,
            progress=progress,
        )
    result = {"out": str(out), "count": count, "size": size, "captions": captions, "seed": seed}
    result |= {} if new is None else {"new": new}
    options.report(result, f"{count} scenes written to {out} (seed {seed})", as_json)


@app.command("filter")
@with_options(filters=Filters)
def filter_(
    shards: ShardsArgument,
    filters: Filters,
    blocklist: Annotated[
        Path | None, typer.Option("--blocklist", help="File of strings for --block, one per line.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace sidecars made with other options.")] = False,
    workers: WorkersOption = 1,
    as_json: options.JsonOption = False,
) -> None:
    """Filter samples: write which ones to keep beside each shard.

    Scores come from the metadata; a sample without one is kept. Finished shards are skipped, so the same command
    resumes a stopped run.
    """
    from cogview3.cli.progress import counter
    from cogview3.data.formats import find_shards
    from cogview3.data.keep import write_keep

    if blocklist is not None:
        filters = filters.model_copy(update={"block": (*filters.block, *read_lines("--blocklist", blocklist))})
    found = find_shards(shards)
    with counter("shards", len(found), resumes=True) as progress:
        counts, before = write_keep(found, filters, workers=workers, overwrite=overwrite, progress=progress)
    result = {"shards": len(found), "finished_before": before, **_counts(counts, "kept")}
    _show(result, [f"{len(found)} shards, {before} of them finished before", _reasons(counts, "kept")], as_json)


@app.command()
def stats(
    shards: ShardsArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for statistics.json and histograms in statistics.png.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="REF", help="Also count tokens, and captions that this text encoder truncates."),
    ] = None,
    workers: WorkersOption = 1,
    as_json: options.JsonOption = False,
) -> None:
    """Count sizes, aspect ratios, caption lengths, formats and broken samples."""
    if out is not None:
        options.check_writable(out)
    from cogview3.cli.progress import counter
    from cogview3.data.formats import find_shards
    from cogview3.data.statistics import collect
    from cogview3.references import weights_folder

    if text is not None:
        weights_folder(text, "tokenizer")
    found = find_shards(shards)
    with options.clean_stdout(as_json), counter("shards", len(found)) as progress:
        statistics = collect(found, text=text, workers=workers, progress=progress)
    result = statistics.to_dict()
    if out is not None:
        _write_statistics(out, statistics)
        result["out"] = str(out)
    formats = ", ".join(f"{count} {name}" for name, count in statistics.formats.most_common())
    first = f"{statistics.shards} shards: {formats or 'no picture'}"
    if total := statistics.tokens.total():
        first += f"; {statistics.cut} of {total} captions are longer than the text encoder of {text} reads"
    _show(result, [first, _quantiles(statistics), _reasons(statistics.report, "usable")], as_json)


@app.command()
def encode(
    shards: ShardsArgument,
    vae: Annotated[
        str, typer.Option("--vae", metavar="REF", help="Autoencoder: a run, model folder or bundled model.")
    ],
    size: Annotated[
        int, typer.Option("--size", min=64, help="Resolution: pictures get the area of a square with this side.")
    ],
    text: Annotated[
        str | None, typer.Option("--text", metavar="REF", help="Also store caption embeddings of this text encoder.")
    ] = None,
    relay: Annotated[
        bool, typer.Option("--relay", help="Also store the low-resolution latents that a relay stage starts from.")
    ] = False,
    reconstructed_share: Annotated[
        float,
        typer.Option("--reconstructed-share", min=0, max=1, help="Like data.reconstructed_share in a relay recipe."),
    ] = 0.0,
    degraded_share: Annotated[
        float, typer.Option("--degraded-share", min=0, max=1, help="Like data.degraded_share in a relay recipe.")
    ] = 0.0,
    crop: Annotated[
        Literal["random", "center"], typer.Option("--crop", help="Crop at random or at the center.")
    ] = "random",
    buckets: Annotated[bool, typer.Option("--buckets/--squares", help="Aspect-ratio buckets, or square crops.")] = True,
    bucket_step: Annotated[int, typer.Option("--bucket-step", min=32, help="Bucket sides are multiples of this.")] = 64,
    bucket_ratio: Annotated[
        float, typer.Option("--bucket-ratio", min=1, help="Largest aspect ratio of a bucket.")
    ] = 2.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures per batch.")] = 16,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Random seed of crops and of degraded low-resolution pictures.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing latents.")] = False,
    workers: WorkersOption = 1,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Encode pictures ahead of training, and write their latents beside each shard.

    Finished shards are skipped, so the same command resumes a stopped run. Several GPUs share the workers.
    """
    if (reconstructed_share or degraded_share) and not relay:
        raise UserError("--reconstructed-share and --degraded-share are for --relay; give it, or leave them out")
    if reconstructed_share + degraded_share > 1:
        raise UserError(f"--degraded-share {degraded_share}: give at most {1 - reconstructed_share:g}, what is left")
    if size % 16:
        raise UserError(f"--size {size}: give a multiple of 16, as in recipes")
    if buckets and (bucket_step % 32 or size % bucket_step):
        raise UserError(f"--bucket-step {bucket_step}: give a multiple of 32 that divides --size {size}, as in recipes")
    if dtype == "float16":
        raise UserError("--dtype float16: autoencoders and T5 overflow in it; give bfloat16 or float32")
    from cogview3.cli.progress import counter
    from cogview3.data.buckets import Buckets
    from cogview3.data.encode import Encoding, encode_shards
    from cogview3.data.encoded import Preprocessing, vae_fingerprint
    from cogview3.data.formats import find_shards
    from cogview3.fingerprints import encoder_fingerprint
    from cogview3.references import weights_folder

    step, ratio = (bucket_step, bucket_ratio) if buckets else (size, 1.0)
    Buckets(size, step, ratio)
    low = (reconstructed_share, degraded_share) if relay else None
    read = None if text is None else encoder_fingerprint(weights_folder(text, "text_encoder").parent)
    settings = Preprocessing(vae_fingerprint(weights_folder(vae, "vae")), read, size, step, ratio, crop, low)
    devices = options.pick_devices(device)
    precision = options.pick_dtype(dtype, devices[0].partition(":")[0])
    encoding = Encoding(vae, settings, text, devices, batch, str(precision).removeprefix("torch."), seed)
    found = find_shards(shards)
    with options.clean_stdout(as_json), counter("shards", len(found), resumes=True) as progress:
        counts, figures = encode_shards(found, encoding, workers=workers, overwrite=overwrite, progress=progress)
    first = (
        f"{figures['images']} pictures encoded, {figures['images_per_second']} a second; {figures['shards']} shards, "
        f"{figures['finished_before']} of them finished before"
    )
    _show({**figures, **_counts(counts, "encoded")}, [first, _reasons(counts, "encoded")], as_json)


def _counts(counts: "Report", good: str) -> dict[str, Any]:
    """A report's counts with its samples under a name of the command."""
    result = counts.to_dict()
    return {good: result.pop("samples"), **result}


def _write_statistics(out: Path, statistics: "Statistics") -> None:
    from cogview3.checkpoints import write_text
    from cogview3.data.statistics import plot

    write_text(out / "statistics.json", json.dumps(statistics.to_dict(), indent=2, ensure_ascii=False) + "\n")
    if not plot(statistics, out / "statistics.png"):
        typer.echo('no histograms: they need matplotlib; install it with pip install "cogview3[plots]"', err=True)


def _quantiles(statistics: "Statistics") -> "Table":
    """How sizes, ratios and lengths are spread."""
    from rich.table import Table

    from cogview3.data.statistics import QUANTILES, quantiles

    table = Table("", *QUANTILES)
    for name, values in statistics.values().items():
        table.add_row(name, *(f"{value:g}" for value in quantiles(values).values()))
    return table


def _reasons(counts: "Report", good: str) -> "Table":
    """Numbers of good, broken, filtered and corrected samples, with the reasons."""
    from rich.table import Table

    table = Table("samples", "reason", "count")
    table.columns[2].justify = "right"
    table.add_row(good, "", str(counts.samples))
    for name in ("broken", "filtered", "corrected"):
        for reason, count in getattr(counts, name).most_common():
            table.add_row(name, reason, str(count))
    return table


def _show(result: dict[str, Any], parts: list["str | Table"], as_json: bool) -> None:
    """The object with --json, else text and tables."""
    if as_json:
        options.report(result, "", as_json)
        return
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)
