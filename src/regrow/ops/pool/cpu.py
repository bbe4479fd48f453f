"""Pooling and its gradients by the compiled kernels, float32 or bfloat16 on the CPU."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from regrow.ops.autograd import Differentiable, direct
from regrow.ops.check import check_activation, check_tensor, check_that
from regrow.ops.layout import allocate_batch_last, empty_batch_last, to_batch_last
from regrow.ops.native import kernels
from regrow.ops.pool import reference
from regrow.ops.pool.window import MOST_TAPS, Window

__all__ = ["max_pool2d", "mean_pool2d"]


def max_pool2d(x: Tensor, window: Window) -> Tensor:
    """Pool a tensor on the CPU; arguments as for `regrow.ops.max_pool2d`."""
    if window.taps > MOST_TAPS:
        return reference.max_pool2d(x, window)
    output: tuple[Tensor, ...] = _max_pool(window, x) if direct(x) else _max_pool.traced(x, _flat(window))
    return output[0]


def mean_pool2d(x: Tensor, window: Window, divisor: int | None) -> Tensor:
    """Pool a tensor on the CPU; arguments as for `regrow.ops.mean_pool2d`."""
    plan = (window, divisor or 0)
    output: Tensor = _mean_pool(plan, x) if direct(x) else _mean_pool.traced(x, _flat(window), plan[1])
    return output


def _run_max(window: Window, wanted: Sequence[bool], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima and, batch innermost, which tap of its window each of them was; empty if nobody wants that."""
    shape = window.output_shape(x.shape)
    output = allocate_batch_last(shape, x.dtype)
    winner = _empty_winner(x, shape if wanted[0] else None)
    kernels().max_pool(
        _geometry(x.shape, window), x.shape[1], x.data_ptr(), output.data_ptr(),
        winner.data_ptr() if wanted[0] else 0, torch.get_num_threads(), x.dtype is torch.bfloat16,
    )  # fmt: skip
    return output, winner


def _max_gradients(window: Window, shape: tuple[int, ...], _: object, given: Tensor, winner: Tensor) -> list[Tensor]:
    gradient = allocate_batch_last(shape, given.dtype)
    kernels().max_pool_gradient(
        _geometry(shape, window), shape[1], given.data_ptr(), winner.data_ptr(), gradient.data_ptr(),
        torch.get_num_threads(), given.dtype is torch.bfloat16,
    )  # fmt: skip
    return [gradient]


def _run_mean(plan: tuple[Window, int], _: object, x: Tensor) -> Tensor:
    window, divisor = plan
    output = allocate_batch_last(window.output_shape(x.shape), x.dtype)
    kernels().mean_pool(
        _geometry(x.shape, window), x.shape[1], divisor, x.data_ptr(), output.data_ptr(), torch.get_num_threads(),
        x.dtype is torch.bfloat16,
    )  # fmt: skip
    return output


def _mean_gradients(plan: tuple[Window, int], shape: tuple[int, ...], _: object, given: Tensor) -> list[Tensor]:
    window, divisor = plan
    gradient = allocate_batch_last(shape, given.dtype)
    kernels().mean_pool_gradient(
        _geometry(shape, window), shape[1], divisor, given.data_ptr(), gradient.data_ptr(), torch.get_num_threads(),
        given.dtype is torch.bfloat16,
    )  # fmt: skip
    return [gradient]


_max_pool = Differentiable(_run_max, lambda _, __, outputs: (outputs[1],), _max_gradients, inputs=1, differentiable=1)
_mean_pool = Differentiable(_run_mean, lambda *_: (), _mean_gradients, inputs=1, differentiable=1)


# What the compiler and the exporter see takes a window as numbers: kernel, stride, padding.


def _max_operator(x: Tensor, window: list[int]) -> tuple[Tensor, Tensor]:
    check_activation("the input", x)
    each = _checked(window, x.shape)
    if not x.numel():
        shape = each.output_shape(x.shape)
        return allocate_batch_last(shape, x.dtype), _empty_winner(x, shape)
    return _run_max(each, (True,), to_batch_last(x))


def _max_gradient_operator(
    output_gradient: Tensor, winner: Tensor, window: list[int], input_shape: list[int], wanted: list[bool]
) -> list[Tensor]:
    each, shape = _checked(window, input_shape), tuple(input_shape)
    count, *others = each.output_shape(shape)
    check_activation("the output's gradient", output_gradient, (count, *others))
    check_tensor("the winners", winner, (*others, count), torch.uint8)
    if not output_gradient.numel():
        return [output_gradient.new_zeros(shape)]
    winner = winner.contiguous()
    _check_winner(winner, shape, each)
    return _max_gradients(each, shape, wanted, to_batch_last(output_gradient), winner)


