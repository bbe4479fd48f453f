"""The gradient of weights that a sparse layer does not have: at all positions, or at some without ever making the rest.

At some positions kernels serve float32 and bfloat16 on the CPU, and give float32. Elsewhere the gradient is put
together from dot products, a part at a time; and where most of the positions are asked for, cut out of the dense
gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from regrow.ops import remade
from regrow.ops.autograd import direct, without_derivative
from regrow.ops.check import check_activation, check_that
from regrow.ops.conv2d.cpu import plan_of, values_gradient
from regrow.ops.conv2d.plan import Plan, flat, output_shape, plan_of_index, unflat
from regrow.ops.dense_gradient import conv2d_dense, linear_dense
from regrow.ops.pattern import Geometry, Pattern
from regrow.ops.select import obstacle, serving

__all__ = ["prepare", "watch", "weight_gradient_at"]

# Numbers gathered at a time: small enough for the cache, large enough that calls do not count.
_CHUNK = 1 << 18
# Rows of a dense gradient made at a time, as many as have this many elements.
_ROWS = 1 << 22
# Share of all positions above which the dense gradient is quicker.
_MOST = 0.5


def watch(
    output: Tensor, x: Tensor, absent: Tensor, pattern: Pattern | None, shape: Sequence[int], geometry: Geometry
) -> Tensor:
    """Return a layer's output such that its backward pass also gives the gradient of weights that do not exist.

    The output given is not to be used any more.

    Args:
        output: output of the layer, shape (..., outputs) or (N, O, H', W').
        x: its input, shape (..., inputs) or (N, C, H, W).
        absent: stands for the weights, zero; their gradient becomes that of this tensor. Shape (positions,).
        pattern: where they stand in the dense weight; None for every position of it, taken or not.
        shape: shape of the dense weight, of two or four dimensions.
        geometry: stride, padding, dilation and groups.
    """
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return _watched_by_pytorch(output, x, absent, pattern, shape, geometry)
    if direct(output, x, absent):
        watched: Tensor = _Watch.apply(output, x, absent, pattern, shape, geometry)  # type: ignore[no-untyped-call]
        return watched
    traced: Tensor = _watch(output, x, absent, *_arguments(output, x, pattern, shape, geometry))
    return traced


def _watched_by_pytorch(
    output: Tensor, x: Tensor, absent: Tensor, pattern: Pattern | None, shape: Sequence[int], geometry: Geometry
) -> Tensor:
    """Do the same by PyTorch's operations, which know tangents: by a product with a weight of zeros."""
    zeros = absent - absent.detach()
    if pattern is not None:
        zeros = zeros.new_zeros(prod(shape)).index_put((pattern.positions.to(zeros.device, torch.int64),), zeros)
    weight = zeros.view(tuple(shape)).to(x.dtype)
    return output + (F.linear(x, weight) if len(shape) == 2 else F.conv2d(x, weight, None, *geometry))


class _Watch(torch.autograd.Function):
    """What the operator below does, outside of the compiler: without a copy of the output."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        x: Tensor,
        absent: Tensor,
        pattern: Pattern | None,
        shape: Sequence[int],
        geometry: Geometry,
    ) -> Tensor:
        ctx.pattern, ctx.shape, ctx.geometry, ctx.dtype = pattern, shape, geometry, absent.dtype
        remade.keep(ctx, x, x)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        saved, (given,) = ctx.saved_tensors, gradients
        pattern: Pattern | None = ctx.pattern
        with torch.no_grad():
            (x,) = remade.kept(ctx, saved)
            assert x is not None
            if pattern is not None and _takes_kernels(pattern, given, x):
                plan = pattern.keep(ctx.geometry, lambda: plan_of(pattern, ctx.geometry))
                at = _at(given, x, None, plan, ctx.shape, ctx.geometry)
            else:
                positions = None if pattern is None else pattern.positions
                at = _at(given, x, positions, None, ctx.shape, ctx.geometry, ctx.dtype)
        depends_on = [tensor for tensor in (given, *saved) if tensor is not None]
        return given, None, without_derivative(at.to(ctx.dtype), *depends_on), None, None, None


def weight_gradient_at(pattern: Pattern, x: Tensor, gradient: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the weight of a linear layer or a convolution at some positions, shape (positions,).

    Args:
        pattern: the positions, and the shape of the dense weight.
        x: input of the layer, shape (..., inputs) or (N, C, H, W).
        gradient: gradient of its output, shape (..., outputs) or (N, O, H', W').
        geometry: stride, padding, dilation and groups.

    Example:
        >>> x, gradient = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 5.0]])
        >>> weight_gradient_at(Pattern((3, 2), torch.tensor([0, 5])), x, gradient, Geometry())
        tensor([ 3., 10.])
    """
    at: Tensor = _gradient_at(gradient, x, *_arguments(gradient, x, pattern, pattern.shape, geometry))
    return at


