"""Convolution with a sparse weight by the compiled kernels, as operators that PyTorch knows.

The operators take the index structure as tensors, not as an object, so that `torch.compile` and `torch.export` see
through them. Gradients of gradients are not offered.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from regrow.ops.layout import allocate_batch_last, batch_last, empty_batch_last
from regrow.ops.native import kernels
from regrow.pattern import Blocks, Geometry, Pattern


def conv2d_cpu(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Convolve float32 tensors on the CPU; arguments as for `regrow.ops.sparse_conv2d`."""
    wants_input_gradient = torch.is_grad_enabled() and x.requires_grad
    output: Tensor = _conv2d(
        batch_last(x),
        values,
        bias,
        list(pattern.forward_blocks(geometry)),
        list(pattern.transposed_blocks(geometry)) if wants_input_gradient else [],
        [*pattern.shape[:2], *pattern.kernel],
        _flat(geometry),
    )
    return output


def conv2d_values_gradient(
    index: list[Tensor], x: Tensor, output_gradient: Tensor, weight_shape: list[int], geometry: Geometry
) -> Tensor:
    """Return the gradient of weights of a convolution or a linear layer, float32 on the CPU, shape (weights,).

    Args:
        index: the `Blocks` of the weights, as from `Pattern.forward_blocks`.
        x: input of the layer, shape (N, C, H, W) or (N, C).
        output_gradient: gradient of its output, shape (N, O, H', W') or (N, O).
        weight_shape: shape of the dense weight.
        geometry: stride, padding, dilation and groups.
    """
    plane = [*weight_shape, 1, 1][:4]
    tensors = (tensor if tensor.dim() == 4 else tensor.unsqueeze(-1).unsqueeze(-1) for tensor in (output_gradient, x))
    gradient: Tensor = _values_gradient(*tensors, index, plane, _flat(geometry))
    return gradient


@torch.library.custom_op("regrow::conv2d", mutates_args=(), device_types="cpu")
def _conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    x = batch_last(x)
    values = values.contiguous()
    bias = None if bias is None else bias.contiguous()
    output = allocate_batch_last(*_output_shape(x.shape, weight_shape, geometry))
    kernels().gather(
        geometry=_kernel_geometry(x, output, weight_shape, geometry, transposed=False),
        index=_kernel_index(index, weight_shape[0], x.shape[1]),
        values=values.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        input=x.data_ptr(),
        output=output.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return output


@torch.library.custom_op("regrow::conv2d_input_gradient", mutates_args=(), device_types="cpu")
def _input_gradient(
    output_gradient: Tensor,
    values: Tensor,
    transposed_index: list[Tensor],
    input_shape: list[int],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    output_gradient = batch_last(output_gradient)
    values = values.contiguous()
    gradient = allocate_batch_last(*input_shape)
    kernels().gather(
        geometry=_kernel_geometry(output_gradient, gradient, weight_shape, geometry, transposed=True),
        index=_kernel_index(transposed_index, input_shape[1], weight_shape[0]),
        values=values.data_ptr(),
        bias=0,
        input=output_gradient.data_ptr(),
        output=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


@torch.library.custom_op("regrow::conv2d_values_gradient", mutates_args=(), device_types="cpu")
def _values_gradient(
    output_gradient: Tensor, x: Tensor, index: list[Tensor], weight_shape: list[int], geometry: list[int]
) -> Tensor:
    output_gradient = batch_last(output_gradient)
    x = batch_last(x)
    gradient = x.new_empty(index[0].shape)
    kernels().values_gradient(
        geometry=_kernel_geometry(x, output_gradient, weight_shape, geometry, transposed=False),
        index=_kernel_index(index, weight_shape[0], x.shape[1]),
        output_gradient=output_gradient.data_ptr(),
        input=x.data_ptr(),
        gradient=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


@_conv2d.register_fake
def _(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    return empty_batch_last(x, *_output_shape(x.shape, weight_shape, geometry))


@_input_gradient.register_fake
def _(
    output_gradient: Tensor,
    values: Tensor,
    transposed_index: list[Tensor],
    input_shape: list[int],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    return empty_batch_last(output_gradient, *input_shape)


@_values_gradient.register_fake
def _(output_gradient: Tensor, x: Tensor, index: list[Tensor], weight_shape: list[int], geometry: list[int]) -> Tensor:
    return x.new_empty(index[0].shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, index, transposed_index, ctx.weight_shape, ctx.geometry = inputs
    ctx.input_shape = x.shape
    ctx.index_lengths = (len(index), len(transposed_index))
    # What no gradient needs is not kept alive: x serves the values' gradient, the values the input's.
    _, ctx.wants_values, *_ = ctx.needs_input_grad
    ctx.save_for_backward(x if ctx.wants_values else None, values, *index, *transposed_index)


def _backward(ctx: Any, output_gradient: Tensor) -> tuple[Any, ...]:
    x, values, *indices = ctx.saved_tensors
    length, transposed_length = ctx.index_lengths
    index, transposed_index = indices[:length], indices[length:]
    wants_x, wants_values, wants_bias, *_ = ctx.needs_input_grad
    output_gradient = batch_last(output_gradient)
    x_gradient = values_gradient = bias_gradient = None
    if wants_x:
        x_gradient = _input_gradient(
            output_gradient, values, transposed_index, list(ctx.input_shape), ctx.weight_shape, ctx.geometry
        )
    if wants_values:
        values_gradient = _values_gradient(output_gradient, x, index, ctx.weight_shape, ctx.geometry)
    if wants_bias:
        # In the order of memory: over contiguous rows.
        bias_gradient = output_gradient.movedim(0, -1).flatten(1).sum(1)
    no_lists = ([None] * length, [None] * transposed_length)
    return x_gradient, values_gradient, bias_gradient, *no_lists, None, None


def _refuse_double_backward(*_: Any) -> NoReturn:
    raise RuntimeError(
        "sparse layers have no second derivatives: call backward without create_graph, or use masked storage"
    )


_conv2d.register_autograd(_backward, setup_context=_setup_context)
_input_gradient.register_autograd(_refuse_double_backward)
_values_gradient.register_autograd(_refuse_double_backward)


def _flat(geometry: Geometry) -> list[int]:
    """Return a geometry as the numbers that an operator can take: stride, padding, dilation, groups."""
    return [*geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups]


def _output_shape(input_shape: torch.Size, weight_shape: list[int], geometry: list[int]) -> tuple[int, ...]:
    plane = (
        (input_shape[2 + axis] + 2 * geometry[2 + axis] - geometry[4 + axis] * (weight_shape[2 + axis] - 1) - 1)
        // geometry[axis]
        + 1
        for axis in (0, 1)
    )
    return (input_shape[0], weight_shape[0], *plane)


def _kernel_geometry(
    source: Tensor, target: Tensor, weight_shape: list[int], geometry: list[int], transposed: bool
) -> Any:
    height, width = (
        kernels().Axis(
            input=source.shape[2 + axis],
            output=target.shape[2 + axis],
            kernel=weight_shape[2 + axis],
            stride=geometry[axis],
            padding=geometry[2 + axis],
            dilation=geometry[4 + axis],
        )
        for axis in (0, 1)
    )
    return kernels().Geometry(batch=source.shape[0], height=height, width=width, transposed=transposed)


def _kernel_index(index: list[Tensor], rows: int, channels: int) -> Any:
    blocks = Blocks(*index)
    return kernels().Index(
        **{name: tensor.data_ptr() for name, tensor in blocks._asdict().items()},
        nonzeros=len(blocks.order),
        rows=rows,
        channels=channels,
    )
