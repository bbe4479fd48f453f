"""Convolution with a sparse weight by the compiled kernels, on the CPU: float32, or bfloat16 beside float32 weights.

A linear layer is a convolution on a plane of one position: its input has shape (N, C), its output (N, O).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrow.ops.autograd import Differentiable, direct
from regrow.ops.check import check_activation, check_tensor, check_that
from regrow.ops.conv2d.plan import Plan, flat, output_shape, parts, plan_of_index, unflat
from regrow.ops.layout import allocate_batch_last, empty_batch_last, to_batch_last
from regrow.ops.native import kernels
from regrow.ops.pattern import Geometry, Pattern
from regrow.ops.remade import Unmade

__all__ = ["conv2d", "plan_of", "product", "values_gradient"]


def conv2d(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Convolve tensors on the CPU; arguments as for `regrow.ops.sparse_conv2d`."""
    return product(x, values, bias, pattern, geometry)


def product(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Return the output of a convolution or, for an input of shape (N, C), of a linear layer."""
    if direct(x, values, bias):
        plan = pattern.keep(("product", geometry), lambda: _plan_of_product(pattern, geometry))
        if plan.transposed is None and plan.unit == 1 and x.requires_grad and torch.is_grad_enabled():
            plan.transpose(pattern.transposed_blocks(geometry))
        output: Tensor = _convolution(plan, x, values, bias)
        return output
    wants_input_gradient = torch.is_grad_enabled() and x.requires_grad
    index, transposed = pattern.index_of_product(geometry, input_gradient=wants_input_gradient)
    traced: Tensor = _convolution.traced(x, values, bias, index, transposed, list(pattern.shape), flat(geometry))
    return traced


def plan_of(pattern: Pattern, geometry: Geometry) -> Plan:
    """Return the plan of the gradient of a pattern's weights."""
    return Plan(pattern.shape, geometry, pattern.forward_blocks(geometry))


def _plan_of_product(pattern: Pattern, geometry: Geometry) -> Plan:
    """Return the plan of a product, without its transposed index."""
    index, _ = pattern.index_of_product(geometry, input_gradient=False)
    return Plan(pattern.shape, geometry, *parts(index))


def values_gradient(plan: Plan, x: Tensor, output_gradient: Tensor) -> Tensor:
    """Return the gradient of weights of a convolution or a linear layer on the CPU, float32, shape (weights,).

    Args:
        plan: of the weights.
        x: input of the layer, shape (N, C, H, W) or (N, C).
        output_gradient: gradient of its output, shape (N, O, H', W') or (N, O).
    """
    return _values_gradient(plan, to_batch_last(x), to_batch_last(output_gradient), None)


def _values_gradient(plan: Plan, x: Tensor | Unmade, output_gradient: Tensor, bias_gradient: Tensor | None) -> Tensor:
    """Return the gradient of values; that of the bias comes along for less than it costs alone."""
    x, normalised = x if isinstance(x, Unmade) else (x, None)
    gradient = x.new_empty(plan.nonzeros, dtype=torch.float32)
    kernels().values_gradient(
        plan.sizes(x.shape).forward, plan.forward, output_gradient.data_ptr(), x.data_ptr(), normalised,
        gradient.data_ptr(), 0 if bias_gradient is None else bias_gradient.data_ptr(), torch.get_num_threads(),
        x.dtype is torch.bfloat16,
    )  # fmt: skip
    return plan.collect(gradient)


def _run(plan: Plan, _: object, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    sizes, values = plan.sizes(x.shape), plan.spread(values)
    bias = None if bias is None else bias.contiguous()
    output = allocate_batch_last(sizes.output, x.dtype)
    kernels().gather(
        sizes.forward, plan.forward, values.data_ptr(), 0 if bias is None else bias.data_ptr(), x.data_ptr(),
        output.data_ptr(), torch.get_num_threads(), x.dtype is torch.bfloat16,
    )  # fmt: skip
    return output


def _keep(wanted: Sequence[bool], inputs: Sequence[Tensor | None], _: object) -> tuple[Tensor | None, ...]:
    # What no gradient needs is not kept alive, but for the values: whether they changed tells whether the index did.
    return inputs[0] if wanted[1] else None, inputs[1]


def _gradients(
    plan: Plan,
    input_shape: tuple[int, ...],
    wanted: Sequence[bool],
    given: Tensor,
    x: Tensor | Unmade | None,
    values: Tensor,
) -> list[Tensor]:
    wants_x, wants_values, wants_bias = wanted
    made = []
    if wants_x:
        values = plan.spread(values)
        of_x, sizes = allocate_batch_last(input_shape, given.dtype), plan.sizes(input_shape)
        how = (torch.get_num_threads(), given.dtype is torch.bfloat16)
        if plan.unit > 1:
            kernels().input_gradient(
                sizes.forward, plan.forward, values.data_ptr(), given.data_ptr(), of_x.data_ptr(), *how
            )
        else:
            kernels().gather(
                sizes.transposed, plan.transposed, values.data_ptr(), 0, given.data_ptr(), of_x.data_ptr(), *how
            )
        made.append(of_x)
    if wants_values and x is not None:
        of_bias = given.new_empty(plan.outputs, dtype=torch.float32) if wants_bias else None
        made.append(_values_gradient(plan, x, given, of_bias))
        if of_bias is not None:
            made.append(of_bias)
    elif wants_bias:
        # In the order of memory.
        made.append(given.movedim(0, -1).flatten(1).sum(1, dtype=torch.float32))
    return made


_convolution = Differentiable(_run, _keep, _gradients, inputs=3, differentiable=3, remakes=True)


# What the compiler and the exporter see takes the index structure as tensors and all else as numbers.


def check_input(plan: Plan, x: Tensor, weight_shape: Sequence[int], name: str = "the input") -> None:
    """Raise a ValueError unless an input fits a weight."""
    check_activation(name, x)
    check_that(
        x.dim() == len(weight_shape) and x.shape[1] == plan.channels,
        f"{name} of shape {tuple(x.shape)} does not fit a weight of shape {tuple(weight_shape)}",
    )


def _operator(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    check_tensor("values", values)
    check_that(values.dim() == 1, f"values must have one dimension, not shape {tuple(values.shape)}")
    check_that(index, "the index is missing")
    plan = plan_of_index(index, transposed_index, weight_shape, geometry, len(values))
    check_input(plan, x, weight_shape)
    check_tensor("the bias", bias, (plan.outputs,))
    if not x.numel():
        return allocate_batch_last(plan.sizes(x.shape).output, x.dtype).zero_()
    return _run(plan, None, to_batch_last(x), values, bias)


def _gradient_operator(
    output_gradient: Tensor,
    x: Tensor | None,
    values: Tensor,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
    input_shape: list[int],
    wanted: list[bool],
) -> list[Tensor]:
    """Return the gradients that are wanted, in this order: of input, values, bias."""
    check_that(len(wanted) == 3, f"three gradients are wanted or not, not {wanted}")
    wants_x, wants_values, _ = wanted
    check_tensor("values", values)
    check_that(values.dim() == 1, f"values must have one dimension, not shape {tuple(values.shape)}")
    plan = plan_of_index(index, transposed_index, weight_shape, geometry, len(values))
    check_that(
        not wants_x or transposed_index or (index and plan.unit > 1), "the input's gradient wants a transposed index"
    )
    check_that(not wants_values or (x is not None and index), "the values' gradient wants the input and the index")
    shape = tuple(input_shape)
    check_that(
        len(shape) == len(weight_shape) and shape[1] == plan.channels and min(shape) >= 0,
        f"an input of shape {shape} does not fit a weight of shape {tuple(weight_shape)}",
    )
    check_activation("the output's gradient", output_gradient, plan.sizes(shape).output)
    check_activation("the input", x, shape, like=output_gradient)
    if not output_gradient.numel():
        made = [output_gradient.new_zeros(shape), torch.zeros_like(values), values.new_zeros(plan.outputs)]
        return [each for each, wants in zip(made, wanted, strict=True) if wants]
    x = None if x is None else to_batch_last(x)
    return _gradients(plan, shape, wanted, to_batch_last(output_gradient), x, values)


def _fake(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    return empty_batch_last(x, *output_shape(x.shape, weight_shape, unflat(geometry)))


def _gradient_fake(
    output_gradient: Tensor,
    x: Tensor | None,
    values: Tensor,
    index: list[Tensor],
    transposed_index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
    input_shape: list[int],
    wanted: list[bool],
) -> list[Tensor]:
    wants_x, wants_values, wants_bias = wanted
    made = [empty_batch_last(output_gradient, *input_shape)] if wants_x else []
    made += [values.new_empty(values.shape)] if wants_values else []
    return made + ([values.new_empty(weight_shape[0])] if wants_bias else [])


operator, gradient_operator = _convolution.operators("conv2d", _operator, _gradient_operator, _fake, _gradient_fake)
