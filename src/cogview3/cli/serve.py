"""`serve`: the model as a service, with OpenAI's images API and a page."""

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cogview3.cli import options
from cogview3.cli.errors import INTERRUPTED, TERMINATED, Terminated
from cogview3.cli.expand import ExpanderOptions, ExpandOption, open_expander, wants_expansion
from cogview3.cli.loading import check_placement, quiet_libraries
from cogview3.cli.settings import with_options
from cogview3.cli.typed import problems_of
from cogview3.errors import UserError

if TYPE_CHECKING:
    from cogview3.serving.keys import Keys
    from cogview3.serving.metrics import Metrics
    from cogview3.serving.pipelines import Pipelines
    from cogview3.serving.queue import Limits, Queue


KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="File of API keys, hashed; see --new-key. COGVIEW3_API_KEYS adds others.")
]


@with_options(writer=ExpanderOptions)
def serve(
    model: Annotated[str, typer.Argument(help="Bundled model, model folder or hub name.")] = "scenes",
    mode: Annotated[str | None, typer.Option("--mode", help="Default mode of requests.")] = None,
    fast: options.FastOption = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8000,
    keys: KeysOption = None,
    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="NAME", help="Print a new API key and its line for --keys, then exit."),
    ] = None,
    rate: Annotated[int | None, typer.Option("--rate", min=1, help="Maximum pictures per minute and client.")] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Maximum batch size, in pictures of the model's size.")
    ] = 4,
    waiting: Annotated[
        int, typer.Option("--queue", min=1, help="Maximum queue length in pictures; further ones are refused.")
    ] = 256,
    waiting_each: Annotated[
        int | None, typer.Option("--queue-each", min=1, help="Maximum queue length of one client.")
    ] = None,
    seconds: Annotated[float, typer.Option("--time-limit", min=1, help="Timeout of a request, in seconds.")] = 600.0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of torch.")] = None,
    engine_kind: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="Draw in this process, or in replicas on the Ray cluster of RAY_ADDRESS."),
    ] = "local",
    least: Annotated[
        int | None, typer.Option("--min-replicas", min=1, help="Minimum replicas of --engine ray; 1 by default.")
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--max-replicas", min=1, help="Maximum replicas of --engine ray; --min-replicas by default."),
    ] = None,
    relays: Annotated[
        int, typer.Option("--max-relays", min=0, max=4, help="Maximum relay stages; sets the largest size.")
    ] = 2,
    strict_sizes: Annotated[
        bool, typer.Option("--strict-sizes", help="Refuse unsupported sizes instead of drawing the nearest.")
    ] = False,
    upload: Annotated[
        int, typer.Option("--max-upload", min=1, help="Maximum size of a request with pictures, in MiB.")
    ] = 20,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the web page at /.")] = True,
    tools: Annotated[bool, typer.Option("--mcp/--no-mcp", help="Serve the MCP endpoint at /mcp.")] = True,
    expand: ExpandOption = None,
    *,
    writer: ExpanderOptions,
    quantize: options.QuantizeOption = None,
    vae_tiling: options.VaeTilingOption = False,
    compile_networks: options.CompileOption = False,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    log: Annotated[bool, typer.Option("--log", help="Log every request to stderr.")] = False,
) -> None:
    """Serve a model: OpenAI's images API under /v1, a web page at /.

    Ctrl-C and SIGTERM finish the pictures in progress first.
    """
    _check_extra()
    from cogview3.serving.keys import ENVIRONMENT, Keys, read_keys
    from cogview3.serving.metrics import Metrics
    from cogview3.serving.queue import Limits
    from cogview3.serving.server import bind, create_server, raise_file_limit

    if new_key is not None:
        print_key(new_key)
        return
    replicas = _check_replicas(engine_kind, least, most)
    known = Keys(read_keys(keys, os.environ.get(ENVIRONMENT)), rate)
    mode = options.pick_mode(mode, fast)
    quiet_libraries()
    from cogview3.generation.placement import Placement

    how = Placement(quantize=quantize, vae_tiling=vae_tiling, compile=compile_networks)
    where, number_format = check_placement(device, dtype, how)
    limits = Limits(batch, 0.005, waiting, waiting_each or waiting, seconds, threads)

    from cogview3.serving.pipelines import Pipelines

    pipelines = Pipelines(model, mode, where, number_format, how)
    listener = bind(host, port)
    written = open_expander(model, writer, device) if wants_expansion(expand, model, writer) else None
    address = listener.getsockname()
    _tell_address(host, address[1], known, pipelines.name, pipelines.default)
    metrics = Metrics()
    from cogview3.serving.app import create_app
    from cogview3.serving.service import Service

    engine = _make_engine(replicas, pipelines, limits, metrics)
    sizes = engine.load(pipelines.default, relays)
    service = Service(
        engine, pipelines.name, pipelines.modes, pipelines.default, sizes, limits, metrics, known, written,
        problems_of(model), strict_sizes,
    )  # fmt: skip
    raise_file_limit()
    typer.echo("ready", err=True)
    server = create_server(create_app(service, upload * 2**20, page, tools, host), engine, log)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt as signaled:  # raised once all is closed, unless a second Ctrl-C forced the end
        if server.force_exit:
            raise
        typer.echo("stopped", err=True)
        raise typer.Exit(TERMINATED if isinstance(signaled, Terminated) else INTERRUPTED) from None


def _check_replicas(kind: Literal["local", "ray"], least: int | None, most: int | None) -> tuple[int, int] | None:
    """Replicas at least and at most; None where this process draws. Raises UserError, also without Ray Serve."""
    if kind == "local":
        if least or most:
            raise UserError(f"--{'min' if least else 'max'}-replicas {least or most} is for --engine ray: add it")
        return None
    least = least or 1
    if most is not None and most < least:
        raise UserError(f"--max-replicas {most} is below --min-replicas {least}: give at least as many")
    from cogview3.serving.cluster import import_ray

    import_ray()
    return least, most or least


def _make_engine(
    replicas: tuple[int, int] | None, pipelines: "Pipelines", limits: "Limits", metrics: "Metrics"
) -> "Queue":
    """What draws: the thread of this process, or replicas."""
    if replicas is None:
        from cogview3.serving.engine import Engine

        return Engine(pipelines, limits, metrics)
    from cogview3.serving.cluster import Cluster, Scale

    gpu = pipelines.on_gpu
    scale = Scale(*replicas, float(gpu), 1.0 if gpu else float(limits.threads or 1))
    return Cluster(pipelines, limits, metrics, scale)


def print_key(name: str) -> None:
    """A new key on stdout, and the line for the file of keys. Raises UserError."""
    import re

    from cogview3.serving.keys import new_key

    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise UserError(f"--new-key {name!r}: give a name of letters, digits, dots and hyphens")
    secret, line = new_key(name)
    typer.echo(f"{secret}\n{line}")
    typer.echo("the first line is the client's key; add the second line to the file of --keys", err=True)


def _check_extra() -> None:
    """Refuse to go on without the packages of the extra. Raises UserError."""
    from importlib.util import find_spec

    needed = ("fastapi", "gradio", "mcp", "prometheus_client", "python_multipart", "uvicorn")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'cogview3[serve]'")


def _tell_address(host: str, port: int, keys: "Keys", model: str, mode: str) -> None:
    """Where the service is; a warning where others can reach it without a key."""
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"serving {model}@{mode} at http://{shown}:{port}", err=True)
    if not len(keys) and not _is_loopback(host):
        typer.echo(
            f"warning: anyone who reaches {host} can draw, because there are no API keys: make one with "
            "--new-key NAME, and give its file with --keys",
            err=True,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
