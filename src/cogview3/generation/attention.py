"""Cross attention while sampling, exact but with less work, because the text is the same at every step.

Two things need not be computed again at every step: the text's keys and values; and all of the cross attention of
the unconditional branch, for its text is zeros. Keys and values have no bias, so that all values are zero there, and
whatever the weights of attention, its output is that of the output projection for zeros.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

_PLAIN = (AttnProcessor, AttnProcessor2_0)  # what this one may stand for; others do something more


class TextAttention:
    """Attention processor for cross attention to a text that seldom changes.

    Keys and values are kept as long as the same tensor is given as text. Where there are fewer texts than samples,
    the first samples have none, that is zeros.
    """

    def __init__(self) -> None:
        # A text, its keys and its values: one attribute, so that threads with other texts never mix them.
        self._known: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None = None,
    ) -> torch.Tensor:
        """Attend from (B, N, C) to texts (B or fewer, L, D), which are never masked: (B, N, C)."""
        keys, values = self.project(attn, encoder_hidden_states)
        without = len(hidden_states) - len(encoder_hidden_states)
        query = _by_head(attn.to_q(hidden_states[without:]), attn)
        attended = F.scaled_dot_product_attention(query, keys, values, scale=attn.scale)
        output: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        if without:
            of_zeros = attn.to_out[0](torch.zeros_like(output[:1, :1, :1]).expand(1, 1, attn.inner_dim))
            output = torch.cat([of_zeros.expand(without, *output.shape[1:]), output])
        dropped: torch.Tensor = attn.to_out[1](output)
        return dropped / attn.rescale_output_factor

    def project(self, attn: Attention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a text (B, L, D), (B, heads, L, C) each: computed, unless it is the text at hand."""
        known = self._known
        if known is None or known[0] is not text:
            known = self._known = text, _by_head(attn.to_k(text), attn), _by_head(attn.to_v(text), attn)
        return known[1:]


def project_text(unet: UNet2DConditionModel, text: torch.Tensor) -> None:
    """Have all keys and values of a text ready before the UNet is called with it, within `constant_text`.

    They would be made when they are needed. But a compiled block that never makes them is compiled once, not twice.
    """
    if hook := getattr(unet, "_hf_hook", None):
        hook.pre_forward(unet)  # accelerate's: brings an offloaded UNet to its device
    for module in unet.modules():
        if isinstance(module, Attention) and isinstance(module.processor, TextAttention):
            module.processor.project(module, text)


def _by_head(values: torch.Tensor, attn: Attention) -> torch.Tensor:
    """(B, N, heads * C) -> (B, heads, N, C)."""
    by_head: torch.Tensor = values.unflatten(2, (attn.heads, -1))
    return by_head.transpose(1, 2)


@dataclass
class _Replaced:
    """Of a UNet in use: the processors that it had, whether these are all its cross attentions', and its users."""

    before: dict[Attention, AttnProcessor]
    is_whole: bool
    users: int = 0


_replaced: WeakKeyDictionary[nn.Module, _Replaced] = WeakKeyDictionary()
_lock = Lock()


@contextmanager
def constant_text(unet: UNet2DConditionModel) -> Iterator[bool]:
    """Let a UNet's cross attentions be `TextAttention` within the block, and as long as another thread is in one.

    Gives whether the UNet may be given fewer texts than samples. It may not where an attention is not a plain one
    (an adapter's, say) or has biases: such ones are left as they are.
    """
    with _lock:
        if unet not in _replaced:
            crossing = [module for module in unet.modules() if getattr(module, "is_cross_attention", False)]
            before = {
                module: module.processor for module in crossing if isinstance(module, Attention) and _fits(module)
            }
            _replaced[unet] = _Replaced(before, len(before) == len(crossing))
            for module in before:  # not by set_attn_processor, which searches the whole network for them
                module.processor = TextAttention()
        used = _replaced[unet]
        used.users += 1
    try:
        yield used.is_whole
    finally:
        with _lock:
            used.users -= 1
            if not used.users:
                del _replaced[unet]
                for module, processor in used.before.items():
                    module.processor = processor


def _fits(attn: Attention) -> bool:
    extras = (attn.norm_cross, attn.norm_q, attn.norm_k, attn.group_norm, attn.spatial_norm)
    plain = type(attn.processor) in _PLAIN and not attn.residual_connection and not any(extras)
    return plain and attn.to_k.bias is None and attn.to_v.bias is None
