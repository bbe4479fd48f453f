"""Convolution with a sparse weight as operators that PyTorch's compiler and exporter know.

The operators take the index structure as tensors, not as an object, so that `torch.compile` and `torch.export` see
through them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.conv2d import run
from regrow.ops.layout import batch_last, empty_batch_last
from regrow.ops.pattern import Blocks, Geometry, Pattern
from regrow.ops.refuse import refuse_double_backward


def convolve(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Convolve by operators; arguments as for `regrow.ops.sparse_conv2d`."""
    wants_input_gradient = torch.is_grad_enabled() and x.requires_grad
    output: Tensor = conv2d(
        batch_last(x),
        values,
        bias,
        list(pattern.forward_blocks(geometry)),
        list(pattern.transposed_blocks(geometry)) if wants_input_gradient else [],
        [*pattern.shape[:2], *pattern.kernel],
        flat(geometry),
    )
    return output


def flat(geometry: Geometry) -> list[int]:
    """Return a geometry as the numbers that an operator can take: stride, padding, dilation, groups."""
    return [*geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups]


def unflat(flat: list[int]) -> Geometry:
    """Return the geometry that `flat` made numbers of."""
    stride, padding, dilation = ((flat[i], flat[i + 1]) for i in (0, 2, 4))
    return Geometry(stride, padding, dilation, flat[6])


@torch.library.custom_op("regrow::conv2d", mutates_args=(), device_types="cpu")
def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    """Convolve; the transposed index is for the gradient of the input, and may be empty without one."""
    return run.convolve(x, values, bias, Blocks(*index), weight_shape, unflat(geometry))


@torch.library.custom_op("regrow::conv2d_input_gradient", mutates_args=(), device_types="cpu")
def input_gradient(
    output_gradient: Tensor,
    values: Tensor,
    transposed_index: list[Tensor],
    input_shape: list[int],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    """Return the gradient of the input."""
    blocks = Blocks(*transposed_index)
    return run.input_gradient(output_gradient, values, blocks, input_shape, weight_shape, unflat(geometry))


@torch.library.custom_op("regrow::conv2d_values_gradient", mutates_args=(), device_types="cpu")
def values_gradient(
    output_gradient: Tensor, x: Tensor, index: list[Tensor], weight_shape: list[int], geometry: list[int]
) -> Tensor:
    """Return the gradient of the values."""
    return run.values_gradient(output_gradient, x, Blocks(*index), weight_shape, unflat(geometry))


@conv2d.register_fake
def _(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    return empty_batch_last(x, *run.output_shape(x.shape, weight_shape, unflat(geometry)))


@input_gradient.register_fake
def _(
    output_gradient: Tensor,
    values: Tensor,
    transposed_index: list[Tensor],
    input_shape: list[int],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    return empty_batch_last(output_gradient, *input_shape)


@values_gradient.register_fake
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
    of_x = of_values = of_bias = None
    if wants_x:
        of_x = input_gradient(
            output_gradient, values, transposed_index, list(ctx.input_shape), ctx.weight_shape, ctx.geometry
        )
    if wants_values:
        of_values = values_gradient(output_gradient, x, index, ctx.weight_shape, ctx.geometry)
    if wants_bias:
        of_bias = run.bias_gradient(output_gradient)
    no_lists = ([None] * length, [None] * transposed_length)
    return of_x, of_values, of_bias, *no_lists, None, None


conv2d.register_autograd(_backward, setup_context=_setup_context)
input_gradient.register_autograd(refuse_double_backward)
values_gradient.register_autograd(refuse_double_backward)
