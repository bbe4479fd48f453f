"""Dense convolutions that meet activations with the batch innermost: they get them in the layout that they compute in.

PyTorch would take the input to that layout itself, at each use in forward and backward anew, by a copy that takes
longer than the kernels' transpose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from regrow.ops.autograd import direct
from regrow.ops.layout import batch_last, is_batch_last, to_channels_last

__all__ = ["give_own_layout", "take_own_layout_back"]


def give_own_layout(convolution: nn.Conv2d) -> None:
    """Let a convolution get each input that has the batch innermost with the channels innermost instead.

    Example:
        >>> convolution = nn.Conv2d(4, 2, 1)
        >>> give_own_layout(convolution)
        >>> x = batch_last(torch.ones(3, 4, 5, 5))
        >>> convolution(x).is_contiguous(memory_format=torch.channels_last)
        True
    """
    convolution.register_forward_pre_hook(_channels_innermost)


def take_own_layout_back(module: nn.Module) -> None:
    """Let a module get its inputs as they are again, if it did not."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _channels_innermost:
            del module._forward_pre_hooks[key]


def _channels_innermost(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the inputs of a call as the convolution is to get them; None for as they are."""
    x, *others = inputs
    if not direct(x) or forward_ad._current_level >= 0 or x.dim() != 4 or not is_batch_last(x):
        return None
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return None
    return _ChannelsInnermost.apply(x), *others  # type: ignore[no-untyped-call]


class _ChannelsInnermost(torch.autograd.Function):
    """A copy with the channels innermost; the gradient gets the batch innermost."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return to_channels_last(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return batch_last(gradients[0])
