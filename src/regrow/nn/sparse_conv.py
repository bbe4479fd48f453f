"""Convolutions with a sparsely stored weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regrow.core.positions import compact
from regrow.nn.sparse_layer import SparseLayer
from regrow.nn.sparse_linear import kept
from regrow.ops import sparse_conv2d
from regrow.ops.pattern import Geometry, Pattern

__all__ = ["SparseConv", "SparseConv1d", "SparseConv2d"]


class SparseConv(SparseLayer):
    """What convolutions of one and of two dimensions share: both are computed in two.

    Args:
        in_channels: channels of an input.
        out_channels: channels of an output.
        kernel_size: size of the kernel, one number a dimension.
        values: the weights that exist, shape (nonzeros,).
        index: their flat positions in the dense weight (out_channels, in_channels / groups, *kernel_size), sorted,
            int32 or int64.
        bias: shape (out_channels,), or None.
        stride: step of the kernel, one number a dimension; None means 1.
        padding: zeros on both sides, one number a dimension, or "same" or "valid".
        dilation: distance between taps, one number a dimension; None means 1.
        groups: blocks into which the channels are divided.
        unit: outputs and inputs of a unit of topology.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        values: Tensor,
        index: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, ...] | None = None,
        padding: tuple[int, ...] | str = "valid",
        dilation: tuple[int, ...] | None = None,
        groups: int = 1,
        unit: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(values, index, bias, unit)
        ones = (1,) * len(kernel_size)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride or ones
        self.padding = padding
        self.dilation = dilation or ones
        self.groups = groups
        before, after = self._zeros
        # What differs between the sides is padded by hand: so many zeros, from the last dimension on.
        self._uneven = (
            [zeros for pair in zip(reversed(before), reversed(after), strict=True) for zeros in pair]
            if before != after
            else None
        )
        both = before if before == after else (0,) * len(before)
        self.geometry = Geometry(_two(self.stride, 1), _two(both, 0), _two(self.dilation, 1), groups)
        self.prepare()

    @staticmethod
    @abstractmethod
    def dense_type() -> type[_ConvNd]:
        """Return the type of the ordinary layer."""

    def to_dense(self) -> nn.Module:
        """Return the ordinary layer that computes the same, with absent weights at zero."""
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        dense = self.dense_type()(
            self.in_channels, self.out_channels, self.kernel_size, bias=False, device="meta", **settings
        )
        dense.weight = nn.Parameter(self.dense_weight(), requires_grad=self.values.requires_grad)
        dense.register_parameter("bias", self.bias)
        return dense.train(self.training)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def _pattern_shape(self) -> tuple[int, ...]:
        outputs, channels, *kernel = self.shape
        return (outputs, channels, *_two(kernel, 1))

    def enter(self, x: Tensor) -> Tensor:
        """Return an input as (N, C, H, W), padded where the two sides differ."""
        if self._uneven is not None:
            x = F.pad(x, self._uneven)
        spatial = len(self.kernel_size)
        x = x if x.dim() == spatial + 2 else x.unsqueeze(0)
        return x.unsqueeze(2) if spatial == 1 else x

    def product(self, x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
        """Return the output, shape (N, O, H', W'), for an input of shape (N, C, H, W)."""
        stride, padding, dilation, groups = self.geometry
        return sparse_conv2d(x, values, self.bias, pattern, stride, padding, dilation, groups)

    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """Return an output with the dimensions of the input `x`, with or without a batch."""
        spatial = len(self.kernel_size)
        output = output.squeeze(2) if spatial == 1 else output
        return output if x.dim() == spatial + 2 else output.squeeze(0)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"nonzeros={self.values.numel()}"
        )

    @property
    def _zeros(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Zeros before and after, one number a dimension."""
        if self.padding == "same":
            total = [step * (taps - 1) for taps, step in zip(self.kernel_size, self.dilation, strict=True)]
            return tuple(zeros // 2 for zeros in total), tuple(zeros - zeros // 2 for zeros in total)
        padding = (0,) * len(self.kernel_size) if isinstance(self.padding, str) else self.padding
        return padding, padding


class SparseConv1d(SparseConv):
    """`nn.Conv1d` of which only some weights exist; arguments as for `SparseConv`.

    Example:
        >>> import torch
        >>> layer = SparseConv1d(1, 1, (3,), values=torch.tensor([2.0]), index=torch.tensor([1]))
        >>> layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[4., 6.]])
    """

    @staticmethod
    def dense_type() -> type[_ConvNd]:
        """Return the type of the ordinary layer."""
        return nn.Conv1d

    @staticmethod
    def from_dense(dense: nn.Conv1d, index: Tensor, unit: tuple[int, int] = (1, 1)) -> SparseConv1d:
        """Return a layer that keeps of `dense` the weights at the flat positions `index`, and its bias."""
        return SparseConv1d(*_arguments(dense, index), **_settings(dense), unit=unit)


class SparseConv2d(SparseConv):
    """`nn.Conv2d` of which only some weights exist; arguments as for `SparseConv`.

    Example:
        >>> import torch
        >>> layer = SparseConv2d(1, 1, (2, 2), values=torch.tensor([2.0]), index=torch.tensor([3]))
        >>> layer(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[[8.]]])
    """

    @staticmethod
    def dense_type() -> type[_ConvNd]:
        """Return the type of the ordinary layer."""
        return nn.Conv2d

    @staticmethod
    def from_dense(dense: nn.Conv2d, index: Tensor, unit: tuple[int, int] = (1, 1)) -> SparseConv2d:
        """Return a layer that keeps of `dense` the weights at the flat positions `index`, and its bias."""
        return SparseConv2d(*_arguments(dense, index), **_settings(dense), unit=unit)


def _arguments(dense: _ConvNd, index: Tensor) -> tuple[int, int, tuple[int, ...], Tensor, Tensor, Tensor | None]:
    values, index = kept(dense.weight, index), compact(index, dense.weight.numel())
    return dense.in_channels, dense.out_channels, dense.kernel_size, values, index, dense.bias


def _settings(dense: _ConvNd) -> dict[str, Any]:
    return {name: getattr(dense, name) for name in ("stride", "padding", "dilation", "groups")}


def _two(numbers: tuple[int, ...] | list[int], other: int) -> tuple[int, int]:
    """Return one or two numbers as two: a line is a plane of height one."""
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (other, numbers[0])
