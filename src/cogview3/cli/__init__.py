"""The command line: one thin file per group of commands, each of which parses, checks and calls."""


def main() -> None:
    """Run the `cogview3` command; exits with 0, 1 (failure), 2 (bad input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    from cogview3.cli.app import app

    app(prog_name="cogview3")
