"""diffusers' `register_to_config` with a type, so that classes whose `__init__` it decorates keep theirs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])

if TYPE_CHECKING:

    def register_to_config(init: Init) -> Init:
        """As diffusers' own."""

else:
    from diffusers.configuration_utils import register_to_config as register_to_config