def _mean_operator(x: Tensor, window: list[int], divisor: int) -> Tensor:
    check_activation("the input", x)
    each = _checked(window, x.shape, divisor)
    if not x.numel():
        return allocate_batch_last(each.output_shape(x.shape), x.dtype)
    return _run_mean((each, divisor), None, to_batch_last(x))


def _mean_gradient_operator(
    output_gradient: Tensor, window: list[int], divisor: int, input_shape: list[int], wanted: list[bool]
) -> list[Tensor]:
    each, shape = _checked(window, input_shape, divisor), tuple(input_shape)
    check_activation("the output's gradient", output_gradient, each.output_shape(shape))
    if not output_gradient.numel():
        return [output_gradient.new_zeros(shape)]
    return _mean_gradients((each, divisor), shape, wanted, to_batch_last(output_gradient))


def _gradient_fake(output_gradient: Tensor, *arguments: Any) -> list[Tensor]:
    *_, input_shape, _ = arguments
    return [empty_batch_last(output_gradient, *input_shape)]


def _max_fake(x: Tensor, window: list[int]) -> tuple[Tensor, Tensor]:
    shape = _unflat(window).output_shape(x.shape)
    return empty_batch_last(x, *shape), _empty_winner(x, shape)


max_operator, max_gradient_operator = _max_pool.operators(
    "max_pool2d", _max_operator, _max_gradient_operator, _max_fake, _gradient_fake
)
mean_operator, mean_gradient_operator = _mean_pool.operators(
    "mean_pool2d",
    _mean_operator,
    _mean_gradient_operator,
    lambda x, window, _: empty_batch_last(x, *_unflat(window).output_shape(x.shape)),
    _gradient_fake,
)


def _checked(window: Sequence[int], shape: Sequence[int], divisor: int = 0) -> Window:
    """Return the window of some numbers, or raise a ValueError if it does not fit an input."""
    check_that(len(window) == 6, f"a window has 6 numbers, not {list(window)}")
    each = _unflat(window)
    check_that(len(shape) == 4 and min(shape) >= 0, f"pooling wants 4 dimensions (N, C, H, W), not {tuple(shape)}")
    each.check(shape)
    check_that(divisor >= 0, f"the divisor must not be negative, as {divisor} is")
    check_that(each.taps <= 1 << 31, f"windows of {each.kernel} are too large")
    return each


def _check_winner(winner: Tensor, shape: tuple[int, ...], window: Window) -> None:
    """Raise a ValueError unless every winner is a tap of its window that lies within the plane."""
    check_that(window.taps <= MOST_TAPS, f"windows of {window.kernel} have more than {MOST_TAPS} taps")
    fits = int(winner.max()) < window.taps
    for axis in (0, 1):
        for at in range(winner.shape[1 + axis]) if fits else ():
            first = at * window.stride[axis] - window.padding[axis]
            if first < 0 or first + window.kernel[axis] > shape[2 + axis]:
                here = winner.select(1 + axis, at).int()
                width = window.kernel[1]
                tap = here % width if axis else here.div(width, rounding_mode="floor")
                fits = fits and int(tap.min()) + first >= 0 and int(tap.max()) + first < shape[2 + axis]
    check_that(fits, f"the winners are no taps of windows of {window.kernel} within the plane")


def _flat(window: Window) -> list[int]:
    return [*window.kernel, *window.stride, *window.padding]


def _unflat(numbers: Sequence[int]) -> Window:
    return Window(*((numbers[at], numbers[at + 1]) for at in (0, 2, 4)))


def _empty_winner(x: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Return an uninitialised tensor for the taps of the maxima, shape (C, H', W', N), or an empty one."""
    return x.new_empty((0,) if shape is None else (*shape[1:], shape[0]), dtype=torch.uint8)


@lru_cache(maxsize=1024)
def _geometry(shape: tuple[int, ...], window: Window) -> Any:
    """Return the geometry as the kernels take it."""
    native = kernels()
    axes = (
        native.Axis(
            shape[2 + axis], window.output_size(shape[2 + axis], axis), window.kernel[axis], window.stride[axis],
            window.padding[axis], 1,
        )
        for axis in (0, 1)
    )  # fmt: skip
    return native.Geometry(shape[0], *axes, False)


# The kernels' module complains of objects that outlive it.
atexit.register(_geometry.cache_clear)
