"""The command line: one thin file per group of commands, each of which parses, checks and calls."""

import os


def main() -> None:
    """Run the `cogview3` command; exits with 0, 1 (failure), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    _wait_briefly()
    from cogview3.cli.app import app

    app(prog_name="cogview3")


def _wait_briefly() -> None:
    """Have OpenMP's threads sleep soon where they wait for each other; read where torch is loaded.

    By default they keep their processors busy. Where something else runs on one of these, the others then wait for
    its turn thousands of times a picture: ten times as long in all.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
