"""The compiled kernels on tensors: a convolution with a sparse weight and its gradients, float32 on the CPU.

Nothing here is recorded for a gradient. A linear layer is a convolution on a plane of one position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.ops.layout import allocate_batch_last, to_batch_last
from regrow.ops.native import kernels
from regrow.ops.pattern import Blocks, Geometry


def convolve(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: Blocks,
    weight_shape: Sequence[int],
    geometry: Geometry,
) -> Tensor:
    """Return the output, shape (N, O, H', W'), batch-last.

    Args:
        x: input, shape (N, C, H, W).
        values: the weights that exist.
        bias: one number for each output, or None.
        index: from `Pattern.forward_blocks`.
        weight_shape: (outputs, inputs of a group, height, width).
        geometry: stride, padding, dilation and groups.
    """
    x = to_batch_last(x)
    values = values.contiguous()
    bias = None if bias is None else bias.contiguous()
    output = allocate_batch_last(*output_shape(x.shape, weight_shape, geometry))
    kernels().gather(
        geometry=_plane(x, output, weight_shape, geometry, transposed=False),
        index=_index(index, weight_shape[0], x.shape[1]),
        values=values.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        input=x.data_ptr(),
        output=output.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return output


def input_gradient(
    output_gradient: Tensor,
    values: Tensor,
    transposed_index: Blocks,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    geometry: Geometry,
) -> Tensor:
    """Return the gradient of the input, shape (N, C, H, W), batch-last; `transposed_index` as from a `Pattern`."""
    output_gradient = to_batch_last(output_gradient)
    values = values.contiguous()
    gradient = allocate_batch_last(*input_shape)
    kernels().gather(
        geometry=_plane(output_gradient, gradient, weight_shape, geometry, transposed=True),
        index=_index(transposed_index, input_shape[1], weight_shape[0]),
        values=values.data_ptr(),
        bias=0,
        input=output_gradient.data_ptr(),
        output=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


def values_gradient(
    output_gradient: Tensor,
    x: Tensor,
    index: Blocks,
    weight_shape: Sequence[int],
    geometry: Geometry,
    bias_gradient: Tensor | None = None,
) -> Tensor:
    """Return the gradient of the weights that `index` holds, shape (weights,).

    The gradient of the bias, float32 of shape (O,), comes along for less than it costs alone if it has a place.
    """
    output_gradient = to_batch_last(output_gradient)
    x = to_batch_last(x)
    gradient = x.new_empty(index.order.shape)
    kernels().values_gradient(
        geometry=_plane(x, output_gradient, weight_shape, geometry, transposed=False),
        index=_index(index, weight_shape[0], x.shape[1]),
        output_gradient=output_gradient.data_ptr(),
        input=x.data_ptr(),
        gradient=gradient.data_ptr(),
        bias_gradient=0 if bias_gradient is None else bias_gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


def bias_gradient(output_gradient: Tensor) -> Tensor:
    """Return the gradient of the bias, shape (O,), summed in the order of memory."""
    return output_gradient.movedim(0, -1).flatten(1).sum(1)


def output_shape(input_shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """Return the shape of the output, (N, O, H', W')."""
    height, width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in zip(
            input_shape[2:], weight_shape[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True
        )
    )
    return (input_shape[0], weight_shape[0], height, width)


def _plane(source: Tensor, target: Tensor, weight_shape: Sequence[int], geometry: Geometry, transposed: bool) -> Any:
    """Return the geometry as the kernels take it."""
    height, width = (
        kernels().Axis(
            source.shape[2 + axis],
            target.shape[2 + axis],
            weight_shape[2 + axis],
            geometry.stride[axis],
            geometry.padding[axis],
            geometry.dilation[axis],
        )
        for axis in (0, 1)
    )
    return kernels().Geometry(source.shape[0], height, width, transposed)


def _index(blocks: Blocks, rows: int, channels: int) -> Any:
    """Return an index structure as the kernels take it."""
    addresses = {name: tensor.data_ptr() for name, tensor in zip(blocks._fields, blocks, strict=True)}
    return kernels().Index(**addresses, nonzeros=len(blocks.order), rows=rows, channels=channels)
