"""The layout of activations between sparse layers: the batch innermost.

A tensor of logical shape (N, C, H, W) is *batch-last* when its strides are (1, H*W*N, W*N, N): a nonzero of the
weight then multiplies contiguous runs of the batch. PyTorch's element-wise operations keep that layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from regrow.ops.native import kernels, kernels_serve

# From here on, in floats, clearing fresh pages costs more than the way to the pool.
_POOLED_FLOATS = 1 << 18


def is_batch_last(x: Tensor) -> bool:
    """Return whether the first dimension of `x` is the innermost in memory and the rest follow in order."""
    return x.movedim(0, -1).is_contiguous()


def empty_batch_last(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised batch-last tensor with the dtype and device of `like`."""
    return like.new_empty((*shape[1:], shape[0])).movedim(-1, 0)


def allocate_batch_last(*shape: int) -> Tensor:
    """Return an uninitialised batch-last float32 tensor on the CPU; large ones from memory that is used again."""
    # Never a view of a tensor in memory's order: autograd adds to gradients in place, and lets users write to outputs,
    # only where there is none.
    strides = _strides(shape)
    if prod(shape) < _POOLED_FLOATS:
        return torch.empty_strided(shape, strides)
    floats: Tensor = kernels().allocate(shape, strides)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        floats.fill_(torch.nan)
    return floats


def without_view(x: Tensor) -> Tensor:
    """Return a tensor of the same memory, shape and strides that PyTorch takes for no view, without a gradient."""
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


def release_memory() -> int:
    """Return to the system the memory that is kept for outputs to come, and say how many bytes that was.

    Outputs of sparse layers of 1 MiB and more are kept when they are gone, up to 256 MiB more than was in use at once.
    """
    return int(kernels().release_memory())


def batch_last(x: Tensor) -> Tensor:
    """Return `x`, shape (N, C, H, W), with the batch innermost: itself if it is so already, else a copy."""
    if is_batch_last(x):
        return x
    copy: Tensor = _to_batch_last(x)
    return copy


def to_batch_last(x: Tensor) -> Tensor:
    """Return what `batch_last` does, without a record for gradients."""
    if is_batch_last(x):
        return x
    count, channels, height, width = x.shape
    plane = height * width
    channels_last = x.permute(0, 2, 3, 1).is_contiguous()
    if not kernels_serve(x) or not (channels_last or x.is_contiguous()):
        return empty_batch_last(x, *x.shape).copy_(x)
    copy = allocate_batch_last(*x.shape)
    # One matrix (N, C*H*W) to transpose, or, channels last, for each position of the plane one (N, C).
    columns, matrices = (channels, plane) if channels_last else (channels * plane, 1)
    kernels().transpose(
        source=x.data_ptr(), source_pitch=channels * plane, source_distance=channels,
        target=copy.data_ptr(), target_pitch=plane * count if channels_last else count, target_distance=count,
        rows=count, columns=columns, count=matrices, threads=torch.get_num_threads(),
    )  # fmt: skip
    return copy


def to_channels_last(x: Tensor) -> Tensor:
    """Return `x`, shape (N, C, H, W), with the channels innermost: itself if it is so already, else a copy.

    Nothing is recorded for a gradient.
    """
    if not kernels_serve(x) or not is_batch_last(x):
        return x.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = x.shape
    plane = height * width
    # batch-last of the channels is channels-last of the batch
    copy = allocate_batch_last(channels, count, height, width).movedim(0, 1)
    kernels().transpose(
        source=x.data_ptr(), source_pitch=plane * count, source_distance=count,
        target=copy.data_ptr(), target_pitch=plane * channels, target_distance=channels,
        rows=channels, columns=count, count=plane, threads=torch.get_num_threads(),
    )  # fmt: skip
    return copy


def _strides(shape: Sequence[int]) -> list[int]:
    """Return the strides of a batch-last tensor."""
    strides, step = [1], shape[0]
    for size in reversed(shape[1:]):
        strides.insert(1, step)
        step *= size
    return strides


@torch.library.custom_op("regrow::to_batch_last", mutates_args=(), device_types=("cpu", "cuda"))
def _to_batch_last(x: Tensor) -> Tensor:
    # An operator may not return what it was given.
    copy = to_batch_last(x)
    return copy.clone() if copy is x else copy


@_to_batch_last.register_fake
def _(x: Tensor) -> Tensor:
    return empty_batch_last(x, *x.shape)


def _backward(_: object, gradient: Tensor) -> Tensor:
    return gradient


_to_batch_last.register_autograd(_backward)
