"""The core as a machine without a network imports it: before anything else of the tests does, as conftest.py sees to.

`ASKED` holds what was asked of the network meanwhile.
"""

import socket
from typing import Any

import pytest

ASKED: list[tuple[Any, ...]] = []


def _refuse(*arguments: Any, **options: Any) -> None:
    ASKED.append(arguments)
    raise OSError("there is no network")


with pytest.MonkeyPatch.context() as patch:
    patch.setattr(socket.socket, "connect", _refuse)
    patch.setattr(socket, "create_connection", _refuse)
    patch.setattr(socket, "getaddrinfo", _refuse)
    from cogview3 import CogView3Pipeline, CogView3UpscalePipeline, RelayScheduler

CORE = CogView3Pipeline, CogView3UpscalePipeline, RelayScheduler
