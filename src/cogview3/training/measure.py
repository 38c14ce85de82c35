"""The ceiling of training speed: operations of a step, and the device's speed in bare matrix products."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cogview3.training.objectives import Batch, Objective


class _Called(Exception):
    """What the network was called with."""


def step_flops(objective: Objective, skeleton: nn.Module, batch: Batch) -> int | None:
    """Operations of forward and backward pass of `objective.trained` on a batch; None where it is no UNet.

    None also where other networks do much of the work (`Objective.works_alone`).

    What is computed twice (`train.checkpoint_activations`) does not count twice. Counted on `skeleton`
    (`parallel.skeleton`), without computing, and in float32 throughout: a frozen part may be kept in another format,
    which only autocast brings together.
    """
    if not isinstance(objective.trained, UNet2DConditionModel) or not objective.works_alone:
        return None
    arguments, options = _call(objective, skeleton, batch)
    network = copy.deepcopy(skeleton).float()
    options = {name: _meta(value) for name, value in options.items()}
    return count_flops(lambda: network(*_meta(arguments), **options).sample.sum().backward())


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations: convolutions and matrix products, a multiplication and an addition each.

    Attention is counted by its two products, which torch's counter only sees where they are computed one by one.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _call(objective: Objective, skeleton: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which the objective calls its network."""
    network, watched = objective.trained, copy.deepcopy(skeleton)

    def forward(*arguments: Any, **options: Any) -> None:
        raise _Called(arguments, options)

    watched.forward = forward
    objective.trained = watched
    try:
        objective.forward(batch)
    except _Called as call:
        return call.args
    finally:
        objective.trained = network
    raise AssertionError("the objective does not call its network")


def _meta(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_meta(each) for each in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to("meta", torch.float32 if value.is_floating_point() else value.dtype)


def matmul_ceiling(device: torch.device | str, dtype: torch.dtype, side: int | None = None, repeats: int = 5) -> float:
    """Operations a second (of `clock`) that a product of two square matrices reaches: the best of `repeats` runs.

    Their `side` is 8192 by default, 1024 on a CPU; one more run warms up.
    """
    device = torch.device(device)
    side = side or (1024 if device.type == "cpu" else 8192)
    products = 1 if device.type == "cpu" else 10
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = []
    for _ in range(repeats + 1):
        start = clock(device)
        for _ in range(products):
            torch.mm(a, b, out=out)
        seconds.append(clock(device) - start)
    return 2 * side**3 * products / min(seconds[1:])


def clock(device: torch.device | str) -> float:
    """Seconds, once the device has done what it was given.

    On a CPU the processor's, of all threads together, so that other work on the machine does not count.
    """
    if torch.device(device).type == "cpu":
        return time.process_time()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
