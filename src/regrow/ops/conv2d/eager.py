"""Convolution with a sparse weight outside of the compiler: the same as the operators, with less on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.conv2d import run
from regrow.ops.layout import to_batch_last, without_view
from regrow.ops.pattern import Geometry, Pattern
from regrow.ops.refuse import without_derivative


def convolve(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Convolve; arguments as for `regrow.ops.sparse_conv2d`, or an input of shape (N, C): a plane of one position."""
    output: Tensor = _Convolution.apply(x, values, bias, pattern, geometry)  # type: ignore[no-untyped-call]
    return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        geometry: Geometry,
    ) -> Tensor:
        ctx.pattern, ctx.geometry, ctx.input_shape = pattern, geometry, x.shape
        ctx.weight_shape = (*pattern.shape[:2], *pattern.kernel)
        plane = to_batch_last(_plane(x))
        output = run.convolve(plane, values, bias, pattern.forward_blocks(geometry), ctx.weight_shape, geometry)
        # What no gradient needs is not kept alive: x serves the values' gradient, the values the input's.
        wants_x, wants_values, *_ = ctx.needs_input_grad
        ctx.save_for_backward(plane if wants_values else None, values)
        if wants_x:
            pattern.transposed_blocks(geometry)
        return output if x.dim() == 4 else without_view(output.flatten(1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, values = ctx.saved_tensors
        wants_x, wants_values, wants_bias, *_ = ctx.needs_input_grad
        (given,) = gradients
        with torch.no_grad():
            gradient = to_batch_last(_plane(given))
            of_x = of_values = of_bias = None
            if wants_x:
                shape = _plane_shape(ctx.input_shape)
                blocks = ctx.pattern.transposed_blocks(ctx.geometry)
                of_x = run.input_gradient(gradient, values, blocks, shape, ctx.weight_shape, ctx.geometry)
                of_x = of_x if len(ctx.input_shape) == 4 else of_x.flatten(1)
            if wants_values:
                blocks = ctx.pattern.forward_blocks(ctx.geometry)
                of_bias = gradient.new_empty(gradient.shape[1]) if wants_bias else None
                of_values = run.values_gradient(gradient, x, blocks, ctx.weight_shape, ctx.geometry, of_bias)
            elif wants_bias:
                of_bias = run.bias_gradient(gradient)
        depends_on = [tensor for tensor in (given, x, values) if tensor is not None]
        return (
            without_derivative(of_x, *depends_on),
            without_derivative(of_values, *depends_on),
            without_derivative(of_bias, *depends_on),
            None,
            None,
        )


def _plane(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else x.unsqueeze(-1).unsqueeze(-1)


def _plane_shape(shape: torch.Size) -> tuple[int, ...]:
    return (*shape, 1, 1)[:4]
