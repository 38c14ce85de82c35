"""A UNet with more layers per block that starts as one with fewer: the same function, with more capacity.

Further layers begin as the identity (Net2Net, Chen et al. 2016, arXiv 1511.05641): residual branches and attentions
give 0, and where a layer of the upward path takes a skip connection along, its shortcut passes the rest on and drops
that. They learn from the first step on, since only the last layer of each branch is zero.
"""

import re

import torch
from diffusers.models import UNet2DConditionModel

from cogview3.models.unet import same_entry

_SILENT = (".conv2.weight", ".conv2.bias", ".proj_out.weight", ".proj_out.bias", ".conv_shortcut.bias")
_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")


def further_layers(shallow: UNet2DConditionModel, deep: UNet2DConditionModel) -> int:
    """How many more layers a block `deep` has, if that is all that tells the two configurations apart; else 0."""
    own, other = dict(deep.config), dict(shallow.config)
    counts = own.pop("layers_per_block"), other.pop("layers_per_block")
    if not all(isinstance(count, int) for count in counts) or counts[0] <= counts[1]:
        return 0
    keys = {key for key in own.keys() | other.keys() if not key.startswith("_") and key != "sample_size"}
    alike = all(same_entry(own.get(key), other.get(key)) for key in keys)
    return counts[0] - counts[1] if alike else 0


def deepen(shallow: UNet2DConditionModel, deep: UNet2DConditionModel) -> None:
    """Give `deep`, of `further_layers` more a block, weights with which it computes what `shallow` does.

    The downward path's further layers come last in their blocks. The upward path's come second: so the first and the
    last ones still meet the skip connections that they were trained with.
    """
    few, more = shallow.config["layers_per_block"], further_layers(shallow, deep)
    state, given = deep.state_dict(), shallow.state_dict()
    for name, value in state.items():
        old = _origin(name, few, more)
        if old is not None:
            value.copy_(given[old])
        elif name.endswith(_SILENT):
            value.zero_()
        elif name.endswith(".conv_shortcut.weight"):
            value.zero_()[:, : len(value), 0, 0] = torch.eye(len(value))  # all but the skip's channels pass
    deep.load_state_dict(state)


def _origin(name: str, few: int, more: int) -> str | None:
    """What the shallow network calls a weight of the deep one; None in its further layers."""
    found = _LAYER.fullmatch(name)
    if found is None:
        return name
    path, block, kind, layer, rest = found[1], found[2], found[3], int(found[4]), found[5]
    if path == "up" and layer > 0:
        layer = layer - more if layer > more else -1
    if layer < 0 or (path == "down" and layer >= few):
        return None
    return f"{path}_blocks.{block}.{kind}.{layer}.{rest}"
