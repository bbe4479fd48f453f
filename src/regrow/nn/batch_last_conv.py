"""Dense convolutions between sparse layers, which get activations with the batch innermost.

PyTorch would take such an input to the layout that it computes in by itself, in forward and backward anew, by a copy
that takes longer than the kernels' transpose. A kernel of one tap needs no other layout: it is a product of matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from regrow.nn.batch_last import BatchLast
from regrow.ops.autograd import direct
from regrow.ops.layout import batch_last, is_batch_last, to_channels_last

__all__ = ["BatchLastConv2d"]


class BatchLastConv2d(nn.Conv2d, BatchLast):
    """`nn.Conv2d` that gets activations with the batch innermost.

    A convolution becomes one, and ordinary again, where it stands: what masks and hooks know of it holds.
    """

    @staticmethod
    def of(convolution: nn.Conv2d) -> BatchLastConv2d:
        """Return the convolution itself, as one of these.

        Example:
            >>> convolution = BatchLastConv2d.of(nn.Conv2d(4, 2, 1))
            >>> is_batch_last(convolution(batch_last(torch.ones(3, 4, 5, 5))))
            True
        """
        convolution.__class__ = BatchLastConv2d
        assert isinstance(convolution, BatchLastConv2d)
        return convolution

    def to_ordinary(self) -> nn.Conv2d:
        """Return the convolution itself, as an ordinary one unless something has made a class of its own of it since.

        A parametrization does: it would be lost with that class.
        """
        if type(self) is BatchLastConv2d:
            # The type checker lets `self` be of no wider class, which here adds nothing but `forward`.
            self.__class__ = nn.Conv2d  # type: ignore[assignment]
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`, shape (N, C, H, W) or (C, H, W)."""
        if not _has_batch_innermost(x) or x.shape[1] != self.in_channels:
            return super().forward(x)
        if self._is_product:
            return self._product(x)
        turned: Tensor = _ChannelsInnermost.apply(x)  # type: ignore[no-untyped-call]
        return super().forward(turned)

    @property
    def _is_product(self) -> bool:
        return self.kernel_size == (1, 1) and self.padding in ((0, 0), "same", "valid") and self.groups == 1

    def _product(self, x: Tensor) -> Tensor:
        down, right = self.stride
        # The batch goes last before anything is left out, so that the gradient has it there too.
        seen = x.movedim(0, -1)[:, ::down, ::right]
        output = self.weight.view(self.weight.shape[:2]) @ seen.reshape(seen.shape[0], -1)
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)[:, None]
        return output.view(-1, *seen.shape[1:]).movedim(-1, 0)


def _has_batch_innermost(x: Tensor) -> bool:
    """Return whether PyTorch would have to copy an input, and nothing traces or transforms it."""
    if not direct(x) or forward_ad._current_level >= 0 or x.dim() != 4 or not is_batch_last(x):
        return False
    return not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


class _ChannelsInnermost(torch.autograd.Function):
    """A copy with the channels innermost; the gradient gets the batch innermost."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return to_channels_last(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return batch_last(gradients[0])
