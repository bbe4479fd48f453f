"""The layout of activations between sparse layers: the batch innermost.

A tensor of logical shape (N, C, H, W) is *batch-last* when its strides are (1, H*W*N, W*N, N), and one of shape (N, C)
when they are (1, N): a nonzero of the weight then multiplies contiguous runs of the batch. PyTorch's element-wise
operations keep that layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from regrow.ops import native
from regrow.ops.native import kernels
from regrow.ops.select import obstacle, serving

__all__ = [
    "allocate_batch_last",
    "allocate_flat",
    "batch_last",
    "batch_last_strides",
    "empty_batch_last",
    "is_batch_last",
    "release_memory",
    "to_batch_last",
    "to_channels_last",
    "to_rows",
    "way_back",
]

# From here on, in bytes, clearing fresh pages costs more than the way to the pool.
_POOLED_BYTES = 1 << 20
# What the addresses of a process reach, in bytes.
_MOST_BYTES = 1 << 63


def is_batch_last(x: Tensor) -> bool:
    """Return whether the first dimension of `x` is the innermost in memory and the rest follow in order."""
    return x.movedim(0, -1).is_contiguous()


def empty_batch_last(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised batch-last tensor with the dtype and device of `like`."""
    return like.new_empty((*shape[1:], shape[0])).movedim(-1, 0)


def allocate_batch_last(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialised batch-last tensor on the CPU; large ones from memory that is used again.

    Args:
        shape: of the tensor.
        dtype: float32 or bfloat16.

    Raises:
        RuntimeError: if no memory could hold it.
    """
    strides, numbers = batch_last_strides(tuple(shape))
    return _allocate(shape, strides, numbers * dtype.itemsize, dtype)


def _allocate(shape: Sequence[int], strides: Sequence[int], size: int, dtype: torch.dtype) -> Tensor:
    # Never a view of a tensor in memory's order: autograd adds to gradients in place, and lets users write to outputs,
    # only where there is none.
    if size < _POOLED_BYTES:
        return torch.empty_strided(shape, strides, dtype=dtype)
    if size >= _MOST_BYTES:
        raise RuntimeError(f"no memory holds a tensor of shape {tuple(shape)}")
    taken: Tensor = kernels().allocate(list(shape), list(strides), dtype is torch.bfloat16)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        taken.fill_(torch.nan)
    return taken


def allocate_flat(like: Tensor, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised flat tensor beside another; large ones from memory that is used again.

    For what lives while activations do not: it then takes no memory of its own.
    """
    dtype = dtype or like.dtype
    if like.device.type != "cpu" or obstacle("layout", like.device, None, activations=dtype) is not None:
        return like.new_empty(size, dtype=dtype)
    return allocate_batch_last((size,), dtype)


@lru_cache(maxsize=4096)
def batch_last_strides(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the strides of a batch-last tensor, and its number of elements."""
    return (1, *(shape[0] * prod(shape[axis + 1 :]) for axis in range(1, len(shape)))), prod(shape)


def release_memory() -> int:
    """Return to the system the memory that is kept for outputs to come, and say how many bytes that was.

    Outputs of sparse layers of 1 MiB and more, and what kernels need for themselves, are taken from it: it holds about
    as much as was in use at once, and keeps that. What the C library keeps of freed tensors is returned too.
    """
    return 0 if native._kernels is None else int(native._kernels.release_memory())


def batch_last(x: Tensor) -> Tensor:
    """Return `x`, shape (N, C, H, W) or (N, C), with the batch innermost: itself if it is so already, else a copy."""
    if is_batch_last(x):
        return x
    copy: Tensor = _to_batch_last(x)
    return copy


def to_batch_last(x: Tensor) -> Tensor:
    """Return what `batch_last` does, in memory of its own if need be, without a record for gradients."""
    if x.is_neg() or x._is_zerotensor():
        x = x.clone()  # what is written in memory is something else, or nothing
    if x.stride() == batch_last_strides(x.shape)[0] or is_batch_last(x):
        return x
    count, channels, *sizes = x.shape
    plane = prod(sizes)
    channels_last = len(sizes) == 2 and x.permute(0, 2, 3, 1).is_contiguous()
    if not (channels_last or x.is_contiguous()) or serving("layout", x) != "cpu":
        return empty_batch_last(x, *x.shape).copy_(x)
    copy = allocate_batch_last(x.shape, x.dtype)
    # One matrix (N, C*H*W) to transpose, or, channels last, for each position of the plane one (N, C).
    columns, matrices = (channels, plane) if channels_last else (channels * plane, 1)
    _transpose(
        x, channels * plane, channels, copy, plane * count if channels_last else count, count, count, columns, matrices
    )
    return copy


def to_channels_last(x: Tensor) -> Tensor:
    """Return `x`, shape (N, C, H, W), with the channels innermost: itself if it is so already, else a copy.

    Some samples of what has the batch innermost are copied as fast as all. Nothing is recorded for a gradient.
    """
    count, channels, height, width = x.shape
    plane, pitch = height * width, x.stride(3)
    some_samples = x.stride() == (1, plane * pitch, width * pitch, pitch) and pitch >= count
    if not some_samples or serving("layout", x) != "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    # batch-last of the channels is channels-last of the batch
    copy = allocate_batch_last((channels, count, height, width), x.dtype).movedim(0, 1)
    _transpose(x, plane * pitch, pitch, copy, plane * channels, channels, channels, count, plane)
    return copy


def to_rows(x: Tensor) -> Tensor:
    """Return `x`, shape (N, C, ...), with one sample after the other: itself if it is so already, else a copy.

    Nothing is recorded for a gradient.
    """
    strides, numbers = batch_last_strides(tuple(x.shape))
    if x.is_contiguous() or x.stride() != strides or serving("layout", x) != "cpu":
        return x.contiguous()
    count = x.shape[0]
    sample = numbers // count
    copy = _allocate(x.shape, [prod(x.shape[axis + 1 :]) for axis in range(x.dim())], numbers * x.itemsize, x.dtype)
    _transpose(x, count, count, copy, sample, sample, sample, count, 1)
    return copy


def way_back(x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what gives a batch-last tensor in the shape of `x` its layout; None where there is none or no need."""
    if is_batch_last(x):
        return None
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return to_channels_last
    return to_rows if x.is_contiguous() else None


def _transpose(
    source: Tensor, source_pitch: int, source_distance: int, target: Tensor, target_pitch: int, target_distance: int,
    rows: int, columns: int, count: int,
) -> None:  # fmt: skip
    """Transpose `count` matrices; pitch is the way between rows, distance that between matrices, in numbers."""
    kernels().transpose(
        source.data_ptr(), source_pitch, source_distance, target.data_ptr(), target_pitch, target_distance,
        rows, columns, count, torch.get_num_threads(), source.dtype is torch.bfloat16,
    )  # fmt: skip


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
