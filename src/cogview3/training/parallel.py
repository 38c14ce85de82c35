"""Several processes: the split of a batch, sharding by FSDP2, and tensors of which each process holds a part."""

import copy
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_UNITS = (BasicTransformerBlock, ResnetBlock2D)  # gathered one at a time: where nearly all weights of a UNet are


def parts(first: int, count: int, process: int, processes: int, accumulation: int) -> list[list[int]]:
    """The samples that one process computes of a batch, in the parts of which it makes one after the other.

    All processes get as many parts; some are empty where the batch is small. Process p has the samples first + p,
    first + p + processes, ...

    `count` is of all processes; there are `accumulation` parts at most.
    """
    number = min(accumulation, -(-count // processes))
    own = np.arange(first, first + count)[process::processes]
    return [part.tolist() for part in np.array_split(own, number)]


def skeleton(module: nn.Module) -> nn.Module:
    """A copy of a module without its weights: its parameters are on the meta device."""
    meta = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in module.parameters()
    }
    return copy.deepcopy(module, meta)


def units(module: nn.Module) -> list[nn.Module]:
    """The blocks that are gathered, and compiled, one at a time; the module itself comes last."""
    return [*(part for part in module.modules() if isinstance(part, _UNITS) and part is not module), module]


def shard(module: nn.Module, device: torch.device, bf16: bool) -> None:
    """Spread a module's parameters over all processes, in place (FSDP2).

    With `bf16` they are gathered in bfloat16, computed in it, and their gradients are summed in float32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if bf16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in units(module):
        # The outermost part, too: it would keep what it gathered for a validation, and train on with the averages.
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This process' part of a tensor, sharing its memory; all of a tensor that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from all processes, which must all call this; not sharded, it is given as it is."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor laid out as a parameter: its device, memory format and sharding."""
    if isinstance(parameter, DTensor):
        given = tensor.to(parameter.device, parameter.dtype)
        return distribute_tensor(given, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def as_sharded(part: Tensor, parameter: Tensor) -> Tensor:
    """This process' part, as `local` gives it, as a tensor that is sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def summed(values: Tensor) -> Tensor:
    """The sum of every process' `values`, all of the same shape, on every process."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gathered(value: Any) -> list[Any]:
    """Every process' object, in their order, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def agreed(signal: int | None, device: torch.device) -> int | None:
    """The signal that any process got, the highest of several; the same answer on all, None without one."""
    if not dist.is_initialized():
        return signal
    flag = torch.tensor(signal or 0, device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag) or None