def prepare(pattern: Pattern, absent: Tensor, geometry: Geometry) -> None:
    """Make the index structure that `watch` will ask for: `torch.compile` would not see through that."""
    if obstacle("gradient", absent.device, absent.dtype, pattern.unit) is None:
        pattern.forward_blocks(geometry)


def _takes_kernels(pattern: Pattern, output: Tensor, x: Tensor) -> bool:
    """Return whether kernels compute the gradient of these tensors at these positions."""
    # An update that led over the limit would have a compiler begin anew.
    few = torch.compiler.is_compiling() or pattern.density <= _MOST
    return few and serving("gradient", output, x, unit=pattern.unit) == "cpu"


def _arguments(
    output: Tensor, x: Tensor, pattern: Pattern | None, shape: Sequence[int], geometry: Geometry
) -> tuple[Tensor | None, list[Tensor], list[int], list[int]]:
    """Return positions, index structure (empty where kernels do not serve), shape of the dense weight and geometry."""
    if pattern is None:
        return None, [], list(shape), flat(geometry)
    index = list(pattern.forward_blocks(geometry)) if _takes_kernels(pattern, output, x) else []
    return pattern.positions, index, list(shape), flat(geometry)


@torch.library.custom_op("regrow::watch", mutates_args=())
def _watch(
    output: Tensor,
    x: Tensor,
    absent: Tensor,
    positions: Tensor | None,
    index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    # A view instead of a copy would forbid what follows to work in place.
    return output.clone()


@torch.library.custom_op("regrow::gradient_at", mutates_args=())
def _gradient_at(
    gradient: Tensor,
    x: Tensor,
    positions: Tensor | None,
    index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    nonzeros = None if positions is None else len(positions)
    plan = plan_of_index(index, [], weight_shape, geometry, nonzeros)
    _check(gradient, x, positions, index, weight_shape, unflat(geometry))
    return _at(gradient, x, positions, plan if index else None, weight_shape, unflat(geometry))


def _check(
    gradient: Tensor,
    x: Tensor,
    positions: Tensor | None,
    index: list[Tensor],
    weight_shape: list[int],
    geometry: Geometry,
) -> None:
    """Raise an error unless the tensors fit the weight and each other."""
    linear = len(weight_shape) == 2
    fits = x.dim() >= 1 if linear else x.dim() == 4
    channels = x.shape[-1 if linear else 1] if fits else -1
    check_that(
        channels == weight_shape[1] * geometry.groups,
        f"an input of shape {tuple(x.shape)} does not fit a weight of shape {weight_shape}",
    )
    wanted = (*x.shape[:-1], weight_shape[0]) if linear else output_shape(x.shape, weight_shape, geometry)
    check_that(
        tuple(gradient.shape) == wanted, f"the output's gradient must have shape {wanted}, not {tuple(gradient.shape)}"
    )
    check_that(
        gradient.is_floating_point() and gradient.device == x.device,
        f"the output's gradient must hold real numbers on {x.device}, not {gradient.dtype} on {gradient.device}",
    )
    check_that(not index or positions is not None, "an index structure comes with its positions")
    if index:
        check_activation("the output's gradient", gradient)
        check_activation("the input", x, like=gradient)
    elif positions is not None:
        check_that(
            positions.dim() == 1 and positions.dtype in (torch.int32, torch.int64),
            f"positions must be 1-D, of int32 or int64, not {positions.dtype} of shape {tuple(positions.shape)}",
        )
        check_that(
            not len(positions) or (int(positions.min()) >= 0 and int(positions.max()) < prod(weight_shape)),
            f"positions must lie in a weight of shape {weight_shape}",
        )


def _at(
    gradient: Tensor,
    x: Tensor,
    positions: Tensor | None,
    plan: Plan | None,
    weight_shape: Sequence[int],
    geometry: Geometry,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the gradient at positions, all if None, by kernels where there is a plan; of all in the type given."""
    x = x.to(gradient.dtype)
    if len(weight_shape) == 2:
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if plan is not None:
        return values_gradient(plan, x, gradient) if x.numel() else x.new_zeros(plan.nonzeros, dtype=torch.float32)
    if positions is None:
        if len(weight_shape) == 2:
            return linear_dense(x, gradient, dtype)
        return conv2d_dense(x, gradient, weight_shape, geometry, dtype)
    positions = positions.to(gradient.device)
    most = len(positions) > _MOST * prod(weight_shape)
    if len(weight_shape) == 2:
        return (_linear_from_dense if most else _linear_from_dots)(positions, x, gradient)
    if most:
        return conv2d_dense(x, gradient, weight_shape, geometry)[positions]
    return _conv2d_from_dots(positions, x, gradient, weight_shape, geometry)


@_watch.register_fake
def _(output: Tensor, *_: Any) -> Tensor:
    return output.clone()


@_gradient_at.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    positions: Tensor | None,
    index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    dtype = torch.float32 if index else gradient.dtype  # kernels sum in single precision
    return gradient.new_empty((prod(weight_shape),) if positions is None else positions.shape, dtype=dtype)


def _setup_watch(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, absent, positions, index, ctx.weight_shape, ctx.geometry = inputs
    ctx.dtype = absent.dtype
    ctx.index_length = len(index)
    ctx.save_for_backward(x, positions, *index)


def _watch_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, positions, *index = ctx.saved_tensors
    at = _gradient_at(gradient, x, positions, index, ctx.weight_shape, ctx.geometry)
    return gradient, None, at.to(ctx.dtype), None, [None] * ctx.index_length, None, None


def _refuse_double_backward(*_: Any) -> NoReturn:
    raise RuntimeError(
        "the gradient of absent weights has no second derivatives: call backward without create_graph, or use masked "
        "storage"
    )


_watch.register_autograd(_watch_backward, setup_context=_setup_watch)
_gradient_at.register_autograd(_refuse_double_backward)


def _linear_from_dense(positions: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Cut the gradient of a linear weight out of the dense one, some rows of that at a time."""
    outputs, inputs = gradient.shape[1], x.shape[1]
    result = gradient.new_empty(len(positions))
    rows = max(1, _ROWS // max(1, inputs))
    for first in range(0, outputs, rows):
        bounds = torch.tensor([first, min(first + rows, outputs)], dtype=positions.dtype, device=positions.device)
        start, end = torch.searchsorted(positions, bounds * inputs).tolist()
        dense = gradient[:, first : first + rows].T @ x
        result[start:end] = dense.reshape(-1)[positions[start:end] - first * inputs]
    return result


def _linear_from_dots(positions: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    return _dots(gradient.T.contiguous(), x.T.contiguous(), positions // x.shape[1], positions % x.shape[1])


def _conv2d_from_dots(
    positions: Tensor, x: Tensor, gradient: Tensor, weight_shape: Sequence[int], geometry: Geometry
) -> Tensor:
    outputs, channels, height, width = weight_shape
    tap = positions % (height * width)
    row = positions // (height * width) // channels
    group = row // (outputs // geometry.groups)
    channel = positions // (height * width) % channels + group * channels

    result = gradient.new_zeros(len(positions))
    by_output = gradient.movedim(1, 0).flatten(1)
    # Every tap of the kernel is a linear layer between the outputs and the inputs that it reads.
    for number, seen in enumerate(_seen_by_taps(x, gradient, (height, width), geometry)):
        here = (tap == number).nonzero().squeeze(1)
        if len(here):
            result[here] = _dots(by_output, seen.movedim(1, 0).flatten(1), row[here], channel[here])
    return result


def _seen_by_taps(x: Tensor, gradient: Tensor, kernel: tuple[int, int], geometry: Geometry) -> Iterator[Tensor]:
    """Yield for each tap of the kernel the inputs that it multiplies, shape (N, C, H', W'), as a view."""
    vertical, horizontal = geometry.padding
    padded = torch.nn.functional.pad(x, (horizontal, horizontal, vertical, vertical))
    for top in range(kernel[0]):
        for left in range(kernel[1]):
            rows, columns = (
                slice(first * dilation, first * dilation + (count - 1) * stride + 1, stride)
                for first, count, stride, dilation in zip(
                    (top, left), gradient.shape[2:], geometry.stride, geometry.dilation, strict=True
                )
            )
            yield padded[:, :, rows, columns]


def _dots(left: Tensor, right: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the dot product of row `row[i]` of `left` with row `column[i]` of `right`, for each i."""
    result = left.new_empty(len(row))
    count = max(1, _CHUNK // max(1, left.shape[1]))
    for start in range(0, len(row), count):
        part = slice(start, start + count)
        result[part] = (left[row[part]] * right[column[part]]).sum(1)
    return result
