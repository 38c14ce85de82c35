"""`study`: people judge pairs of pictures, blind."""

from pathlib import Path
from typing import Annotated

import typer

from cogview3.cli import options
from cogview3.config import UserError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Have people judge pairs of pictures, blind.")

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the study.")]
_EXTRA = "the study needs FastAPI and evalica: pip install 'cogview3[evaluate]'"


@app.command()
def build(
    folder: FolderArgument,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="NAME=FOLDER", help="A system's pictures, 00000.png and so on; two or more."),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="Take all systems of an evaluation's --out folder.")
    ] = None,
    prompts: Annotated[
        str, typer.Option("--prompts", help="Built-in set or file with the prompts of the pictures.")
    ] = "scenes-heldout",
    count: Annotated[int | None, typer.Option("--count", min=1, help="Number of prompts.")] = None,
    annotators: Annotated[int, typer.Option("--annotators", min=1, help="Number of annotators.")] = 10,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Pairs for each annotator.")] = 60,
    checks: Annotated[int, typer.Option("--checks", min=0, help="Attention checks among each annotator's pairs.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of choice, order and sides.")] = 0,
    as_json: options.JsonOption = False,
) -> None:
    """Build a study: picture pairs for each annotator, with sides shuffled, and a secret link for each."""
    options.check_writable(folder, "DIR")
    with options.clean_stdout(as_json):
        from cogview3.evaluation.prompt_sets import load_prompts
        from cogview3.evaluation.study.build import LINKS, Plan, from_evaluation
        from cogview3.evaluation.study.build import build as make

        systems = from_evaluation(evaluation) if evaluation else {}
        for text in images or []:
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise UserError(f"--images {text!r}: write NAME=FOLDER")
            if name in systems:
                raise UserError(f"--images {text!r}: a system {name} exists already; give another name")
            systems[name] = Path(path)
        made = make(folder, systems, load_prompts(prompts, count), Plan(annotators, tasks, checks, seed))
    left_out = f", {made['left_out']} prompts left out, as pictures are missing" * bool(made["left_out"])
    text = f"{len(systems)} systems, {made['prompts']} prompts{left_out}; links in {folder / LINKS}"
    options.report(made, text, as_json)


@app.command()
def serve(
    folder: FolderArgument,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 lets others reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")] = 8010,
) -> None:
    """Serve a study to its annotators; links.csv has a link for each."""
    try:
        import uvicorn

        from cogview3.evaluation.study.server import make_app
        from cogview3.serving.server import bind
    except ImportError:
        raise UserError(_EXTRA) from None
    made = make_app(folder)
    listener = bind(host, port)
    address = f"http://{host}:{listener.getsockname()[1]}"
    typer.echo(f"serving {address} with the paths of {folder / 'links.csv'}; Ctrl-C stops", err=True)
    uvicorn.Server(uvicorn.Config(made, log_level="warning")).run(sockets=[listener])


@app.command(name="report")
def report_command(
    folder: FolderArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the report; DIR/report by default.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Report win rates, strengths, agreement and audits of the votes so far."""
    with options.clean_stdout(as_json):
        from rich.console import Console

        from cogview3.evaluation.study.build import read_study
        from cogview3.evaluation.study.database import DATABASE, votes
        from cogview3.evaluation.study.report import tables, write

        try:
            from cogview3.evaluation.study.analysis import analyze
        except ImportError:
            raise UserError(_EXTRA) from None
        study, found = read_study(folder), votes(folder / DATABASE)
        result = analyze(found, study["systems"])
        files = write(out or folder / "report", result, found)
        console = Console(stderr=as_json)
        for table in tables(result):
            console.print(table.rich())
    options.report(
        result | {"files": [str(path) for path in files]}, "\n".join([*result["audits"], *map(str, files)]), as_json
    )
