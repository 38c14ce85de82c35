"""The command line: one thin file per group of commands, each of which parses, checks and calls."""

import logging
import os
from collections.abc import Callable

ASIDES = {
    "torchao": "Failed to load",
    "torch.utils._pytree": "is an Enum subclass",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}
"""What loggers say, by name, where torchao is installed, which diffusers and peft import whether it is used or not.

Kernels for GPUs that are not there, torchao's own deprecated calls, and a class that its newer versions lack.
"""


def main() -> None:
    """Run the `cogview3` command; exits with 0, 1 failure, 2 bad input, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM."""
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


def _without(words: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: words not in record.getMessage()


for _name, _words in ASIDES.items():  # where this is imported: spawned workers import the file, and run no main()
    logging.getLogger(_name).addFilter(_without(_words))
